"""FIT's claim: each threshold binds, and a short run gives all figures."""

from __future__ import annotations

from typing import Any

import pytest

from saccade.reproduce import Data, Figures
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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("exponents_fit", [0.9, 1.36]),
        ("exponents_plain", [1.55, 1.9]),
        ("seconds_plain_16384", 4.9),
        ("accuracy_fit", 96.9),
        ("accuracy_local_alone", 20.1),
        ("decoder_difference_before", 1e-7),
        ("decoder_changed_behind", 0.99),
        ("bits_a_token_fit", 2.6),
        ("noise_loss", 1.0),
    ],
)
def test_each_threshold_binds(name: str, value: Any) -> None:
    assert claim.met(GOOD)
    assert not claim.met({**GOOD, name: value})


@pytest.mark.slow
def test_a_short_run_gives_all_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "LENGTHS", (128, 512))
    for name in ("STEPS", "COPY_STEPS", "NOISE_STEPS"):
        monkeypatch.setattr(claim, name, 2)
    figures = claim.run(Data(), 0)
    assert {k for k in GOOD if not k.endswith("16384")} <= set(figures)
    assert figures["seconds_fit_512"] > 0
    assert figures["decoder_difference_before"] == 0
