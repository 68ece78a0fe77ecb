"""UniRepLKNet: published counts in both forms, merging, GRN, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import zoo
from timm.layers.grn import GlobalResponseNorm as TimmNorm
from timm.utils.model import reparameterize_model
from torch import nn

import saccade
from saccade.backbones.unireplknet import (
    BRANCHES,
    Block,
    DilatedReparam,
    GlobalResponseNorm,
    UniRepLKNet,
    dense_kernel,
    from_official,
)
from saccade.checkpoint import fit
from saccade.cost import cost, count_parameters
from saccade.errors import CheckpointError, InputError, UsageError
from saccade.nn.fuse import fuse
from saccade.registry import create

COUNTS = [
    ("unireplknet_a", (4.649, 4.437), (0.675, 0.640)),
    ("unireplknet_f", (6.489, 6.235), (0.947, 0.905)),
    ("unireplknet_p", (11.08, 10.74), (1.629, 1.573)),
    ("unireplknet_n", (18.82, 18.32), (2.849, 2.767)),
    ("unireplknet_t", (31.69, 31.04), (5.004, 4.899)),
    ("unireplknet_s", (56.46, 55.65), (9.219, 9.094)),
    ("unireplknet_b", (99.09, 98.01), (16.22, 16.06)),
]


def small(**options: object) -> UniRepLKNet:
    model = zoo.SMALL["unireplknet"].make(**options)
    assert isinstance(model, UniRepLKNet)
    return model


@pytest.mark.parametrize(("name", "millions", "giga"), COUNTS)
def test_published_counts_of_both_forms(name: str, millions: tuple[float, float], giga: tuple[float, float]) -> None:
    for deploy, parameters, macs in zip((False, True), millions, giga, strict=True):
        with torch.device("meta"):
            model = create(name, weights=None, deploy=deploy)
        assert round(count_parameters(model) / 1e6, 3 if parameters < 10 else 2) == parameters
        found = cost(model, torch.empty(1, 3, 224, 224, device="meta")).macs / 1e9
        assert round(found, 3 if macs < 10 else 2) == macs


@pytest.mark.parametrize(("name", "millions", "giga"), [("unireplknet_l", 218, 105.4), ("unireplknet_xl", 386, 187)])
def test_published_counts_of_the_largest(name: str, millions: int, giga: float) -> None:
    with torch.device("meta"):
        model = create(name, weights=None, deploy=True)
    assert count_parameters(model) // 10**6 == millions  # the paper cuts 386.53
    found = cost(model, torch.empty(1, 3, 384, 384, device="meta")).macs / 1e9
    assert round(found, 0 if giga == int(giga) else 1) == giga


def test_published_macs_of_b_at_384_px() -> None:
    with torch.device("meta"):
        model = create("unireplknet_b", weights=None, deploy=True)
    assert round(cost(model, torch.empty(1, 3, 384, 384, device="meta")).macs / 1e9, 1) == 47.2


@pytest.mark.parametrize("kernel", sorted(BRANCHES))
@torch.no_grad()
def test_branches_merge_into_one_kernel(kernel: int) -> None:
    layer = zoo.randomised(DilatedReparam(5, kernel).eval())
    x = torch.randn(2, 5, 21, 26)
    merged = layer.fuse()
    assert merged.weight.shape == (5, 1, kernel, kernel)
    torch.testing.assert_close(merged(x), layer(x), rtol=1e-5, atol=1e-5 * float(layer(x).abs().max()))


@pytest.mark.parametrize(("taps", "dilation"), [(3, 1), (3, 4), (5, 2), (7, 2)])
def test_a_dense_kernel_is_the_dilated_one(taps: int, dilation: int) -> None:
    weight, x = torch.randn(4, 1, taps, taps), torch.randn(1, 4, 20, 17)
    want = F.conv2d(x, weight, padding=taps // 2 * dilation, dilation=dilation, groups=4)
    torch.testing.assert_close(F.conv2d(x, dense_kernel(weight, dilation, 13), padding=6, groups=4), want)
    with pytest.raises(UsageError, match="not within"):
        dense_kernel(weight, 7, 13)


@torch.no_grad()
def test_grn_is_convnexts() -> None:
    ours, peer = zoo.randomised(GlobalResponseNorm(6)), TimmNorm(6)
    ours.beta.normal_()
    peer.weight.copy_(ours.gamma)
    peer.bias.copy_(ours.beta)
    x = torch.randn(2, 5, 4, 6)
    torch.testing.assert_close(ours(x), peer(x))


@torch.no_grad()
def test_merging_a_block_in_every_form() -> None:
    x = torch.randn(2, 8, 14, 11)
    for kernel in (0, 3, 5, 7, 13):
        for scale in (0.0, 1e-6):
            block = Block(8, kernel, layer_scale=scale)
            assert (block.scale is None) == (scale == 0)
            block = zoo.randomised(block.eval())
            assert block.grn.beta is not None
            block.grn.beta.normal_()
            merged, want = block.fuse(), block(x)
            assert not [m for m in merged.modules() if isinstance(m, nn.BatchNorm2d)]
            torch.testing.assert_close(merged(x), want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))
            assert merged.fuse() is merged


@torch.no_grad()
def test_both_entries_merge_the_whole_network(tmp_path: Path) -> None:
    model, x = small(), zoo.SMALL["unireplknet"].picture()
    want = model(x)
    by_timm, by_us = reparameterize_model(model), fuse(model)
    assert not model.deploy
    assert by_timm.deploy
    assert by_us.deploy
    for merged in (by_timm, by_us, small().reparameterize()):
        torch.testing.assert_close(merged(x), want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))
    fresh = create("unireplknet", weights=None, **{**zoo.SMALL["unireplknet"].options, "deploy": True})
    fit(fresh, by_us.state_dict(), "merged")
    torch.testing.assert_close(fresh(x), by_us(x), rtol=0, atol=0)
    saccade.save(by_us, tmp_path / "merged.safetensors")
    torch.testing.assert_close(saccade.load(tmp_path / "merged.safetensors")(x), by_us(x), rtol=0, atol=0)


def test_merging_in_training_or_twice_is_refused() -> None:
    model = small()
    for part in (model.train(), model.stages[1][2], model.stages[1][2].mixer):
        with pytest.raises(UsageError, match="eval"):
            part.fuse()
    merged = model.eval().reparameterize()
    with pytest.raises(UsageError, match="already"):
        merged.reparameterize()
    assert merged.fuse() is merged


def test_weights_of_the_other_form_are_refused_with_the_remedy(tmp_path: Path) -> None:
    model = small()
    merged = fuse(model)
    with pytest.raises(CheckpointError, match=r"deploy=False.*reparameterize"):
        merged.load_state_dict(model.state_dict())
    with pytest.raises(CheckpointError, match="deploy=True"):
        model.load_state_dict(merged.state_dict())
    options = zoo.SMALL["unireplknet"].options
    saccade.save(model, tmp_path / "branches.safetensors")
    with pytest.raises(CheckpointError, match=r"deploy=False.*reparameterize"):
        create("unireplknet", tmp_path / "branches.safetensors", **options, deploy=True)
    saccade.save(merged, tmp_path / "merged.safetensors")
    with pytest.raises(CheckpointError, match="deploy=True"):
        create("unireplknet", tmp_path / "merged.safetensors", **options)


@torch.no_grad()
def test_norms_on_maps_leave_the_way_on_as_it_is() -> None:
    plain, normed = small(), small(map_norms=True)
    assert normed.norms is not None
    normed.load_state_dict(plain.state_dict(), strict=False)
    x = zoo.SMALL["unireplknet"].picture()
    for bare, found, norm in zip(plain.maps(x), normed.maps(x), normed.norms, strict=True):
        torch.testing.assert_close(found, norm(bare))


def test_published_kernels_belong_to_published_depths() -> None:
    with torch.device("meta"):
        model = create("unireplknet", weights=None, widths=(8, 8, 8, 8), depths=(3, 3, 18, 3), drop_path_rate=0.5)
        assert isinstance(model, UniRepLKNet)
    assert model.kernels == ((3,) * 3, (13,) * 3, (13, 3) * 9, (13,) * 3)
    rates = [getattr(m.drop_path, "drop_prob", 0.0) for m in model.modules() if isinstance(m, Block)]
    assert rates == pytest.approx([0.5 * i / 26 for i in range(27)])
    assert "stages.2.3.scale" in model.no_weight_decay()


def test_a_classifier_can_start_small() -> None:
    heads = [small(head_init_scale=s, num_classes=100).make_head(100).weight.std().item() for s in (1.0, 0.001)]
    assert heads[1] == pytest.approx(heads[0] / 1000, rel=0.2)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"depths": (1, 1, 1, 1)}, "no published kernels"),
        ({"depths": (1, 1, 1)}, "depths are four"),
        ({"widths": (40, 80)}, "widths are four"),
        ({"widths": (41, 80, 160, 320)}, "even"),
        ({"depths": (1, 1, 1, 1), "kernels": ((3,), (13,), (13,), (13, 13))}, "do not go with"),
        ({"depths": (1, 1, 1, 1), "kernels": (3, 13, 13, 13)}, "a list for each stage"),
        ({"depths": (1, 1, 1, 1), "kernels": ((3,), (12,), (13,), (13,))}, "not 12"),
        ({"depths": (1, 1, 1, 1), "kernels": ((1,), (13,), (13,), (13,))}, "not 1$"),
        ({"depths": (1, 1, 1, 1), "kernels": ((3,), (19,), (13,), (13,))}, "not 19"),
    ],
)
def test_impossible_networks_are_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        create("unireplknet", weights=None, **options)


def test_small_pictures_and_broken_files_are_refused() -> None:
    with pytest.raises(InputError, match="at least 32 px"):
        small()(torch.zeros(1, 3, 64, 31))
    with pytest.raises(CheckpointError, match="look like a UniRepLKNet"):
        from_official({"stages.0.0.pwconv1.1.weight": torch.zeros(16, 4)})
    state = small(num_classes=10).state_dict()
    with pytest.raises(CheckpointError, match=r"10.*7|7.*10"):
        fit(small(num_classes=7), state, "unireplknet.pth")
