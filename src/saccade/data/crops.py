"""Random crops of a folder of photographs with a degradation put on them, for training restoration.

Pictures are kept in memory as bytes, 3 bytes a pixel (and a quarter more for each half size). What step ``t`` of rank
``r`` sees depends on (seed, t, r) alone, so a resumed training continues with exactly the crops that it would have had.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from saccade.data.pairs import read_resized
from saccade.errors import InputError, UsageError
from saccade.progress import track

__all__ = ["DEGRADATIONS", "Crops", "degradation", "held_out", "read_sizes"]

#: clean (B, 3, h, w) in [0, 1] and what decides -> degraded, of the same shape and range
Degrade = Callable[[Tensor, np.random.Generator], Tensor]

#: what can be put on pictures, by name: where the function is
DEGRADATIONS = {
    "clean": "saccade.data.crops:unchanged",
    "noise-jpeg": "saccade.data.degrade:noise_jpeg",
    "weather": "saccade.data.weather:weather",
}


def unchanged(clean: Tensor, chance: np.random.Generator) -> Tensor:
    """Nothing: for networks that give back what goes in."""
    return clean


def degradation(name: str) -> Degrade:
    """A degradation by its name.

    Raises:
        UsageError: no such degradation.
    """
    if name not in DEGRADATIONS:
        raise UsageError(f"no degradation named {name!r}; there are {', '.join(DEGRADATIONS)}")
    module, function = DEGRADATIONS[name].split(":")
    made: Degrade = getattr(importlib.import_module(module), function)
    return made


def read_sizes(pictures: Sequence[Path], shrink: Sequence[float], least: int) -> list[Tensor]:
    """Every picture at every size (bicubic): (3, H, W) uint8 each.

    Args:
        pictures: files of photographs.
        shrink: the sizes, 1 for the picture's own.
        least: pixels that every side must have, for crops of as many.

    Raises:
        InputError: an unreadable picture, or one smaller than that.
    """
    made = []
    for path in track(pictures, "reading pictures"):
        for size in shrink:
            picture = read_resized(path, size)
            if min(picture.shape[1:]) < least:
                raise InputError(f"{path} at {size:g} of its size is smaller than a crop of {least} x {least} px")
            made.append(picture)
    return made


class Crops:
    """Degraded and clean crops, turned and flipped.

    Args:
        pictures: files of photographs; those smaller than a crop are refused.
        patch: side of the crop in pixels.
        degrade: what is put on a batch of clean crops.
        shrink: every picture is taken at these sizes (bicubic), each size as often as the others.

    Raises:
        InputError: an unreadable picture, or one smaller than a crop.
    """

    def __init__(
        self, pictures: Sequence[Path], patch: int, degrade: Degrade = unchanged, *, shrink: Sequence[float] = (1.0,)
    ) -> None:
        self.patch, self.degrade = patch, degrade
        self.pictures = read_sizes(pictures, shrink, patch)
        chance = np.array([p[0].numel() for p in self.pictures], dtype=np.float64)
        self.chance = chance / chance.sum()

    def batch(self, size: int, seed: int, step: int, rank: int = 0) -> tuple[Tensor, Tensor]:
        """Crops of one step: degraded and clean, (size, 3, patch, patch) float32 in [0, 1] each."""
        chance = np.random.default_rng((seed, step, rank))
        crops = []
        for which in chance.choice(len(self.pictures), size, p=self.chance):
            picture = self.pictures[which]
            top, left = (int(chance.integers(n - self.patch + 1)) for n in picture.shape[1:])
            crop = picture[:, top : top + self.patch, left : left + self.patch]
            crop = torch.rot90(crop, int(chance.integers(4)), (1, 2))
            crops.append(crop.flip(2) if chance.integers(2) else crop)
        clean = torch.stack(crops).float().div_(255)
        return self.degrade(clean, chance), clean


def held_out(
    pictures: Sequence[Path], degrade: Degrade = unchanged, *, side: int | None = 256, seed: int = 0
) -> list[tuple[Tensor, Tensor]]:
    """Centre crops with a fixed degradation each, to measure on.

    Args:
        pictures: files of photographs.
        degrade: what is put on them.
        side: of the crop; None, and smaller pictures, are taken whole.
        seed: with the picture's place in the list, decides its degradation.

    Returns:
        Degraded and clean, (1, 3, h, w) float32 in [0, 1] each.
    """
    made = []
    for i, path in enumerate(pictures):
        whole = read_resized(path, 1.0)
        rows, columns = (n if side is None else min(side, n) for n in whole.shape[1:])
        top, left = (whole.shape[1] - rows) // 2, (whole.shape[2] - columns) // 2
        clean = whole[None, :, top : top + rows, left : left + columns].float().div(255)
        made.append((degrade(clean, np.random.default_rng((seed, i))), clean))
    return made
