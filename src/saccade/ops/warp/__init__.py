"""Flow-guided warping: look up each pixel where the flow says that it comes from.

    y(i, j) = x(i + dy(i, j), j + dx(i, j)), bilinear between the four pixels around

`naive.py` is the truth in plain indexing. The path that runs is torch's own sampler, told a grid in its units; on a
CPU a gather of whole pixels (channels last, weighted sum of embedding rows) was slower at every width up to 64
channels, so there is no other.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.errors import InputError

__all__ = ["Border", "flow_warp"]

Border = Literal["zeros", "border"]


def flow_warp(x: Tensor, flow: Tensor, border: Border = "zeros") -> Tensor:
    """Warp feature maps or pictures backwards along a flow.

    Args:
        x: (B, C, h, w).
        flow: (B, 2, h, w), displacement (dx, dy) in pixels.
        border: what lies outside: ``"zeros"``, or the outermost pixels (``"border"``).

    Returns:
        (B, C, h, w); differentiable in both.

    Raises:
        InputError: sizes that do not go together.
    """
    if flow.ndim != 4 or flow.shape[1] != 2 or x.ndim != 4 or x.shape[0] != flow.shape[0]:
        raise InputError(
            f"a warp takes x (B, C, h, w) and flow (B, 2, h, w), not {tuple(x.shape)}, {tuple(flow.shape)}"
        )
    if x.shape[2:] != flow.shape[2:]:
        raise InputError(f"the flow is of size {tuple(flow.shape[2:])}, what it moves of size {tuple(x.shape[2:])}")
    height, width = x.shape[2:]
    rows = torch.arange(height, dtype=flow.dtype, device=flow.device)[:, None]
    columns = torch.arange(width, dtype=flow.dtype, device=flow.device)
    # the sampler counts from -1 at the first pixel's centre to 1 at the last one's
    u = (columns + flow[:, 0]) * (2 / max(width - 1, 1)) - 1
    v = (rows + flow[:, 1]) * (2 / max(height - 1, 1)) - 1
    return F.grid_sample(x, torch.stack([u, v], -1), mode="bilinear", padding_mode=border, align_corners=True)
