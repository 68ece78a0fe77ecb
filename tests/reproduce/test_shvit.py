"""SHViT's claim: each threshold binds, and a short run gives all figures."""

from __future__ import annotations

import pytest

from saccade.reproduce import Data, Figures
from saccade.reproduce import shvit as claim

GOOD: Figures = {
    "pictures_per_s_shvit_s4": 100.0,
    "pictures_per_s_mobilevitv2_100": 33.0,
    "pictures_per_s_shvit_s1": 200.0,
    "pictures_per_s_shvit_s1_unfused": 150.0,
    "accuracy_shvit": 93.0,
}


@pytest.mark.parametrize(
    ("name", "value"),
    [("pictures_per_s_mobilevitv2_100", 34.0), ("pictures_per_s_shvit_s1_unfused", 201.0), ("accuracy_shvit", 91.9)],
)
def test_each_threshold_binds(name: str, value: float) -> None:
    assert claim.met(GOOD)
    assert not claim.met({**GOOD, name: value})


@pytest.mark.slow
def test_a_short_run_gives_all_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "STEPS", 2)
    monkeypatch.setattr(claim, "BATCH", 1)
    figures = claim.run(Data(), 0)
    assert set(GOOD) <= set(figures)
    assert figures["parameters_shvit"] > figures["parameters_without_attention"]
