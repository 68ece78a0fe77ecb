"""Pictures streamed through an engine: bands of rows in, tiles, bands of rows out, two bands under way at a time.

    read --rows--> band of rows + halo --tiles--> engine --tiles--> band of output --rows--> write

Memory is that of two bands, whatever the picture's height.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from saccade.errors import InputError, UsageError
from saccade.runtime.engines import Engine
from saccade.runtime.tiles import Span, bands, columns, fitted

if TYPE_CHECKING:
    from saccade.io import PictureReader

__all__ = [
    "Advance",
    "Picture",
    "Read",
    "Write",
    "band_rows",
    "check_array",
    "give_blocks_back",
    "patches",
    "rolling",
    "stream",
]

#: bytes of the interpreter, libvips, the backend and its tiles, whatever the picture (measured)
RESIDENT = {"openvino": 440 << 20, "onnxruntime": 360 << 20, "torch": 700 << 20}
QUEUED = 64 << 20  # bytes of rows on their way to the encoder

Read = Callable[[int, int], tuple[np.ndarray, np.ndarray | None]]
Write = Callable[[np.ndarray, np.ndarray | None], None]
Advance = Callable[[float], None]
#: (alpha of a band's window, the band's rows) -> alpha of the band's output rows
Alpha = Callable[[np.ndarray, Span], np.ndarray]


@dataclass(frozen=True)
class Picture:
    """What is known of a picture before its pixels: sides in pixels, colours (1 or 3), ``uint8`` or ``uint16``."""

    width: int
    height: int
    channels: int
    dtype: str
    has_alpha: bool = False


def band_rows(picture: Picture, engine: Engine, scale: int, halo: int, max_memory: int) -> int:
    """Rows of a band, so that two bands in flight, the queue and the tiles fit into ``max_memory``.

    Raises:
        UsageError: not even a band of 16 rows fits.
    """
    item, tile_rows = np.dtype(picture.dtype).itemsize, engine.tile[0]
    resident = RESIDENT[engine.backend] + QUEUED
    per_row = picture.width * (picture.channels + 1) * item * (3 * scale**2 + 4)
    fixed = 4 * halo * picture.width * (picture.channels + 1) * item
    rows = min(tile_rows, (max_memory - resident - fixed) // per_row)
    if rows < min(16, tile_rows):
        need = resident + fixed + 16 * per_row
        raise UsageError(f"a picture {picture.width} px wide needs --max-memory {-(-need // (1 << 20))}MB or more")
    return int(rows)


def stream(
    picture: Picture,
    engine: Engine,
    scale: int,
    halo: int,
    read: Read,
    write: Write,
    *,
    max_memory: int,
    alpha: Alpha,
    advance: Advance | None = None,
    grid: int = 1,
) -> int:
    """Read bands of rows, run their tiles, write them in order.

    Args:
        picture: its facts.
        engine: what runs tiles; its result is ``scale`` times as large.
        halo: input pixels that an output pixel sees beyond its own place.
        read: gives rows ``top .. top + count`` (colour, alpha); windows overlap and come in order.
        write: takes rows of the result, in order.
        max_memory: bound on the memory of the process, bytes.
        alpha: makes a band's alpha.
        advance: called with the input pixels of every band done.
        grid: windows begin at multiples of this, as a network with strides needs.

    Returns:
        The number of tiles.
    """
    largest = (band_rows(picture, engine, scale, halo, max_memory), engine.tile[1])
    tile = fitted(picture.width, picture.height, largest, engine.parallel)
    waiting: list[_Band] = []
    count = 0
    try:
        for rows in bands(picture.height, tile[0], halo, grid):
            colour, clear = read(rows.low, rows.high - rows.low)
            band = _Band(rows, picture, scale)
            spans = list(columns(picture.width, tile[1], halo, grid))
            band.expect(len(spans))
            for span in spans:
                engine.submit(colour[:, span.low : span.high], band.place(span))
            count += len(spans)
            if picture.has_alpha and clear is not None:
                band.alpha = alpha(clear, rows)
            waiting.append(band)
            if len(waiting) > 1:
                _finish(waiting.pop(0), engine, write, advance)
        for band in waiting:
            _finish(band, engine, write, advance)
    finally:
        _quietly_drain(engine)
    return count


class _Band:
    """A band of output rows that fills up tile by tile."""

    def __init__(self, rows: Span, picture: Picture, scale: int) -> None:
        self.rows, self.scale = rows, scale
        self.pixels = np.empty((rows.length * scale, picture.width * scale, picture.channels), picture.dtype)
        self.alpha: np.ndarray | None = None
        self.full = threading.Event()
        self._left, self._lock = 0, threading.Lock()

    def expect(self, tiles: int) -> None:
        self._left = tiles

    def place(self, span: Span) -> Callable[[np.ndarray], None]:
        """What takes the enlarged window of one tile and keeps its core."""
        s, rows = self.scale, self.rows.inner

        def put(window: np.ndarray) -> None:
            inner = span.inner
            core = window[rows.start * s : rows.stop * s, inner.start * s : inner.stop * s]
            self.pixels[:, span.start * s : span.stop * s] = core
            with self._lock:
                self._left -= 1
                if self._left == 0:
                    self.full.set()

        return put


def _finish(band: _Band, engine: Engine, write: Write, advance: Advance | None) -> None:
    """Wait for a band and hand it on; a failed tile shows up as its error, not as waiting for ever."""
    while not band.full.wait(2.0):
        engine.drain()
    write(band.pixels, band.alpha)
    if advance:
        advance(band.rows.length * band.pixels.shape[1] // band.scale)


def _quietly_drain(engine: Engine) -> None:
    """Let tiles end that are still under way after an error, so that their memory may go."""
    with contextlib.suppress(Exception):
        engine.drain()


@functools.cache
def give_blocks_back() -> None:
    """Let glibc return every freed block above 1 MB to the system at once.

    By its default it keeps blocks up to 32 MB, and bands of rows tear holes between them: a picture 20,000 pixels
    wide peaked at 1,075 MB instead of 626 MB.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD


def rolling(reader: PictureReader) -> Read:
    """Windows of rows, overlapping and in order, from a reader that gives every row once."""
    kept: tuple[np.ndarray, np.ndarray | None] | None = None
    first = 0

    def read(top: int, rows: int) -> tuple[np.ndarray, np.ndarray | None]:
        nonlocal kept, first
        have = 0 if kept is None else first + len(kept[0]) - top
        old = None if kept is None or not have else (kept[0][-have:], None if kept[1] is None else kept[1][-have:])
        if old is not None and have >= rows:  # bands lower than their halo: the last ones lie in the window before
            return old[0][:rows], None if old[1] is None else old[1][:rows]
        fresh = reader.read_rows(top + have, rows - have)
        if old is not None:
            alpha = None if fresh[1] is None or old[1] is None else np.concatenate((old[1], fresh[1]))
            fresh = (np.concatenate((old[0], fresh[0])), alpha)
        kept, first = fresh, top
        return fresh

    return read


def patches(width: int, height: int, read: Read, count: int = 4, side: int = 128) -> Iterator[np.ndarray]:
    """About ``count`` x ``count`` patches spread evenly over a picture, read top to bottom."""
    rows, columns_ = min(side, height), min(side, width)
    tops = sorted({round(i * (height - rows) / max(1, count - 1)) for i in range(count)})
    lefts = sorted({round(i * (width - columns_) / max(1, count - 1)) for i in range(count)})
    end = 0
    for top in tops:
        top = max(top, end)
        if top + rows > height:
            return
        band = read(top, rows)[0]
        end = top + rows
        for left in lefts:
            yield band[:, left : left + columns_]


def check_array(colour: np.ndarray, alpha: np.ndarray | None) -> None:
    """Refuse what is no picture (h, w, 1 or 3) of uint8 or uint16, or an alpha that does not go with it.

    Raises:
        InputError: saying which.
    """
    if colour.ndim != 3 or colour.shape[2] not in (1, 3) or min(colour.shape[:2]) < 1:
        raise InputError(f"a picture is (h, w, 1 or 3) and not empty, got {colour.shape}")
    if colour.dtype not in (np.uint8, np.uint16):
        raise InputError(f"pixels are uint8 or uint16, got {colour.dtype}")
    if alpha is not None and (alpha.shape != colour.shape[:2] or alpha.dtype != colour.dtype):
        raise InputError(f"alpha {alpha.shape} {alpha.dtype} does not go with colour {colour.shape} {colour.dtype}")
