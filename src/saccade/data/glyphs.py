"""Small digits on a large canvas: a generated set in which the class is a matter of single pixels.

Each picture shows one digit of 5 x 7 pixels, some copies of it at places of their own, among scraps: the pixels of
other digits in random order, as bright and as many, so that nothing but the arrangement tells the class.

    background   8 x 8 normal noise enlarged bilinearly, times 0.45
    strokes      0.3 background + a random unit vector without negative parts, times 2
    all over     normal noise of deviation 0.2

Values are about standard normal, as networks are given pictures after standardising; they are not in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.errors import UsageError

__all__ = ["GLYPH", "Glyphs", "glyphs"]

GLYPH = (7, 5)  # rows and columns of a digit
_CHUNK = 256
_FONT = (
    "01110 10001 10011 10101 11001 10001 01110",
    "00100 01100 00100 00100 00100 00100 01110",
    "01110 10001 00001 00010 00100 01000 11111",
    "11111 00010 00100 00010 00001 10001 01110",
    "00010 00110 01010 10010 11111 00010 00010",
    "11111 10000 11110 00001 00001 10001 01110",
    "00110 01000 10000 11110 10001 10001 01110",
    "11111 00001 00010 00100 01000 01000 01000",
    "01110 10001 10001 01110 10001 10001 01110",
    "01110 10001 10001 01111 00001 00010 01100",
)


@dataclass(frozen=True)
class Glyphs:
    """Generated pictures and what they show.

    Attributes:
        images: (N, 3, side, side) float32.
        labels: (N,) int64, the digit, 0 to 9.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def glyphs(count: int, *, side: int = 96, copies: int = 1, scraps: int = 6, step: int = 1, seed: int = 0) -> Glyphs:
    """Make ``count`` pictures of ``side`` x ``side`` pixels; the same ones for the same seed.

    Args:
        copies: of the digit, in colours of their own; later ones may hide earlier ones, never the last.
        scraps: digits out of order; they lie below the copies.
        step: places are multiples of it, in pixels.

    Raises:
        UsageError: a negative count, no copy, a side that holds no digit, or a step below 1.
    """
    if min(count, scraps) < 0 or copies < 1 or step < 1 or side < max(GLYPH) + 1:
        raise UsageError(
            f"a set has 0 or more pictures of more than {max(GLYPH)} px with 1 digit or more and 0 or more scraps, "
            f"not {count} of {side} px with {copies} and {scraps} at steps of {step}"
        )
    chance = torch.Generator().manual_seed(seed)
    sizes = [min(_CHUNK, count - first) for first in range(0, count, _CHUNK)] or [0]
    made = [_some(size, side, copies, scraps, step, chance) for size in sizes]
    return Glyphs(*(torch.cat(column) for column in zip(*made, strict=True)))


def _some(count: int, side: int, copies: int, scraps: int, step: int, chance: torch.Generator) -> tuple[Tensor, Tensor]:
    digits = torch.tensor([[[float(c) for c in row] for row in digit.split()] for digit in _FONT]).flatten(1)
    labels = torch.randint(len(digits), (count,), generator=chance)
    blotches = torch.randn(count, 3, 8, 8, generator=chance)
    background = 0.45 * (
        F.interpolate(blotches, size=(side, side), mode="bilinear", align_corners=False)
        if count
        else blotches.new_empty(0, 3, side, side)
    )
    images = background.clone()
    for i in range(scraps + copies):
        if i < scraps:
            others = digits[torch.randint(len(digits), (count,), generator=chance)]
            strokes = others.gather(1, torch.rand(others.shape, generator=chance).argsort(1))
        else:
            strokes = digits[labels]
        colour = F.normalize(torch.randn(count, 3, generator=chance).abs(), dim=1)
        places = [torch.randint((side - length) // step + 1, (count,), generator=chance) * step for length in GLYPH]
        drawn = _placed(strokes, places[0], places[1], side)
        images = torch.where(drawn[:, None], 0.3 * background + 2 * colour[:, :, None, None], images)
    return images + 0.2 * torch.randn(images.shape, generator=chance), labels


def _placed(strokes: Tensor, top: Tensor, left: Tensor, side: int) -> Tensor:
    """Strokes (N, 35) of digits on empty canvases, their upper left corners at (top, left): (N, side, side) bool."""
    height, width = GLYPH
    rows = top[:, None, None] + torch.arange(height)[:, None]
    columns = left[:, None, None] + torch.arange(width)
    canvas = strokes.new_zeros(len(strokes), side * side)
    return canvas.scatter_(1, (rows * side + columns).flatten(1), strokes).view(-1, side, side) > 0
