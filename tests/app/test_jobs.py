from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saccade.app import jobs
from saccade.app.jobs import JOBS, Limits, offered, run
from saccade.errors import InputError, UsageError


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a b.png")
    return tmp_path / "a b.png"


@pytest.mark.parametrize("job", ["upscale", "restore", "rescale"])
def test_a_job_makes_a_result_previews_of_one_size_and_tells_the_cost(job: str, picture: Path, tmp_path: Path) -> None:
    shares: list[float] = []
    made = run(job, picture, tmp_path, advance=shares.append, limits=Limits(threads=1))
    assert made.made is not None
    assert made.made.exists()
    assert made.before is not None
    assert made.after is not None
    with Image.open(made.before) as before, Image.open(made.after) as after:
        assert before.size == after.size
    assert made.told[0].endswith(("KB", "download it"))
    assert shares[-1] == pytest.approx(1.0)


def test_a_dial_that_turns_nothing_is_told(picture: Path, tmp_path: Path) -> None:
    made = jobs.run("restore", picture, tmp_path, dial=0.3, task="weather")
    assert any("dial turns nothing" in line for line in made.told)


def test_a_picture_is_scored_where_weights_for_it_ship(picture: Path, tmp_path: Path) -> None:
    big = tmp_path / "big.png"
    with Image.open(picture) as opened:
        opened.convert("RGB").resize((200, 160)).save(big)
    if "score" not in offered():
        with pytest.raises(UsageError, match="no weights ship for reiqa_small"):
            run("score", big, tmp_path, limits=Limits(threads=1))
        return
    made = run("score", big, tmp_path, limits=Limits(threads=1))
    assert "quality" in made.told[0]
    assert made.made is None


def test_what_is_beyond_the_limits_is_refused(picture: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="megapixels"):
        run("upscale", picture, tmp_path, limits=Limits(megapixels=0.001))
    with pytest.raises(InputError, match="MB"):
        run("upscale", picture, tmp_path, limits=Limits(megabytes=0.001))
    with pytest.raises(UsageError, match="the dial of upscale"):
        run("upscale", picture, tmp_path, dial=2.0)
    with pytest.raises(UsageError, match="no job named"):
        run("paint", picture, tmp_path)
    (tmp_path / "notes.txt").write_text("words")
    for job in JOBS:
        with pytest.raises(InputError, match=r"notes\.txt"):
            run(job, tmp_path / "notes.txt", tmp_path)


def test_a_file_that_is_gone_is_said(tmp_path: Path) -> None:
    for job in JOBS:
        with pytest.raises(InputError, match=r"cannot read .*gone\.png: no such file"):
            run(job, tmp_path / "gone.png", tmp_path)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    pytest.importorskip("av", reason="clips need the extra 'video'")
    from saccade.io.video import VideoWriter

    with VideoWriter(tmp_path / "clip.mp4", 48, 32, preset="ultrafast") as writer:
        for i in range(6):
            writer.write(np.full((32, 48, 3), 40 * i, np.uint8))
    return tmp_path / "clip.mp4"


@pytest.mark.parametrize(("job", "size"), [("upscale", (96, 64)), ("restore", (48, 32))])
def test_a_clip_comes_out_as_a_clip_with_previews_of_its_first_frame(
    job: str, size: tuple[int, int], clip: Path, tmp_path: Path
) -> None:
    from saccade.io import open_video

    out = tmp_path / "out"
    out.mkdir()
    made = run(job, clip, out, dial=0.1, limits=Limits(threads=1))
    assert made.made is not None
    found = open_video(made.made)
    assert (found.width, found.height, len(list(found))) == (*size, 6)
    assert "6 frames" in made.told[0]
    assert made.after is not None
    with Image.open(made.after) as after:
        assert after.size == size
    for still in ("rescale", "score"):
        with pytest.raises(InputError, match="is a clip; only pictures"):
            run(still, clip, out)


def test_a_clip_beyond_the_limit_is_refused_and_one_that_hides_its_length_is_stopped(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from saccade.io import VideoReader

    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(InputError, match="6 frames; this page takes 4"):
        run("upscale", clip, out, limits=Limits(frames=4, threads=1))
    read = VideoReader.__init__

    def without_count(self: VideoReader, path: Path) -> None:
        read(self, path)
        self.frames = 0

    monkeypatch.setattr(VideoReader, "__init__", without_count)
    with pytest.raises(InputError, match="more than the 4 frames"):
        run("upscale", clip, out, dial=0.1, limits=Limits(frames=4, threads=1))
    assert list(out.iterdir()) == [], "nothing half-written is left"
    assert run("upscale", clip, out, dial=0.1, limits=Limits(frames=6, threads=1)).made is not None


@pytest.mark.parametrize(
    "limits", [{"megabytes": 0}, {"megapixels": -1.0}, {"frames": 0}, {"megabytes": float("nan")}, {"threads": -1}]
)
def test_limits_that_let_nothing_pass_are_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Limits(**limits)


@pytest.mark.parametrize("size", [(900, 37), (3, 1000), (640, 480), (90, 110)], ids=str)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "I;16"])
def test_previews_are_read_a_few_rows_at_a_time(
    size: tuple[int, int], mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "PREVIEW", 100)
    y, x = np.mgrid[: size[1], : size[0]]
    grey = (255 * (0.5 + 0.5 * np.sin(x / 40 + y / 60))).astype(np.uint8)
    pixels = {
        "RGB": np.stack([grey, 255 - grey, grey // 2], -1),
        "RGBA": np.stack([grey, 255 - grey, grey // 2, np.full_like(grey, 128)], -1),
        "L": grey,
        "I;16": grey.astype(np.uint16) * 257,
    }[mode]
    Image.fromarray(pixels).save(tmp_path / "a.png")
    made = jobs._picture(tmp_path / "a.png")
    assert max(made.size) < 200
    rgb = pixels if pixels.ndim == 3 else np.repeat((pixels // (257 if mode == "I;16" else 1))[:, :, None], 3, 2)
    rgb = 255 + (rgb[..., :3] - 255.0) * 128 / 255 if mode == "RGBA" else rgb
    whole = [n // m * m for n, m in zip(rgb.shape, made.size[::-1], strict=False)]  # what fills no block is left out
    wanted = Image.fromarray(rgb[: whole[0], : whole[1]].astype(np.uint8)).resize(made.size, Image.Resampling.BOX)
    assert made.mode == "RGB"
    assert np.abs(np.asarray(made, float) - np.asarray(wanted, float)).mean() < 2
