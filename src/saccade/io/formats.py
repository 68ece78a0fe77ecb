"""The picture formats that are known here: what each can hold, and the libvips operations that read and write it.

libvips' operation cache is switched off in this process: it would keep files open after their reader is closed.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from types import ModuleType
from typing import TypeAlias

import numpy as np

__all__ = ["BY_SUFFIX", "FORMATS", "PICTURE_SUFFIXES", "Format", "Pixels", "last_line", "libvips"]

Pixels: TypeAlias = tuple[np.ndarray, np.ndarray | None]  # (h, w, C) colour, (h, w) alpha or None


@dataclass(frozen=True)
class Format:
    """What a file format can hold, and the libvips operations that read and write it."""

    name: str
    suffixes: tuple[str, ...]
    loader: str
    saver: str | None
    longest_side: int  # what its header, or its encoder, can count to
    alpha: bool
    depth: int  # most bits of a sample that it keeps
    grey: bool  # whether grey stays one channel
    pixels_per_byte: int  # more than this cannot be encoded: deflate's 1032:1 at 1 bit a pixel, 2 bits a JPEG block
    resident_bytes: int  # bytes a pixel that the decoder holds for the whole picture


FORMATS = {
    "jpeg": Format(
        "JPEG", (".jpg", ".jpeg", ".jpe", ".jfif"), "jpegload", "jpegsave", 65500, False, 8, True, 1 << 14, 0
    ),
    "png": Format("PNG", (".png",), "pngload", "pngsave", 2**31 - 1, True, 16, True, 8 * 1040, 0),
    "webp": Format("WebP", (".webp",), "webpload", "webpsave", 16383, True, 8, False, 1 << 40, 4),
    "tiff": Format("TIFF", (".tif", ".tiff"), "tiffload", "tiffsave", 2**31 - 1, True, 16, True, 1 << 40, 0),
    "gif": Format("GIF", (".gif",), "gifload", None, 65535, True, 8, True, 1 << 40, 8),
    "avif": Format("AVIF", (".avif",), "heifload", "heifsave", 16384, True, 12, False, 1 << 40, 6),
    "heic": Format("HEIC", (".heic", ".heif"), "heifload", "heifsave", 16384, True, 12, False, 1 << 40, 6),
}
BY_SUFFIX = {suffix: key for key, kind in FORMATS.items() for suffix in kind.suffixes}
PICTURE_SUFFIXES = frozenset(BY_SUFFIX)


@functools.cache
def libvips() -> ModuleType:
    """The library, loaded when first asked for."""
    import pyvips

    pyvips.cache_set_max(0)
    return pyvips


def last_line(text: str) -> str:
    """The last thing that libvips said, in one line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
