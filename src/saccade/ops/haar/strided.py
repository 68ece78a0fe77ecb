"""The Haar transform as sums and differences of strided views: no convolution, nothing kept for the way back.

Rows are added first (whole lines, which processors do fastest), then every other column; each result is written where
it belongs. As the transform is orthonormal, the gradient of either direction is the other one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["analysis", "synthesis"]


def analysis(x: Tensor) -> tuple[Tensor, Tensor]:
    """(..., H, W), sides even -> (..., H/2, W/2) and (..., 3, H/2, W/2)."""
    if torch.compiler.is_compiling():  # a compiler fuses plain expressions by itself
        return _analysis(x)
    low, high = _Analysis.apply(x) if torch.is_grad_enabled() and x.requires_grad else _analysis_into(x)
    return low, high


def synthesis(low: Tensor, high: Tensor) -> Tensor:
    """(..., h, w) and (..., 3, h, w) -> (..., 2h, 2w)."""
    if torch.compiler.is_compiling():
        return _synthesis(low, high)
    tracked = torch.is_grad_enabled() and (low.requires_grad or high.requires_grad)
    made: Tensor = _Synthesis.apply(low, high) if tracked else _synthesis_into(low, high)
    return made


def _analysis(x: Tensor) -> tuple[Tensor, Tensor]:
    top, bottom = x[..., 0::2, :] * 0.5, x[..., 1::2, :] * 0.5
    total, change = top + bottom, top - bottom
    low = total[..., 0::2] + total[..., 1::2]
    high = (change[..., 0::2] + change[..., 1::2], total[..., 0::2] - total[..., 1::2])
    return low, torch.stack([*high, change[..., 0::2] - change[..., 1::2]], -3)


def _analysis_into(x: Tensor) -> tuple[Tensor, Tensor]:
    top, bottom = x[..., 0::2, :], x[..., 1::2, :]
    total, change = torch.add(top, bottom).mul_(0.5), torch.sub(top, bottom).mul_(0.5)
    high = x.new_empty(*x.shape[:-2], 3, x.shape[-2] // 2, x.shape[-1] // 2)
    torch.add(change[..., 0::2], change[..., 1::2], out=high[..., 0, :, :])
    torch.sub(total[..., 0::2], total[..., 1::2], out=high[..., 1, :, :])
    torch.sub(change[..., 0::2], change[..., 1::2], out=high[..., 2, :, :])
    return total[..., 0::2] + total[..., 1::2], high


def _synthesis(low: Tensor, high: Tensor) -> Tensor:
    down, across, both = (band * 0.5 for band in high.unbind(-3))
    mean = low * 0.5
    rows = []
    for even, odd in ((mean + down, across + both), (mean - down, across - both)):
        rows.append(torch.stack([even + odd, even - odd], -1).flatten(-2))  # columns back in turn
    return torch.stack(rows, -2).flatten(-3, -2)


def _synthesis_into(low: Tensor, high: Tensor) -> Tensor:
    down, across, both = high.unbind(-3)
    made = low.new_empty(*low.shape[:-2], 2 * low.shape[-2], 2 * low.shape[-1])
    rows = made[..., 0::2, :], made[..., 1::2, :]
    parts = (low + down, across + both), (low - down, across - both)
    for line, (even, odd) in zip(rows, parts, strict=True):
        even, odd = even.mul_(0.5), odd.mul_(0.5)
        torch.add(even, odd, out=line[..., 0::2])
        torch.sub(even, odd, out=line[..., 1::2])
    return made


class _Analysis(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        return _analysis_into(x)

    @staticmethod
    def backward(ctx: Any, low: Tensor, high: Tensor) -> Tensor:
        return synthesis(low, high)


class _Synthesis(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, low: Tensor, high: Tensor) -> Tensor:
        return _synthesis_into(low, high)

    @staticmethod
    def backward(ctx: Any, made: Tensor) -> tuple[Tensor, Tensor]:
        return analysis(made)
