"""TVConv in Triton: a program owns some places of some pictures, with all their taps, forward and backward.

Channels and places of an output are one long row of C h w numbers, in which the kernels of all places lie as they are
stored, a tap behind the other. Sums are taken in float32 whatever is read, in an order that is fixed (no atomics):

    forward       weight[t] times what the tap sees, over the k^2 taps t; a kernel is read once for `PICTURES` pictures
    of the input  the same products, gathered: each place of the input goes through the outputs that read it
    of a kernel   a program for one tap of some places goes through the pictures of the batch

Without a GPU the kernels run in Triton's interpreter (``TRITON_INTERPRET=1`` before the first import of triton), which
is how they are tested. They have not been timed on a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from saccade.ops.triton_launch import blocks, sums

__all__ = ["convolved"]

PLACES = 256  # of a program, channels and all
PICTURES = 4  # of a program, at the most


@triton.jit
def _seen(n, t, H, W, h, w, S, K: tl.constexpr):
    """Where tap t of the outputs n (in C h w) reads in (C, H, W), and whether that is within the map."""
    i, j = n % (h * w) // w * S + t // K - K // 2, n % w * S + t % K - K // 2
    return (n // (h * w) * H + i) * W + j, (i >= 0) & (i < H) & (j >= 0) & (j < W)


@triton.jit
def _forward(x, weight, y, B, C, H, W, h, w, S, SUMS: tl.constexpr, K: tl.constexpr, BB: tl.constexpr, N: tl.constexpr):
    b = (tl.program_id(0) % tl.cdiv(B, BB) * BB + tl.arange(0, BB)).to(tl.int64)[:, None]
    n = tl.program_id(0) // tl.cdiv(B, BB) * N + tl.arange(0, N)
    held = C * h * w
    total = tl.zeros((BB, N), SUMS)
    for t in range(K * K):
        place, there = _seen(n, t, H, W, h, w, S, K)
        tap = tl.load(weight + n, mask=n < held, other=0.0)
        read = tl.load(x + b * C * H * W + place[None, :], mask=(b < B) & (there & (n < held))[None, :], other=0.0)
        total += tap.to(SUMS)[None, :] * read.to(SUMS)
        weight += held
    tl.store(y + b * held + n[None, :], total, mask=(b < B) & (n < held)[None, :])


@triton.jit
def _of_input(
    g, weight, gx, B, C, H, W, h, w, S, SUMS: tl.constexpr, K: tl.constexpr, BB: tl.constexpr, N: tl.constexpr
):
    b = (tl.program_id(0) % tl.cdiv(B, BB) * BB + tl.arange(0, BB)).to(tl.int64)[:, None]
    n = tl.program_id(0) // tl.cdiv(B, BB) * N + tl.arange(0, N)
    inside, held = n < C * H * W, C * h * w
    total = tl.zeros((BB, N), SUMS)
    for t in range(K * K):
        i, j = n % (H * W) // W - t // K + K // 2, n % W - t % K + K // 2  # S times the output that reads here
        there = inside & (i >= 0) & (j >= 0) & (i % S == 0) & (j % S == 0) & (i // S < h) & (j // S < w)
        place = (n // (H * W) * h + i // S) * w + j // S
        tap = tl.load(weight + place, mask=there, other=0.0)
        share = tl.load(g + b * held + place[None, :], mask=(b < B) & there[None, :], other=0.0)
        total += tap.to(SUMS)[None, :] * share.to(SUMS)
        weight += held
    tl.store(gx + b * C * H * W + n[None, :], total, mask=(b < B) & inside[None, :])


@triton.jit
def _of_weight(g, x, gw, B, C, H, W, h, w, S, SUMS: tl.constexpr, K: tl.constexpr, N: tl.constexpr):
    t, n = tl.program_id(0) % (K * K), tl.program_id(0) // (K * K) * N + tl.arange(0, N)
    place, there = _seen(n, t, H, W, h, w, S, K)
    held = C * h * w
    total = tl.zeros((N,), SUMS)
    for _ in range(B):
        share = tl.load(g + n, mask=n < held, other=0.0)
        read = tl.load(x + place, mask=there & (n < held), other=0.0)
        total += share.to(SUMS) * read.to(SUMS)
        g += held
        x += C * H * W
    tl.store(gw + t.to(tl.int64) * held + n, total, mask=n < held)


def _sizes(x: Tensor, weight: Tensor, stride: int) -> tuple[int, ...]:
    """(B, C, H, W, h, w, stride)."""
    return (*x.shape, *weight.shape[2:], stride)


class _Convolved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, kernel: int, stride: int, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.told = kernel, stride
        y = x.new_empty(x.shape[0], *weight.shape[1:], dtype=dtype)
        some = blocks(x.shape[0], PICTURES)
        grid = (triton.cdiv(weight[0].numel(), PLACES) * triton.cdiv(x.shape[0], some),)
        with torch.cuda.device_of(x):
            _forward[grid](x, weight, y, *_sizes(x, weight, stride), SUMS=sums(x), K=kernel, BB=some, N=PLACES)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), (kernel, stride), g = ctx.saved_tensors, ctx.told, g.contiguous()
        told, some = _sizes(x, weight, stride), blocks(x.shape[0], PICTURES)
        gx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        gw = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        with torch.cuda.device_of(x):
            if gx is not None:
                grid = (triton.cdiv(x[0].numel(), PLACES) * triton.cdiv(x.shape[0], some),)
                _of_input[grid](g, weight, gx, *told, SUMS=sums(x), K=kernel, BB=some, N=PLACES)
            if gw is not None:
                grid = (triton.cdiv(weight[0].numel(), PLACES) * kernel**2,)
                _of_weight[grid](g, x, gw, *told, SUMS=sums(x), K=kernel, N=PLACES)
        return gx, gw, None, None, None


def convolved(x: Tensor, weight: Tensor, bias: Tensor | None, kernel: int, stride: int) -> Tensor:
    """`tvconv` by the kernels, differentiable once; the result lies in planes (NCHW)."""
    wide = x.dtype if bias is None else torch.promote_types(x.dtype, torch.float32)
    y: Tensor = _Convolved.apply(x.contiguous(), weight.contiguous(), kernel, stride, wide)
    return y if bias is None else (y + bias).to(x.dtype)
