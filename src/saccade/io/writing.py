"""Pictures out through libvips: rows are encoded in a thread of their own while more are computed.

    (h, W, C) colour, (h, W) alpha -- PictureWriter -- queue -- encoder thread -- temporary file -- rename

Profile, EXIF, XMP and resolution of a picture that was read go to the output; what a format cannot hold is said in
`PictureWriter.notices`.
"""

from __future__ import annotations

import functools
import os
import threading
import weakref
from pathlib import Path
from typing import Any, Protocol, TypedDict

import numpy as np

from saccade.errors import InputError, UnavailableError, UsageError
from saccade.io.feed import BrokenFeedError, RowFeed
from saccade.io.files import UnderWay, check_target, reason, temporary_beside
from saccade.io.formats import BY_SUFFIX, FORMATS, Format, last_line, libvips

__all__ = ["PictureWriter", "Saving", "Tagged", "create_picture", "save_picture"]


class Saving(TypedDict, total=False):
    """How users want a picture file written; each as `create_picture` takes it."""

    format: str | None
    quality: int | None
    flatten: bool
    overwrite: bool


class Tagged(Protocol):
    """What a picture to be written takes its tags from: `PictureReader`, or another that has them.

    Attributes:
        tags: libvips fields: name, number of the type, value.
        resolution: pixels per millimetre, across and down.
    """

    tags: list[tuple[str, int, Any]]
    resolution: tuple[float, float]


def create_picture(
    path: str | os.PathLike[str],
    width: int,
    height: int,
    *,
    bands: int = 3,
    has_alpha: bool = False,
    dtype: str = "uint8",
    like: Tagged | None = None,
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
    kind = FORMATS[key]
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


class PictureWriter(UnderWay):
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
        like: Tagged | None,
        options: dict[str, Any],
    ) -> None:
        self.path, self.format, self.notices = path, key, list[str]()
        self._kind = kind = FORMATS[key]
        self._shape, self._has_alpha, self._dtype = shape, has_alpha, dtype
        self._row = 0
        if dtype == "uint16" and kind.depth < 16:
            self.notices.append(f"{path}: {kind.name} keeps {kind.depth} of the 16 bits")
        if has_alpha and not kind.alpha:
            self.notices.append(f"{path}: {kind.name} has no alpha: blended onto white")
        if like is not None and key == "tiff" and any(name.startswith("exif-ifd2") for name, *_ in like.tags):
            self.notices.append(f"{path}: EXIF is not carried to TIFF, profile and XMP are")

        height, width, bands = shape
        self._depth = 16 if dtype == "uint16" and kind.depth > 8 else 8
        self._feed = RowFeed(width, height, bands + (has_alpha and kind.alpha), self._depth)
        self._temporary = temporary_beside(path)
        self._encoder = _Encoder(self._feed, kind, options, self._temporary, like, bands)
        self._encoder.start()
        # also when the writer is forgotten, and at exit: stop the thread and remove the unfinished file
        self._discard = weakref.finalize(self, _discard, self._feed, self._encoder, self._temporary)

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

    def _fail(self) -> None:
        self._encoder.join()
        self.abort()
        raise InputError(f"cannot write {self.path}: {last_line(str(self._encoder.error))}")


class _Encoder(threading.Thread):
    """The thread in which libvips pulls rows from the feed and writes the file."""

    def __init__(
        self,
        feed: RowFeed,
        kind: Format,
        options: dict[str, Any],
        target: Path,
        like: Tagged | None,
        bands: int,
    ) -> None:
        super().__init__(name="saccade-encoder", daemon=True)
        self.error: Exception | None = None
        self._feed, self._kind, self._options, self._target = feed, kind, options, target
        self.tags = [] if like is None else like.tags
        self._resolution = (1.0, 1.0) if like is None else like.resolution
        self._space = b"GRAY" if bands == 1 else b"RGB "

    def run(self) -> None:
        try:
            vips = libvips()
            xres, yres = self._resolution
            image = self._feed.image().copy(xres=xres, yres=yres)
            for name, kind, value in self.tags:
                if name != "icc-profile-data" or value[16:20] == self._space:  # a profile of the picture's own space
                    image.set_type(kind, name, value)
            image.set_type(vips.GValue.gint_type, "orientation", 1)
            # the encoders are single threads that wait for rows: more workers only take time from the network
            image.set_type(vips.GValue.gint_type, "vips-concurrency", 1)
            vips.Operation.call(self._kind.saver, image, os.fsencode(self._target), **self._options)
        except Exception as error:
            self.error = error
        finally:
            self._feed.break_off()


def _discard(feed: RowFeed, encoder: threading.Thread, temporary: Path) -> None:
    feed.break_off()
    encoder.join()
    temporary.unlink(missing_ok=True)


def _output_format(path: Path, asked: str | None) -> str:
    writable = [key for key, kind in FORMATS.items() if kind.saver]
    if asked is not None:
        key = BY_SUFFIX.get("." + asked.lower().lstrip("."), asked.lower())
        if key not in writable:
            raise UsageError(f"no output format named {asked!r}; there are {', '.join(writable)}")
        return key
    key = BY_SUFFIX.get(path.suffix.lower(), "")
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
        raise UsageError(f"{FORMATS[key].name} has no compression {compression!r}; choices: {known}")
    return options


def _codec(key: str) -> str:
    return "av1" if key == "avif" else "hevc"


@functools.cache
def _require_encoder(key: str) -> None:
    """Encode a few pixels: which HEIF encoders a libvips has shows only when they run."""
    vips = libvips()
    try:
        vips.Image.black(16, 16, bands=3).heifsave_buffer(compression=_codec(key), effort=0)
    except vips.Error:
        raise UnavailableError(
            f"this build of libvips has no {FORMATS[key].name} encoder; use webp, png or jpeg"
        ) from None


def _to_8_bits(pixels: np.ndarray) -> np.ndarray:
    return ((pixels.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


def _blend_on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    white = np.iinfo(colour.dtype).max
    share = alpha[..., None].astype(np.float32) / white
    return np.rint(white - (white - colour.astype(np.float32)) * share).astype(colour.dtype)


def save_picture(
    path: str | os.PathLike[str],
    colour: np.ndarray,
    alpha: np.ndarray | None = None,
    *,
    like: Tagged | None = None,
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
