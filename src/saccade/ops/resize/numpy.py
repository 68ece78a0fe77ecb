"""`resize` with numpy alone: the fast path of the CPU, for whole pictures and strip by strip.

Per axis, a few small matrix products along the diagonal of the weight matrix: blocks of 8 to 64 output samples waste
some multiplications by zero and gain the speed of matrix products, at any scale. A group of output rows goes through
both axes before the next begins, so the rows between stay in the cache. The products are kept below the size at which
BLAS starts threads: on a busy machine threads that wait for each other cost more than they bring, and without them a
result does not depend on how many there are.

A strip of output rows equals the same rows of the whole picture bit for bit: rows are always computed in the same
groups of `GROUP`, by the same products, whoever asks for them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from saccade.errors import InputError, UsageError
from saccade.ops.resize.weights import Axis, axes

__all__ = ["RowResizer", "multiply_plane", "resize_array"]

Array = np.ndarray[Any, Any]
Bands = Sequence[tuple[slice, slice, Array]]

GROUP, WIDE_GROUP = 16, 64  # output rows that go through both axes together: for strips, for whole planes
PRODUCT = 1 << 18  # multiplications in one matrix product; BLAS starts no threads of its own below this
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

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the output."""
        return self._rows.m, self._columns.m

    def source(self, start: int, stop: int) -> tuple[int, int]:
        """The input rows [first, last) that output rows [start, stop) need.

        These are the rows of every group of 16 output rows that the strip touches: strips that begin and end at
        multiples of 16 need the fewest.
        """
        if not 0 <= start < stop <= self._rows.m:
            raise UsageError(f"no output rows {start} to {stop} in a picture of {self._rows.m} rows")
        sources = [source for to, source, _ in _row_bands(self._rows, "float32") if _touches(to, start, stop)]
        return min(source.start for source in sources), max(source.stop for source in sources)

    def rows(self, window: Array, start: int, stop: int, *, first: int | None = None) -> Array:
        """Output rows [start, stop): (stop - start, width[, channels]) in the window's dtype.

        Args:
            window: input rows (rows, width) or (rows, width, channels); float, uint8 or uint16. Integers are rounded
                (halves upwards) and clamped to their range; floats are not clamped.
            start, stop: the output rows wanted.
            first: the picture's row that the window begins with; ``source(start, stop)[0]`` if not given.

        Raises:
            InputError: the window lacks rows that are needed, or has another width or dtype.
            UsageError: output rows that do not exist.
        """
        window = np.asarray(window)
        needed, end = self.source(start, stop)
        first = needed if first is None else first
        if window.dtype.name not in DTYPES:
            raise InputError(f"resize takes {', '.join(DTYPES)} arrays, got {window.dtype.name}")
        if window.ndim not in (2, 3) or window.shape[1] != self._columns.n or 0 in window.shape[2:]:
            raise InputError(
                f"expected rows of {self._columns.n} pixels, (rows, width[, channels]), got {window.shape}"
            )
        if first > needed or first + len(window) < end:
            raise InputError(
                f"output rows {start} to {stop} need input rows {needed} to {end}, "
                f"the window holds {first} to {first + len(window)}"
            )
        channels = 1 if window.ndim == 2 else window.shape[2]
        flat = window.reshape(len(window), window.shape[1] * channels)
        out = np.empty((stop - start, self._columns.m, *window.shape[2:]), window.dtype)
        target = out.reshape(stop - start, self._columns.m * channels)
        work = _work(window.dtype)
        across = _column_bands(self._columns, channels, work)
        _multiply(flat, first, target, start, stop, _row_bands(self._rows, work), across, GROUP)
        return out


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


def multiply_plane(x: Array, out: Array, rows: Axis, columns: Axis) -> None:
    """Both axes of one plane, x (h, w) -> out (H, W), same dtype: the core of the tensors' path."""
    work = _work(x.dtype)
    bands, across = _row_bands(rows, work), _column_bands(columns, 1, work)
    _multiply(x, 0, out, 0, len(out), bands, across, WIDE_GROUP)


def _multiply(x: Array, first: int, out: Array, start: int, stop: int, down: Bands, across: Bands, group: int) -> None:
    """Rows [start, stop) of the product into ``out``; ``x`` begins with the picture's row ``first``."""
    work = down[0][2].dtype
    middle, wide = np.empty((group, x.shape[1]), work), np.empty((group, out.shape[1]), work)
    direct = out.dtype == work
    for begin in range(start // group * group, stop, group):
        bands = down[begin // _height(down) :][: group // _height(down)]
        low = min(source.start for _, source, _ in bands)
        high = max(source.stop for _, source, _ in bands)
        lines = np.ascontiguousarray(x[low - first : high - first], work)
        for to, source, weight in bands:
            _down(lines[source.start - low : source.stop - low], weight, middle[to.start - begin : to.stop - begin])
        count = bands[-1][0].stop - begin
        skip, keep = max(start - begin, 0), min(stop - begin, count)
        whole = direct and keep - skip == count
        result = out[begin - start :][:count] if whole else wide[:count]
        for to, source, weight in across:
            np.matmul(middle[:count, source], weight, out=result[:, to])
        if not whole:
            out[begin + skip - start : begin + keep - start] = _finish(result[skip:keep], out.dtype)


def _down(source: Array, weight: Array, out: Array) -> None:
    step = max(64, PRODUCT // weight.size // 64 * 64)
    for begin in range(0, source.shape[1], step):
        np.matmul(weight, source[:, begin : begin + step], out=out[:, begin : begin + step])


def _finish(x: Array, dtype: np.dtype[Any]) -> Array:
    """Integers: rounded, halves upwards, and clamped; in place."""
    if dtype.kind == "u":
        np.floor(np.add(x, 0.5, out=x), out=x)
        np.clip(x, 0, np.iinfo(dtype).max, out=x)
    return x


def _work(dtype: np.dtype[Any]) -> str:
    return "float64" if dtype == np.float64 else "float32"


def _height(bands: Bands) -> int:
    """Output rows in every band but the last."""
    return max(1, bands[0][0].stop)


def _touches(to: slice, start: int, stop: int) -> bool:
    return to.stop > start // GROUP * GROUP and to.start < -(stop // -GROUP) * GROUP


@functools.lru_cache(maxsize=16)
def _row_bands(axis: Axis, work: str) -> Bands:
    n, m = axis.sizes
    return tuple((band.out, band.source, band.weight.astype(work)) for band in axis.bands(16 if m >= n else 8))


@functools.lru_cache(maxsize=16)
def _column_bands(axis: Axis, channels: int, work: str) -> Bands:
    """Blocks for rows whose channels are interleaved: each weight becomes weight times the identity of channels."""
    n, m = axis.sizes
    block = 64 if m >= n else 32
    group = WIDE_GROUP if channels == 1 else GROUP
    while block > 1 and max(band.weight.size for band in axis.bands(block)) * channels**2 * group > PRODUCT:
        block //= 2
    identity = np.eye(channels)
    return tuple(
        (
            slice(band.out.start * channels, band.out.stop * channels),
            slice(band.source.start * channels, band.source.stop * channels),
            np.kron(band.weight.T, identity).astype(work),
        )
        for band in axis.bands(block)
    )
