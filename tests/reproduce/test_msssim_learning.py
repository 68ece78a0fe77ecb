from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from saccade.reproduce import Figures, plain
from saccade.reproduce import msssim_learning as claim


def test_distortions_are_of_equal_error() -> None:
    clean = 0.2 + 0.6 * torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    clean = torch.nn.functional.avg_pool2d(clean, 3, 1, 1, count_include_pad=False)
    made = claim.distortions(clean, 0)
    errors = {name: float((x - clean).square().mean()) for name, x in made.items()}
    assert list(errors) == ["shift", "contrast", "noise", "blur", "jpeg"]
    assert all(error == pytest.approx(errors["jpeg"], rel=0.01) for error in errors.values())


def test_local_contrast_is_a_deviation() -> None:
    x = torch.rand(1, 1, 9, 9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(claim.contrast(x)[0, 0, 1, 2], x[0, 0, 1:8, 2:9].std(correction=0))


@pytest.mark.slow
def test_a_short_run_on_generated_pictures_gives_all_figures(short_run: Callable[..., Figures], tmp_path: Path) -> None:
    figures = plain(short_run(claim, STEPS=3, TUNING_STEPS=2, RATES=(1e-3,)))
    assert claim.met(figures) in (True, False)
    assert 0 < figures["ssim_ms_ssim"] < 1
    pytest.importorskip("matplotlib")
    claim.plot(figures, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1_000


def figures() -> dict:
    return {
        "ms_ssim_at_equal_error": {"shift": 0.99, "contrast": 0.95, "noise": 0.93, "blur": 0.9, "jpeg": 0.85},
        "ssim_ms_ssim": 0.80,
        "ssim_l2": 0.77,
        "psnr_db_ms_ssim": 22.0,
        "psnr_db_l2": 23.0,
        "local_contrast_ms_ssim": 0.9,
        "local_contrast_l2": 0.7,
    }


def test_each_threshold_binds(binds: Callable[..., None]) -> None:
    changes = {
        "ssim_ms_ssim": 0.78,
        "psnr_db_ms_ssim": 21.4,
        "local_contrast_ms_ssim": 0.8,
        "local_contrast_l2": 0.76,
        "ms_ssim_at_equal_error": {"shift": 1, "contrast": 0.9, "noise": 0.95, "blur": 0.8, "jpeg": 0.7},
    }
    binds(claim, figures(), changes)
