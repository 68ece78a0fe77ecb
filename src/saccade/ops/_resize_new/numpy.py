"""`resize` for numpy pictures, without torch, whole or strip by strip.

Used where torch must not be imported (alpha and chroma of a picture that is upscaled by another engine). A strip of
output rows equals the same rows of the whole picture bit for bit: rows are always computed in the same groups of
`GROUP`, each by the same matrix products, whoever asks for them.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from saccade.errors import InputError, UsageError
from saccade.ops._resize_new.weights import Axis, Band, axes

__all__ = ["RowResizer", "resize_array"]

Array = np.ndarray[Any, Any]

GROUP = 16  # output rows computed together
PRODUCT = 1 << 18  # multiplications in one matrix product: below this BLAS starts no threads of its own
DTYPES = ("uint8", "uint16", "float16", "float32", "float64")


class RowResizer:
    """A resize of one picture size that gives output rows on demand, from a window of input rows.

    Weights depend on the place in the whole picture, and only the picture's true edges are mirrored.

    Args:
        height, width: the whole input picture, in pixels.
        scale: enlargement, one number or (rows, columns); below 1 shrinks.
        size: (height, width) of the output; without it ceil(input * scale). With both, scale sets the geometry.
        method: "bicubic" (MATLAB ``imresize``'s), "bilinear" or "box".
        antialias: widen the kernel when shrinking.

    Raises:
        UsageError: a scale, size or method that cannot be.
    """

    def __init__(
        self,
        height: int,
        width: int,
        scale: float | tuple[float, float] | None = None,
        *,
        size: tuple[int, int] | None = None,
        method: str = "bicubic",
        antialias: bool = True,
    ) -> None:
        self._rows, self._columns = axes(height, width, scale, size, method, antialias)
        self._bands = self._rows.bands(GROUP)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the output."""
        return self._rows.m, self._columns.m

    def source(self, start: int, stop: int) -> tuple[int, int]:
        """The input rows [first, last) that output rows [start, stop) need.

        These are the rows of every group of 16 output rows that the strip touches: strips that begin and end at
        multiples of 16 need the fewest.
        """
        bands = self._touched(start, stop)
        return min(band.source.start for band in bands), max(band.source.stop for band in bands)

    def rows(self, window: Array, start: int, stop: int, *, first: int | None = None) -> Array:
        """Output rows [start, stop): (stop - start, width[, channels]) in the window's dtype.

        Args:
            window: input rows (rows, width) or (rows, width, channels); float, uint8 or uint16. Integers are rounded
                (halves upwards) and clamped to their range; floats are not clamped.
            start, stop: the output rows wanted.
            first: the picture's row that the window begins with; ``source(start, stop)[0]`` if not given.

        Raises:
            InputError: the window lacks rows that are needed, or has another width or dtype.
        """
        window = np.asarray(window)
        needed, end = self.source(start, stop)
        first = needed if first is None else first
        if window.dtype.name not in DTYPES:
            raise InputError(f"resize takes {', '.join(DTYPES)} arrays, got {window.dtype.name}")
        if window.ndim not in (2, 3) or window.shape[1] != self._columns.n:
            raise InputError(
                f"expected rows of {self._columns.n} pixels, (rows, width[, channels]), got {window.shape}"
            )
        if first > needed or first + len(window) < end:
            raise InputError(
                f"output rows {start} to {stop} need input rows {needed} to {end}, "
                f"the window holds {first} to {first + len(window)}"
            )
        work = np.dtype(np.float64 if window.dtype == np.float64 else np.float32)
        channels = 1 if window.ndim == 2 else window.shape[2]
        across = _column_bands(self._columns, channels, work)
        columns = window.shape[1] * channels
        out = np.empty((stop - start, self._columns.m, *window.shape[2:]), window.dtype)
        flat = out.reshape(stop - start, self._columns.m * channels)
        middle = np.empty((GROUP, columns), work)
        wide = np.empty((GROUP, flat.shape[1]), work)
        for band in self._touched(start, stop):
            rows = band.out.stop - band.out.start
            source = window[band.source.start - first : band.source.stop - first]
            source = np.ascontiguousarray(source, work).reshape(len(source), columns)
            _down(source, band.weight.astype(work), middle[:rows])
            for to, begin, weight in across:
                np.matmul(middle[:rows, begin], weight, out=wide[:rows, to])
            low, high = max(start, band.out.start), min(stop, band.out.stop)
            group = wide[low - band.out.start : high - band.out.start]
            if window.dtype.kind == "u":
                np.floor(np.add(group, 0.5, out=group), out=group)
                np.clip(group, 0, np.iinfo(window.dtype).max, out=group)
            flat[low - start : high - start] = group
        return out

    def _touched(self, start: int, stop: int) -> tuple[Band, ...]:
        if not 0 <= start < stop <= self._rows.m:
            raise UsageError(f"no output rows {start} to {stop} in a picture of {self._rows.m} rows")
        return self._bands[start // GROUP : -(stop // -GROUP)]


def resize_array(
    x: Array,
    scale: float | tuple[float, float] | None = None,
    *,
    size: tuple[int, int] | None = None,
    method: str = "bicubic",
    antialias: bool = True,
) -> Array:
    """(h, w) or (h, w, channels) -> (H, W) or (H, W, channels), same dtype; see `RowResizer` for the arguments."""
    x = np.asarray(x)
    if x.ndim not in (2, 3):
        raise InputError(f"resize takes a picture (height, width[, channels]), got an array of shape {x.shape}")
    resizer = RowResizer(x.shape[0], x.shape[1], scale, size=size, method=method, antialias=antialias)
    return resizer.rows(x, 0, resizer.size[0], first=0)


def _down(source: Array, weight: Array, out: Array) -> None:
    step = max(64, PRODUCT // weight.size // 64 * 64)
    for begin in range(0, source.shape[1], step):
        np.matmul(weight, source[:, begin : begin + step], out=out[:, begin : begin + step])


@functools.lru_cache(maxsize=32)
def _column_bands(axis: Axis, channels: int, dtype: np.dtype[Any]) -> tuple[tuple[slice, slice, Array], ...]:
    """Blocks for rows whose channels are interleaved: each weight becomes weight times the identity of channels."""
    block = 64 if axis.m >= axis.n else 32
    step = 1 / min(axis.scale, 1.0)
    while block > 1 and GROUP * channels**2 * block * (block / axis.scale + 4 * step) > PRODUCT:
        block //= 2
    identity = np.eye(channels)
    return tuple(
        (
            slice(band.out.start * channels, band.out.stop * channels),
            slice(band.source.start * channels, band.source.stop * channels),
            np.kron(band.weight.T, identity).astype(dtype),
        )
        for band in axis.bands(block)
    )
