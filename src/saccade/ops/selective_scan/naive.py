"""The recurrence as it is written, one step after another: the truth that the fast paths are tested against."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["selective_scan_naive"]

BLOCK = 4096  # steps whose views are alive at once


def selective_scan_naive(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    softplus: bool = False,
    reverse: bool = False,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`saccade.ops.selective_scan.selective_scan` with ``return_state=True``, by a loop over time; no checks.

    The time axis is unbound, not indexed: a slice's gradient has the size of the whole, so L of them cost L^2.
    """
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    if softplus:
        delta = F.softplus(delta)
    each = u.shape[1] // B.shape[1]  # channels that share B and C
    h = u.new_zeros(*u.shape[:2], A.shape[1]) if state is None else state  # (B, D, N)
    outputs: list[Tensor] = []
    order = slice(None, None, -1 if reverse else 1)
    blocks = zip(*(x.split(BLOCK, -1)[order] for x in (u, delta, B, C)), strict=True)
    for block in blocks:
        for u_t, delta_t, B_t, C_t in zip(*(x.unbind(-1)[order] for x in block), strict=True):
            B_t, C_t = (x.repeat_interleave(each, 1) for x in (B_t, C_t))  # (B, D, N)
            h = torch.exp(delta_t[..., None] * A) * h + (delta_t * u_t)[..., None] * B_t
            outputs.append((h * C_t).sum(-1))
    y = torch.stack(outputs[order], -1) if outputs else torch.empty_like(u)
    return y if D is None else y + D[:, None] * u, h
