"""What two pictures that are compared may be, and the form that they are compared in."""

from __future__ import annotations

import torch
from torch import Tensor

from saccade.errors import InputError, UsageError
from saccade.quality import colour

__all__ = ["prepared"]


def prepared(a: Tensor, b: Tensor, border: int, luma: bool, data_range: float) -> tuple[Tensor, Tensor]:
    """Two pictures that are compared: both in [0, 1], the wanted channels, without the border.

    Args and errors as in `saccade.quality.psnr`; half precision is computed in float32.
    """
    if a.shape != b.shape or a.dtype != b.dtype:
        raise InputError(f"pictures differ in kind: {a.dtype} {tuple(a.shape)} and {b.dtype} {tuple(b.shape)}")
    if a.dim() < 3 or a.numel() == 0:
        raise InputError(f"expected pictures (..., C, H, W), got {tuple(a.shape)}")
    if not (a.is_floating_point() or a.dtype == torch.uint8):
        raise InputError(
            f"expected floating-point or uint8 pictures, got {a.dtype}; convert them to float, and pass data_range=255 "
            "for values of 0..255"
        )
    if border < 0 or not data_range > 0:
        raise UsageError(f"border must not be negative and data_range positive, got {border} and {data_range}")
    full = 255.0 if a.dtype == torch.uint8 else data_range
    pair = []
    for x in (a, b):
        x = x[..., border : x.shape[-2] - border, border : x.shape[-1] - border]
        if x.shape[-2] < 1 or x.shape[-1] < 1 or min(a.shape[-2:]) <= 2 * border:
            raise InputError(f"nothing is left of {a.shape[-1]}x{a.shape[-2]} pixels inside a border of {border}")
        x = x if x.dtype in (torch.float32, torch.float64) else x.float()
        x = x / full if full != 1 else x
        pair.append(colour.luma(x) if luma and x.shape[-3] != 1 else x)
    return pair[0], pair[1]
