"""Tiles of a picture that is rescaled: their windows in both pictures, their pixels, and how they are put together."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
import torch

from saccade.io import PictureReader, open_picture
from saccade.restoration.iarn.phases import Window, maps, window
from saccade.runtime.stream import check_array

__all__ = [
    "Advance",
    "InMemory",
    "Planes",
    "around",
    "beside",
    "checksum",
    "cut",
    "inner_of",
    "resized_alpha",
    "rgb",
    "scaled",
    "stacked",
    "to_bytes",
]

Advance = Callable[[float], None]
Planes = tuple[np.ndarray, np.ndarray | None]  # (h, w, 1 or 3) colour, (h, w) alpha or None


class InMemory:
    """Pixels in memory with the reader's manners."""

    def __init__(self, colour: np.ndarray, alpha: np.ndarray | None) -> None:
        check_array(colour, alpha)
        self.colour, self.alpha = colour, alpha
        self.height, self.width = colour.shape[:2]

    def read_region(self, left: int, top: int, width: int, height: int) -> Planes:
        """Colour and alpha of a rectangle."""
        part = (slice(top, top + height), slice(left, left + width))
        return self.colour[part], None if self.alpha is None else self.alpha[part]


def around(
    large: tuple[int, int], small: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int], halo: int
) -> tuple[Window, tuple[slice, slice]]:
    """The window of a tile with its halo, and where the tile lies in it, in small pixels."""
    wide = [(max(0, a - halo), min(n, b + halo)) for (a, b), n in zip((rows, columns), small, strict=True)]
    inner = [slice(a - c, b - c) for (a, b), (c, _) in zip((rows, columns), wide, strict=True)]
    return window(large, small, *wide), (inner[0], inner[1])


def inner_of(tile: Window, where: Window) -> tuple[slice, slice]:
    """Where a tile lies in its window, in large pixels."""
    parts = [slice(a - c, b - c) for (a, b), (c, _) in zip(tile.large, where.large, strict=True)]
    return parts[0], parts[1]


def cut(colour: np.ndarray, alpha: np.ndarray | None, inner: tuple[slice, slice]) -> Planes:
    """A tile out of its window."""
    return colour[inner], None if alpha is None else alpha[inner]


def beside(tiles: list[Planes]) -> Planes:
    """Tiles of one row, from left to right, as a band."""
    colour = np.concatenate([tile[0] for tile in tiles], 1)
    alphas = [tile[1] for tile in tiles if tile[1] is not None]
    return colour, np.ascontiguousarray(np.concatenate(alphas, 1)) if alphas else None


def stacked(bands: list[Planes]) -> Planes:
    """Bands, from top to bottom, as a picture."""
    alphas = [band[1] for band in bands if band[1] is not None]
    return np.concatenate([band[0] for band in bands]), np.concatenate(alphas) if alphas else None


def rgb(colour: np.ndarray) -> np.ndarray:
    """(h, w, 1 or 3) of integers -> (h, w, 3) float32 in [0, 1]."""
    scaled = colour.astype(np.float32) / np.float32(np.iinfo(colour.dtype).max)
    return np.repeat(scaled, 3, 2) if scaled.shape[2] == 1 else scaled


def resized_alpha(alpha: np.ndarray, where: Window, *, shrink: bool) -> np.ndarray:
    """Transparency of a window by plain bicubic resizing, in [0, 1]."""
    axes = [maps(n, m, 1, s, wide) for (n, m), s, wide in zip(where.sizes, where.small, where.large, strict=True)]
    rows, columns = ((a.down if shrink else a.up) for a in axes)
    x = torch.from_numpy(alpha.astype(np.float32) / np.float32(np.iinfo(alpha.dtype).max))
    made: np.ndarray = columns.columns(rows.rows(x)).clamp(0, 1).numpy()
    return made


def to_bytes(x: np.ndarray) -> np.ndarray:
    """[0, 1] as uint8."""
    return np.rint(x * 255).astype(np.uint8)


def checksum(reader: PictureReader) -> int:
    """CRC-32 of the colour samples, a strip at a time."""
    check = 0
    with open_picture(reader.path) as again:
        for colour, _ in again.strips():
            check = zlib.crc32(np.ascontiguousarray(colour).data, check)
    return check


def scaled(advance: Advance | None, reader: PictureReader, small: tuple[int, int] | None) -> Advance | None:
    """Progress in pixels of the source, from progress in small pixels."""
    if advance is None:
        return None
    share = 1.0 if small is None else reader.width * reader.height / (small[0] * small[1])
    return lambda pixels: advance(pixels * share)
