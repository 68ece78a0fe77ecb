"""Pictures in and out through libvips, a strip of rows at a time, so that memory does not grow with the picture.

    file -- header -- checks -- decoder -- orientation -- PictureReader: (h, W, C) colour, (h, W) alpha
    (h, W, C) colour, (h, W) alpha -- PictureWriter -- queue -- encoder thread -- temporary file -- rename

What a picture is stays what it is: grey stays grey, 16 bits stay 16 bits, alpha travels apart from colour and is never
multiplied in, the ICC profile, EXIF and XMP go to the output. What cannot stay (CMYK, float samples, animation) is
converted with a notice in `PictureReader.notices`.

Memory while reading: a few strips for JPEG, PNG and TIFF. Progressive JPEG (up to 6 bytes a pixel), interlaced PNG,
GIF, WebP and AVIF/HEIC (about 4) are held whole by their decoders; a notice says so when it comes to much. Pictures
that EXIF turns, and `read_region`, go through a `Spool` on disc (`TMPDIR`) of the size of the decoded picture.

libvips' operation cache is switched off in this process: it would keep files open after their reader is closed.
"""

from __future__ import annotations

import functools
import glob
import os
import re
import threading
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, TypeAlias

import numpy as np

from saccade.errors import InputError, UnavailableError, UsageError
from saccade.io.feed import BrokenFeedError, RowFeed
from saccade.io.files import check_target, first_bytes, reason, temporary_beside
from saccade.io.spool import TILE, Spool

__all__ = [
    "PICTURE_SUFFIXES",
    "VIDEO_SUFFIXES",
    "PictureReader",
    "PictureWriter",
    "create_picture",
    "find_pictures",
    "is_video",
    "open_picture",
    "read_picture",
    "save_picture",
]

Pixels: TypeAlias = tuple[np.ndarray, np.ndarray | None]  # (h, w, C) colour, (h, w) alpha or None


@dataclass(frozen=True)
class _Format:
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


_FORMATS = {
    "jpeg": _Format(
        "JPEG", (".jpg", ".jpeg", ".jpe", ".jfif"), "jpegload", "jpegsave", 65500, False, 8, True, 1 << 14, 0
    ),
    "png": _Format("PNG", (".png",), "pngload", "pngsave", 2**31 - 1, True, 16, True, 8 * 1040, 0),
    "webp": _Format("WebP", (".webp",), "webpload", "webpsave", 16383, True, 8, False, 1 << 40, 4),
    "tiff": _Format("TIFF", (".tif", ".tiff"), "tiffload", "tiffsave", 2**31 - 1, True, 16, True, 1 << 40, 0),
    "gif": _Format("GIF", (".gif",), "gifload", None, 65535, True, 8, True, 1 << 40, 8),
    "avif": _Format("AVIF", (".avif",), "heifload", "heifsave", 16384, True, 12, False, 1 << 40, 6),
    "heic": _Format("HEIC", (".heic", ".heif"), "heifload", "heifsave", 16384, True, 12, False, 1 << 40, 6),
}
_BY_SUFFIX = {suffix: key for key, kind in _FORMATS.items() for suffix in kind.suffixes}
PICTURE_SUFFIXES = frozenset(_BY_SUFFIX)
VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv", ".flv"})

# EXIF orientation -> (transpose, flip rows, flip columns) that makes the stored picture upright, in this order
_TURNS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}
_TRUNCATED = re.compile(
    r"premature end|truncat|unexpected end|end of file|bad seek|eof|outside of file|read error|not enough"
    r"|unable to parse image|insufficient data",
    re.IGNORECASE,
)
_NOTABLE_MEMORY = 256 << 20


@functools.cache
def _vips() -> ModuleType:
    import pyvips

    pyvips.cache_set_max(0)
    return pyvips


# --- reading -------------------------------------------------------------------------------------------------------


def open_picture(path: str | os.PathLike[str], *, max_pixels: int = 4_000_000_000) -> PictureReader:
    """Open a picture: its header is read and checked, no pixel is decoded.

    Args:
        path: a JPEG, PNG, WebP, TIFF, GIF, AVIF or HEIC file; what it is told from its first bytes, not its name.
        max_pixels: a picture that declares more is refused.

    Raises:
        InputError: missing, a directory, empty, no picture, damaged, or larger than ``max_pixels`` or than a file of
            its size can hold.
    """
    path = Path(path)
    head = first_bytes(path, 64)
    key = _sniff(head)
    if key is None:
        holds = "it holds text" if _is_text(head) else "its first bytes are of no picture format known here"
        raise InputError(f"cannot read {path}: {holds}; JPEG, PNG, WebP, TIFF, GIF, AVIF and HEIC are read")
    return PictureReader(path, key, max_pixels)


class PictureReader:
    """An open picture; made by `open_picture`. All attributes stay valid after `close`.

    One thread at a time may read from it.

    Attributes:
        path, format: the file, and ``"jpeg"``, ``"png"``, ``"webp"``, ``"tiff"``, ``"gif"``, ``"avif"`` or ``"heic"``.
        width, height: in pixels, upright (after EXIF orientation).
        bands: colour channels, 1 or 3, alpha not counted.
        has_alpha: whether `alpha` comes with the pixels.
        dtype: ``"uint8"`` or ``"uint16"``.
        pages: frames or pages in the file; the first is read.
        icc: the ICC profile of the pixels as they are handed out, or None.
        notices: what was converted or left out, one sentence each.
    """

    def __init__(self, path: Path, key: str, max_pixels: int) -> None:
        self.path, self.format, self.notices = path, key, list[str]()
        self._kind, self._size = _FORMATS[key], path.stat().st_size
        image = self._load()
        self._check_size(image, max_pixels)
        orientation = _get(image, "orientation", 1)
        self._turn = _TURNS.get(orientation, _TURNS[1])
        self.pages = int(_get(image, "n-pages", 1))
        if self.pages > 1:
            self.notices.append(f"{path} holds {self.pages} frames or pages: the first one is read")
        resident = 6 if _get(image, "jpeg-multiscan", 0) or _get(image, "interlaced", 0) else self._kind.resident_bytes
        if resident * image.width * image.height > _NOTABLE_MEMORY:
            megabytes = resident * image.width * image.height / 1e6
            self.notices.append(
                f"{path}: a {self._kind.name} of this kind is decoded whole, in about {megabytes:.0f} MB"
            )

        image, said = self._standard(image)
        self.notices += said
        self.bands = 1 if image.bands < 3 else 3
        self.has_alpha = image.bands in (2, 4)
        self.dtype = "uint16" if image.format == "ushort" else "uint8"
        self._stored = (image.height, image.width, image.bands)  # as in the file, before turning
        self.width, self.height = image.width, image.height
        if self._turn[0]:
            self.width, self.height = self.height, self.width
        self._tags = _tags(image)
        self.icc: bytes | None = next((value for name, _, value in self._tags if name == "icc-profile-data"), None)
        self.resolution = (image.xres, image.yres)  # pixels per millimetre
        self._image: Any = image
        self._next = 0  # stored row that the decoder gives next
        self._spool: Spool | None = None

    def __enter__(self) -> PictureReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back the file, the decoder and the disc."""
        self._image = None
        if self._spool is not None:
            self._spool.close()
            self._spool = None

    def strips(self, rows: int = 128) -> Iterator[Pixels]:
        """The whole picture from top to bottom, ``rows`` rows at a time (the last strip may be lower)."""
        for top in range(0, self.height, rows):
            yield self.read_rows(top, min(rows, self.height - top))

    def read_rows(self, top: int, height: int) -> Pixels:
        """Rows ``top`` to ``top + height``: colour (height, width, bands) and alpha (height, width) or None.

        Each call that starts where the last one ended streams from the decoder; rows may be skipped forwards too.
        A turned picture, or a step back, goes through the spool on disc.

        Raises:
            InputError: rows outside the picture; or the file turns out to be truncated or damaged here.
        """
        self._check_inside(0, top, self.width, height)
        if self._spool is None and top >= self._next and self._turn[:2] == (False, False):
            pixels = self._decode(top, height)
            return self._split(pixels[:, ::-1] if self._turn[2] else pixels)
        return self.read_region(0, top, self.width, height)

    def read_region(self, left: int, top: int, width: int, height: int) -> Pixels:
        """The rectangle, colour (height, width, bands) and alpha (height, width) or None, in any order of calls.

        The first call decodes the whole picture to disc. Raises InputError as `read_rows` does.
        """
        self._check_inside(left, top, width, height)
        if self._spool is None:
            self._restart()
            full_height, full_width, channels = self._stored
            bands = (self._decode(y, min(TILE, full_height - y)) for y in range(0, full_height, TILE))
            try:
                self._spool = Spool(full_height, full_width, channels, np.dtype(self.dtype), bands)
            except OSError as error:
                raise InputError(
                    f"cannot spool {self.path} to disc: {reason(error)}; set TMPDIR to more room"
                ) from None
        transpose, flip_rows, flip_columns = self._turn
        row = self.height - top - height if flip_rows else top
        column = self.width - left - width if flip_columns else left
        if transpose:
            pixels = self._spool.read(row, column, height, width).transpose(1, 0, 2)
        else:
            pixels = self._spool.read(column, row, width, height)
        return self._split(pixels[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1])

    # -- inside

    def _load(self) -> Any:
        """A fresh sequential decoder, at the header."""
        vips = _vips()
        try:
            # a source, not a file name: libvips reads options from names that end with brackets
            source = vips.Source.new_from_file(os.fspath(self.path))
            return vips.Operation.call(f"{self._kind.loader}_source", source, access="sequential", fail_on="error")
        except vips.Error as error:
            raise self._failure(error, 0, 0) from None

    def _standard(self, image: Any) -> tuple[Any, list[str]]:
        try:
            return _standard(image, self.path)
        except _vips().Error as error:
            raise self._failure(error, 0, 0) from None

    def _restart(self) -> None:
        if self._next:
            self._image, self._next = self._standard(self._load())[0], 0

    def _decode(self, top: int, height: int) -> np.ndarray:
        """Stored rows, (height, stored width, channels), in order."""
        if self._image is None:
            raise UsageError(f"{self.path} is closed")
        _, width, channels = self._stored
        vips = _vips()
        # a region, not a threaded pipeline: rows are asked for in order, which sequential decoders rely on
        try:
            data = vips.Region.new(self._image).fetch(0, top, width, height)
        except vips.Error as error:
            raise self._failure(error, top, height) from None
        self._next = top + height
        return np.frombuffer(data, self.dtype).reshape(height, width, channels)

    def _split(self, pixels: np.ndarray) -> Pixels:
        alpha = np.ascontiguousarray(pixels[..., self.bands]) if self.has_alpha else None
        return np.ascontiguousarray(pixels[..., : self.bands]), alpha

    def _check_size(self, image: Any, max_pixels: int) -> None:
        pixels = image.width * image.height
        declares = f"cannot read {self.path}: it declares {image.width} x {image.height} px"
        if pixels > max_pixels:
            raise InputError(f"{declares}, more than the limit of {max_pixels / 1e6:g} megapixels (max_pixels)")
        if pixels > self._size * self._kind.pixels_per_byte:
            raise InputError(f"{declares}, which cannot fit in its {_count(self._size)} bytes ({self._kind.name})")

    def _check_inside(self, left: int, top: int, width: int, height: int) -> None:
        inside = 0 <= left < left + width <= self.width and 0 <= top < top + height <= self.height
        if not inside:
            where = f"{width} x {height} px at ({left}, {top})"
            raise UsageError(f"no region of {where} in {self.path}, which is {self.width} x {self.height} px")

    def _failure(self, error: Exception, top: int, height: int) -> InputError:
        """What libvips said about rows ``top`` to ``top + height``, as one line for the user."""
        details = str(getattr(error, "detail", "") or error)
        name = self._kind.name
        if not self.path.exists():
            return InputError(f"cannot read {self.path}: the file has gone")
        # libvips keeps one record of errors for all threads: where another one took the reason, the file itself tells
        reason_lost = "unable to fetch from region" in details
        if (_TRUNCATED.search(details) or reason_lost) and self._ends_early(sure=reason_lost):
            about = f" of about {_count(round(self._size * self._stored[0] / (top + height / 2), -3))}" if top else ""
            return InputError(
                f"cannot read {self.path}: it ends after {_count(self._size)}{about} bytes (truncated {name})"
            )
        if "compression" in details.lower() or "codec" in details.lower() or "decoder" in details.lower():
            return InputError(
                f"cannot read {self.path}: this build of libvips cannot decode it ({_last_line(details)})"
            )
        return InputError(f"cannot read {self.path}: the {name} data is damaged ({_last_line(details)})")

    def _ends_early(self, *, sure: bool = False) -> bool:
        """Whether the file itself shows where it should end, and ends before; where it does not show, not ``sure``."""
        if self.format not in ("png", "webp", "jpeg"):
            return not sure
        with self.path.open("rb") as file:
            if self.format == "jpeg":
                file.seek(max(0, self._size - 4096))
                return not sure or b"\xff\xd9" not in file.read()  # the marker of the end
            if self.format == "webp":
                return int.from_bytes(file.read(8)[4:], "little") + 8 > self._size
            place = 8
            while place + 12 <= self._size:  # PNG: length, name, data, checksum
                file.seek(place)
                chunk = file.read(8)
                place += 12 + int.from_bytes(chunk[:4], "big")
                if chunk[4:] == b"IEND":
                    return place > self._size
        return True


def _sniff(head: bytes) -> str | None:
    """The format that these first bytes announce."""
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "webp"
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "tiff"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if head[4:8] == b"ftyp":
        brands = {head[i : i + 4] for i in range(8, len(head), 4)}
        if brands & {b"avif", b"avis"}:
            return "avif"
        if brands & {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}:
            return "heic"
    return None


def _is_text(head: bytes) -> bool:
    text = head.decode("utf-8", "ignore")
    return len(text.encode()) >= len(head) - 3 and all(c.isprintable() or c in "\r\n\t\ufeff" for c in text)


def _standard(image: Any, path: Path) -> tuple[Any, list[str]]:
    """The picture as 1, 2, 3 or 4 channels of 8 or 16 bits, grey or RGB with alpha last, and what was done to it."""
    notices = []
    space, sample = image.interpretation, image.format
    if sample in ("complex", "dpcomplex"):
        raise InputError(f"cannot read {path}: its samples are complex numbers")
    if space == "cmyk":
        image = image.icc_transform("srgb", embedded=True, input_profile="cmyk", intent="relative")
        notices.append(f"{path} is CMYK: converted to sRGB")
    elif space in ("lab", "labs", "labq", "lch", "cmc", "xyz", "yxy", "hsv"):
        image = image.colourspace("srgb" if sample in ("uchar", "char") else "rgb16")
        notices.append(f"{path} is {space.upper()}: converted to sRGB")
    elif sample in ("float", "double"):
        image = (image * 65535).rint()
        notices.append(f"{path} has floating-point samples: taken as 0 to 1 and kept in 16 bits")
    elif sample == "uint":
        image = (image / 65537).rint()
        notices.append(f"{path} has 32-bit samples: kept in 16 bits")
    elif sample in ("char", "short", "int"):
        notices.append(f"{path} has signed samples: negative ones become 0")

    sample = image.format
    if sample not in ("uchar", "ushort"):
        image = image.cast("uchar" if sample == "char" else "ushort")
    if image.bands > 4:
        notices.append(f"{path} has {image.bands} channels: the first three are read")
        image = image.extract_band(0, n=3)
    return image, notices


def _tags(image: Any) -> list[tuple[str, int, Any]]:
    """What output is to inherit: profile, XMP, IPTC and EXIF without orientation and thumbnail, as libvips fields."""
    keep = ("icc-profile-data", "xmp-data", "iptc-data")
    drop = ("exif-ifd0-Orientation", "exif-ifd2-PixelXDimension", "exif-ifd2-PixelYDimension")
    names = [
        name
        for name in image.get_fields()
        if name in keep or (name.startswith("exif-") and not name.startswith("exif-ifd1-") and name not in drop)
    ]
    return [(name, image.get_typeof(name), image.get(name)) for name in names]


def _get(image: Any, name: str, default: int) -> int:
    return image.get(name) if image.get_typeof(name) else default


# --- writing -------------------------------------------------------------------------------------------------------


def create_picture(
    path: str | os.PathLike[str],
    width: int,
    height: int,
    *,
    bands: int = 3,
    has_alpha: bool = False,
    dtype: str = "uint8",
    like: PictureReader | None = None,
    format: str | None = None,  # noqa: A002 (the command line's own word)
    quality: int | None = None,
    compression: str | int | None = None,
    flatten: bool = False,
    overwrite: bool = False,
) -> PictureWriter:
    """Start a picture whose rows are given later, top to bottom; they are encoded while more are computed.

    Everything that would make the writing fail is checked here, before anything is computed. The picture appears
    under its name only when it is whole (`PictureWriter.close`).

    Memory: JPEG, PNG and TIFF are encoded as the rows come; the WebP and AVIF/HEIC encoders hold the whole picture
    (about 20 bytes a pixel for AVIF), which their largest side bounds.

    Args:
        path: the file; its suffix tells the format unless ``format`` does.
        width, height: in pixels.
        bands: colour channels, 1 or 3.
        has_alpha: whether alpha comes with the rows.
        dtype: of the rows, ``"uint8"`` or ``"uint16"``; formats with fewer bits get the nearest, with a notice.
        like: profile, EXIF, XMP and resolution are taken from this picture.
        format: ``"jpeg"``, ``"png"``, ``"webp"``, ``"tiff"``, ``"avif"`` or ``"heic"``.
        quality: 1 to 100 for the lossy formats; default JPEG 92 (4:4:4; 4:2:0 below 90), WebP 90, AVIF and HEIC 80.
        compression: PNG: level 0 to 9, default 2. TIFF: ``"deflate"`` (default), ``"lzw"`` or ``"none"``. WebP, AVIF
            and HEIC: ``"lossless"``.
        flatten: blend onto white where the format has no alpha.
        overwrite: replace a file of that name.

    Raises:
        InputError: the file exists, cannot be made there, or the format cannot hold such a picture.
        UsageError: an option out of its range.
        UnavailableError: this build of libvips lacks the encoder.
    """
    path = Path(path)
    key = _output_format(path, format)
    kind = _FORMATS[key]
    if bands not in (1, 3) or dtype not in ("uint8", "uint16") or width < 1 or height < 1:
        raise UsageError(f"no picture of {width} x {height} px with {bands} channels of {dtype} can be written")
    if max(width, height) > kind.longest_side:
        raise InputError(
            f"cannot write {path}: {width} x {height} px, but {kind.name} ends at {kind.longest_side} px a side; "
            "use png or tiff"
        )
    if has_alpha and not kind.alpha and not flatten:
        raise InputError(f"cannot write {path}: {kind.name} has no alpha; use png, webp or tiff, or flatten it")
    check_target(path, overwrite)
    options = _save_options(
        key, quality, compression, width * height * (bands + has_alpha) * (2 if dtype == "uint16" else 1)
    )
    if key in ("avif", "heic"):
        _require_encoder(key)
    return PictureWriter(path, key, (height, width, bands), has_alpha, dtype, like, options)


class PictureWriter:
    """A picture under way; made by `create_picture`. A context manager: an exception inside leaves nothing behind.

    Attributes:
        path, format: what is being written.
        notices: what the format could not hold, one sentence each.
    """

    def __init__(
        self,
        path: Path,
        key: str,
        shape: tuple[int, int, int],
        has_alpha: bool,
        dtype: str,
        like: PictureReader | None,
        options: dict[str, Any],
    ) -> None:
        self.path, self.format, self.notices = path, key, list[str]()
        self._kind = kind = _FORMATS[key]
        self._shape, self._has_alpha, self._dtype = shape, has_alpha, dtype
        self._row = 0
        if dtype == "uint16" and kind.depth < 16:
            self.notices.append(f"{path}: {kind.name} keeps {kind.depth} of the 16 bits")
        if has_alpha and not kind.alpha:
            self.notices.append(f"{path}: {kind.name} has no alpha: blended onto white")
        if like is not None and key == "tiff" and any(name.startswith("exif-ifd2") for name, *_ in like._tags):
            self.notices.append(f"{path}: EXIF is not carried to TIFF, profile and XMP are")

        height, width, bands = shape
        self._depth = 16 if dtype == "uint16" and kind.depth > 8 else 8
        self._feed = RowFeed(width, height, bands + (has_alpha and kind.alpha), self._depth)
        self._temporary = temporary_beside(path)
        self._encoder = _Encoder(self._feed, kind, options, self._temporary, like, bands)
        self._encoder.start()
        # also when the writer is forgotten, and at exit: stop the thread and remove the unfinished file
        self._discard = weakref.finalize(self, _discard, self._feed, self._encoder, self._temporary)

    def __enter__(self) -> PictureWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def write_rows(self, colour: np.ndarray, alpha: np.ndarray | None = None) -> None:
        """Append rows: colour (h, width, bands), or (h, width) for grey; alpha (h, width) where it was announced.

        Returns as soon as the rows are queued (a copy; the arrays may be used again); waits when the encoder is
        more than about 32 MB behind.

        Raises:
            UsageError: arrays of another shape or type than announced, or more rows than the picture has.
            InputError: the encoder failed, as on a full disc; the unfinished file is gone then.
        """
        height, width, bands = self._shape
        if not self._discard.alive:
            raise UsageError(f"{self.path} is closed")
        if colour.ndim == 2:
            colour = colour[..., None]
        rows = len(colour)
        right = colour.shape == (rows, width, bands) and colour.dtype == self._dtype and self._row + rows <= height
        if alpha is not None:
            right = right and alpha.shape == (rows, width) and alpha.dtype == self._dtype
        if not right or (alpha is not None) != self._has_alpha:
            raise UsageError(
                f"{self.path} takes rows of (h, {width}, {bands}) {self._dtype}{' and alpha' * self._has_alpha}, "
                f"{height - self._row} more; got {colour.shape} {colour.dtype}"
                + ("" if alpha is None else f" and alpha {alpha.shape} {alpha.dtype}")
            )
        if alpha is not None and not self._kind.alpha:
            colour, alpha = _blend_on_white(colour, alpha), None
        pixels = colour if alpha is None else np.concatenate((colour, alpha[..., None]), axis=-1)
        if self._depth < 8 * pixels.itemsize:
            pixels = _to_8_bits(pixels)
        self._row += rows
        try:
            self._feed.push(np.ascontiguousarray(pixels))
        except BrokenFeedError:
            self._fail()

    def close(self) -> None:
        """Wait for the encoder and give the file its name. Does nothing when already closed or aborted.

        Raises:
            UsageError: rows are missing. InputError: the encoder failed. Nothing is left behind in both cases.
        """
        if not self._discard.alive:
            return
        if self._row < self._shape[0]:
            self.abort()
            raise UsageError(f"{self.path} is not written: {self._row} of {self._shape[0]} rows were given")
        self._encoder.join()
        if self._encoder.error is not None:
            self._fail()
        try:
            os.replace(self._temporary, self.path)
        except OSError as error:
            self.abort()
            raise InputError(f"cannot write {self.path}: {reason(error)}") from None
        self._discard.detach()

    def abort(self) -> None:
        """Stop and leave nothing behind. Does nothing when already closed or aborted."""
        self._discard()

    def _fail(self) -> None:
        self._encoder.join()
        self.abort()
        raise InputError(f"cannot write {self.path}: {_last_line(str(self._encoder.error))}")


class _Encoder(threading.Thread):
    """The thread in which libvips pulls rows from the feed and writes the file."""

    def __init__(
        self,
        feed: RowFeed,
        kind: _Format,
        options: dict[str, Any],
        target: Path,
        like: PictureReader | None,
        bands: int,
    ) -> None:
        super().__init__(name="saccade-encoder", daemon=True)
        self.error: Exception | None = None
        self._feed, self._kind, self._options, self._target = feed, kind, options, target
        self._tags = [] if like is None else like._tags
        self._resolution = (1.0, 1.0) if like is None else like.resolution
        self._space = b"GRAY" if bands == 1 else b"RGB "

    def run(self) -> None:
        try:
            vips = _vips()
            xres, yres = self._resolution
            image = self._feed.image().copy(xres=xres, yres=yres)
            for name, kind, value in self._tags:
                if name != "icc-profile-data" or value[16:20] == self._space:  # a profile of the picture's own space
                    image.set_type(kind, name, value)
            image.set_type(vips.GValue.gint_type, "orientation", 1)
            # the encoders are single threads that wait for rows: more workers only take time from the network
            image.set_type(vips.GValue.gint_type, "vips-concurrency", 1)
            vips.Operation.call(self._kind.saver, image, os.fspath(self._target), **self._options)
        except Exception as error:
            self.error = error
        finally:
            self._feed.break_off()


def _discard(feed: RowFeed, encoder: threading.Thread, temporary: Path) -> None:
    feed.break_off()
    encoder.join()
    temporary.unlink(missing_ok=True)


def _output_format(path: Path, asked: str | None) -> str:
    writable = [key for key, kind in _FORMATS.items() if kind.saver]
    if asked is not None:
        key = _BY_SUFFIX.get("." + asked.lower().lstrip("."), asked.lower())
        if key not in writable:
            raise UsageError(f"no output format named {asked!r}; there are {', '.join(writable)}")
        return key
    key = _BY_SUFFIX.get(path.suffix.lower(), "")
    if key not in writable:
        raise UsageError(
            f"cannot tell the format of {path} from its name; end it with .jpg, .png, .webp, .tif or .avif"
        )
    return key


def _save_options(key: str, quality: int | None, compression: str | int | None, raw_bytes: int) -> dict[str, Any]:
    """The saver's options; speed settings are those measured on a 3840 x 2160 photograph (see benchmarks)."""
    if quality is not None and not 1 <= quality <= 100:
        raise UsageError(f"quality {quality} is outside 1 to 100")
    lossless = compression == "lossless"
    choices: tuple[Any, ...]
    options: dict[str, Any]
    if key == "jpeg":
        choices, options = (None,), {"Q": quality or 92}
    elif key == "png":
        level = 2 if compression is None else compression
        choices, options = (None, *range(10)), {"compression": level, "filter": "up"}
    elif key == "tiff":
        choices = (None, "deflate", "lzw", "none")
        options = {"compression": compression or "deflate", "tile": True, "tile_width": 256, "tile_height": 256}
        options["bigtiff"] = raw_bytes > 3_500_000_000
        if compression != "none":
            options["predictor"] = "horizontal"
        if options["compression"] == "deflate":
            options["level"] = 1
    elif key == "webp":
        choices, options = (
            (None, "lossless"),
            {"Q": quality or 90, "effort": 0 if lossless else 2, "lossless": lossless},
        )
    else:
        choices = (None, "lossless")
        options = {"Q": quality or 80, "effort": 1, "lossless": lossless, "compression": _codec(key)}
    if compression not in choices:
        known = ", ".join(str(choice) for choice in choices if choice is not None) or "none"
        raise UsageError(f"{_FORMATS[key].name} has no compression {compression!r}; choices: {known}")
    return options


def _codec(key: str) -> str:
    return "av1" if key == "avif" else "hevc"


@functools.cache
def _require_encoder(key: str) -> None:
    """Encode a few pixels: which HEIF encoders a libvips has shows only when they run."""
    vips = _vips()
    try:
        vips.Image.black(16, 16, bands=3).heifsave_buffer(compression=_codec(key), effort=0)
    except vips.Error:
        raise UnavailableError(
            f"this build of libvips has no {_FORMATS[key].name} encoder; use webp, png or jpeg"
        ) from None


def _to_8_bits(pixels: np.ndarray) -> np.ndarray:
    return ((pixels.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


def _blend_on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    white = np.iinfo(colour.dtype).max
    share = alpha[..., None].astype(np.float32) / white
    return np.rint(white - (white - colour.astype(np.float32)) * share).astype(colour.dtype)


# --- whole pictures, and finding them ------------------------------------------------------------------------------


def read_picture(
    path: str | os.PathLike[str], *, max_pixels: int = 4_000_000_000
) -> tuple[np.ndarray, np.ndarray | None, PictureReader]:
    """A whole picture in memory.

    Returns:
        colour (H, W, C) uint8 or uint16, alpha (H, W) or None, and the closed reader: its attributes are the facts of
        the picture, and `save_picture` takes it as ``like``.

    Raises InputError as `open_picture` and `PictureReader.read_rows` do.
    """
    with open_picture(path, max_pixels=max_pixels) as reader:
        colour, alpha = reader.read_rows(0, reader.height)
    return colour, alpha, reader


def save_picture(
    path: str | os.PathLike[str],
    colour: np.ndarray,
    alpha: np.ndarray | None = None,
    *,
    like: PictureReader | None = None,
    **options: Any,
) -> None:
    """Write a whole picture: colour (H, W, 1 or 3) or (H, W), alpha (H, W); uint8 or uint16.

    ``options`` are those of `create_picture`; errors too.
    """
    if colour.ndim not in (2, 3):
        raise UsageError(f"a picture has 2 or 3 dimensions, (H, W) or (H, W, C); got {colour.shape}")
    height, width = colour.shape[:2]
    bands = 1 if colour.ndim == 2 else colour.shape[2]
    has_alpha = alpha is not None
    with create_picture(
        path, width, height, bands=bands, has_alpha=has_alpha, dtype=str(colour.dtype), like=like, **options
    ) as writer:
        writer.write_rows(colour, alpha)


def is_video(path: str | os.PathLike[str]) -> bool:
    """Whether the name's suffix is that of a video file."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES


def find_pictures(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], *, videos: bool = False
) -> list[Path]:
    """Files, folders and globs (``*``, ``?``, ``[..]``, ``**``) as a list of files, each once.

    Files named outright are taken as they are; folders and globs give the files with a known picture suffix (and video
    suffix with ``videos``), hidden ones left out, in natural order (img2 before img10).

    Raises:
        InputError: nothing of that name, or no picture in that folder.
    """
    wanted = PICTURE_SUFFIXES | (VIDEO_SUFFIXES if videos else frozenset())
    found: dict[Path, None] = {}
    for given in [paths] if isinstance(paths, str | os.PathLike) else paths:
        path = Path(given)
        if path.is_file():
            found[path] = None
            continue
        if path.is_dir():
            inside, where = list(path.iterdir()), f"the folder {path}"
        elif glob.has_magic(str(path)):
            inside, where = [Path(name) for name in glob.glob(str(path), recursive=True)], f"what matches {path}"
        else:
            raise InputError(f"cannot read {path}: no such file or folder")
        inside = [p for p in inside if p.suffix.lower() in wanted and not p.name.startswith(".") and p.is_file()]
        if not inside:
            raise InputError(f"no {'pictures or videos' if videos else 'pictures'} in {where}")
        found.update(dict.fromkeys(sorted(inside, key=_natural)))
    return list(found)


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """Sorting key: runs of digits as numbers."""
    parts = re.split(r"(\d+)", str(path).lower())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]


# --- words ---------------------------------------------------------------------------------------------------------


def _last_line(text: str) -> str:
    """The last thing that libvips said, in one line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"


def _count(number: float) -> str:
    """48000 -> '48 000'."""
    return f"{int(number):,}".replace(",", " ") if number >= 10_000 else str(int(number))
