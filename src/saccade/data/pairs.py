"""Random low- and high-resolution crops of a folder of photographs, for training super-resolution.

Whole pictures are reduced once (MATLAB bicubic, rounded to 8 bit: the field's protocol) and kept in memory as bytes,
3 + 3/scale^2 bytes a pixel. What step ``t`` of rank ``r`` sees depends on (seed, t, r) alone, so a resumed training
continues with exactly the crops that it would have had.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from saccade.errors import InputError
from saccade.ops.resize import resize
from saccade.progress import track

__all__ = ["CropPairs", "degrade", "photographs", "read_resized"]

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"}


def photographs(folder: str | Path) -> list[Path]:
    """The pictures below a folder, sorted by name.

    Raises:
        InputError: no such folder, or no pictures in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"no folder of pictures at {folder}")
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not found:
        raise InputError(f"{folder} holds no pictures ({', '.join(sorted(SUFFIXES))})")
    return found


def degrade(picture: Tensor, scale: int) -> Tensor:
    """The protocol's low-resolution picture: MATLAB bicubic by 1/scale, rounded to 8 bit.

    Shape: (3, H, W) uint8, H and W multiples of ``scale`` -> (3, H/scale, W/scale) uint8.
    """
    return _resized(picture, 1 / scale)


def _resized(picture: Tensor, size: float) -> Tensor:
    return resize(picture.float(), size).round_().clamp_(0, 255).to(torch.uint8)


def read_resized(path: Path, size: float = 1.0) -> Tensor:
    """A picture as bytes, at a fraction of its size (bicubic).

    Returns:
        (3, H, W) uint8.

    Raises:
        InputError: an unreadable picture.
    """
    whole = _read(path)
    return whole if size == 1 else _resized(whole, size)


def _read(path: Path) -> Tensor:
    from PIL import Image

    try:
        with Image.open(path) as opened:
            pixels = np.array(opened.convert("RGB"))
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


class CropPairs:
    """Aligned random crops, turned and flipped.

    Args:
        pictures: files of photographs; those smaller than a crop are refused.
        scale: enlargement.
        patch: side of the low-resolution crop in pixels.
        luma: crops of BT.601 luma (1 channel) instead of RGB (3 channels).
        shrink: every picture is taken at these sizes (bicubic), each size as often as the others. Photographs that
            went through JPEG or a camera's own filters lack the finest detail; reduced, they have it.

    Raises:
        InputError: an unreadable picture, or one smaller than a crop.
    """

    def __init__(
        self, pictures: Sequence[Path], scale: int, patch: int, *, luma: bool, shrink: Sequence[float] = (1.0,)
    ) -> None:
        self.scale, self.patch, self.luma = scale, patch, luma
        self.pairs: list[tuple[Tensor, Tensor]] = []
        chance: list[float] = []
        for path in track(pictures, "reading pictures"):
            whole = _read(path)
            for size in shrink:
                high = whole if size == 1 else _resized(whole, size)
                rows, columns = (n - n % scale for n in high.shape[1:])
                if min(rows, columns) < patch * scale:
                    raise InputError(
                        f"{path} at {size:g} of its size is smaller than a crop of {patch * scale} x {patch * scale} px"
                    )
                high = high[:, :rows, :columns].contiguous()
                self.pairs.append((degrade(high, scale), high))
                chance.append(whole[0].numel())
        self.chance = np.array(chance, dtype=np.float64) / sum(chance)

    def batch(self, size: int, seed: int, step: int, rank: int = 0) -> tuple[Tensor, Tensor]:
        """Crops of one step.

        Returns:
            (size, C, patch, patch) and (size, C, scale*patch, scale*patch), float32 in [0, 1]; C is 1 or 3.
        """
        chance = np.random.default_rng((seed, step, rank))
        lows: list[Tensor] = []
        highs: list[Tensor] = []
        for which in chance.choice(len(self.pairs), size, p=self.chance):
            low, high = self.pairs[which]
            top = int(chance.integers(low.shape[1] - self.patch + 1))
            left = int(chance.integers(low.shape[2] - self.patch + 1))
            turns, flip = int(chance.integers(4)), bool(chance.integers(2))
            for picture, s, out in ((low, 1, lows), (high, self.scale, highs)):
                crop = picture[:, top * s : (top + self.patch) * s, left * s : (left + self.patch) * s]
                crop = torch.rot90(crop, turns, (1, 2))
                out.append(crop.flip(2) if flip else crop)
        return self._prepared(lows), self._prepared(highs)

    def _prepared(self, crops: list[Tensor]) -> Tensor:
        rgb = torch.stack(crops).float().div_(255)
        return luma(rgb) if self.luma else rgb


def luma(rgb: Tensor) -> Tensor:
    """BT.601 luma, studio swing: (..., 3, H, W) in [0, 1] -> (..., 1, H, W) in [16/255, 235/255]."""
    weights = rgb.new_tensor([65.481, 128.553, 24.966]) / 255
    return (rgb * weights[:, None, None]).sum(-3, keepdim=True) + 16 / 255
