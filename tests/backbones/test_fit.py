"""FIT: the layer string, tables, who sees whom, the decoder's cache and sampler, tokens of pictures, refusals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import saccade
from saccade.backbones.fit import (
    FIT,
    FITDecoder,
    FITDenoiser,
    TimeEmbedding,
    block_causal,
    from_subimages,
    layer_pattern,
    load_keras,
    sin_cos_2d,
    sin_cos_table,
    snake,
    subimages,
)
from saccade.backbones.fit.layers import Attention
from saccade.budget import has_budget
from saccade.cost import cost
from saccade.errors import CheckpointError, InputError, UsageError
from saccade.registry import create

WIDTHS = {"x_dim": 16, "latent_dim": 24, "x_num_heads": 2, "latent_num_heads": 4, "mlp_ratio": 2}
SHAPE = {"layers": "(1)2(1)1(1)", "x_size": 24, "num_groups": 4, "latents_per_group": 3}


def drawn(make: Any, seed: int = 0) -> Any:
    """A network whose every parameter is drawn anew: fresh biases and gains hide mistakes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() < 2:
                    parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def encoder(**options: Any) -> FIT:
    return drawn(lambda: create("fit", weights=None, **{**SHAPE, **WIDTHS, "in_dim": 10, **options}))


def denoiser(**options: Any) -> FITDenoiser:
    told = {**SHAPE, **WIDTHS, "out_dim": 10, "cond_dim": 7, **options}
    return drawn(lambda: create("fit_denoiser", weights=None, **told))


def decoder(**options: Any) -> FITDecoder:
    told = {**SHAPE, **WIDTHS, "vocab_size": 11, **options}
    return drawn(lambda: create("fit_decoder", weights=None, **told))


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("text", "pattern"),
    [("(4)24(4)", [(4, 24), (4, 0)]), ("(1)1", [(1, 1)]), ("(2)", [(2, 0)]), ("(0)12(3)4", [(0, 12), (3, 4)])],
)
def test_the_layer_string_is_read(text: str, pattern: list[tuple[int, int]]) -> None:
    assert layer_pattern(text) == pattern


@pytest.mark.parametrize("text", ["", "4", "(4", "4(4)", "(a)1", "(1)(2)", "(1)-1", "(1)1,(1)", "(1)0(1)1", None])
def test_other_layer_strings_are_refused_and_quoted(text: Any) -> None:
    with pytest.raises(UsageError) as caught:
        layer_pattern(text)
    assert repr(text) in str(caught.value)


def test_tables_are_sines_then_cosines_to_a_thousand() -> None:
    table = sin_cos_table(5, 6)
    angles = torch.linspace(0, 1000, 5)[:, None] / 10000 ** (torch.tensor([0.0, 2, 4]) / 6)
    torch.testing.assert_close(table, torch.cat([angles.sin(), angles.cos()], 1))
    grid = sin_cos_2d(3, 4, 8)
    torch.testing.assert_close(grid[2, 1, :4], sin_cos_table(3, 4)[2])
    torch.testing.assert_close(grid[2, 1, 4:], sin_cos_table(4, 4)[1])


def test_fixed_tables_are_no_weights_and_stand_in_the_networks() -> None:
    fixed = encoder(x_pos_encoding="sin_cos", latent_pos_encoding="sin_cos")
    assert not {"x_table", "latent_table"} & set(fixed.state_dict())
    assert torch.equal(fixed.x_table, sin_cos_table(6, 16))
    assert torch.equal(fixed.latent_table, sin_cos_2d(4, 3, 24).flatten(0, 1))
    square = encoder(x_size=36, x_pos_encoding="sin_cos2d")
    assert torch.equal(square.x_table, sin_cos_2d(3, 3, 16).flatten(0, 1))
    line = encoder(latents_per_group=1, latent_pos_encoding="sin_cos")
    assert torch.equal(line.latent_table, sin_cos_table(4, 24))


def seen(function: Any, x: Tensor) -> Tensor:
    """(t, t) bool: which group of the input (column) each group of the result (row) hangs on."""
    x = x.clone().requires_grad_()
    made = function(x)
    rows = [torch.autograd.grad(made[:, g].square().sum(), x, retain_graph=True)[0] for g in range(made.shape[1])]
    return torch.stack([r.abs().sum((0, 2, 3)) > 0 for r in rows])


def test_who_sees_whom() -> None:
    x = random(1, 4, 6, 10)
    everywhere, own = torch.ones(4, 4, dtype=torch.bool), torch.eye(4, dtype=torch.bool)
    before = own.logical_or(torch.ones(4, 4).tril().bool())
    assert torch.equal(seen(lambda x: encoder()(x)[0], x), everywhere)
    assert torch.equal(seen(lambda x: encoder(mask="causal")(x)[0], x), before)
    assert torch.equal(seen(lambda x: encoder(mask="causal")(x)[1], x), before)
    assert torch.equal(seen(lambda x: encoder(layers="(2)")(x)[0], x), own)
    assert torch.equal(block_causal(2, 2).int(), torch.tensor([[1, 1, 0, 0]] * 2 + [[1] * 4] * 2))


def test_attention_between_tokens_and_latents_has_the_narrower_width_and_fewer_heads() -> None:
    model = encoder()
    for cross in (*model.l2x, *model.x2l):
        assert cross.mha.query.out_features == cross.mha.key.out_features == 16
        assert cross.mha.heads == 2
    assert denoiser().l2c[0].mha.query.out_features == 24
    assert denoiser().l2c[0].mha.heads == 4


def test_attention_is_the_formula_with_norms_of_its_own() -> None:
    layer: Attention = drawn(lambda: Attention(6, 2, 4, 8))
    x, source = random(2, 3, 6), random(2, 5, 8, seed=2)
    q, k, v = layer.query(layer.ln(x)), *(f(layer.enc_ln(source)) for f in (layer.key, layer.value))
    heads = [(q[..., s] @ k[..., s].mT / math.sqrt(2)).softmax(-1) @ v[..., s] for s in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close(layer(x, source), layer.attention_output(torch.cat(heads, -1)))


def test_extra_tokens_come_first_and_without_a_place() -> None:
    model = encoder(extra_dim=5)
    x, y = random(2, 4, 6, 10), random(2, 4, 2, 5, seed=2)
    found, latents = model(x, y)
    assert found.shape == (2, 4, 8, 16)
    assert latents.shape == (2, 4, 3, 24)
    swapped, _ = model(x, y.flip(2))
    torch.testing.assert_close(swapped[:, :, :2], found[:, :, :2].flip(2))
    torch.testing.assert_close(swapped[:, :, 2:], found[:, :, 2:])
    for wrong in (None, y[..., :4]):
        with pytest.raises(InputError, match="extra tokens"):
            model(x, wrong)
    with pytest.raises(InputError, match="extra tokens"):
        encoder()(x, y)


def test_the_dial_uses_fewer_latents_and_costs_less() -> None:
    for model, told in (
        (encoder(latents_per_group=4), (random(1, 4, 6, 10),)),
        (denoiser(latents_per_group=4), (random(1, 4, 6, 10), torch.tensor([0.3]), random(1, 7))),
    ):
        assert has_budget(model)
        assert model.budgets() == [0.25, 0.5, 0.75, 1.0]
        macs = []
        for used, budget in enumerate(model.budgets(), 1):
            model.budget = budget
            with torch.no_grad():
                assert model(*told)[1].shape == (1, 4, used, 24)
            macs.append(cost(model, *told, timed=False).macs)
        assert macs == sorted(macs)
        assert macs[0] < macs[-1]
        with pytest.raises(UsageError, match="budget"):
            model.budget = 1.5


def test_without_latents_from_before_zeros_go_through() -> None:
    model = denoiser(self_cond="latent")
    x, t, c = random(2, 4, 6, 10), torch.tensor([0.1, 0.9]), random(2, 7)
    with torch.no_grad():
        first, latents = model(x, t, c)
        torch.testing.assert_close(first, model(x, t, c, torch.zeros_like(latents))[0], rtol=0, atol=0)
        assert not torch.allclose(first, model(x, t, c, latents)[0])
    fresh = FITDenoiser(**SHAPE, **WIDTHS, out_dim=10, cond_dim=7, self_cond="latent")
    assert float(fresh.latent_prev_ln.weight.detach().abs().sum()) == 0, "self-conditioning starts as nothing"


def test_the_time_is_standardised_and_may_bring_more() -> None:
    layer = drawn(lambda: TimeEmbedding(16, 2))
    told = torch.tensor([[0.3, 1.0, -2.0]])
    angles = 300.0 / 10000 ** (torch.tensor([0.0, 2.0]) / 4)
    waves = torch.cat([angles.sin(), angles.cos()])
    waves = (waves - waves.mean()) / waves.std(correction=0)
    want = layer.dense1(torch.cat([torch.nn.functional.silu(layer.dense0(waves)), told[0, 1:]]))
    torch.testing.assert_close(layer(told)[0], want, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="the time is"):
        layer(torch.tensor([0.3]))
    with pytest.raises(UsageError, match="divides by 8"):
        TimeEmbedding(12)


def test_conditions_may_be_many_and_all_options_run() -> None:
    model = denoiser(local_attention=False, normalise_source=False, cross_ratio=2, mask="causal")
    x, t = random(2, 4, 6, 10), torch.tensor([0.1, 0.9])
    assert model(x, t, random(2, 3, 7))[0].shape == x.shape
    assert model.x_network[0][0].mha is None
    for wrong in (random(2, 6), random(7)):
        with pytest.raises(InputError, match="the condition is"):
            model(x, t, wrong)


@pytest.mark.parametrize("options", [{}, {"layers": "(2)"}, {"layers": "(1)1(2)1"}, {"shared_embedding": False}])
def test_no_logit_of_the_decoder_hangs_on_later_tokens_and_the_cache_gives_the_same(options: dict[str, Any]) -> None:
    model = decoder(**options)
    tokens = torch.randint(11, (2, 4, 6), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        want = model(tokens).flatten(1, 2)
        for place in range(0, 24, 5):
            other = tokens.flatten(1).clone()
            other[:, place] = (other[:, place] + 1) % 11
            moved = model(other.view_as(tokens)).flatten(1, 2)
            assert torch.equal(moved[:, :place], want[:, :place])
            if options.get("layers") != "(2)":
                assert bool((moved[:, place:] != want[:, place:]).any(-1).all())
        at = model.begin()
        steps = torch.stack([model.step(t, at) for t in tokens.flatten(1).unbind(1)], 1)
    torch.testing.assert_close(steps, want, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="all are taken"):
        model.step(tokens[:, 0, 0], at)


def test_sampling_continues_and_depends_on_the_seed_alone() -> None:
    model = decoder()
    prefix = torch.tensor([[3, 1, 4, 1, 5, 9, 2]])
    made = model.generate(prefix, seed=1)
    assert made.shape == (1, 24)
    assert torch.equal(made[:, :7], prefix)
    assert torch.equal(made, model.generate(prefix, seed=1))
    greedy = model.generate(prefix, temperature=0)
    with torch.no_grad():
        foretold = model(model.late(greedy)).flatten(1, 2).argmax(-1)
    assert torch.equal(greedy[:, 7:], foretold[:, 7:])
    assert model.generate(prefix[:, :0]).shape == (1, 24)


def test_the_loss_is_that_of_the_sequence_one_place_late() -> None:
    model = decoder()
    sequence = torch.randint(11, (2, 24), generator=torch.Generator().manual_seed(0))
    late = model.late(sequence).flatten(1)
    assert torch.equal(late[:, 1:], sequence[:, :-1])
    assert late[:, 0].tolist() == [0, 0]
    with torch.no_grad():
        chances = model(model.late(sequence)).flatten(1, 2).log_softmax(-1)
        torch.testing.assert_close(model.loss(sequence), -chances.gather(2, sequence[..., None]).mean())


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 3))
@settings(deadline=None, max_examples=40)
def test_pictures_come_back_from_their_tokens(gy: int, gx: int, ny: int, nx: int, patch: int, channels: int) -> None:
    size, picture = (ny * patch, nx * patch), (gy * ny * patch, gx * nx * patch)
    x = random(2, channels, *picture)
    tokens = subimages(x, size, patch)
    assert tokens.shape == (2, gy * gx, ny * nx, patch * patch * channels)
    assert torch.equal(from_subimages(tokens, picture, size, patch), x)
    assert torch.equal(snake(snake(tokens, gx), gx), tokens)


def test_the_snake_turns_every_second_row() -> None:
    assert snake(torch.arange(6).view(1, 6, 1, 1), 3).flatten().tolist() == [0, 1, 2, 5, 4, 3]
    with pytest.raises(InputError, match="rows of 4"):
        snake(torch.zeros(1, 6, 1), 4)


@pytest.mark.parametrize("size", [((5, 6), 2), ((4, 6), 4), ((4, 5), 1), ((0, 6), 1)])
def test_pictures_that_do_not_divide_are_refused(size: tuple[tuple[int, int], int]) -> None:
    with pytest.raises(InputError, match="do not divide"):
        subimages(torch.zeros(1, 3, 8, 12), *size)
    with pytest.raises(InputError, match="sub-images are cut"):
        subimages(torch.zeros(3, 8, 12), (4, 6), 2)
    with pytest.raises(InputError, match="picture has"):
        from_subimages(torch.zeros(1, 3, 6, 12), (8, 12), (4, 6), 2)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_groups": 5}, "x_size=24 tokens, num_groups=5"),
        ({"latents_per_group": 0}, "0 latents"),
        ({"x_num_heads": 3, "latent_num_heads": 3}, "3 heads do not divide a width of 16"),
        ({"layers": "4(1)"}, r"'4\(1\)'"),
        ({"x_pos_encoding": "sin_cos2d"}, "a square, not 6"),
        ({"x_pos_encoding": "cosine"}, "'cosine'"),
        ({"x_size": 4, "x_pos_encoding": "sin_cos"}, "one place"),
        ({"num_groups": 1, "latents_per_group": 1, "latent_pos_encoding": "sin_cos"}, "one place"),
        ({"x_dim": 15, "x_num_heads": 1, "latent_num_heads": 1, "x_pos_encoding": "sin_cos"}, "divides by 2"),
        ({"mask": "diagonal"}, "'diagonal'"),
    ],
)
def test_impossible_networks_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        encoder(**options)


def test_what_is_no_sequence_for_them_is_refused() -> None:
    model = encoder()
    for wrong in (random(1, 4, 5, 10), random(4, 6, 10), random(1, 4, 6, 10).long(), random(1, 4, 6, 9)):
        with pytest.raises(InputError, match=r"float \(B, 4 groups, 6 tokens, 10\)"):
            model(wrong)
    tokens = decoder()
    for wrong, says in (
        (torch.full((1, 4, 6), 11), r"\[0, 10\]"),
        (torch.full((1, 4, 6), -1), r"\[0, 10\]"),
        (torch.zeros(1, 4, 6), "int64"),
        (torch.zeros(1, 24).long(), "int64"),
    ):
        with pytest.raises(InputError, match=says):
            tokens(wrong)
    with pytest.raises(InputError, match="prefix"):
        tokens.generate(torch.zeros(1, 25).long())
    with pytest.raises(UsageError, match="temperature"):
        tokens.generate(torch.zeros(1, 0).long(), temperature=-1)
    with pytest.raises(UsageError, match="self_cond"):
        denoiser(self_cond="x")
    with pytest.raises(UsageError, match="without a projection"):
        denoiser(cond_proj=False)
    with pytest.raises(UsageError, match="vocabulary"):
        decoder(vocab_size=0)
    with pytest.raises(CheckpointError, match="no Keras names"):
        load_keras(model, model.state_dict())


@pytest.mark.parametrize("make", [encoder, denoiser, decoder])
def test_saved_and_loaded_they_are_the_same(make: Any, tmp_path: Path) -> None:
    model = make()
    saccade.save(model, tmp_path / "net.safetensors")
    again = saccade.load(tmp_path / "net.safetensors")
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())


def test_the_encoder_compiles_and_its_graph_gives_the_same(tmp_path: Path) -> None:
    import onnxruntime

    model, x = encoder(mask="causal"), random(1, 4, 6, 10)
    torch._dynamo.reset()
    with torch.no_grad():
        want = model(x)
        torch.testing.assert_close(torch.compile(model, backend="aot_eager", fullgraph=True)(x), want)
    program = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    assert program is not None
    program.save(str(tmp_path / "net.onnx"))
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    for found, true in zip(session.run(None, {session.get_inputs()[0].name: x.numpy()}), want, strict=True):
        torch.testing.assert_close(torch.from_numpy(found), true, rtol=1e-4, atol=1e-4)
