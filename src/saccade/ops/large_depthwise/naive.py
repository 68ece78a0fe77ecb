"""A depthwise convolution as its definition has it, a sum over taps of the moved picture: the truth."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["depthwise_naive"]


def depthwise_naive(x: Tensor, weight: Tensor, dilation: int = 1) -> Tensor:
    """y[h, w] = sum over i, j of weight[i, j] x[h + d (i - K//2), w + d (j - K//2)] in every channel, zeros outside."""
    height, width = x.shape[2:]
    rows, columns = weight.shape[2:]
    top, left = rows // 2 * dilation, columns // 2 * dilation
    wide = F.pad(x, (left, left, top, top))
    y = torch.zeros_like(x)
    for i in range(rows):
        for j in range(columns):
            part = wide[:, :, i * dilation : i * dilation + height, j * dilation : j * dilation + width]
            y = y + weight[:, 0, i, j, None, None] * part
    return y
