"""Deformable attention in Triton: all levels and points of a query in one program, forward and backward.

A program owns some queries of one head. It goes through levels and points, reads the four pixels around each place, D
numbers side by side, and adds up in float32 whatever is read; nothing of size queries x points x D is stored. On the
way back it reads the same pixels once more:

    of a weight      what was read, times the gradient of the output
    of a place       differences of the four pixels, times the same; in units of the map, so times its width or height
    of the values    the gradient, in the shares of the bilinear reading, to each of the four pixels

The first two belong to one program. A pixel is read by any number of queries: the gradient of the values is summed in
float32 by atomic additions, in no fixed order, so on a GPU its last bits may differ from run to run. Where
``torch.use_deterministic_algorithms`` is on, `deform_attention` does not come here.

Without a GPU the kernels run in Triton's interpreter (``TRITON_INTERPRET=1`` before the first import of triton), which
is how they are tested. They have not been timed on a GPU.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from saccade.ops.triton_launch import blocks, sums

__all__ = ["attended"]

LANES = 512  # queries times dimensions of a program
Shapes = tuple[tuple[int, int], ...]


@triton.jit
def _program(Q, HEADS, D, QB: tl.constexpr, DP: tl.constexpr):
    """The program's picture and head, its queries as rows of (B, Q, HEADS), the dimensions, and which of them exist."""
    q = tl.program_id(0) % tl.cdiv(Q, QB) * QB + tl.arange(0, QB)
    rest = tl.program_id(0) // tl.cdiv(Q, QB)
    b, h = (rest // HEADS).to(tl.int64), rest % HEADS
    d = tl.arange(0, DP)
    return b, h, (b * Q + q) * HEADS + h, d, q < Q, (q < Q)[:, None] & (d < D)[None, :]


@triton.jit
def _place(locations, at, real, H, W, SUMS: tl.constexpr):
    """Row and column of the pixel up left of each place, how far beyond its centre that lies, and what is near."""
    x = tl.load(locations + 2 * at, mask=real, other=0.0).to(SUMS) * W - 0.5
    y = tl.load(locations + 2 * at + 1, mask=real, other=0.0).to(SUMS) * H - 0.5
    near = real & (x >= -1) & (x < W) & (y >= -1) & (y < H)  # not so where x or y is not a number
    x, y = tl.where(near, x, 0.0), tl.where(near, y, 0.0)
    top, left = tl.floor(y), tl.floor(x)
    return top.to(tl.int32), left.to(tl.int32), (y - top)[:, None], (x - left)[:, None], near


@triton.jit
def _pixel(row, column, near, level, b, h, KEYS, HEADS, D, H, W, d, lanes):
    """Where the numbers of each query's pixel lie in (B, KEYS, HEADS, D), (QB, DP), and which of them exist."""
    there = near & (row >= 0) & (row < H) & (column >= 0) & (column < W)
    offset = ((b * KEYS + level + row * W + column) * HEADS + h) * D
    return offset[:, None] + d[None, :], there[:, None] & lanes


@triton.jit
def _forward(
    value, levels, locations, weights, out, KEYS, Q, HEADS, D, L, P,
    SUMS: tl.constexpr, QB: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    b, h, rows, d, real, lanes = _program(Q, HEADS, D, QB, DP)
    total = tl.zeros((QB, DP), SUMS)
    for l in range(L):  # noqa: E741
        H, W, level = tl.load(levels + 3 * l), tl.load(levels + 3 * l + 1), tl.load(levels + 3 * l + 2)
        for p in range(P):
            at = (rows * L + l) * P + p
            top, left, low, right, near = _place(locations, at, real, H, W, SUMS)
            weight = tl.load(weights + at, mask=real, other=0.0).to(SUMS)[:, None]
            for corner in tl.static_range(4):
                i, j = corner // 2, corner % 2
                offset, there = _pixel(top + i, left + j, near, level, b, h, KEYS, HEADS, D, H, W, d, lanes)
                share = (low if i else 1 - low) * (right if j else 1 - right)
                total += weight * share * tl.load(value + offset, mask=there, other=0.0).to(SUMS)
    tl.store(out + rows[:, None] * D + d[None, :], total, mask=lanes)


@triton.jit
def _backward(
    g, value, levels, locations, weights, g_value, g_locations, g_weights, KEYS, Q, HEADS, D, L, P,
    SUMS: tl.constexpr, QB: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    b, h, rows, d, real, lanes = _program(Q, HEADS, D, QB, DP)
    upstream = tl.load(g + rows[:, None] * D + d[None, :], mask=lanes, other=0.0).to(SUMS)
    for l in range(L):  # noqa: E741
        H, W, level = tl.load(levels + 3 * l), tl.load(levels + 3 * l + 1), tl.load(levels + 3 * l + 2)
        for p in range(P):
            at = (rows * L + l) * P + p
            top, left, low, right, near = _place(locations, at, real, H, W, SUMS)
            weight = tl.load(weights + at, mask=real, other=0.0).to(SUMS)
            read, across, down = tl.zeros((QB, DP), SUMS), tl.zeros((QB, DP), SUMS), tl.zeros((QB, DP), SUMS)
            for corner in tl.static_range(4):
                i, j = corner // 2, corner % 2
                offset, there = _pixel(top + i, left + j, near, level, b, h, KEYS, HEADS, D, H, W, d, lanes)
                high, wide = (low if i else 1 - low), (right if j else 1 - right)
                pixel = tl.load(value + offset, mask=there, other=0.0).to(SUMS)
                read += high * wide * pixel
                across += (high if j else -high) * pixel
                down += (wide if i else -wide) * pixel
                tl.atomic_add(g_value + offset, weight[:, None] * high * wide * upstream, mask=there)
            tl.store(g_weights + at, tl.sum(upstream * read, 1), mask=real)
            tl.store(g_locations + 2 * at, weight * W * tl.sum(upstream * across, 1), mask=real)
            tl.store(g_locations + 2 * at + 1, weight * H * tl.sum(upstream * down, 1), mask=real)


@functools.lru_cache(64)
def _levels(shapes: Shapes, device: torch.device) -> Tensor:
    """(height, width, first pixel) of each level, flat."""
    told, first = [], 0
    for height, width in shapes:
        told += [height, width, first]
        first += height * width
    return torch.tensor(told, dtype=torch.int32, device=device)


def _sizes(value: Tensor, locations: Tensor) -> tuple[tuple[int], tuple[int, ...], dict[str, Any]]:
    """The grid, (keys, queries, heads, dimensions, levels, points) and the constants of a program."""
    batch, keys, heads, dim = value.shape
    queries, levels, points = locations.shape[1], locations.shape[3], locations.shape[4]
    lanes = triton.next_power_of_2(dim)
    some = blocks(queries, max(1, LANES // lanes))
    grid = (triton.cdiv(queries, some) * batch * heads,)
    return grid, (keys, queries, heads, dim, levels, points), {"SUMS": sums(value), "QB": some, "DP": lanes}


class _Attended(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(value, locations, weights)
        ctx.shapes = shapes
        grid, sizes, constants = _sizes(value, locations)
        out = value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])
        with torch.cuda.device_of(value):
            _forward[grid](value, _levels(shapes, value.device), locations, weights, out, *sizes, **constants)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
        value, locations, weights = ctx.saved_tensors
        levels = _levels(ctx.shapes, value.device)
        grid, sizes, constants = _sizes(value, locations)
        wide = torch.promote_types(value.dtype, torch.float32)
        g_value = torch.zeros_like(value, dtype=wide)
        g_locations, g_weights = torch.empty_like(locations), torch.empty_like(weights)
        with torch.cuda.device_of(value):
            _backward[grid](
                g.contiguous(), value, levels, locations, weights, g_value, g_locations, g_weights, *sizes, **constants
            )
        return g_value.to(value.dtype), None, g_locations, g_weights


def attended(value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """`deform_attention` by the kernels, differentiable once in every tensor; the result has the dtype of ``value``.

    The gradient of ``value`` is made of atomic additions: on a GPU it is not the same to the last bit in every run.
    """
    told = tuple((int(height), int(width)) for height, width in shapes)
    out: Tensor = _Attended.apply(value.contiguous(), told, locations.contiguous(), weights.contiguous())
    return out
