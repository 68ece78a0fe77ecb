"""ResNet-RS's claim: each threshold binds, and a short run gives all figures."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from saccade.reproduce import Figures
from saccade.reproduce import resnet_rs as claim

GOOD: Figures = {
    "pictures_per_s_resnetrs101_192": 20.0,
    "pictures_per_s_efficientnet_b3_300": 13.0,
    "accuracy_rs": 99.0,
    "accuracy_plain": 98.0,
}


def test_each_threshold_binds(binds: Callable[..., None]) -> None:
    binds(claim, GOOD, {"pictures_per_s_efficientnet_b3_300": 20.0, "accuracy_plain": 99.1, "accuracy_rs": 96.9})


def test_the_small_networks_are_of_the_card() -> None:
    assert sum(p.numel() for p in claim.rs().parameters()) == 240_136


@pytest.mark.slow
def test_a_short_run_gives_all_figures(short_run: Callable[..., Figures]) -> None:
    figures = short_run(claim, STEPS=2, BATCH=1)
    assert set(GOOD) <= set(figures)
