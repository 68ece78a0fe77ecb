"""PSNR: how far a picture is from the one it should be. SSIM and MS-SSIM are in `saccade.quality.structure`.

All give one figure per picture: (..., C, H, W) -> (...), differentiable in both pictures. ``luma=True`` compares BT.601
luma in studio swing, as super-resolution figures do; ``border`` pixels on each side are left out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saccade.quality.pair import prepared

__all__ = ["psnr", "quantise8"]


def quantise8(x: Tensor) -> Tensor:
    """What an 8-bit file would hold: clamped to [0, 1] and rounded to multiples of 1/255. Not differentiable."""
    return x.clamp(0, 1).mul(255).round().div(255)


def psnr(a: Tensor, b: Tensor, *, border: int = 0, luma: bool = False, data_range: float = 1.0) -> Tensor:
    """Peak signal-to-noise ratio in dB, 10 log10(data_range^2 / mean squared error); infinite for equal pictures.

    Args:
        a, b: pictures (..., C, H, W) of one shape, floating point, or uint8 (then in 0..255 whatever ``data_range``).
        border: pixels left out on each side.
        luma: compare Y of BT.601; pictures of one channel are taken to be Y.
        data_range: the value of full scale.

    Returns:
        (...): one figure per picture.

    Raises:
        InputError: shapes or dtypes that do not fit, or nothing left inside the border.
    """
    a, b = prepared(a, b, border, luma, data_range)
    error = (a - b).square().mean((-3, -2, -1))
    return -10 * torch.log10(error)
