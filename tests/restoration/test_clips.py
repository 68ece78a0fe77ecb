"""Clips through the command line: from file to file, with sound, times and errors."""

from __future__ import annotations

import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

import saccade
from saccade.checkpoint import save
from saccade.errors import CheckpointError, InputError, UsageError
from saccade.io import open_video
from saccade.registry import create
from saccade.restoration.clips import ClipUpscaler, upscaler
from saccade.restoration.metalens_former import Deblurrer
from saccade.restoration.restore import Restorer
from saccade.restoration.upscale import Upscaler

av = pytest.importorskip("av", reason="needs the extra 'video'")

FRAMES, HEIGHT, WIDTH = 9, 48, 64
TIMES = [0, 40, 80, 160, 200, 240, 320, 360, 400]  # ms: variable


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = create("realbasicvsr_tiny", weights=None, width=8, blocks=1, threshold=0.0)
    with torch.no_grad():
        for layer in (network.cleaning.last, network.tail.last):  # near bilinear enlargement, so that it can be seen
            layer.weight.mul_(0.1)
            layer.bias.zero_()
    save(network, path)
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Moving stripes with a tone, at uneven times."""
    path = tmp_path_factory.mktemp("clips") / "stripes.mp4"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25, options={"crf": "10", "preset": "ultrafast"})
        video.height, video.width, video.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        video.codec_context.time_base = Fraction(1, 1000)
        audio = container.add_stream("aac", rate=44100, layout="mono")
        for pixels, time in zip(stripes(), TIMES, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        tone = 0.3 * np.sin(np.arange(44100 * 2 // 5) * 2 * np.pi * 440 / 44100)
        for start in range(0, len(tone) - 1023, 1024):
            part = av.AudioFrame.from_ndarray(tone[None, start : start + 1024].astype(np.float32), "fltp", "mono")
            part.sample_rate, part.pts, part.time_base = 44100, start, Fraction(1, 44100)
            container.mux(audio.encode(part))
        container.mux(audio.encode(None))
    return path


def stripes() -> list[np.ndarray]:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    grain = np.random.default_rng(0).integers(-12, 12, (HEIGHT, WIDTH, 3))
    return [
        np.clip(128 + 80 * np.sin((x + y + 2 * t) / 7)[..., None] + grain, 0, 255).astype(np.uint8)
        for t in range(FRAMES)
    ]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "saccade.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def sound(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(p) for p in container.demux(audio=0) if p.size]


def check_result(source: Path, target: Path, scale: int) -> None:
    made = open_video(target)
    frames = list(made)
    assert len(frames) == FRAMES
    assert (made.width, made.height) == (scale * WIDTH, scale * HEIGHT)
    assert [round(float(t - made.times[0]) * 1000) for t in made.times] == TIMES
    assert sound(target) == sound(source)
    for small, large in zip(open_video(source), frames, strict=True):
        low = large.reshape(HEIGHT, scale, WIDTH, scale, 3).mean((1, 3))
        assert np.abs(low - small.astype(float)).mean() < 8, "the picture is that of the source"


def test_a_clip_is_enlarged_from_the_command_line_with_a_clip_network(tmp_path, weights, clip):
    done = run("upscale", clip, "--model", weights, "-o", tmp_path / "out.mp4", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)["results"][0]
    assert report["frames"] == FRAMES
    assert report["macs"] > 0
    assert "about" in done.stderr, "the time is estimated before the start"
    assert "for 9 frames" in done.stderr
    check_result(clip, tmp_path / "out.mp4", 4)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.mp4"]


def test_a_clip_is_enlarged_from_the_command_line_with_the_default_network(tmp_path, clip):
    done = run("upscale", clip, "-o", tmp_path / "out.mp4")
    assert done.returncode == 0, done.stderr
    check_result(clip, tmp_path / "out.mp4", 2)


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_the_file_holds_what_the_network_gives(tmp_path, weights, clip, backend):
    if backend == "openvino":
        pytest.importorskip("openvino")
    worker = upscaler(weights, backend=backend, threads=1)
    assert isinstance(worker, ClipUpscaler)
    report = worker.video(clip, tmp_path / "out.mp4", quality=1)
    assert (report.frames, report.backend) == (FRAMES, backend)
    assert report.notices == [f"{clip} is below 64 pixels a side: large motion in it is not followed"]
    frames = torch.from_numpy(np.stack(list(open_video(clip)))).permute(0, 3, 1, 2)[None].float() / 255
    with torch.no_grad():
        want = worker.network(frames)[0].clamp(0, 1).permute(0, 2, 3, 1).mul(255).numpy()
    assert np.abs(np.stack(list(open_video(tmp_path / "out.mp4"))) - want).mean() < 3


def test_a_clip_is_deblurred_with_a_grid_of_functions_at_one_level(tmp_path, clip):
    place = np.arange(5) - 2
    psf = np.exp(-(place[:, None] ** 2 + place**2) / 2.0)
    np.save(tmp_path / "psf.npy", np.broadcast_to(psf[..., None], (2, 2, 5, 5, 1)))
    worker = Restorer("deblur", psf=tmp_path / "psf.npy", threads=1)
    report = worker.video(clip, tmp_path / "out.mp4", quality=1)
    assert (report.frames, report.model, report.made) == (FRAMES, "Wiener filter", (WIDTH, HEIGHT))
    frames = list(open_video(clip))
    wanted = np.stack(list(Deblurrer(tmp_path / "psf.npy").frames(frames)))  # K is chosen on the first
    assert np.abs(np.stack(list(open_video(tmp_path / "out.mp4"))) - wanted.astype(float)).mean() < 3
    assert np.abs(wanted - np.stack(frames).astype(float)).mean() > 1
    assert sound(tmp_path / "out.mp4") == sound(clip)


def test_what_a_clip_could_not_keep_is_told_by_every_worker(tmp_path, clip):
    with av.open(str(tmp_path / "odd.mkv"), "w") as container:
        video = container.add_stream("ffv1", rate=25)
        video.height, video.width, video.pix_fmt = 33, 41, "yuv420p"
        for i in range(2):
            frame = av.VideoFrame.from_ndarray(np.full((33, 41, 3), 90 * i, np.uint8), format="rgb24")
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    report = Restorer(threads=1).video(tmp_path / "odd.mkv", tmp_path / "out.webm")
    assert any("needs even sides" in notice for notice in report.notices), report.notices


def test_a_global_network_on_tiles_of_a_clip_says_so(tmp_path, clip):
    save(create("histoformer_tiny", weights=None), tmp_path / "h.safetensors")
    worker = Restorer(model=tmp_path / "h.safetensors", max_memory=4 << 30, threads=1)
    report = worker.video(clip, tmp_path / "whole.mp4")
    assert (report.tiles, report.notices) == (FRAMES, [])
    worker.engine().tile = (64, 32)
    report = worker.video(clip, tmp_path / "tiled.mp4")
    assert report.tiles == 2 * FRAMES
    assert "saw 2 overlapping tiles of each frame: an approximation" in report.notices[0]


def test_a_damaged_frame_is_named_and_nothing_is_left(tmp_path, weights, clip):
    with av.open(str(clip)) as container:
        places = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(clip.read_bytes())
    start, size = places[6]
    data[start + size // 3 : start + 2 * size // 3] = bytes(2 * size // 3 - size // 3)
    (tmp_path / "bad.mp4").write_bytes(data)
    for model in (weights, "auto"):
        done = run("upscale", tmp_path / "bad.mp4", "--model", model, "-o", tmp_path / "out.mp4")
        assert done.returncode == 1
        assert "frame 6 is damaged" in done.stderr
        assert [p.name for p in tmp_path.iterdir()] == ["bad.mp4"]


def test_a_clip_that_hides_its_length_gets_an_estimate_of_a_frame(weights, clip):
    worker, reader = upscaler(weights, backend="torch", threads=1), open_video(clip)
    streamer = worker._streamer((reader.height, reader.width))
    assert "for 9 frames" in worker._estimate(streamer, reader)
    reader.frames = 0
    assert "s a frame; how many" in worker._estimate(streamer, reader)


def test_the_dial_limits_the_passes(tmp_path, weights, clip):
    worker = upscaler(weights, budget=0.5, backend="torch", threads=1)
    report = worker.video(clip, tmp_path / "out.mp4")
    assert report.budget["asked"] == 0.5
    assert report.budget["macs_fraction"] == pytest.approx(worker.network.budgets()[0])
    full = upscaler(weights, backend="torch", threads=1).video(clip, tmp_path / "all.mp4")
    assert full.macs > report.macs


def test_pictures_go_through_a_clip_network_too(tmp_path, weights):
    pixels = stripes()[0]
    made = saccade.upscale(pixels, model=weights, threads=1)
    assert made.shape == (4 * HEIGHT, 4 * WIDTH, 3)
    low = made.reshape(HEIGHT, 4, WIDTH, 4, 3).mean((1, 3))
    assert np.abs(low - pixels).mean() < 8


def test_what_a_clip_network_cannot_do_is_refused(tmp_path, weights, clip):
    for options in ({"scale": 2}, {"backend": "onnxruntime"}, {"precision": "int8"}, {"threads": -1}, {"budget": 2}):
        with pytest.raises(UsageError):
            upscaler(weights, **options)
    with pytest.raises(UsageError, match="no weights ship"):
        upscaler("realbasicvsr")
    with pytest.raises(CheckpointError):
        upscaler(tmp_path / "none.safetensors")
    (tmp_path / "there.mp4").write_bytes(b"kept")
    with pytest.raises(InputError, match="overwrite"):
        upscaler(weights, threads=1).video(clip, tmp_path / "there.mp4")
    assert (tmp_path / "there.mp4").read_bytes() == b"kept"


def test_other_networks_keep_their_worker():
    assert isinstance(upscaler("auto"), Upscaler)
    assert isinstance(upscaler("sesr_m5", 3), Upscaler)
