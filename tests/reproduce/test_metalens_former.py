"""The claim of MetaFormer: its inequality can fail, it runs on generated pictures, its simulation is the field's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from saccade.reproduce import Data, reproduce
from saccade.reproduce import metalens_former as claim

FIGURES: dict[str, Any] = {
    "psnr_db_capture": 22.7,
    "psnr_db_by_level": [28.3, 28.6, 28.5],
    "psnr_db_corners_own": 28.3,
    "psnr_db_corners_middle": 21.4,
    "psnr_db_five": 29.1,
}


def test_each_threshold_binds(binds: Callable[..., None]) -> None:
    binds(claim, FIGURES, {"psnr_db_capture": 23.7, "psnr_db_corners_middle": 23.4, "psnr_db_five": 28.85})


def test_a_step_sees_the_same_crops_whatever_the_filters() -> None:
    chance = torch.Generator().manual_seed(0)
    scenes = [(torch.rand(6, 3, 192, 192, generator=chance).half(), torch.rand(3, 192, 192, generator=chance))]
    five, clean = claim.crops(scenes, (0, 1, 2, 3, 4), 0, 7)
    one, again = claim.crops(scenes, (2,), 0, 7)
    assert five.shape == (4, 5, 3, 64, 64)
    torch.testing.assert_close(five[:, 2:3], one)
    torch.testing.assert_close(clean, again)


def test_the_simulated_cells_are_blurred_by_their_own_psf() -> None:
    camera = claim.Camera()
    scene = torch.rand(3, 192, 192, generator=torch.Generator().manual_seed(0))
    patches = camera.capture(scene, torch.Generator().manual_seed(0))
    assert patches.shape == (9, 3, 192, 192)
    sharp = camera.filtered(patches, [1e-4])[0]
    wrong = camera.filtered(patches, [1e-4], camera.middle)[0]
    assert claim.in_corners(sharp[None], scene)[0] > claim.in_corners(wrong[None], scene)[0] + 3


@pytest.mark.slow
def test_the_claim_runs_on_generated_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "STEPS", 2)
    monkeypatch.setattr(claim, "SCENES", 1)
    with Data() as data:
        result = reproduce("metalens_former", data, 0, tmp_path)
    assert result.figures["steps"] == 2
    assert len(result.figures["psnr_db_by_level"]) == 13
    assert {"psnr_db_five", "psnr_db_one_best", "psnr_db_one_middle"} <= set(result.figures)
    assert (tmp_path / "metalens_former.png").stat().st_size > 1000
