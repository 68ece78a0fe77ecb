"""Depthwise convolution in Triton: forward, and the gradients of the map and of the kernel, in either layout.

In planes (NCHW) and channels last alike a picture's pixels lie ``place`` numbers apart and its channels ``channel``:
one kernel reads both, with the pixels in one long row. A tap (i, j) reads d ((i - K//2) W + (j - K//2)) pixels further
on, and what falls over the border counts as zero. A program owns `LANES` outputs, channels times pixels:

    forward      goes through the taps that meet the map at all, and adds up in float32 whatever is read
    of the map   the same with the kernel turned
    of a kernel  a program owns one row of taps of some channels, and a part of all pixels; the parts, about `PROGRAMS`
                 over the number of such rows, are added up by `torch.sum`: no atomics, the same bits every time

Without a GPU the kernels run in Triton's interpreter (``TRITON_INTERPRET=1`` before the first import of triton), which
is how they are tested. They have not been timed on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from saccade.ops.triton_launch import blocks, sums

__all__ = ["forward", "grad_weight"]

LANES = 512  # outputs of a program
PRODUCTS = 2048  # taps times pixels of a program that takes the kernel's gradient
PROGRAMS = 2048  # of them are enough to fill any GPU
CHANNELS = 32  # of a program, channels last


@triton.jit
def _convolve(
    x, weight, y, C, H, W, D, channel, place, SUMS: tl.constexpr, K: tl.constexpr, CB: tl.constexpr, P: tl.constexpr
):
    """The convolution of `P` pixels in `CB` channels of one picture."""
    tiles, radius = tl.cdiv(H * W, P), K // 2
    first = tl.program_id(0) % tiles * P
    rest = tl.program_id(0) // tiles
    c = rest % tl.cdiv(C, CB) * CB + tl.arange(0, CB)
    picture = (rest // tl.cdiv(C, CB)).to(tl.int64) * C * H * W
    p = first + tl.arange(0, P)
    inside = (c < C)[:, None] & (p < H * W)[None, :]
    own = picture + c.to(tl.int64)[:, None] * channel + p.to(tl.int64)[None, :] * place
    top, bottom = first // W, (tl.minimum(first + P, H * W) - 1) // W
    total = tl.zeros((CB, P), SUMS)
    for i in range(tl.maximum(0, radius - bottom // D), tl.minimum(K, radius + (H - 1 - top) // D + 1)):
        row = p // W + (i - radius) * D
        for j in range(tl.maximum(0, radius - (W - 1) // D), tl.minimum(K, radius + (W - 1) // D + 1)):
            column = p % W + (j - radius) * D
            there = inside & ((row >= 0) & (row < H) & (column >= 0) & (column < W))[None, :]
            on = ((i - radius) * W + (j - radius)) * D
            seen = tl.load(x + own + on.to(tl.int64) * place, mask=there, other=0.0)
            tap = tl.load(weight + (c * K + i) * K + j, mask=c < C, other=0.0)
            total += tap.to(SUMS)[:, None] * seen.to(SUMS)
    tl.store(y + own, total, mask=inside)


@triton.jit
def _correlate(
    gy, x, parts, C, H, W, D, channel, place, count, each,
    SUMS: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, CB: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """One row of taps of `CB` channels: sums of gy times the moved x over ``each`` tiles of the ``count``."""
    i, tiles, radius = tl.program_id(0) % K, tl.cdiv(H * W, P), K // 2
    c = tl.program_id(0) // K * CB + tl.arange(0, CB)
    part = tl.program_id(1)
    j = tl.arange(0, KP)
    down, right = (i - radius) * D, (j - radius) * D
    on = (down * W + right).to(tl.int64)[:, None, None] * place
    total = tl.zeros((KP, CB, P), SUMS)
    for tile in range(part * each, tl.minimum((part + 1) * each, count)):
        p = tile % tiles * P + tl.arange(0, P)
        picture = (tile // tiles).to(tl.int64) * C * H * W
        inside = (c < C)[:, None] & (p < H * W)[None, :]
        own = picture + c.to(tl.int64)[:, None] * channel + p.to(tl.int64)[None, :] * place
        row, column = p // W + down, (p % W)[None, :] + right[:, None]
        there = (j < K)[:, None] & ((row >= 0) & (row < H))[None, :] & (column >= 0) & (column < W)
        share = tl.load(gy + own, mask=inside, other=0.0)
        seen = tl.load(x + own[None, :, :] + on, mask=inside[None, :, :] & there[:, None, :], other=0.0)
        total += share.to(SUMS)[None, :, :] * seen.to(SUMS)
    target = ((part * C + c).to(tl.int64)[None, :] * K + i) * K + j[:, None]
    tl.store(parts + target, tl.sum(total, 2), mask=(j < K)[:, None] & (c < C)[None, :])


def _laid_out(x: Tensor) -> tuple[Tensor, torch.memory_format]:
    """The map in the layout that it has, or else in planes."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    layout = torch.channels_last if last else torch.contiguous_format
    return x.contiguous(memory_format=layout), layout


def _tile(x: Tensor, lanes: int) -> dict[str, int]:
    """Channels and pixels of a program, together about ``lanes``: more of what lies side by side in memory."""
    pixels = x.shape[2] * x.shape[3]
    if x.is_contiguous():
        p = blocks(pixels, lanes)
        return {"CB": blocks(x.shape[1], lanes // p), "P": p}
    channels = blocks(x.shape[1], min(CHANNELS, lanes))
    return {"CB": channels, "P": blocks(pixels, lanes // channels)}


def forward(x: Tensor, weight: Tensor, dilation: int = 1) -> Tensor:
    """As `saccade.ops.large_depthwise.cpu.forward`, in float16, bfloat16, float32 (sums in float32) or float64."""
    x, layout = _laid_out(x)
    y = torch.empty_like(x, memory_format=layout)
    batch, channels, height, width = x.shape
    tile = _tile(x, LANES)
    grid = (triton.cdiv(height * width, tile["P"]) * triton.cdiv(channels, tile["CB"]) * batch,)
    with torch.cuda.device_of(x):
        _convolve[grid](
            x, weight.contiguous(), y, channels, height, width, dilation, x.stride(1), x.stride(3),
            SUMS=sums(x), K=weight.shape[-1], **tile,
        )  # fmt: skip
    return y


def grad_weight(gy: Tensor, x: Tensor, kernel: int, dilation: int = 1) -> Tensor:
    """As `saccade.ops.large_depthwise.cpu.grad_weight`, in x's dtype; sums in float32, in an order that is fixed."""
    x, layout = _laid_out(x)
    gy = gy.contiguous(memory_format=layout)
    batch, channels, height, width = x.shape
    taps = triton.next_power_of_2(kernel)
    tile = _tile(x, max(1, PRODUCTS // taps))
    rows = kernel * triton.cdiv(channels, tile["CB"])
    count = batch * triton.cdiv(height * width, tile["P"])
    each = triton.cdiv(count, min(count, triton.cdiv(PROGRAMS, rows)))
    split = triton.cdiv(count, each)
    parts = x.new_empty(split, channels, 1, kernel, kernel, dtype=torch.promote_types(x.dtype, torch.float32))
    with torch.cuda.device_of(x):
        _correlate[rows, split](
            gy, x, parts, channels, height, width, dilation, x.stride(1), x.stride(3), count, each,
            SUMS=sums(x), K=kernel, KP=taps, **tile,
        )  # fmt: skip
    return parts.sum(0).to(x.dtype)
