"""VAN: published counts, the gate's receptive field and form, folding, and what is refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import zoo
from torch import nn

from saccade.backbones.van import VAN, Attention, Block, LargeKernelAttention, from_official
from saccade.checkpoint import fit
from saccade.cost import cost, count_parameters
from saccade.errors import CheckpointError, InputError, UsageError
from saccade.nn.fuse import fuse
from saccade.registry import create


@pytest.mark.parametrize(
    ("name", "millions", "giga"),
    [
        ("van_b0", 4.106, 0.864),
        ("van_b1", 13.862, 2.495),
        ("van_b2", 26.578, 4.993),
        ("van_b3", 44.766, 8.925),
        ("van_b4", 60.283, 12.14),
        ("van_b5", 89.968, 17.13),
        ("van_b6", 199.83, 38.71),
    ],
)
def test_published_counts(name: str, millions: float, giga: float) -> None:
    with torch.device("meta"):
        model = create(name, weights=None)
    assert round(count_parameters(model) / 1e6, 2 if millions > 100 else 3) == millions
    macs = cost(model, torch.empty(1, 3, 224, 224, device="meta")).macs
    assert round(macs / 1e9, 2 if giga > 10 else 3) == giga


@torch.no_grad()
def test_the_gate_sees_23_pixels_a_side() -> None:
    gate = LargeKernelAttention(3)
    for conv in (gate.near, gate.far, gate.mix):
        nn.init.uniform_(conv.weight, 0.5, 1)
        nn.init.zeros_(conv.bias)
    x = torch.zeros(1, 3, 41, 43)
    x[:, :, 20, 21] = 1
    seen = gate.attention(x)[0, 0] != 0
    assert seen.any(1).nonzero().flatten().tolist() == list(range(9, 32))
    assert seen.any(0).nonzero().flatten().tolist() == list(range(10, 33))
    assert int(seen.sum()) == 23 * 23


@torch.no_grad()
def test_the_gate_multiplies_what_the_gelu_gave_by_numbers_of_any_sign() -> None:
    layer = zoo.randomised(Attention(8))
    for bias in (layer.gate.mix.bias, layer.expand.bias):
        bias.normal_(0, 0.1)
    x = torch.randn(2, 8, 24, 20)
    u = F.gelu(layer.expand(x))
    a = F.conv2d(u, layer.gate.near.weight, layer.gate.near.bias, padding=2, groups=8)
    a = F.conv2d(a, layer.gate.far.weight, layer.gate.far.bias, padding=9, dilation=3, groups=8)
    a = layer.gate.mix(a)
    assert a.min() < 0 < a.max()
    torch.testing.assert_close(layer(x), layer.project(u * a))
    assert not torch.allclose(layer(x), layer.project(u + a), atol=1e-2), "a sum is another network"


@torch.no_grad()
def test_the_inner_shortcut_starts_at_the_normalised_map() -> None:
    block = zoo.randomised(Block(6, 2).eval())
    for part in (block.attn.project, block.mlp.project):
        nn.init.zeros_(part.weight)
        nn.init.zeros_(part.bias)
    x = torch.randn(2, 6, 9, 7)
    torch.testing.assert_close(block(x), x + block.scale1[:, None, None] * block.norm1(x))
    fused = block.fuse()
    torch.testing.assert_close(fused(x), block(x))
    assert not [m for m in fused.modules() if isinstance(m, nn.BatchNorm2d)]


@torch.no_grad()
def test_fusing_a_block_twice_leaves_the_block_as_it_was() -> None:
    block, x = zoo.randomised(Block(6, 2).eval()), torch.randn(1, 6, 8, 8)
    want = block(x)
    block.fuse()
    torch.testing.assert_close(block.fuse()(x), want)
    torch.testing.assert_close(block(x), want, rtol=0, atol=0)


def test_a_fresh_network_is_as_the_paper_starts_it() -> None:
    model = create("van", weights=None, widths=(32, 64, 64, 64), depths=(1, 1, 1, 2), drop_path_rate=0.4)
    assert isinstance(model, VAN)
    assert model.stages[0][-1].eps == 1e-6
    block = model.stages[3][2]
    assert isinstance(block, Block)
    assert float(block.scale1.detach().unique()) == pytest.approx(1e-2)
    assert block.attn.gate.near.weight.std().item() == pytest.approx((2 / 25) ** 0.5, rel=0.1)
    rates = [getattr(m.drop_path, "drop_prob", 0.0) for m in model.modules() if isinstance(m, Block)]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    assert "stages.3.2.scale1" in model.no_weight_decay()


def test_statistics_can_be_kept_while_tuning() -> None:
    from timm.utils.model import freeze_batch_norm_2d, unfreeze_batch_norm_2d

    small = zoo.SMALL["van"]
    model, x = small.make(), small.picture()
    with torch.no_grad():
        want = model(x)
        frozen = freeze_batch_norm_2d(model).train()
        frozen(x)
        torch.testing.assert_close(unfreeze_batch_norm_2d(frozen).eval()(x), want)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"widths": (16, 24, 32)}, "widths are four"),
        ({"depths": (1, 1, 1, 1, 1)}, "depths are four"),
        ({"ratios": (4, 4, 0, 2)}, "ratios are four"),
        ({"proj_drop": 2}, r"proj_drop lies in \[0, 1\]"),
    ],
)
def test_impossible_networks_are_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        create("van", weights=None, **options)


@pytest.mark.parametrize(("kernel", "dilation"), [(24, 3), (2, 3), (21, 0), (8, 2)])
def test_kernels_that_do_not_keep_the_size_are_refused(kernel: int, dilation: int) -> None:
    with pytest.raises(UsageError, match="kernel"):
        LargeKernelAttention(4, kernel, dilation)
    assert LargeKernelAttention(4, 35, 5)(torch.zeros(1, 4, 9, 12)).shape == (1, 4, 9, 12)


def test_small_pictures_are_refused() -> None:
    model = zoo.SMALL["van"].make()
    with pytest.raises(InputError, match="at least 32 px"):
        model(torch.zeros(1, 3, 31, 64))
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 32, 33)).isfinite().all()


def test_a_file_with_a_hole_is_named() -> None:
    state = {
        "patch_embed1.proj.weight": torch.zeros(4, 3, 7, 7),
        "block1.0.attn.spatial_gating_unit.conv_spatial.weight": torch.zeros(4, 1, 7, 7),
        "block4.0.mlp.fc1.weight": torch.zeros(8, 4, 1, 1),
    }
    with pytest.raises(CheckpointError, match="look like a VAN"):
        from_official(state)
    state = zoo.SMALL["van"].make(num_classes=10).state_dict()
    with pytest.raises(CheckpointError, match=r"10.*7|7.*10"):
        fit(zoo.SMALL["van"].make(num_classes=7), state, "van.pth")
    with torch.no_grad():
        fused = fuse(zoo.SMALL["van"].make())
    with pytest.raises(CheckpointError, match="bn"):
        fit(fused, state, "van.pth")
