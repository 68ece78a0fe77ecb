"""Super-resolution figures, by the protocol that published ones follow.

picture -- cropped to a multiple of the scale -- MATLAB bicubic, antialiased, on RGB -- 8 bit -- enlarge -- 8 bit
   |_____________________________ Y of BT.601, `scale` pixels shaved from each side: PSNR and SSIM ___________|
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from saccade.errors import InputError, UsageError
from saccade.io import find_pictures, read_picture
from saccade.ops.resize import resize
from saccade.progress import track
from saccade.quality.colour import luma, rgb_to_ycbcr, ycbcr_to_rgb
from saccade.quality.fidelity import psnr, quantise8
from saccade.quality.structure import ssim

__all__ = ["LumaEnlarger", "benchmark_super_resolution", "luma_enlarger", "super_resolution_pairs"]

Enlarge = Callable[[Tensor], Tensor]


class LumaEnlarger:
    """Colour around a network that enlarges luma only: Y through the network, Cb and Cr by bicubic.

    Args:
        model: (B, 1, h, w) -> (B, 1, scale*h, scale*w), Y of BT.601 in [16/255, 235/255]; has ``scale``.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.scale = int(model.scale)  # type: ignore[arg-type]

    def __call__(self, rgb: Tensor) -> Tensor:
        """RGB (B, 3, h, w) in [0, 1] -> (B, 3, scale*h, scale*w) in [0, 1]."""
        ycbcr = rgb_to_ycbcr(rgb)
        y = self.model(ycbcr[:, :1]).clamp(0, 1)
        return ycbcr_to_rgb(torch.cat([y, resize(ycbcr[:, 1:], self.scale)], 1)).clamp(0, 1)

    def luma(self, rgb: Tensor) -> Tensor:
        """RGB (B, 3, h, w) in [0, 1] -> enlarged Y alone (B, 1, scale*h, scale*w): all that is measured."""
        made: Tensor = self.model(luma(rgb)).clamp(0, 1)
        return made


def luma_enlarger(model: nn.Module) -> LumaEnlarger:
    """A luma network as a function from RGB to RGB; see `LumaEnlarger`.

    Raises:
        UsageError: a model that is not a luma network.
    """
    if getattr(model, "colour", None) != "luma" or not hasattr(model, "scale"):
        raise UsageError(f"{type(model).__name__} is no luma network (attributes colour = 'luma' and scale)")
    return LumaEnlarger(model)


def super_resolution_pairs(
    folder: str | os.PathLike[str], scale: int, *, quiet: bool = False
) -> Iterator[tuple[Path, Tensor, Tensor]]:
    """The protocol's pairs of a folder of pictures, in natural order.

    Yields:
        file, low (1, 3, H/scale, W/scale) in multiples of 1/255, high (1, 3, H, W) cropped to multiples of ``scale``
        from the top left, both float32 in [0, 1]. Grey pictures are repeated to three channels, alpha is left out.

    Raises:
        InputError: no folder, no pictures, an unreadable one, or one smaller than ``scale`` pixels.
    """
    files = find_pictures(folder)
    for path in files if quiet else track(files, "measuring"):
        pixels, _, _ = read_picture(path)
        height, width = (side // scale * scale for side in pixels.shape[:2])
        if min(height, width) < 1:
            raise InputError(f"{path} is smaller than {scale}x{scale} pixels")
        full = np.iinfo(pixels.dtype).max
        high = torch.from_numpy(np.ascontiguousarray(pixels[:height, :width]).astype(np.float32) / np.float32(full))
        high = high.permute(2, 0, 1).expand(3, -1, -1)[None].contiguous()
        yield path, quantise8(resize(high, 1 / scale)), high


def benchmark_super_resolution(
    enlarge: Enlarge,
    folder: str | os.PathLike[str],
    scale: int,
    *,
    round_luma: bool = False,
    device: torch.device | str | None = None,
    each: Callable[[Path, dict[str, float]], None] | None = None,
) -> dict[str, float]:
    """Mean figures of an enlargement over a folder of pictures, and those of bicubic enlargement beside them.

    Args:
        enlarge: RGB (1, 3, h, w) in [0, 1] -> (1, 3, scale*h, scale*w). With a method ``luma`` (`luma_enlarger`) only
            Y is computed, and Y is rounded to 8 bit in place of RGB. A module is run in evaluation mode.
        folder: pictures; every file in it with a picture's suffix.
        scale: whole number.
        round_luma: round Y of both pictures to 8 bit before comparing, as MATLAB scripts on uint8 did (up to about
            0.03 dB lower); otherwise Y is taken unrounded from the 8-bit RGB.
        device: where ``enlarge`` wants its input; the CPU if not given.
        each: called with every file and its figures.

    Returns:
        ``psnr_y`` in dB, ``ssim_y``, ``bicubic_psnr_y``, ``bicubic_ssim_y``: means over the pictures.

    Raises:
        UsageError: a scale below 1 or not whole.
        InputError: as `super_resolution_pairs`; or the enlargement has another size.
    """
    if scale != int(scale) or scale < 1:
        raise UsageError(f"scale must be a whole number from 1, got {scale}")
    rows: list[dict[str, float]] = []
    with torch.no_grad(), _evaluating(enlarge):
        for path, low, high in super_resolution_pairs(folder, int(scale)):
            made = _measured_luma(enlarge, low if device is None else low.to(device)).cpu()
            if made.shape[-2:] != high.shape[-2:]:
                raise InputError(
                    f"{path.name} enlarged by {scale} should have {high.shape[-1]}x{high.shape[-2]} pixels, "
                    f"it has {made.shape[-1]}x{made.shape[-2]}"
                )
            smooth = luma(quantise8(resize(low, int(scale))))
            true = luma(high)
            row = {
                **_figures("", made, true, int(scale), round_luma),
                **_figures("bicubic_", smooth, true, int(scale), round_luma),
            }
            if each is not None:
                each(path, row)
            rows.append(row)
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def _measured_luma(enlarge: Enlarge, low: Tensor) -> Tensor:
    """Y of the enlargement after rounding to 8 bit."""
    luma_only = getattr(enlarge, "luma", None)
    if callable(luma_only):
        return quantise8(luma_only(low))
    return luma(quantise8(enlarge(low)))


def _figures(prefix: str, made: Tensor, true: Tensor, border: int, round_luma: bool) -> dict[str, float]:
    if round_luma:
        made, true = quantise8(made), quantise8(true)
    return {
        f"{prefix}psnr_y": float(psnr(made, true, border=border)),
        f"{prefix}ssim_y": float(ssim(made, true, border=border)),
    }


@contextlib.contextmanager
def _evaluating(enlarge: Any) -> Iterator[None]:
    model = enlarge if isinstance(enlarge, nn.Module) else getattr(enlarge, "model", None)
    if not isinstance(model, nn.Module) or not model.training:
        yield
        return
    model.eval()
    try:
        yield
    finally:
        model.train()
