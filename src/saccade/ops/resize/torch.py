"""Fast `resize` on tensors.

On the CPU small pictures take one dense matrix per axis for all planes at once; larger ones go plane by plane through
the blocked products of `saccade.ops.resize.numpy`. The map is linear, so its gradient is the transposed map on the
same path. What is traced (`torch.compile`, `torch.export`, fake and meta tensors) or lives on an accelerator is
gathered tap by tap instead: every operation is visible, and height and width may stay symbolic.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saccade.errors import InputError
from saccade.ops.resize.numpy import multiply_plane
from saccade.ops.resize.weights import KERNELS, Axis, axes, output_size, stretch, tap_count

__all__ = ["resize_gather", "resize_planes"]

SMALL = 128  # pictures up to this many samples on a side, in and out, use one dense matrix per axis: measured
NUMPY = (torch.uint8, torch.float32, torch.float64)


def resize_planes(
    x: Tensor,
    scale: float | tuple[float, float] | None,
    size: tuple[int, int] | None,
    method: str,
    antialias: bool,
) -> Tensor:
    """(..., h, w) -> (..., H, W), the path chosen by device and by whether the call is being traced."""
    if x.dim() < 2:
        raise InputError(f"resize needs a tensor (..., height, width), got one of shape {tuple(x.shape)}")
    if not x.is_floating_point() and x.dtype != torch.uint8:
        raise InputError(f"resize takes floating-point or uint8 tensors, got {x.dtype}")
    traced = torch.compiler.is_compiling() or type(x) not in (Tensor, torch.nn.Parameter)
    if traced or x.device.type != "cpu":
        return resize_gather(x, scale, size, method, antialias)
    rows, columns = axes(x.shape[-2], x.shape[-1], scale, size, method, antialias)
    planes = x.reshape(math.prod(x.shape[:-2]), *x.shape[-2:])
    y: Tensor = _Resize.apply(planes, rows, columns)
    return y.view(*x.shape[:-2], rows.m, columns.m)


class _Resize(torch.autograd.Function):
    """(N, h, w) -> (N, H, W). Linear, so its gradient is the transposed map, at the same speed, any number of times."""

    @staticmethod
    def forward(ctx: Any, planes: Tensor, rows: Axis, columns: Axis) -> Tensor:
        ctx.axes = rows, columns
        return _multiply(planes, rows, columns)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        rows, columns = ctx.axes
        grad: Tensor = _Resize.apply(grads[0], rows.transpose(), columns.transpose())
        return grad, None, None


def _multiply(x: Tensor, rows: Axis, columns: Axis) -> Tensor:
    (h, H), (w, W) = rows.sizes, columns.sizes
    if max(h, H, w, W) <= SMALL:
        work = torch.float64 if x.dtype == torch.float64 else torch.float32
        with torch.autocast("cpu", enabled=False):
            y = torch.matmul(torch.matmul(_dense(rows, work), x.to(work)), _dense(columns, work).T)
        return _finish(y, x.dtype)
    if x.dtype not in NUMPY:
        return _multiply(x.float(), rows, columns).to(x.dtype)
    planes = x.detach().numpy()
    out = np.empty((len(x), H, W), planes.dtype)  # numpy asks for huge pages: first touching small ones is slow
    for source, target in zip(planes, out, strict=True):
        multiply_plane(source, target, rows, columns)
    return torch.from_numpy(out)


def _finish(y: Tensor, dtype: torch.dtype) -> Tensor:
    """To the caller's dtype; 8-bit values are rounded, halves upwards, and clamped."""
    if dtype == torch.uint8:
        y = (y + 0.5).floor().clamp(0, 255)
    return y.to(dtype)


@functools.lru_cache(maxsize=16)
def _dense(axis: Axis, dtype: torch.dtype) -> Tensor:
    """(outputs, inputs)."""
    n, m = axis.sizes
    (band,) = axis.bands(m)
    matrix = torch.zeros(m, n, dtype=dtype)
    matrix[:, band.source] = torch.tensor(band.weight, dtype=dtype)
    return matrix


def resize_gather(
    x: Tensor,
    scale: float | tuple[float, float] | None,
    size: tuple[int, int] | None,
    method: str,
    antialias: bool,
) -> Tensor:
    """The same map as a sum of gathered taps: differentiable, traceable, for any device and symbolic sizes."""
    axes(1, 1, scale, None if size is None else (1, 1), method, antialias)  # raises on what cannot be
    y = x if x.dtype == torch.float64 else x.float()
    for dim in (-2, -1):
        n = x.shape[dim]
        if scale is None:
            assert size is not None
            step: float = size[dim] / n
        else:
            step = float(scale[dim] if isinstance(scale, tuple) else scale)
        m = size[dim] if size is not None else _output_size(n, step)
        y = _gather_axis(y, dim, n, m, step, method, antialias)
    return _finish(y, x.dtype)


def _output_size(n: int, scale: float) -> int:
    """`output_size`, for sizes that may be symbols too."""
    if type(n) is int:
        return output_size(n, scale)
    if scale == round(scale):
        return n * round(scale)
    if 1 / scale == round(1 / scale):
        return -(n // -round(1 / scale))
    return math.ceil(n * scale - 1e-9)


def _gather_axis(x: Tensor, dim: int, n: int, m: int, scale: float, method: str, antialias: bool) -> Tensor:
    kernel, reach = KERNELS[method]
    squeeze = stretch(scale, antialias)
    centre = (torch.arange(m, dtype=torch.float64) + 0.5) / scale - 0.5
    first = (centre - reach / squeeze).floor()
    place = first[:, None] + torch.arange(tap_count(scale, method, antialias), dtype=torch.float64)  # (m, taps)
    weight = kernel((centre[:, None] - place) * squeeze).double()
    weight = (weight / weight.sum(1, keepdim=True)).to(x.dtype).to(x.device)
    source = place.long() % (2 * n)
    source = torch.where(source < n, source, 2 * n - 1 - source).to(x.device)
    total = torch.zeros((), dtype=x.dtype, device=x.device)
    for tap in range(weight.shape[1]):
        w = weight[:, tap]
        total = total + x.index_select(dim, source[:, tap]) * (w[:, None] if dim == -2 else w)
    return total
