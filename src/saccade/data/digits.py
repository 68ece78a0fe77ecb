"""MNIST's files, and layouts of nine of its digits in which the one at the centre counts.

canvas of 3 x 3 cells, 14 x 14 px each -- a digit in every cell, halved by 2 x 2 means -- label: the centre's
"""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.errors import InputError

__all__ = ["CELL", "Digits", "layouts", "read_digits"]

CELL = 14  # pixels along a side
_IMAGES, _LABELS = 0x00000803, 0x00000801  # magic numbers of IDX files


@dataclass(frozen=True)
class Digits:
    """Digits and what they are.

    Attributes:
        images: (N, 14, 14) float32 in [0, 1], bright on dark.
        labels: (N,) int64, 0 to 9.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def read_digits(folder: Path, part: str = "train") -> Digits:
    """Digits of a folder with MNIST's IDX files, plain or packed (``.gz``, ``.xz``), halved to 14 x 14 px.

    Args:
        part: ``"train"`` or ``"t10k"``.

    Raises:
        InputError: a file is missing or damaged.
    """
    labels = _read(folder, f"{part}-labels-idx1-ubyte", _LABELS, 1)
    images = _read(folder, f"{part}-images-idx3-ubyte", _IMAGES, 3)
    if len(images) != len(labels) or images.shape[1:] != (28, 28):
        raise InputError(f"{folder}: {len(labels)} labels do not go with images of {tuple(images.shape)}")
    return Digits(F.avg_pool2d(images.float()[:, None] / 255, 2)[:, 0], labels.long())


def _read(folder: Path, name: str, magic: int, axes: int) -> Tensor:
    opened: dict[str, Callable[[Path, str], Any]] = {"": open, ".gz": gzip.open, ".xz": lzma.open}
    path = next((p for p in (folder / f"{name}{end}" for end in opened) if p.is_file()), None)
    if path is None:
        raise InputError(f"no {name} in {folder} (plain, .gz or .xz)")
    try:
        with opened[path.suffix if path.suffix in opened else ""](path, "rb") as file:
            data: bytes = file.read()
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise InputError(f"{path} is damaged or cannot be read: {error}") from error
    shape = [int.from_bytes(data[4 * i : 4 * i + 4], "big") for i in range(1, axes + 1)]
    body = data[4 * (axes + 1) :]
    count = 1
    for side in shape:
        count *= side
    if int.from_bytes(data[:4], "big") != magic or len(body) != count:
        raise InputError(f"{path} is no such IDX file, or it is truncated")
    return torch.frombuffer(bytearray(body), dtype=torch.uint8).view(shape)


def layouts(digits: Digits, count: int, chance: torch.Generator, *, moved: bool = False) -> tuple[Tensor, Tensor]:
    """Nine digits on a 3 x 3 grid each, and the class of the one at the centre.

    Args:
        digits: drawn from, with repetition.
        count: of layouts.
        chance: what is drawn with.
        moved: put the grid at any of 15 x 15 places on a canvas that is one cell larger.

    Returns:
        (count, 1, 42, 42) float32 in [0, 1], with ``moved`` (count, 1, 56, 56); and (count,) int64.
    """
    chosen = torch.randint(len(digits), (count, 9), generator=chance)
    cells = digits.images[chosen].view(count, 3, 3, CELL, CELL)
    grid = cells.transpose(2, 3).reshape(count, 1, 3 * CELL, 3 * CELL)
    labels = digits.labels[chosen[:, 4]]
    if not moved:
        return grid, labels
    canvas = torch.zeros(count, 1, 4 * CELL, 4 * CELL)
    places = torch.randint(CELL + 1, (count, 2), generator=chance).tolist()
    for one, picture, (y, x) in zip(canvas, grid, places, strict=True):
        one[:, y : y + 3 * CELL, x : x + 3 * CELL] = picture
    return canvas, labels
