"""Subspace attention: both forms agree, published placements meet their counts, and surgery refuses what cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import zoo
from torch import Tensor, nn

from saccade.backbones.ulsam import (
    LoopedSubspaceAttention,
    MobileNetV1,
    MobileNetV2,
    SubspaceAttention,
    grouped_state,
    insert_after,
    looped_state,
    replace_blocks,
)
from saccade.cost import cost, count_parameters
from saccade.errors import CheckpointError, InputError, UsageError
from saccade.nn.fuse import fuse
from saccade.registry import create


def pair(width: int, groups: int) -> tuple[SubspaceAttention, LoopedSubspaceAttention]:
    with torch.random.fork_rng():
        torch.manual_seed(width + groups)
        grouped = SubspaceAttention(width, groups)
        zoo.randomised(grouped)
    looped = LoopedSubspaceAttention(width, groups)
    looped.load_state_dict(looped_state(grouped.state_dict(), groups))
    return grouped, looped


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("width", "groups", "size"),
    [(24, 1, (7, 7)), (32, 4, (14, 14)), (32, 16, (7, 9)), (6, 6, (3, 1)), (96, 8, (1, 1)), (12, 3, (2, 5))],
)
@pytest.mark.filterwarnings("ignore:subspace attention on a map of 1 x 1")
def test_all_groups_at_once_equal_the_loop(width: int, groups: int, size: tuple[int, int], dtype: torch.dtype) -> None:
    grouped, looped = (m.to(dtype) for m in pair(width, groups))
    chance = torch.Generator().manual_seed(0)
    inputs, cotangent = (torch.randn(2, width, *size, generator=chance).to(dtype) for _ in range(2))
    for train in (False, True):
        found = []
        for model in (grouped.train(train), looped.train(train)):
            x = inputs.clone().requires_grad_()
            y = model(x)
            gradients = torch.autograd.grad((y * cotangent).sum(), [x, *model.parameters()])
            named = dict(zip([n for n, _ in model.named_parameters()], gradients[1:], strict=True))
            found.append((y, gradients[0], grouped_state(named)))
        for one, other in zip(found[0][:2], found[1][:2], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-6)
        for name, gradient in found[0][2].items():
            torch.testing.assert_close(gradient, found[1][2][name], rtol=1e-4, atol=2e-5)
    for name, value in grouped_state(looped.state_dict()).items():
        torch.testing.assert_close(grouped.state_dict()[name], value)


def maps(seed: int, *shape: int) -> Tensor:
    return 0.5 + torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_each_groups_map_sums_to_one_and_is_its_own() -> None:
    model, x = pair(16, 4)[0].eval(), maps(0, 2, 16, 6, 5)
    with torch.no_grad():
        attention = model(x) / x - 1
    torch.testing.assert_close(attention.sum((2, 3)), torch.ones(2, 16), rtol=1e-4, atol=1e-4)
    groups = attention.view(2, 4, 4, 6, 5)
    torch.testing.assert_close(groups, groups[:, :, :1].expand_as(groups), rtol=1e-3, atol=1e-5)
    assert (groups[:, 0] - groups[:, 1]).abs().max() > 1e-3


def test_equal_logits_leave_nearly_the_identity() -> None:
    model, x = pair(16, 4)[0].eval(), maps(1, 1, 16, 7, 7)
    nn.init.constant_(model.bn_point.bias, -100.0)  # the ReLU before the soft-max makes all of them 0
    with torch.no_grad():
        torch.testing.assert_close(model(x), x * (1 + 1 / 49))


def test_statistics_follow_the_last_batch_by_nine_tenths() -> None:
    model = SubspaceAttention(8, 2).train()
    x = maps(2, 4, 8, 5, 5)
    with torch.no_grad():
        model(x)
        torch.testing.assert_close(model.bn_dws.running_mean, 0.9 * model.conv_dws(x).mean((0, 2, 3)))


def test_a_module_has_the_counted_parameters_and_macs() -> None:
    model = SubspaceAttention(512, 4)
    assert count_parameters(model) == 5 * 512 + 3 * 4
    assert cost(model, torch.empty(1, 512, 14, 14, device="meta")).macs == 2 * 512 * 14 * 14


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_strided_maps_give_the_same(dtype: torch.dtype) -> None:
    model, _ = pair(16, 4)
    x = maps(3, 2, 16, 14, 14)
    with torch.no_grad():
        want = model.eval()(x)
        torch.testing.assert_close(model(x.to(memory_format=torch.channels_last)), want)
        torch.testing.assert_close(model(maps(3, 2, 16, 14, 14).mT.contiguous().mT), want)
        half = model.to(dtype)(x.to(dtype))
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), want, rtol=2e-2, atol=2e-2)


def test_fused_it_is_the_same_with_fewer_layers() -> None:
    model = pair(24, 3)[0].eval()
    x = maps(4, 2, 24, 9, 7)
    fused = fuse(model)
    assert not [m for m in fused.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        torch.testing.assert_close(fused(x), model(x), rtol=1e-5, atol=1e-5)


#: (parameters, MACs at 224 px) in millions, counted on timm's mobilenetv2_100 with blocks replaced
COUNTED = {
    ("4.2",): (3.387, 278.12),
    ("5.2",): (3.186, 285.31),
    ("4.2", "3.3"): (3.333, 267.83),
    ("4.2", "5.2"): (3.068, 262.66),
    ("5.1", "5.2"): (2.866, 269.85),
    ("4.1", "4.2", "5.1", "5.2"): (2.631, 224.54),
}
NAMES = ("277m", "285m", "267m", "262m", "269m", "224m")


@pytest.mark.parametrize(("blocks", "name"), list(zip(COUNTED, NAMES, strict=True)))
def test_replaced_blocks_give_the_counted_costs(blocks: tuple[str, ...], name: str) -> None:
    x = torch.empty(1, 3, 224, 224, device="meta")
    with torch.device("meta"):
        host = timm.create_model("mobilenetv2_100").eval()
        networks = [
            replace_blocks(host, [f"blocks.{b}" for b in blocks]),
            create(f"ulsam_mobilenetv2_{name}", weights=None),
        ]
    for model in networks:
        found = count_parameters(model) / 1e6, cost(model, x).macs / 1e6
        assert (round(found[0], 3), round(found[1], 2)) == COUNTED[blocks]


@pytest.mark.parametrize(
    ("name", "millions", "macs"),
    [
        ("mobilenetv1_569m", 4.2, 569),
        ("mobilenetv1_296m", 2.4, 296),
        ("mobilenetv1_136m", 1.3, 136),  # published: 1.2, which their rounding down of 1.264 gives
        ("mobilenetv1_517m", 4.0, 517),  # published: 3.9, of 3.966
        ("mobilenetv2_300m", 3.5, 301),  # published: 3.4 and 300.01; theirs are 0.10 and 0.77 lower throughout
    ],
)
def test_published_counts(name: str, millions: float, macs: int) -> None:
    with torch.device("meta"):
        model = create(f"ulsam_{name}", weights=None)
    assert round(count_parameters(model) / 1e6, 1) == millions
    assert round(cost(model, torch.empty(1, 3, 224, 224, device="meta")).macs / 1e6) == macs


@pytest.mark.parametrize(
    ("name", "millions", "macs"),
    [("277m", 3.28, 277.3), ("285m", 3.08, 284.5), ("267m", 3.23, 267.1), ("262m", 2.96, 261.88),
     ("269m", 2.77, 269.07), ("224m", 2.54, 223.77)],
)  # fmt: skip
def test_published_rows_are_ours_less_a_constant(name: str, millions: float, macs: float) -> None:
    with torch.device("meta"):
        model = create(f"ulsam_mobilenetv2_{name}", weights=None)
    offset = count_parameters(model) / 1e6 - millions, cost(model, torch.empty(1, 3, 224, 224)).macs / 1e6 - macs
    assert offset == pytest.approx((0.10, 0.78), abs=0.05)


def test_ours_and_timms_hosts_cost_the_same() -> None:
    with torch.device("meta"):
        ours, theirs = create("ulsam_mobilenetv2", weights=None), timm.create_model("mobilenetv2_100")
        first, second = create("ulsam_mobilenetv1", weights=None), timm.create_model("mobilenetv1_100")
    assert isinstance(ours, MobileNetV2)
    assert isinstance(first, MobileNetV1)
    assert count_parameters(ours) == count_parameters(theirs)
    assert count_parameters(first) == count_parameters(second)


@pytest.mark.parametrize("version", [1, 2])
def test_our_hosts_compute_what_timms_do(version: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = zoo.randomised(timm.create_model(f"mobilenetv{version}_100", num_classes=5).eval())
        x = torch.randn(1, 3, 64, 96)
    ours = create(f"ulsam_mobilenetv{version}", weights=None, num_classes=5)
    with torch.no_grad():  # both in the order of the data's flow; norms of timm's carry their activation
        for mine, other in zip(layers(ours), layers(theirs), strict=True):
            mine.load_state_dict(other.state_dict())
        want = theirs(x)
        torch.testing.assert_close(ours(x), want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))


def layers(model: nn.Module) -> list[nn.Module]:
    """Convolutions, norms and the classifier, in the order in which the picture meets them."""
    kinds = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)
    met: list[nn.Module] = []
    hooks = [m.register_forward_hook(lambda m, _i, _o: met.append(m)) for m in model.modules() if isinstance(m, kinds)]
    model(torch.zeros(1, 3, 64, 64))
    for hook in hooks:
        hook.remove()
    return met


def test_insertion_keeps_the_block_before_it() -> None:
    host = timm.create_model("mobilenetv2_100").eval()
    block = host.get_submodule("blocks.5.2")
    insert_after(host, ["blocks.5.2"], groups=8)
    assert host.get_submodule("blocks.5.2.0") is block
    assert isinstance(host.get_submodule("blocks.5.2.1"), SubspaceAttention)
    with torch.no_grad():
        assert host(torch.zeros(1, 3, 64, 64)).isfinite().all()


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["blocks.4.0"], r"blocks\.4\.0 .* changes the width, 64 to 96"),
        (["blocks.3.1", "blocks.3.0"], r"blocks\.3\.0 .* changes the width"),
        (["blocks.9"], r"no block named 'blocks\.9'"),
        (["bn1"], "no convolutions"),
    ],
)
def test_surgery_on_what_cannot_be_replaced_is_refused(names: list[str], says: str) -> None:
    host = timm.create_model("mobilenetv2_100")
    before = count_parameters(host)
    with pytest.raises(UsageError, match=says):
        replace_blocks(host, names)
    assert count_parameters(host) == before


@pytest.mark.parametrize(
    "block",
    [
        nn.Conv2d(8, 8, 3, 2, 1),
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.MaxPool2d(2)),
        nn.Conv2d(8, 8, 3),
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Upsample(scale_factor=2)),
    ],
)
def test_a_block_that_changes_the_resolution_is_named(block: nn.Module) -> None:
    with pytest.raises(UsageError, match="0 cannot be replaced by attention: it changes the resolution"):
        replace_blocks(nn.Sequential(block), ["0"])


def test_a_block_is_taken_once() -> None:
    host = nn.Sequential(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)))
    for surgery in (replace_blocks, insert_after):
        for names in (["0", "0"], ["0", "0.1"], ["0.1", "0"]):
            with pytest.raises(UsageError, match="takes attention once"):
                surgery(host, names)
        with pytest.raises(UsageError, match="no block named ''"):
            surgery(host, [""])
    assert count_parameters(host) == 8 * 8 * 9 + 8 + 8 * 8 + 8
    replace_blocks(host, "0.1", groups=2)
    assert isinstance(host.get_submodule("0.1"), SubspaceAttention)


def test_attention_of_doubles_is_in_doubles() -> None:
    grouped, looped = (m.double().eval() for m in pair(8, 2))
    x = maps(5, 2, 8, 5, 6).double().requires_grad_()
    assert torch.autograd.gradcheck(grouped, (x,))
    with torch.no_grad():
        torch.testing.assert_close(grouped(x), looped(x), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(fuse(grouped)(x), looped(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"replace": (11,)}, "block 11 .* changes the width, 64 to 96"),
        ({"replace": (0,)}, "counted from 1 to 17"),
        ({"insert": (18,)}, "counted from 1 to 17"),
        ({"replace": (13,), "groups": 7}, "96 channels do not split into 7"),
        ({"replace": (13, 13)}, "takes attention once"),
    ],
)
def test_impossible_placements_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        create("ulsam_mobilenetv2", weights=None, **options)


def test_bad_modules_and_maps_are_refused() -> None:
    for groups in (0, -1, 5):
        with pytest.raises(UsageError, match="do not split"):
            SubspaceAttention(16, groups)
    model = SubspaceAttention(16, 4).eval()
    empty, whole = torch.zeros(1, 16, 0, 4), torch.zeros(1, 16, 4, 4, dtype=torch.uint8)
    for wrong in (torch.zeros(16, 4, 4), torch.zeros(1, 8, 4, 4), whole, empty):
        with pytest.raises(InputError, match="B, 16, H, W"):
            model(wrong)
    with pytest.warns(UserWarning, match="1 x 1"), torch.no_grad():
        torch.testing.assert_close(model(torch.ones(1, 16, 1, 1)), torch.full((1, 16, 1, 1), 2.0))


def test_states_with_a_missing_group_are_refused() -> None:
    state = LoopedSubspaceAttention(8, 4).state_dict()
    del state["subspaces.2.conv_dws.weight"]
    with pytest.raises(CheckpointError, match=r"groups \[0, 1, 3\] alone"):
        grouped_state(state)
