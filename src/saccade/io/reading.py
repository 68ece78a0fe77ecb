"""Pictures in through libvips, a strip of rows at a time, so that memory does not grow with the picture.

    file -- header -- checks -- decoder -- orientation -- PictureReader: (h, W, C) colour, (h, W) alpha

What a picture is stays what it is: grey stays grey, 16 bits stay 16 bits, alpha travels apart from colour and is never
multiplied in. What cannot stay (CMYK, float samples, animation) is converted with a notice in `PictureReader.notices`.

Memory: a few strips for JPEG, PNG and TIFF. Progressive JPEG (up to 6 bytes a pixel), interlaced PNG, GIF, WebP and
AVIF/HEIC (about 4) are held whole by their decoders; a notice says so when it comes to much. Pictures that EXIF turns,
and `read_region`, go through a `Spool` on disc (`TMPDIR`) of the size of the decoded picture.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from saccade.errors import InputError, UsageError
from saccade.io.files import first_bytes, reason
from saccade.io.formats import FORMATS, Pixels, last_line, libvips
from saccade.io.spool import TILE, Spool

__all__ = ["PictureReader", "open_picture", "read_picture"]

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
        tags, resolution: what a picture made of this one inherits, see `saccade.io.writing.Tagged`.
        notices: what was converted or left out, one sentence each.
    """

    def __init__(self, path: Path, key: str, max_pixels: int) -> None:
        self.path, self.format, self.notices = path, key, list[str]()
        self._kind, self._size = FORMATS[key], path.stat().st_size
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
        self.tags = _tags(image)
        self.icc: bytes | None = next((value for name, _, value in self.tags if name == "icc-profile-data"), None)
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
        vips = libvips()
        try:
            # a source, not a file name: libvips reads options from names that end with brackets; bytes, not a string:
            # pyvips would encode that, which names that are no UTF-8 do not bear
            source = vips.Source.new_from_file(os.fsencode(self.path))
            return vips.Operation.call(f"{self._kind.loader}_source", source, access="sequential", fail_on="error")
        except vips.Error as error:
            raise self._failure(error, 0, 0) from None

    def _standard(self, image: Any) -> tuple[Any, list[str]]:
        try:
            return _standard(image, self.path)
        except libvips().Error as error:
            raise self._failure(error, 0, 0) from None

    def _restart(self) -> None:
        if self._next:
            self._image, self._next = self._standard(self._load())[0], 0

    def _decode(self, top: int, height: int) -> np.ndarray:
        """Stored rows, (height, stored width, channels), in order."""
        if self._image is None:
            raise UsageError(f"{self.path} is closed")
        _, width, channels = self._stored
        vips = libvips()
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
            return InputError(f"cannot read {self.path}: this build of libvips cannot decode it ({last_line(details)})")
        return InputError(f"cannot read {self.path}: the {name} data is damaged ({last_line(details)})")

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


def _count(number: float) -> str:
    """48000 -> '48 000'."""
    return f"{int(number):,}".replace(",", " ") if number >= 10_000 else str(int(number))
