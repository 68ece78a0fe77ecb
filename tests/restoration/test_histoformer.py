"""Histoformer: every path is the published algorithm, counts are the published ones, published files load."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from saccade.checkpoint import load, save
from saccade.cost import cost, count_parameters
from saccade.errors import CheckpointError, InputError, SaccadeError, UsageError
from saccade.quality.pearson import pearson_loss
from saccade.registry import create
from saccade.restoration.histoformer import Block, FeedForward, Histoformer, HistogramAttention, from_official, lean
from saccade.restoration.histoformer.histogram import attend, bins, dynamic_range_order, softmax_1, unbins

SMALL = {"dim": 4, "blocks": (1, 1, 1, 1), "refinement": 1, "heads": (1, 2, 1, 2), "expansion": 3.0}


def randomise(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Every parameter away from its start, which makes wrong code pass."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / (p[0].numel() ** 0.5 if p.dim() > 1 else 2))
            if name.endswith("temperature"):
                p.copy_(0.5 + p.abs())
    return model


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def picture(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


# -- the functions of the paper


@given(n=st.integers(1, 23), count=st.sampled_from([1, 2, 4]), spread=st.booleans(), channels=st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_bins_hold_every_value_and_can_be_undone(n: int, count: int, spread: bool, channels: int) -> None:
    x = torch.arange(2 * channels * count * n, dtype=torch.float32).view(2, channels * count, n) + 1
    made = bins(x, count, count, spread)
    assert made.shape == (2, count, channels * count, -(-n // count))
    assert unbins(made, n, count, spread).equal(x)
    piece = made[0, 0, 0][made[0, 0, 0] > 0].tolist()
    step = count if spread else 1
    assert piece == x[0, 0, ::step].tolist()[: len(piece)]


def test_attention_may_choose_nothing() -> None:
    x = normal(3, 5).double()
    with_zero = torch.cat((x, torch.zeros(3, 1)), 1).softmax(-1)[:, :-1]
    torch.testing.assert_close(softmax_1(x), with_zero)


def test_the_dynamic_range_order_sorts_columns_then_rows() -> None:
    x = normal(2, 3, 5, 4).round()
    order = dynamic_range_order(x)
    wanted = x.sort(-2).values.sort(-1).values
    assert x.flatten(2).gather(-1, order).view_as(x).equal(wanted)
    assert order.sort(-1).values.equal(torch.arange(20).expand(2, 3, -1))


def test_scores_are_cosines_times_the_temperature() -> None:
    q, k, v = (normal(1, 4, 6, seed=s).double() for s in range(3))
    temperature = torch.tensor([[[0.5]], [[2.0]]]).double()
    scores = F.normalize(bins(q, 2, 2, True), dim=-1) @ F.normalize(bins(k, 2, 2, True), dim=-1).mT * temperature
    wanted = unbins(softmax_1(scores) @ bins(v, 2, 2, True), 6, 2, True)
    torch.testing.assert_close(attend(q, k, v, temperature, True), wanted)


def test_a_dilated_convolution_at_twice_the_size_needs_no_shuffle() -> None:
    model = cast(FeedForward, randomise(FeedForward(4, 3.0, bias=True).double()))
    b = normal(2, 12, 5, 6).double()
    torch.testing.assert_close(model.gate(b), F.pixel_unshuffle(model.dwconv_dilated2_1(F.pixel_shuffle(b, 2)), 2))


# -- the paths of a block

SHAPES = [(4, 1, 6, 5), (8, 2, 3, 7), (8, 4, 8, 8), (12, 1, 1, 9), (20, 2, 5, 3)]


def block(channels: int, heads: int, bias: bool, centred: bool) -> Block:
    return cast(Block, randomise(Block(channels, heads, 2.0, bias, centred)))


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("channels", "heads", "height", "width"), SHAPES)
def test_every_path_of_a_block_is_the_published_algorithm(
    channels: int, heads: int, height: int, width: int, bias: bool, centred: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lean, "STRIP", 1)  # four rows at a time
    monkeypatch.setattr(lean, "CHANNELS", 8)
    model, x = block(channels, heads, bias, centred), normal(2, channels, height, width)
    with torch.no_grad():
        wanted = copy.deepcopy(model).double().forward_naive(x.double())
        fast, plain = model(x), model.forward_naive(x)
    assert fast.is_contiguous(memory_format=torch.channels_last), "the lean path ran"
    trained = model(x)  # with gradients, another path
    assert trained.requires_grad
    for y in (fast, plain, trained, model(x.contiguous(memory_format=torch.channels_last))):
        torch.testing.assert_close(y.double(), wanted, rtol=0, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("channels", "heads", "height", "width"), SHAPES)
def test_gradients_are_those_of_the_published_algorithm(
    channels: int, heads: int, height: int, width: int, dtype: torch.dtype
) -> None:
    model, x = block(channels, heads, True, True).to(dtype), normal(2, channels, height, width).to(dtype)
    found = []
    for forward in (model.forward, model.forward_naive):
        given = x.clone().requires_grad_()
        y = forward(given)
        found.append(torch.autograd.grad((y * y.detach().cos()).sum(), [given, *model.parameters()]))
    tolerance = 1e-10 if dtype == torch.float64 else 1e-3
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_the_input_of_a_block_stays_as_it_was() -> None:
    model, x = block(8, 2, False, True), normal(1, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    kept = x.clone()
    with torch.no_grad():
        model(x)
        model.attn_g(x)
    assert x.equal(kept)


def test_lean_runs_only_where_no_gradient_is_wanted_in_float32_on_the_cpu() -> None:
    x = normal(1, 4, 4, 4)
    assert not lean.applies(x)
    with torch.no_grad():
        assert lean.applies(x)
        assert not lean.applies(x.double())
        assert not lean.applies(x.to("meta"))


def test_a_constant_picture_is_ordered_by_place_on_every_path() -> None:
    model = block(4, 1, False, True)
    x = torch.full((1, 4, 6, 6), 0.25)
    with torch.no_grad():
        assert model.attn_g(x).isfinite().all()
        torch.testing.assert_close(model(x), model.forward_naive(x), rtol=0, atol=1e-5)


def test_mish_by_one_exponential_is_mish() -> None:
    x = torch.linspace(-100, 100, 4001)
    torch.testing.assert_close(lean._mish(x.clone()), F.mish(x), rtol=1e-6, atol=1e-7)


# -- the network


@pytest.mark.parametrize("size", [(8, 8), (16, 9), (13, 24)])
def test_the_whole_network_is_the_published_one_in_float64(size: tuple[int, int]) -> None:
    model = cast(Histoformer, randomise(Histoformer(**SMALL)).double().eval())
    x = picture(2, 3, *size).double()
    with torch.no_grad():
        y = model(x)
        assert y.shape == x.shape
        torch.testing.assert_close(y, model.forward_naive(x), rtol=0, atol=1e-8)


def test_sides_that_do_not_divide_by_eight_are_reflected_and_cut() -> None:
    model = cast(Histoformer, randomise(Histoformer(**SMALL)).double().eval())
    x = picture(1, 3, 11, 14).double()
    whole = torch.from_numpy(np.pad(x.numpy(), ((0, 0), (0, 0), (0, 5), (0, 2)), mode="reflect"))
    with torch.no_grad():
        torch.testing.assert_close(model(x), model(whole)[..., :11, :14], rtol=0, atol=0)


def test_every_output_pixel_sees_the_whole_picture() -> None:
    model = cast(Histoformer, randomise(Histoformer(**SMALL)).double().eval())
    x = picture(1, 3, 32, 40).double()
    other = x.clone()
    other[..., -4:, -4:] = 1 - other[..., -4:, -4:]
    with torch.no_grad():
        assert (model(x) - model(other))[..., :4, :4].abs().max() > 1e-6
    assert model.halo is None


def test_one_tile_is_the_picture_and_many_are_near_it_only() -> None:
    model = cast(Histoformer, randomise(Histoformer(**SMALL)).double().eval())
    x = picture(1, 3, 35, 26).double()
    with torch.no_grad():
        whole = model(x)
        assert model.forward_tiles(x, 64, 8).equal(whole)
        tiles = model.forward_tiles(x, 16, 8)
    assert tiles.shape == x.shape
    assert tiles.isfinite().all()
    assert not torch.allclose(tiles, whole)
    for wrong in ((4, 8), (16, -1)):
        with pytest.raises(UsageError, match="tiles"):
            model.forward_tiles(x, *wrong)


@pytest.mark.parametrize("size", [(17, 8), (33, 9)])
def test_a_last_tile_that_would_be_too_small_begins_earlier(size: tuple[int, int]) -> None:
    model = cast(Histoformer, Histoformer(**SMALL).eval())
    assert model.forward_tiles(picture(1, 3, *size), 16, 0).shape[-2:] == size


def test_the_loss_is_l1_and_pearson() -> None:
    model = cast(Histoformer, randomise(Histoformer(**SMALL)))
    given, wanted = picture(2, 3, 16, 16), picture(2, 3, 16, 16, seed=1)
    y = model(given)
    torch.testing.assert_close(model.training_loss(given, wanted, 0), F.l1_loss(y, wanted) + pearson_loss(y, wanted))


def test_a_few_steps_lower_the_loss() -> None:
    torch.manual_seed(0)
    model = cast(Histoformer, Histoformer(**SMALL).train())
    wanted = picture(1, 3, 16, 16)
    given = 0.5 * wanted + 0.5
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    course = []
    for _ in range(12):
        loss = model.training_loss(given, wanted)
        course.append(float(loss.detach()))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert course[-1] < 0.8 * course[0]


def test_parameters_and_macs_are_the_published_ones() -> None:
    model = create("histoformer", weights=None)
    assert count_parameters(model) == 16_615_100
    x = torch.empty(1, 3, 256, 256, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        copy.deepcopy(model).to("meta")(x)
    by_operator = {str(k): v // 2 for k, v in counter.get_flop_counts()["Global"].items()}
    convolutions = sum(v for k, v in by_operator.items() if "convolution" in k)
    assert round(convolutions / 1e9, 2) == 91.59
    assert round((sum(by_operator.values()) - convolutions) / 1e9, 1) == 21.7
    assert cost(model, x).macs == sum(by_operator.values())


def test_macs_on_a_real_picture_are_those_of_its_shape() -> None:
    model = create("histoformer_tiny", weights=None)
    assert (
        cost(model, picture(1, 3, 16, 16), timed=False).macs
        == cost(model, torch.empty(1, 3, 16, 16, device="meta")).macs
    )


def test_the_tiny_variant_has_the_parameters_of_the_small_test() -> None:
    assert count_parameters(create("histoformer_tiny", weights=None)) == 211_047


# -- bad input


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (torch.zeros(1, 1, 16, 16), r"\(B, 3, h, w\)"),
        (torch.zeros(1, 4, 16, 16), r"\(B, 3, h, w\)"),
        (torch.zeros(3, 16, 16), r"\(B, 3, h, w\)"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), "uint8"),
        (torch.zeros(1, 3, 7, 16), "8 pixels a side"),
        (torch.zeros(1, 3, 16, 0), "8 pixels a side"),
        (torch.full((1, 3, 8, 8), float("nan")), "nan"),
        (torch.full((1, 3, 8, 8), 200.0), "divide by 255"),
        (torch.zeros(0, 3, 8, 8), "empty"),
    ],
)
def test_what_is_no_picture_for_it_is_refused(x: Tensor, says: str) -> None:
    model = create("histoformer_tiny", weights=None)
    for call in (model, model.forward_naive, model.forward_tiles):
        with pytest.raises(InputError, match=says):
            call(x)


def test_one_nan_pixel_is_refused_before_sorting_spreads_it() -> None:
    x = picture(1, 3, 8, 8)
    x[0, 1, 2, 3] = float("nan")
    with pytest.raises(InputError, match="nan"):
        create("histoformer_tiny", weights=None)(x)


def test_half_precision_on_the_cpu_warns() -> None:
    model = Histoformer(**SMALL).half().eval()
    with pytest.warns(UserWarning, match="half precision is slow"), torch.no_grad():
        assert model(picture(1, 3, 8, 8).half()).dtype == torch.float16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("spread", [False, True])
def test_empty_and_long_bins_are_numbers_in_16_bits(dtype: torch.dtype, spread: bool) -> None:
    """9 values in 4 bins leave one empty, whose norm is 0; 40 000 products of values near 2 pass what 16 bits hold."""
    for n in (9, 40_000):
        q, k, v = (1.5 + normal(1, 4, n, seed=i).clamp(-1, 1) for i in range(3))
        wanted = attend(q, k, v, torch.ones(4, 1, 1), spread)
        found = attend(*(t.to(dtype) for t in (q, k, v)), torch.ones(4, 1, 1, dtype=dtype), spread)
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), wanted, rtol=0.02, atol=0.02)


def test_an_empty_batch_is_refused_in_training_too() -> None:
    with pytest.raises(InputError, match="empty"):
        Histoformer(**SMALL).train()(torch.zeros(0, 3, 16, 16))


def test_it_exports_at_a_fixed_size() -> None:
    model = cast(Histoformer, randomise(Histoformer(**SMALL)).double().eval())
    x = picture(1, 3, 16, 16).double()
    with torch.no_grad():
        exported = torch.export.export(model, (picture(1, 3, 16, 16, seed=1).double(),)).module()
        torch.testing.assert_close(exported(x), model(x), rtol=0, atol=1e-8)


@pytest.mark.slow
def test_a_compiled_block_is_the_block_and_so_are_its_gradients() -> None:
    model, x = block(8, 2, True, True).double(), normal(1, 8, 6, 5).double().requires_grad_()
    compiled = torch.compile(model, backend="aot_eager")
    ours, theirs = (torch.autograd.grad(f(x).square().sum(), [x, *model.parameters()]) for f in (model, compiled))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dim": 8}, "21 wide .* does not divide by 4"),
        ({**SMALL, "expansion": 0.1}, "does not divide by 4"),
        ({**SMALL, "heads": (3, 1, 1, 1)}, "3 attention heads"),
        ({**SMALL, "heads": (0, 1, 1, 1)}, "heads of 1 or more"),
        ({**SMALL, "heads": (1, 1)}, "4 levels"),
        ({**SMALL, "blocks": (1, 1, 1, 1, 1)}, "4 levels"),
        ({**SMALL, "blocks": (1, 1, -1, 1)}, "no negative depth"),
        ({**SMALL, "dim": 5}, "even width"),
    ],
)
def test_networks_that_cannot_be_are_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        create("histoformer", weights=None, **options)


@pytest.mark.parametrize(("dim", "expansion"), [(12, 2.667), (24, 2.667), (36, 2.667), (48, 2.667), (8, 2.0), (8, 2.5)])
def test_widths_that_the_card_names_work(dim: int, expansion: float) -> None:
    with torch.device("meta"):
        Histoformer(dim, (1, 1, 1, 1), 1, (1, 1, 1, 1), expansion)


# -- published files


def official(seed: int = 0, **options: object) -> dict[str, Tensor]:
    """Random weights under the official names, which are ours."""
    return dict(randomise(Histoformer(**{**SMALL, **options}), seed).state_dict())  # type: ignore[arg-type]


@pytest.mark.parametrize("bias", [False, True])
def test_an_official_file_is_recognised_alone(tmp_path: Path, bias: bool) -> None:
    state = official(bias=bias, blocks=(1, 2, 1, 1), refinement=2)
    torch.save({"params": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "net_g_best.pth")
    model = load(tmp_path / "net_g_best.pth")
    assert isinstance(model, Histoformer)
    assert model.saccade_name == "histoformer"
    assert model.saccade_options == {
        "dim": 4,
        "blocks": [1, 2, 1, 1],
        "refinement": 2,
        "heads": [1, 2, 1, 2],
        "expansion": 3.0,
        **({"bias": True} if bias else {}),
    }
    assert all(v.equal(state[k]) for k, v in model.state_dict().items())
    save(model, tmp_path / "own.safetensors")
    again = load(tmp_path / "own.safetensors")
    x = picture(1, 3, 9, 8)
    assert again(x).equal(model(x))


def test_the_published_configuration_needs_no_options() -> None:
    with torch.device("meta"):
        state = Histoformer().state_dict()
    recipe = from_official(dict(state))
    assert recipe is not None
    assert (recipe.model, recipe.options) == ("histoformer", {})
    assert len([k for k in state if k.startswith("latent.7.")]) == 8


def test_tiny_weights_are_recognised_as_tiny() -> None:
    recipe = from_official(dict(create("histoformer_tiny", weights=None).state_dict()))
    assert recipe is not None
    assert (recipe.model, recipe.options) == ("histoformer_tiny", {})


def test_the_keys_are_the_published_ones() -> None:
    names = set(official())
    for level in ("encoder_level1", "latent", "decoder_level2", "refinement"):
        parts = {k.removeprefix(f"{level}.0.") for k in names if k.startswith(f"{level}.0.")}
        assert parts == {
            "attn_g.temperature",
            "attn_g.qkv.weight",
            "attn_g.qkv_dwconv.weight",
            "attn_g.project_out.weight",
            "ffn.project_in.weight",
            "ffn.dwconv_5.weight",
            "ffn.dwconv_dilated2_1.weight",
            "ffn.project_out.weight",
        }
    others = {k for k in names if not k.split(".")[1].isdigit()}
    wanted = {f"{n}.body.0.weight" for n in ("down1_2", "down2_3", "down3_4", "up4_3", "up3_2", "up2_1")}
    wanted |= {f"skip_patch_embed{i}.proj.{j}.weight" for i in (1, 2, 3) for j in (1, 2)}
    wanted |= {f"reduce_chan_level_{i}.weight" for i in (1, 2, 3)} | {f"reduce_chan_level{i}.weight" for i in (2, 3)}
    assert others == wanted | {"patch_embed.proj.weight", "output.weight"}


@pytest.mark.parametrize(
    ("lose", "says"),
    [
        ("encoder_level2.0.", "levels without blocks"),
        ("encoder_level1.0.attn_g.temperature", "temperature"),
        ("latent.0.ffn.project_in.weight", r"latent\.0\.ffn\.project_in\.weight"),
        ("refinement.0.attn_g.qkv.weight", r"missing refinement\.0\.attn_g\.qkv\.weight"),
    ],
)
def test_an_incomplete_file_names_what_it_lacks(tmp_path: Path, lose: str, says: str) -> None:
    torch.save({k: v for k, v in official().items() if not k.startswith(lose)}, tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match=says):
        load(tmp_path / "net.pth")


def test_a_gap_among_the_blocks_is_an_error() -> None:
    state = {k.replace("latent.0.", "latent.1."): v for k, v in official().items()}
    with pytest.raises(CheckpointError, match="lacks a block of latent"):
        from_official(state)


def test_another_network_with_such_names_is_left_to_others() -> None:
    state = official()
    state["encoder_level1.0.attn_g.qkv.weight"] = torch.zeros(12, 4, 1, 1)
    assert from_official(state) is None


def test_hidden_widths_that_no_expansion_gives_are_an_error() -> None:
    state = official()
    state["encoder_level1.0.ffn.project_in.weight"] = torch.zeros(40, 4, 1, 1)
    with pytest.raises(CheckpointError, match="no expansion"):
        from_official(state)


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_file_with_any_tensor_changed_loads_or_is_refused_in_words(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    state = official()
    names = sorted(state)
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(names))
        shape = data.draw(st.lists(st.integers(0, 9), max_size=5))
        state[name] = torch.zeros(shape, dtype=data.draw(st.sampled_from([torch.float32, torch.int64, torch.bool])))
    path = tmp_path_factory.mktemp("fuzz") / "net.pth"
    torch.save(state, path)
    try:
        model = load(path)
    except SaccadeError:
        return
    assert isinstance(model, Histoformer)


def test_attention_and_heads_are_checked_where_they_are_built() -> None:
    with pytest.raises(UsageError, match="do not divide"):
        HistogramAttention(6, 4)


def test_a_black_picture_has_a_finite_gradient() -> None:
    model = cast(Histoformer, randomise(Histoformer(**SMALL)).train())
    black = torch.zeros(1, 3, 16, 16)
    model.training_loss(black, black).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
