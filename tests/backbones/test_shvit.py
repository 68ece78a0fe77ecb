"""SHViT: published counts, timm's numbers, what is refused, and the recipe's details that shapes do not show."""

from __future__ import annotations

import pytest
import timm
import torch
import zoo
from torch import nn

from saccade.backbones.shvit import SHViT, SingleHeadAttention, from_timm
from saccade.checkpoint import fit
from saccade.cost import cost, count_parameters
from saccade.errors import CheckpointError, InputError, UsageError
from saccade.nn.fuse import fuse
from saccade.registry import create


@pytest.mark.parametrize(
    ("name", "side", "millions", "fused", "macs"),
    [
        ("shvit_s1", 224, 6.33, 6.31, 241),
        ("shvit_s2", 224, 11.48, 11.45, 365),
        ("shvit_s3", 224, 14.25, 14.21, 601),
        ("shvit_s4", 256, 16.59, 16.55, 986),
    ],
)
def test_published_counts(name: str, side: int, millions: float, fused: float, macs: int) -> None:
    model = create(name, weights=None)
    assert round(count_parameters(model) / 1e6, 2) == millions
    assert round(count_parameters(fuse(model)) / 1e6, 2) == fused
    assert round(cost(model, torch.empty(1, 3, side, side, device="meta")).macs / 1e6) == macs


@pytest.mark.parametrize("variant", ["shvit_s1", "shvit_s2", "shvit_s3", "shvit_s4"])
def test_timm_computes_the_same(variant: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        peer = zoo.randomised(timm.create_model(variant, num_classes=7).eval())
        x = torch.randn(2, 3, 96, 128)
    recipe = from_timm(peer.state_dict())
    assert recipe is not None
    assert recipe.model == variant
    assert recipe.options["num_classes"] == 7
    ours = create(recipe.model, weights=None, **recipe.options)
    fit(ours, recipe.state, "timm")
    with torch.no_grad():
        want = peer(x)
        torch.testing.assert_close(ours(x), want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))


def test_stages_of_equal_width_are_merged_all_the_same() -> None:
    model = zoo.SMALL["shvit"].make(widths=(48, 48, 48))
    with torch.no_grad():
        assert [m.shape[2:] for m in model.maps(torch.zeros(1, 3, 128, 64))] == [(8, 4), (4, 2), (2, 1)]


def test_only_the_attending_channels_are_normalised_and_all_are_rectified() -> None:
    layer = SingleHeadAttention(12, 4).eval()
    nn.init.ones_(layer.proj.bn.weight)
    nn.init.dirac_(layer.proj.conv.weight)
    x = torch.randn(1, 12, 5, 6)
    with torch.no_grad():
        branch = layer(x) - x
    torch.testing.assert_close(branch[:, 4:], x[:, 4:].relu() / (1 + 1e-5) ** 0.5)
    assert (branch >= 0).all()


def test_scores_are_a_softmax_over_the_keys() -> None:
    layer = zoo.randomised(SingleHeadAttention(10, 6).eval())
    x = torch.randn(2, 10, 4, 3)
    with torch.no_grad():
        q, k, v = layer.qkv(layer.pre_norm(x[:, :6])).flatten(2).split((16, 16, 6), 1)
        scores = (q.mT @ k * 16**-0.5).softmax(-1)
        mixed = (v @ scores.mT).reshape(2, 6, 4, 3)
        want = x + layer.proj(torch.cat([mixed, x[:, 6:]], 1).relu())
        torch.testing.assert_close(layer(x), want)


def test_distillation_gives_a_pair_in_training_and_the_mean_at_rest() -> None:
    model = zoo.SMALL["shvit"].make(distillation=True, num_classes=5)
    assert isinstance(model, SHViT)
    x = zoo.SMALL["shvit"].picture()
    with torch.no_grad():
        pooled = model.forward_head(model.forward_features(x), pre_logits=True)
        torch.testing.assert_close(model(x), (model.head(pooled) + model.head_dist(pooled)) / 2)
    assert [t.shape for t in model.train()(x)] == [(2, 5), (2, 5)]
    model.reset_classifier(0)
    assert model.head_dist is None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"widths": (60, 96, 128)}, "divide by 8"),
        ({"partial": (0, 96, 20)}, r"partial\[1\] is 96"),
        ({"partial": (0, 0, 20)}, r"partial\[1\] is 0"),
        ({"kinds": ("i", "x", "s")}, r"kinds\[1\]"),
        ({"depths": (1, 2)}, "depths has 2 entries for 3 stages"),
        ({"qk_dim": (16, 16)}, "qk_dim has 2"),
        ({"qk_dim": 0}, "qk_dim has an entry of 0"),
        ({"depths": (1, 0, 1)}, "depths has an entry of 0"),
        ({"widths": (0, 96, 128)}, "widths has an entry of 0"),
        ({"drop_rate": 2}, r"drop_rate lies in \[0, 1\]"),
    ],
)
def test_impossible_networks_are_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        create(
            "shvit", weights=None, **{"widths": (64, 96, 128), "depths": (1, 1, 1), "partial": (0, 24, 32), **options}
        )


def test_pictures_below_the_stride_are_refused() -> None:
    model = zoo.SMALL["shvit"].make()
    with pytest.raises(InputError, match="at least 16 px"):
        model(torch.zeros(1, 3, 15, 64))
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 16, 16)).isfinite().all()


def test_a_classifier_of_another_size_is_named() -> None:
    state = zoo.SMALL["shvit"].make(num_classes=10).state_dict()
    with pytest.raises(CheckpointError, match=r"10.*7|7.*10"):
        fit(zoo.SMALL["shvit"].make(num_classes=7), state, "shvit.pth")
