"""Footage and the clips that are drawn from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from saccade.data.clips import ClipPairs, clip_degradation, footage, held_out_clips, sharpened
from saccade.data.generated import dead_leaves
from saccade.errors import InputError, UsageError
from saccade.ops.resize import resize


def write_frames(folder: Path, count: int, height: int = 48, width: int = 56, seed: int = 0) -> np.ndarray:
    """A window that slides by two pixels a frame, as pictures; returns what was written, (count, H, W, 3)."""
    whole = dead_leaves(height, width + 2 * count, seed)
    frames = np.stack([whole[:, 2 * i : 2 * i + width] for i in range(count)])
    folder.mkdir(parents=True)
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{i}.png")  # 10 comes after 9, not after 1
    return frames


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_frames(tmp_path / "data" / "a", 12)
    write_frames(tmp_path / "data" / "deep" / "b", 5, seed=1)
    return tmp_path / "data"


def pairs(data: Path, **options: Any) -> ClipPairs:
    chosen: dict[str, Any] = {"frames": 6, "loaded": 3, "degrade": clip_degradation("bicubic", 4), **options}
    return ClipPairs(footage(data), 8, **chosen)


def by_hand(x: Tensor, weight: float, threshold: float) -> Tensor:
    """Unsharp masking of one channel in plain loops over a 51 x 51 window of a mirrored picture."""
    sigma, reach = 0.3 * (25 - 1) + 0.8, 25
    line = torch.exp(-(torch.arange(-reach, reach + 1, dtype=torch.float64) ** 2) / (2 * sigma**2))
    kernel = torch.outer(line, line) / line.sum() ** 2

    def blurred(y: Tensor) -> Tensor:
        padded = torch.from_numpy(np.pad(y.numpy(), reach, "reflect"))
        out = torch.empty_like(y)
        for r in range(y.shape[0]):
            for c in range(y.shape[1]):
                out[r, c] = (padded[r : r + 51, c : c + 51] * kernel).sum()
        return out

    rest = x - blurred(x)
    where = blurred((rest.abs() * 255 > threshold).double())
    return where * (x + weight * rest).clamp(0, 1) + (1 - where) * x


def test_sharpening_is_the_published_unsharp_mask() -> None:
    picture = torch.from_numpy(dead_leaves(52, 54, 3)).permute(2, 0, 1).double() / 255
    found = sharpened(picture[None].float())[0]
    expected = torch.stack([by_hand(channel, 0.5, 10) for channel in picture])
    torch.testing.assert_close(found, expected.float(), atol=1e-5, rtol=1e-4)
    assert float((found - picture.float()).abs().max()) > 0.05
    flat = torch.full((1, 3, 30, 30), 0.4)
    torch.testing.assert_close(sharpened(flat), flat)


def test_footage_is_videos_and_folders_of_frames_in_natural_order(data: Path) -> None:
    found = footage(data)
    assert [(c.path.name, c.frames, c.size) for c in found] == [("a", 12, (48, 56)), ("b", 5, (48, 56))]
    last = found[0].read(9, 3)
    assert torch.equal(last[1], torch.from_numpy(np.array(Image.open(data / "a" / "10.png"))).permute(2, 0, 1))


def test_a_video_gives_the_frames_that_were_put_in(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="needs the extra 'video'")
    from saccade.io.video import VideoWriter

    frames = write_frames(tmp_path / "frames", 9, 64, 64)
    (tmp_path / "data").mkdir()
    with VideoWriter(tmp_path / "data" / "clip.mp4", 64, 64, quality=1) as writer:
        for frame in frames:
            writer.write(frame)
    [clip] = footage(tmp_path / "data")
    assert (clip.frames, clip.size) == (9, (64, 64))
    made = clip.read(4, 3).permute(0, 2, 3, 1).numpy().astype(float)
    errors = [np.abs(made - frames[i : i + 3].astype(float)).mean() for i in range(7)]
    assert int(np.argmin(errors)) == 4


def test_clips_depend_on_seed_step_and_rank_alone(data: Path) -> None:
    clips = pairs(data)
    low, high = clips.batch(3, seed=1, step=2)
    assert (low.shape, high.shape) == ((3, 6, 3, 8, 8), (3, 6, 3, 32, 32))
    again = pairs(data).batch(3, seed=1, step=2)
    assert all(torch.equal(a, b) for a, b in zip((low, high), again, strict=True))
    for other in ({"seed": 2, "step": 2}, {"seed": 1, "step": 3}, {"seed": 1, "step": 2, "rank": 1}):
        assert not torch.equal(clips.batch(3, **other)[1], high)


def test_workers_give_the_same_clips_also_after_a_jump(data: Path) -> None:
    alone, ahead = pairs(data), pairs(data, workers=1)
    for step in (0, 1, 7, 8):
        for a, b in zip(alone.batch(2, 0, step), ahead.batch(2, 0, step), strict=True):
            assert torch.equal(a, b)


def test_low_frames_are_the_sharpened_high_ones_reduced(data: Path) -> None:
    low, high = pairs(data).batch(1, 0, 0)
    expected = resize(sharpened(high[0]) * 255, 0.25).round().clamp(0, 255) / 255
    torch.testing.assert_close(low[0], expected)


def test_few_frames_run_to_and_fro_and_enough_do_not(data: Path) -> None:
    for step in range(4):
        _, high = pairs(data, frames=9, loaded=3).batch(1, 0, step)
        assert len({frame.numpy().tobytes() for frame in high[0]}) == 3
        _, high = pairs(data, frames=4, loaded=4).batch(1, 0, step)
        assert len({frame.numpy().tobytes() for frame in high[0]}) == 4
    _, high = pairs(data, frames=40, loaded=40, stay=0.5).batch(1, 0, 0)  # no footage is that long
    same = [torch.equal(a, b) for a, b in zip(high[0, :-1], high[0, 1:], strict=True)]
    assert 8 <= sum(same) <= 32


def test_some_clips_stand_still(data: Path) -> None:
    clips = pairs(data, still=0.5)
    different = [len({frame.numpy().tobytes() for frame in clips.batch(1, 0, step)[1][0]}) for step in range(12)]
    assert set(different) == {1, 3}


def test_processor_time_of_reading_and_degrading_is_told(data: Path) -> None:
    clips = pairs(data, frames=12, loaded=3)
    assert all(seconds > 0 for seconds in clips.seconds(seed=0))


def test_held_out_clips_are_the_same_every_time(data: Path) -> None:
    degrade = clip_degradation("bicubic", 4)
    first, second = (held_out_clips(footage(data), degrade, frames=4, side=40) for _ in range(2))
    assert [(low.shape, high.shape) for low, high in first] == [((1, 4, 3, 10, 10), (1, 4, 3, 40, 40))] * 2
    assert all(torch.equal(a, b) for one, two in zip(first, second, strict=True) for a, b in zip(one, two, strict=True))


def test_the_whole_chain_with_its_codec_gives_levels_of_a_byte(data: Path) -> None:
    pytest.importorskip("av", reason="needs the extra 'video'")
    low, _ = pairs(data, degrade=clip_degradation("second-order", 4)).batch(1, 0, 0)
    levels = low * 255
    assert low.shape == (1, 6, 3, 8, 8)
    assert float((levels - levels.round()).abs().max()) < 1e-3


def test_what_cannot_be_used_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder of clips at"):
        footage(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no clip")
    with pytest.raises(InputError, match="neither videos nor folders of frames"):
        footage(tmp_path / "empty")
    with pytest.raises(InputError, match="smaller than a crop of 96 x 96 px"):
        ClipPairs(footage(data), 24, degrade=clip_degradation("bicubic", 4))
    with pytest.raises(UsageError, match="second-order or bicubic"):
        clip_degradation("dirt", 4)
    Image.new("RGB", (50, 48)).save(data / "a" / "5.png")
    with pytest.raises(InputError, match=r"5\.png is of 50 x 48 px, the first of its folder of 56 x 48"):
        footage(data)[0].read(3, 4)
    (data / "a" / "0.png").write_bytes(b"words")
    with pytest.raises(InputError, match=r"cannot read .*0\.png"):
        footage(data)
