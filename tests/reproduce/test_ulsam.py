"""ULSAM's claim: each threshold binds, and a short run gives all figures."""

from __future__ import annotations

import pytest

from saccade.registry import create
from saccade.reproduce import Data, Figures
from saccade.reproduce import ulsam as claim

GOOD: Figures = {"accuracy_whole": 98.0, "accuracy_replaced": 95.0, "ms_looped": 1.6, "ms_grouped": 1.0}


@pytest.mark.parametrize(
    ("name", "value"), [("accuracy_replaced", 91.9), ("accuracy_whole", 101.1), ("ms_grouped", 1.07)]
)
def test_each_threshold_binds(name: str, value: float) -> None:
    assert claim.met(GOOD)
    assert not claim.met({**GOOD, name: value})


def test_the_small_networks_are_of_the_card() -> None:
    counts = [
        sum(p.numel() for p in create("ulsam_mobilenetv2", weights=None, replace=r, **claim.SMALL).parameters())
        for r in ((), claim.REPLACED)
    ]
    assert counts == [167_488, 110_824]


@pytest.mark.slow
def test_a_short_run_gives_all_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "STEPS", 2)
    monkeypatch.setattr(claim, "ROUNDS", 1)
    figures = claim.run(Data(), 0)
    assert set(GOOD) <= set(figures)
