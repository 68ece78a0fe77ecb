"""A decoded picture on disc, in tiles, so that any rectangle of it can be read with little memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable

import numpy as np

__all__ = ["Spool"]

TILE = 128


class Spool:
    """Pixels of one picture in an unnamed temporary file (in ``TMPDIR``), as tiles of 128 x 128.

    A rectangle costs one read for each tile that it touches, whether it lies along rows or along columns. The file
    takes width x height x channels x bytes of disc and disappears with the object.

    Args:
        height, width, channels: shape of the picture.
        dtype: of its samples.
        bands: consecutive strips, (TILE, width, channels) each; the last may be lower.
    """

    def __init__(self, height: int, width: int, channels: int, dtype: np.dtype, bands: Iterable[np.ndarray]) -> None:
        self.shape = (height, width, channels)
        self._dtype = dtype
        self._file = tempfile.TemporaryFile(prefix="saccade-")  # noqa: SIM115 (lives as long as the object)
        try:
            for band in bands:
                for left in range(0, width, TILE):
                    self._file.write(band[:, left : left + TILE].tobytes())
        except BaseException:
            self.close()
            raise

    def read(self, left: int, top: int, width: int, height: int) -> np.ndarray:
        """The rectangle, (height, width, channels)."""
        full_height, full_width, channels = self.shape
        pixel = channels * self._dtype.itemsize
        out = np.empty((height, width, channels), self._dtype)
        for band in range(top // TILE * TILE, top + height, TILE):
            rows = min(TILE, full_height - band)
            first, last = max(top, band), min(top + height, band + rows)
            for tile in range(left // TILE * TILE, left + width, TILE):
                columns = min(TILE, full_width - tile)
                start, stop = max(left, tile), min(left + width, tile + columns)
                # every band before this one is TILE rows high, every tile before this one is TILE columns wide
                self._file.seek((band * full_width + tile * rows) * pixel + (first - band) * columns * pixel)
                data = np.fromfile(self._file, self._dtype, (last - first) * columns * channels)
                part = data.reshape(last - first, columns, channels)
                out[first - top : last - top, start - left : stop - left] = part[:, start - tile : stop - tile]
        return out

    def close(self) -> None:
        """Give the disc back."""
        self._file.close()
