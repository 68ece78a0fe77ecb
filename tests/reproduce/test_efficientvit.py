"""EfficientViT's claim: each threshold binds, a short run gives all figures, and what is compared is what it says."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from saccade.backbones.efficientvit import CascadedGroupAttention
from saccade.reproduce import Figures
from saccade.reproduce import efficientvit as claim

GOOD: Figures = {
    "pictures_per_s_efficientvit_m2": 300.0,
    "pictures_per_s_mobilevit_xxs": 100.0,
    "accuracy_cascade": 85.0,
    "accuracy_cascade_long": 92.0,
}


def test_each_threshold_binds(binds: Callable[..., None]) -> None:
    changes = {
        "pictures_per_s_mobilevit_xxs": 101.0,
        "accuracy_cascade": 84.9,
        "accuracy_cascade_long": 91.9,
    }
    binds(claim, GOOD, changes)


def test_the_maps_of_the_heads_are_those_of_the_network() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = CascadedGroupAttention(12, 3, 5, 4, (3, 5, 1)).eval()
        torch.nn.init.ones_(layer.proj.bn.weight)
        torch.nn.init.normal_(layer.attention_biases)
        x = torch.randn(2, 12, 4, 4)
    with torch.no_grad():
        found, maps = claim.heads(layer, x)
        torch.testing.assert_close(layer.proj(torch.cat(found, 1).relu()), layer(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(maps.sum(-1), torch.ones(3, 2, 16))
        own = claim.Heads(layer, "share").eval()
        own.load_state_dict(layer.state_dict())
        assert torch.allclose(claim.heads(own, x)[0][0], found[0])
        assert not torch.allclose(claim.heads(own, x)[0][1], found[1])


def test_heads_that_read_all_channels_have_more_parameters() -> None:
    count = {reads: sum(p.numel() for p in claim.network(reads).parameters()) for reads in ("cascade", "share", "all")}
    assert count["cascade"] == count["share"] < count["all"]
    assert round(count["cascade"] / 1e6, 2) == 0.99


@pytest.mark.slow
def test_a_short_run_gives_all_figures(short_run: Callable[..., Figures]) -> None:
    figures = short_run(claim, STEPS=2, LONG=2, BATCH=1)
    assert set(GOOD) <= set(figures)
    assert all(0 < figures[f"cosine_of_heads_{reads}"] <= 1 for reads in ("cascade", "share", "all"))
