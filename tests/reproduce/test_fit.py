"""FIT's claim: each threshold binds, and a short run gives all figures."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from saccade.reproduce import Figures
from saccade.reproduce import fit as claim

GOOD: Figures = {
    "exponents_fit": [0.9, 1.1],
    "exponents_plain": [1.8, 1.9],
    "seconds_fit_16384": 0.5,
    "seconds_plain_16384": 18.0,
    "accuracy_fit": 100.0,
    "accuracy_local_alone": 12.0,
    "decoder_difference_before": 0.0,
    "decoder_changed_behind": 1.0,
    "bits_a_token_fit": 0.5,
    "bits_a_token_local_alone": 2.5,
    "noise_loss": 0.4,
}


def test_each_threshold_binds(binds: Callable[..., None]) -> None:
    changes = {
        "exponents_fit": [0.9, 1.36],
        "exponents_plain": [1.55, 1.9],
        "seconds_plain_16384": 4.9,
        "accuracy_fit": 96.9,
        "accuracy_local_alone": 20.1,
        "decoder_difference_before": 1e-7,
        "decoder_changed_behind": 0.99,
        "bits_a_token_fit": 2.6,
        "noise_loss": 1.0,
    }
    binds(claim, GOOD, changes)


@pytest.mark.slow
def test_a_short_run_gives_all_figures(short_run: Callable[..., Figures]) -> None:
    figures = short_run(claim, LENGTHS=(128, 512), STEPS=2, COPY_STEPS=2, NOISE_STEPS=2)
    assert {k for k in GOOD if not k.endswith("16384")} <= set(figures)
    assert figures["seconds_fit_512"] > 0
    assert figures["decoder_difference_before"] == 0
