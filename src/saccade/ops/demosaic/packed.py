"""Demosaicing as one convolution over cells, then a shuffle.

    packed (B,4,h,w) -- border cells again -- 3x3 conv, 12 = 3 colours x 4 places -- shuffle -- (B,3,2h,2w)

Every filter of the methods reaches two pixels, so one cell: what a pixel needs lies in the 3x3 cells around its own,
and its place in the cell tells the filter. Nothing is computed at places where it is thrown away.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.ops.demosaic.naive import Colours, kernel_for

__all__ = ["demosaic"]


@functools.cache
def kernel(colours: Colours, method: str) -> np.ndarray:
    """(12, 4, 3, 3): output channel 4*colour + place, as `pixel_shuffle` takes them.

    An array: a tensor that was made in inference mode could not be kept for training.
    """
    made = np.zeros((12, 4, 3, 3))
    for wanted in range(3):
        for place in range(4):
            row, column = divmod(place, 2)
            filter_ = kernel_for(colours, row, column, wanted, method) or [[1.0]]
            reach = len(filter_) // 2
            for i, line in enumerate(filter_):
                for j, value in enumerate(line):
                    (cell_y, y), (cell_x, x) = divmod(row + i - reach, 2), divmod(column + j - reach, 2)
                    made[4 * wanted + place, 2 * y + x, cell_y + 1, cell_x + 1] += value
    return made


def demosaic(packed: Tensor, colours: Colours, method: str) -> Tensor:
    """(B, 4, h, w) -> (B, 3, 2h, 2w)."""
    weight = torch.tensor(kernel(colours, method), dtype=packed.dtype, device=packed.device)
    cells = F.conv2d(F.pad(packed, (1, 1, 1, 1), mode="replicate"), weight)  # (B, 12, h, w)
    return F.pixel_shuffle(cells, 2)
