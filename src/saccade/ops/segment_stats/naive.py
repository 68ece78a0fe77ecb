"""The truth: one segment after the other."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["looped"]


def looped(x: Tensor, cells: Tensor, segments: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """`segment_stats` by torch's own mean and variance of every segment's cells."""
    means, variances = [], []
    for number in range(len(sizes)):
        own = x[:, cells[segments == number]]  # (B, n, C)
        means.append(own.mean(1))
        variances.append(own.var(1))
    return torch.stack(means, 1), torch.stack(variances, 1)
