"""The Haar transform as convolutions with its two filters, first along the rows, then along the columns: the truth."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["analysis", "synthesis"]


def _filters(like: Tensor) -> Tensor:
    """Low and high pass, as correlation kernels: (2, 2)."""
    return torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=like.dtype, device=like.device) / math.sqrt(2)


def analysis(x: Tensor) -> tuple[Tensor, Tensor]:
    """(..., H, W), sides even -> (..., H/2, W/2) and (..., 3, H/2, W/2)."""
    taps = _filters(x)
    planes = x.reshape(-1, 1, *x.shape[-2:])
    along = F.conv2d(planes, taps.view(2, 1, 1, 2), stride=(1, 2))  # low and high along the width
    both = F.conv2d(along, taps.view(2, 1, 2, 1).repeat(2, 1, 1, 1), stride=(2, 1), groups=2)
    bands = both.view(*x.shape[:-2], 4, *both.shape[-2:])  # low-low, low-high, high-low, high-high; width first
    return bands[..., 0, :, :], bands[..., 1:, :, :]


def synthesis(low: Tensor, high: Tensor) -> Tensor:
    """The transposed convolutions: (..., h, w) and (..., 3, h, w) -> (..., 2h, 2w)."""
    taps = _filters(low)
    bands = torch.cat([low.unsqueeze(-3), high], -3).reshape(-1, 4, *low.shape[-2:])
    columns = taps.view(2, 1, 2, 1).repeat(2, 1, 1, 1)
    along = F.conv_transpose2d(bands, columns, stride=(2, 1), groups=2)
    made = F.conv_transpose2d(along, taps.view(2, 1, 1, 2), stride=(1, 2))
    return made.view(*low.shape[:-2], *made.shape[-2:])
