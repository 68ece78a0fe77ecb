"""The fast path: keys and values of the routed regions are brought together, and torch's fused attention does the rest.

Without gradients a few regions are gathered at a time, so that the copy of keys and values (topk times their size)
never exists as a whole; with gradients, and in a graph, all at once.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NUMBERS = 1 << 19  # of keys and values gathered at a time on the processor: what a cache holds
ACCELERATOR = 1 << 27  # the same on accelerators, which need more work at once


def gathered_attention(
    query: Tensor, key: Tensor, value: Tensor, indices: Tensor, *, heads: int, scale: float, weights: Tensor | None
) -> Tensor:
    """`routed_attention` over gathered keys and values; arguments as there."""
    batch, regions, tokens, _ = query.shape
    topk, keys = indices.shape[2], key.shape[2]
    offset = torch.arange(batch, device=indices.device)[:, None, None] * regions
    places = (indices + offset).flatten(0, 1)  # (B R, topk), rows of the flattened keys
    q, k, v = query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1)
    w = None if weights is None else weights.flatten(0, 1)
    if torch.compiler.is_compiling() or query.is_meta or _differentiates(q, k, v, w):
        rows = places.flatten()
        all_at_once = _attend(q, k.index_select(0, rows), v.index_select(0, rows), heads, scale, w)
        return all_at_once.unflatten(0, (batch, regions))
    one = max(1, topk * keys * (key.shape[3] + value.shape[3]))
    step = max(1, min(batch * regions, (NUMBERS if query.device.type == "cpu" else ACCELERATOR) // one))
    out = query.new_empty(batch * regions, tokens, value.shape[3])
    ks, vs = (x.new_empty(step * topk, *x.shape[1:]) for x in (k, v))  # used again and again: they stay in the cache
    for first in range(0, batch * regions, step):
        part = slice(first, first + step)
        rows = places[part].flatten()
        chosen_k = torch.index_select(k, 0, rows, out=ks[: len(rows)])
        chosen_v = torch.index_select(v, 0, rows, out=vs[: len(rows)])
        out[part] = _attend(q[part], chosen_k, chosen_v, heads, scale, None if w is None else w[part])
    return out.unflatten(0, (batch, regions))


def _differentiates(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _attend(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, weights: Tensor | None) -> Tensor:
    """Queries (n, Tq, D) with the keys and values (n topk, Tk, .) that were gathered for them -> (n, Tq, C)."""
    if weights is not None:
        k, v = (x * weights.reshape(-1, 1, 1) for x in (k, v))
    many, dim, width = q.shape[0], k.shape[2], v.shape[2]
    q, k, v = (x.reshape(many, -1, heads, c // heads).transpose(1, 2) for x, c in ((q, dim), (k, dim), (v, width)))
    mixed = F.scaled_dot_product_attention(q, k, v, scale=scale)  # (n, heads, Tq, .)
    return mixed.transpose(1, 2).flatten(2)
