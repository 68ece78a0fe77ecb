from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saccade.errors import InputError, UnavailableError, UsageError
from saccade.io import VideoReader, VideoWriter, open_video

av = pytest.importorskip("av", reason="needs the extra 'video'")

DATA = Path(os.environ.get("SACCADE_DATA", Path(__file__).parents[3] / "shared" / "data")) / "video"


@pytest.fixture(params=["bikes.mp4", "cockatoo.mp4"])
def clip(request: pytest.FixtureRequest) -> Path:
    path = DATA / request.param
    if not path.exists():
        pytest.skip(f"no {path.name}; set SACCADE_DATA to the shared data")
    return path


def moving(count: int, height: int, width: int) -> list[np.ndarray]:
    """Frames of slow waves that wander, (height, width, 3) uint8."""
    y, x = np.mgrid[:height, :width]
    return [
        np.stack(
            [128 + 90 * np.sin((x + 3 * t) / 19), 128 + 90 * np.cos((y - 2 * t) / 23), 40 + 8.0 * t + 0 * x], -1
        ).astype(np.uint8)
        for t in range(count)
    ]


def make_clip(
    path: Path,
    frames: list[np.ndarray],
    pts: list[int] | None = None,
    sound: bool = False,
    rotation: int = 0,
    tags: tuple[int, int, int, int] | None = None,
    format: str = "yuv420p",  # noqa: A002
    options: dict[str, str] | None = None,
) -> None:
    """A clip by PyAV alone: time base 1/1000, 25 frames a second unless pts says otherwise, a tone as its sound."""
    with av.open(str(path), "w", options=options or {}) as container:
        video = container.add_stream("libx264", rate=25, options={"crf": "10", "preset": "ultrafast"})
        video.height, video.width = frames[0].shape[:2]
        video.pix_fmt = format
        video.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            video.set_display_rotation(rotation)
        if tags:
            context = video.codec_context
            context.color_primaries, context.color_trc, context.colorspace, context.color_range = tags
        audio = container.add_stream("aac", rate=44100, layout="mono") if sound else None
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
                format=format,
                dst_colorspace={1: 1, 6: 5, 9: 9}[tags[2]] if tags else 5,
                dst_color_range=tags[3] if tags else 1,
            )
            frame.pts, frame.time_base = (pts[index] if pts else index * 40), Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if audio is not None:
            tone = 0.3 * np.sin(np.arange(44100 * len(frames) // 25) * 2 * np.pi * 440 / 44100)
            for start in range(0, len(tone) - 1023, 1024):
                part = av.AudioFrame.from_ndarray(tone[None, start : start + 1024].astype(np.float32), "fltp", "mono")
                part.sample_rate, part.pts, part.time_base = 44100, start, Fraction(1, 44100)
                container.mux(audio.encode(part))
            container.mux(audio.encode(None))


def copy(source: VideoReader, target: Path, **options: Any) -> VideoWriter:
    options = {"preset": "ultrafast", "quality": 8, **options}
    with VideoWriter(target, source.width, source.height, like=source, **options) as writer:
        for frame in source:
            writer.write(frame)
    return writer


def audio_packets(path: Path) -> list[tuple[bytes, Fraction]]:
    """Bytes and times of the sound, the times counted from the first video frame."""
    with av.open(str(path)) as container:
        start = next(container.decode(video=0))
        zero = start.pts * start.time_base
    with av.open(str(path)) as container:
        return [(bytes(p), p.pts * p.time_base - zero) for p in container.demux(audio=0) if p.dts is not None]


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_frames_are_those_of_pyav(clip: Path) -> None:
    reader = open_video(clip)
    with av.open(str(clip)) as container:
        assert reader.frames == container.streams.video[0].frames
        for ours, frame in zip(islice(reader, 5), container.decode(video=0), strict=False):
            assert ours.shape == (reader.height, reader.width, 3)
            matrix = "itu709" if reader.tags.matrix == 1 else "itu601"
            theirs = frame.to_ndarray(format="rgb24", src_colorspace=matrix)
            assert np.abs(ours.astype(int) - theirs).mean() < 2  # chroma is interpolated better here


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".ts"])
@pytest.mark.parametrize("groups", ["closed", "open"])
def test_an_excerpt_is_what_iterating_gives(tmp_path: Path, suffix: str, groups: str) -> None:
    path = tmp_path / f"in{suffix}"
    with av.open(str(path), "w") as container:
        parameters = f"keyint=7:min-keyint=7:scenecut=0:bframes=3:open-gop={int(groups == 'open')}"
        video = container.add_stream("libx264", rate=25, options={"crf": "18", "x264-params": parameters})
        video.height, video.width, video.pix_fmt = 48, 64, "yuv420p"
        for pixels in moving(30, 48, 64):
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(video.encode(None))
    reader = open_video(path)
    whole = list(reader)
    assert reader.count() == len(whole) == 30
    for first, count in ((0, 30), (0, 1), (3, 6), (7, 2), (13, 9), (22, 8), (29, 1)):
        for ours, theirs in zip(reader.excerpt(first, count), whole[first : first + count], strict=True):
            np.testing.assert_array_equal(ours, theirs)
    for first, count in ((-1, 2), (25, 6), (30, 1)):
        with pytest.raises(InputError, match=f"has 30 frames, not {count} from number {first} on"):
            reader.excerpt(first, count)


def test_an_excerpt_of_a_turned_clip_with_uneven_times_is_upright(tmp_path: Path) -> None:
    pts = [0, 40, 55, 200, 210, 500, 501, 900]
    make_clip(tmp_path / "in.mp4", moving(len(pts), 48, 64), pts=pts, rotation=90, sound=True)
    reader = open_video(tmp_path / "in.mp4")
    whole = list(reader)
    found = reader.excerpt(2, 5)
    assert found[0].shape == (64, 48, 3)
    assert all(np.array_equal(a, b) for a, b in zip(found, whole[2:7], strict=True))


def test_a_clip_goes_in_and_out_with_its_sound_times_and_tags(clip: Path, tmp_path: Path) -> None:
    source = open_video(clip)
    frames = 40
    with VideoWriter(tmp_path / "out.mp4", source.width, source.height, like=source, preset="ultrafast") as writer:
        for frame in islice(source, frames):
            writer.write(frame)
    result = open_video(tmp_path / "out.mp4")
    assert (result.width, result.height, result.frames) == (source.width, source.height, frames)
    assert result.frame_rate == source.frame_rate
    assert result.tags == source.tags
    assert result.pixel_format == source.pixel_format
    difference = [np.abs(a.astype(int) - b).mean() for a, b in zip(islice(source, frames), result, strict=True)]
    assert max(difference) < 3
    assert result.times == source.times[:frames]
    assert result.has_audio == source.has_audio
    if source.has_audio:
        assert [data for data, _ in audio_packets(tmp_path / "out.mp4")] == [data for data, _ in audio_packets(clip)]
    assert leftovers(tmp_path) == ["out.mp4"]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_sound_is_copied_byte_for_byte_with_its_times(tmp_path: Path, suffix: str) -> None:
    make_clip(tmp_path / "in.mp4", moving(50, 48, 64), sound=True)
    copy(open_video(tmp_path / "in.mp4"), tmp_path / f"out{suffix}")
    before, after = audio_packets(tmp_path / "in.mp4"), audio_packets(tmp_path / f"out{suffix}")
    assert len(before) > 80
    assert [data for data, _ in before] == [data for data, _ in after]
    shift = [abs(float(a - b)) for (_, a), (_, b) in zip(before, after, strict=True)]
    assert max(shift) <= 0.0011  # matroska counts milliseconds
    with av.open(str(tmp_path / f"out{suffix}")) as container:
        assert container.streams.audio[0].codec_context.name == "aac"


def test_variable_frame_rate_stays_variable(tmp_path: Path) -> None:
    pts = [0, 40, 55, 200, 210, 500, 501, 900]
    make_clip(tmp_path / "in.mp4", moving(len(pts), 48, 64), pts=pts)
    source = open_video(tmp_path / "in.mp4")
    copy(source, tmp_path / "out.mp4")
    result = open_video(tmp_path / "out.mp4")
    assert len(list(result)) == len(pts)
    assert result.times == source.times == [Fraction(p, 1000) for p in pts]


def test_times_given_by_the_caller_are_used(tmp_path: Path) -> None:
    frames = moving(3, 32, 32)
    with VideoWriter(tmp_path / "out.mp4", 32, 32, frame_rate=10) as writer:
        for frame, time in zip(frames, (0, 0.5, 0.7), strict=True):
            writer.write(frame, time)
    result = open_video(tmp_path / "out.mp4")
    assert len(list(result)) == 3
    assert result.times == [0, Fraction(1, 2), Fraction(7, 10)]


@pytest.mark.parametrize("tags", [(1, 1, 1, 1), (1, 1, 1, 2), (6, 6, 6, 1), (9, 16, 9, 1), (6, 6, 6, 2)])
def test_colour_tags_and_colours_survive(tmp_path: Path, tags: tuple[int, int, int, int]) -> None:
    make_clip(tmp_path / "in.mp4", moving(4, 64, 64), tags=tags)
    source = open_video(tmp_path / "in.mp4")
    assert (source.tags.primaries, source.tags.transfer, source.tags.matrix) == tags[:3]
    assert source.tags.full_range == (tags[3] == 2)
    copy(source, tmp_path / "out.mp4")
    result = open_video(tmp_path / "out.mp4")
    assert result.tags == source.tags
    for drawn, first, second in zip(moving(4, 64, 64), source, result, strict=True):
        assert np.abs(first.astype(int) - drawn).mean() < 2.5  # decoded by the matrix that it was made with
        assert np.abs(second.astype(int) - first).mean() < 2.5


@pytest.mark.parametrize(
    ("matrix", "full", "red"),  # Y of pure red: Kr * 219 + 16, or Kr * 255
    [
        (1, False, 0.2126 * 219 + 16),
        (6, False, 0.299 * 219 + 16),
        (9, False, 0.2627 * 219 + 16),
        (1, True, 0.2126 * 255),
    ],
)
def test_luma_of_red_is_that_of_the_matrix(tmp_path: Path, matrix: int, full: bool, red: float) -> None:
    make_clip(tmp_path / "in.mp4", moving(2, 32, 32), tags=(1, 1, matrix, 2 if full else 1))
    source = open_video(tmp_path / "in.mp4")
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[..., 0] = 255
    with VideoWriter(tmp_path / "out.mp4", 32, 32, like=source, quality=1) as writer:
        writer.write(pixels)
    with av.open(str(tmp_path / "out.mp4")) as container:
        luma = next(container.decode(video=0)).to_ndarray()[:32]
    assert luma.mean() == pytest.approx(red, abs=1.1)


def test_an_unnamed_matrix_is_named_in_the_output(tmp_path: Path) -> None:
    make_clip(tmp_path / "in.mp4", moving(2, 48, 64))
    source = open_video(tmp_path / "in.mp4")
    assert source.tags.matrix == 6  # below 720 rows: BT.601
    big = [np.repeat(np.repeat(frame, 16, 0), 16, 1) for frame in source]
    with VideoWriter(tmp_path / "out.mp4", 1024, 768, like=source, preset="ultrafast") as writer:
        for frame in big:
            writer.write(frame)
    assert open_video(tmp_path / "out.mp4").tags.matrix == 6  # else a player would take 768 rows as BT.709


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_a_rotated_clip_comes_upright_and_goes_out_upright(tmp_path: Path, rotation: int) -> None:
    stored = moving(3, 48, 80)
    make_clip(tmp_path / "in.mp4", stored, rotation=rotation)
    source = open_video(tmp_path / "in.mp4")
    assert source.rotation == rotation % 360
    upright = np.rot90(stored[0], rotation // 90)
    assert (source.height, source.width) == upright.shape[:2]
    assert np.abs(next(iter(source)).astype(int) - upright).mean() < 3
    copy(source, tmp_path / "out.mp4")
    result = open_video(tmp_path / "out.mp4")
    assert result.rotation == 0
    assert np.abs(next(iter(result)).astype(int) - upright).mean() < 4


def test_odd_sides_are_made_even_with_a_notice(tmp_path: Path) -> None:
    frames = moving(2, 47, 63)
    with VideoWriter(tmp_path / "out.mp4", 63, 47, quality=5) as writer:
        for frame in frames:
            writer.write(frame)
    assert "even sides" in writer.notices[0]
    result = next(iter(open_video(tmp_path / "out.mp4")))
    assert result.shape == (48, 64, 3)
    assert np.abs(result[:47, :63].astype(int) - frames[0]).mean() < 3


def test_full_chroma_keeps_odd_sides(tmp_path: Path) -> None:
    make_clip(tmp_path / "in.mp4", moving(2, 47, 63), format="yuv444p")
    writer = copy(open_video(tmp_path / "in.mp4"), tmp_path / "out.mp4")
    assert writer.notices == []
    result = open_video(tmp_path / "out.mp4")
    assert (result.width, result.height, result.pixel_format) == (63, 47, "yuv444p")


@pytest.mark.parametrize(("codec", "suffix"), [("libx265", ".mp4"), ("libsvtav1", ".mkv"), ("libvpx-vp9", ".webm")])
def test_other_encoders_write_what_can_be_read(tmp_path: Path, codec: str, suffix: str) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    frames = moving(5, 64, 96)
    with VideoWriter(tmp_path / f"out{suffix}", 96, 64, codec=codec) as writer:
        for frame in frames:
            writer.write(frame)
    got = list(open_video(tmp_path / f"out{suffix}"))
    assert len(got) == 5
    assert np.abs(got[2].astype(int) - frames[2]).mean() < 6


def test_a_webm_becomes_a_webm_with_its_sound(tmp_path: Path) -> None:
    if "libvpx-vp9" not in av.codecs_available or "libopus" not in av.codecs_available:
        pytest.skip("this PyAV has no VP9 or no Opus")
    with av.open(str(tmp_path / "in.webm"), "w") as container:
        video = container.add_stream("libvpx-vp9", rate=25)
        video.height, video.width, video.pix_fmt = 48, 64, "yuv420p"
        audio = container.add_stream("libopus", rate=48000, layout="mono")
        for pixels in moving(4, 48, 64):
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(video.encode(None))
        for i in range(8):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.float32), "flt", "mono")
            silence.sample_rate, silence.pts, silence.time_base = 48000, 960 * i, Fraction(1, 48000)
            container.mux(audio.encode(silence))
        container.mux(audio.encode(None))
    source = open_video(tmp_path / "in.webm")
    with VideoWriter(tmp_path / "out.webm", 64, 48, like=source) as writer:
        for frame in source:
            writer.write(frame)
    made = open_video(tmp_path / "out.webm")
    assert len(list(made)) == 4
    assert made.has_audio


# --- bad input


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        list(open_video(path))
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_missing_folder_empty_text_and_pictures_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("dear diary\n" * 500)
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXTINF:1\n/etc/hostname\n")
    (tmp_path / "junk.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    assert "no such file" in refusal(tmp_path / "none.mp4")
    assert "is a directory" in refusal(tmp_path)
    assert "empty" in refusal(tmp_path / "empty.mp4")
    for name in ("text.mp4", "list.mp4", "junk.mp4"):
        assert "no video" in refusal(tmp_path / name)


def test_a_file_of_sound_alone_holds_no_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "tone.mp4"), "w") as container:
        audio = container.add_stream("aac", rate=44100, layout="mono")
        part = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        part.sample_rate = 44100
        container.mux(audio.encode(part))
        container.mux(audio.encode(None))
    assert "holds no video" in refusal(tmp_path / "tone.mp4")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(("suffix", "options"), [(".mp4", {}), (".mp4", {"movflags": "faststart"}), (".mkv", {})])
def test_truncated_clips_are_refused(tmp_path: Path, suffix: str, options: dict[str, str], share: float) -> None:
    if suffix == ".mkv" and share > 0.85:
        pytest.skip("a matroska file that lacks less than a tenth of its time cannot be told from a whole one")
    path = tmp_path / f"p{suffix}"
    make_clip(path, moving(50, 96, 128), options=options)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert "cut short" in refusal(path) or "truncated" in refusal(path) or "damaged" in refusal(path)


def test_damage_in_the_middle_is_an_error_or_frames_of_the_right_shape(tmp_path: Path) -> None:
    make_clip(tmp_path / "p.mp4", moving(30, 96, 128))
    whole = (tmp_path / "p.mp4").read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(40):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), 5):
            data[place] = rng.integers(0, 256)
        (tmp_path / "p.mp4").write_bytes(data)
        refused = ""
        try:
            reader = open_video(tmp_path / "p.mp4")
            assert all(frame.shape == (reader.height, reader.width, 3) for frame in reader)
        except InputError as error:
            refused = str(error)
        assert "\n" not in refused


def test_bad_files_print_nothing(tmp_path: Path) -> None:
    make_clip(tmp_path / "p.mp4", moving(30, 96, 128), options={"movflags": "faststart"})
    data = (tmp_path / "p.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    (tmp_path / "odd.mp4").write_bytes(data[:3000] + b"\xff" * 100 + data[3100:])
    code = (
        "import sys\nfrom saccade.errors import SaccadeError\nfrom saccade.io import open_video\n"
        "for name in sys.argv[1:]:\n    try: list(open_video(name))\n    except SaccadeError: pass\n"
    )
    names = [str(tmp_path / name) for name in ("cut.mp4", "odd.mp4", "p.mp4")]
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# --- bad output


def test_an_existing_clip_is_kept_unless_told(tmp_path: Path) -> None:
    (tmp_path / "out.mp4").write_bytes(b"precious")
    with pytest.raises(InputError, match="it exists"):
        VideoWriter(tmp_path / "out.mp4", 32, 32)
    with VideoWriter(tmp_path / "out.mp4", 32, 32, overwrite=True) as writer:
        writer.write(moving(1, 32, 32)[0])
    assert len(list(open_video(tmp_path / "out.mp4"))) == 1


def test_an_exception_an_empty_clip_and_a_forgotten_writer_leave_nothing(tmp_path: Path) -> None:
    def begin() -> None:
        with VideoWriter(tmp_path / "out.mp4", 32, 32) as writer:
            writer.write(moving(1, 32, 32)[0])
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        begin()
    with pytest.raises(UsageError, match="no frame was given"):
        VideoWriter(tmp_path / "out.mp4", 32, 32).close()
    writer = VideoWriter(tmp_path / "out.mp4", 32, 32)
    assert len(leftovers(tmp_path)) == 1
    del writer
    assert leftovers(tmp_path) == []


def test_wrong_calls_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no video encoder named 'h265'"):
        VideoWriter(tmp_path / "out.mp4", 32, 32, codec="h265")
    for quality, codec in ((95, None), (-1, None), (64, "libvpx-vp9")):
        with pytest.raises(UsageError, match="constant rate factor"):
            VideoWriter(tmp_path / "out.mp4", 32, 32, quality=quality, codec=codec)
    with pytest.raises(InputError, match=r"takes no libx264 \("):  # without sound none is blamed
        VideoWriter(tmp_path / "out.webm", 32, 32, codec="libx264")
    with pytest.raises(UsageError, match="cannot tell the container"):
        VideoWriter(tmp_path / "out.png", 32, 32)
    with pytest.raises(InputError, match="there is no folder"):
        VideoWriter(tmp_path / "none" / "out.mp4", 32, 32)
    with pytest.raises(InputError, match=r"use \.mkv"):
        VideoWriter(tmp_path / "out.webm", 32, 32, codec="libx264").write(moving(1, 32, 32)[0])
    writer = VideoWriter(tmp_path / "out.mp4", 32, 32)
    with pytest.raises(UsageError, match=r"takes frames of \(32, 32, 3\)"):
        writer.write(np.zeros((32, 30, 3), np.uint8))
    writer.abort()
    assert leftovers(tmp_path) == []


def test_without_pyav_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UnavailableError, match=r"pip install 'saccade\[video\]'"):
        open_video(tmp_path / "p.mp4")
    with pytest.raises(UnavailableError, match=r"saccade\[video\]"):
        VideoWriter(tmp_path / "p.mp4", 32, 32)


def test_memory_does_not_grow_with_the_length(tmp_path: Path) -> None:
    code = """if True:
        import resource, sys
        import numpy as np
        from saccade.io import VideoWriter, open_video
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        def go(count):
            with VideoWriter(sys.argv[1], 640, 480, preset="ultrafast", overwrite=True) as writer:
                for t in range(count):
                    writer.write(np.full((480, 640, 3), t % 256, np.uint8))
            assert sum(1 for _ in open_video(sys.argv[1])) == count
            return peak()
        print(-go(100) + go(1000))
        """
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "p.mp4")], capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 60  # MB; 900 frames more are 830 MB
