"""Shapes: a set that is generated, quick to learn and not trivial, for backbones, detectors and segmentation.

Each picture shows one outline (triangle, square, disc, plus; filled or as a ring) at any place, size and angle, in a
random colour over blotches and noise. 8 classes; the mask and the box of the shape are known.

    background   8 x 8 normal noise enlarged bilinearly, times 0.45
    inside       0.3 background + a random unit vector times 2
    all over     normal noise of deviation 0.2

Values are about standard normal, as networks are given pictures after standardising; they are not in [0, 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.errors import UsageError

__all__ = ["CLASSES", "Shapes", "shapes"]

OUTLINES = ("triangle", "square", "disc", "plus")
CLASSES = tuple(f"{outline}{ring}" for ring in ("", " ring") for outline in OUTLINES)
HOLE = 0.6  # of a ring, as a part of its size
RADII = (0.18, 0.32)  # of the circle around a shape, as a part of the picture's side
ARM = 0.33  # half the width of a plus's arms, as a part of its radius
_CHUNK = 256


@dataclass(frozen=True)
class Shapes:
    """Generated pictures with all that is known of them.

    Attributes:
        images: (N, 3, side, side) float32.
        labels: (N,) int64, places in `CLASSES`.
        masks: (N, side, side) bool, True on the shape.
        boxes: (N, 4) float32, around the mask: left, top, right, bottom in pixels, right and bottom exclusive.
    """

    images: Tensor
    labels: Tensor
    masks: Tensor
    boxes: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def shapes(count: int, *, side: int = 64, seed: int = 0) -> Shapes:
    """Make ``count`` pictures of ``side`` x ``side`` pixels; the same ones for the same seed.

    Raises:
        UsageError: a negative count, or a side below 16.
    """
    if count < 0 or side < 16:
        raise UsageError(f"a set has 0 or more pictures with sides of at least 16 px, not {count} of {side}")
    chance = torch.Generator().manual_seed(seed)
    made = [_some(min(_CHUNK, count - first), side, chance) for first in range(0, count, _CHUNK)]
    if not made:
        made = [_some(0, side, chance)]
    return Shapes(*(torch.cat(column) for column in zip(*made, strict=True)))


def _some(count: int, side: int, chance: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    labels = torch.randint(len(CLASSES), (count,), generator=chance)
    radius = side * (RADII[0] + (RADII[1] - RADII[0]) * torch.rand(count, generator=chance))
    centre = radius[:, None] + (side - 2 * radius[:, None]) * torch.rand(count, 2, generator=chance)
    angle = 2 * math.pi * torch.rand(count, generator=chance)
    masks = _masks(labels, radius, centre, angle, side)
    blotches = torch.randn(count, 3, 8, 8, generator=chance)
    colour = F.normalize(torch.randn(count, 3, generator=chance), dim=1)
    noise = torch.randn(count, 3, side, side, generator=chance)
    background = 0.45 * (
        F.interpolate(blotches, size=(side, side), mode="bilinear", align_corners=False)
        if count
        else blotches.new_empty(0, 3, side, side)
    )
    inside = 0.3 * background + 2 * colour[:, :, None, None]
    images = torch.where(masks[:, None], inside, background) + 0.2 * noise
    return images, labels, masks, _boxes(masks)


def _masks(labels: Tensor, radius: Tensor, centre: Tensor, angle: Tensor, side: int) -> Tensor:
    """Which pixel centres lie inside: (N, side, side) bool."""
    places = torch.arange(side) + 0.5
    y, x = places[:, None] - centre[:, 1, None, None], places - centre[:, 0, None, None]
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    u, v = (cos * x + sin * y) / radius[:, None, None], (cos * y - sin * x) / radius[:, None, None]
    whole, hole = _insides(u, v), _insides(u / HOLE, v / HOLE)
    outline, ring = labels % len(OUTLINES), labels >= len(OUTLINES)
    row = torch.arange(len(labels))
    found: Tensor = whole[outline, row] & ~(hole[outline, row] & ring[:, None, None])
    return found


def _insides(u: Tensor, v: Tensor) -> Tensor:
    """Inside each of `OUTLINES` inscribed in the unit circle: (4, N, side, side) bool."""
    half, root = math.sqrt(0.5), math.sqrt(3)
    triangle = (v >= -0.5) & (root * u + v <= 1) & (-root * u + v <= 1)
    square = (u.abs() <= half) & (v.abs() <= half)
    disc = u * u + v * v <= 1
    plus = ((u.abs() <= 1) & (v.abs() <= ARM)) | ((v.abs() <= 1) & (u.abs() <= ARM))
    return torch.stack([triangle, square, disc, plus])


def _boxes(masks: Tensor) -> Tensor:
    side = masks.shape[-1]
    ends = []
    for used in (masks.any(1), masks.any(2)):  # columns, rows
        first = used.int().argmax(1) if len(used) else used.new_empty(0, dtype=torch.long)
        last = side - used.flip(1).int().argmax(1) if len(used) else first
        ends.append((first, last))
    (left, right), (top, bottom) = ends
    return torch.stack([left, top, right, bottom], 1).float()
