"""Deformable attention: each query reads a few places of its own choosing from maps of one or several sizes.

    out[b, q, h] = sum over levels l and points p of  weights[b, q, h, l, p] * value_l[b, h](location[b, q, h, l, p])

Locations are (x, y) in units of a map's width and height, 0 to 1 from edge to edge; values between pixel centres are
bilinear, zero beyond the edge. Zhu et al., "Deformable DETR", ICLR 2021, arXiv:2010.04159, equation 3.

naive.py is the truth, a loop over queries and points; torch.py reads with ``grid_sample``, a level at a time; triton.py
is the path of a GPU.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, arange, are_deterministic_algorithms_enabled, compiler, stack

from saccade.errors import InputError, UsageError
from saccade.ops.deform_attention import naive
from saccade.ops.deform_attention import torch as sampled
from saccade.ops.triton_launch import runs_on_triton

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["centres", "deform_attention"]


def deform_attention(
    value: Tensor,
    shapes: Sequence[tuple[int, int]],
    locations: Tensor,
    weights: Tensor,
    *,
    fast: bool | None = None,
) -> Tensor:
    """Weighted sums of what maps hold at given places (the inside of multi-scale deformable attention).

    Args:
        value: (B, K, heads, D): the maps of all levels, flattened row by row, one behind the other.
        shapes: (height, width) of each level; their products add up to K.
        locations: (B, Q, heads, levels, points, 2), x first, in units of the level's width and height.
        weights: (B, Q, heads, levels, points).
        fast: read with ``grid_sample``, or by Triton on a GPU that has it, outside graphs and where torch is not told
            to be deterministic (the kernels add up the gradient of ``value`` in no fixed order); None decides as
            true. False loops.

    Returns:
        (B, Q, heads * D). Differentiable, by Triton once.

    Raises:
        InputError: shapes that do not go together; the message names both.
        UsageError: no levels.
    """
    if not compiler.is_compiling():
        _check(value, shapes, locations, weights)
    out: Tensor = _path(fast, value, locations, weights)(value, shapes, locations, weights)
    return out


def _path(fast: bool | None, *given: Tensor) -> Callable[..., Any]:
    if fast is False:
        return naive.looped
    if runs_on_triton(*given) and not are_deterministic_algorithms_enabled():
        attended: Callable[..., Any] = importlib.import_module("saccade.ops.deform_attention.triton").attended
        return attended
    return sampled.sampled


def centres(height: int, width: int, like: Tensor) -> Tensor:
    """Centres of the cells of a grid, row by row, (x, y) from 0 to 1: (height * width, 2); type and device of ``like``.

    They are where queries stand that form a grid: reference points.
    """
    y = (arange(height, device=like.device, dtype=like.dtype) + 0.5) / height
    x = (arange(width, device=like.device, dtype=like.dtype) + 0.5) / width
    return stack([x.expand(height, width), y[:, None].expand(height, width)], -1).reshape(-1, 2)


def _check(value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> None:
    if not shapes:
        raise UsageError("deformable attention needs at least one level")
    if value.ndim != 4 or locations.ndim != 6 or weights.ndim != 5:
        raise InputError(
            "deformable attention takes values (B, K, heads, D), locations (B, Q, heads, levels, points, 2) and "
            f"weights without the last axis, not {tuple(value.shape)}, {tuple(locations.shape)}, {tuple(weights.shape)}"
        )
    held = sum(height * width for height, width in shapes)
    if held != value.shape[1]:
        raise InputError(f"maps of {' and '.join(f'{w} x {h}' for h, w in shapes)} hold {held}, not {value.shape[1]}")
    wanted = (value.shape[0], locations.shape[1], value.shape[2], len(shapes), locations.shape[4], 2)
    if tuple(locations.shape) != wanted or tuple(weights.shape) != wanted[:-1]:
        raise InputError(
            f"locations are to be {wanted} and weights {wanted[:-1]}, not {tuple(locations.shape)} and "
            f"{tuple(weights.shape)}"
        )
