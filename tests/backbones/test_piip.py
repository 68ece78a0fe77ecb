"""PIIP: published counts, its exchanges, its dial, plain transformers as branches, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import zoo
from torch import Tensor, nn

from saccade.backbones.piip import PIIP, InteractionUnit, SeparateHeads
from saccade.backbones.piip.branch import Block, Branch, resized_table
from saccade.backbones.piip.interaction import CrossAttention, DeformAttention, Injector
from saccade.backbones.piip.published import SEGMENTER_LAYOUTS, _dense, _describe, from_dense, from_official
from saccade.checkpoint import fit, load
from saccade.cost import cost, count_parameters
from saccade.errors import CheckpointError, InputError, UsageError
from saccade.nn.fuse import fuse
from saccade.registry import create

SMALL = zoo.SMALL["piip"]


def make(**options: object) -> PIIP:
    model = SMALL.make(**options)
    assert isinstance(model, PIIP)
    return model


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("name", "side", "millions", "gmacs"),
    [("piip_tsb_368", 368, 144.03, 17.4), ("piip_sbl_320", 320, 488.87, 39.0), ("piip_sbl_384", 384, 489.00, 61.2)],
)
def test_published_counts(name: str, side: int, millions: float, gmacs: float) -> None:
    with torch.device("meta"):
        model = create(name, weights=None)
        assert round(count_parameters(model) / 1e6, 2) == millions
        told = cost(model, torch.empty(1, 3, side, side)).macs / 1e9
    assert told == pytest.approx(gmacs, rel=0.02)  # published with the reading of points, which the ledger leaves out


@pytest.mark.parametrize(
    ("name", "side", "millions", "gmacs"),
    [
        ("piip_tsb_1120", 1120, 146, 243),
        ("piip_tsb_1568", 1568, 149, 453),
        ("piip_h6b_512", 512, 6747, 7308),
    ],
)
def test_published_counts_of_dense_pyramids(name: str, side: int, millions: float, gmacs: float) -> None:
    """Published for the branches, their exchanges and a linear merging, without the convolutions for four maps.

    With position tables as large as the pictures; the published files hold those of 14 x 14.
    """
    with torch.device("meta"):
        model = create(name, weights=None, merge=True, pyramid=False, tables=0)
        assert count_parameters(model) / 1e6 == pytest.approx(millions, rel=0.01)
        assert cost(model, torch.empty(1, 3, side, side)).macs / 1e9 == pytest.approx(gmacs, rel=0.01)
        whole = create(name, weights=None)
        assert count_parameters(whole) > count_parameters(model)


def test_published_counts_leave_the_filling_of_windows_out() -> None:
    """Windows of 28 do not divide maps of 42 x 42: published are the scores of whole windows alone, no filling."""
    with torch.device("meta"):
        # 14 divides the sides of all three maps
        model = create("piip_sbl_1568", weights=None, merge=True, pyramid=False, tables=0, window=14)
        assert isinstance(model, PIIP)
        assert count_parameters(model) / 1e6 == pytest.approx(497, rel=0.01)
        told = cost(model, torch.empty(1, 3, 1568, 1568)).macs
    tokens = [(side // 16) ** 2 for side in model.sides]
    depths = [len(model.branch(i).blocks) for i in range(3)]
    scores = [2 * n * width * depth for n, width, depth in zip(tokens, model.widths, depths, strict=True)]
    assert (told + (28**2 - 14**2) * sum(scores)) / 1e9 == pytest.approx(1464, rel=0.01)


def test_dense_pyramids_give_four_maps() -> None:
    options = {**SMALL.options, "widths": (32, 32, 16), "merge": "dense", "pyramid": True, "with_cls": False}
    model = create("piip", weights=None, **{**options, "num_classes": 5})
    assert isinstance(model, PIIP)
    zoo.randomised(model)
    x = SMALL.picture()
    with torch.no_grad():
        maps = list(model.maps(x))
        assert [tuple(m.shape[1:]) for m in maps] == [(32, 32, 32), (32, 16, 16), (32, 8, 8), (32, 4, 4)]
        torch.testing.assert_close(maps[3], F.max_pool2d(maps[2], 2))
        assert model(x).shape == (2, 5)
        torch.testing.assert_close(fuse(model)(x), model(x), rtol=1e-4, atol=1e-4)
        found = create("piip", weights=None, **options, features_only=True)(x)
    assert [tuple(m.shape[2:]) for m in found] == [(32, 32), (16, 16), (8, 8), (4, 4)]


def test_windows_attend_on_their_own() -> None:
    """A change in one window is seen there alone; a window as large as the map is plain attention."""
    torch.manual_seed(0)
    block = Block(16, 2, 2.0, 0.0, False, window=3)
    plain = Block(16, 2, 2.0, 0.0, False)
    plain.load_state_dict(block.state_dict())
    x = draw(1, 30, 16)
    other = x.clone()
    other[:, 0] += draw(16, seed=1)  # upper left
    with torch.no_grad():
        moved = (block(other, (5, 6)) - block(x, (5, 6))).abs().amax(2).view(5, 6) > 0
        want = torch.zeros(5, 6, dtype=torch.bool)
        want[:3, :3] = True
        assert torch.equal(moved, want)
        block.window = 6
        small = draw(1, 36, 16)
        torch.testing.assert_close(block(small, (6, 6)), plain(small))


def test_windows_are_filled_up_with_zeros_that_take_part() -> None:
    torch.manual_seed(0)
    block = Block(16, 2, 2.0, 0.0, False, window=4)
    zoo.randomised(block)
    x = draw(1, 9, 16)
    with torch.no_grad():
        filled = F.pad(block.norm1(x).view(1, 3, 3, 16), (0, 0, 0, 1, 0, 1)).flatten(1, 2)
        q, k, v = block.qkv(filled).unflatten(2, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        mixed = ((q @ k.mT * 8**-0.5).softmax(-1) @ v).transpose(1, 2).reshape(1, 4, 4, 16)[:, :3, :3]
        torch.testing.assert_close(block.attend(block.norm1(x), (3, 3)), block.proj(mixed.reshape(1, 9, 16)))


@pytest.mark.parametrize(("gelu", "approximate"), [("exact", "none"), ("tanh", "tanh")])
def test_blocks_of_the_six_billion_network(gelu: str, approximate: str) -> None:
    """RMS norms, also of queries and keys over all heads; no bias before; either GELU; scales from 0.1."""
    torch.manual_seed(0)
    block = Block(16, 2, 2.0, 0.0, True, kind="intern", gelu=gelu).eval()
    assert not isinstance(block.qkv.bias, Tensor)
    assert block.gamma_1 is not None
    assert block.gamma_2 is not None
    assert torch.equal(block.gamma_1, torch.full((16,), 0.1))
    zoo.randomised(block)
    x = draw(2, 7, 16)

    def rms(x: Tensor, norm: torch.nn.Module) -> Tensor:
        assert isinstance(norm, torch.nn.RMSNorm)
        return norm.weight * x * (x * x).mean(-1, keepdim=True).add(1e-6).rsqrt()

    with torch.no_grad():
        q, k, v = block.qkv(rms(x, block.norm1)).chunk(3, -1)
        q, k, v = (t.unflatten(2, (2, 8)).transpose(1, 2) for t in (rms(q, block.q_norm), rms(k, block.k_norm), v))
        y = x + block.gamma_1 * block.proj(((q @ k.mT * 8**-0.5).softmax(-1) @ v).transpose(1, 2).flatten(2))
        fed = block.fc2(F.gelu(block.fc1(rms(y, block.norm2)), approximate=approximate))
        torch.testing.assert_close(block(x), y + block.gamma_2 * fed, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(fuse(block)(x), block(x), rtol=1e-5, atol=1e-5)


def test_blocks_of_beit_are_timms_within_a_window() -> None:
    """timm's block, given the biases, which are looked up here pair by pair; a window as large as the map."""
    torch.manual_seed(0)
    size, heads = 3, 2
    block = Block(16, heads, 2.0, 0.0, True, kind="beit", window=size).eval()
    zoo.randomised(block)
    peer = timm.models.beit.Block(16, heads, qkv_bias=True, mlp_ratio=2.0, init_values=0.1).eval()
    peer.norm1.eps = peer.norm2.eps = 1e-6
    theirs = ("norm1", "norm2", "mlp.fc1", "mlp.fc2", "attn.proj")
    ours = {
        f"{a}.{leaf}": getattr(block, b).get_parameter(leaf)
        for a, b in zip(theirs, ("norm1", "norm2", "fc1", "fc2", "proj"), strict=True)
        for leaf in ("weight", "bias")
    }
    query, key, value = block.qkv.bias.detach().chunk(3)
    ours |= {"attn.qkv.weight": block.qkv.weight, "attn.q_bias": query, "attn.v_bias": value}
    ours |= {"gamma_1": block.gamma_1, "gamma_2": block.gamma_2}
    peer.load_state_dict(ours)
    bias = torch.zeros(1, heads, size**2, size**2)
    places = [(y, x) for y in range(size) for x in range(size)]
    for i, (y, x) in enumerate(places):
        for j, (v, u) in enumerate(places):
            bias[0, :, i, j] = block.bias_table.detach()[(y - v + size - 1) * (2 * size - 1) + x - u + size - 1]
    x = draw(2, size**2, 16)
    assert float(key.abs().max()) > 0.01  # a bias of keys changes no softmax
    with torch.no_grad():
        torch.testing.assert_close(block(x, (size, size)), peer(x, shared_rel_pos_bias=bias), rtol=1e-5, atol=1e-5)
        block.bias_table.zero_()
        plain = Block(16, heads, 2.0, 0.0, True, window=size).eval()
        plain.load_state_dict({k: v for k, v in block.state_dict().items() if k != "bias_table"})
        torch.testing.assert_close(block(x, (size, size)), plain(x, (size, size)))
        torch.testing.assert_close(fuse(block)(x, (size, size)), block(x, (size, size)), rtol=1e-5, atol=1e-5)


def test_a_branch_takes_timms_beit() -> None:
    """Blocks with their biases; what was learnt for the class token is left, biases of another window are resized."""
    torch.manual_seed(0)
    small: dict[str, Any] = {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}
    published = {"use_abs_pos_emb": False, "use_rel_pos_bias": True, "init_values": 0.1}
    peer = zoo.randomised(timm.models.beit.Beit(**small, **published).eval())
    state = peer.state_dict()

    def branch(window: int) -> Branch:
        options = {"in_chans": 3, "scaled": True, "with_cls": False, "drop_path_rate": 0.0, "kind": "beit"}
        made = Branch(32, 2, 2, 4.0, side=64, patch=16, windows=(window,), **options)
        made.load_vit(state)
        return made

    block, theirs = branch(4).blocks[1], "blocks.1.attn"
    assert torch.equal(block.bias_table, state[f"{theirs}.relative_position_bias_table"][:49])
    assert torch.equal(block.qkv.bias[:32], state[f"{theirs}.q_bias"])
    assert not block.qkv.bias[32:64].any()
    wide = branch(7).blocks[1].bias_table
    plane = block.bias_table.detach().T.reshape(1, 2, 7, 7)
    want = F.interpolate(plane, size=(13, 13), mode="bicubic", align_corners=False)
    torch.testing.assert_close(wide.detach(), want.flatten(2)[0].T)


def test_with_gates_at_zero_a_pyramid_of_beit_is_its_branches() -> None:
    """Exactly, whatever else the weights are; the gates open, it is not."""
    torch.manual_seed(0)
    options = {"widths": (64, 32, 32), "kinds": ("beit", "beit", "vit"), "window": 2, "with_cls": False, "merge": True}
    model = create("piip", weights=None, **{**SMALL.options, **options})
    assert isinstance(model, PIIP)
    zoo.randomised(model)
    x = SMALL.picture()
    with torch.no_grad():
        opened = model.branch_maps(x)
        for name, p in model.interactions.named_parameters():
            if "gamma" in name:
                p.zero_()
        for i, have in enumerate(model.branch_maps(x)):
            seen = F.interpolate(x, size=(model.sides[i],) * 2, mode="bilinear", align_corners=False) if i < 2 else x
            tokens, _ = model.branch(i).run(*model.branch(i).embed(seen), 0, 1, model.grid(i))
            assert torch.equal(have.flatten(2).mT, tokens)
            assert float((have - opened[i]).abs().max()) > 1e-3
        model.use(sides=(24, 40, 64))  # windows that do not divide the map
        assert all(m.isfinite().all() for m in model.maps(x))


def test_weights_tell_blocks_of_the_six_billion_network() -> None:
    told = {**SMALL.options, "kinds": ("intern", "vit", "vit"), "exchange_norms": False, "num_classes": 5}
    options = _describe(dict(create("piip", weights=None, **told).state_dict()))
    assert options["kinds"] == ("intern", "vit", "vit")
    assert options["exchange_norms"] is False
    plain = _describe(dict(make().state_dict()))
    assert not {"kinds", "exchange_norms"} & set(plain)


def test_exchanges_can_be_left_out() -> None:
    model, x = make(), SMALL.picture()
    with torch.no_grad():
        whole, maps = model(x), model.branch_maps(x)
        model.use(exchanges=False)
        apart = model.branch_maps(x)
        for i, side in enumerate(model.sides):
            seen = x if side == 64 else F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)
            tokens, _ = model.branch(i).run(*model.branch(i).embed(seen), 0, 1)
            torch.testing.assert_close(apart[i].flatten(2).mT, tokens)
            assert float((apart[i] - maps[i]).abs().max()) > 1e-3
        model.use()
        assert torch.equal(model(x), whole)


def test_pictures_may_come_at_the_side_in_use() -> None:
    """They are then not resized twice: a network built for more runs as one built for less."""
    model = make()
    model.use(sides=(16, 24, 32))
    small = F.interpolate(SMALL.picture(), size=(32, 32), mode="bilinear", align_corners=False)
    with torch.no_grad():
        maps = model.branch_maps(small)
        other = create("piip", weights=None, **{**SMALL.options, "sides": (16, 24, 32), "tables": (2, 4, 8)})
        assert isinstance(other, PIIP)
        fit(other, dict(model.state_dict()), "the same")
        for want, have in zip(other.branch_maps(small), maps, strict=True):
            torch.testing.assert_close(have, want)
        whole = model.branch_maps(SMALL.picture())  # or at the side that it was built for
        assert [m.shape for m in whole] == [m.shape for m in maps]
    with pytest.raises(InputError):
        model(torch.zeros(1, 3, 48, 48))


def test_windows_follow_a_pattern() -> None:
    options = {**SMALL.options, "depths": (4, 4, 4), "window": (3, 2, 0), "merge": True, "with_cls": False}
    model = create("piip", weights=None, **{**options, "widths": (32, 32, 32)})
    assert isinstance(model, PIIP)
    assert [block.window for block in model.branch(1).blocks] == [3, 2, 0, 3]


# ---------------------------------------------------------------------------------------------------------------------
# Published detectors
# ---------------------------------------------------------------------------------------------------------------------
def norm_shapes(width: int) -> dict[str, tuple[int, ...]]:
    return {"weight": (width,), "bias": (width,)}


def injector_shapes(width: int, heads: int, norms: bool) -> dict[str, tuple[int, ...]]:
    """As MSDeformAttn of ratio 0.5 and 4 points, and a convolutional feed-forward of a quarter."""
    values, hidden = width // 2, width // 4
    layers = {
        "attn.sampling_offsets": (heads * 8, width),
        "attn.attention_weights": (heads * 4, width),
        "attn.value_proj": (values, width),
        "attn.output_proj": (width, values),
        "ffn.fc1": (hidden, width),
        "ffn.dwconv.dwconv": (hidden, 1, 3, 3),
        "ffn.fc2": (width, hidden),
    }
    made: dict[str, tuple[int, ...]] = {"ca_gamma": (width,), "cffn_gamma": (width,)}
    for name, shape in layers.items():
        made |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in ("query_norm", "feat_norm", "ffn_norm") if norms else ():
        made |= {f"{name}.{leaf}": shape for leaf, shape in norm_shapes(width).items()}
    return made


def beit_shapes(width: int, depth: int, heads: int, window: int) -> dict[str, tuple[int, ...]]:
    """As BEiT's transformer within windows: no position table, biases of scores, none of keys."""
    made = {k: v for k, v in branch_shapes(width, depth, 1).items() if k != "pos_embed" and "qkv.bias" not in k}
    for i in range(depth):
        attn = f"blocks.{i}.attn"
        made |= {f"{attn}.q_bias": (width,), f"{attn}.v_bias": (width,)}
        made[f"{attn}.relative_position_bias_table"] = ((2 * window - 1) ** 2, heads)
        made[f"{attn}.relative_position_index"] = (window**2, window**2)
    return made


def beit_detector_shapes(
    widths: tuple[int, ...], depths: tuple[int, ...], stages: int, heads: tuple[int, ...], window: int
) -> dict[str, tuple[int, ...]]:
    """As `detector_shapes`, with BEiT in all branches but the last."""
    last = f"branch{len(widths)}."
    shapes = detector_shapes(widths, depths, stages, (196,) * len(widths))
    shapes = {k: v for k, v in shapes.items() if not k.startswith("branch") or k.startswith(last)}
    for i, (width, depth, count) in enumerate(zip(widths[:-1], depths, heads, strict=False), 1):
        shapes |= {f"branch{i}.{k}": v for k, v in beit_shapes(width, depth, count, window).items()}
    return shapes


def branch_shapes(width: int, depth: int, places: int) -> dict[str, tuple[int, ...]]:
    """As DeiT's transformer without a class token."""
    made: dict[str, tuple[int, ...]] = {
        "pos_embed": (1, places, width),
        "patch_embed.proj.weight": (width, 3, 16, 16),
        "patch_embed.proj.bias": (width,),
    }
    layers = {"attn.qkv": (3, 1), "attn.proj": (1, 1), "mlp.fc1": (4, 1), "mlp.fc2": (1, 4)}
    for i in range(depth):
        made |= {f"blocks.{i}.gamma_{j}": (width,) for j in (1, 2)}
        for name, (rows, columns) in layers.items():
            made[f"blocks.{i}.{name}.weight"] = (rows * width, columns * width)
            made[f"blocks.{i}.{name}.bias"] = (rows * width,)
        for norm in ("norm1", "norm2"):
            made |= {f"blocks.{i}.{norm}.{leaf}": shape for leaf, shape in norm_shapes(width).items()}
    return made


def detector_shapes(
    widths: tuple[int, ...], depths: tuple[int, ...], stages: int, places: tuple[int, ...]
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a published detector's backbone, as the official code builds it."""
    first = widths[0]
    made: dict[str, tuple[int, ...]] = {f"w{i + 1}": () for i in range(len(widths))}
    for i, (width, depth) in enumerate(zip(widths, depths, strict=True), 1):
        made |= {f"branch{i}.{k}": v for k, v in branch_shapes(width, depth, places[i - 1]).items()}
        made |= {f"merge_branch{i}.0.weight": (first, width, 3, 3), f"merge_branch{i}.3.weight": (first, first, 3, 3)}
        for norm in (1, 4):
            made |= {f"merge_branch{i}.{norm}.{leaf}": shape for leaf, shape in norm_shapes(first).items()}
    for stage in range(stages):
        for i in range(1, len(widths)):
            unit = f"interactions.{stage}.interaction_units_{i}{i + 1}"
            a, b = widths[i - 1], widths[i]
            for name, rows, columns in (("branch2to1", a, b), ("branch1to2", b, a)):
                made |= {f"{unit}.{name}_proj.weight": (rows, columns), f"{unit}.{name}_proj.bias": (rows,)}
                made |= {f"{unit}.{name}_injector.{k}": v for k, v in injector_shapes(rows, 16, True).items()}
    for name in ("fpn1.0", "fpn1.3", "fpn2.0"):
        made |= {f"{name}.weight": (first, first, 2, 2), f"{name}.bias": (first,)}
    made |= {f"fpn1.1.{leaf}": shape for leaf, shape in norm_shapes(first).items()}
    return made


def drawn_state(shapes: dict[str, tuple[int, ...]], **others: Tensor) -> dict[str, Tensor]:
    chance = torch.Generator().manual_seed(0)
    made = {f"backbone.{k}": 0.05 * torch.randn(shape, generator=chance) for k, shape in shapes.items()}
    return {**made, "neck.fpn_convs.0.conv.weight": torch.zeros(1), **others}


@pytest.mark.parametrize(
    ("name", "widths", "depths", "others"),
    [
        ("piip_tsb_1568", (768, 384, 192), (12, 12, 12), ("roi_head.bbox_head.fc_cls.weight",)),
        ("piip_sbl_1568", (1024, 768, 384), (24, 12, 12), ("roi_head.bbox_head.fc_cls.weight",)),
        ("piip", (1024, 768, 384), (24, 12, 12), ("bbox_head.transformer.level_embeds",)),
        ("piip", (1024, 768, 384, 192), (24, 12, 12, 12), ()),
    ],
)
def test_published_detectors_are_recognised(
    name: str, widths: tuple[int, ...], depths: tuple[int, ...], others: tuple[str, ...]
) -> None:
    """By names and shapes alone, in full size."""
    with torch.device("meta"):
        shapes = detector_shapes(widths, depths, 12, (196,) * len(widths))
        state = {f"backbone.{k}": torch.empty(shape) for k, shape in shapes.items()}
        with pytest.warns(UserWarning, match="no weight tells the sides"):
            recipe = from_dense({**state, **dict.fromkeys(others, torch.empty(1))})
        assert recipe is not None
        assert recipe.model == name
        model = create(recipe.model, weights=None, **recipe.options)
        assert isinstance(model, PIIP)
        fit(model, recipe.state, "the detector")
    assert model.branch(0).pos_embed.shape[1] == 196
    dino = any(other.startswith("bbox_head") for other in others)
    wanted = [24, 24, 0] if dino else [14] * 3 if name == "piip_tsb_1568" else [28] * 3
    assert [block.window for block in model.branch(0).blocks][:3] == wanted
    assert max(model.sides) == (1792 if dino else 1568)


def test_a_published_detector_gives_the_maps_of_the_published_layers(tmp_path: Path) -> None:
    """Merging and pyramid against the layers that the official code stacks, with tables resized as they come."""
    widths = (768, 384, 192)
    state = drawn_state(detector_shapes(widths, (1, 1, 1), 1, (196, 196, 196)))
    path = tmp_path / "mask_rcnn.pth"
    torch.save({"state_dict": state, "meta": {"epoch": 12}}, path)
    model = load(path)
    assert isinstance(model, PIIP)
    assert model.sides == (672, 1120, 1568)
    model.use(sides=(32, 48, 64))
    x = draw(1, 3, 64, 64, seed=2)

    def layers(start: str, *kinds: nn.Module) -> nn.Sequential:
        made = nn.Sequential(*kinds)
        made.load_state_dict({k.removeprefix(start): v for k, v in state.items() if k.startswith(start)})
        return made

    with torch.no_grad():
        branches = model.branch_maps(x)
        merged = torch.zeros(1, 768, 4, 4)
        for i, (width, own) in enumerate(zip(widths, branches, strict=True), 1):
            assert own.shape[1:] == (width, 1 + i, 1 + i)
            conv, again = (nn.Conv2d(c, 768, 3, padding=1, bias=False) for c in (width, 768))
            norms = nn.GroupNorm(32, 768), nn.GroupNorm(32, 768)
            step = layers(f"backbone.merge_branch{i}.", conv, norms[0], nn.ReLU(), again, norms[1], nn.ReLU())
            own = F.interpolate(step(own), size=(4, 4), mode="bilinear", align_corners=False)
            merged += state[f"backbone.w{i}"] * own
        up = [nn.ConvTranspose2d(768, 768, 2, 2) for _ in range(3)]
        fpn1 = layers("backbone.fpn1.", up[0], nn.GroupNorm(32, 768), nn.GELU(), up[1])
        fpn2 = layers("backbone.fpn2.", up[2])
        for have, want in zip(
            model.maps(x), (fpn1(merged), fpn2(merged), merged, F.max_pool2d(merged, 2)), strict=True
        ):
            torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-5)
        embed, table = state["backbone.branch1.patch_embed.proj.weight"], state["backbone.branch1.pos_embed"]
        seen = F.interpolate(x, size=(32, 32), mode="bilinear", align_corners=False)
        tokens = F.conv2d(seen, embed, state["backbone.branch1.patch_embed.proj.bias"], stride=16)
        grid = table.view(1, 14, 14, 768).permute(0, 3, 1, 2)
        tokens = tokens + F.interpolate(grid, size=(2, 2), mode="bicubic", align_corners=False)
        torch.testing.assert_close(model.branch(0).embed(seen)[0], tokens.flatten(2).mT, rtol=1e-5, atol=1e-5)


def test_pyramids_of_the_six_billion_network_are_described() -> None:
    """Published for faster training: no norms and projections in exchanges, and GELU by its approximation."""
    with torch.device("meta"):
        want = create("piip_h6b_512", weights=None)
        state = {k: v for k, v in want.state_dict().items() if not k.startswith("norm.")}
    options = _describe(state)
    assert (options["gelu"], options["kinds"]) == ("tanh", ("intern", "vit"))
    assert options["ranges"][1][3:5] == ((6, 7), (8, 10))
    assert _dense(state, options, SEGMENTER_LAYOUTS).model == "piip_h6b_512"


def test_fewer_exchanges_than_blocks_are_told() -> None:
    ranges = (((0, 1), (2, 3)),) * 3
    model = create("piip", weights=None, **{**SMALL.options, "depths": (4, 4, 4), "ranges": ranges})
    assert _describe(dict(model.state_dict()))["ranges"] == ranges
    assert "ranges" not in _describe(dict(make().state_dict()))


@pytest.mark.parametrize(
    ("widths", "change", "says"),
    [
        (
            (768, 384, 192),
            {"backbone.branch3.convnext_model.encoder.stages.0.layers.0.dwconv.weight": (96, 1, 7, 7)},
            "branch3 is ConvNeXt: detectors are read whose branches are plain vision transformers",
        ),
        (
            (768, 384, 192),
            {
                "backbone.branch1.patch_embed.proj.weight": None,
                "backbone.branch1.visual_embed.patch_embed.proj.weight": (768, 3, 16, 16),
            },
            "branch1 is Uni-Perceiver",
        ),
        (
            (768, 384, 192),
            {"backbone.branch2.rel_pos_bias.relative_position_bias_table": (729, 6)},
            "branch2 is BEiT with shared biases",
        ),
        ((768, 384, 192), {"backbone.intermediate_merging_2_w1": ()}, "merges maps behind several exchanges"),
        ((768, 384, 192), {"backbone.fpn1.0.weight": None}, "three maps"),
        (
            (96, 64, 32),
            {},
            r"no detector was published with branches of \(96, 64, 32\), .* sides and window: tell both",
        ),
    ],
)
def test_other_detectors_are_refused(
    widths: tuple[int, ...], change: dict[str, tuple[int, ...] | None], says: str
) -> None:
    with torch.device("meta"):
        shapes = detector_shapes(widths, (1, 1, 1), 1, (196,) * 3)
        state = {f"backbone.{k}": torch.empty(shape) for k, shape in shapes.items()}
        for name, shape in change.items():
            if shape is None:
                del state[name]
            else:
                state[name] = torch.empty(shape)
        with pytest.raises(CheckpointError, match=says):
            from_dense(state)


def small_detector(path: Path) -> Path:
    """A file with a detector of widths that nobody published, its tables those of 32 px in patches of 16."""
    torch.save({"state_dict": drawn_state(detector_shapes((96, 64, 32), (2, 2, 2), 2, (4, 4, 4)))}, path)
    return path


def test_sides_follow_the_picture_in_proportion() -> None:
    with torch.device("meta"):
        model = create("piip_tsb_368", weights=None, img_size=736)
    assert isinstance(model, PIIP)
    assert model.sides == (256, 384, 736)
    small = make(img_size=24)
    assert small.sides == (8, 16, 24)
    with torch.no_grad():
        assert torch.isfinite(small(torch.zeros(1, 3, 24, 24))).all()
    with pytest.raises(UsageError, match="img_size is a multiple of the patch, 16 px, not 100"):
        create("piip_tsb_368", weights=None, img_size=100)


def test_sides_and_windows_that_leave_no_trace_can_be_told(tmp_path: Path) -> None:
    path = small_detector(tmp_path / "detector.pth")
    says = r"sides and window: tell both.* as in saccade.load\(file, sides=\(448, 896, 1120\), window=14\)"
    with pytest.raises(CheckpointError, match=says):
        load(path)
    with pytest.raises(CheckpointError, match="no weight tells their window"):
        load(path, sides=(32, 48, 64))
    model = load(path, sides=(32, 48, 64), window=(2, 0))
    assert isinstance(model, PIIP)
    assert model.sides == (32, 48, 64)
    assert [block.window for block in model.branch(1).blocks] == [2, 0]
    x = draw(1, 3, 64, 64, seed=2)
    with torch.no_grad():
        maps = list(model.maps(x))
        assert [tuple(m.shape[1:]) for m in maps] == [(96, 16, 16), (96, 8, 8), (96, 4, 4), (96, 2, 2)]
        other = load(path, sides=[32, 48, 64], window=0)
        assert isinstance(other, PIIP)
        assert [block.window for block in other.branch(1).blocks] == [0, 0]
        assert not torch.equal(list(other.maps(x))[2], maps[2])


def test_a_published_detector_at_other_sides_is_the_network_of_that_name() -> None:
    with torch.device("meta"):
        shapes = detector_shapes((768, 384, 192), (12, 12, 12), 12, (196,) * 3)
        state = {f"backbone.{k}": torch.empty(shape) for k, shape in shapes.items()}
        recipe = from_dense(state, sides=(448, 896, 1120))
        assert recipe is not None
        assert recipe.model == "piip_tsb_1120"
        wide = from_dense(state, sides=(448, 896, 1120), window=28)
        assert wide is not None
        assert (wide.model, wide.options["window"]) == ("piip", 28)


def test_a_published_detector_of_beit_is_recognised() -> None:
    """In full size; its tables of biases tell the windows."""
    widths, depths = (1024, 768, 384), (24, 12, 12)
    with torch.device("meta"):
        shapes = beit_detector_shapes(widths, depths, 12, (16, 12), 28)
        recipe = from_dense({f"backbone.{k}": torch.empty(shape) for k, shape in shapes.items()})
        assert recipe is not None
        model = create(recipe.model, weights=None, **recipe.options)
        assert isinstance(model, PIIP)
        fit(model, recipe.state, "the detector")
    assert recipe.options["kinds"] == ("beit", "beit", "vit")
    assert (model.sides, recipe.options["window"]) == ((672, 1120, 1568), 28)
    assert model.branch(0).pos_embed is None
    assert model.branch(0).blocks[0].bias_table.shape == (55**2, 16)


def test_a_detector_of_beit_gives_the_maps_of_its_blocks(tmp_path: Path) -> None:
    """Biases of queries and values apart, none of keys; sides that nobody published are told."""
    state = drawn_state(beit_detector_shapes((96, 64, 32), (2, 2, 2), 2, (4, 2), 2))
    torch.save({"state_dict": state}, tmp_path / "beit.pth")
    with pytest.raises(CheckpointError, match="no weight tells their sides: tell"):
        load(tmp_path / "beit.pth")
    model = load(tmp_path / "beit.pth", sides=(32, 48, 64))
    assert isinstance(model, PIIP)
    assert model.built_with["heads"] == (4, 2, 1)
    start = "backbone.branch1.blocks.1.attn"
    query, value = state[f"{start}.q_bias"], state[f"{start}.v_bias"]
    block = model.branch(0).blocks[1]
    assert torch.equal(block.qkv.bias, torch.cat([query, torch.zeros(96), value]))
    assert torch.equal(block.bias_table, state[f"{start}.relative_position_bias_table"])
    with torch.no_grad():
        assert [tuple(m.shape[2:]) for m in model.maps(draw(1, 3, 64, 64))] == [(16, 16), (8, 8), (4, 4), (2, 2)]


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({"sides": (32, 48), "window": 0}, "3 sides that are multiples of 16 px"),
        ({"sides": (32, 48, 65), "window": 0}, "3 sides that are multiples of 16 px"),
        ({"sides": 64, "window": 0}, "sides are numbers, one for each branch, not 64"),
        ({"sides": (32, 48, 64), "window": -1}, "window is a number of cells"),
        ({"sides": (32, 48, 64), "window": 1.5}, "window is a number of cells"),
        ({"sides": (32, 48, 64), "window": 0, "heads": 4}, "only sides, window can be told; leave heads out"),
    ],
)
def test_what_cannot_be_told_of_a_detector_is_refused(tmp_path: Path, told: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        load(small_detector(tmp_path / "detector.pth"), **told)


def test_a_classifier_tells_its_sides_itself() -> None:
    shapes = branch_shapes(32, 1, 4)
    state = {f"branch{i}.{k}": torch.zeros(shape) for i in (1, 2) for k, shape in shapes.items()}
    unit = "interactions.0.interaction_units_12"
    for name in ("branch2to1", "branch1to2"):
        state |= {f"{unit}.{name}_proj.weight": torch.zeros(32, 32), f"{unit}.{name}_proj.bias": torch.zeros(32)}
        injector = injector_shapes(32, 16, True)
        state |= {f"{unit}.{name}_injector.{k}": torch.zeros(shape) for k, shape in injector.items()}
    assert from_official(state) is not None
    with pytest.raises(UsageError, match=r"tell its sides, \(32, 32\)"):
        from_official(state, sides=(32, 48))


def test_an_ordinary_pyramid_takes_its_largest_side() -> None:
    model = create("piip", weights=None, **{**SMALL.options, "sides": (64, 32, 16), "num_classes": 5})
    assert isinstance(model, PIIP)
    assert [tuple(m.shape[1:]) for m in model.branch_maps(SMALL.picture())] == [(32, 8, 8), (16, 4, 4), (16, 2, 2)]
    assert model(SMALL.picture()).shape == (2, 5)


def test_interactions_of_the_small_pyramid() -> None:
    with torch.device("meta"):
        model = create("piip_tsb_368", weights=None)
    assert isinstance(model, PIIP)
    assert round(count_parameters(model.interactions) / 1e6, 2) == 29.72
    assert len(model.interactions) == 12
    with torch.device("meta"):
        large = create("piip_sbl_320", weights=None)
    assert isinstance(large, PIIP)
    assert large.ranges[0][:2] == ((0, 1), (2, 3))
    assert large.ranges[1][:2] == ((0, 0), (1, 1))


def test_a_fresh_pyramid_is_its_branches() -> None:
    """All gammas start at zero: exactly the plain branches, side by side."""
    torch.manual_seed(0)
    model = create("piip", weights=None, **{**SMALL.options, "num_classes": 5})
    assert isinstance(model, PIIP)
    x = SMALL.picture()
    logits = []
    with torch.no_grad():
        for i, branch in enumerate(model.branches):
            assert isinstance(branch, Branch)
            side = model.sides[i]
            seen = x if side == 64 else F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)
            tokens, cls = branch.embed(seen)
            tokens, _ = branch.run(tokens, cls, 0, len(branch.blocks) - 1)
            assert torch.equal(model.branch_maps(x)[i].flatten(2).mT, tokens)
            assert isinstance(model.head, SeparateHeads)
            logits.append(model.head.heads[i](model.norms[i](tokens)[:, 0]))
        torch.testing.assert_close(model(x), torch.stack(logits).mean(0), rtol=0, atol=1e-7)


def test_exchanges_change_the_logits() -> None:
    model, x = make(), SMALL.picture()
    with torch.no_grad():
        before = model(x)
        for name, p in model.interactions.named_parameters():
            if "gamma" in name:
                p.zero_()
        assert float((model(x) - before).abs().max()) > 1e-3


def test_the_fine_pair_goes_first_and_both_sides_give_what_was_before() -> None:
    model, x = make(), SMALL.picture()
    with torch.no_grad():
        state = []
        flat: list[Tensor | None] = []
        for i, side in enumerate(model.sides):
            seen = x if side == 64 else F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)
            branch = model.branch(i)
            flat += branch.embed(seen)
            state.append(branch.run(*branch.embed(seen), 0, 0)[0])
        grids = [model.grid(i) for i in range(3)]
        for i in (1, 0):
            unit = model.unit(0, i)
            told_fine, told_coarse = unit.fine_proj(state[i + 1]), unit.coarse_proj(state[i])
            state[i] = unit.into_coarse(state[i], told_fine, grids[i], grids[i + 1])
            state[i + 1] = unit.into_fine(state[i + 1], told_coarse, grids[i + 1], grids[i])
        found = model._exchange(0, *flat)
        for want, have in zip(state, found[::2], strict=True):
            assert have is not None
            torch.testing.assert_close(have, want, rtol=1e-5, atol=1e-5)


def test_the_class_token_gets_no_position() -> None:
    torch.manual_seed(0)
    branch = Branch(16, 1, 2, 2.0, side=16, patch=8, in_chans=3, scaled=False, with_cls=True, drop_path_rate=0.0)
    tokens, cls = branch.embed(draw(2, 3, 16, 16))
    assert cls is not None
    assert branch.cls_token is not None
    assert torch.equal(cls[1, 0], branch.cls_token[0, 0])
    plain = branch.patch_embed(draw(2, 3, 16, 16)).flatten(2).mT
    torch.testing.assert_close(tokens - plain, branch.pos_embed.expand(2, -1, -1))


@pytest.mark.parametrize("variant", ["vit_tiny_patch16_224", "deit3_small_patch16_224"])
def test_a_branch_takes_timms_transformers(variant: str) -> None:
    """Their blocks too: timm adds a position to the class token, which is taken out of the comparison."""
    torch.manual_seed(0)
    peer = zoo.randomised(timm.create_model(variant, img_size=64, depth=2, num_classes=0).eval())
    if not peer.no_embed_class:
        peer.pos_embed.data[:, 0] = 0
    width = peer.embed_dim
    scaled = variant.startswith("deit3")
    branch = Branch(
        width, 2, width // 64, 4.0, side=64, patch=16, in_chans=3, scaled=scaled, with_cls=True, drop_path_rate=0.0
    ).eval()
    branch.load_vit(peer.state_dict())
    x = draw(2, 3, 64, 64)
    with torch.no_grad():
        tokens, _ = branch.run(*branch.embed(x), 0, 1)
        want = peer.forward_intermediates(x, indices=1, intermediates_only=True, output_fmt="NLC")[0]
        torch.testing.assert_close(tokens, want, rtol=1e-4, atol=1e-4)
    other = Branch(width, 2, 2, 4.0, side=96, patch=8, in_chans=3, scaled=True, with_cls=True, drop_path_rate=0.0)
    other.load_vit(peer.state_dict())
    assert other.pos_embed.shape[1] == 144
    assert other.patch_embed.weight.shape[-1] == 8
    deeper = Branch(width, 3, 2, 4.0, side=64, patch=16, in_chans=3, scaled=False, with_cls=True, drop_path_rate=0.0)
    with pytest.raises(CheckpointError, match="do not fit"):
        deeper.load_vit(peer.state_dict())


def test_tables_are_resized_by_cubics_and_left_alone_where_they_fit() -> None:
    table = draw(1, 16, 3)
    assert resized_table(table, (4, 4)) is table
    want = F.interpolate(table.mT.reshape(1, 3, 4, 4), size=(6, 5), mode="bicubic", align_corners=False)
    torch.testing.assert_close(resized_table(table, (6, 5)), want.flatten(2).mT)


def test_offsets_start_as_directions_times_steps() -> None:
    layer = DeformAttention(16, 16, 4, 3, 0.5)
    offsets = layer.sampling_offsets.bias.view(4, 3, 2)
    want = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    torch.testing.assert_close(offsets, want[:, None] * torch.tensor([1.0, 2.0, 3.0])[:, None], rtol=0, atol=1e-6)
    assert not layer.attention_weights.weight.any()


@pytest.mark.parametrize("attention", ["deform", "normal"])
@pytest.mark.parametrize("cffn_ratio", [0.25, 0])
def test_injectors_of_all_kinds_fuse(attention: str, cffn_ratio: float) -> None:
    torch.manual_seed(0)
    layer = Injector(16, 12, heads=4, ratio=0.5, attention=attention, cffn_ratio=cffn_ratio).eval()
    zoo.randomised(layer)
    query, feat = draw(2, 15, 16), draw(2, 28, 12, seed=1)
    with torch.no_grad():
        y = layer(query, feat, (3, 5), (7, 4))
        assert float((y - query).abs().max()) > 0.1
        torch.testing.assert_close(fuse(layer)(query, feat, (3, 5), (7, 4)), y, rtol=1e-5, atol=1e-5)


def test_normal_attention_is_attention() -> None:
    torch.manual_seed(0)
    layer = Injector(8, 8, heads=2, attention="normal", cffn_ratio=0)
    query, feat = draw(1, 6, 8), draw(1, 4, 8, seed=1)
    attn = layer.attn
    assert isinstance(attn, CrossAttention)
    with torch.no_grad():
        q, k, v = (
            w(t).view(1, -1, 2, 4).transpose(1, 2) for w, t in ((attn.wq, query), (attn.wk, feat), (attn.wv, feat))
        )
        scores = (q @ k.mT * 4**-0.5).softmax(-1) @ v
        want = attn.proj(scores.transpose(1, 2).reshape(1, 6, 8))
        torch.testing.assert_close(attn(query, feat, (2, 3), (2, 2)), want)


def test_one_merged_map_at_the_finest_grid() -> None:
    model = create("piip", weights=None, **{**SMALL.options, "widths": (64, 32, 32), "merge": True, "num_classes": 5})
    assert isinstance(model, PIIP)
    zoo.randomised(model)
    x = SMALL.picture()
    with torch.no_grad():
        maps = model.branch_maps(x)
        assert [tuple(m.shape[1:]) for m in maps] == [(64, 2, 2), (32, 4, 4), (32, 8, 8)]
        steps = [m(found) for m, found in zip(model.merging, maps, strict=True)]
        want = sum(
            w * F.interpolate(s, size=(8, 8), mode="bilinear", align_corners=False)
            for w, s in zip(model.weights, steps, strict=True)
        )
        torch.testing.assert_close(next(iter(model.maps(x))), want, rtol=1e-4, atol=1e-5)
        normed = F.layer_norm(want.flatten(2).mT, (64,), model.norm.weight, model.norm.bias, 1e-6)
        torch.testing.assert_close(model(x), model.head(normed.mean(1)), rtol=1e-4, atol=1e-4)


def test_the_first_cell_of_a_resized_map_is_the_first_token() -> None:
    model, x = make(num_classes=0), SMALL.picture()
    with torch.no_grad():
        firsts = [n(m[:, :, 0, 0]) for n, m in zip(model.norms, model.branch_maps(x), strict=True)]
        torch.testing.assert_close(model(x), torch.cat(firsts, 1), rtol=1e-5, atol=1e-5)
        mean = make(num_classes=0, read="mean")
        torch.testing.assert_close(mean(x), mean.forward_features(x).mean((2, 3)))


def test_the_dial_takes_fewer_tokens_and_fewer_branches() -> None:
    model, x = make(), SMALL.picture()
    with torch.no_grad():
        whole = model(x)
        macs = []
        for budget in model.budgets():
            model.budget = budget
            assert model(x).isfinite().all()
            macs.append(cost(model, x, timed=False).macs)
        assert macs == sorted(macs)
        assert macs[0] < 0.5 * macs[-1]
        assert torch.equal(model(x), whole)
        model.use(sides=(32, 32, 48))
        assert [tuple(m.shape[2:]) for m in model.branch_maps(x)] == [(4, 4), (4, 4), (6, 6)]
        model.use(branches=(0, 1))
        assert len(model.branch_maps(x)) == 2
        first = model(x)
        assert float((first - whole).abs().max()) > 1e-3
        assert cost(model, x, timed=False).macs < macs[-1]
        model.use(branches=(0, 2))  # neighbours of none: no exchange
        assert model(x).isfinite().all()
        model.use()
        assert torch.equal(model(x), whole)
    for wrong in ({"sides": (16, 32)}, {"sides": (16, 32, 63)}, {"branches": (3,)}, {"branches": ()}):
        with pytest.raises(UsageError):
            model.use(**wrong)
    with pytest.raises(UsageError):
        model.budget = 0


def test_without_projections_widths_may_differ() -> None:
    unit = InteractionUnit(16, 8, False, heads=4, ratio=0.5)
    coarse, fine = unit(draw(1, 4, 16), draw(1, 9, 8), ((2, 2), (3, 3)))
    assert coarse.shape == (1, 4, 16)
    assert fine.shape == (1, 9, 8)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"widths": (16, 32, 16)}, "never increase"),
        ({"widths": (32, 16)}, "entries for 2 branches"),
        ({"ranges": [[[0, 1]], [[0, 1]], [[0, 0], [1, 1]]]}, "as many ranges"),
        ({"ranges": [[[0, 0], [0, 1]], [[0, 0], [1, 1]], [[0, 0], [1, 1]]]}, r"take blocks \[0, 0, 1\]"),
        ({"ranges": [[[0, 0], [1, 1]], [[0, 0], [1, 1]], [[0, 0], [2, 1]]]}, r"branch 2 take blocks \[0\]"),
        ({"sides": (16, 32, 60)}, "multiples of the patch, 8 px"),
        ({"deform_heads": 3}, "3 heads do not divide"),
        ({"ratio": 0.3}, "4 heads do not divide 32 channels and 9 of the values"),
        ({"heads": (5, 2, 2)}, r"widths\[0\] is 32"),
        ({"merge": True}, "divide by 32"),
        ({"with_cls": False}, "class tokens"),
        ({"read": "cls"}, "'first' or 'mean'"),
        ({"merge": "sum", "num_classes": 5}, "merge is False, True or 'dense'"),
        ({"pyramid": True}, "made of the merged map"),
        ({"widths": (48, 16, 16), "merge": "dense"}, "divides by 32"),
        ({"kinds": ("vit", "intern")}, "kinds has 2 entries"),
        ({"kinds": "swin"}, "'vit', 'intern' or 'beit'"),
        ({"kinds": ("beit", "vit", "vit")}, "learn biases within windows"),
        ({"gelu": "fast"}, "'exact' or 'tanh'"),
        ({"tables": (2, 4)}, "tables has 2 entries"),
        ({"tables": -1}, "sides in cells"),
        ({"window": 4}, "no class token"),
        ({"attention": "window"}, "'deform' or 'normal'"),
        ({"drop_path_rate": 1.0}, r"\[0, 1\)"),
    ],
)
def test_impossible_networks_are_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        create("piip", weights=None, **{**SMALL.options, **options})


def test_pictures_of_another_branch_are_refused() -> None:
    with pytest.raises(InputError, match="64 x 64 px, the side of its finest branch, not 32 x 32"):
        make()(torch.zeros(1, 3, 32, 32))


def test_stochastic_depth_rises_to_its_rate() -> None:
    model = create("piip", weights=None, **{**SMALL.options, "drop_path_rate": (0.2, 0.1, 0.0)})
    assert isinstance(model, PIIP)
    rates = [[getattr(b.drop_path, "drop_prob", 0.0) for b in model.branch(i).blocks] for i in range(3)]
    assert rates == [[0.0, 0.2], [0.0, 0.1], [0.0, 0.0]]
