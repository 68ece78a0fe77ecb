"""Exact tiles: cut a picture so that a network with a finite receptive field gives the same result as on the whole.

    picture row of tiles (band):   halo rows ------------------------------
                                   | core | core | core | ... | core |       one window = core + halo on every side,
                                   halo rows ------------------------------   cut off where the picture ends

At the picture's own borders a window ends with the picture, so the network pads there exactly as it would on the
whole picture; everywhere else the halo gives it all that an output pixel can see.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Span", "Tile", "bands", "columns", "fitted"]

SMALLEST = 64  # pixels: a core of this side or less is not cut further to keep workers busy


@dataclass(frozen=True)
class Span:
    """A stretch of one axis: its core [start, stop) and the window [low, high) that the network must see."""

    start: int
    stop: int
    low: int
    high: int

    @property
    def length(self) -> int:
        """Pixels of the core."""
        return self.stop - self.start

    @property
    def inner(self) -> slice:
        """Where the core lies within its window."""
        return slice(self.start - self.low, self.stop - self.low)


@dataclass(frozen=True)
class Tile:
    """One tile: its rows and its columns."""

    rows: Span
    columns: Span


def spans(length: int, core: int, halo: int, grid: int = 1) -> Iterator[Span]:
    """Cut an axis of ``length`` pixels into nearly equal cores of at most ``core`` pixels, with a halo on each side.

    Windows begin at multiples of ``grid``, and end at one or at the picture's end: a network with strides then sees
    every pixel at the same place of its grid as on the whole picture.
    """
    count = max(1, -(-length // core))
    for i in range(count):
        start, stop = i * length // count, (i + 1) * length // count
        low = max(0, start - halo) // grid * grid
        yield Span(start, stop, low, min(length, -(-(stop + halo) // grid) * grid))


def fitted(width: int, height: int, tile: tuple[int, int], workers: int, bands_under_way: int = 2) -> tuple[int, int]:
    """Rows and columns of the cores of a picture: ``tile``, or smaller where that would leave workers idle.

    Args:
        width, height: of the picture.
        tile: rows and columns of the largest core.
        workers: tiles that are worked on at a time.
        bands_under_way: bands of rows that are under way at a time.
    """
    rows, cols = min(tile[0], height), min(tile[1], width)
    while -(-width // cols) * min(bands_under_way, -(-height // rows)) < workers:
        if rows == height and rows >= cols and rows > SMALLEST:
            rows = -(-rows // 2)
        elif cols > SMALLEST:
            cols = -(-cols // 2)
        else:
            break
    return rows, cols


def bands(height: int, core: int, halo: int, grid: int = 1) -> Iterator[Span]:
    """The rows of a picture, top to bottom."""
    return spans(height, core, halo, grid)


def columns(width: int, core: int, halo: int, grid: int = 1) -> Iterator[Span]:
    """The columns of a band, left to right."""
    return spans(width, core, halo, grid)
