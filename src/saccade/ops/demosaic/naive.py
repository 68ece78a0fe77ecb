"""Demosaicing pixel by pixel on the full plane: the truth of `packed.py`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["demosaic"]

Colours = tuple[int, int, int, int]

CROSS = [[0, 1, 0], [1, 0, 1], [0, 1, 0]]
Kernels = dict[str, list[list[float]]]

BILINEAR: Kernels = {
    "cross": [[v / 4 for v in row] for row in CROSS],
    "row": [[0, 0, 0], [0.5, 0, 0.5], [0, 0, 0]],
    "column": [[0, 0.5, 0], [0, 0, 0], [0, 0.5, 0]],
    "diagonal": [[0.25, 0, 0.25], [0, 0, 0], [0.25, 0, 0.25]],
}
#: figure 2 of the paper, in sixteenths
_MALVAR = {
    "cross": [[0, 0, -2, 0, 0], [0, 0, 4, 0, 0], [-2, 4, 8, 4, -2], [0, 0, 4, 0, 0], [0, 0, -2, 0, 0]],
    "row": [[0, 0, 1, 0, 0], [0, -2, 0, -2, 0], [-2, 8, 10, 8, -2], [0, -2, 0, -2, 0], [0, 0, 1, 0, 0]],
    "diagonal": [[0, 0, -3, 0, 0], [0, 4, 0, 4, 0], [-3, 0, 12, 0, -3], [0, 4, 0, 4, 0], [0, 0, -3, 0, 0]],
}
_MALVAR["column"] = [list(row) for row in zip(*_MALVAR["row"], strict=True)]
MALVAR: Kernels = {name: [[v / 16 for v in row] for row in kernel] for name, kernel in _MALVAR.items()}


def kernel_for(colours: Colours, row: int, column: int, wanted: int, method: str) -> list[list[float]] | None:
    """The filter that makes colour ``wanted`` at a pixel of the cell; None where the pixel has that colour."""
    kernels = BILINEAR if method == "bilinear" else MALVAR
    own = colours[2 * row + column]
    if own == wanted:
        return None
    if wanted == 1:
        return kernels["cross"]
    if own != 1:
        return kernels["diagonal"]
    return kernels["row"] if colours[2 * row + 1 - column] == wanted else kernels["column"]


def demosaic(packed: Tensor, colours: Colours, method: str) -> Tensor:
    """(B, 4, h, w) -> (B, 3, 2h, 2w), one pixel after another."""
    plane = F.pixel_shuffle(F.pad(packed, (1, 1, 1, 1), mode="replicate"), 2)[:, 0]  # two pixels more on each side
    height, width = plane.shape[1] - 4, plane.shape[2] - 4
    rows = []
    for y in range(height):
        row = []
        for x in range(width):
            pixel = []
            for wanted in range(3):
                kernel = kernel_for(colours, y % 2, x % 2, wanted, method)
                if kernel is None:
                    pixel.append(plane[:, y + 2, x + 2])
                    continue
                reach = len(kernel) // 2
                weights = plane.new_tensor(kernel)
                window = plane[:, y + 2 - reach : y + 3 + reach, x + 2 - reach : x + 3 + reach]
                pixel.append((window * weights).sum((1, 2)))
            row.append(torch.stack(pixel, -1))
        rows.append(torch.stack(row, 1))
    return torch.stack(rows, 1).permute(0, 3, 1, 2)
