"""ULSAM's claim: each threshold binds, and a short run gives all figures."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from saccade.registry import create
from saccade.reproduce import Figures
from saccade.reproduce import ulsam as claim

GOOD: Figures = {"accuracy_whole": 98.0, "accuracy_replaced": 95.0, "ms_looped": 1.6, "ms_grouped": 1.0}


def test_each_threshold_binds(binds: Callable[..., None]) -> None:
    binds(claim, GOOD, {"accuracy_replaced": 91.9, "accuracy_whole": 101.1, "ms_grouped": 1.07})


def test_the_small_networks_are_of_the_card() -> None:
    counts = [
        sum(p.numel() for p in create("ulsam_mobilenetv2", weights=None, replace=r, **claim.SMALL).parameters())
        for r in ((), claim.REPLACED)
    ]
    assert counts == [167_488, 110_824]


@pytest.mark.slow
def test_a_short_run_gives_all_figures(short_run: Callable[..., Figures]) -> None:
    figures = short_run(claim, STEPS=2, ROUNDS=1)
    assert set(GOOD) <= set(figures)
