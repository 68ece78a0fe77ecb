"""WaveMix's claim: each threshold binds, what is kept is counted rightly, and a short run gives all figures."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from saccade.data.shapes import shapes
from saccade.reproduce import Figures
from saccade.reproduce import wavemix as claim

GOOD: Figures = {
    "kept_megabytes_convmixer": 30.0,
    "kept_megabytes_wavemix": 20.0,
    "compared_parameters_wavemix": 100,
    "compared_parameters_convmixer": 101,
    "transform_ms_repeated": 3.0,
    "transform_ms_one_pass": 2.0,
    "accuracy": 90.0,
    "mean_iou": 0.85,
}


def test_each_threshold_binds(binds: Callable[..., None]) -> None:
    changes = {
        "kept_megabytes_wavemix": 20.1,
        "compared_parameters_wavemix": 94,
        "transform_ms_one_pass": 2.1,
        "accuracy": 89.9,
        "mean_iou": 0.849,
    }
    binds(claim, GOOD, changes)


def test_what_is_kept_is_counted_once_and_without_parameters() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    x = torch.randn(10, 8)
    assert claim.kept(model, x) == 4 * (10 * 8 + 10 * 16)  # the input, and tanh's output for itself and its successor


def test_memory_is_compared_between_networks_of_one_size() -> None:
    figures = claim.memory()
    assert claim.met({**GOOD, **figures})
    assert figures["kept_megabytes_convmixer"] > 1.5 * figures["kept_megabytes_wavemix"] > 0


def test_the_mean_iou_of_known_answers() -> None:
    test = shapes(5, seed=0)

    class Says(nn.Module):
        def __init__(self, masks: Tensor) -> None:
            super().__init__()
            self.masks = masks

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([~self.masks, self.masks], 1).float()

    assert claim.mean_iou(Says(test.masks), test) == 1
    assert claim.mean_iou(Says(~test.masks), test) == 0
    everything = torch.ones_like(test.masks)
    share = float(test.masks.float().mean())
    assert claim.mean_iou(Says(everything), test) == pytest.approx(share / 2, rel=1e-5)


@pytest.mark.slow
def test_a_short_run_gives_all_figures(short_run: Callable[..., Figures]) -> None:
    figures = short_run(claim, STEPS=2, MASK_STEPS=2)
    assert set(GOOD) <= set(figures)
    assert 0 < figures["mean_iou"] < 1
