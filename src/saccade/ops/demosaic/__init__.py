"""Bayer mosaics: sampling one colour a pixel, packing cells, and filling in the two missing colours.

    rgb (B,3,H,W) -- mosaic --> packed (B,4,H/2,W/2) -- demosaic --> rgb (B,3,H,W)
    plane (H,W) as a sensor gives it <-- unpack / pack --> packed

A packed RAW holds the four samples of a 2x2 cell as channels, in reading order: for ``rggb`` red, green, green, blue.
A pattern is told by its four letters in that order. `demosaic` is linear and differentiable; `naive.py` is its slow
truth, `packed.py` the same filters as one convolution over cells.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.errors import InputError, UsageError
from saccade.ops.demosaic.packed import demosaic as _demosaic

__all__ = ["PATTERNS", "Method", "check_packed", "check_pattern", "demosaic", "mosaic", "pack", "unpack"]

Method = Literal["bilinear", "malvar"]

#: the Bayer patterns: colour of pixel (0,0), (0,1), (1,0), (1,1)
PATTERNS = ("rggb", "bggr", "grbg", "gbrg")


def check_pattern(pattern: str) -> tuple[int, int, int, int]:
    """The colours, 0 to 2, of the four pixels of a cell.

    Raises:
        UsageError: no Bayer pattern.
    """
    if pattern not in PATTERNS:
        raise UsageError(f"no Bayer pattern {pattern!r}; there are {', '.join(PATTERNS)}")
    a, b, c, d = ("rgb".index(colour) for colour in pattern)
    return a, b, c, d


def check_packed(packed: Tensor) -> None:
    """Refuse what is no batch of packed Bayer data.

    Raises:
        InputError: another rank, dtype or number of channels, or nothing in it.
    """
    takes = "a packed RAW is float (B, 4, H/2, W/2), its values less black level over white level"
    if packed.ndim != 4 or packed.numel() == 0:
        raise InputError(f"{takes}, not {tuple(packed.shape)}")
    if packed.shape[1] != 4:
        hint = "; mosaic an RGB picture first" if packed.shape[1] == 3 else "; pack a plane first"
        raise InputError(f"{takes}, not {packed.shape[1]} channels{hint}")
    if not packed.is_floating_point():
        raise InputError(f"{takes}, not {packed.dtype}; subtract the black level and divide by the white level")


def mosaic(rgb: Tensor, pattern: str = "rggb", compat: Literal["official"] | None = None) -> Tensor:
    """Keep the one colour of each pixel that the sensor has there.

    Args:
        rgb: (B, 3, H, W) or (3, H, W); H and W even.
        pattern: one of `PATTERNS`.
        compat: ``"official"``: as the PyTorch port of Brooks et al., which for ``grbg`` takes blue from the place of
            red, (0,1) instead of (1,0). The other patterns do not differ.

    Returns:
        Packed, (B, 4, H/2, W/2) or (4, H/2, W/2).

    Raises:
        UsageError: an unknown pattern.
        InputError: another number of channels, or an odd side.
    """
    colours = check_pattern(pattern)
    if rgb.ndim not in (3, 4) or rgb.shape[-3] != 3 or rgb.numel() == 0:
        raise InputError(f"a mosaic is made of RGB (B, 3, H, W), not of {tuple(rgb.shape)}")
    _check_even(rgb.shape[-2], rgb.shape[-1])
    places = [0, 1, 1, 3] if compat == "official" and pattern == "grbg" else [0, 1, 2, 3]
    samples = [rgb[..., c, i // 2 :: 2, i % 2 :: 2] for i, c in zip(places, colours, strict=True)]
    return torch.stack(samples, -3)


def pack(plane: Tensor) -> Tensor:
    """A sensor's plane (..., H, W) as cells (..., 4, H/2, W/2).

    Raises:
        InputError: an odd side.
    """
    _check_even(plane.shape[-2], plane.shape[-1])
    return F.pixel_unshuffle(plane.unsqueeze(-3), 2)


def unpack(packed: Tensor) -> Tensor:
    """Cells (..., 4, H/2, W/2) as the sensor's plane (..., H, W)."""
    return F.pixel_shuffle(packed, 2).squeeze(-3)


def demosaic(packed: Tensor, pattern: str = "rggb", method: Method = "malvar") -> Tensor:
    """Fill in the two colours that each pixel lacks.

    ``bilinear`` averages the nearest samples of a colour; ``malvar`` adds a gradient of the colour that is there
    (Malvar, He and Cutler, "High-quality linear interpolation for demosaicing of Bayer-patterned color images",
    ICASSP 2004), 5x5 filters. Beyond the border stand the cells of the border again.

    Args:
        packed: (B, 4, h, w), float.
        pattern: one of `PATTERNS`.

    Returns:
        (B, 3, 2h, 2w); not clamped: Malvar's filters overshoot at edges.

    Raises:
        UsageError: an unknown pattern or method.
        InputError: no packed RAW.
    """
    colours = check_pattern(pattern)
    check_packed(packed)
    if method not in ("bilinear", "malvar"):
        raise UsageError(f"no demosaicing by {method!r}; there are bilinear and malvar")
    return _demosaic(packed, colours, method)


def _check_even(height: int, width: int) -> None:
    if height % 2 or width % 2:
        raise InputError(f"a Bayer mosaic has even sides, not {width} x {height} px; crop a row or column")
