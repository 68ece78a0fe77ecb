"""The recurrence as it is written, one step after another: the truth that the fast paths are tested against."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.ops.selective_scan.operands import Operands

__all__ = ["selective_scan_naive"]

BLOCK = 4096  # steps whose views are alive at once


def selective_scan_naive(x: Operands, state: Tensor, softplus: bool, reverse: bool) -> tuple[Tensor, Tensor]:
    """Outputs without the D term, (B, L, K, E), and the last state, by a loop over time; no checks.

    The time axis is unbound, not indexed: a slice's gradient has the size of the whole, so L of them cost L^2.

    Args:
        x: with A as (K, N, E).
        state: before the first step, (B, K, N, E).
        softplus, reverse: as in `saccade.ops.selective_scan.selective_scan`.
    """
    delta = F.softplus(x.delta) if softplus else x.delta
    order = slice(None, None, -1 if reverse else 1)
    h, outputs = state, list[Tensor]()
    blocks = zip(*(t.split(BLOCK, 1)[order] for t in (x.u, delta, x.B, x.C)), strict=True)
    for block in blocks:
        for u_t, delta_t, B_t, C_t in zip(*(t.unbind(1)[order] for t in block), strict=True):
            fed = (delta_t * u_t)[:, :, None] * B_t[..., None]  # (B, K, N, E)
            h = torch.exp(delta_t[:, :, None] * x.A) * h + fed
            outputs.append((h * C_t[..., None]).sum(2))
    return torch.stack(outputs[order], 1), h
