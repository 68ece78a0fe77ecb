"""ResNet-RS: published counts, timm's numbers, the recipe, the rules, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import zoo
from torch import nn

from saccade.backbones.resnet_rs import FAMILY, ResNetRS, advise, from_timm, largest_within
from saccade.checkpoint import fit
from saccade.cost import cost, count_parameters
from saccade.errors import CheckpointError, InputError, UsageError
from saccade.nn.fuse import fuse
from saccade.registry import create, entry
from saccade.training.classification import Options

MILLIONS = {50: 35.69, 101: 63.62, 152: 86.62, 200: 93.21, 270: 129.86, 350: 163.96, 420: 191.89}


@pytest.mark.parametrize("member", FAMILY, ids=lambda m: f"{m.name}-{m.size}")
def test_published_counts(member: Any) -> None:
    with torch.device("meta"):
        model = create(member.name, weights=None)
    assert round(count_parameters(model) / 1e6, 2) == MILLIONS[int(member.name.removeprefix("resnetrs"))]
    macs = cost(model, torch.empty(1, 3, member.size, member.size, device="meta")).macs / 1e9
    assert round(macs, 2 if member.gmacs < 10 else 1) == member.gmacs


def test_a_name_has_the_size_that_it_is_published_at() -> None:
    for name in {m.name for m in FAMILY}:
        assert entry(name).facts["size"] in {m.size for m in FAMILY if m.name == name}


def test_pictures_are_cut_as_timm_judges_its_weights() -> None:
    import saccade.timm  # noqa: F401

    for name in {m.name for m in FAMILY}:
        ours, theirs = timm.get_pretrained_cfg(f"saccade_{name}"), timm.get_pretrained_cfg(f"{name}.tf_in1k")
        assert ours is not None
        assert theirs is not None
        assert (ours.crop_pct, ours.interpolation) == (theirs.crop_pct, theirs.interpolation)


@pytest.mark.parametrize(
    "depth", [50, *(pytest.param(d, marks=pytest.mark.slow) for d in (101, 152, 200, 270, 350, 420))]
)
def test_timm_computes_the_same(depth: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        peer = timm.create_model(f"resnetrs{depth}", num_classes=7).eval()
        for module in peer.modules():  # gains so small that a hundred blocks stay in float32's range
            if isinstance(module, nn.BatchNorm2d):
                module.weight.data.uniform_(0.2, 0.6)
                module.bias.data.normal_(0, 0.1)
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.7, 1.4)
        x = torch.randn(1, 3, 96, 96)
    recipe = from_timm(peer.state_dict())
    assert recipe is not None
    assert (recipe.model, recipe.options["num_classes"]) == (f"resnetrs{depth}", 7)
    ours = create(recipe.model, weights=None, **recipe.options)
    fit(ours, recipe.state, "timm")
    with torch.no_grad():
        want = peer(x)
        assert want.std() > 1e-3
        torch.testing.assert_close(ours(x), want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))


def test_odd_sizes_are_rounded_up_by_both_ways_through_a_block() -> None:
    small = zoo.SMALL["resnet_rs"]
    model = small.make()
    sizes = [(35, 61), (33, 97)]
    with torch.no_grad():
        for size in sizes:
            maps = model.forward_intermediates(small.picture(size=size), intermediates_only=True)
            assert [m.shape[-2:] for m in maps] == [tuple(-(-s // r) for s in size) for r in (4, 8, 16, 32)]
            torch.testing.assert_close(fuse(model)(small.picture(size=size)), model(small.picture(size=size)))


def test_gates_come_after_the_expansion_and_are_cut_off_not_rounded() -> None:
    model = create("resnetrs", weights=None, depth=(1, 1, 1, 1), channels=(10, 12, 20, 27), stem_width=8)
    for i, p in enumerate((10, 12, 20, 27), 1):
        gates = model.get_submodule(f"layer{i}.0.se")
        assert (gates.fc1.in_channels, gates.fc1.out_channels) == (4 * p, p)
    ratio = create("resnetrs", weights=None, depth=(1, 1, 1, 1), channels=(10, 12, 20, 27), se_ratio=0.24)
    assert ratio.get_submodule("layer1.0.se").fc1.out_channels == 9  # 9.6
    assert model.get_submodule("conv1.0").out_channels == 8
    assert isinstance(model.get_submodule("layer1.0.downsample.0"), nn.Identity)


def test_drop_path_is_the_same_in_a_group_and_rises_by_group() -> None:
    model = create("resnetrs", weights=None, depth=(1, 2, 3, 2), channels=(8, 8, 8, 8), drop_path_rate=0.1)
    rates = [sorted({round(b.drop_path.drop_prob, 9) for b in getattr(model, f"layer{i}")}) for i in range(1, 5)]
    assert rates == [[0.04], [0.06], [0.08], [0.1]]


def test_a_start_is_as_published() -> None:
    model = create("resnetrs50", weights=None)
    convolution, block = model.get_submodule("layer3.1.conv2"), model.get_submodule("layer4.1")
    assert float(convolution.weight.detach().std()) == pytest.approx((1 / (256 * 9)) ** 0.5, rel=0.01)
    assert float(model.fc.weight.detach().std()) == pytest.approx(0.01, rel=0.02)
    assert not block.bn3.weight.any()


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("resnetrs50", (160, 10, 0.25, 0.0)),
        ("resnetrs101", (192, 15, 0.25, 0.0)),
        ("resnetrs200", (256, 15, 0.25, 0.1)),
        ("resnetrs420", (320, 15, 0.4, 0.1)),
    ],
)
def test_recipes_are_the_published_ones(name: str, wanted: tuple[float, ...]) -> None:
    options = Options.of_recipe("resnet_rs", model=name, data="", out="")
    assert (options.patch, options.magnitude, options.drop, options.drop_path) == wanted
    assert (options.optimiser, options.weight_decay, options.smoothing, options.ema) == ("sgd", 4e-5, 0.1, 0.9999)
    assert options.rate * 256 / options.batch == pytest.approx(0.1)
    assert Options.of_recipe("resnet_rs", model=name, data="", out="", drop=0.1, patch=224).drop == 0.1


def test_norms_keep_the_last_batch_alone() -> None:
    model = zoo.SMALL["resnet_rs"].make().train()
    Options.of_recipe("resnet_rs", model="resnetrs50", data="", out="").prepare(model)
    x = zoo.SMALL["resnet_rs"].picture(4)
    with torch.no_grad():
        stem = model.conv1(x)
        model.bn1(stem)
    torch.testing.assert_close(model.bn1.running_mean, stem.mean((0, 2, 3)))


def test_the_rules() -> None:
    assert (advise(350, 224).grow, advise(350, 224).size) == ("depth", 256)
    assert (advise(90, 160).grow, advise(90, 160).size) == ("width", 192)
    assert advise(350, 320).size == 320
    assert (advise(350, 224).weight_decay, advise(350, 224, regularised=False).weight_decay) == (4e-5, 1e-4)
    with pytest.raises(UsageError, match="at least 1"):
        advise(0, 224)


def test_the_largest_member_within_a_budget() -> None:
    assert [largest_within(g).name for g in (2.3, 16, 64)] == ["resnetrs50", "resnetrs152", "resnetrs420"]
    assert (largest_within(60).name, largest_within(60).size) == ("resnetrs350", 320)
    with pytest.raises(UsageError, match=r"2\.28 GMACs"):
        largest_within(1)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"depth": 51}, "50, 101, 152, 200, 270, 350, 420"),
        ({"depth": (3, 4, 6)}, "four groups"),
        ({"depth": (3, 4, 0, 3)}, "four groups"),
        ({"channels": (8, 8, 8)}, "four groups"),
        ({"width": 0}, "positive factor"),
        ({"drop_path_rate": 1.0}, "drop_path_rate"),
        ({"se_ratio": -1}, "se_ratio"),
    ],
)
def test_impossible_networks_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        create("resnetrs", weights=None, **{"depth": (1, 1, 1, 1), **options})


def test_widths_are_rounded_and_the_user_is_told() -> None:
    with pytest.warns(UserWarning, match="19.2 -> 16"):
        model = create("resnetrs", weights=None, depth=(1, 1, 1, 1), channels=(64, 64, 64, 64), width=0.3)
    assert isinstance(model, ResNetRS)
    assert (model.channels, model.stem_width) == ((16, 16, 16, 16), 8)


@pytest.mark.parametrize("system", ["resnet_rs", "fast_scaling"])
def test_layer_wise_rates_find_the_stem_first_and_the_head_last(system: str) -> None:
    from timm.models import group_parameters

    model = zoo.SMALL[system].make()
    for coarse, count in ((True, 6), (False, 7)):
        groups = group_parameters(model, model.group_matcher(coarse))
        numbers = sorted(groups)
        assert len(numbers) == count  # the stem, four stages or five blocks, the head
        assert all(n.startswith(("stem", "conv1", "bn1", "maxpool")) for n in groups[numbers[0]])
        assert all(n.startswith(("fc", "head")) for n in groups[numbers[-1]])


def test_pictures_below_32_pixels_are_refused() -> None:
    model = zoo.SMALL["resnet_rs"].make()
    with pytest.raises(InputError, match="at least 32 px"):
        model(torch.zeros(1, 3, 31, 64))


def test_half_a_checkpoint_is_refused() -> None:
    state = {k: v for k, v in zoo.SMALL["resnet_rs"].make().state_dict().items() if not k.startswith("layer2.0.conv1")}
    with pytest.raises(CheckpointError, match="describe none"):
        from_timm(state)
