"""TVConv's claim: each threshold binds, and short runs give all figures."""

from __future__ import annotations

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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("error_tvconv", 0.02),
        ("error_depthwise", 0.8),
        ("accuracy_tvconv", 89.9),
        ("accuracy_depthwise", 89.1),
        ("accuracy_tvconv_moved", 74.1),
        ("fused_error", 1.1e-5),
        ("over_depthwise", 1.51),
    ],
)
def test_each_threshold_binds(name: str, value: float) -> None:
    assert claim.met(GOOD)
    assert not claim.met({**GOOD, name: value})


def test_short_runs_give_all_figures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    digits = Digits(torch.rand(20, 14, 14, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 10)
    monkeypatch.setattr(claim, "read_digits", lambda *_: digits)
    for name, value in (("STEPS", 2), ("TESTS", 8), ("SPEED_BATCH", 1), ("DIGIT_BATCH", 4)):
        monkeypatch.setattr(claim, name, value)
    (tmp_path / "mnist").mkdir()
    figures = claim.run(Data(tmp_path), 0)
    assert set(GOOD) <= set(figures)
    assert figures["fused_error"] <= 1e-5
    assert figures["kernel_bytes"] == 9 * 96 * 24 * 24 * 4


def test_without_digits_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(claim, "filter_error", lambda *_: 0.0)
    monkeypatch.setattr(claim, "speed", lambda *_: {})
    with pytest.raises(InputError, match="mnist/"):
        claim.run(Data(tmp_path), 0)
