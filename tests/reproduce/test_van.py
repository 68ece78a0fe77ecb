"""VAN's claim: each threshold binds, and a short run gives all figures."""

from __future__ import annotations

import pytest

from saccade.backbones.van import LargeKernelAttention
from saccade.reproduce import Data, Figures
from saccade.reproduce import van as claim

GOOD: Figures = {
    "field_side": 23,
    "field_side_undilated": 11,
    "change_if_gates_add": 0.5,
    "accuracy_van": 90.5,
    "pictures_per_s_folded": 50.0,
    "pictures_per_s_plain": 40.0,
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("field_side", 11),
        ("field_side_undilated", 23),
        ("change_if_gates_add", 0.0),
        ("accuracy_van", 89.9),
        ("pictures_per_s_plain", 51.0),
    ],
)
def test_each_threshold_binds(name: str, value: float) -> None:
    assert claim.met(GOOD)
    assert not claim.met({**GOOD, name: value})


def test_the_reach_is_measured() -> None:
    assert claim.field_side(LargeKernelAttention(2)) == 23
    assert claim.field_side(LargeKernelAttention(2, 35, 5)) == 9 + 6 * 5
    assert claim.field_side(claim.undilated(LargeKernelAttention(2))) == 11


@pytest.mark.slow
def test_a_short_run_gives_all_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "STEPS", 2)
    monkeypatch.setattr(claim, "BATCH", 1)
    figures = claim.run(Data(), 0)
    assert set(GOOD) <= set(figures)
    assert figures["parameters_van"] == 487_784
