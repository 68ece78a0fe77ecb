"""The truth: scores of every token with every token, those of regions that are not routed masked away."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_attention(
    query: Tensor, key: Tensor, value: Tensor, indices: Tensor, *, heads: int, scale: float, weights: Tensor | None
) -> Tensor:
    """`routed_attention` by a matrix of (R Tq) x (R Tk) scores; arguments as there."""
    batch, regions, tokens, _ = query.shape
    keys = key.shape[2]
    routed = torch.zeros(batch, regions, regions, dtype=torch.bool, device=query.device).scatter(2, indices, True)
    gain = torch.ones_like(routed, dtype=query.dtype)
    if weights is not None:
        gain = gain.scatter(2, indices, weights)
    routed, gain = (m.repeat_interleave(tokens, 1).repeat_interleave(keys, 2)[:, None] for m in (routed, gain))
    q, k, v = (x.flatten(1, 2).unflatten(2, (heads, -1)).transpose(1, 2) for x in (query, key, value))  # (B, m, N, d)
    scores = (scale * gain * (q @ k.mT)).masked_fill(~routed, float("-inf")).softmax(-1)
    out = (scores * gain) @ v
    return out.transpose(1, 2).reshape(batch, regions, tokens, -1)
