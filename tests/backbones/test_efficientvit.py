"""EfficientViT: published counts, timm's numbers, windows and tables, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import zoo
from torch import Tensor, nn

import saccade
from saccade.backbones.efficientvit import (
    CascadedGroupAttention,
    EfficientViT,
    WindowAttention,
    distances,
    from_official,
    from_timm,
    resized,
    sides,
)
from saccade.checkpoint import fit
from saccade.cost import cost, count_parameters
from saccade.errors import CheckpointError, InputError, UsageError
from saccade.nn.fuse import fuse
from saccade.registry import create

SMALL = zoo.SMALL["efficientvit"]


def small(**options: object) -> EfficientViT:
    model = SMALL.make(**options)
    assert isinstance(model, EfficientViT)
    return model


@pytest.mark.parametrize(
    ("variant", "millions", "macs"),
    [
        ("m0", 2.349, 79),
        ("m1", 2.981, 167),
        ("m2", 4.188, 201),
        ("m3", 6.901, 263),
        ("m4", 8.804, 299),
        ("m5", 12.474, 522),
    ],
)
def test_published_counts(variant: str, millions: float, macs: int) -> None:
    model = create(f"efficientvit_{variant}", weights=None)
    assert round(count_parameters(model) / 1e6, 3) == millions
    assert round(cost(model, torch.empty(1, 3, 224, 224, device="meta")).macs / 1e6) == macs


def peer_of(variant: str, **options: object) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        peer = zoo.randomised(timm.create_model(f"efficientvit_{variant}", num_classes=7, **options).eval())
        for name, parameter in peer.named_parameters():
            if "attention_biases" in name:
                nn.init.normal_(parameter)
    return peer


@pytest.mark.parametrize("variant", ["m0", "m1", *(pytest.param(f"m{i}", marks=pytest.mark.slow) for i in range(2, 6))])
def test_timm_computes_the_same(variant: str) -> None:
    peer, x = peer_of(variant), torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    recipe = from_timm(peer.state_dict())
    assert recipe is not None
    assert recipe.model == f"efficientvit_{variant}"
    assert (recipe.options["num_classes"], recipe.options["img_size"], recipe.options["window"]) == (7, 224, 7)
    ours = create(recipe.model, weights=None, **recipe.options)
    fit(ours, recipe.state, "timm")
    with torch.no_grad():
        want = peer(x)
        torch.testing.assert_close(ours(x), want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))


def test_timm_computes_the_same_on_a_map_that_is_no_multiple_of_the_windows() -> None:
    peer, x = peer_of("m0", img_size=160), torch.randn(1, 3, 176, 240, generator=torch.Generator().manual_seed(0))
    recipe = from_timm(peer.state_dict())
    assert recipe is not None
    ours = create(recipe.model, weights=None, **{**recipe.options, "any_size": True})
    fit(ours, recipe.state, "timm")
    with torch.no_grad():
        want = peer(x)
        torch.testing.assert_close(ours(x), want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))


def test_tables_number_distances_as_they_first_appear() -> None:
    points = [(y, x) for y in range(4) for x in range(4)]
    numbers: dict[tuple[int, int], int] = {}
    for a in points:
        for b in points:
            numbers.setdefault((abs(a[0] - b[0]), abs(a[1] - b[1])), len(numbers))
    want = [[numbers[abs(a[0] - b[0]), abs(a[1] - b[1])] for b in points] for a in points]
    assert distances(4).tolist() == want


def attention(heads: int = 3, side: int = 4) -> CascadedGroupAttention:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layer = CascadedGroupAttention(12, heads, 5, side, (3, 5, 1)).eval()
        zoo.randomised(layer)
        nn.init.normal_(layer.attention_biases)
    return layer


def one_by_one(layer: CascadedGroupAttention, x: Tensor, *, cascaded: bool = True) -> Tensor:
    """Scores scaled, then biased, softmax over the keys, queries convolved; loops over heads and queries."""
    outputs: list[Tensor] = []
    for i, share in enumerate(x.chunk(len(layer.qkvs), 1)):
        feature = share + outputs[-1] if outputs and cascaded else share
        q, k, v = layer.qkvs[i](feature).split(layer.dims, 1)
        q = layer.dws[i](q)
        made = torch.empty_like(share)
        bias = layer.attention_biases[i][distances(layer.side)]
        for query in range(layer.side**2):
            scores = (q.flatten(2)[:, :, query, None] * k.flatten(2)).sum(1) * layer.dims[0] ** -0.5 + bias[query]
            made.flatten(2)[:, :, query] = (v.flatten(2) * scores.softmax(-1)[:, None]).sum(-1)
        outputs.append(made)
    out: Tensor = layer.proj(torch.cat(outputs, 1).relu())
    return out


def test_heads_attend_in_turn_each_on_its_share_and_what_the_last_one_found() -> None:
    layer, x = attention(), torch.randn(2, 12, 4, 4, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(layer(x), one_by_one(layer, x), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(layer(x), one_by_one(layer, x, cascaded=False), atol=1e-2), "the cascade matters"


def test_windows_are_padded_below_and_right_and_the_padding_is_attended_to() -> None:
    layer = WindowAttention(12, 3, 5, 4, (3, 5, 1)).eval()
    layer.attn = attention()
    x = torch.randn(2, 12, 6, 9, generator=torch.Generator().manual_seed(3))
    padded = torch.zeros(2, 12, 8, 12)
    padded[:, :, :6, :9] = x
    want = torch.empty_like(padded)
    with torch.no_grad():
        for top in (0, 4):
            for left in (0, 4, 8):
                place = (slice(None), slice(None), slice(top, top + 4), slice(left, left + 4))
                want[place] = layer.attn(padded[place].contiguous())
        torch.testing.assert_close(layer(x), x + want[:, :, :6, :9])


def test_new_biases_are_used_at_once_in_evaluation_mode() -> None:
    model, x = small(), SMALL.picture()
    with torch.no_grad():
        before = model(x)
        state = {
            n: v + 3 * torch.randn(v.shape) if "attention_biases" in n else v for n, v in model.state_dict().items()
        }
        model.load_state_dict(state)
        after = model(x)
        assert not torch.allclose(before, after)
        torch.testing.assert_close(model.train().eval()(x), after)


def test_another_size_resizes_the_tables(tmp_path: Path) -> None:
    model = small(img_size=96, window=5)
    assert [stage[-1].mixer.side for stage in model.stages] == [5, 3, 2]
    table = model.stages[1][-1].mixer.attn.attention_biases.detach().clone()
    model.set_input_size(160)
    assert [stage[-1].mixer.side for stage in model.stages] == [5, 5, 3]
    want = nn.functional.interpolate(table.view(1, -1, 3, 3), (5, 5), mode="bicubic").view(-1, 25)
    torch.testing.assert_close(model.stages[1][-1].mixer.attn.attention_biases.detach(), want)
    x = SMALL.picture(size=(160, 160))
    with pytest.raises(InputError, match=r"160 x 160 px, not 96 x 96.*img_size=96"):
        model(x[:, :, :96, :96])
    saccade.save(model, tmp_path / "net.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(saccade.load(tmp_path / "net.safetensors")(x), model(x))
        torch.testing.assert_close(fuse(model)(x), model(x), rtol=2e-5, atol=2e-5)


def test_a_fused_network_takes_other_sizes_only_where_its_windows_stay() -> None:
    fused = fuse(small(img_size=160, window=3))  # maps of 10, 5 and 3
    fused.set_input_size(176)
    with torch.no_grad():
        assert fused(SMALL.picture(size=(176, 176))).isfinite().all()
    with pytest.raises(UsageError, match=r"set_input_size goes before saccade\.fuse"):
        fused.set_input_size(32)
    assert (fused.img_size, fused.size) == (176, 176)


def test_a_table_of_the_same_windows_stays_as_it_is() -> None:
    table = torch.randn(3, 49)
    assert resized(table, 7) is table
    assert resized(table, 4).shape == (3, 16)
    assert (sides(224, (7, 7, 7)), sides(512, (7, 7, 7))) == ([7, 7, 4], [7, 7, 7])


def test_pictures_of_any_size_where_it_is_asked_for() -> None:
    model = small(any_size=True)
    with torch.no_grad():
        assert [m.shape[2:] for m in model.maps(SMALL.picture(size=(80, 112)))] == [(5, 7), (3, 4), (2, 2)]
        torch.testing.assert_close(model(SMALL.picture()), small()(SMALL.picture()))
    with pytest.raises(InputError, match="at least 16 px"):
        model(torch.zeros(1, 3, 15, 64))


def official_names(model: EfficientViT) -> dict[str, Tensor]:
    """Our state under the published names, with the stored indices that published files have."""
    import re

    made = {}
    for name, value in model.state_dict().items():
        name = re.sub(r"^stages\.(\d)\.", lambda m: f"blocks{int(m[1]) + 1}.", name)
        name = re.sub(r"^(blocks\d\.[02])\.1\.(pw)", r"\1.1.m.\2", name) if not name.startswith("blocks1") else name
        name = name.replace("stem.", "patch_embed.").replace(".mixer.", ".mixer.m.").replace(".proj.", ".proj.1.")
        name = re.sub(r"\.(ffn\d)\.", r".\1.m.", name).replace(".conv.", ".c.")
        made[re.sub(r"^head(_dist)?\.linear", r"head\1.l", name)] = value
        if name.endswith("attention_biases"):
            side = round(value.shape[1] ** 0.5)
            made[name.replace("biases", "bias_idxs")] = distances(side)
    return made


@pytest.mark.parametrize("distillation", [False, True])
def test_published_names_come_back(distillation: bool) -> None:
    model = small(distillation=distillation, num_classes=5, kernels=(5, 3, 7, 1))
    recipe = from_official(official_names(model))
    assert recipe is not None
    assert recipe.model == "efficientvit"
    again = create(recipe.model, weights=None, **recipe.options)
    fit(again, recipe.state, "published")
    with torch.no_grad():
        torch.testing.assert_close(again(SMALL.picture()), model(SMALL.picture()))


def test_tables_of_no_size_are_refused() -> None:
    state = official_names(small(img_size=64, window=3))  # windows 3, 2, 1
    state["blocks1.0.mixer.m.attn.attention_biases"] = torch.zeros(2, 1)
    state["blocks2.3.mixer.m.attn.attention_biases"] = torch.zeros(3, 10_000)
    with pytest.raises(CheckpointError, match="no size of pictures"):
        from_official(state)


def test_bias_tables_are_left_out_of_weight_decay() -> None:
    model = small()
    assert len(model.no_weight_decay()) == 3
    assert all(n.endswith("attention_biases") for n in model.no_weight_decay())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"widths": (60, 96, 128)}, "divide by 8"),
        ({"heads": (3, 3, 4)}, r"widths\[0\] is 32, it must divide by its 3 heads"),
        ({"kernels": (5, 5, 5)}, r"heads\[2\] is 4, but kernels has 3"),
        ({"kernels": (5, 4, 5, 5)}, "odd"),
        ({"depths": (1, 2)}, "depths has 2 entries for 3 stages"),
        ({"key_dim": (8, 8)}, "key_dim has 2"),
        ({"window": 0}, "window has an entry of 0"),
        ({"heads": (0, 3, 4)}, "heads has an entry of 0"),
        ({"img_size": 15}, "img_size is 15 px"),
        ({"img_size": (64, 96)}, r"img_size is \(64, 96\) px, it must be one whole number"),
        ({"widths": (0, 48, 64)}, "widths has an entry of 0"),
        ({"stages": "sss"}, "no option"),
    ],
)
def test_impossible_networks_are_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        create("efficientvit", weights=None, **{**SMALL.options, **options})


def test_a_picture_of_another_size_is_refused_with_both_sizes_and_the_remedy() -> None:
    with pytest.raises(InputError, match=r"built for 64 x 64 px, not 96 x 64; build it with img_size=96"):
        small()(torch.zeros(1, 3, 64, 96))


def test_the_published_steps_run_plainly_are_the_same_function() -> None:
    from saccade.bench.backbones.efficientvit import plain

    model = SMALL.make(img_size=80, window=4, num_classes=5)  # a map of 5 x 5, padded to 8 x 8
    x = SMALL.picture(size=(80, 80))
    with torch.no_grad():
        torch.testing.assert_close(plain(model)(x), model(x), rtol=1e-5, atol=1e-5)
