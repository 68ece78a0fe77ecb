"""Rows handed over from the thread that computes them to the thread that encodes them, with bounded memory.

libvips encodes what it can pull; we have rows to push. Between the two stands a `RowFeed`: to libvips it is an
uncompressed BigTIFF that can be read once, front to back; to us it is a queue that blocks when the encoder is behind.
No byte of that file is ever stored: its header is computed, its strips are the pushed rows.

    push(rows) -- queue, at most `limit` bytes -- read()/seek() -- libvips TIFF loader -- encoder
"""

from __future__ import annotations

import struct
import sys
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

__all__ = ["BrokenFeedError", "RowFeed"]

_STRIP_BYTES = 1 << 20  # libvips asks for one strip at a time: long enough to make the calls rare


class BrokenFeedError(Exception):
    """The other end has gone: the encoder failed, or the writer was aborted."""


class RowFeed:
    """A picture that one thread pushes row by row and libvips pulls in another.

    Args:
        width, height: size in pixels.
        channels: samples of a pixel, 1 to 4; 2 and 4 end with alpha.
        depth: bits of a sample, 8 or 16.
        limit: bytes that may wait in the queue before `push` blocks.
    """

    def __init__(self, width: int, height: int, channels: int, depth: int, limit: int = 32 << 20) -> None:
        self.row_bytes = width * channels * depth // 8
        self.limit = limit
        self._header = _tiff_header(width, height, channels, depth, max(1, _STRIP_BYTES // self.row_bytes))
        self._length = len(self._header) + height * self.row_bytes
        self._position = 0  # where the reader stands
        self._start = len(self._header)  # file offset of the first byte that still waits
        self._waiting: deque[memoryview] = deque()
        self._bytes = 0
        self._broken = False
        self._source: Any = None
        self._change = threading.Condition()

    def push(self, rows: np.ndarray) -> None:
        """Append whole rows, (h, width, channels) and contiguous; blocks while the queue is full.

        The queue keeps a copy, taken in pieces as room appears. Raises BrokenFeedError when nobody reads any more.
        """
        piece = max(1, self.limit // 4 // self.row_bytes)
        for top in range(0, len(rows), piece):
            part = memoryview(rows[top : top + piece].tobytes())
            with self._change:
                self._change.wait_for(lambda: self._broken or self._bytes < self.limit)
                if self._broken:
                    raise BrokenFeedError
                self._waiting.append(part)
                self._bytes += len(part)
                self._change.notify_all()

    def break_off(self) -> None:
        """End both sides at once: a blocked `push` raises, a blocked `read` sees the end of the file."""
        with self._change:
            self._broken = True
            self._waiting.clear()
            self._change.notify_all()

    def image(self) -> Any:
        """The pyvips image that pulls from this feed, once, top to bottom; valid as long as the feed lives."""
        import pyvips

        self._source = pyvips.SourceCustom()  # libvips calls into it: it must not go before the image does
        self._source.on_read(self._read)
        self._source.on_seek(self._seek)
        return pyvips.Image.tiffload_source(self._source, access="sequential")

    def _seek(self, offset: int, whence: int) -> int:
        self._position = offset + (0, self._position, self._length)[whence]
        return self._position

    def _read(self, size: int) -> bytes | memoryview:
        if self._position < len(self._header):
            data: bytes | memoryview = self._header[self._position : self._position + size]
        else:
            data = self._take(min(size, self._length - self._position))
        self._position += len(data)
        return data

    def _take(self, size: int) -> bytes | memoryview:
        """The next ``size`` bytes of pixels; waits for them. Empty when the feed is broken or read out of order."""
        parts: list[memoryview] = []
        with self._change:
            if self._position != self._start:  # only a front-to-back reader is served
                return b""
            while size > 0:
                self._change.wait_for(lambda: self._broken or bool(self._waiting))
                if self._broken:
                    return b""
                first = self._waiting.popleft()
                if len(first) > size:
                    self._waiting.appendleft(first[size:])
                    first = first[:size]
                parts.append(first)
                size -= len(first)
                self._start += len(first)
                self._bytes -= len(first)
                self._change.notify_all()
        return parts[0] if len(parts) == 1 else b"".join(parts)


def _tiff_header(width: int, height: int, channels: int, depth: int, strip_rows: int) -> bytes:
    """The head of an uncompressed BigTIFF: directory and strip tables; the strips follow in order (TIFF 6.0)."""
    order = "<" if sys.byteorder == "little" else ">"
    row = width * channels * depth // 8
    tops = range(0, height, strip_rows)
    short, long, long8 = ("H", 3), ("I", 4), ("Q", 16)
    tags: list[tuple[int, tuple[str, int], list[int]]] = [
        (256, long, [width]),
        (257, long, [height]),
        (258, short, [depth] * channels),
        (259, short, [1]),  # no compression
        (262, short, [2 if channels >= 3 else 1]),  # RGB, or grey with 0 as black
        (273, long8, [top * row for top in tops]),  # strip offsets, made absolute below
        (277, short, [channels]),
        (278, long, [strip_rows]),
        (279, long8, [min(strip_rows, height - top) * row for top in tops]),
        (284, short, [1]),  # samples of a pixel lie together
    ]
    if channels in (2, 4):
        tags.append((338, short, [2]))  # the last sample is alpha, not multiplied in

    sizes = [struct.calcsize(order + kind * len(values)) for _, (kind, _), values in tags]
    tables = 16 + 8 + 20 * len(tags) + 8  # file header, tag count, tags, end of directories
    pixels = -(-(tables + sum(size for size in sizes if size > 8)) // 16) * 16

    directory, outside = struct.pack(order + "Q", len(tags)), b""
    for (tag, (kind, code), values), size in zip(tags, sizes, strict=True):
        absolute = [pixels + value for value in values] if tag == 273 else values
        packed = struct.pack(order + kind * len(values), *absolute)
        if size > 8:
            field, outside = struct.pack(order + "Q", tables + len(outside)), outside + packed
        else:
            field = packed.ljust(8, b"\0")
        directory += struct.pack(order + "HHQ", tag, code, len(values)) + field
    directory += struct.pack(order + "Q", 0)
    start = (b"II" if order == "<" else b"MM") + struct.pack(order + "HHHQ", 43, 8, 0, 16)
    return (start + directory + outside).ljust(pixels, b"\0")
