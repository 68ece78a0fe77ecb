"""RGB and the YCbCr of ITU-R BT.601 in studio swing, as MATLAB's ``rgb2ycbcr`` defines them for 8 bits."""

from __future__ import annotations

import torch
from torch import Tensor

from saccade.errors import InputError

__all__ = ["luma", "rgb_to_ycbcr", "ycbcr_to_rgb"]

# full-scale R, G, B to the swing of Y (16..235), Cb and Cr (16..240), in steps of 8 bits
MATRIX = ((65.481, 128.553, 24.966), (-37.797, -74.203, 112.0), (112.0, -93.786, -18.214))
OFFSET = (16.0, 128.0, 128.0)


def luma(rgb: Tensor) -> Tensor:
    """Y of pictures: (..., 3, H, W) in [0, 1] -> (..., 1, H, W) in [16/255, 235/255].

    Raises:
        InputError: not three channels.
    """
    _check(rgb, "RGB")
    r, g, b = (rgb.select(-3, c) for c in range(3))
    y = r * (MATRIX[0][0] / 255) + g * (MATRIX[0][1] / 255) + b * (MATRIX[0][2] / 255) + OFFSET[0] / 255
    return y.unsqueeze(-3)


def rgb_to_ycbcr(rgb: Tensor) -> Tensor:
    """(..., 3, H, W) in [0, 1] -> Y in [16/255, 235/255], Cb and Cr in [16/255, 240/255], neutral at 128/255.

    Raises:
        InputError: not three channels.
    """
    _check(rgb, "RGB")
    matrix, offset = _forward()
    return _mix(rgb, matrix) + _column(offset, rgb)


def ycbcr_to_rgb(ycbcr: Tensor) -> Tensor:
    """The exact inverse of `rgb_to_ycbcr`, not clamped: what no RGB in [0, 1] gives comes out beyond [0, 1].

    Raises:
        InputError: not three channels.
    """
    _check(ycbcr, "YCbCr")
    matrix, offset = _forward()
    return _mix(ycbcr - _column(offset, ycbcr), matrix.inverse())


def _forward() -> tuple[Tensor, Tensor]:
    """Matrix and offset; made anew, for one made in inference mode or inside of a graph serves nowhere else."""
    return torch.tensor(MATRIX, dtype=torch.float64) / 255, torch.tensor(OFFSET, dtype=torch.float64) / 255


def _mix(x: Tensor, matrix: Tensor) -> Tensor:
    return torch.einsum("ij,...jhw->...ihw", matrix.to(x.device, x.dtype), x)


def _column(offset: Tensor, like: Tensor) -> Tensor:
    return offset.to(like.device, like.dtype)[:, None, None]


def _check(x: Tensor, what: str) -> None:
    if x.dim() < 3 or x.shape[-3] != 3 or not x.is_floating_point():
        raise InputError(f"expected {what} pictures, float (..., 3, H, W), got {x.dtype} {tuple(x.shape)}")
