"""PBaSR's claim: its inequality can fail in each part, its data are two kinds of one picture, a short run is whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from saccade.reproduce import Data, Figures, reproduce
from saccade.reproduce import pbasr as claim

GOOD: Figures = {
    "bicubic_db": [27.0, 30.0, 28.5],
    "start_db": [27.1, 30.1, 28.6],
    "joint_db": [27.3, 30.3, 28.8],
    "exchange_general_db": [27.3, 30.2, 28.75],
    "exchange_blur_db": [27.2, 30.3, 28.75],
    "exchange_combined_db": [27.26, 30.26, 28.76],
    "exchange_cosine": 0.995,
    "no_exchange_cosine": 0.98,
    "strangers_cosine": 0.02,
    "strangers_parents_db": [[27.1, 30.1, 28.6], [27.0, 30.0, 28.5]],
    "strangers_combined_db": [26.5, 29.5, 28.0],
    "alpha_db": [[27.3, 30.2, 28.75], [27.28, 30.22, 28.75], [27.25, 30.25, 28.75], [27.22, 30.28, 28.75]],
}


def test_each_threshold_binds(binds: Callable[..., None]) -> None:
    changes = {
        "exchange_combined_db": [27.24, 30.26, 28.76],  # 0.06 dB below the better branch on general pictures
        "start_db": [27.1, 30.1, 28.77],
        "joint_db": [27.3, 30.3, 28.87],
        "exchange_cosine": 0.97,
        "no_exchange_cosine": 0.01,
        "strangers_combined_db": [26.9, 29.6, 28.2],  # 0.3 dB below the worse parent
        "bicubic_db": [27.0, 30.0, 27.9],
        "alpha_db": [[27.3, 30.2, 28.75], [27.2, 30.22, 28.7], [27.25, 30.25, 28.75]],
    }
    binds(claim, GOOD, changes)


def test_a_row_of_alphas_may_stand_still_and_may_not_turn() -> None:
    for row, steady in (([27.3, 27.2, 27.1], True), ([27.3, 27.305, 27.1], True), ([27.3, 27.35, 27.1], False)):
        assert claim.monotone({"alpha_db": [[value, 30.0] for value in row]}) is steady


def test_both_kinds_see_the_same_crops_and_one_of_them_is_blurred_on_purpose() -> None:
    with Data() as data:
        kinds = [claim.Domain(data.training(), blurred) for blurred in (False, True)]
        (low, sharp), (_, soft) = (kind.batch(4, 0, 3) for kind in kinds)
        again = kinds[1].batch(4, 0, 3)[1]
    assert (low.shape, sharp.shape) == ((4, 3, 24, 24), (4, 3, 48, 48))
    torch.testing.assert_close(soft, again)
    assert not torch.equal(sharp, soft)
    detail = [float(x.diff(dim=-1).square().mean()) for x in (sharp, soft)]
    assert detail[1] < detail[0]


@pytest.mark.slow
def test_the_claim_runs_on_generated_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("JOINT", 3), ("APART", 2), ("BATCH", 2)):
        monkeypatch.setattr(claim, name, value)
    with Data() as data:
        figures = reproduce("pbasr", data, 0, tmp_path).figures
    assert len(figures["alpha_db"]) == len(figures["alphas"]) == 5
    torch.testing.assert_close(figures["alpha_db"][2], figures["exchange_combined_db"], rtol=0, atol=1e-3)
    assert figures["strangers_cosine"] < figures["exchange_cosine"]
    assert (tmp_path / "pbasr.png").stat().st_size > 1000
