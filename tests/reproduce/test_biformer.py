"""BiFormer's claim: each threshold binds, and a short run gives all figures."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from saccade.reproduce import Figures
from saccade.reproduce import biformer as claim

GOOD: Figures = {
    "time_share": 0.12,
    "memory_share": 0.02,
    "time_growth": 5.0,
    "memory_growth": 4.0,
    "macs_growth": 6.5,
    "accuracy_525_steps": 75.0,
    "accuracy_1500_steps": 97.0,
    "accuracy_budget_1": 97.0,
    "accuracy_budget_0.75": 94.0,
    "accuracy_budget_0.5": 80.0,
}


def test_each_threshold_binds(binds: Callable[..., None]) -> None:
    changes = {
        "time_share": 0.151,
        "memory_share": 0.151,
        "time_growth": 6.6,
        "memory_growth": 6.6,
        "accuracy_525_steps": 71.9,
        "accuracy_1500_steps": 93.9,
        "accuracy_budget_0.75": 91.9,
        "accuracy_budget_0.5": 76.9,
    }
    binds(claim, GOOD, changes)


@pytest.mark.slow
def test_a_short_run_gives_all_figures(short_run: Callable[..., Figures]) -> None:
    figures = short_run(claim, SIDE=28, SIZES=(64, 128), ROUNDS=1, STEPS=(1, 2))
    named = {k.replace("_525_", "_1_").replace("_1500_", "_2_") for k in GOOD}
    assert named <= set(figures)
    assert figures["score_share"] == pytest.approx(4 / 49)
