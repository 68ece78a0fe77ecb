"""BiFormer: published counts, the dial, both forms of the attention, what is refused, what shapes do not show."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import zoo
from timm.utils.model import freeze_batch_norm_2d
from torch import Tensor, nn

import saccade
from saccade.backbones.biformer import (
    BiFormer,
    BiLevelRoutingAttention,
    FullAttention,
    from_official,
    from_official_nchw,
)
from saccade.budget import has_budget
from saccade.checkpoint import fit
from saccade.cost import cost, count_parameters
from saccade.errors import CheckpointError, InputError, UsageError
from saccade.nn.fuse import fuse
from saccade.registry import create


@pytest.mark.parametrize(
    ("name", "millions", "giga"),
    [
        ("biformer_tiny", 13.143, 2.216),
        ("biformer_small", 25.536, 4.464),
        ("biformer_base", 56.805, 9.759),
        ("biformer_stl", 28.373, 4.574),
    ],
)
def test_published_counts(name: str, millions: float, giga: float) -> None:
    with torch.device("meta"):
        model = create(name, weights=None)
    assert round(count_parameters(model) / 1e6, 3) == millions
    assert round(cost(model, torch.empty(1, 3, 224, 224, device="meta")).macs / 1e9, 3) == giga


def layer(**options: Any) -> BiLevelRoutingAttention:
    told = {"width": 16, "heads": 4, "topk": 3, "regions": 4, **options}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = BiLevelRoutingAttention(**told).eval()
        zoo.randomised(made)
        return made


def picture(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("refactored", [False, True])
def test_with_all_regions_it_is_multi_head_attention_of_the_whole_width_s_scale(refactored: bool) -> None:
    attention, x = layer(topk=16, refactored=refactored), picture(2, 8, 12, 16)
    with torch.no_grad():
        q, k, v = attention.qkv(x).chunk(3, 3)
        a, b, c = (t.flatten(1, 2).unflatten(2, (4, 4)).transpose(1, 2) for t in (q, k, v))
        mixed = ((a @ b.mT) * 16**-0.5).softmax(-1) @ c
        local = attention.lepe(v.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        want = attention.wo(mixed.transpose(1, 2).reshape(x.shape) + local)
        torch.testing.assert_close(attention(x), want, rtol=1e-5, atol=1e-5)


def test_both_forms_agree_where_sizes_divide_and_differ_where_not() -> None:
    old, new = layer(), layer(refactored=True)
    new.load_state_dict(old.state_dict())
    with torch.no_grad():
        x = picture(1, 8, 12, 16)
        torch.testing.assert_close(old(x), new(x), rtol=1e-5, atol=1e-5)
        x = picture(1, 9, 12, 16)
        assert old(x).shape == new(x).shape == x.shape
        assert (old(x) - new(x)).abs().max() > 1e-3


def test_padded_tokens_take_part() -> None:
    """As published: what is filled in at the right and bottom has the biases as keys and values."""
    attention, x = layer(), picture(1, 7, 8, 16)
    with torch.no_grad():
        filled = attention(F.pad(x, (0, 0, 0, 0, 0, 1)))[:, :7]
        torch.testing.assert_close(attention(x), filled, rtol=1e-6, atol=1e-6)


def test_the_refactored_form_can_have_more_regions_than_asked_for() -> None:
    attention = layer(refactored=True)
    seen: list[Tensor] = []
    attention.router.register_forward_hook(lambda _m, _x, out: seen.append(out[0]))
    with torch.no_grad():
        assert attention(picture(1, 11, 8, 16)).shape == (1, 11, 8, 16)  # rows of 2: six of them
    assert seen[0].shape == (1, 6 * 4, 3)


def test_soft_routing_scales_keys_and_values_and_learns_only_when_differentiable() -> None:
    x = picture(1, 8, 8, 16)
    plain, soft = layer(), layer(soft=True)
    soft.load_state_dict(plain.state_dict())
    with torch.no_grad():
        assert (plain(x) - soft(x)).abs().max() > 1e-3
    grads = []
    for more in ({}, {"differentiable": True}, {"differentiable": True, "learned": True}):
        attention = layer(soft=True, **more)
        attention(x).square().sum().backward()
        grads.append(attention.qkv.weight.grad)
        if "learned" in more:
            assert attention.router.emb.weight.grad.abs().max() > 0
    assert (grads[0] - grads[1]).abs().max() > 0


@pytest.mark.parametrize("pool", [("ada_avgpool", 1), ("ada_maxpool", 1), ("avgpool", 2), ("maxpool", 2)])
def test_pooled_keys_are_one_a_region(pool: tuple[str, int]) -> None:
    attention, x = layer(pool=pool, topk=16, side=0), picture(1, 8, 8, 16)
    with torch.no_grad():
        q, k, v = attention.qkv(x).chunk(3, 3)
        kind = F.max_pool2d if "max" in pool[0] else F.avg_pool2d
        k, v = (kind(t.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1) for t in (k, v))
        a, b, c = (t.flatten(1, 2).unflatten(2, (4, 4)).transpose(1, 2) for t in (q, k, v))
        mixed = F.scaled_dot_product_attention(a, b, c, scale=16**-0.5)
        want = attention.wo(mixed.transpose(1, 2).reshape(x.shape))
        torch.testing.assert_close(attention(x), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("context", ["input", "value", ""])
def test_the_last_stage_has_eight_heads_and_its_context_from_where_it_was_published(context: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        attention = FullAttention(32, context).eval()
    x = picture(1, 5, 6, 32)
    with torch.no_grad():
        q, k, v = attention.qkv(x).chunk(3, 3)
        a, b, c = (t.flatten(1, 2).unflatten(2, (8, 4)).transpose(1, 2) for t in (q, k, v))
        mixed = (((a @ b.mT) / 2).softmax(-1) @ c).transpose(1, 2).reshape(x.shape)
        if context:
            mixed = mixed + attention.lepe((x if context == "input" else v).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        torch.testing.assert_close(attention(x), attention.proj(mixed), rtol=1e-5, atol=1e-5)
    assert attention.qkv.bias is None


def test_the_dial_keeps_a_share_of_the_regions() -> None:
    model, x = zoo.SMALL["biformer"].make(topk=(1, 4, 3, -2)), zoo.SMALL["biformer"].picture()
    assert isinstance(model, BiFormer)
    assert has_budget(model)
    with torch.no_grad():
        full, macs = model(x), []
        for budget, topk in ((1.0, (1, 4, 3)), (0.75, (1, 3, 2)), (0.5, (1, 2, 2)), (0.1, (1, 1, 1))):
            model.budget = budget
            assert (model.budget, model.topk) == (budget, topk)
            macs.append(cost(model, x, timed=False).macs)
        assert (model(x) - full).abs().max() > 1e-4
        assert macs == sorted(macs, reverse=True)
        model.budget = 1.0
        torch.testing.assert_close(model(x), full, rtol=0, atol=0)
    model.topk = (4, 4, 4)
    assert model.topk == (4, 4, 4)
    for wrong in ((0, 1, 1), (5, 1, 1), (1, 1)):
        with pytest.raises(UsageError, match="topk"):
            model.topk = wrong
    with pytest.raises(UsageError, match="budget"):
        model.budget = 0


def test_the_dial_saves_what_the_routed_attention_costs_at_448_px() -> None:
    with torch.device("meta"):
        model = create("biformer_tiny", weights=None)
    assert isinstance(model, BiFormer)
    x, found = torch.empty(1, 3, 448, 448, device="meta"), []
    for budget in (1.0, 0.5):
        model.budget = budget
        found.append(cost(model, x).macs)
    saved = 0
    for width, depth, side, (many, few) in zip(
        (64, 128, 256), (2, 2, 8), (112, 56, 28), ((1, 1), (4, 2), (16, 8)), strict=True
    ):
        saved += depth * 2 * width * (many - few) * side**4 // 49  # scores and mixtures of (topk / 49) of all pairs
    assert found[0] - found[1] == saved


def test_from_448_to_896_px_memory_grows_no_faster_than_macs_and_the_dial_saves_at_both() -> None:
    """S with a block a stage, run; its attention holds the routed regions of a few regions at a time."""
    model: Any = create("biformer_small", weights=None, depths=(1, 1, 1, 1), num_classes=0)
    weights = sum(p.numel() * p.element_size() for p in (*model.parameters(), *model.buffers()))
    macs: dict[int, list[int]] = {448: [], 896: []}
    tensors: dict[int, list[int]] = {448: [], 896: []}
    for side in macs:
        x = torch.zeros(1, 3, side, side)
        for budget in (1.0, 0.25):
            model.budget = budget
            told = cost(model, x, timed=False)
            macs[side].append(told.macs)
            tensors[side].append(told.peak_bytes - weights)
        assert macs[side][1] < macs[side][0]
        assert tensors[side][1] <= tensors[side][0]
    for small, large, least, most in zip(tensors[448], tensors[896], macs[448], macs[896], strict=True):
        assert large / small <= most / least


@pytest.mark.parametrize("topk", [(1, 0, 3, -1), (-1, -2, 0, 4)])
def test_other_mixers_go_in_any_stage_and_are_read_back(topk: tuple[int, ...]) -> None:
    small = zoo.SMALL["biformer"]
    model = small.make(topk=topk)
    state = {official_name(k): v for k, v in model.state_dict().items()}
    recipe = from_official(state)
    assert recipe is not None
    kinds = recipe.options["topk"]
    assert [k if k < 1 else 1 for k in kinds] == [k if k < 1 else 1 for k in topk]
    told = {**recipe.options, "topk": topk, "regions": 2, "head_dim": 16}
    again = create("biformer", weights=None, **told)
    fit(again, recipe.state, "state")
    with torch.no_grad():
        torch.testing.assert_close(again(small.picture()), model(small.picture()), rtol=0, atol=0)


def official_name(name: str) -> str:
    """Of a parameter in the published layout."""
    parts = name.split(".")
    if parts[0] == "stem":
        return ".".join(["downsample_layers", "0", str(3 * int(parts[1]) + (parts[2] == "bn")), *parts[3:]])
    if parts[0] == "stages" and parts[3] in ("conv", "bn"):
        return ".".join(["downsample_layers", parts[1], str(int(parts[3] == "bn")), *parts[4:]])
    if parts[0] == "stages":
        parts[2] = str(int(parts[2]) - (parts[1] != "0"))
        name = ".".join(parts).replace("pos_embed.conv", "pos_embed").replace("mlp.2", "mlp.3")
        if "wo" not in name and parts[3] == "attn" and parts[4] in "012":
            return name.replace(f"attn.{parts[4]}", f"attn.{int(parts[4]) + 1}")
        if parts[3] == "attn" and parts[4] == "qkv" and parts[-1] == "bias":
            return name.replace("qkv", "qkv.qkv")
    return name


def test_published_names_tell_the_variant_and_saccade_load_finds_it(tmp_path: Any) -> None:
    small = create("biformer_stl", weights=None, num_classes=5)
    state = {}
    for name, value in small.state_dict().items():
        parts = name.split(".")
        if parts[0] == "stem":
            parts = ["downsample_layers", "0", str(int(parts[2] == "bn")), *parts[3:]]
        elif parts[0] == "stages" and parts[3] in ("conv", "bn"):
            parts = ["downsample_layers", parts[1], str(int(parts[3] == "conv")), *parts[4:]]
        elif parts[0] == "stages":
            parts[2] = f"blocks.{int(parts[2]) - (parts[1] != '0')}"
        name = ".".join(parts)
        if value.dim() == 2 and name != "head.weight":
            value = value[..., None, None]
        if parts[0] == "stages" and parts[1] != "3":
            name = name.replace("attn.qkv", "attn.qkv_linear").replace("attn.wo", "attn.output_linear")
        state[name] = value
    recipe = from_official_nchw(state)
    assert recipe is not None
    assert (recipe.model, recipe.options["num_classes"]) == ("biformer_stl", 5)
    torch.save({"model": state}, tmp_path / "net.pth")
    loaded = saccade.load(tmp_path / "net.pth")
    assert all(torch.equal(v, small.state_dict()[k]) for k, v in loaded.state_dict().items())


def test_swin_s_layout_fuses_all_its_norms_but_the_last() -> None:
    small = {**zoo.SMALL["biformer"].options, "layout": "swin"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = zoo.randomised(create("biformer", weights=None, **small))
    fused, x = fuse(model), zoo.SMALL["biformer"].picture(size=(72, 128))
    assert len([m for m in fused.modules() if isinstance(m, nn.BatchNorm2d)]) == 1
    with torch.no_grad():
        want = model(x)
        torch.testing.assert_close(fused(x), want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))
        for exchange in (freeze_batch_norm_2d, nn.SyncBatchNorm.convert_sync_batchnorm):  # no BatchNorm2d any more
            exchanged = exchange(copy.deepcopy(model)).eval()
            torch.testing.assert_close(exchanged(x), want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))
            torch.testing.assert_close(fuse(exchanged)(x), want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))


def test_layer_scale_and_stochastic_depth() -> None:
    small, x = zoo.SMALL["biformer"], zoo.SMALL["biformer"].picture()
    model = small.make(layer_scale=0.5, drop_path_rate=0.9)
    recipe = from_official({official_name(k): v for k, v in model.state_dict().items()})
    assert recipe is not None
    assert recipe.options["layer_scale"] > 0
    with torch.no_grad():
        torch.testing.assert_close(model(x), model(x), rtol=0, atol=0)
        model.train()
        assert (model(x) - model(x)).abs().max() > 0


def test_sizes_that_do_not_divide_are_refused_without_padding() -> None:
    model = create("biformer_tiny", weights=None, auto_pad=False, depths=(1, 1, 1, 1))
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 224, 224)).isfinite().all()
    with pytest.raises(InputError, match=r"stage 1 has a map of 64 x 64, which does not divide by 7"):
        model(torch.zeros(1, 3, 256, 256))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"topk": (1, 5, 3, -2)}, "topk of stage 2 is 5; with 2 x 2 regions it is 1 to 4"),
        ({"topk": (1, 4, 3)}, "topk has 3 entries for 4 stages"),
        ({"topk": (1, 4, 3, -3)}, r"topk\[3\] is -3"),
        ({"widths": (16, 32, 40, 64)}, r"widths\[2\] is 40, it must divide by head_dim, 16"),
        ({"widths": (16, 32, 48, 60)}, "60 channels of stage 4 do not divide into 8 heads"),
        ({"learned_routing": True}, "goes with differentiable"),
        ({"differentiable_routing": True}, "'hard'"),
        ({"layout": "swan"}, "layout is"),
        ({"regions": 0}, "regions"),
        ({"mlp_ratio": 0}, "mlp_ratio is 0"),
        ({"widths": (0, 32, 48, 64)}, "widths are"),
    ],
)
def test_impossible_networks_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        create("biformer", weights=None, **{**zoo.SMALL["biformer"].options, **options})


def test_an_attention_without_regions_to_attend_to_is_refused() -> None:
    for wrong in ({"topk": 0}, {"topk": 17}, {"heads": 3}, {"pool": ("fracpool", 2)}):
        with pytest.raises(UsageError):
            layer(**wrong)


def test_weights_that_describe_no_network_are_refused() -> None:
    state = {official_name(k): v for k, v in zoo.SMALL["biformer"].make().state_dict().items()}
    state = {k: v for k, v in state.items() if "mlp" not in k}
    with pytest.raises(CheckpointError, match="describe none"):
        from_official(state)
