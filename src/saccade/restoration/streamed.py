"""A worker over pictures and clips: what every job that turns a picture into a picture shares.

    reader --rows--> band of rows + halo --tiles--> engine --tiles--> band of output --rows--> encoder thread
                     (two bands at a time; alpha goes its own way)

A job (`Upscaler`, `Restorer`) chooses the network and the engine; files, clips, memory and reports are dealt with here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from saccade.runtime import engines
from saccade.runtime.colour import bicubic
from saccade.runtime.graphs import load_finite
from saccade.runtime.stream import (
    Advance,
    Picture,
    Read,
    Write,
    band_rows,
    check_array,
    give_blocks_back,
    patches,
    rolling,
    stream,
)
from saccade.runtime.tiles import Span

if TYPE_CHECKING:
    from saccade.io import Saving

__all__ = ["Report", "Streamed"]


@dataclass
class Report:
    """What one picture or clip cost.

    Attributes:
        source, target: file names ("" for arrays).
        size, made: width and height in pixels, before and after.
        model, scale, backend, device, threads: what ran.
        tiles: how many, of all frames.
        frames: 1 for pictures.
        macs: multiply-accumulates of the network, halos not counted.
        budget: None, or {"asked": ..., "macs_fraction": ..., "shares": {...}}: what the dial did.
        seconds: wall time, reading and writing included.
        notices: what was converted or left out, one sentence each.
        precision: ``float32`` or ``int8``.
    """

    source: str
    target: str
    size: tuple[int, int]
    made: tuple[int, int]
    model: str
    scale: int
    backend: str
    device: str
    threads: int
    tiles: int = 0
    frames: int = 1
    macs: float = 0.0
    budget: dict[str, Any] | None = None
    seconds: float = 0.0
    notices: list[str] = field(default_factory=list)
    precision: str = "float32"

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for ``--json``."""
        return asdict(self)


class Streamed:
    """Works on pictures in memory, in files and in clips; a job says which network with which engine.

    Attributes:
        scale: how much larger the result is; 1 keeps the size.
        halo: input pixels that an output pixel sees beyond its own place.
        grid: windows begin at multiples of this.
        max_memory: bound on the memory of the process, bytes.
    """

    scale = 1
    halo = 0
    grid = 1
    max_memory = 1 << 30

    def __init__(self) -> None:
        self._networks: dict[Path, Any] = {}

    def _loaded(self, weights: Path) -> Any:
        """The network of a file of weights, read once.

        Raises:
            CheckpointError: a file that is unsafe or damaged, or holds values that are not finite.
        """
        if weights not in self._networks:
            self._networks[weights] = load_finite(weights)
        return self._networks[weights]

    # -- what a job says

    def engine(self, channels: int = 3, dtype: str = "uint8") -> engines.Engine:
        """The engine for pictures of that kind; started once."""
        raise NotImplementedError

    def agree(self, samples: Iterator[np.ndarray]) -> None:
        """Look at patches of a picture before it is worked on, if need be.

        Args:
            samples: (h, w, 1 or 3) integer patches spread over the picture.
        """

    @property
    def looks_first(self) -> bool:
        """Whether `agree` wants to see patches."""
        return False

    def one_clip(self) -> AbstractContextManager[None]:
        """Around the frames of one clip, which belong together, where that means something to the job."""
        return nullcontext()

    def facts(self) -> tuple[str, int, str, str, str]:
        """Model, scale, backend, device and precision, for the report."""
        raise NotImplementedError

    def account(self, report: Report) -> None:
        """Fill in what was spent."""

    # -- what all share

    def array(self, colour: np.ndarray, alpha: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        """Work on a picture in memory.

        Args:
            colour: (h, w, 1 or 3) uint8 or uint16.
            alpha: (h, w) of the same dtype, or None.

        Raises:
            InputError: another shape or dtype, or an empty picture.
        """
        made, clear, _ = self._worked(colour, alpha)
        return made, clear

    def _worked(self, colour: np.ndarray, alpha: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None, int]:
        """What `array` gives, and the number of tiles."""
        check_array(colour, alpha)
        height, width, channels = colour.shape
        scale = self.scale
        made = np.empty((height * scale, width * scale, channels), colour.dtype)
        clear = None if alpha is None else np.empty(made.shape[:2], colour.dtype)
        row = 0

        def read(top: int, rows: int) -> tuple[np.ndarray, np.ndarray | None]:
            return colour[top : top + rows], None if alpha is None else alpha[top : top + rows]

        def write(band: np.ndarray, its_alpha: np.ndarray | None) -> None:
            nonlocal row
            made[row : row + len(band)] = band
            if clear is not None and its_alpha is not None:
                clear[row : row + len(band)] = its_alpha
            row += len(band)

        self.engine(channels, str(colour.dtype))
        self.agree(patches(width, height, read))
        tiles = self._stream(Picture(width, height, channels, str(colour.dtype), alpha is not None), read, write)
        return made, clear, tiles

    def picture(
        self,
        source: str | Path,
        target: str | Path,
        *,
        advance: Advance | None = None,
        **how: Unpack[Saving],
    ) -> Report:
        """Work on a picture file; memory stays within ``max_memory`` whatever its size.

        ``how`` the result is written is as of `io.create_picture`.

        Raises:
            InputError: an unreadable or damaged picture, or a target that cannot be written; nothing is left behind.
        """
        from saccade.io import create_picture, open_picture

        began, scale = time.perf_counter(), self.scale
        give_blocks_back()
        with open_picture(source) as reader:
            size, made = (reader.width, reader.height), (reader.width * scale, reader.height * scale)
            report = self._report(str(source), str(target), size, self.engine(reader.bands, reader.dtype))
            picture = Picture(reader.width, reader.height, reader.bands, reader.dtype, reader.has_alpha)
            engine = self.engine(reader.bands, reader.dtype)
            band_rows(picture, engine, scale, self.halo, self.max_memory)  # refuse before anything is written
            if self.looks_first:
                with open_picture(source) as first_look:
                    self.agree(patches(*size, first_look.read_rows))
            with create_picture(
                target,
                *made,
                bands=reader.bands,
                has_alpha=reader.has_alpha,
                dtype=reader.dtype,
                like=reader,
                **how,
            ) as writer:
                report.tiles = self._stream(picture, rolling(reader), writer.write_rows, advance)
            report.notices = [*reader.notices, *writer.notices]
        self.account(report)
        report.seconds = time.perf_counter() - began
        return report

    def video(
        self,
        source: str | Path,
        target: str | Path,
        *,
        quality: int | None = None,
        overwrite: bool = False,
        advance: Advance | None = None,
    ) -> Report:
        """Work on a clip frame by frame; sound is copied, frame times and colour tags are kept.

        Raises:
            InputError: an unreadable clip, or a target that cannot be written.
            UnavailableError: the ``video`` extra is not installed.
        """
        from saccade.io.video import VideoWriter, open_video

        began = time.perf_counter()
        reader = open_video(source)
        report = self._report(str(source), str(target), (reader.width, reader.height), self.engine())
        report.frames = 0
        written = VideoWriter(target, *report.made, like=reader, quality=quality, overwrite=overwrite)
        with written as writer, self.one_clip():
            for frame in reader:
                made, _, tiles = self._worked(frame, None)
                writer.write(made)
                report.frames, report.tiles = report.frames + 1, report.tiles + tiles
                if advance:
                    advance(frame.shape[0] * frame.shape[1])
            report.notices = [*reader.notices, *writer.notices]
        self.account(report)
        report.seconds = time.perf_counter() - began
        return report

    def _report(self, source: str, target: str, size: tuple[int, int], engine: engines.Engine) -> Report:
        name, scale, backend, device, precision = self.facts()
        made = (size[0] * scale, size[1] * scale)
        return Report(source, target, size, made, name, scale, backend, device, engine.threads, precision=precision)

    def _stream(self, picture: Picture, read: Read, write: Write, advance: Advance | None = None) -> int:
        engine, scale = self.engine(picture.channels, picture.dtype), self.scale

        def alpha(window: np.ndarray, rows: Span) -> np.ndarray:
            return window[rows.inner] if scale == 1 else _enlarge_alpha(window, rows, scale)

        return stream(
            picture,
            engine,
            scale,
            self.halo,
            read,
            write,
            max_memory=self.max_memory,
            alpha=alpha,
            advance=advance,
            grid=self.grid,
        )


def _enlarge_alpha(alpha: np.ndarray, rows: Span, scale: int) -> np.ndarray:
    """Bicubic, on the band's window; rows beyond the core only serve as context."""
    full = np.iinfo(alpha.dtype).max
    window = slice(max(rows.low, rows.start - 2) - rows.low, min(rows.high, rows.stop + 2) - rows.low)
    made = bicubic(alpha[window, :, None].astype(np.float32), scale)[:, :, 0]
    first = (rows.inner.start - window.start) * scale
    return np.rint(made[first : first + rows.length * scale].clip(0, full)).astype(alpha.dtype)
