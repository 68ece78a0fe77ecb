"""Routed attention in Triton: keys and values are read where they lie, nothing is gathered and no scores are stored.

A program owns some queries of a region and a head. It goes through the routed regions, a block of keys at a time, with
the softmax kept as a running maximum and sum in float32 (Dao et al., "FlashAttention", arXiv:2205.14135). Kept for the
way back is one number for each query and head, the logarithm of that sum. There, with p_ij the attention, w the
weight of j's region for i's, delta_i = <gradient of out_i, out_i>:

    ds_ij = p_ij (w <g_i, v_j> - delta_i)
    of queries   scale w ds k         a program for some queries, as forward; the same makes a part of the gradient of w
    of keys      scale w ds^T q       a program for some keys of a region, which goes through the regions that are
    of values    w p^T g              routed to it, found by sorting the indices: no atomics, the same bits every time

Without a GPU the kernels run in Triton's interpreter (``TRITON_INTERPRET=1`` before the first import of triton), which
is how they are tested. They have not been timed on a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from saccade.ops.triton_launch import autocast, blocks

__all__ = ["attended", "forward"]

BYTES = 4096  # of a head's queries or keys that a program holds: some such blocks fit the fast memory of any GPU
LEAST = 16  # rows and columns of what a GPU multiplies as matrices


@triton.jit
def _rows(first, count, row, T, width, head, each, N: tl.constexpr, DP: tl.constexpr):
    """Places of N tokens' numbers of one head in (rows, T, width), (N, DP), and which of them exist."""
    i, d = first + tl.arange(0, N), tl.arange(0, DP)
    return ((row * T + i) * width + head * each)[:, None] + d[None, :], (i < count)[:, None] & (d < each)[None, :]


@triton.jit
def _weight(weights, at, SOFT: tl.constexpr):
    return tl.load(weights + at).to(tl.float32) if SOFT else 1.0


@triton.jit
def _product(a, b, WIDE: tl.constexpr):
    if WIDE:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _forward(
    q, k, v, indices, weights, out, kept, R, TQ, TK, TOPK, HEADS, DK, DV, scale,
    SOFT: tl.constexpr, WIDE: tl.constexpr,
    BQ: tl.constexpr, BK: tl.constexpr, DKP: tl.constexpr, DVP: tl.constexpr,
):  # fmt: skip
    first, rest = tl.program_id(0) % tl.cdiv(TQ, BQ) * BQ, tl.program_id(0) // tl.cdiv(TQ, BQ)
    head, row = rest % HEADS, (rest // HEADS).to(tl.int64)
    own, mine = _rows(first, TQ, row, TQ, HEADS * DK, head, DK, BQ, DKP)
    queries = tl.load(q + own, mask=mine, other=0.0)
    highest, total = tl.full((BQ,), float("-inf"), tl.float32), tl.zeros((BQ,), tl.float32)
    mixed = tl.zeros((BQ, DVP), tl.float32)
    for t in range(TOPK):
        region = row // R * R + tl.load(indices + row * TOPK + t)
        weight = _weight(weights, row * TOPK + t, SOFT)
        for start in range(0, TK, BK):
            there, real = _rows(start, TK, region, TK, HEADS * DK, head, DK, BK, DKP)
            keys = tl.load(k + there, mask=real, other=0.0)
            there, real = _rows(start, TK, region, TK, HEADS * DV, head, DV, BK, DVP)
            values = tl.load(v + there, mask=real, other=0.0)
            scores = scale * weight * _product(queries, tl.trans(keys), WIDE)
            scores = tl.where((start + tl.arange(0, BK) < TK)[None, :], scores, float("-inf"))
            before, highest = highest, tl.maximum(highest, tl.max(scores, 1))
            p, fade = tl.exp(scores - highest[:, None]), tl.exp(before - highest)
            total = total * fade + tl.sum(p, 1)
            mixed = mixed * fade[:, None] + weight * _product(p.to(values.dtype), values, WIDE)
    own, mine = _rows(first, TQ, row, TQ, HEADS * DV, head, DV, BQ, DVP)
    tl.store(out + own, mixed / total[:, None], mask=mine)
    i = first + tl.arange(0, BQ)
    tl.store(kept + (row * HEADS + head) * TQ + i, highest + tl.log(total), mask=i < TQ)


@triton.jit
def _of_queries(
    g, q, k, v, indices, weights, kept, delta, gq, parts, R, TQ, TK, TOPK, HEADS, DK, DV, scale,
    SOFT: tl.constexpr, WIDE: tl.constexpr,
    BQ: tl.constexpr, BK: tl.constexpr, DKP: tl.constexpr, DVP: tl.constexpr,
):  # fmt: skip
    """The gradient of some queries, and their part of that of the region's weights."""
    tile, rest = tl.program_id(0) % tl.cdiv(TQ, BQ), tl.program_id(0) // tl.cdiv(TQ, BQ)
    head, row, first = rest % HEADS, (rest // HEADS).to(tl.int64), tile * BQ
    i = first + tl.arange(0, BQ)
    own, mine = _rows(first, TQ, row, TQ, HEADS * DK, head, DK, BQ, DKP)
    queries = tl.load(q + own, mask=mine, other=0.0)
    above, given = _rows(first, TQ, row, TQ, HEADS * DV, head, DV, BQ, DVP)
    upstream = tl.load(g + above, mask=given, other=0.0)
    past = (row * HEADS + head) * TQ + i
    norm = tl.load(kept + past, mask=i < TQ, other=0.0)[:, None]
    mean = tl.load(delta + past, mask=i < TQ, other=0.0)[:, None]
    total = tl.zeros((BQ, DKP), tl.float32)
    for t in range(TOPK):
        region = row // R * R + tl.load(indices + row * TOPK + t)
        weight = _weight(weights, row * TOPK + t, SOFT)
        share = tl.zeros((BQ, BK), tl.float32)
        for start in range(0, TK, BK):
            there, real = _rows(start, TK, region, TK, HEADS * DK, head, DK, BK, DKP)
            keys = tl.load(k + there, mask=real, other=0.0)
            there, real = _rows(start, TK, region, TK, HEADS * DV, head, DV, BK, DVP)
            values = tl.load(v + there, mask=real, other=0.0)
            scores = scale * _product(queries, tl.trans(keys), WIDE)
            both = (i < TQ)[:, None] & (start + tl.arange(0, BK) < TK)[None, :]
            p = tl.where(both, tl.exp(weight * scores - norm), 0.0)
            answer = _product(upstream, tl.trans(values), WIDE)
            ds = p * (weight * answer - mean)
            total += scale * weight * _product(ds.to(keys.dtype), keys, WIDE)
            share += ds * scores + p * answer
        if SOFT:
            at = ((tile * HEADS + head) * (tl.num_programs(0) // tl.cdiv(TQ, BQ) // HEADS) + row) * TOPK + t
            tl.store(parts + at, tl.sum(share))
    tl.store(gq + own, total, mask=mine)


@triton.jit
def _of_keys(
    g, q, k, v, order, starts, weights, kept, delta, gk, gv, R, TQ, TK, TOPK, HEADS, DK, DV, scale,
    SOFT: tl.constexpr, WIDE: tl.constexpr,
    BQ: tl.constexpr, BK: tl.constexpr, DKP: tl.constexpr, DVP: tl.constexpr,
):  # fmt: skip
    """The gradients of some keys and values of a region, over all regions that are routed to it."""
    first, rest = tl.program_id(0) % tl.cdiv(TK, BK) * BK, tl.program_id(0) // tl.cdiv(TK, BK)
    head, region = rest % HEADS, (rest // HEADS).to(tl.int64)
    b = region // R
    own_k, mine_k = _rows(first, TK, region, TK, HEADS * DK, head, DK, BK, DKP)
    own_v, mine_v = _rows(first, TK, region, TK, HEADS * DV, head, DV, BK, DVP)
    keys, values = tl.load(k + own_k, mask=mine_k, other=0.0), tl.load(v + own_v, mask=mine_v, other=0.0)
    total_k, total_v = tl.zeros((BK, DKP), tl.float32), tl.zeros((BK, DVP), tl.float32)
    j = first + tl.arange(0, BK)
    for e in range(tl.load(starts + region + b), tl.load(starts + region + b + 1)):
        entry = tl.load(order + b * R * TOPK + e)
        row = b * R + entry // TOPK
        weight = _weight(weights, b * R * TOPK + entry, SOFT)
        for start in range(0, TQ, BQ):
            i = start + tl.arange(0, BQ)
            there, real = _rows(start, TQ, row, TQ, HEADS * DK, head, DK, BQ, DKP)
            queries = tl.load(q + there, mask=real, other=0.0)
            there, real = _rows(start, TQ, row, TQ, HEADS * DV, head, DV, BQ, DVP)
            upstream = tl.load(g + there, mask=real, other=0.0)
            past = (row * HEADS + head) * TQ + i
            norm = tl.load(kept + past, mask=i < TQ, other=0.0)[None, :]
            mean = tl.load(delta + past, mask=i < TQ, other=0.0)[None, :]
            scores = scale * weight * _product(keys, tl.trans(queries), WIDE)  # (BK, BQ)
            p = tl.where((j < TK)[:, None] & (i < TQ)[None, :], tl.exp(scores - norm), 0.0)
            ds = p * (weight * _product(values, tl.trans(upstream), WIDE) - mean)
            total_k += scale * weight * _product(ds.to(queries.dtype), queries, WIDE)
            total_v += weight * _product(p.to(upstream.dtype), upstream, WIDE)
    tl.store(gk + own_k, total_k, mask=mine_k)
    tl.store(gv + own_v, total_v, mask=mine_v)


def _sizes(q: Tensor, k: Tensor, v: Tensor, indices: Tensor, heads: int) -> tuple[tuple[int, ...], dict[str, Any]]:
    """(regions, queries, keys, topk, heads, dimensions of keys, of values) and the sizes of a program."""
    each = q.shape[3] // heads, v.shape[3] // heads
    dims = [max(LEAST, triton.next_power_of_2(d)) for d in each]
    most = BYTES // (max(dims) * q.itemsize)
    constants = {
        "BQ": max(LEAST, blocks(q.shape[2], most)),
        "BK": max(LEAST, blocks(k.shape[2], most)),
        "DKP": dims[0],
        "DVP": dims[1],
        # the interpreter multiplies the bits of bfloat16 as if they were integers
        "WIDE": q.dtype == torch.bfloat16 and q.device.type == "cpu",
    }
    return (q.shape[1], q.shape[2], k.shape[2], indices.shape[2], heads, *each), constants


def forward(
    q: Tensor, k: Tensor, v: Tensor, indices: Tensor, weights: Tensor | None, heads: int, scale: float
) -> tuple[Tensor, Tensor]:
    """The output (B, R, Tq, C), and for each region, head and query the logarithm of the sum of exp of its scores."""
    batch, regions, tokens, _ = q.shape
    sizes, constants = _sizes(q, k, v, indices, heads)
    out = q.new_empty(batch, regions, tokens, v.shape[3])
    kept = q.new_empty(batch, regions, heads, tokens, dtype=torch.float32)
    grid = (triton.cdiv(tokens, constants["BQ"]) * heads * batch * regions,)
    with torch.cuda.device_of(q):
        _forward[grid](
            q, k, v, indices, q if weights is None else weights, out, kept, *sizes, scale,
            SOFT=weights is not None, **constants,
        )  # fmt: skip
    return out, kept


def _backward(
    g: Tensor, out: Tensor, kept: Tensor, q: Tensor, k: Tensor, v: Tensor, indices: Tensor, weights: Tensor | None,
    heads: int, scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Gradients of queries, keys, values and weights."""
    sizes, constants = _sizes(q, k, v, indices, heads)
    rows = q.shape[0] * q.shape[1]
    tiles, soft = triton.cdiv(q.shape[2], constants["BQ"]), weights is not None
    gq, gk, gv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    parts = kept.new_empty(tiles, heads, *indices.shape) if soft else kept
    delta = (g.float() * out.float()).unflatten(3, (heads, -1)).sum(-1).transpose(2, 3).contiguous()
    told, order = indices.flatten(1).sort(dim=1, stable=True)
    firsts = torch.arange(q.shape[1] + 1, device=q.device).expand(q.shape[0], -1).contiguous()
    starts = torch.searchsorted(told, firsts)  # (B, R + 1): where the list of each region begins in ``order``
    told_weights = q if weights is None else weights
    with torch.cuda.device_of(q):
        _of_queries[tiles * heads * rows,](
            g, q, k, v, indices, told_weights, kept, delta, gq, parts, *sizes, scale, SOFT=soft, **constants
        )
        _of_keys[triton.cdiv(k.shape[2], constants["BK"]) * heads * rows,](
            g, q, k, v, order, starts, told_weights, kept, delta, gk, gv, *sizes, scale, SOFT=soft, **constants
        )
    return gq, gk, gv, parts.sum((0, 1)).to(weights.dtype) if weights is not None else None


class _Attended(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, indices: Tensor, weights: Tensor | None, heads: int, scale: float
    ) -> Tensor:
        out, kept = torch.ops.saccade.routed_attention(q, k, v, indices, weights, heads, scale)
        ctx.save_for_backward(out, kept, q, k, v, indices, weights)
        ctx.told = heads, scale
        made: Tensor = out
        return made

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        gq, gk, gv, g_weights = _backward(g.contiguous(), *ctx.saved_tensors, *ctx.told)
        return gq, gk, gv, None, g_weights, None, None


def attended(
    query: Tensor, key: Tensor, value: Tensor, indices: Tensor, *, heads: int, scale: float, weights: Tensor | None
) -> Tensor:
    """`routed_attention` by the kernels, in half or single precision, differentiable once; follows autocast."""
    q, k, v = (autocast(x).contiguous() for x in (query, key, value))
    w = None if weights is None else weights.contiguous()
    out: Tensor = _Attended.apply(q, k, v, indices.contiguous(), w, heads, scale)
    return out
