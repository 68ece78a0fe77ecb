"""FIT: the layer string, tables, who sees whom, the decoder's cache and sampler, tokens of pictures, refusals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import saccade
from saccade.backbones.fit import (
    FIT,
    FITClassifier,
    FITDecoder,
    FITDenoiser,
    TimeEmbedding,
    block_causal,
    from_subimages,
    glimpses,
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


def test_glimpses_put_the_whole_picture_first_and_tell_which_is_which() -> None:
    x = random(3, 2, 8, 12)
    cut = subimages(x, (4, 6), 2)
    tokens, which = glimpses(x, (4, 6), 2, whole=2)
    assert tokens.shape == (3, 6, 6, 8)
    assert torch.equal(tokens[:, 2:], cut)
    small = torch.nn.functional.interpolate(x, (4, 6), mode="bilinear")
    assert torch.equal(tokens[:, 0], subimages(small, (4, 6), 2)[:, 0])
    assert torch.equal(tokens[:, 1], tokens[:, 0])
    assert torch.equal(which, torch.eye(6).expand(3, -1, -1).unsqueeze(2))
    mixed, told = glimpses(x, (4, 6), 2, whole=2, seed=0)
    assert torch.equal(torch.einsum("btk,btnd->bknd", told[:, :, 0], mixed), tokens)  # its numbers undo the order
    assert not torch.equal(told[0], told[1]) or not torch.equal(told[1], told[2])
    assert torch.equal(glimpses(x, (4, 6), 2, whole=0)[0], cut)
    assert encoder(x_size=36, num_groups=6, in_dim=8, extra_dim=6)(mixed, told)[0].shape == (3, 6, 7, 16)
    with pytest.raises(InputError, match="0 or more copies"):
        glimpses(x, (4, 6), 2, whole=-1)


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


@pytest.mark.parametrize(
    "name",
    ["encoder", pytest.param("denoiser", marks=pytest.mark.slow), pytest.param("decoder", marks=pytest.mark.slow)],
)
def test_they_compile_and_their_graphs_give_the_same(name: str, tmp_path: Path) -> None:
    import onnxruntime

    model, told = {
        "encoder": (encoder(mask="causal"), (random(1, 4, 6, 10),)),
        "denoiser": (denoiser(self_cond="latent"), (random(1, 4, 6, 10), torch.tensor([0.3]), random(1, 7))),
        "decoder": (decoder(), (torch.arange(24).view(1, 4, 6) % 11,)),
    }[name]
    torch._dynamo.reset()
    with torch.no_grad():
        want = model(*told)
        torch.testing.assert_close(torch.compile(model, backend="aot_eager", fullgraph=True)(*told), want)
    program = torch.onnx.export(model, told, dynamo=True, verbose=False)
    assert program is not None
    program.save(str(tmp_path / "net.onnx"))
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    names = [i.name for i in session.get_inputs()]
    made = session.run(None, {n: x.numpy() for n, x in zip(names, told, strict=True)})
    for found, true in zip(made, [want] if isinstance(want, Tensor) else want, strict=True):
        torch.testing.assert_close(torch.from_numpy(found), true, rtol=1e-4, atol=1e-4)


def test_what_goes_with_other_sequences_is_refused() -> None:
    """A condition of twice as many pictures once became two conditions of each."""
    model, x, t, c = denoiser(self_cond="latent"), random(2, 4, 6, 10), torch.tensor([0.1, 0.9]), random(2, 7)
    for cond in (random(4, 7), random(1, 2, 7)):
        with pytest.raises(InputError, match=r"the condition is \(2, 7\)"):
            model(x, t, cond)
    for time in (t[:1], t[0]):
        with pytest.raises(InputError, match=r"the time is \(2,\)"):
            model(x, time, c)
    for before in (random(1, 4, 3, 24), random(2, 4, 2, 24), random(2, 4, 3, 16), random(2, 12, 24)):
        with pytest.raises(InputError, match="at least 3, 24"):
            model(x, t, c, before)
    model.budget = 1 / 3
    assert model(x, t, c, random(2, 4, 3, 24))[1].shape == (2, 4, 1, 24)
    with pytest.raises(InputError, match="takes no latents"):
        denoiser()(x, t, c, random(2, 4, 3, 24))
    for y in (random(1, 4, 2, 5), random(2, 2, 5), random(2, 3, 2, 5), random(2, 4, 2, 6)):
        with pytest.raises(InputError, match=r"extra tokens \(2, 4 groups, n, 5\)"):
            encoder(extra_dim=5)(x, y)
    with pytest.raises(InputError, match="no pixels"):
        from_subimages(torch.zeros(1, 1, 1, 4), (4, 4), (0, 4), 2)
    with pytest.raises(InputError, match="rows of 0"):
        snake(torch.zeros(1, 6, 1), 0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"x_dim": 0}, "without channels"),
        ({"mlp_ratio": 0.0}, "without channels"),
        ({"latent_num_heads": 0}, "without channels"),
        ({"drop_path": 1.0}, "drop_path"),
        ({"in_dim": 0}, "at least 1 number"),
        ({"extra_dim": -1}, "at least 1 number"),
    ],
)
def test_networks_without_channels_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        encoder(**options)
    with pytest.raises(UsageError, match="at least 1 number"):
        denoiser(cond_dim=0)


def test_options_by_place_and_by_name_make_the_same_network() -> None:
    told = (*SHAPE.values(), *WIDTHS.values())
    for options in ({}, {"self_cond": "latent"}):
        by_place, by_name = FITDenoiser(*told, out_dim=10, cond_dim=7, **options), denoiser(**options)
        assert {k: v.shape for k, v in by_place.state_dict().items()} == {
            k: v.shape for k, v in by_name.state_dict().items()
        }


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_and_no_sequences_go_through(dtype: torch.dtype) -> None:
    x, t, c, ids = random(2, 4, 6, 10), torch.tensor([0.1, 0.9]), random(2, 7), torch.zeros(2, 4, 6, dtype=torch.int64)
    calls = (
        (encoder(), (x,)),
        (denoiser(self_cond="latent", time_extra=1), (x, torch.stack([t, t], 1), c)),
        (denoiser(), (x, t, c)),
        (decoder(), (ids,)),
    )
    for model, told in calls:
        with torch.no_grad():
            want = model(*told)
            none = model(*(g[:0] for g in told))
            assert (none if isinstance(none, Tensor) else none[0]).shape[0] == 0
            cast = [g.to(dtype) if g.is_floating_point() else g for g in told]
            found = model.to(dtype)(*cast)
        for one, other in zip(found, want, strict=True):
            assert one.dtype == dtype
            bound = 0.15 if dtype == torch.bfloat16 else 1e-4
            assert float((one.float() - other).abs().max()) <= bound * max(1.0, float(other.abs().max()))
    model = denoiser().to(dtype)  # a time in float32 is told as it is
    assert model(x.to(dtype), t, c.to(dtype))[0].dtype == dtype


@pytest.mark.parametrize("make", [encoder, denoiser, decoder])
def test_checkpointed_gradients_are_the_same(make: Any) -> None:
    told: dict[Any, tuple[Tensor, ...]] = {
        encoder: (random(2, 4, 6, 10),),
        denoiser: (random(2, 4, 6, 10), torch.tensor([0.1, 0.9]), random(2, 7)),
        decoder: (torch.arange(48).view(2, 4, 6) % 11,),
    }
    found, kept = [], []
    for enable in (False, True):
        model = make().train()
        model.set_grad_checkpointing(enable)
        held = 0

        def count(t: Tensor) -> Tensor:
            nonlocal held
            held += t.numel()
            return t

        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            made = model(*told[make])
        (made if isinstance(made, Tensor) else made[0]).square().sum().backward()
        found.append([p.grad for p in model.parameters() if p.grad is not None])
        kept.append(held)
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(again, plain)
    assert kept[1] < 0.5 * kept[0]


def test_the_classifier_is_the_encoder_on_sub_images() -> None:
    """The same weights, tokens cut by `subimages`: the map is what the encoder gives for each token."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        options = {"widths": (16, 24), "depths": (1, 2, 1), "heads": (2, 4), "subimage": 16, "img_size": 48}
        model = zoo.randomised(create("fit_classifier", weights=None, num_classes=5, **options)).eval()
    assert isinstance(model, FITClassifier)
    twin = FIT("(1)2(1)", 36, 9, 2, 16, 24, 2, 4, in_dim=192).eval()
    state = {k.removeprefix("stages.0."): v for k, v in model.state_dict().items() if k.startswith("stages.0.")}
    state |= {"stem.weight": model.stem.proj.weight.permute(0, 2, 3, 1).flatten(1), "stem.bias": model.stem.proj.bias}
    for ours, theirs in ((model.stem.norm, "stem_ln"), (model.norm, "x_output_ln")):
        state |= {f"{theirs}.weight": ours.weight, f"{theirs}.bias": ours.bias}
    assert set(twin.load_state_dict(state, strict=False).missing_keys) == {"l_output_ln.weight", "l_output_ln.bias"}
    x = random(2, 3, 48, 48)
    with torch.no_grad():
        features, _ = twin(subimages(x, (16, 16), 8))  # (B, 9, 4, 16)
        torch.testing.assert_close(model(x), model.head(features.mean((1, 2))), rtol=1e-4, atol=1e-5)
        whole = model.forward_features(x)
        torch.testing.assert_close(whole[0, :, 2, 3], features[0, 4, 1], rtol=1e-4, atol=1e-5)


def test_the_classifiers_dial_and_its_course() -> None:
    model, x = zoo.SMALL["fit"].make(latents=4), zoo.SMALL["fit"].picture()
    assert isinstance(model, FITClassifier)
    assert has_budget(model)
    assert model.budgets() == [0.25, 0.5, 0.75, 1.0]
    found, macs = [], []
    for budget in model.budgets():
        model.budget = budget
        with torch.no_grad():
            found.append(model(x))
        macs.append(cost(model, x, timed=False).macs)
    assert macs == sorted(macs)
    assert macs[0] < macs[-1]
    assert not torch.allclose(found[0], found[-1])
    curve = saccade.pareto(model, [(x, found[-1])], lambda out, want: -float((out - want).abs().max()))
    assert [point.budget for point in curve.points] == list(model.budgets())
    assert [point.macs for point in curve.points] == macs
    assert curve.points[-1].quality == 0
    assert model.no_weight_decay() == {"stages.0.x_table", "stages.0.latent_table"}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"depths": (2, 2)}, "local ones first and last"),
        ({"depths": ()}, "local ones first and last"),
        ({"depths": (1, 0, 1)}, "local ones first and last"),
        ({"widths": (16,)}, "two numbers"),
        ({"img_size": 72}, "do not divide"),
        ({"subimage": 12}, "do not divide"),
        ({"patch": 0}, "do not divide"),
        ({"heads": (3, 4)}, "3 heads do not divide"),
        ({"drop_path_rate": 1.0}, "drop_path"),
        ({"latents": 0}, "0 latents"),
    ],
)
def test_impossible_classifiers_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        zoo.SMALL["fit"].make(**options)


def test_layer_wise_rates_follow_the_blocks() -> None:
    from timm.models import group_parameters

    model = zoo.SMALL["fit"].make()
    groups = group_parameters(model, model.group_matcher())
    assert sorted(groups) == [0, 1, 2, 3, 4]  # tables and patches, three blocks, the head
    assert {"stages.0.x_table", "stem.proj.weight"} <= set(groups[0])
    assert "stages.0.l2x.1.mha.query.weight" in groups[2]
    assert "head.weight" in groups[4]
