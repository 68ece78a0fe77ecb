"""Video in and out through PyAV: frames one at a time, sound untouched, time stamps and colour tags kept.

    file -- demux, decode -- matrix and range of the source -- upright (H, W, 3) uint8 RGB
    (H, W, 3) uint8 RGB -- the same matrix and range back -- encoder -- temporary file -- rename
    the source's audio packets ------------------------------------------^

Frames keep the source's presentation times, so clips of variable frame rate stay so. RGB here is the source's own
colour space without its matrix: primaries and transfer are tags that travel, never a conversion. A source that names
no matrix is taken as BT.709 from 720 rows on and as BT.601 below, as players do, and the output names what was taken,
because an enlarged clip would else be taken for another.

Needs the extra ``video``.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from saccade.errors import InputError, UnavailableError, UsageError
from saccade.io.files import UnderWay, check_target, first_bytes, reason, temporary_beside
from saccade.io.finding import VIDEO_SUFFIXES

__all__ = ["VideoReader", "VideoWriter", "open_video"]

# only containers that hold their own frames, and only local files: no playlists that open other places
_OPEN_OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": "mov,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg",
}
_UNSPECIFIED = 2  # in the colour tags of H.273
_MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9}  # H.273 matrix -> swscale's number for its coefficients
_FULL_RANGE = 2  # FFmpeg's numbers: 1 is 16..235, 2 is 0..255
_QUALITIES = {  # codec -> default quality; each is a constant rate factor, lower is better
    "libx264": 18,
    "libx265": 20,
    "libsvtav1": 25,
    "libvpx-vp9": 24,
}


@dataclass(frozen=True)
class ColourTags:
    """How a clip's samples are to be understood, in the numbers of H.273 (2: unspecified)."""

    primaries: int = _UNSPECIFIED
    transfer: int = _UNSPECIFIED
    matrix: int = 1
    full_range: bool = False


def _av() -> ModuleType:
    try:
        import av
    except ImportError:
        raise UnavailableError.extra("video", "video") from None
    return av


def open_video(path: str | os.PathLike[str]) -> VideoReader:
    """Open a clip: headers and the first frame are read.

    Raises:
        InputError: missing, a directory, empty, no video, damaged or truncated.
        UnavailableError: the extra ``video`` is not installed.
    """
    _av()
    path = Path(path)
    first_bytes(path, 1)
    return VideoReader(path)


class VideoReader:
    """An open clip; made by `open_video`. Iterating gives upright frames, (H, W, 3) uint8 RGB, one at a time.

    Every iteration starts at the first frame. Memory: a few frames, whatever the length. Iterating raises InputError
    where the clip turns out to be damaged or to end early.

    Attributes:
        path: the file.
        width, height: in pixels, upright (after the rotation that the file asks for).
        rotation: counter-clockwise degrees that were applied, a multiple of 90.
        frame_rate: frames a second, the mean one when it varies.
        frames: their number by the header, or estimated from duration and rate; 0 when neither is known.
        duration: seconds, or None when the header does not say.
        tags: primaries, transfer, matrix and range.
        pixel_format: FFmpeg's name of the stored format, as ``"yuv420p"``.
        sample_aspect: width over height of a pixel.
        has_audio: whether there is sound to copy.
        notices: what is not kept, one sentence each.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.notices = path, list[str]()
        self.times: list[Fraction | None] = []  # presentation times of the frames handed out, in seconds
        with self._open() as container:
            stream = container.streams.video[0]
            self.has_audio = bool(container.streams.audio)
            self.frame_rate = Fraction(stream.average_rate or stream.guessed_rate or 25)
            self.time_base = Fraction(stream.time_base)
            seconds = stream.duration * stream.time_base if stream.duration else None
            if seconds is None and container.duration:
                seconds = Fraction(container.duration, 1_000_000)
            self.duration = float(seconds) if seconds else None
            self.frames = stream.frames or round(seconds * self.frame_rate if seconds else 0)
            self.metadata: Mapping[str, str] = dict(container.metadata)
            sample_aspect = Fraction(stream.sample_aspect_ratio or 1)
            first = next(self._decoded(container), None)
        if first is None:
            raise InputError(f"cannot read {path}: it holds no video frame")
        self.rotation = round(first.rotation / 90) * 90 % 360
        self._stored = (first.height, first.width)
        self.height, self.width = self._stored if self.rotation % 180 == 0 else self._stored[::-1]
        self.sample_aspect = sample_aspect if self.rotation % 180 == 0 else 1 / sample_aspect
        self.pixel_format: str = first.format.name
        matrix = int(first.colorspace)
        if matrix not in _MATRICES:
            matrix = 1 if first.height >= 720 else 6
        full = int(first.color_range) == _FULL_RANGE or self.pixel_format.startswith("yuvj")
        self.tags = ColourTags(int(first.color_primaries), int(first.color_trc), matrix, full)
        if first.format.components[0].bits > 8:
            self.notices.append(f"{path} has {first.format.components[0].bits} bits a sample: 8 are read")
        if first.interlaced_frame:
            self.notices.append(f"{path} is interlaced: its fields are treated as whole frames")

    def __iter__(self) -> Iterator[np.ndarray]:
        reformatter = _av().video.reformatter.VideoReformatter()
        self.times = []
        with self._open() as container:
            for frame in self._decoded(container):
                made = self._upright(frame, reformatter)
                self.times.append(None if frame.pts is None else frame.pts * Fraction(frame.time_base))
                yield made

    def count(self) -> int:
        """Frames in the file, counted: it is read once, not decoded."""
        return len(self._shown)

    def excerpt(self, first: int, count: int) -> list[np.ndarray]:
        """Frames as iterating gives them, from number ``first`` on; decoding begins at a key frame before it.

        Raises:
            InputError: the clip is damaged there, or has fewer frames.
        """
        if first < 0 or first + count > self.count():
            raise InputError(f"{self.path} has {self.count()} frames, not {count} from number {first} on")
        for key in range(first, 0, -1):
            pts, decoded = self._shown[key]
            if decoded is not None and pts is not None:
                # not every key frame can be begun at: what follows some of them refers to frames before
                with contextlib.suppress(InputError):
                    return self._from_key(pts, decoded, first - key, count)
        return list(itertools.islice(self, first, first + count))

    def _from_key(self, pts: int, decoded: int, skip: int, count: int) -> list[np.ndarray]:
        reformatter = _av().video.reformatter.VideoReformatter()
        with self._open() as container:
            container.seek(decoded, stream=container.streams.video[0])
            frames = itertools.islice(self._decoded(container, pts), skip, skip + count)
            made = [self._upright(frame, reformatter) for frame in frames]
        if len(made) < count:
            raise self._cut(0)
        return made

    @functools.cached_property
    def _shown(self) -> list[tuple[int | None, int | None]]:
        """Of each frame in the order of showing: presentation time, and decoding time where it is a key frame."""
        with self._open() as container:
            stream = container.streams.video[0]
            packets = [p for p in container.demux(stream) if p.size > 0]
            made = [(p.pts, p.dts if p.is_keyframe else None) for p in packets]
        return made if any(pts is None for pts, _ in made) else sorted(made, key=lambda frame: frame[0] or 0)

    def _upright(self, frame: Any, reformatter: Any) -> np.ndarray:
        """A decoded frame's pixels, (H, W, 3) uint8 RGB."""
        if (frame.height, frame.width) != self._stored:
            raise InputError(
                f"cannot read {self.path}: its frames change size, "
                f"from {self._stored[1]} x {self._stored[0]} to {frame.width} x {frame.height} px"
            )
        flags = _av().video.reformatter.Interpolation
        rgb = reformatter.reformat(
            frame,
            format="rgb24",
            src_colorspace=_MATRICES[self.tags.matrix],
            src_color_range=2 if self.tags.full_range else 1,
            dst_color_range=2,
            interpolation=flags.BICUBIC | flags.ACCURATE_RND | flags.FULL_CHR_H_INT | flags.FULL_CHR_H_INP,
        ).to_ndarray()
        return np.ascontiguousarray(np.rot90(rgb, self.rotation // 90))

    def _open(self) -> Any:
        av = _av()
        try:
            container = av.open(f"file:{self.path}", container_options=_OPEN_OPTIONS, metadata_errors="replace")
        except (av.error.FFmpegError, ValueError) as error:
            raise InputError(f"cannot read {self.path}: no video, or cut short ({reason(error)})") from None
        if not container.streams.video:
            container.close()
            raise InputError(f"cannot read {self.path}: it holds no video")
        container.streams.video[0].thread_type = "AUTO"
        size = self.path.stat().st_size
        for stream in container.streams:
            table = stream.index_entries  # where MP4 keeps its frames; empty for containers without such a table
            if len(table) and table[-1].pos + table[-1].size > size:
                container.close()
                raise self._cut(0)
        return container

    def _decoded(self, container: Any, since: int | None = None) -> Iterator[Any]:
        """Decoded frames of the first video stream; all streams are followed to see where the file ends.

        Decoders paint over what they cannot read and go on; a frame that was painted over is an error here.

        Args:
            since: presentation time; frames before it are left out, whatever they are like.
        """
        av = _av()
        stream = container.streams.video[0]
        packets, frames, last = 0, 0, Fraction(0)
        try:
            for packet in container.demux(stream, *container.streams.audio):
                if packet.is_corrupt:
                    raise self._cut(packets)
                end = packet.pts if packet.pts is not None else packet.dts
                if end is not None:
                    last = max(last, (end + (packet.duration or 0)) * packet.time_base)
                if packet.stream is stream:
                    packets += packet.size > 0
                    for frame in packet.decode():
                        if since is not None and (frame.pts is None or frame.pts < since):
                            continue
                        if frame.is_corrupt:
                            raise InputError(f"cannot read {self.path}: frame {frames} is damaged (counted from 0)")
                        frames += 1
                        yield frame
        except av.error.FFmpegError as error:
            where = f"at frame {frames}, {float(last):.2f} s" if last else "at its start"
            raise InputError(f"cannot read {self.path}: the video is damaged {where} ({reason(error)})") from None
        start = Fraction(container.start_time or 0, 1_000_000)
        length = Fraction(container.duration or 0, 1_000_000)
        if "matroska" in container.format.name and last - start < length * 9 / 10:
            raise self._cut(packets)  # it has no table of frames to compare with, but it tells its duration

    def _cut(self, packets: int) -> InputError:
        frames = f" and {packets} of about {self.frames} frames" if packets else ""
        size = self.path.stat().st_size
        return InputError(f"cannot read {self.path}: it ends after {size} bytes{frames} (truncated video)")


class VideoWriter(UnderWay):
    """A clip under way, frame by frame; a context manager: an exception inside leaves nothing behind.

    Args:
        path: the file; ``.mp4``, ``.mov``, ``.mkv`` and others, as its suffix says.
        width, height: of the frames that will come. Formats with halved chroma need even sides: an odd one gets its
            last row or column twice, with a notice; a 4:4:4 source keeps odd sides.
        like: the source: audio, times, frame rate, colour tags, pixel shape and metadata are taken from it.
        frame_rate: frames a second without ``like``; default 25.
        codec: an FFmpeg encoder: ``"libx264"``, ``"libx265"``, ``"libsvtav1"`` or ``"libvpx-vp9"``; by default the
            first, and in ``.webm``, which does not take it, the last.
        quality: constant rate factor, lower is better; default 18, 20, 25, 24 for these, at most 51, 51, 63, 63.
        preset: speed of the encoder, in its own words (``"ultrafast"`` to ``"veryslow"``, or a number for libsvtav1).
        overwrite: replace a file of that name.

    Attributes:
        notices: what was changed, one sentence each.

    Raises:
        InputError: the file exists, or cannot be made there, or the container cannot hold these streams.
        UsageError: unknown codec or suffix, or a quality that it does not have.
        UnavailableError: the extra ``video`` is not installed.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        width: int,
        height: int,
        *,
        like: VideoReader | None = None,
        frame_rate: Fraction | float | None = None,
        codec: str | None = None,
        quality: int | None = None,
        preset: str | int | None = None,
        overwrite: bool = False,
    ) -> None:
        av = _av()
        self.path, self.notices = Path(path), list[str]()
        self._like = like
        self._size = (height, width)
        if width < 1 or height < 1:
            raise UsageError(f"no video of {width} x {height} px can be written")
        codec = _codec_for(self.path, codec, quality)
        check_target(self.path, overwrite)
        rate = like.frame_rate if like is not None else Fraction(frame_rate or 25).limit_denominator(100_000)
        self._rate = rate
        self._time_base = like.time_base if like is not None else 1 / rate
        self._tags = like.tags if like is not None else ColourTags(1, 1, 1, False)
        self._format = _pixel_format(like, codec)
        self._padding = (0, 0) if self._format == "yuv444p" else (height % 2, width % 2)
        if any(self._padding):
            self.notices.append(f"{self.path}: {self._format} needs even sides: the last row or column is repeated")
        self._count, self._last = 0, -(2**62)
        self._reformatter = av.video.reformatter.VideoReformatter()

        self._temporary = temporary_beside(self.path)
        self._resources: list[Any] = []  # containers, closed in this order
        self._discard = weakref.finalize(self, _discard, self._resources, self._temporary)
        try:
            self._container = av.open(f"file:{self._temporary}", "w")
            self._resources.append(self._container)
            self._stream = self._video_stream(codec, _QUALITIES[codec] if quality is None else quality, preset)
            self._audio = self._audio_packets()
            self._container.start_encoding()
        except (av.error.FFmpegError, ValueError) as error:
            self.abort()
            raise InputError(
                f"cannot write {self.path}: its container takes no {codec}"
                f"{' with this sound' if like is not None and like.has_audio else ''} ({reason(error)}); use .mkv"
            ) from None
        except BaseException:
            self.abort()
            raise
        self._pending = next(self._audio, None)

    def write(self, frame: np.ndarray, time: Fraction | float | None = None) -> None:
        """Append a frame, (height, width, 3) uint8 RGB.

        Args:
            frame: the pixels.
            time: when it is shown, in seconds. By default the n-th frame takes the time of the n-th one that was read
                from ``like``, else n / frame rate.

        Raises:
            UsageError: a frame of another shape or type. InputError: the encoder failed; nothing is left behind.
        """
        av = _av()
        if not self._discard.alive:
            raise UsageError(f"{self.path} is closed")
        if frame.shape != (*self._size, 3) or frame.dtype != np.uint8:
            raise UsageError(f"{self.path} takes frames of {(*self._size, 3)} uint8; got {frame.shape} {frame.dtype}")
        if any(self._padding):
            frame = np.pad(frame, ((0, self._padding[0]), (0, self._padding[1]), (0, 0)), "edge")
        flags = av.video.reformatter.Interpolation
        picture = self._reformatter.reformat(
            av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24"),
            format=self._format,
            dst_colorspace=_MATRICES[self._tags.matrix],
            src_color_range=2,
            dst_color_range=2 if self._tags.full_range else 1,
            interpolation=flags.BICUBIC | flags.ACCURATE_RND | flags.FULL_CHR_H_INT | flags.FULL_CHR_H_INP,
        )
        picture.color_primaries, picture.color_trc = self._tags.primaries, self._tags.transfer
        picture.colorspace, picture.color_range = self._tags.matrix, 2 if self._tags.full_range else 1
        picture.pts = self._last = max(self._last + 1, round(self._time(time) / self._time_base))
        picture.time_base = self._time_base
        self._count += 1
        try:
            self._mux(self._stream.encode(picture))
        except (av.error.FFmpegError, OSError) as error:
            self._fail(error)

    def close(self) -> None:
        """Finish the clip and give it its name. Does nothing when already closed or aborted.

        Raises:
            UsageError: no frame was written. InputError: the encoder failed. Nothing is left behind in both cases.
        """
        av = _av()
        if not self._discard.alive:
            return
        if self._count == 0:
            self.abort()
            raise UsageError(f"{self.path} is not written: no frame was given")
        try:
            self._mux(self._stream.encode(None))
            while self._pending is not None:
                self._mux_audio()
            for resource in self._resources:
                resource.close()
            os.replace(self._temporary, self.path)
        except (av.error.FFmpegError, OSError) as error:
            self._fail(error)
        self._discard.detach()

    def _time(self, time: Fraction | float | None) -> Fraction:
        if time is not None:
            return Fraction(time)
        known = self._like.times[self._count] if self._like and self._count < len(self._like.times) else None
        return self._count / self._rate if known is None else known

    def _video_stream(self, codec: str, quality: int, preset: str | int | None) -> Any:
        options = {"crf": str(quality)}
        if codec == "libvpx-vp9":
            options |= {"b": "0", "row-mt": "1"} | ({} if preset is None else {"cpu-used": str(preset)})
        elif preset is not None:
            options["preset"] = str(preset)
        if codec == "libx265":
            options["x265-params"] = "log-level=error"
        stream = self._container.add_stream(codec, rate=self._rate, options=options)
        context = stream.codec_context
        stream.height, stream.width = self._size[0] + self._padding[0], self._size[1] + self._padding[1]
        stream.pix_fmt = self._format
        context.time_base = self._time_base
        context.color_primaries, context.color_trc = self._tags.primaries, self._tags.transfer
        context.colorspace, context.color_range = self._tags.matrix, 2 if self._tags.full_range else 1
        if self._like is not None:
            context.sample_aspect_ratio = self._like.sample_aspect
            kept = {k: v for k, v in self._like.metadata.items() if k not in _CONTAINER_KEYS}
            self._container.metadata.update(kept)
        return stream

    def _audio_packets(self) -> Iterator[Any]:
        """The source's audio packets, addressed to their new streams, in file order."""
        if self._like is None or not self._like.has_audio:
            return iter(())
        source = self._like._open()
        self._resources.append(source)
        streams = {s.index: self._container.add_stream_from_template(s) for s in source.streams.audio}

        def packets() -> Iterator[Any]:
            for packet in source.demux(*source.streams.audio):
                if packet.dts is not None:  # the last one of a stream is empty
                    packet.stream = streams[packet.stream_index]
                    yield packet

        return packets()

    def _mux(self, packets: list[Any]) -> None:
        """Write video packets, and before each the sound up to its time, so that neither waits for the other."""
        for packet in packets:
            now = (packet.dts or 0) * packet.time_base
            while self._pending is not None and self._pending.dts * self._pending.time_base <= now:
                self._mux_audio()
            self._container.mux(packet)

    def _mux_audio(self) -> None:
        self._container.mux(self._pending)
        self._pending = next(self._audio, None)

    def _fail(self, error: Exception) -> None:
        self.abort()
        raise InputError(f"cannot write {self.path}: {reason(error)}") from None


_CONTAINER_KEYS = ("major_brand", "minor_version", "compatible_brands", "encoder")


def _codec_for(path: Path, asked: str | None, quality: int | None) -> str:
    """The encoder of a file, asked for or by its suffix.

    Raises:
        UsageError: unknown codec or suffix, or a quality that it does not have. UnavailableError: not in this PyAV.
    """
    usual = "libvpx-vp9" if path.suffix.lower() == ".webm" else "libx264"
    codec = usual if asked is None else asked
    if codec not in _QUALITIES:
        raise UsageError(f"no video encoder named {codec!r}; there are {', '.join(_QUALITIES)}")
    if codec not in _av().codecs_available:
        raise UnavailableError(f"this build of PyAV has no {codec}; use another of {', '.join(_QUALITIES)}")
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        raise UsageError(f"cannot tell the container of {path} from its name; end it with .mp4, .mov or .mkv")
    worst = 51 if codec in ("libx264", "libx265") else 63
    if quality is not None and not 0 <= quality <= worst:
        raise UsageError(f"of a clip the quality is a constant rate factor, 0 (best) to {worst}, not {quality}")
    return codec


def _pixel_format(like: VideoReader | None, codec: str) -> str:
    """The source's chroma sampling where the encoder has it, in 8 bits."""
    sampling = next((s for s in ("444", "422") if like is not None and s in like.pixel_format), "420")
    if like is not None and like.pixel_format in ("rgb24", "gbrp", "bgr0", "rgba"):
        sampling = "444"
    return "yuv420p" if codec == "libsvtav1" else f"yuv{sampling}p"


def _discard(resources: list[Any], temporary: Path) -> None:
    for resource in resources:
        with contextlib.suppress(Exception):  # an unfinished container may fail to end; its file goes anyway
            resource.close()
    temporary.unlink(missing_ok=True)
