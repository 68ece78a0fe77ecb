"""ResNet-RS's claim: each threshold binds, and a short run gives all figures."""

from __future__ import annotations

import pytest

from saccade.reproduce import Data, Figures
from saccade.reproduce import resnet_rs as claim

GOOD: Figures = {
    "pictures_per_s_resnetrs101_192": 20.0,
    "pictures_per_s_efficientnet_b3_300": 13.0,
    "accuracy_rs": 99.0,
    "accuracy_plain": 98.0,
}


@pytest.mark.parametrize(
    ("name", "value"),
    [("pictures_per_s_efficientnet_b3_300", 20.0), ("accuracy_plain", 99.1), ("accuracy_rs", 96.9)],
)
def test_each_threshold_binds(name: str, value: float) -> None:
    assert claim.met(GOOD)
    assert not claim.met({**GOOD, name: value})


def test_the_small_networks_are_of_the_card() -> None:
    assert sum(p.numel() for p in claim.rs().parameters()) == 240_136


@pytest.mark.slow
def test_a_short_run_gives_all_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "STEPS", 2)
    monkeypatch.setattr(claim, "BATCH", 1)
    figures = claim.run(Data(), 0)
    assert set(GOOD) <= set(figures)
