"""CIFAR-10 as contact sheets: the pictures of a part in rows of one large picture, their classes in turn.

sheet, (32 rows) x (32 columns) px -- tiles from left to right, row by row -- tile i is of class i mod 10
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from saccade.errors import InputError

__all__ = ["MEAN", "SIDE", "STD", "read_sheet", "tiles"]

SIDE = 32  # pixels along a side
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of the training pictures, by channel


def tiles(path: Path, mode: str = "RGB") -> Tensor:
    """The pictures of a sheet, (N, C, 32, 32) float32 in [0, 1].

    Args:
        mode: of PIL: ``"RGB"`` for three channels, ``"L"`` for grey.

    Raises:
        InputError: the file is missing or damaged, or it is no sheet of such tiles.
    """
    try:
        with Image.open(path) as opened:
            sheet = np.array(opened.convert(mode))
    except OSError as error:
        raise InputError(f"{path} is damaged or cannot be read: {error}") from error
    height, width = sheet.shape[:2]
    if height % SIDE or width % SIDE:
        raise InputError(f"{path} is no sheet of {SIDE} x {SIDE} px tiles: it has {width} x {height} px")
    cut = torch.from_numpy(sheet).reshape(height // SIDE, SIDE, width // SIDE, SIDE, -1)
    return cut.permute(0, 2, 4, 1, 3).flatten(0, 1).contiguous() / 255


def read_sheet(path: Path) -> tuple[Tensor, Tensor]:
    """Pictures of a sheet, standardised by channel, (N, 3, 32, 32) float32, and their classes, (N,) int64.

    Raises:
        InputError: as of `tiles`.
    """
    pictures = tiles(path)
    standardised = (pictures - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    return standardised, torch.arange(len(pictures)) % 10
