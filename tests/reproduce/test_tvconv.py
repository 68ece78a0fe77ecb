"""TVConv's claim: each threshold binds, and short runs give all figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from saccade.data.digits import Digits
from saccade.errors import InputError
from saccade.reproduce import Data, Figures
from saccade.reproduce import tvconv as claim

GOOD: Figures = {
    "error_tvconv": 0.003,
    "error_depthwise": 0.92,
    "accuracy_tvconv": 94.0,
    "accuracy_depthwise": 83.0,
    "accuracy_tvconv_moved": 55.0,
    "fused_error": 1e-6,
    "over_depthwise": 0.9,
}


def test_each_threshold_binds(binds: Callable[..., None]) -> None:
    changes = {
        "error_tvconv": 0.02,
        "error_depthwise": 0.8,
        "accuracy_tvconv": 89.9,
        "accuracy_depthwise": 89.1,
        "accuracy_tvconv_moved": 74.1,
        "fused_error": 1.1e-5,
        "over_depthwise": 1.51,
    }
    binds(claim, GOOD, changes)


def test_short_runs_give_all_figures(short_run: Callable[..., Figures], tmp_path: Path) -> None:
    digits = Digits(torch.rand(20, 14, 14, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 10)
    (tmp_path / "mnist").mkdir()
    sizes = {"STEPS": 2, "TESTS": 8, "SPEED_BATCH": 1, "DIGIT_BATCH": 4}
    figures = short_run(claim, Data(tmp_path), read_digits=lambda *_: digits, **sizes)
    assert set(GOOD) <= set(figures)
    assert figures["fused_error"] <= 1e-5
    assert figures["kernel_bytes"] == 9 * 96 * 24 * 24 * 4


def test_without_digits_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(claim, "filter_error", lambda *_: 0.0)
    monkeypatch.setattr(claim, "speed", lambda *_: {})
    with pytest.raises(InputError, match="mnist/"):
        claim.run(Data(tmp_path), 0)
