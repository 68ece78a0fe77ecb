"""The claim of the learnt ISP: its camera is one, its thresholds are those said, a short run has every figure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from saccade.reproduce import Figures, plain
from saccade.reproduce import model_isp as claim

GOOD = {
    "pairs": 40,
    "pairs_few": 10,
    "exact_inverse_error": 1e-6,
    "raw_db_isp_40": 40.0,
    "raw_db_isp_10": 39.0,
    "raw_db_unet_40": 33.0,
    "raw_db_unet_10": 30.0,
    "curve_error": 0.01,
    "effective_atoms": {"wb": 3.0, "tone": 2.5},
    "denoised_db_true_raw": 38.0,
    "denoised_db_dictionaries": 37.8,
    "denoised_db_gaussian_srgb": 36.0,
}


def test_each_threshold_binds(binds: Callable[..., None]) -> None:
    changes = {
        "exact_inverse_error": 2e-4,
        "raw_db_isp_40": 37.9,
        "raw_db_unet_40": 36.1,
        "raw_db_unet_10": 32.5,
        "curve_error": 0.021,
        "effective_atoms": {"wb": 1.9, "tone": 3.0},
        "denoised_db_true_raw": 38.4,
        "denoised_db_gaussian_srgb": 37.0,
    }
    binds(claim, GOOD, changes)


def test_the_hidden_camera_depends_on_its_seed_and_its_curve_rises() -> None:
    picture = 0.1 + 0.8 * torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    shots = [claim.HiddenCamera(seed).shoot(picture, 0) for seed in (0, 0, 1)]
    assert torch.equal(shots[0][0], shots[1][0])
    assert not torch.allclose(shots[0][0], shots[2][0], atol=1e-3)
    for seed in range(5):
        curve = claim.HiddenCamera(seed).tone(torch.linspace(0, 1, 100))
        assert (curve.diff() > 0).all()
        assert float(curve[0]) == pytest.approx(0, abs=1e-6)
        assert float(curve[-1]) == pytest.approx(1, abs=1e-6)
    raw, rgb = shots[0]
    assert raw.shape == (4, 32, 32)
    assert rgb.shape == (3, 64, 64)
    assert float(raw.min()) >= 0
    assert float(raw.max()) <= 1
    # exposed so that hardly anything is clipped: the picture is darker than its linear white
    assert float((raw > 0.999).float().mean()) < 0.01


def test_the_inverse_is_exact() -> None:
    assert claim.exactness(3)["exact_inverse_error"] <= 1e-4


@pytest.mark.slow
def test_a_short_run_on_generated_pictures_has_every_figure(short_run: Callable[..., Figures], tmp_path: Path) -> None:
    figures = plain(short_run(claim, STEPS=4, DENOISER_STEPS=2))
    assert figures["raw_db_isp_24"] > 20
    assert isinstance(claim.met(figures), bool)
    claim.plot(figures, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5000
