"""Scaling of any backbone by its options: targets met, widths that the network takes, calls that build it, refusals."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import saccade
from saccade.backbones.elasticvit import PUBLISHED, PUBLISHED_ARCHITECTURES, SubNetwork
from saccade.backbones.fast_scaling import Factors, scaling_factors
from saccade.backbones.fast_scaling.any_network import GROWTHS, TOLERANCE, Base, Scaled, scale_to
from saccade.backbones.ulsam.attention import SubspaceAttention
from saccade.cost import cost, count_parameters
from saccade.errors import UsageError
from saccade.nn.dimensions import moved
from saccade.registry import entry, list_models

#: a small network of every family, and a strategy that it takes
FAMILIES = {
    "biformer_tiny": "fast",
    "dsm_nano": "fast",
    "efficientvit_m0": "fast",
    "elasticvit_t1": "fast",
    "fit_classifier_s": "fast",
    "foveated_reference_resnet18": "fast",
    "hyperzzw_cifar": "width",
    "piip_nano": "fast",
    "resnetrs50": "fast",
    "shiftaddvit_b0": "rs_long",
    "shvit_s1": "fast",
    "tvconv_mobilenetv2_x0_1": "fast",
    "tvconv_shufflenetv2_x0_5": "fast",
    "ulsam_mobilenetv1_136m": "fast",
    "ulsam_mobilenetv2_224m": "fast",
    "unireplknet_a": "fast",
    "van_b0": "fast",
    "wavemix_cifar_144_7": "fast",
}
LARGE = (
    "biformer_tiny",
    "efficientvit_m0",
    "hyperzzw_cifar",
    "piip_nano",
    "shiftaddvit_b0",
    "tvconv_mobilenetv2_x0_1",
    "tvconv_shufflenetv2_x0_5",
)


def built(net: Scaled) -> torch.nn.Module:
    """What the printed call builds."""
    model = eval(net.call, {"saccade": saccade})
    assert isinstance(model, torch.nn.Module)
    return model


def test_every_family_is_tried() -> None:
    assert {entry(name).function for name in FAMILIES} == set(GROWTHS)
    assert set(GROWTHS) <= set(list_models(task="classification"))


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in LARGE else ()) for n in FAMILIES])
@pytest.mark.filterwarnings("ignore:the statistics of the batch:UserWarning")
def test_targets_are_met_and_the_call_builds_what_was_counted(name: str) -> None:
    base = Base.of(name)
    start = base.scaled(Factors(1, 1, 1, 1))
    assert start.call == f'saccade.create("{name}", weights=None)'
    found = scale_to(base, strategy=FAMILIES[name], target=1.6 * start.cost().macs)
    assert abs(found.deviation) <= TOLERANCE
    assert found.before.macs == start.cost().macs
    with torch.device("meta") if name not in ("hyperzzw_cifar", "shiftaddvit_b0") else torch.device("cpu"):
        model = built(found.network)
        x = torch.empty(1, 3, found.network.size, found.network.size)
    assert count_parameters(model) == found.after.parameters
    if name != "shiftaddvit_b0":  # whose gates count by what they choose
        assert cost(model, x, timed=False).macs == found.after.macs == found.achieved


def test_larger_networks_run() -> None:
    found = scale_to(Base.of("van_b0"), strategy="compound", by=0.2)
    x = torch.randn(1, 3, found.network.size, found.network.size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert built(found.network)(x).shape == (1, 1000)
    assert found.after.macs < 0.5 * found.before.macs


def test_factors_are_the_papers() -> None:
    """The plain network of factor 4, as the worked example has the factors: 1.15, 1.74, 1.07."""
    options = dict(Base.of("van_b1").scaled(scaling_factors("fast", 4)).options)
    assert options == {"widths": (112, 224, 560, 888), "depths": (2, 2, 5, 2)}
    assert Base.of("van_b1").scaled(scaling_factors("fast", 4)).size == 240
    assert dict(Base.of("van_b1").scaled(scaling_factors("depth", 4)).options) == {"depths": (8, 8, 16, 8)}


def test_widths_divide_by_what_the_network_demands() -> None:
    grown = Factors(1, 1.37, 1.37, 1)
    widths = dict(Base.of("biformer_tiny").scaled(grown).options)["widths"]
    assert all(width % 32 == 0 for width in widths)
    told = dict(Base.of("efficientvit_m2").scaled(grown).options)
    assert all(width % heads == 0 for width, heads in zip(told["widths"], (4, 3, 2), strict=True))
    chained = dict(Base.of("hyperzzw_cifar").scaled(Factors(1, 2, 2, 1)).options)["widths"]
    assert all(b % a == 0 for a, b in itertools.pairwise(chained))
    pyramid = dict(Base.of("piip_tsb_368").scaled(grown).options)["widths"]
    assert all(width % 32 == 0 and width % heads == 0 for width, heads in zip(pyramid, (12, 6, 3), strict=True))


def test_what_follows_width_and_depth_follows() -> None:
    told = dict(Base.of("shvit_s1").scaled(Factors(1, 1.5, 1.5, 1)).options)
    assert told == {"widths": (192, 336, 480), "partial": (0, 72, 102)}
    told = dict(Base.of("unireplknet_t").scaled(Factors(1.2, 1, 1, 1)).options)
    assert told["depths"] == (4, 4, 22, 4)
    assert told["kernels"][2] == (13, 3) * 11
    told = dict(Base.of("unireplknet").scaled(Factors(0.5, 1, 1, 1)).options)
    assert [len(stage) for stage in told["kernels"]] == list(told["depths"]) == [1, 1, 3, 1]
    told = dict(Base.of("resnetrs50").scaled(Factors(2, 1.25, 1.25, 1)).options)
    assert told == {"channels": (80, 160, 320, 640), "stem_width": 40, "depth": (6, 8, 12, 6)}


def test_networks_of_one_size_are_built_for_the_new_one() -> None:
    net = Base.of("piip_tsb_368").scaled(Factors(1, 1, 1, 1.25))
    assert net.size == 464
    assert dict(net.options) == {"sides": (160, 240, 464)}
    net = Base.of("fit_classifier_s").scaled(Factors(1.5, 1.2, 1.2, 1.3))
    assert (net.size, dict(net.options)["img_size"]) == (288, 288)  # whole sub-images of 32 px
    assert dict(net.options)["depths"] == (3, 12, 3)
    assert all(width % 24 == 0 for width in dict(net.options)["widths"])  # six heads, and 8
    net = Base.of("dsm_t", size=256).scaled(Factors(1, 1, 1, 1))
    assert dict(net.options) == {"img_size": 256}


def test_a_network_of_a_supernet_stays_one_of_it() -> None:
    """Each number is one of the space's choices, the nearest; widths never fall, and pictures follow."""
    base = Base.of("elasticvit_t1")
    for factors in (Factors(0.3, 0.3, 0.3, 0.5), Factors(1.7, 1.2, 1.2, 1.3), Factors(9, 9, 9, 9)):
        net = base.scaled(factors)
        with torch.device("meta"):
            model = built(net)
        assert isinstance(model, SubNetwork)
        PUBLISHED.check(model.architecture)
        assert model.architecture.resolution == net.size
        assert [s.depth for s in model.architecture.stages] == [
            min(column.values, key=lambda value: abs(value - factors.depth * s.depth))
            for column, s in zip(PUBLISHED.columns[4::4], PUBLISHED_ARCHITECTURES["t1"].stages, strict=True)
        ]
    widest = [column.values[-1] for column in PUBLISHED.columns if column.kind == "width"]
    assert [model.architecture.stem.width, *(s.width for s in model.architecture.stages)] == widest


def test_attention_keeps_its_place_among_more_or_fewer_blocks() -> None:
    """The last block of a row stays the last, what is replaced is never the first, no two fall on one."""
    assert moved((12, 13, 15, 16), (1, 2, 3, 4, 3, 3, 1), (1, 3, 4, 6, 5, 4, 1), 1) == (17, 19, 22, 23)
    assert moved((5,), (1, 2, 4), (1, 2, 2), 1) == (4,)
    base = Base.of("ulsam_mobilenetv2_224m")
    for depth in (0.2, 0.7, 1.6, 3.0):
        with torch.device("meta"):
            model = built(base.scaled(Factors(depth, 1, 1, 1)))
            x = torch.empty(1, 3, 64, 64)
            assert model(x).shape == (1, 1000)
        assert sum(isinstance(m, SubspaceAttention) for m in model.modules()) == 4
    for name in ("ulsam_mobilenetv1_296m", "tvconv_mobilenetv2_x0_5"):
        told = Base.of(name)
        assert told.dimensions is not None
        same = told.dimensions.options(told.dimensions.numbers)
        with torch.device("meta"):
            one, other = (saccade.create(name, weights=None, **options) for options in ({}, same))
        assert [p.shape for p in one.parameters()] == [p.shape for p in other.parameters()]


def test_the_slow_rules_of_resnet_rs() -> None:
    """Depth for long training, width for short; pictures at the family's pace, never beyond 320 px."""
    assert scaling_factors("rs_long", 63.9 / 2.28, 160).resolution == pytest.approx(2, abs=0.01)
    for strategy, grows in (("rs_long", "depth"), ("rs_short", "width")):
        free, stopped = scaling_factors(strategy, 100.0, 160), scaling_factors(strategy, 100.0, 256)
        assert free.resolution == pytest.approx(2)
        assert stopped.resolution == pytest.approx(320 / 256)
        assert stopped.depth * stopped.width**2 * stopped.resolution**2 == pytest.approx(100)
        assert getattr(stopped, grows) > getattr(free, grows) > 1
        assert {stopped.depth, stopped.width} & {1.0}
        assert scaling_factors(strategy, 4.0, 384).resolution == 1  # larger already: the size stays
        assert scaling_factors(strategy, 0.25, 384).resolution < 1
    assert Base.of("resnetrs50").scaled(scaling_factors("rs_long", 100.0, 160)).size == 320


def test_some_dimensions_round_the_other_way_where_all_at_once_miss() -> None:
    base = Base.of("van_b1")
    macs = base.scaled(Factors(1, 1, 1, 1)).cost().macs
    found = scale_to(base, strategy="depth", target=0.6 * macs)
    assert abs(found.deviation) <= TOLERANCE
    depths = dict(found.network.options)["depths"]
    assert depths not in [(1, 1, 2, 1), (1, 1, 3, 1), (2, 2, 3, 2)]  # what rounding all stages alike gives


def test_other_quantities() -> None:
    base = Base.of("shvit_s1")
    assert scale_to(base, target=10e6, quantity="params").after.parameters == pytest.approx(10e6, rel=TOLERANCE)
    found = scale_to(base, target=0.02, measure=lambda net: 2e-5 * sum(dict(net.options).get("widths", (672,))))
    assert found.achieved == pytest.approx(0.02, rel=0.03)
    assert 0 < found.exponent < 1
    assert math.isnan(scale_to(base, by=1).exponent)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("sesr_m5", r"it is for super-resolution, and classifiers are scaled"),
        ("wavemix_x2", r"it is for super-resolution, and classifiers are scaled"),
        ("elasticvit", r"a supernet holds networks of all its costs at once: `saccade search` finds the one"),
        ("anynet", r"it has no widths and depths of its own to begin with"),
    ],
)
def test_what_cannot_be_scaled_is_told_why(name: str, why: str) -> None:
    with pytest.raises(UsageError, match=rf"{name} is not a network that can be scaled: {why}.*shvit.*van"):
        Base.of(name)


@pytest.mark.parametrize(
    ("name", "kin"),
    [("fit", "fit_classifier"), ("fit_decoder", "fit_classifier"), ("elasticvit", "elasticvit_subnet")],
)
def test_what_can_be_scaled_of_the_same_system_is_named(name: str, kin: str) -> None:
    with pytest.raises(UsageError, match=rf"Of its system {kin} can\. These"):
        Base.of(name)


def test_targets_out_of_reach_are_refused() -> None:
    base = Base.of("shvit_s1")
    with pytest.raises(UsageError, match=r"brings shvit_s1 to .* at the nearest"):
        scale_to(base, strategy="depth", target=1e6)
    with pytest.raises(UsageError, match="no depth to scale"):
        Base.of("hyperzzw_cifar").scaled(scaling_factors("fast", 2))
    with pytest.raises(UsageError, match="no pixel left"):
        base.scaled(Factors(1, 1, 1, 0.001))
    with pytest.raises(UsageError, match="one of them"):
        scale_to(base, by=2, target=1e9)
    with pytest.raises(UsageError, match="no quantity 'joules'"):
        scale_to(base, target=1e9, quantity="joules")
    with pytest.raises(UsageError, match="at least 1 pixel"):
        Base.of("shvit_s1", size=0)
    with pytest.raises(UsageError, match="the nearest are"):
        Base.of("shvit_s9")


def test_a_cost_between_two_resolutions_is_met_by_widths_and_depths() -> None:
    base = Base.of("elasticvit_t1")
    assert base.dimensions is not None
    for target in (150e6, 200e6, 300e6):
        result = scale_to(base, target=target)
        assert abs(result.deviation) <= TOLERANCE
        assert result.network.size in base.dimensions.choices["sides"][0]
