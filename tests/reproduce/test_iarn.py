"""IARN's claim: its inequality can fail, a short run has every figure, its measures are what they say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from saccade.registry import create
from saccade.reproduce import Data, Figures, reproduce
from saccade.reproduce import iarn as claim
from saccade.restoration.iarn import IARN

GAINS = {"1.5": 1.0, "2": 0.7, "2.7": 0.5, "4": 0.4, "1.6 x 2.9": 0.5}
LIKE = dict.fromkeys(claim.FACTORS, 36.0)
GOOD: Figures = {
    "gain_over_bicubic_db": GAINS,
    "psnr_rgb_db_small_against_bicubic": LIKE,
    "worth_of_own_small_picture_db": 0.4,
    "largest_difference_undone": 1e-5,
    "psnr_y_db_by_cycle": [36.0, 35.0, 34.5, 34.0, 33.51],
}


def tiny() -> IARN:
    model = create("iarn", weights=None, opening=(4, 1), hider=(4, 1), teller=(4, 1))
    assert isinstance(model, IARN)
    return model


@pytest.mark.parametrize("factor", list(claim.FACTORS))
def test_each_threshold_binds_at_each_factor(binds: Callable[..., None], factor: str) -> None:
    changes = {
        "gain_over_bicubic_db": {**GAINS, factor: GAINS[factor] - 0.01},
        "psnr_rgb_db_small_against_bicubic": {**LIKE, factor: 35.9},
        "worth_of_own_small_picture_db": 0.39,
        "largest_difference_undone": 1.1e-5,
        "psnr_y_db_by_cycle": [36.0, 35.0, 34.5, 34.0, 33.5],
    }
    binds(claim, GOOD, changes)


def test_an_untrained_network_is_worth_what_bicubic_is() -> None:
    tests = [torch.rand(1, 3, 40, 52, generator=torch.Generator().manual_seed(0))]
    found = claim.measured(tiny(), tests)
    for name, factors in claim.FACTORS.items():
        assert found["psnr_y_db"][name] == pytest.approx(claim.bicubic(tests, factors), abs=0.05)
    assert min(found["psnr_rgb_db_small_against_bicubic"].values()) > 50, "a rare pixel may be rounded the other way"
    assert found["worth_of_own_small_picture_db"] == pytest.approx(0, abs=0.05)
    assert claim.exactness(tiny(), tests[0])["largest_difference_undone"] <= 1e-5
    assert len(claim.cycles(tiny(), tests)) == claim.CYCLES


def test_files_of_codecs_are_the_largest_within_the_bytes() -> None:
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    sizes = [len(claim._largest_below(x, "WEBP", limit)) for limit in (300, 900, 1 << 20)]
    assert sizes[0] <= 300
    assert sizes[0] < sizes[1] <= 900 < sizes[2]


@pytest.mark.slow
def test_the_claim_runs_on_generated_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "STEPS", 2)
    monkeypatch.setattr(claim, "START_BATCHES", 4)
    with Data() as data:
        result = reproduce("iarn", data, 0, tmp_path)
    assert result.figures["steps"] == 2
    for what in ("psnr_y_db", "gain_over_bicubic_db", "psnr_rgb_db_small_against_bicubic", "psnr_y_db_from_zeros"):
        assert set(result.figures[what]) == set(claim.FACTORS)
    assert len(result.figures["psnr_y_db_by_cycle"]) == claim.CYCLES
    assert (tmp_path / "iarn.png").stat().st_size > 1000
