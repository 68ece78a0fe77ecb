"""The truth of `flow_warp`: four indexings and their weights."""

from __future__ import annotations

import torch
from torch import Tensor

from saccade.ops.warp import Border


def flow_warp(x: Tensor, flow: Tensor, border: Border = "zeros") -> Tensor:
    """As `saccade.ops.warp.flow_warp`, corner by corner. Along a side of one pixel nothing moves, as published."""
    count, _, height, width = x.shape
    u = torch.arange(width, dtype=flow.dtype, device=flow.device) + flow[:, 0] * (width > 1)
    v = torch.arange(height, dtype=flow.dtype, device=flow.device)[:, None] + flow[:, 1] * (height > 1)
    if border == "border":
        u, v = u.clamp(0, width - 1), v.clamp(0, height - 1)
    which = torch.arange(count, device=x.device)[:, None, None]
    y = torch.zeros_like(x)
    for down in (0, 1):
        for right in (0, 1):
            row, column = v.detach().floor() + down, u.detach().floor() + right
            weight = (1 - (v - row).abs()) * (1 - (u - column).abs())
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            pixel = x[which, :, row.clamp(0, height - 1).long(), column.clamp(0, width - 1).long()]  # (B, h, w, C)
            y = y + (pixel * (weight * inside)[..., None]).permute(0, 3, 1, 2)
    return y
