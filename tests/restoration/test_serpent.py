"""Serpent: counts as defined, any size, VMamba's scan, an honest dial, bad files and pictures refused."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from saccade.budget import has_budget
from saccade.checkpoint import fit, load, save
from saccade.cost import cost, count_parameters
from saccade.errors import CheckpointError, InputError, SaccadeError, UsageError
from saccade.ops import selective_scan
from saccade.registry import create
from saccade.reproduce import serpent as claim
from saccade.restoration import serpent as module
from saccade.restoration.serpent import SS2D, VARIANTS, Serpent, SerpentBlock, from_state, pad_to_multiple


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter away from its start, decay rates and step sizes in their range."""
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=chance))
    return model


def small(scales: tuple[int, ...] = (1, 2), seed: int = 0) -> Serpent:
    return randomise(Serpent(4, (1, 1, 1, 1), 3, 1.5, scales), seed).eval()


def picture(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


# -- figures of the definition


@pytest.mark.parametrize(
    ("name", "parameters", "gmacs"),
    [("serpent_tiny", 1_159_299, 4.6), ("serpent_base", 13_315_299, 53.7), ("serpent_large", 35_876_995, 106.4)],
)
def test_parameters_and_macs_are_those_of_the_definition(name: str, parameters: int, gmacs: float) -> None:
    with torch.device("meta"):
        model = create(name, weights=None)
    assert isinstance(model, Serpent)
    assert count_parameters(model) == parameters
    if name == "serpent_tiny":
        counted = cost(model, torch.empty(1, 3, 256, 256, device="meta")).macs
        # executed: at the borders of strips of rows, the row beyond is projected twice
        assert counted == pytest.approx(model.macs_per_pixel((0, 1, 2)) * 256 * 256, rel=1.5e-2)
    assert round(model.macs_per_pixel((0, 1, 2)) * 256 * 256 / 1e9, 1) == gmacs


def test_the_twin_of_the_claim_has_the_parameters_that_the_card_counts() -> None:
    assert count_parameters(claim.twin()) == 1_099_875


def test_the_start_is_mambas() -> None:
    block = SS2D(32, 8, 2.0)
    torch.testing.assert_close(block.A_logs, torch.arange(1.0, 9).log().expand(4 * 64, 8))
    assert bool((block.Ds == 1).all())
    steps = F.softplus(block.dt_projs_bias.detach())
    assert 0.9e-3 < float(steps.min()) < 3e-3
    assert 0.05 < float(steps.max()) < 0.11
    assert float(block.dt_projs_weight.detach().abs().max()) <= 2**-0.5


# -- the scan


def plain_ss2d(block: SS2D, x: Tensor) -> Tensor:
    """As it is published: four sequences in memory, flipped, scanned step by step, flipped back, summed."""
    batch, height, width, _ = x.shape
    inside, gate = block.in_proj(x).chunk(2, -1)
    inside = F.silu(block.conv2d(inside.permute(0, 3, 1, 2)))  # (B, E, H, W)
    forwards = torch.stack((inside.flatten(2), inside.transpose(2, 3).flatten(2)), 1)
    xs = torch.cat((forwards, forwards.flip(-1)), 1)  # (B, 4, E, L)
    told = torch.einsum("bkel,kre->bkrl", xs, block.x_proj_weight)
    dt, B, C = told.split((block.rank, block.states, block.states), 2)
    delta = F.softplus(torch.einsum("bkrl,ker->bkel", dt, block.dt_projs_weight) + block.dt_projs_bias[..., None])
    A = -block.A_logs.exp().view(4, block.inner, block.states)
    h, ys = x.new_zeros(batch, 4, block.inner, block.states), []
    for t in range(height * width):
        decay = torch.exp(delta[..., t, None] * A)
        h = decay * h + (delta * xs)[..., t, None] * B[:, :, None, :, t]
        ys.append((h * C[:, :, None, :, t]).sum(-1))
    y = torch.stack(ys, -1) + block.Ds.view(4, -1, 1) * xs
    y = y[:, :2] + y[:, 2:].flip(-1)
    y = y[:, 0] + y[:, 1].unflatten(2, (width, height)).transpose(2, 3).flatten(2)
    y = block.out_norm(y.transpose(1, 2)).view(batch, height, width, -1)
    return block.out_proj(y * F.silu(gate))


@pytest.mark.parametrize("piece", [1 << 16, 7])
@pytest.mark.parametrize("size", [(5, 7), (1, 6), (1, 1)], ids=str)
def test_four_directions_without_copies_are_the_four_copied_ones(
    size: tuple[int, int], piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIECE", piece)
    block = randomise(SS2D(6, 4, 1.5)).double()
    x = picture(2, *size, 6).double().requires_grad_()
    weight = picture(2, *size, 6, seed=1).double()
    ours, truth = block(x), plain_ss2d(block, x)
    torch.testing.assert_close(ours, truth, rtol=0, atol=1e-12)
    leaves = [x, *block.parameters()]
    grads = [torch.autograd.grad((y * weight).sum(), leaves, retain_graph=True) for y in (ours, truth)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)
    with torch.no_grad():
        torch.testing.assert_close(block(x), truth, rtol=0, atol=1e-12)


def test_strips_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without gradients maps are worked on strip by strip; with them, whole."""
    from saccade.nn import restormer

    monkeypatch.setattr(restormer, "STRIP", 1)
    monkeypatch.setattr(restormer, "LEAST_ROWS", 3)
    model, x = small().double(), picture(2, 3, 40, 24).double()
    with torch.no_grad():
        found = model(x)
    torch.testing.assert_close(found, model(x).detach(), rtol=0, atol=1e-12)


def test_with_and_without_numba_the_network_and_its_gradients_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    model, x, found = small().train(), picture(1, 3, 32, 24), []
    for worth in (0, 1 << 60):
        monkeypatch.setattr(selective_scan, "WORTH", worth)
        y = model(x)
        with torch.no_grad():  # in strips and pieces
            torch.testing.assert_close(model(x), y.detach(), rtol=1e-5, atol=1e-5)
        found.append([y.detach(), *torch.autograd.grad(y.square().mean(), list(model.parameters()))])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * float(other.abs().max().clamp(min=1)))


def test_half_precision_networks_scan_in_float32() -> None:
    block = randomise(SS2D(8, 4, 1.0))
    x = picture(1, 6, 5, 8)
    half = block.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), block.float()(x), atol=0.05, rtol=0.05)


def test_every_output_depends_on_every_input() -> None:
    model = create("serpent_tiny", weights=None)
    nn.init.normal_(model.head.weight, 0, 0.1)
    x = picture(1, 3, 64, 64).requires_grad_()
    for row, column in ((0, 0), (63, 63)):
        (gradient,) = torch.autograd.grad(model(x)[..., row, column].sum(), x)
        assert float(gradient[0, :, 63 - row, 63 - column].abs().max()) > 0


# -- the network


@given(height=st.integers(1, 40), width=st.integers(1, 40))
@settings(max_examples=12, deadline=None)
def test_any_size_is_taken_and_an_untrained_network_changes_nothing(height: int, width: int) -> None:
    model = Serpent(2, (1, 1, 1, 1), 2, 1.0, (1, 2)).eval()
    x = picture(1, 3, height, width)
    assert torch.equal(model(x), x)


def test_5_by_7_pixels_are_padded_not_refused() -> None:
    model, x = small(), picture(2, 3, 5, 7)
    with torch.no_grad():
        assert model(x).shape == x.shape
        padded = pad_to_multiple(x, 16)
        assert padded.shape == (2, 3, 16, 16)
        torch.testing.assert_close(model(padded)[..., :5, :7], model(x))


def test_padding_mirrors_where_it_can_and_repeats_the_edge_where_not() -> None:
    x = torch.arange(6.0).view(1, 1, 1, 6)
    assert pad_to_multiple(x, 4)[0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5, 4, 3]
    assert pad_to_multiple(x, 16)[0, 0, 0, 6:].tolist() == [5.0] * 10
    assert pad_to_multiple(x, 2)[0, 0, :, 0].tolist() == [0, 0]
    assert pad_to_multiple(x[..., :4].expand(1, 1, 4, 4), 4).shape == (1, 1, 4, 4)


def test_gradients_reach_every_parameter() -> None:
    model = small().train()
    model(picture(1, 3, 32, 17)).square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) and bool(p.grad.any()) for p in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("worth", [0, 1 << 60], ids=["numba", "chunked"])
def test_the_compiled_and_the_exported_network_are_the_same(worth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selective_scan, "WORTH", worth)
    block, x = randomise(SerpentBlock(4, 3, 1.0, (1, 2))), picture(1, 8, 6, 4)
    compiled = torch.compile(block, backend="aot_eager")
    x.requires_grad_()
    ours, theirs = (torch.autograd.grad(f(x).square().sum(), x)[0] for f in (block, compiled))
    torch.testing.assert_close(ours, theirs)
    model = small()
    exported = torch.export.export(model, (picture(1, 3, 16, 16),)).module()
    x = picture(1, 3, 16, 16, seed=1)
    torch.testing.assert_close(exported(x), model(x))


# -- the dial


def test_the_dial_takes_the_dearest_set_of_scales_within_the_budget() -> None:
    model = create("serpent_tiny", weights=None)
    assert has_budget(model)
    assert model.budget == 1
    settings_ = model.budgets()
    assert settings_ == sorted(settings_)
    assert settings_[-1] == 1
    x = torch.empty(1, 3, 64, 64, device="meta")
    full = cost(model, x).macs
    sets = []
    for budget in settings_:
        model.budget = budget
        sets.append(model.enc[0][0].active)
        assert cost(model, x).macs == pytest.approx(budget * full, rel=5e-3)
    assert sorted(sets) == [(0,), (0, 1), (0, 1, 2), (0, 2)]
    model.budget = 0.01
    assert cost(model, x).macs == pytest.approx(settings_[0] * full, rel=5e-3)
    model.budget = 0.99
    assert {b.active for b in model.modules() if isinstance(b, SerpentBlock)} == {sets[-2]}
    for wrong in (0, 1.1, math.nan, "half"):
        with pytest.raises(UsageError):
            model.budget = wrong


def test_a_scale_that_is_off_is_not_summed() -> None:
    model, x = small(), picture(1, 3, 16, 16)
    with torch.no_grad():
        whole = model(x)
        for block in (m for m in model.modules() if isinstance(m, SerpentBlock)):
            block.expand[1][1].weight.zero_()
            block.expand[1][1].bias.zero_()
        silent = model(x)
        model.budget = model.budgets()[0]
        torch.testing.assert_close(model(x), silent)
        assert not torch.allclose(whole, silent)


# -- refusals


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"width": 0}, "needs channels"),
        ({"blocks": (1, 1, 1)}, "4 depths"),
        ({"blocks": (1, 1, 0, 1)}, "4 depths"),
        ({"scales": (2, 4)}, "ascend from 1"),
        ({"scales": (1, 4, 2)}, "ascend from 1"),
        ({"scales": ()}, "ascend from 1"),
        ({"states": 0}, "needs channels and states"),
        ({"ratio": 0.0}, "needs channels and states"),
    ],
)
def test_what_makes_no_network_is_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        create("serpent", weights=None, **options)


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (torch.zeros(1, 1, 8, 8), "1 channels"),
        (torch.zeros(3, 8, 8), "float pictures"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "float pictures"),
        (torch.full((1, 3, 8, 8), 200.0), "divide by 255"),
        (torch.full((1, 3, 8, 8), torch.nan), "lie in"),
        (torch.zeros(0, 3, 8, 8), "empty"),
        (torch.zeros(1, 3, 0, 8), "empty"),
    ],
)
def test_what_is_no_picture_is_refused(x: Tensor, said: str) -> None:
    with pytest.raises(InputError, match=said):
        small()(x)


def test_an_empty_batch_in_training_gives_an_empty_one() -> None:
    assert small().train()(torch.zeros(0, 3, 16, 16)).shape == (0, 3, 16, 16)


# -- files


@pytest.mark.parametrize("name", ["serpent_tiny", "serpent"])
def test_our_files_and_bare_state_dicts_load_by_themselves(name: str, tmp_path: Path) -> None:
    options = {} if name == "serpent_tiny" else {"width": 6, "states": 3, "ratio": 1.5, "scales": (1, 3)}
    model = randomise(create(name, weights=None, **options)).eval()
    save(model, tmp_path / "own.safetensors")
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    x = picture(1, 3, 9, 8)
    with torch.no_grad():
        wanted = model(x)
        for file in ("own.safetensors", "bare.pth"):
            again = load(tmp_path / file)
            assert again.saccade_name == name
            torch.testing.assert_close(again(x), wanted, rtol=0, atol=0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -200.0, 100.0])
def test_unstable_decay_rates_are_refused_on_load(value: float, tmp_path: Path) -> None:
    state = small().state_dict()
    state["enc.1.0.ssm.1.A_logs"][3, 1] = value
    torch.save(state, tmp_path / "unstable.pth")
    with pytest.raises(CheckpointError, match="not negative and finite"):
        load(tmp_path / "unstable.pth")


KEYS = sorted(small().state_dict())
DAMAGE = {
    "flat": lambda v: v.flatten(),
    "empty": lambda v: v[:0],
    "more": lambda v: torch.cat((v, v)),
    "int": lambda v: v.int(),
    "scalar": lambda v: v.sum(),
}


@given(
    dropped=st.sets(st.sampled_from(KEYS), max_size=3),
    bent=st.dictionaries(
        st.sampled_from(KEYS), st.sampled_from(["flat", "empty", "more", "int", "scalar"]), max_size=3
    ),
)
@settings(max_examples=15, deadline=None)
def test_damaged_state_dicts_load_or_are_refused_in_words(dropped: set[str], bent: dict[str, str]) -> None:
    from saccade.checkpoint import _recipe
    from saccade.registry import rebuild

    state = {key: value for key, value in small().state_dict().items() if key not in dropped}
    for key in bent.keys() & state.keys():
        state[key] = DAMAGE[bent[key]](state[key])
    try:
        recipe = _recipe(state, "damaged.pth")
        fit(rebuild(recipe.model, recipe.options, "damaged.pth"), recipe.state, "damaged.pth")
    except SaccadeError:
        return
    whole = small().state_dict()
    assert all(state[key].shape == value.shape and state[key].is_floating_point() for key, value in whole.items())


def test_variants_are_told_from_shapes_alone() -> None:
    for name in VARIANTS:
        with torch.device("meta"):
            state = create(name, weights=None).state_dict()
        recipe = from_state(state)
        assert recipe is not None
        assert (recipe.model, recipe.options) == (name, {})


@pytest.mark.parametrize(("width", "ratio"), [(11, 1.37), (11, 1.4), (13, 1.2), (10, 0.77)])
def test_a_bare_state_dict_tells_its_inner_widths_whatever_their_ratio(width: int, ratio: float) -> None:
    made = Serpent(width, (1, 1, 1, 1), 2, ratio, (1, 2))
    recipe = from_state(made.state_dict())
    assert recipe is not None
    again = create(recipe.model, weights=None, **recipe.options)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in made.state_dict().items()}
