"""SHViT's claim: each threshold binds, and a short run gives all figures."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from saccade.reproduce import Figures
from saccade.reproduce import shvit as claim

GOOD: Figures = {
    "pictures_per_s_shvit_s4": 100.0,
    "pictures_per_s_mobilevitv2_100": 33.0,
    "pictures_per_s_shvit_s1": 200.0,
    "pictures_per_s_shvit_s1_unfused": 150.0,
    "accuracy_shvit": 93.0,
}


def test_each_threshold_binds(binds: Callable[..., None]) -> None:
    changes = {
        "pictures_per_s_mobilevitv2_100": 34.0,
        "pictures_per_s_shvit_s1_unfused": 201.0,
        "accuracy_shvit": 91.9,
    }
    binds(claim, GOOD, changes)


@pytest.mark.slow
def test_a_short_run_gives_all_figures(short_run: Callable[..., Figures]) -> None:
    figures = short_run(claim, STEPS=2, BATCH=1)
    assert set(GOOD) <= set(figures)
    assert figures["parameters_shvit"] > figures["parameters_without_attention"]
