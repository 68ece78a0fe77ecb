"""ShiftAddViT's claim: each threshold binds, and a short run gives all figures."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from saccade.reproduce import Figures
from saccade.reproduce import shiftaddvit as claim

GOOD: Figures = {
    "accuracy_dense": 95.0,
    "accuracy_all_mlps_shift": 90.0,
    "accuracy_tuned": 95.5,
    "accuracy_mixture": 95.0,
    "accuracy_additive": 94.6,
    "shift_share_6_4": 0.6,
    "shift_share_3_1": 0.75,
    "shift_share_6_4_loss_off": 0.0,
    "shift_share_3_1_loss_off": 0.0,
    "packed_difference": 0.0,
    "packed_bits_a_weight": 5.0,
}


def test_each_threshold_binds(binds: Callable[..., None]) -> None:
    changes = {
        "accuracy_all_mlps_shift": 92.1,
        "accuracy_mixture": 94.4,
        "accuracy_additive": 94.4,
        "shift_share_6_4": 0.71,
        "shift_share_3_1": 0.64,
        "shift_share_6_4_loss_off": 0.55,
        "packed_difference": 1e-6,
        "packed_bits_a_weight": 5.1,
    }
    binds(claim, GOOD, changes)


@pytest.mark.slow
def test_a_short_run_gives_all_figures(short_run: Callable[..., Figures]) -> None:
    figures = short_run(claim, STEPS=2, EPOCHS_STEPS=2, ROUTER_STEPS=2)
    assert set(GOOD) <= set(figures)
    assert figures["difference_when_packed"] < 1e-3
