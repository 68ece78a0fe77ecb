"""The definition: each coefficient is a sum over the axis."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["forward", "inverse"]


def _wave(length: int, k: int, like: Tensor) -> Tensor:
    """a_k cos(pi (n + 1/2) k / N), (N,)."""
    n = torch.arange(length, dtype=torch.float64, device=like.device)
    gain = math.sqrt((2 if k else 1) / length)
    return (gain * torch.cos(math.pi * (n + 0.5) * k / length)).to(like.dtype)


def forward(x: Tensor, axis: int, kept: int) -> Tensor:
    """The lowest ``kept`` coefficients along an axis."""
    x = x.movedim(axis, -1)
    return torch.stack([(x * _wave(x.shape[-1], k, x)).sum(-1) for k in range(kept)], -1).movedim(-1, axis)


def inverse(coefficients: Tensor, axis: int, length: int) -> Tensor:
    """The sum of the waves, ``length`` samples along an axis."""
    c = coefficients.movedim(axis, -1)
    waves = [c[..., k, None] * _wave(length, k, c) for k in range(c.shape[-1])]
    return torch.stack(waves).sum(0).movedim(-1, axis)
