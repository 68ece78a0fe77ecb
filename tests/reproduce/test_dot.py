from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from saccade.reproduce import Figures, plain
from saccade.reproduce import dot as claim


def test_the_spectrum_of_white_noise_is_flat_and_of_a_wave_a_peak() -> None:
    noise = [torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    rings = claim.spectrum(noise)
    assert float(rings[4:].std() / rings[4:].mean()) < 0.2
    wave = torch.sin(2 * torch.pi * torch.arange(128) * 0.3).expand(1, 3, 128, 128)
    assert int(claim.spectrum([wave]).argmax()) == int(0.3 * 128)
    assert claim.top_octave([wave]) > 10 * float(claim.spectrum([wave])[:30].mean())


def test_the_map_between_gaussians_meets_its_part_of_the_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "SAMPLES", 50_000)
    found = claim.gaussians(0, 6)
    assert found["covariance_error_transport"] < 0.03
    assert found["squared_displacement_transport"] == pytest.approx(found["w2_squared"], rel=0.02)
    assert found["squared_displacement_triangular"] > found["squared_displacement_transport"]
    assert found["asymmetry"] < 1e-8
    assert found["largest_difference_from_identity"] < 1e-6


def test_each_threshold_binds(binds: Callable[..., None]) -> None:
    good = {
        "covariance_error_transport": 0.006,
        "squared_displacement_transport": 18.6,
        "squared_displacement_triangular": 21.2,
        "w2_squared": 18.65,
        "asymmetry": 1e-12,
        "smallest_eigenvalue": 0.2,
        "largest_difference_from_identity": 1e-12,
        "top_octave_of_restored": 0.55,
        "top_octave_of_transported": 0.93,
        "w2_before": 0.05,
        "w2_after_by_pictures": {"8": 0.006, "16": 0.004, "64": 0.0039},
        "psnr_db_drop": 0.6,
        "best_alpha": 1.0,
    }
    changes = {
        "covariance_error_transport": 0.021,
        "squared_displacement_transport": 18.9,
        "squared_displacement_triangular": 18.5,
        "asymmetry": 1e-6,
        "smallest_eigenvalue": -1e-6,
        "largest_difference_from_identity": 1e-5,
        "top_octave_of_restored": 0.7,
        "top_octave_of_transported": 0.88,
        "w2_before": 0.039,
        "w2_after_by_pictures": {"8": 0.006, "16": 0.0045, "64": 0.0039},
        "psnr_db_drop": 0.4,
        "best_alpha": 0.6,
    }
    binds(claim, good, changes)


@pytest.mark.slow
def test_a_short_run_on_generated_pictures_gives_all_figures(short_run: Callable[..., Figures], tmp_path: Path) -> None:
    figures = plain(short_run(claim, FITTED=1, COUNTS=(2, 3, 4), SAMPLES=10_000))
    assert claim.met(figures) in (True, False)
    assert set(figures["w2_after_by_pictures"]) == {"2", "3", "4"}
    pytest.importorskip("matplotlib")
    claim.plot(figures, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1_000
