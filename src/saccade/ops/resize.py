"""Bicubic and other resizing in the field's convention: MATLAB ``imresize``, antialiased."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

__all__ = ["resize"]


def _cubic(x: Tensor) -> Tensor:
    x = x.abs()
    return torch.where(
        x <= 1,
        1.5 * x**3 - 2.5 * x**2 + 1,
        torch.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, torch.zeros_like(x)),
    )


@functools.lru_cache(maxsize=64)
def _taps(n: int, m: int, scale: float, antialias: bool) -> tuple[Tensor, Tensor]:
    """Source indices and weights of every output sample of one axis: (m, taps) int64 and float64."""
    stretch = min(scale, 1.0) if antialias else 1.0
    width = math.ceil(4 / stretch) + 2
    u = torch.arange(1, m + 1, dtype=torch.float64) / scale + 0.5 * (1 - 1 / scale)
    left = torch.floor(u - 2 / stretch)
    place = left[:, None] + torch.arange(width, dtype=torch.float64)
    weight = _cubic((u[:, None] - place) * stretch) * stretch
    weight = weight / weight.sum(1, keepdim=True)
    index = (place.long() - 1) % (2 * n)  # mirrored, edge sample included
    index = torch.where(index >= n, 2 * n - 1 - index, index)
    used = weight.abs().amax(0) > 0
    return index[:, used], weight[:, used]


def resize(x: Tensor, scale: float, *, antialias: bool = True) -> Tensor:
    """(..., H, W) -> (..., ceil(H*scale), ceil(W*scale))."""
    for axis in (-2, -1):
        n = x.shape[axis]
        index, weight = _taps(n, math.ceil(n * scale), scale, antialias)
        y = 0
        for t in range(index.shape[1]):
            w = weight[:, t].to(x.dtype)
            y = y + x.index_select(axis, index[:, t]) * (w[:, None] if axis == -2 else w)
        x = y
    return x
