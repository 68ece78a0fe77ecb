"""Fast `resize` on tensors: per axis, a few small matrix products along the diagonal of the weight matrix.

Cutting the sparse weight matrix into blocks of 16 to 64 output samples wastes a few multiplications by zero and gains
the speed of matrix products (see `benchmarks/resize.py`); any scale takes the same path. Small pictures take all rows
in one product. What is traced (`torch.compile`, `torch.export`, fake and meta tensors) or lives on an accelerator
gathers tap by tap instead: every operation is visible, and height and width may stay symbolic.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saccade.errors import InputError
from saccade.ops._resize_new.weights import KERNELS, Axis, axes, stretch, tap_count

__all__ = ["resize_gather", "resize_planes"]

ROWS, COLUMNS_DOWN, COLUMNS_UP = 16, 32, 64  # output samples per block, measured
SMALL = ROWS_WHOLE = 256  # up to this many rows, in and out, one product for all rows of all planes is quicker
HUGE = 1 << 22  # bytes from which huge pages are asked for

Bands = tuple[tuple[slice, slice, Tensor], ...]


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
    y: Tensor = _Resize.apply(planes, rows, columns)  # type: ignore[no-untyped-call]
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
        grad: Tensor = _Resize.apply(grads[0].contiguous(), rows.T, columns.T)  # type: ignore[no-untyped-call]
        return grad, None, None


def _multiply(x: Tensor, rows: Axis, columns: Axis) -> Tensor:
    work = torch.float64 if x.dtype == torch.float64 else torch.float32
    (h, H), (w, W) = rows.sizes, columns.sizes
    y = _empty((len(x), H, W), x.dtype)
    down = _blocks(rows, ROWS_WHOLE if max(h, H) <= SMALL else ROWS, work)
    across = _blocks(columns, COLUMNS_UP if w <= W else COLUMNS_DOWN, work)
    rows_first = h >= H
    # planes taken together: one when cut into bands, a cache's worth when a single product serves them all
    group = max(1, (1 << 21) // max(h * w, H * W)) if len(down) == 1 else 1
    middle = _empty((min(group, len(x)), *((H, w) if rows_first else (h, W))), work)  # written over by each group
    for source, target in zip(x.split(group), y.split(group), strict=True):
        planes, between = source.to(work).contiguous(), middle[: len(source)]
        out = target if x.dtype == work else torch.empty(target.shape, dtype=work)
        if rows_first:
            _down(planes, down, between)
            _across(between, across, out)
        else:
            _across(planes, across, between)
            _down(between, down, out)
        if out is not target:
            target.copy_(_finish(out, x.dtype))
    return y


def _down(x: Tensor, bands: Bands, out: Tensor) -> None:
    """Multiply the columns: x (g, h, w) -> out (g, H, w); several bands only with g = 1."""
    if len(bands) == 1:
        ((_, source, weight),) = bands
        torch.bmm(weight.expand(len(x), -1, -1), x[:, source], out=out)
        return
    for to, source, weight in bands:
        torch.mm(weight, x[0, source], out=out[0, to])


def _across(x: Tensor, bands: Bands, out: Tensor) -> None:
    """Multiply the rows: x (g, h, w) -> out (g, h, W)."""
    lines, results = x.flatten(0, 1), out.flatten(0, 1)
    for to, source, weight in bands:
        torch.mm(lines[:, source], weight.T, out=results[:, to])


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory for a result. numpy asks the kernel for huge pages; first touching 4 KB ones costs as much as the work."""
    count = math.prod(shape)
    if count * dtype.itemsize < HUGE:
        return torch.empty(shape, dtype=dtype)
    return torch.from_numpy(np.empty(count * dtype.itemsize, np.uint8)).view(dtype).view(shape)


def _finish(y: Tensor, dtype: torch.dtype) -> Tensor:
    """To the caller's dtype; 8-bit values are rounded, halves upwards, and clamped."""
    if dtype == torch.uint8:
        y = (y + 0.5).floor().clamp(0, 255)
    return y.to(dtype)


@functools.lru_cache(maxsize=64)
def _blocks(axis: Axis, block: int, dtype: torch.dtype) -> Bands:
    return tuple((band.out, band.source, torch.tensor(band.weight, dtype=dtype)) for band in axis.bands(block))


def resize_gather(
    x: Tensor,
    scale: float | tuple[float, float] | None,
    size: tuple[int, int] | None,
    method: str,
    antialias: bool,
) -> Tensor:
    """The same map as a sum of gathered taps: differentiable, traceable, for any device and symbolic sizes."""
    if method not in KERNELS or (scale is None and size is None):
        axes(1, 1, scale, size, method, antialias)  # raises
    y = x if x.dtype == torch.float64 else x.float()
    for dim in (-2, -1):
        n = x.shape[dim]
        if scale is None:
            assert size is not None
            step: float = size[dim] / n
        else:
            step = float(scale[dim] if isinstance(scale, tuple) else scale)
        m = size[dim] if size is not None else _symbolic_output_size(n, step)
        y = _gather_axis(y, dim, n, m, step, method, antialias)
    return _finish(y, x.dtype)


def _symbolic_output_size(n: int, scale: float) -> int:
    if scale == int(scale):
        return n * int(scale)
    if (1 / scale) == round(1 / scale):
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
