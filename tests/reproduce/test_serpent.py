"""Serpent's claim, cut short: all figures there, thresholds those of the card, nothing claimed against the twin."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from saccade.reproduce import Figures
from saccade.reproduce import serpent as claim

GOOD: Figures = {
    "hostile_steps_nan_outputs": 0,
    "hostile_steps_relative_error": 1e-7,
    "exponent_forward": 1.05,
    "exponent_both": 0.95,
    "gradient_opposite_corner": 1e-9,
    "gain_db": 0.7,
}


def test_each_threshold_binds(binds: Callable[..., None]) -> None:
    changes = {
        "hostile_steps_nan_outputs": 1,
        "hostile_steps_relative_error": 2.1e-7,
        "exponent_forward": 1.11,
        "exponent_both": 0.89,
        "gradient_opposite_corner": 0.0,
        "gain_db": 0.69,
    }
    binds(claim, GOOD, changes)


def test_the_usual_closed_form_breaks_where_the_scan_does_not() -> None:
    found = claim.stability(0)
    assert found["hostile_steps_outputs"] == 12_288
    assert found["hostile_steps_nan_outputs"] == 0
    assert found["hostile_steps_relative_error"] <= 2e-7
    assert found["hostile_steps_nan_outputs_cumsum_form"] > 9_000


def test_the_exponent_is_the_slope_of_the_logarithms() -> None:
    assert claim.slope([10, 100, 1000], [2.0, 20.0, 200.0]) == pytest.approx(1)
    assert claim.slope([10, 100, 1000], [2.0, 200.0, 20_000.0]) == pytest.approx(2)


@pytest.mark.slow
def test_a_short_run_on_generated_pictures_gives_every_figure(
    short_run: Callable[..., Figures], tmp_path: Path
) -> None:
    figures = short_run(claim, STEPS=2, BATCH=1, SIDES=(16, 32), ATTENDED=(8, 16))
    for name in ("serpent", "twin", "twin_equal_time", "scale_1"):
        for what in ("psnr_db", "seconds", "parameters", "gmacs_256"):
            assert figures[f"{what}_{name}"] > 0
    assert figures["parameters_serpent"] == 1_159_299
    assert figures["steps_twin_equal_time"] >= 2
    assert isinstance(claim.met(figures), bool)
    claim.plot(figures, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000
