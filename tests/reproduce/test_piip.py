"""PIIP's claim: each threshold binds, its networks cost the same, and a short run gives all figures."""

from __future__ import annotations

import functools

import pytest
import torch

from saccade.backbones.piip import PIIP
from saccade.cost import cost
from saccade.data.glyphs import glyphs
from saccade.reproduce import Data, Figures
from saccade.reproduce import piip as claim

GOOD: Figures = {
    "accuracy_inverted": 70.0,
    "accuracy_plain_48": 64.0,
    "accuracy_ordinary": 64.0,
    "accuracy_without_exchanges": 67.0,
    "macs_inverted": 1000,
    "macs_ordinary": 1010,
    "macs_plain_48": 990,
    "fresh_difference": 0.0,
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("accuracy_plain_48", 65.1),
        ("accuracy_ordinary", 65.1),
        ("accuracy_without_exchanges", 68.1),
        ("macs_ordinary", 979),
        ("macs_plain_48", 1021),
        ("fresh_difference", 1e-7),
    ],
)
def test_each_threshold_binds(name: str, value: float) -> None:
    assert claim.met(GOOD)
    assert not claim.met({**GOOD, name: value})


def test_networks_cost_the_same() -> None:
    macs = {}
    for name, make in claim.NETWORKS.items():
        with torch.device("meta"):
            model = make()
        macs[name] = cost(model, torch.empty(1, 3, claim.SIDE, claim.SIDE, device="meta")).macs
    assert macs["ordinary"] == pytest.approx(macs["inverted"], rel=0.02)
    assert macs["plain_48"] == pytest.approx(macs["inverted"], rel=0.02)
    assert macs["without_exchanges"] < macs["inverted"]


def test_the_ordinary_pyramid_shows_its_largest_network_the_largest_picture() -> None:
    model = claim.ordinary().eval()
    assert isinstance(model, PIIP)
    maps = model.branch_maps(torch.zeros(1, 3, 96, 96))
    assert [tuple(m.shape[1:]) for m in maps] == [(56, 12, 12), (32, 6, 6), (24, 3, 3)]


@pytest.mark.slow
def test_a_short_run_gives_all_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "STEPS", 2)
    drawn = functools.partial(glyphs, side=claim.SIDE)
    monkeypatch.setattr(claim, "sets", lambda seed: (drawn(80, seed=1), drawn(20, seed=2)))
    figures = claim.run(Data(), 0)
    assert set(GOOD) <= set(figures)
    assert figures["fresh_difference"] == 0
