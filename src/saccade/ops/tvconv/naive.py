"""The truth: unfold the input, multiply, add up the taps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def unfolded(x: Tensor, weight: Tensor, bias: Tensor | None, kernel: int, stride: int) -> Tensor:
    """`tvconv` by unfolding; holds k^2 copies of the input."""
    taps, channels, height, width = weight.shape
    dtype, wide = x.dtype, torch.promote_types(x.dtype, torch.float32)
    columns = F.unfold(x.to(wide), kernel, padding=kernel // 2, stride=stride).view(-1, channels, taps, height, width)
    out = (columns * weight.to(wide).transpose(0, 1)).sum(2)
    return (out if bias is None else out + bias).to(dtype)
