"""VAN's claim: each threshold binds, and a short run gives all figures."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from saccade.backbones.van import LargeKernelAttention
from saccade.reproduce import Figures
from saccade.reproduce import van as claim

GOOD: Figures = {
    "field_side": 23,
    "field_side_undilated": 11,
    "change_if_gates_add": 0.5,
    "accuracy_van": 90.5,
    "pictures_per_s_folded": 50.0,
    "pictures_per_s_plain": 40.0,
}


def test_each_threshold_binds(binds: Callable[..., None]) -> None:
    changes = {
        "field_side": 11,
        "field_side_undilated": 23,
        "change_if_gates_add": 0.0,
        "accuracy_van": 89.9,
        "pictures_per_s_plain": 51.0,
    }
    binds(claim, GOOD, changes)


def test_the_reach_is_measured() -> None:
    assert claim.field_side(LargeKernelAttention(2)) == 23
    assert claim.field_side(LargeKernelAttention(2, 35, 5)) == 9 + 6 * 5
    assert claim.field_side(claim.undilated(LargeKernelAttention(2))) == 11


@pytest.mark.slow
def test_a_short_run_gives_all_figures(short_run: Callable[..., Figures]) -> None:
    figures = short_run(claim, STEPS=2, BATCH=1)
    assert set(GOOD) <= set(figures)
    assert figures["parameters_van"] == 487_784
