"""HyperZ.Z.W's claim: each threshold binds, and a short run gives all figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from saccade.errors import InputError
from saccade.reproduce import Data, Figures
from saccade.reproduce import hyperzzw as claim

GOOD: Figures = {
    "accuracy": 36.0,
    "slow_neural_loss_first": 0.06,
    "slow_neural_loss_last": 0.02,
    "difference_kept": 0.0,
    "ms_kept": 10.0,
    "ms_made_anew": 10.0,
}


def test_each_threshold_binds(binds: Callable[..., None]) -> None:
    binds(claim, GOOD, {"accuracy": 35.9, "slow_neural_loss_last": 0.021, "difference_kept": 1e-7, "ms_kept": 10.1})


def test_without_cifar_it_says_what_it_needs() -> None:
    with pytest.raises(InputError, match="CIFAR-10"):
        claim.run(Data(), 0)


@pytest.mark.slow
def test_a_short_run_gives_all_figures(short_run: Callable[..., Figures], tmp_path: Path) -> None:
    def few(path: Path) -> tuple[Tensor, Tensor]:
        return torch.randn(200, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(200) % 10

    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10" / "test.webp").touch()
    figures = short_run(claim, Data(tmp_path), halved=few, STEPS=3, BATCH=8)
    assert set(GOOD) <= set(figures)
    assert figures["difference_kept"] == 0
