"""Pictures made from a seed: natural enough to train and test restoration on where no photographs are at hand.

`dead_leaves` follows the occlusion model of natural images (Lee, Mumford and Huang, "Occlusion Models for Natural
Images", IJCV 2001): opaque shapes whose sizes follow a power law lie upon each other at random. It has what matters to
restoration, sharp edges of every length and orientation, corners, T-junctions and the 1/f spectrum of photographs.
Each leaf carries a 1/f texture of its own, some stripes, all a little shading.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from saccade.errors import UsageError

__all__ = ["dead_leaves", "write_pictures"]

_BANK = 512  # side of the texture fields, pixels


def _pink(chance: np.random.Generator, exponent: float) -> NDArray[np.float32]:
    """A periodic field (512, 512) with amplitude spectrum 1/f^exponent, zero mean, unit deviation."""
    rows = np.fft.fftfreq(_BANK)[:, None]
    frequency = np.hypot(rows, np.fft.rfftfreq(_BANK)[None])
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(chance.standard_normal((_BANK, _BANK))) / frequency**exponent
    field = np.fft.irfft2(spectrum, (_BANK, _BANK))
    return np.asarray(field / field.std(), np.float32)


def _colour(chance: np.random.Generator) -> NDArray[np.float32]:
    """A colour (3,) as scenes have them: any brightness, mostly weak chroma, warm and cool along one axis."""
    grey = chance.beta(1.6, 1.9)
    warm, green = chance.laplace(0, 0.07), chance.laplace(0, 0.03)
    return np.asarray([grey + warm, grey + green, grey - warm], np.float32)


def _inside(chance: np.random.Generator, y: NDArray[np.float32], x: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which of the points around the origin, in units of the radius, belong to a leaf: an ellipse or a polygon."""
    angle = chance.uniform(0, np.pi)
    u, v = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    v = v / chance.uniform(0.3, 1.0)
    if chance.random() < 0.5:
        return np.asarray(u * u + v * v <= 1)
    sides = int(chance.integers(3, 7))
    turns = 2 * np.pi * (np.arange(sides) + chance.uniform(-0.3, 0.3, sides)) / sides
    within = u * u + v * v <= 1
    for turn in turns:
        within &= np.cos(turn) * u + np.sin(turn) * v <= 0.6
    return np.asarray(within)


def _surface(
    chance: np.random.Generator, bank: list[NDArray[np.float32]], y: NDArray[np.float32], x: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Colour (h, w, 3) of a leaf: base, shading, texture, in one case of six stripes."""
    field = bank[int(chance.integers(len(bank)))]
    top, left = chance.integers(_BANK, size=2)
    rows, columns = (top + np.arange(len(y))) % _BANK, (left + np.arange(x.shape[1])) % _BANK
    light = min(chance.exponential(0.05), 0.15) * field[np.ix_(rows, columns)]
    light = light + chance.normal(0, 0.08) * x + chance.normal(0, 0.08) * y
    if chance.random() < 1 / 6:
        angle, period = chance.uniform(0, np.pi), chance.uniform(5, 40)
        phase = (np.cos(angle) * np.arange(x.shape[1])[None] + np.sin(angle) * np.arange(len(y))[:, None]) / period
        light = light + chance.uniform(0.03, 0.2) * np.clip(4 * np.sin(2 * np.pi * phase), -1, 1)
    return np.asarray(_colour(chance) * (1 + light[..., None]) + 0.3 * light[..., None], np.float32)


def dead_leaves(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """A picture of overlapping leaves, the same for the same seed.

    It is painted at twice the size and reduced, so that edges are antialiased as a lens would have them.

    Returns:
        (height, width, 3) uint8, RGB.

    Raises:
        UsageError: a side below 1.
    """
    if min(height, width) < 1:
        raise UsageError(f"a picture has at least one pixel, not {height}x{width}")
    chance = np.random.default_rng(seed)
    bank = [_pink(chance, exponent) for exponent in (0.8, 1.1, 1.5)]
    h, w = 2 * height, 2 * width
    smallest, largest = 6.0, max(12.0, 0.4 * min(h, w))
    picture = np.empty((h, w, 3), np.float32)
    free = np.ones((h, w), bool)
    for tried in range(h * w // 100 + 64):  # front to back; what is covered already is not painted again
        if tried % 64 == 0 and not free.any():
            break
        share = chance.random()
        radius = smallest / (1 - share * (1 - smallest / largest))  # density ~ radius^-2
        cy, cx = chance.uniform(-radius, h + radius), chance.uniform(-radius, w + radius)
        window = tuple(slice(max(0, int(c - radius)), min(side, int(c + radius) + 2)) for c, side in ((cy, h), (cx, w)))
        if not free[window].any():
            continue
        y = ((np.arange(window[0].start, window[0].stop) - cy) / radius).astype(np.float32)[:, None]
        x = ((np.arange(window[1].start, window[1].stop) - cx) / radius).astype(np.float32)[None]
        leaf = _inside(chance, y, x) & free[window]
        if leaf.any():
            picture[window][leaf] = _surface(chance, bank, y, x)[leaf]
            free[window] &= ~leaf
    if free.any():
        y, x = (np.linspace(-1, 1, side, dtype=np.float32) for side in (h, w))
        picture[free] = _surface(chance, bank, y[:, None], x[None])[free]
    small = picture.reshape(height, 2, width, 2, 3).mean((1, 3))
    return np.asarray(np.rint(small.clip(0, 1) * 255), np.uint8)


def write_pictures(folder: Path, count: int, size: int, seed: int) -> list[Path]:
    """Write ``count`` square pictures of ``size`` pixels as PNG; picture i has the seed (seed, i) and no other fate."""
    from PIL import Image

    paths = [folder / f"leaves_{seed}_{i:03d}.png" for i in range(count)]
    for i, path in enumerate(paths):
        Image.fromarray(dead_leaves(size, size, seed * 100_003 + i)).save(path)
    return paths
