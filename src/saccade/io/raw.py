"""RAW files in, through LibRaw (extra ``raw``), and minimal DNG files out.

    NEF, CR2, ARW, DNG, ... -- LibRaw: unpack only --> RawPicture: the sensor's plane and what the camera noted
    plane (H, W) uint16 + black, white, pattern, colour matrix, neutral -- `write_dng` --> DNG 1.4, uncompressed

LibRaw decodes; it develops nothing here. Only Bayer sensors are read. Files are not trusted: size and pattern are
checked before any pixel is unpacked, and LibRaw's memory is bounded.
"""

from __future__ import annotations

import contextlib
import datetime
import math
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from saccade.errors import InputError, UnavailableError, UsageError, first_line
from saccade.io.files import check_target, first_bytes, reason, temporary_beside
from saccade.io.finding import find_files

__all__ = ["RAW_SUFFIXES", "RawPicture", "find_raws", "read_raw", "write_dng"]

_MAKES = "dng nef nrw cr2 cr3 crw arw srf sr2 raf orf rw2 raw pef srw 3fr fff iiq mos erf mrw dcr kdc mef rwl gpr cap"
RAW_SUFFIXES = frozenset("." + name for name in _MAKES.split(" "))
PIXELS_PER_BYTE = 64  # no camera packs more into a byte; a file that declares more is damaged or hostile
MEMORY = 2048  # megabytes that LibRaw may take for one plane

#: kinds of pictures that are no RAW, by their first bytes
_PICTURES = {b"\xff\xd8\xff": "JPEG", b"\x89PNG": "PNG", b"GIF8": "GIF", b"RIFF": "WebP", b"BM": "BMP", b"%PDF": "PDF"}


@dataclass(frozen=True)
class RawPicture:
    """What a RAW file holds.

    Attributes:
        path: the file.
        plane: (H, W) uint16, the visible part of the sensor, even sides, as stored (not turned).
        pattern: Bayer pattern of its first cell, e.g. ``rggb``.
        black: levels of the four places of a cell.
        white: level of saturation.
        gains: white balance that the camera chose, factors of red, green and blue, or None.
        daylight: the same for daylight, or None.
        camera_to_rgb: (3, 3) float64, camera colours after white balance to linear sRGB, rows sum to 1; None where the
            camera is unknown.
        flip: how to turn the picture upright: 0, 3 (half), 5 (a quarter left) or 6 (a quarter right).
        tags: EXIF for what is made of it, as libvips names it.
        notices: what was left out, one sentence each.
    """

    path: Path
    plane: np.ndarray
    pattern: str
    black: tuple[float, float, float, float]
    white: float
    gains: tuple[float, float, float] | None
    daylight: tuple[float, float, float] | None
    camera_to_rgb: np.ndarray | None
    flip: int = 0
    tags: dict[str, str] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)

    def packed(self, top: int = 0, rows: int | None = None) -> np.ndarray:
        """Cells ``top`` to ``top + rows`` as (4, rows, W/2) float32: less black level, over the white level's range.

        At most 1; a little below 0 where noise lies below the black level.
        """
        part = self.plane[2 * top : None if rows is None else 2 * (top + rows)]
        cells = part.reshape(len(part) // 2, 2, -1, 2).transpose(1, 3, 0, 2).reshape(4, len(part) // 2, -1)
        black = np.array(self.black, np.float32)[:, None, None]
        return np.minimum((cells.astype(np.float32) - black) / (np.float32(self.white) - black), np.float32(1))


def _rawpy() -> Any:
    try:
        import rawpy
    except ImportError as error:
        raise UnavailableError.extra("reading RAW files", "raw") from error
    return rawpy


@contextlib.contextmanager
def _explained(path: Path, rawpy: Any) -> Iterator[None]:
    """What LibRaw says, as one line about the file."""
    try:
        yield
    except InputError:  # said already
        raise
    except rawpy.LibRawFileUnsupportedError as error:
        raise InputError(f"cannot read {path}: it is no RAW file that LibRaw knows") from error
    except (rawpy.LibRawTooBigError, rawpy.LibRawUnsufficientMemoryError, MemoryError) as error:
        raise InputError(f"cannot read {path}: it asks for more than {MEMORY} MB; it is damaged or hostile") from error
    except rawpy.LibRawIOError as error:
        raise InputError(f"cannot read {path}: it ends early or is damaged (truncated RAW)") from error
    except (
        rawpy.LibRawError,
        rawpy.NotSupportedError,
        NotImplementedError,  # rawpy's own, of a colour filter array that it has no name for
        ValueError,
        OverflowError,
        OSError,
    ) as error:
        words = error.args[0] if error.args else error
        text = words.decode(errors="replace") if isinstance(words, bytes) else first_line(error)
        raise InputError(f"cannot read {path}: the RAW data is damaged or of a kind not known ({text})") from error


def read_raw(path: str | os.PathLike[str], *, max_pixels: int = 400_000_000) -> RawPicture:
    """Read a RAW file of a Bayer sensor.

    Args:
        path: of any make that LibRaw decodes.
        max_pixels: a file that declares more is refused before it is unpacked.

    Raises:
        InputError: missing, empty, text or an ordinary picture, of another kind of sensor, damaged, truncated, or
            larger than ``max_pixels`` or than a file of its size can hold.
        UnavailableError: the extra ``raw`` is not installed.
    """
    path = Path(path)
    _refuse_others(path, first_bytes(path, 64))
    rawpy = _rawpy()
    raw = rawpy.RawPy()
    with _explained(path, rawpy):
        try:
            raw.open_file(os.fspath(path))
            _check_size(path, raw.sizes, max_pixels)
            _unpack(raw)
            return _collected(path, raw, rawpy)
        finally:
            raw.close()


def _refuse_others(path: Path, head: bytes) -> None:
    for start, name in _PICTURES.items():
        if head.startswith(start):
            raise InputError(f"cannot read {path}: it holds a {name}, developed already; RAW files are read here")
    text = head.decode("utf-8", "ignore")
    if len(text.encode()) >= len(head) - 3 and all(c.isprintable() or c in "\r\n\t\ufeff" for c in text):
        raise InputError(f"cannot read {path}: it holds text, no RAW")


def _check_size(path: Path, sizes: Any, max_pixels: int) -> None:
    pixels, size = sizes.raw_width * sizes.raw_height, path.stat().st_size
    declares = f"cannot read {path}: it declares {sizes.raw_width} x {sizes.raw_height} px"
    if pixels > max_pixels:
        raise InputError(f"{declares}, more than the limit of {max_pixels / 1e6:g} megapixels (max_pixels)")
    if pixels > size * PIXELS_PER_BYTE or min(sizes.width, sizes.height) < 2:
        raise InputError(f"{declares}, {sizes.width} x {sizes.height} of them visible, in {size} bytes: it is damaged")


def _unpack(raw: Any) -> None:
    with contextlib.suppress(AttributeError, TypeError):
        raw.set_unpack_params(max_raw_memory_mb=MEMORY)
    raw.unpack()


def _collected(path: Path, raw: Any, rawpy: Any) -> RawPicture:
    if raw.raw_type != rawpy.RawType.Flat or raw.raw_pattern is None or raw.raw_pattern.shape != (2, 2):
        raise InputError(f"cannot read {path}: its sensor has no Bayer pattern; X-Trans and Foveon are not read")
    sizes, letters = raw.sizes, raw.color_desc.decode("ascii", "replace").lower()
    indices = [int(raw.raw_color(sizes.top_margin + y, sizes.left_margin + x)) for y in (0, 1) for x in (0, 1)]
    pattern = "".join(letters[i] if 0 <= i < len(letters) else "?" for i in indices)
    if pattern not in ("rggb", "bggr", "grbg", "gbrg"):
        raise InputError(f"cannot read {path}: its cells are {pattern}, no Bayer pattern of red, green and blue")
    plane = raw.raw_image_visible
    if plane is None or plane.ndim != 2 or plane.dtype != np.uint16:
        raise InputError(f"cannot read {path}: its samples are no 16-bit integers")
    notices = []
    height, width = (n - n % 2 for n in plane.shape)
    if (height, width) != plane.shape:
        notices.append(f"{path}: the last row or column is left out, so that sides are even")
    levels = list(raw.black_level_per_channel)
    black = tuple(float(levels[i]) for i in indices)
    white = float(raw.white_level or 0)
    if not white > max(black):
        raise InputError(f"cannot read {path}: its white level {white:g} is not above its black level {max(black):g}")
    matrix = np.asarray(raw.color_matrix, np.float64)[:, :3]  # LibRaw's, also for DNG, whose XYZ matrix it hides
    known = matrix.shape == (3, 3) and bool(np.isfinite(matrix).all()) and abs(np.linalg.det(matrix)) > 1e-3
    known = known and bool((abs(matrix.sum(1) - 1) < 0.01).all())
    return RawPicture(
        path,
        np.array(plane[:height, :width]),  # a copy: LibRaw's own goes with it
        pattern,
        (black[0], black[1], black[2], black[3]),
        white,
        _gains(raw.camera_whitebalance),
        _gains(raw.daylight_whitebalance),
        matrix if known else None,
        int(sizes.flip) if sizes.flip in (3, 5, 6) else 0,
        _tags(raw),
        notices,
    )


def _gains(multipliers: Sequence[float]) -> tuple[float, float, float] | None:
    """Factors with green 1, or None where the camera noted none."""
    red, green, blue = (float(v) for v in multipliers[:3])
    if not all(math.isfinite(v) and v > 0 for v in (red, green, blue)):
        return None
    found = (red / green, 1.0, blue / green)
    return found if max(found) < 100 and min(found) > 0.01 else None


def _tags(raw: Any) -> dict[str, str]:
    """EXIF that tells of the exposure; what LibRaw does not know is left out."""
    other, made = getattr(raw, "other", None), dict[str, str]()
    if other is None:
        return made
    speed, shutter, aperture, focal = (
        float(getattr(other, name, 0) or 0) for name in ("iso_speed", "shutter_speed", "aperture", "focal_length")
    )
    if 0 < speed < 1e7:
        made["exif-ifd2-ISOSpeedRatings"] = f"{speed:.0f}"
    for name, value in (("ExposureTime", shutter), ("FNumber", aperture), ("FocalLength", focal)):
        if 0 < value < 1e5:
            made[f"exif-ifd2-{name}"] = f"{round(value * 10000)}/10000"
    moment = getattr(other, "timestamp", None)
    if isinstance(moment, datetime.datetime) and moment.year > 1970:  # earlier: the file has none
        made["exif-ifd2-DateTimeOriginal"] = moment.strftime("%Y:%m:%d %H:%M:%S")
    return made


def find_raws(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Files, folders and globs as a list of files, each once, as `find_pictures` does for pictures.

    Raises:
        InputError: nothing of that name, or no RAW file in that folder.
    """
    return find_files(paths, RAW_SUFFIXES, "RAW files")


# --- writing -------------------------------------------------------------------------------------------------------

_BYTE, _ASCII, _SHORT, _LONG, _RATIONAL, _SRATIONAL = 1, 2, 3, 4, 5, 10
_PACKING = {_BYTE: "B", _ASCII: "B", _SHORT: "H", _LONG: "I", _RATIONAL: "II", _SRATIONAL: "ii"}
_STRIP = 1 << 20  # bytes of a strip


def write_dng(
    path: str | os.PathLike[str],
    plane: np.ndarray,
    *,
    pattern: str = "rggb",
    black: int = 0,
    white: int = 65535,
    xyz_to_camera: np.ndarray,
    neutral: Sequence[float],
    camera: str = "saccade",
    overwrite: bool = False,
) -> None:
    """Write a minimal DNG 1.4: one uncompressed 16-bit Bayer plane, whole or not at all.

    Args:
        plane: (H, W) uint16, even sides.
        pattern: of its first cell.
        black, white: levels.
        xyz_to_camera: (3, 3), ColorMatrix1 at D65: XYZ to camera colours as the sensor gives them.
        neutral: what the sensor gives for white, AsShotNeutral: 1 over the white balance's factors.
        camera: its name, ASCII.

    Raises:
        UsageError: a plane, pattern, level or matrix that no DNG can hold.
        InputError: the file exists, or cannot be written.
    """
    path = Path(path)
    if plane.ndim != 2 or plane.dtype != np.uint16 or plane.size == 0 or plane.shape[0] % 2 or plane.shape[1] % 2:
        raise UsageError(f"a DNG takes a plane (H, W) of uint16 with even sides, not {plane.shape} {plane.dtype}")
    if plane.nbytes > 0xF000_0000:
        raise UsageError(f"a DNG ends at 4 GB; {plane.shape[1]} x {plane.shape[0]} px is more")
    if sorted(pattern) != sorted("rggb") or not 0 <= black < white <= 65535:
        raise UsageError(f"no DNG with pattern {pattern!r}, black {black} and white {white}")
    matrix, shot = np.asarray(xyz_to_camera, np.float64), np.asarray(neutral, np.float64)
    if matrix.shape != (3, 3) or shot.shape != (3,) or not (np.isfinite(matrix).all() and (shot > 0).all()):
        raise UsageError("a DNG takes a colour matrix (3, 3) and three positive neutrals")
    check_target(path, overwrite)
    temporary = temporary_beside(path)
    try:
        with temporary.open("wb") as file:
            file.write(_dng_head(plane.shape, pattern, black, white, matrix, shot, camera))
            rows = max(1, _STRIP // (2 * plane.shape[1]))
            for top in range(0, len(plane), rows):
                file.write(np.ascontiguousarray(plane[top : top + rows], "<u2").tobytes())
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {reason(error)}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _dng_head(
    shape: tuple[int, ...],
    pattern: str,
    black: int,
    white: int,
    matrix: np.ndarray,
    neutral: np.ndarray,
    camera: str,
) -> bytes:
    """File header and directory (TIFF 6.0, DNG 1.4 chapter 4); the strips follow it."""
    height, width = shape
    rows = max(1, _STRIP // (2 * width))
    tops = range(0, height, rows)
    name = [*camera.encode("ascii", "replace"), 0]
    tags: list[tuple[int, int, list[int]]] = [
        (254, _LONG, [0]),  # the main picture
        (256, _LONG, [width]),
        (257, _LONG, [height]),
        (258, _SHORT, [16]),
        (259, _SHORT, [1]),  # no compression
        (262, _SHORT, [32803]),  # colour filter array
        (271, _ASCII, name),
        (272, _ASCII, name),
        (273, _LONG, [2 * top * width for top in tops]),  # made absolute below
        (274, _SHORT, [1]),  # upright
        (277, _SHORT, [1]),
        (278, _LONG, [rows]),
        (279, _LONG, [2 * min(rows, height - top) * width for top in tops]),
        (284, _SHORT, [1]),
        (305, _ASCII, [*b"saccade", 0]),
        (33421, _SHORT, [2, 2]),
        (33422, _BYTE, ["rgb".index(c) for c in pattern]),
        (50706, _BYTE, [1, 4, 0, 0]),
        (50707, _BYTE, [1, 1, 0, 0]),
        (50708, _ASCII, name),
        (50710, _BYTE, [0, 1, 2]),
        (50711, _SHORT, [1]),  # rectangular
        (50713, _SHORT, [1, 1]),
        (50714, _SHORT, [black]),
        (50717, _LONG, [white]),
        (50721, _SRATIONAL, [n for v in matrix.flatten() for n in (round(v * 1_000_000), 1_000_000)]),
        (50728, _RATIONAL, [n for v in neutral for n in (round(v * 1_000_000), 1_000_000)]),
        (50778, _SHORT, [21]),  # D65
    ]
    packed = [struct.pack(f"<{_PACKING[kind][0] * len(values)}", *values) for _, kind, values in tags]
    start = 8 + 2 + 12 * len(tags) + 4
    pixels = start + sum(-(-len(data) // 2) * 2 for data in packed if len(data) > 4)
    directory, outside = struct.pack("<H", len(tags)), b""
    for (tag, kind, values), data in zip(tags, packed, strict=True):
        if tag == 273:
            data = struct.pack(f"<{len(values)}I", *(pixels + v for v in values))
        count = len(values) // len(_PACKING[kind])
        if len(data) > 4:
            place, outside = start + len(outside), outside + data + b"\0" * (len(data) % 2)
            field_ = struct.pack("<I", place)
        else:
            field_ = data.ljust(4, b"\0")
        directory += struct.pack("<HHI", tag, kind, count) + field_
    return b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<I", 0) + outside
