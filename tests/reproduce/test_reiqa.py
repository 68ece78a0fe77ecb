"""The claim of Re-IQA runs on generated pictures; its statistics made by hand are sane; its inequality is the claim."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from saccade.data.distortions import distort
from saccade.quality.reiqa.synthetic import KINDS
from saccade.reproduce import Data, reiqa


@pytest.mark.slow
def test_the_claim_runs_on_generated_pictures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(reiqa, "STEPS", 3)
    monkeypatch.setattr(reiqa, "SIDE", 96)
    monkeypatch.setattr(reiqa, "RECIPE", replace(reiqa.RECIPE, pictures=2, copies=3))
    with Data() as data:
        figures = reiqa.run(data, 0)
    for name in ("untrained", "by_hand", "content", "quality", "both"):
        assert -1 <= figures[f"srcc_{name}"] <= 1
        assert set(figures[f"srcc_{name}_by_kind"]) == set(KINDS)
    assert math.isfinite(figures["levels_moved_by_the_crop"])
    assert figures["pairs"] == 3 * 2 * 2 * 4
    assert isinstance(reiqa.met(figures), bool)
    pytest.importorskip("matplotlib")
    reiqa.plot(figures, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 5000


def test_statistics_of_brightness_follow_noise() -> None:
    y, x = np.mgrid[:128, :128]
    ground = np.clip(128 + 50 * np.sin(x / 7) * np.cos(y / 9), 0, 255).astype(np.uint8)[..., None].repeat(3, 2)
    found = [reiqa.brightness_statistics(distort(ground, "white_noise", level, 0)) for level in (0, 2, 4)]
    assert found[0].shape == (22,)
    assert np.isfinite(found).all()
    assert found[0][3] < found[1][3] < found[2][3], "local deviation"


@pytest.mark.parametrize(
    ("change", "holds"),
    [
        ({}, True),
        ({"srcc_quality": 0.79}, False),
        ({"srcc_untrained": 0.76}, False),
        ({"srcc_content": 0.82}, False),
        ({"srcc_both": 0.83}, False),
        ({"levels_moved_by_the_crop": 1.1}, False),
    ],
)
def test_the_claim_is_its_inequalities(change: dict[str, float], holds: bool) -> None:
    figures = {
        "srcc_quality": 0.85,
        "srcc_untrained": 0.5,
        "srcc_content": 0.7,
        "srcc_both": 0.845,
        "levels_moved_by_the_crop": 0.5,
    }
    assert reiqa.met(figures | change) is holds
