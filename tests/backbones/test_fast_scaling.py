from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from typer.testing import CliRunner

import saccade.checkpoint
from saccade import registry
from saccade.backbones import fast_scaling
from saccade.backbones.fast_scaling import (
    BASES,
    STRATEGIES,
    AnyNet,
    Architecture,
    Complexity,
    Stage,
    adjust_block_compatibility,
    complexity,
    exponent,
    generate_regnet,
    part_complexities,
    regnet,
    scale,
    scaling_factors,
    solve,
    solve_measured,
    timm_regnet,
)
from saccade.cost import cost
from saccade.errors import CheckpointError, UsageError

GOLDEN = Path(os.environ.get("SACCADE_GOLDEN", Path(__file__).parents[3] / "shared" / "golden"))
OUR_NAME = {
    "RegNetX-400MF": "regnetx_400mf",
    "RegNetY-400MF": "regnety_400mf",
    "RegNetY-4.0GF": "regnety_4gf",
    "RegNetZ-500MF": "regnetz_500mf",
    "EffNet-B0": "efficientnet_b0",
}
TINY = {
    "bottleneck": Architecture.from_lists(
        (1, 2), (16, 24), group_widths=8, bottlenecks=(0.5, 1), stem_width=8, se_ratio=0.25, classes=5
    ),
    "linear": Architecture.from_lists(
        (1, 2), (8, 12), group_widths=4, bottlenecks=4, stem_width=8, head_width=20, block="linear", activation="silu",
        se_ratio=0.25, classes=5,
    ),
    "mbconv": Architecture.from_lists(
        (1, 2, 1), (8, 16, 24), strides=(1, 2, 2), bottlenecks=(1, 4, 6), kernels=(3, 5, 3), stem_width=8,
        head_width=48, block="mbconv", activation="silu", se_ratio=0.25, classes=5,
    ),
    "pool": Architecture.from_lists((1, 1), (16, 16), strides=(1, 2), stem="pool", stem_width=8, classes=3),
    "cifar": Architecture.from_lists((1, 1), (16, 32), strides=(1, 2), group_widths=16, stem="cifar", classes=3),
}  # fmt: skip


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    path = GOLDEN / "fast_scaling.safetensors"
    if not path.exists():
        pytest.skip("no golden vectors: set SACCADE_GOLDEN")
    from safetensors import safe_open

    with safe_open(path, "pt") as f:
        return {
            k: v if k in ("call", "source", "system", "tolerance") else json.loads(v) for k, v in f.metadata().items()
        }


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter and statistic off its initial value, so that wrong wiring shows."""
    g = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if name.endswith(("running_var", "bn.weight")):
            value.copy_(torch.rand(value.shape, generator=g) + 0.5)
        elif value.is_floating_point():
            fan = math.prod(value.shape[1:]) if value.dim() == 4 else 10
            value.copy_(torch.randn(value.shape, generator=g) * fan**-0.5)
    return model.eval()


@contextmanager
def counted(model: nn.Module) -> Iterator[list[int]]:
    """MACs (with bias additions) and activations of what runs inside, by hooks on the real layers."""
    totals = [0, 0]

    def count(layer: nn.Module, _: object, out: Tensor) -> None:
        totals[1] += out[0].numel()
        if isinstance(layer, nn.Conv2d):
            totals[0] += out[0].numel() * layer.weight[0].numel()
        elif isinstance(layer, nn.Linear):
            totals[0] += layer.weight.numel()
        if getattr(layer, "bias", None) is not None:
            totals[0] += out[0].numel()

    layers = (nn.Conv2d, nn.Linear, nn.MaxPool2d)
    handles = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, layers)]
    yield totals
    for handle in handles:
        handle.remove()


def count_by_running(net: Architecture, size: int) -> Complexity:
    with torch.device("meta"):
        model = AnyNet(net).eval()
        with counted(model) as totals:
            model(torch.empty(1, 3, size, size))
    return Complexity(totals[0], sum(p.numel() for p in model.parameters()), totals[1])


# The scaler


def test_factors_equal_the_worked_example() -> None:
    assert scaling_factors("d1_w8_g8_r1", 4) == pytest.approx((1.148698, 1.741101, 1.741101, 1.071773), abs=1e-6)
    assert scaling_factors("dwr", 4) == pytest.approx((1.587401, 1.259921, 1, 1.259921), abs=1e-6)
    assert scaling_factors("wg", 4) == pytest.approx((1, 2, 2, 1))
    assert scaling_factors("dr", 4) == pytest.approx((2, 1, 1, 1.414214), abs=1e-6)
    assert scaling_factors("g", 4) == pytest.approx((1, 1, 4, 1))  # group width alone takes the whole factor


def test_plain_names_stand_for_the_papers_strings() -> None:
    for name, official in STRATEGIES.items():
        assert scaling_factors(name, 3.0) == scaling_factors(official, 3.0)
    assert scaling_factors("fast", 3.0) == scaling_factors("d0.1_w0.8_g0.8_r0.1", 3.0)


@given(
    weights=st.lists(st.integers(0, 9), min_size=4, max_size=4).filter(lambda w: w[0] + w[1] + w[3] > 0),
    s=st.floats(0.01, 1000),
)
def test_factors_multiply_to_the_scale(weights: list[int], s: float) -> None:
    f = scaling_factors("_".join(f"{letter}{w}" for letter, w in zip("dwgr", weights, strict=True)), s)
    assert f.depth * f.width**2 * f.resolution**2 == pytest.approx(s, rel=1e-9)


@pytest.mark.parametrize("s", [0, -1, math.inf, math.nan])
def test_scale_must_be_positive_and_finite(s: float) -> None:
    with pytest.raises(UsageError, match="positive and finite"):
        scaling_factors("fast", s)


@pytest.mark.parametrize("strategy", ["", "x", "dwx", "d1w8", "d1_q2", "_", "d1__w2", "d1_dw", "D"])
def test_unknown_strategies_are_refused_with_the_known_ones(strategy: str) -> None:
    with pytest.raises(UsageError, match=r"no scaling strategy.*fast"):
        scaling_factors(strategy, 2)


def test_strategies_that_scale_nothing_or_backwards_are_refused() -> None:
    with pytest.raises(UsageError, match="weight 0"):
        scaling_factors("d0_w0_r0", 2)
    assert scaling_factors("d0_w0_r0", 1) == (1, 1, 1, 1)
    with pytest.raises(UsageError, match="negative weight for 'w'"):
        scaling_factors("d1_w-8", 2)
    with pytest.raises(UsageError, match="twice"):
        scaling_factors("dd", 2)


def test_rounding_is_half_to_even() -> None:
    base = Architecture.from_lists((1, 5), (8, 40), stem_width=8)
    grown = scale(base, "d1_w0", 2.5)  # 2.5 -> 2, 12.5 -> 12
    assert [s.depth for s in grown.stages] == [2, 12]
    assert [s.width for s in scale(base, "w", 0.25).stages] == [8, 16]  # 20 / 8 = 2.5 -> 2


def test_group_widths_must_scale_or_the_target_is_missed() -> None:
    base = BASES["regnety_4gf"]
    ratio = {t: complexity(scale(base, t, 16)).macs / complexity(base).macs for t in ("w", "wg")}
    assert ratio["w"] == pytest.approx(10.5, abs=0.1)
    assert ratio["wg"] > 15


def test_activations_grow_as_published() -> None:
    published = {
        "fast": (0.55, 0.61), "w": (0.51, 0.58), "dw": (0.67, 0.75),
        "dwr": (0.78, 0.83), "d": (0.87, 0.92), "r": (1, 1),
    }  # fmt: skip
    for strategy, (low, high) in published.items():
        for name in OUR_NAME.values():
            base = BASES[name]
            got = round(exponent(base, scale(base, strategy, 16)), 2)
            assert low <= got <= high, f"{name} {strategy}: {got}"
    assert math.isnan(exponent(BASES["regnetx_400mf"], BASES["regnetx_400mf"]))


def test_every_row_of_the_official_scaler_is_met_to_the_integer(golden: dict[str, Any]) -> None:
    rows = 0
    for official, configs in golden["scaled"].items():
        base = BASES[OUR_NAME[official]]
        for key, want in configs.items():
            strategy, _, s = key.partition("@")
            net = base if key == "base" else scale(base, strategy, float(s))
            cost = complexity(net)
            got = {
                "depths": [x.depth for x in net.stages],
                "widths": [x.width for x in net.stages],
                "bot_muls": [x.bottleneck for x in net.stages],
                "exp_ratios": [x.bottleneck for x in net.stages],
                "group_ws": [x.group_width for x in net.stages],
                "stem_w": net.stem_width,
                "head_w": net.head_width,
                "train_size": net.train_size,
                "test_size": net.test_size,
                "flops": cost.macs,
                "params": cost.params,
                "acts": cost.acts,
            }
            assert {k: got[k] for k in want} == want, f"{official}|{key}"
            rows += 1
    assert rows == len(golden["complexity_rows"]) == 205


def test_published_costs_are_met() -> None:
    published = {
        "regnetx_200mf": (199.04, 2.68, 2.16),
        "regnetx_400mf": (397.68, 5.16, 3.14),
        "regnety_400mf": (401.85, 4.34, 3.89),
        "regnety_4gf": (3973.3, 20.65, 12.29),
        "efficientnet_b0": (385.83, 5.29, 6.75),
    }
    for name, (macs, params, acts) in published.items():
        got = complexity(BASES[name])
        digits = 1 if macs > 1000 else 2
        assert (round(got.macs / 1e6, digits), round(got.params / 1e6, 2), round(got.acts / 1e6, 2)) == (
            macs,
            params,
            acts,
        )


# RegNet's generator and the compatibility of groups


def test_generator_and_compatibility_equal_the_official_ones(golden: dict[str, Any]) -> None:
    for case in golden["generate_regnet"]:
        widths, depths = generate_regnet(case["wa"], case["w0"], case["wm"], case["d"], case["q"])
        assert (widths, depths) == (case["widths"], case["depths"])
    for case in golden["adjust_block_compatibility"]:
        assert [list(x) for x in adjust_block_compatibility(case["ws"], case["bs"], case["gs"])] == case["out"]


@given(width=st.integers(1, 2000), b=st.sampled_from([0.25, 0.5, 1, 2, 3, 4, 6]), group=st.integers(1, 200))
def test_adjusted_blocks_split_evenly(width: int, b: float, group: int) -> None:
    if int(width * b) < 1:
        return
    (w,), (kept,), (g,) = adjust_block_compatibility([width], [b], [group])
    assert kept == b
    assert round(w * b) % g == 0
    Architecture((Stage(1, w, bottleneck=b, group_width=g),))  # and the description accepts it


def test_impossible_regnets_are_refused() -> None:
    for w_a, w_0, w_m, depth in ((-1, 24, 2.5, 13), (36, 0, 2.5, 13), (36, 24, 1.0, 13), (36, 24, 2.5, 0)):
        with pytest.raises(UsageError, match="a RegNet needs"):
            generate_regnet(w_a, w_0, w_m, depth)
    with pytest.raises(UsageError, match="multiple of 8"):
        generate_regnet(36, 20, 2.5, 13)


def test_impossible_blocks_are_refused() -> None:
    with pytest.raises(UsageError, match=r"below 1 or an integer, not 1\.5"):
        adjust_block_compatibility([48], [1.5], [8])
    with pytest.raises(UsageError, match="one number per stage"):
        adjust_block_compatibility([48, 96], [1], [8, 8])
    with pytest.raises(UsageError, match="is no block"):
        adjust_block_compatibility([1], [0.25], [1])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"widths": (16,)}, "2 depths but 1 widths"),
        ({"depths": (0, 1)}, "stage 1"),
        ({"bottlenecks": 1.5}, "below 1 or an integer"),
        ({"group_widths": 7}, "do not split into groups of 7"),
        ({"kernels": 4}, "odd"),
        ({"block": "plain"}, "no block 'plain'"),
        ({"stem": "none"}, "no stem 'none'"),
        ({"activation": "gelu"}, "no activation 'gelu'"),
        ({"train_size": 0}, "train_size is 0"),
        ({"classes": 0}, "classes is 0"),
        ({"se_ratio": -0.1}, "se_ratio"),
        ({"depths": (), "widths": ()}, "at least one stage"),
    ],
)
def test_descriptions_of_no_network_are_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Architecture.from_lists(**{"depths": (1, 1), "widths": (16, 32), **change})


def test_pictures_must_keep_a_pixel() -> None:
    with pytest.raises(UsageError, match="no pixel left"):
        scale(BASES["regnety_400mf"], "r", 1e-5)
    with pytest.raises(UsageError, match="no complexity"):
        complexity(BASES["regnety_400mf"], 0)


# Counting


@pytest.mark.parametrize("name", sorted(BASES))
def test_analytic_cost_equals_the_counted_one(name: str) -> None:
    for net in (BASES[name], scale(BASES[name], "fast", 2), scale(BASES[name], "dwr", 0.5)):
        assert complexity(net) == count_by_running(net, net.train_size)


@settings(deadline=None, max_examples=25)
@given(net=st.sampled_from(sorted(TINY)), size=st.integers(1, 70))
def test_cost_is_right_at_any_size(net: str, size: int) -> None:
    assert complexity(TINY[net], size) == count_by_running(TINY[net], size)


@pytest.mark.parametrize("name", sorted(BASES))
def test_the_ledger_counts_the_same(name: str) -> None:
    net = BASES[name]
    with torch.device("meta"):
        model = AnyNet(net)
    got, want = cost(model, torch.empty(1, 3, net.train_size, net.train_size, device="meta")), complexity(net)
    assert (got.parameters, got.activations) == (want.params, want.acts)
    biases = sum(m.bias.numel() for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear) and m.bias is not None)
    assert want.macs - got.macs == biases  # the official count takes bias additions in, all of them at 1x1 here


def test_parts_add_up_to_the_whole() -> None:
    net = BASES["regnetz_500mf"]
    parts = part_complexities(net)
    assert [name for name, _, _ in parts] == ["stem", "s1", "s2", "s3", "s4", "head"]
    assert [side for _, side, _ in parts] == [112, 56, 28, 14, 7, 1]
    assert sum(cost.params for _, _, cost in parts) == complexity(net).params


# Solving


@pytest.mark.parametrize("name", sorted(BASES))
def test_solver_meets_macs_within_5_percent(name: str) -> None:
    for target in (0.6e9, 1e9, 2e9, 4e9):
        found = solve(BASES[name], target)
        assert abs(found.deviation) <= 0.05
        assert found.achieved == complexity(found.architecture).macs
        assert found.deviation == pytest.approx(found.achieved / target - 1)


def test_solver_meets_activations_and_parameters() -> None:
    base = BASES["regnety_400mf"]
    for quantity, target in (("acts", 8e6), ("acts", 2e6), ("params", 2e7)):
        found = solve(base, target, quantity=quantity, strategy="compound")  # type: ignore[arg-type]
        assert abs(found.deviation) <= 0.05, quantity
        assert getattr(complexity(found.architecture), quantity) == found.achieved


def test_solver_does_not_touch_pictures_where_the_strategy_does_not() -> None:
    for target in (0.6e9, 1e9, 4e9):
        assert solve(BASES["regnetx_400mf"], target, strategy="wg").architecture.train_size == 224


def test_solver_refuses_what_a_strategy_cannot_reach() -> None:
    with pytest.raises(UsageError, match=r"from .* to .* params"):
        solve(BASES["regnety_400mf"], 1e9, quantity="params", strategy="r")
    with pytest.raises(UsageError, match="not to"):
        solve(BASES["regnety_4gf"], 1e8, strategy="depth")
    for target in (0, -1, math.nan, math.inf):
        with pytest.raises(UsageError, match="positive and finite"):
            solve(BASES["regnety_400mf"], target)
    with pytest.raises(UsageError, match="no quantity"):
        solve(BASES["regnety_400mf"], 1e9, quantity="joules")  # type: ignore[arg-type]


def test_measured_solver_meets_a_latency_in_few_measurements() -> None:
    measured: list[Architecture] = []

    def time_of(net: Architecture) -> float:  # a machine bound by memory, with a cost per block
        measured.append(net)
        return 2e-9 * complexity(net).acts + 1e-4 * sum(s.depth for s in net.stages) + 1e-3

    for target in (0.006, 0.03, 0.1):
        measured.clear()
        found = solve_measured(BASES["regnety_400mf"], target, time_of)
        assert abs(found.deviation) <= 0.05
        assert found.achieved == time_of(found.architecture)
        assert len(set(measured)) == len(measured) - 1 <= 10  # each network once, and the line above


def test_measured_solver_survives_noise_and_refuses_nonsense() -> None:
    noise = iter([1.3, 0.8, 1.1, 0.9, 1.2, 0.7, 1.0, 1.05, 0.95, 1.0])
    found = solve_measured(BASES["regnetx_200mf"], 0.01, lambda net: 2e-9 * complexity(net).acts * next(noise))
    assert found.achieved > 0
    with pytest.raises(UsageError, match="must be a positive number"):
        solve_measured(BASES["regnetx_200mf"], 1.0, lambda net: 0.0)
    with pytest.raises(UsageError, match="positive and finite"):
        solve_measured(BASES["regnetx_200mf"], 0.0, lambda net: 1.0)


def test_seconds_times_a_network() -> None:
    assert 0 < fast_scaling.seconds(TINY["bottleneck"], repeats=2, threads=1) < 10


# Networks


@pytest.mark.parametrize("name", ["regnetx_200mf", "regnety_400mf", "regnetz_500mf"])
def test_unscaled_regnets_equal_timms(name: str) -> None:
    known: dict[str, dict[str, Any]] = {
        "regnetx_200mf": {"depth": 13, "w_0": 24, "w_a": 36.44, "w_m": 2.49, "group_width": 8},
        "regnety_400mf": {"depth": 16, "w_0": 48, "w_a": 27.89, "w_m": 2.09, "group_width": 8, "se_ratio": 0.25},
        "regnetz_500mf": {
            "depth": 21, "w_0": 16, "w_a": 10.7, "w_m": 2.51, "group_width": 4, "se_ratio": 0.25, "bottleneck": 4.0,
            "block": "linear", "head_width": 1024, "activation": "silu",
        },
    }  # fmt: skip
    parameters = known[name]
    ours, theirs = randomised(AnyNet(BASES[name])), timm_regnet(**parameters).eval()
    theirs.load_state_dict(ours.state_dict())  # the same names and shapes, no key missing
    assert regnet(**parameters) == BASES[name]
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        want = theirs(x)
        torch.testing.assert_close(ours(x), want, rtol=1e-4, atol=1e-5 * float(want.abs().max()))


def test_efficientnet_b0_has_the_parameters_of_timms() -> None:
    import timm

    with torch.device("meta"):
        theirs = timm.create_model("efficientnet_b0")
        ours = AnyNet(BASES["efficientnet_b0"])
    shapes = [sorted(tuple(p.shape) for p in model.parameters()) for model in (ours, theirs)]
    assert shapes[0] == shapes[1]


def test_networks_that_timm_has_not_are_refused() -> None:
    with pytest.raises(UsageError, match="4 stages"):
        timm_regnet(4, 32, 0.0, 2.5, 8)
    with pytest.raises(UsageError, match="no linear network"):
        timm_regnet(28, 48, 14.5, 2.226, 8, bottleneck=4.0, block="linear", activation="silu")


@pytest.mark.parametrize("name", sorted(TINY))
def test_outputs_stay_what_they_were_when_parity_held(name: str) -> None:
    expected = {
        "bottleneck": [1.810777, 0.229378, 0.822741, 0.150312, 0.869989],
        "linear": [-0.194324, -0.092959, 0.030092, -0.118788, -0.317613],
        "mbconv": [-0.00679, -0.373233, -0.94425, 0.142441, 0.93168],
        "pool": [-0.373814, -0.079219, 0.067934],
        "cifar": [1.411312, 0.520976, 1.092868],
    }
    x = torch.rand(1, 3, 48, 40, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        got = randomised(AnyNet(TINY[name]))(x)
    torch.testing.assert_close(got, torch.tensor([expected[name]]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(TINY))
def test_features_and_gradients_are_sound(name: str) -> None:
    model = AnyNet(TINY[name])
    randomised(model).train()
    x = torch.rand(2, 3, 37, 50, generator=torch.Generator().manual_seed(0))
    features = model.features(x)
    assert [f.shape[1] for f in features] == [TINY[name].stem_width, *(s.width for s in TINY[name].stages)]
    logits = model(x)
    assert logits.shape == (2, TINY[name].classes)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_initialisation_ignores_groups() -> None:
    torch.manual_seed(0)
    net = AnyNet(BASES["regnetx_400mf"])
    conv = net.get_submodule("s4.b2.conv2.conv")
    classifier = net.get_submodule("head.fc")
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(classifier, nn.Linear)
    assert conv.weight.std().item() == pytest.approx((2 / (9 * 384)) ** 0.5, rel=0.02)
    assert classifier.weight.std().item() == pytest.approx(0.01, rel=0.02)


@pytest.mark.parametrize("name", ["bottleneck", "linear", "mbconv"])
def test_exported_networks_take_any_size(name: str) -> None:
    model = randomised(AnyNet(TINY[name]))
    dynamic = {"x": {2: torch.export.Dim("h", min=16, max=256), 3: torch.export.Dim("w", min=16, max=256)}}
    exported = torch.export.export(model, (torch.rand(1, 3, 64, 48),), dynamic_shapes=dynamic).module()
    x = torch.rand(1, 3, 80, 33, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(exported(x), model(x))


# Names and files


def test_models_are_created_by_name_scaled_or_not() -> None:
    assert set(registry.list_models(system="fast_scaling")) == {*BASES, "anynet"}
    plain = registry.create("regnetx_200mf", weights=None, classes=10)
    assert sum(p.numel() for p in plain.parameters()) == complexity(BASES["regnetx_200mf"]).params - 990 * 369
    scaled = registry.create("regnetx_200mf", weights=None, macs=0.6e9)
    assert scaled.architecture == solve(BASES["regnetx_200mf"], 0.6e9).architecture
    twice = registry.create("efficientnet_b0", weights=None, scale=0.25, strategy="dwr")
    assert twice.architecture == scale(BASES["efficientnet_b0"], "dwr", 0.25)
    with pytest.raises(UsageError, match="not both"):
        registry.create("regnetx_200mf", weights=None, macs=1e9, scale=2)


def test_scaled_models_save_and_load(tmp_path: Path) -> None:
    model = randomised(registry.create("regnetx_200mf", weights=None, scale=0.25, classes=7))
    saccade.checkpoint.save(model, tmp_path / "net.safetensors")
    again = saccade.checkpoint.load(tmp_path / "net.safetensors")
    x = torch.rand(1, 3, 40, 40)
    with torch.no_grad():
        torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)


def official_state(model: nn.Module, mbconv: bool) -> dict[str, Tensor]:
    """The state as the official code names it and feeds it (BGR)."""
    layers = (
        {"conv1": "exp", "conv2": "dwise", "conv3": "lin_proj"}
        if mbconv
        else {"conv1": "a", "conv2": "b", "conv3": "c"}
    )
    inner = "" if mbconv else "f."
    out = {}
    for name, value in model.state_dict().items():
        parts = name.split(".")
        if parts[0] == "final_conv":
            parts = ["head", "conv_bn" if mbconv and parts[1] == "bn" else parts[1], parts[2]]
        elif len(parts) > 2 and parts[2] in layers:
            parts = [*parts[:2], f"{inner}{layers[parts[2]]}" + ("_bn" if parts[3] == "bn" else ""), parts[4]]
        elif len(parts) > 2 and parts[2] == "se":
            parts = [*parts[:2], f"{inner}se.f_ex.{0 if parts[3] == 'fc1' else 2}", parts[4]]
        elif len(parts) > 2 and parts[2] == "downsample":
            parts = [*parts[:2], "proj" if parts[3] == "conv" else "bn", parts[4]]
        out[".".join(parts)] = value.flip(1) if name == "stem.conv.weight" else value
    return out


@pytest.mark.parametrize("name", ["bottleneck", "linear", "mbconv", "pool"])
def test_official_checkpoints_tell_their_network(name: str, tmp_path: Path) -> None:
    model = randomised(AnyNet(TINY[name]))
    state = official_state(model, mbconv=name == "mbconv")
    torch.save({"epoch": 3, "model_state": state}, tmp_path / "official.pth")
    loaded = saccade.checkpoint.load(tmp_path / "official.pth")
    assert loaded.architecture == TINY[name]
    x = torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["regnety_400mf", "regnetz_500mf", "efficientnet_b0"])
def test_official_checkpoints_of_published_networks_get_their_name(name: str) -> None:
    model = AnyNet(BASES[name])
    recipe = saccade.checkpoint._recipe(official_state(model, mbconv=name == "efficientnet_b0"), "file")
    assert (recipe.model, recipe.options) == (name, {"classes": 1000})


def test_golden_networks_load_from_their_states_alone(golden: dict[str, Any], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    vectors = load_file(GOLDEN / "fast_scaling.safetensors")
    for prefix in ("", "regnetz.", "effnet."):
        state = {k.removeprefix(f"{prefix}state."): v for k, v in vectors.items() if k.startswith(f"{prefix}state.")}
        save_file(state, tmp_path / "net.safetensors")
        model = saccade.checkpoint.load(tmp_path / "net.safetensors")
        with torch.no_grad():
            got = model(vectors[f"{prefix}input.x"].flip(1))  # the official code's pictures are BGR, ours RGB
        torch.testing.assert_close(got, vectors[f"{prefix}output.logits"], rtol=1e-4, atol=1e-4)


def test_timm_checkpoints_load_under_their_own_names(tmp_path: Path) -> None:
    theirs = timm_regnet(13, 24, 36.44, 2.49, 8, classes=6).eval()
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    loaded = saccade.checkpoint.load(tmp_path / "timm.pth")
    assert loaded.saccade_name == "regnetx_200mf"
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), theirs(x))


def test_weights_that_would_be_read_wrongly_are_refused(tmp_path: Path) -> None:
    state = AnyNet(BASES["regnetz_4gf"]).state_dict()
    torch.save(state, tmp_path / "z.pth")
    with pytest.raises(CheckpointError, match="activates before its pooling"):
        saccade.checkpoint.load(tmp_path / "z.pth")
    broken = official_state(AnyNet(TINY["bottleneck"]), mbconv=False)
    broken["s1.b1.f.b.weight"] = torch.zeros(8, 3, 3, 3)
    torch.save(broken, tmp_path / "broken.pth")
    with pytest.raises(CheckpointError, match="do not split into groups of 3"):
        saccade.checkpoint.load(tmp_path / "broken.pth")
    short = {k: v for k, v in official_state(AnyNet(TINY["linear"]), mbconv=False).items() if "s1.b1.f.b_bn" not in k}
    torch.save(short, tmp_path / "short.pth")
    with pytest.raises(CheckpointError, match=r"missing s1\.b1\.conv2\.bn"):
        saccade.checkpoint.load(tmp_path / "short.pth")


# The command line


def run_cli(*arguments: str) -> tuple[int, str, Exception | None]:
    from saccade.cli import verbs as app

    result = CliRunner().invoke(app, ["scale", *arguments])
    error = result.exception if isinstance(result.exception, Exception) else None
    return result.exit_code, result.stdout, error


def test_verb_prints_the_stages_and_the_deviation() -> None:
    code, out, _ = run_cli("regnety_400mf", "--by", "4")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[3:10]] == ["stem", "s1", "s2", "s3", "s4", "head", "all"]
    assert "1572.52" in out
    assert "14.594" in out
    assert "7.920" in out
    assert "MACs^0.52" in out
    assert "-2.17% from the target" in out


def test_verb_solves_and_tells_as_json() -> None:
    code, out, _ = run_cli("regnetz_500mf", "--macs", "2G", "--strategy", "compound", "--size", "192", "--json")
    told = json.loads(out)
    assert code == 0
    assert told["target"] == 2e9
    assert abs(told["deviation"]) < 0.05
    assert told["macs"] == sum(part["macs"] for part in told["parts"]) == told["achieved"]
    assert told["train_size"] > 192
    for option, text, key in (("--activations", "10M", "activations"), ("--params", "20e6", "params")):
        told = json.loads(run_cli("efficientnet_b0", option, text, "--json")[1])
        assert told[key] == pytest.approx(told["target"], rel=0.05)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["regnety_400m", "--macs", "4G"], "the nearest are regnety_400mf"),
        (["sesr_m5", "--macs", "4G"], "not a network that can be scaled"),
        (["regnety_400mf"], "got none"),
        (["regnety_400mf", "--macs", "1G", "--by", "2"], "got --macs and --by"),
        (["regnety_400mf", "--macs", "4Q"], "takes an amount"),
        (["regnety_400mf", "--macs", "0"], "takes an amount"),
        (["regnety_400mf", "--by", "-1"], "--by lies between 0.0001 and 10000"),
        (["regnety_400mf", "--by", "2", "--strategy", "zap"], "no scaling strategy 'zap'"),
        (["regnety_400mf", "--by", "2", "--size", "0"], "--size lies between 1 and 16384"),
        (["regnety_400mf", "--latency", "0"], "--latency lies between 0.001 and 60000"),
    ],
)
def test_verb_refuses_misuse_in_one_line(arguments: list[str], says: str) -> None:
    _, _, error = run_cli(*arguments)
    assert isinstance(error, UsageError)
    assert says in str(error)
    assert "\n" not in str(error)


def test_scaling_needs_no_torch() -> None:
    code = (
        "import sys; from saccade.backbones.fast_scaling import BASES, solve; from saccade.cli.scale import scale; "
        "scale('regnety_400mf', macs='1G'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


# The claim's arithmetic


def test_claims_networks_match_in_macs_and_correlations_are_right() -> None:
    from saccade.reproduce import fast_scaling as claim

    fast, uniform = claim.pair(4)
    assert complexity(uniform).macs == pytest.approx(complexity(fast).macs, rel=0.02)
    assert complexity(uniform).acts > 1.3 * complexity(fast).acts
    for name, net in claim.grid().items():
        assert complexity(net).macs == pytest.approx(float(name.split()[-1][:-1]) * 1e9, rel=0.05)
    assert claim.pearson([1, 2, 3], [2, 4, 6]) == pytest.approx(1)
    assert claim.spearman([1, 2, 3, 4], [1, 10, 100, 1000]) == pytest.approx(1)
    assert claim.spearman([1, 1, 2, 3], [4, 4, 2, 1]) == pytest.approx(-1)
    good = {"pearson_activations": 0.9, "pearson_macs": 0.7, "spearman_activations": 0.9, "spearman_macs": 0.7}
    assert claim.met({**good, "speedup_two_threads": 1.2})
    assert not claim.met({**good, "speedup_two_threads": 1.1})
    assert not claim.met({**good, "speedup_two_threads": 1.2, "spearman_macs": 0.95})
