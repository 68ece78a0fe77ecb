"""UniRepLKNet's claim: each threshold binds, how far it sees is measured, and a short run gives all figures."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from saccade.reproduce import Figures
from saccade.reproduce import unireplknet as claim

GOOD: Figures = {
    "field_99_13x13": 0.7,
    "field_99_3x3": 0.05,
    "accuracy_unireplknet": 92.5,
    "changed_predictions": 0,
    "largest_change_of_a_logit": 2e-5,
    "pictures_per_s_merged": 60.0,
    "pictures_per_s_branches": 50.0,
}


def test_each_threshold_binds(binds: Callable[..., None]) -> None:
    changes = {
        "field_99_3x3": 0.18,
        "accuracy_unireplknet": 91.9,
        "changed_predictions": 1,
        "largest_change_of_a_logit": 1e-3,
        "pictures_per_s_branches": 55.0,
    }
    binds(claim, GOOD, changes)


def test_a_share_is_the_least_area() -> None:
    gradient = torch.zeros(1, 3, 10, 10)
    gradient[:, 0, 3, 4], gradient[:, 2, 3, 4], gradient[:, 1, 0, 0] = 5.0, -4.0, 1.0
    assert claim.share(gradient, 0.9) == pytest.approx(0.01)
    assert claim.share(gradient, 0.99) == pytest.approx(0.02)
    assert claim.share(torch.ones(1, 3, 10, 10), 0.9) == pytest.approx(0.9, abs=0.011)


@pytest.mark.slow
def test_large_kernels_see_four_times_the_area() -> None:
    assert claim.field_shares(13, 0)[0] >= 4 * claim.field_shares(3, 0)[0]


@pytest.mark.slow
def test_a_short_run_gives_all_figures(short_run: Callable[..., Figures]) -> None:
    figures = short_run(claim, STEPS=2, BATCH=1, FIELD=128)
    assert set(GOOD) <= set(figures)
    assert figures["parameters_branches"] > figures["parameters_merged"]
    assert figures["changed_predictions"] == 0
