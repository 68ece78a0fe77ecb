"""The foveated claim: each threshold binds, a short run gives all figures, and the scenes are what they say."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from saccade.backbones.foveated import KINDS
from saccade.reproduce import Figures
from saccade.reproduce import foveated as claim

GOOD: Figures = {
    "accuracy_reference": 90.0,
    "accuracy_texture": 88.0,
    "high_pass_texture": 80.0,
    "high_pass_uniform": 74.0,
}


def test_each_threshold_binds(binds: Callable[..., None]) -> None:
    binds(claim, GOOD, {"accuracy_reference": 91.1, "accuracy_texture": 86.9, "high_pass_uniform": 75.1})


def test_scenes_are_pictures_of_ten_classes_and_depend_on_the_seed_alone() -> None:
    first, again, other = claim.scenes(60, 1), claim.scenes(60, 1), claim.scenes(60, 2)
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)
    assert first.images.shape == (60, 3, claim.SIDE, claim.SIDE)
    assert 0 <= float(first.images.min()) < 0.2
    assert 0.8 < float(first.images.max()) <= 1
    assert set(first.labels.tolist()) == set(range(claim.CLASSES))


@pytest.mark.slow
def test_a_short_run_gives_all_figures(short_run: Callable[..., Figures]) -> None:
    short = {"STEPS": 2, "TRAIN": 70, "TEST": 30, "PROBED": 20, "MATCHED": 10, "PHOTOGRAPHS": 1, "SEEDS": 1}
    figures = short_run(claim, **short)
    assert set(GOOD) <= set(figures)
    for kind in KINDS[1:]:
        assert figures[f"ssim_{kind}"] == pytest.approx(figures["ssim_texture"], abs=0.005)
    assert figures["sigma_over_side_photographs"] > 0
