"""The weights that ship: spoilt pictures get lower scores, kind by kind and level by level; no file has to be named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from saccade.checkpoint import load, read_header
from saccade.cli import main
from saccade.data.distortions import distort
from saccade.quality.reiqa.network import ReIQA
from saccade.quality.reiqa.scoring import Scorer, read_pixels
from saccade.quality.reiqa.synthetic import FAMILIES, KINDS, pieces, save_small, score_agreement, score_pieces
from saccade.registry import WEIGHTS, create, default_weights

DATA = Path(os.environ.get("SACCADE_DATA", Path(__file__).parents[4] / "shared" / "data"))
pytestmark = pytest.mark.skipif(default_weights("reiqa_small") is None, reason="no weights ship for reiqa_small")
needs_data = pytest.mark.skipif(not (DATA / "kodak").is_dir(), reason="no test pictures: set SACCADE_DATA")
FITTED = [kind for family in FAMILIES for kind in family]


def photographs() -> list[Path]:
    return sorted((DATA / "kodak").glob("*.png"))


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer(threads=1)


@needs_data
@pytest.mark.parametrize("kind", FITTED)
def test_heavily_spoilt_photographs_score_below_untouched_ones(scorer: Scorer, kind: str) -> None:
    below = []
    for i, file in enumerate(photographs()[:4]):
        pixels = np.ascontiguousarray(read_pixels(file)[0][:320, :320])
        below.append(scorer.score(pixels) - scorer.score(distort(pixels, kind, 4, i)))
    assert np.mean(below) > 0, below


@needs_data
def test_scores_fall_with_the_level_of_every_kind() -> None:
    """Means over Kodak, which nothing was fitted to."""
    model = create("reiqa_small")
    assert isinstance(model, ReIQA)
    rated = pieces(photographs())
    scores, levels, kinds = score_pieces(model, rated), [r.level for r in rated], [r.kind for r in rated]
    for kind in KINDS:
        means = [
            np.mean([s for s, n, k in zip(scores, levels, kinds, strict=True) if (n, k) == (level, kind)])
            for level in range(1, 6)
        ]
        assert (np.diff(means) < 0).all(), (kind, means)


@needs_data
@pytest.mark.slow
def test_kodak_comes_out_as_the_card_says() -> None:
    table = json.loads((WEIGHTS / "weights.json").read_text())["reiqa_small.safetensors"]
    model = create("reiqa_small")
    assert isinstance(model, ReIQA)
    found = score_agreement(model, photographs())
    assert found == pytest.approx(table["figures"]["kodak"], abs=0.005)


def test_the_score_command_needs_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    from saccade.runtime.scene import scene

    sharp = np.asarray(scene(160, 200))
    Image.fromarray(sharp).save(tmp_path / "sharp.png")
    Image.fromarray(distort(sharp, "gaussian_blur", 4, 0)).save(tmp_path / "soft.png")
    with pytest.raises(SystemExit) as stopped:
        main(["score", str(tmp_path), "--json"])
    assert stopped.value.code == 0
    rows = {Path(row["path"]).name: row["score"] for row in json.loads(capsys.readouterr().out)["results"]}
    assert rows["sharp.png"] > rows["soft.png"]


def test_the_file_holds_half_precision_and_its_own_story(tmp_path: Path) -> None:
    header, tensors = read_header(WEIGHTS / "reiqa_small.safetensors")
    assert header["trained_by"].startswith("saccade train reiqa --data train_free")
    assert tensors["quality.encoder.conv1.weight"]["dtype"] == "F16"
    assert (WEIGHTS / "reiqa_small.safetensors").stat().st_size < 3_000_000
    model = load(WEIGHTS / "reiqa_small.safetensors")
    assert isinstance(model, ReIQA)
    save_small(model, tmp_path / "again.safetensors", training="{}")
    for name, value in load(tmp_path / "again.safetensors").state_dict().items():
        assert (value == model.state_dict()[name]).all(), name
