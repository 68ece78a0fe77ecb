"""ElasticViT's claim: each threshold binds, gradients are compared where both networks have some, a short run works."""

from __future__ import annotations

import pytest
import torch

from saccade.backbones.elasticvit.counting import cost_macs, cost_range
from saccade.backbones.elasticvit.evolution import Settings
from saccade.backbones.elasticvit.space import smallest
from saccade.backbones.elasticvit.training import WIDTH
from saccade.reproduce import Data, Figures
from saccade.reproduce import elasticvit as claim

GOOD: Figures = {
    "bank_jump_max": 1,
    "above_bank_m_min": 0.0,
    "above_bank_m_max": 20.0,
    "uniform_jump_m_median": 274.0,
    "cosine_neighbours": 0.5,
    "cosine_ends": 0.4,
    "accuracy_neighbours_searched": 80.0,
    "accuracy_alone": 83.0,
    "accuracy_uniform_searched": 80.0,
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bank_jump_max", 2),
        ("above_bank_m_min", -0.1),
        ("above_bank_m_max", 20.1),
        ("uniform_jump_m_median", 190.0),
        ("cosine_ends", 0.41),
        ("accuracy_alone", 83.1),
        ("accuracy_uniform_searched", 80.1),
    ],
)
def test_each_threshold_binds(name: str, value: float) -> None:
    assert claim.met(GOOD)
    assert not claim.met({**GOOD, name: value})


def test_gradients_are_compared_on_the_weights_that_both_use() -> None:
    a, b = torch.tensor([1.0, 2.0, 0.0, 5.0]), torch.tensor([2.0, 4.0, 7.0, 0.0])
    assert claim.cosine(a, b) == pytest.approx(1.0)
    assert claim.cosine(a, -b) == pytest.approx(-1.0)


def test_every_group_of_banks_has_a_least_network_below_it() -> None:
    sampler = claim.neighbours(0)
    most = cost_range(claim.SPACE, claim.CLASSES)[1]
    least = [sampler.least_of(i) for i in range(len(sampler.banks))]
    assert least[0] == smallest(claim.SPACE)
    assert len(set(least)) == 3
    for net, bank in zip(least, sampler.banks, strict=True):
        assert float(cost_macs(net, claim.SPACE, claim.CLASSES)[0]) < bank
    draw = sampler.draw()
    assert all(claim.macs(net) <= sampler.banks[draw.group] + WIDTH * most for net in draw.drawn)


@pytest.mark.slow
def test_a_short_run_gives_all_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("STEPS", 2), ("WARM", 2), ("PAIRS", 2), ("DRAWS", 200), ("HELD", 64), ("CALIBRATION", 1)):
        monkeypatch.setattr(claim, name, value)
    monkeypatch.setattr(claim, "SEARCH", Settings(population=2, generations=1, parents=2, mutations=1, crossovers=1))
    figures = claim.run(Data(), 0)
    assert set(GOOD) <= set(figures)
    assert figures["macs_uniform_searched"] <= 0.5e6 * cost_range(claim.SPACE, claim.CLASSES)[1]
