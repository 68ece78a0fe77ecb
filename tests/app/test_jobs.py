from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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
