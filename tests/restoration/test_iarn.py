import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from saccade.checkpoint import load, save
from saccade.errors import CheckpointError, InputError, UsageError
from saccade.ops.resize import resize
from saccade.registry import create
from saccade.restoration.iarn import IARN, IRN, Coupling, DenseBlock, Haar, Subnet, from_official
from saccade.restoration.iarn.irn import round_straight
from saccade.restoration.iarn.network import LINEAR, from_opponent, mirrored, to_opponent
from saccade.restoration.iarn.phases import gather, large_range, maps, scatter, window

TINY = {"opening": (4, 1), "hider": (6, 1), "teller": (6, 1)}


def randomised(model: nn.Module, seed: int = 0, size: float = 0.3) -> nn.Module:
    """Every parameter drawn: a fresh network is an identity in many places, and hides wrong code."""
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.copy_(size * torch.randn(p.shape, generator=chance) / max(1, p[0].numel()) ** 0.5)
    return model.eval()


def picture(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def tiny(seed: int = 0, **options: object) -> IARN:
    model = randomised(create("iarn", weights=None, **{**TINY, **options}), seed)
    assert isinstance(model, IARN)
    return model


# --- IRN -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "count", "haar"), [("irn_x2", 1_667_952, 48), ("irn_x4", 4_355_136, 240)])
def test_published_parameter_counts_are_met(name: str, count: int, haar: int) -> None:
    model = create(name, weights=None)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count
    assert sum(p.numel() for n, p in model.named_parameters() if n.endswith("haar_weights")) == haar


def test_haar_is_four_sums_of_four_pixels_and_is_undone() -> None:
    x = picture(2, 3, 6, 4).double()
    haar = Haar(3).double()
    y = haar(x)
    a, b, c, d = x[..., ::2, ::2], x[..., ::2, 1::2], x[..., 1::2, ::2], x[..., 1::2, 1::2]
    wanted = torch.cat([a + b + c + d, a - b + c - d, a + b - c - d, a - b - c + d], 1) / 4
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(haar.inverse(y), x)


@pytest.mark.parametrize("blocks", [(2,), (1, 2)])
def test_irn_is_inverted_exactly_when_nothing_is_dropped(blocks: tuple[int, ...]) -> None:
    model = randomised(IRN(blocks, growth=4), size=1.0).double()
    x = picture(2, 3, 8, 12).double()
    torch.testing.assert_close(model.inverse(model(x)), x, atol=1e-9, rtol=0)


def test_log_determinant_is_that_of_the_jacobian() -> None:
    model = randomised(IRN((1,), growth=2), size=1.0).double()
    x = picture(1, 3, 2, 4).double()
    jacobian = torch.autograd.functional.jacobian(lambda v: model(v), x).reshape(24, 24)
    # the official code counts a Haar step as ln(1/16) per four samples; its matrix (rows of length 1/2) has (1/2)^4 too
    torch.testing.assert_close(model.with_logdet(x)[1], torch.linalg.slogdet(jacobian).logabsdet)


def test_the_exponent_of_a_coupling_stays_below_one() -> None:
    block = randomised(Coupling(12, growth=4), size=30.0)
    s = block.scale(picture(1, 3, 5, 5) * 100).detach()
    assert float(s.abs().max()) <= 1
    assert isinstance(block, Coupling)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 9, 5, 7), (2, 3, 8, 8), (1, 1, 1, 1)])
def test_dense_block_equals_the_published_steps_and_so_do_its_gradients(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    block = randomised(DenseBlock(shape[1], 5, growth=4), size=1.0).to(dtype)
    x = picture(*shape).to(dtype).requires_grad_()
    fast, slow = block(x), block.forward_naive(x)
    torch.testing.assert_close(fast, slow, atol=1e-6, rtol=1e-5)
    for a, b in zip(
        torch.autograd.grad(fast.square().sum(), [x, *block.parameters()]),
        torch.autograd.grad(slow.square().sum(), [x, *block.parameters()]),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("blocks", [(8,), (8, 8)])
def test_published_files_are_recognised(blocks: tuple[int, ...], tmp_path) -> None:
    model = IRN(blocks)
    torch.save(model.state_dict(), tmp_path / "IRN.pth")
    found = load(tmp_path / "IRN.pth")
    assert isinstance(found, IRN)
    assert found.blocks == blocks
    assert found.saccade_name == f"irn_x{2 ** len(blocks)}"
    assert all(torch.equal(v, found.state_dict()[k]) for k, v in model.state_dict().items())


def test_a_file_with_a_step_missing_is_refused() -> None:
    state = {k: v for k, v in IRN((2, 1), 4).state_dict().items() if not k.startswith("operations.1.")}
    with pytest.raises(CheckpointError, match="without gaps"):
        from_official(state)
    assert from_official({"operations.0.haar_weights": torch.zeros(1), "body.0.F.conv5.weight": torch.zeros(1)}) is None
    lacking = {k: v for k, v in IRN((1,), 4).state_dict().items() if not k.endswith("F.conv1.bias")}
    with pytest.raises(CheckpointError, match=r"lacks operations\.1\.F\.conv1\.bias"):
        from_official(lacking)


def test_irn_refuses_sizes_that_it_cannot_halve_and_names_the_way_out() -> None:
    with pytest.raises(InputError, match=r"multiples of 4.*iarn"):
        IRN((1, 1), 2)(picture(1, 3, 8, 10))
    with pytest.raises(InputError, match="divide by 255"):
        IRN((1,), 2)(picture(1, 3, 8, 8) * 255)
    with pytest.raises(UsageError):
        IRN((), 2)
    with pytest.raises(InputError, match="latent"):
        IRN((1,), 2).enlarge(picture(1, 3, 4, 4), torch.zeros(1, 3, 4, 4))


def test_rounding_passes_gradients_inside_the_range_only() -> None:
    x = torch.tensor([-0.2, 0.1, 0.5, 1.3], requires_grad=True)
    y = round_straight(x)
    torch.testing.assert_close(y * 255, (y * 255).round())
    y.sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 0]


def test_irn_trains_and_its_latent_of_zero_is_deterministic() -> None:
    model = create("irn_x2", weights=None, blocks=[1], growth=4)
    loss = model.training_loss(picture(1, 3, 8, 8), picture(1, 3, 8, 8))
    loss.backward()
    assert model.operations[1].G.conv5.weight.grad.abs().sum() > 0
    assert torch.equal(model.enlarge(picture(1, 3, 4, 4)), model.enlarge(picture(1, 3, 4, 4)))


# --- the matrices ----------------------------------------------------------------------------------------------------


@given(n=st.integers(1, 90), m=st.integers(1, 90))
@settings(max_examples=60, deadline=None)
def test_every_large_sample_lies_in_the_small_pixel_of_the_formula(n: int, m: int) -> None:
    n, m = max(n, m), min(n, m)
    for q in range(m):
        begin, end = large_range(n, m, (q, q + 1))
        assert list(range(begin, end)) == [i for i in range(n) if math.floor((2 * i + 1) * m / (2 * n)) == q]


@pytest.mark.parametrize(("n", "m"), [(20, 10), (31, 17), (40, 10), (9, 9), (50, 47)])
def test_down_and_up_are_the_librarys_bicubic(n: int, m: int) -> None:
    made = maps(n, m, 3, (0, m), (0, n))
    x, y = picture(1, n, 1), picture(1, m, 1)
    torch.testing.assert_close(made.down.rows(x), resize(x, size=(m, 1)), atol=1e-6, rtol=0)
    torch.testing.assert_close(made.up.rows(y), resize(y, size=(n, 1)), atol=1e-6, rtol=0)


def test_at_factor_two_analysis_is_haar_and_synthesis_its_inverse() -> None:
    made = maps(8, 4, 2, (0, 4), (0, 8))
    x = picture(8, 1)
    parts = made.analysis.rows(x)
    pairs = x.view(4, 2)
    torch.testing.assert_close(parts[:4, 0], pairs.mean(1))
    torch.testing.assert_close(parts[4:, 0], (pairs[:, 0] - pairs[:, 1]) / 2)
    torch.testing.assert_close(made.synthesis.rows(parts), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "m"), [(40, 17), (300, 150), (331, 90), (200, 199)])
def test_banded_products_equal_dense_ones_and_so_do_their_gradients(n: int, m: int, dtype: torch.dtype) -> None:
    made = maps(n, m, 3, (0, m), (0, n))
    for name in ("down", "up", "analysis", "synthesis"):
        banded = getattr(made, name)
        x = picture(2, banded.given * banded.inputs, 5).to(dtype).requires_grad_()
        matrix = banded.dense().to(dtype)
        seed = picture(2, len(matrix), 5, seed=1).to(dtype)
        for found, wanted in (
            (banded.rows(x), matrix @ x),
            (banded.columns(x.transpose(1, 2)).transpose(1, 2), matrix @ x),
        ):
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
            grads = [torch.autograd.grad(y, x, seed, retain_graph=True)[0] for y in (found, wanted)]
            torch.testing.assert_close(*grads, atol=1e-5, rtol=1e-5)


def test_the_linear_path_is_one_kernel_at_each_ratio() -> None:
    net = tiny().blocks[0].F
    x, ratios = picture(2, 27, 6, 7), (0.7, 0.3)
    wanted = F.conv2d(mirrored(Subnet.linear_inputs(x, ratios)), LINEAR * net.linear.weight)
    torch.testing.assert_close(F.conv2d(mirrored(x), net.linear_kernel(ratios)), wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("n", "m", "k"), [(12, 3, 4), (31, 17, 3), (7, 7, 2)])
def test_phases_come_from_whole_sizes_by_the_cards_formula(n: int, m: int, k: int) -> None:
    r, i = m / n, np.arange(n)
    p = (i + 0.5) * r - np.floor((i + 0.5) * r) - 0.5
    made = maps(n, m, k, (0, m), (0, n)).synthesis.dense().numpy().reshape(n, k, m).sum(2)
    wave = [np.sqrt(2 if a else 1) * np.cos(a * np.pi * (p + 0.5)) for a in range(k)]
    np.testing.assert_allclose(made, np.stack(wave, 1), atol=1e-6)


def test_a_windows_matrices_are_pieces_of_the_whole_ones() -> None:
    n, m, k = 61, 23, 3
    whole = maps(n, m, k, (0, m), (0, n))
    small, large = (5, 14), large_range(n, m, (5, 14))
    part = maps(n, m, k, small, large)
    rows, columns = slice(*small), slice(*large)
    torch.testing.assert_close(part.down.dense(), whole.down.dense()[rows, columns])
    torch.testing.assert_close(part.up.dense(), whole.up.dense()[columns, rows])
    torch.testing.assert_close(
        part.synthesis.dense().unflatten(1, (k, -1)), whole.synthesis.dense().unflatten(1, (k, -1))[columns, :, rows]
    )
    torch.testing.assert_close(
        part.analysis.dense().unflatten(0, (k, -1)), whole.analysis.dense().unflatten(0, (k, -1))[:, rows, columns]
    )


def test_scatter_undoes_gather() -> None:
    x = picture(2, 3, 6, 15)
    assert gather(x, 3).shape == (2, 27, 2, 5)
    assert torch.equal(scatter(gather(x, 3), 3), x)


def test_opponent_colours_are_orthonormal_and_grey_is_their_first() -> None:
    x = picture(1, 3, 4, 5)
    torch.testing.assert_close(from_opponent(to_opponent(x)), x)
    grey = to_opponent(x[:, :1].expand(-1, 3, -1, -1))
    assert float(grey[:, 1:].abs().max()) < 1e-6


# --- IARN ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize(
    ("large", "small"), [((24, 20), (12, 10)), ((37, 31), (17, 19)), ((40, 23), (10, 22)), ((9, 9), (9, 9))]
)
def test_split_is_undone_by_merge_exactly(large: tuple[int, int], small: tuple[int, int], blocks: int) -> None:
    model = tiny(blocks=blocks)
    x = picture(2, 3, *large)
    y, z = model.split(x, small)
    assert y.shape[-2:] == small
    assert z.shape == x.shape
    assert float((model.merge(y, z) - x).abs().max()) < 1e-5
    assert float((y - resize(x, size=small)).abs().max()) > 1e-3, "the network changes something"


def test_enlarging_is_merging_with_nothing_left() -> None:
    model = tiny()
    y = model.shrink(picture(1, 3, 30, 26), (13, 15))
    torch.testing.assert_close(y * 255, (y * 255).round(), atol=1e-4, rtol=0)
    torch.testing.assert_close(model.enlarge(y, (30, 26)), model.merge(y, torch.zeros(1, 3, 30, 26)))


def test_an_untrained_network_is_bicubic_in_both_directions() -> None:
    model = create("iarn", weights=None)
    x = picture(1, 3, 30, 40)
    small = resize(x, size=(19, 16)).clamp(0, 1).mul(255).round().div(255)
    torch.testing.assert_close(model.shrink(x, (19, 16)), small, atol=1e-6, rtol=0)
    torch.testing.assert_close(model.enlarge(small, (30, 40)), resize(small, size=(30, 40)), atol=1e-5, rtol=0)


def test_a_part_with_its_halo_equals_the_same_part_of_the_whole() -> None:
    model = tiny()
    large, small = (131, 150), (82, 61)
    x = picture(1, 3, *large)
    whole = model.shrink(x, small)
    rows, columns, halo = (30, 45), (0, 20), model.halo
    where = window(large, small, (30 - halo, 45 + halo), (0, 20 + halo))
    (a, b), (c, d) = where.large
    part = model.shrink(x[..., a:b, c:d], where=where)[..., halo : halo + 15, :20]
    assert float((part - whole[..., slice(*rows), slice(*columns)]).abs().max()) < 1.01 / 255
    assert float((part - whole[..., slice(*rows), slice(*columns)]).abs().mean()) < 1e-5
    back = model.enlarge(whole, large)
    (e, f), (g, h) = where.small
    own = window(large, small, rows, columns).large
    made = model.enlarge(whole[..., e:f, g:h], where=where)[..., own[0][0] - a : own[0][1] - a, : own[1][1]]
    torch.testing.assert_close(made, back[..., slice(*own[0]), slice(*own[1])], atol=1e-5, rtol=0)


def test_gradients_reach_every_parameter() -> None:
    model = tiny(blocks=2).train()
    x = picture(2, 3, 25, 22)
    model.training_loss(x, resize(x, size=(11, 14))).backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert not still


def test_the_cycle_loss_is_what_a_second_round_moves_and_training_lowers_it() -> None:
    model, x, size = tiny(), picture(2, 3, 24, 26), (10, 12)
    with torch.no_grad():
        once = model.enlarge(model.shrink(x, size), (24, 26)).clamp(0, 1).mul(255).round() / 255
        moved = model.enlarge(model.shrink(once, size), (24, 26)) - once
    losses = []
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(20):
        losses.append(model.cycle_loss(x, size))
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    assert losses[0].item() == pytest.approx(moved.abs().mean().item(), rel=1e-6)
    assert losses[-1].item() < 0.7 * losses[0].item()


def test_the_guides_weight_follows_the_small_pictures_distance() -> None:
    x = picture(1, 3, 24, 24)
    far, near = tiny(), create("iarn", weights=None, **TINY).train()
    for model, rises in ((far, True), (near, False)):
        before = model.balance.clone()
        model.training_loss(x, resize(x, size=(12, 12)))
        changed = (model.balance != before).nonzero().flatten().tolist()
        assert changed == [2]  # ln 2 / ln 4 of four ranges
        assert bool((model.balance > before).any()) is rises


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda m: m.shrink(picture(1, 3, 8, 8), (9, 4)), "larger"),
        (lambda m: m.enlarge(picture(1, 3, 8, 8), (7, 20)), "larger"),
        (lambda m: m.shrink(picture(1, 1, 8, 8), (4, 4)), "not 1 channels"),
        (lambda m: m.shrink(picture(1, 3, 8, 8) * 255, (4, 4)), "divide by 255"),
        (lambda m: m.shrink(picture(1, 3, 8, 8), (0, 4)), "at least one pixel"),
        (lambda m: m.merge(picture(1, 3, 4, 4), torch.zeros(2, 3, 8, 8)), "batch of y"),
        (lambda m: m.shrink((picture(1, 3, 8, 8) * 255).byte(), (4, 4)), "uint8"),
    ],
)
def test_what_cannot_be_rescaled_is_refused(call, what: str) -> None:
    with pytest.raises(InputError, match=what):
        call(tiny())


def test_options_that_make_no_network_are_refused() -> None:
    for options in ({"blocks": 0}, {"functions": 0}, {"teller": (0, 1)}, {"hider": (4, -1)}, {"opening": (4,)}):
        with pytest.raises(UsageError):
            create("iarn", weights=None, **options)
    with pytest.raises(UsageError, match="at least 1"):
        tiny()(picture(1, 3, 8, 8), 0.5)
    with pytest.raises(UsageError, match="size"):
        tiny().shrink(picture(1, 3, 8, 8))


def test_weights_survive_a_file(tmp_path) -> None:
    model = tiny()
    save(model, tmp_path / "w.safetensors")
    again = load(tmp_path / "w.safetensors")
    x = picture(1, 3, 21, 33)
    assert torch.equal(model(x, (1.7, 2.3)), again(x, (1.7, 2.3)))


def test_computing_in_double_agrees_with_single() -> None:
    x = picture(1, 3, 21, 33)
    single, double = tiny().split(x, (11, 12)), tiny().double().split(x.double(), (11, 12))
    for a, b in zip(single, double, strict=True):
        torch.testing.assert_close(a.double(), b, atol=1e-5, rtol=0)


def test_matrices_made_for_inference_serve_training_too() -> None:
    model, x = tiny(), picture(1, 3, 26, 26)
    with torch.inference_mode():
        model(x, 1.3)
    model.training_loss(x, resize(x, size=(20, 20))).backward()
    assert model.P.first.weight.grad is not None


def test_irn_exports_with_free_height_and_width() -> None:
    model = create("irn_x2", weights=None, blocks=(1,), growth=4)
    sizes = {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    with torch.no_grad():
        exported = torch.export.export(model, (picture(1, 3, 12, 16),), dynamic_shapes=(sizes,)).module()
        for size in ((12, 16), (20, 10)):
            torch.testing.assert_close(exported(picture(1, 3, *size)), model(picture(1, 3, *size)))


def test_iarn_exports_at_a_fixed_size_and_works_as_before_afterwards() -> None:
    model, x = tiny(), picture(1, 3, 20, 27)  # a size that nobody asked for before: its matrices are first made there
    with torch.no_grad():
        exported = torch.export.export(model, (picture(1, 3, 20, 27) / 2,)).module()
        torch.testing.assert_close(exported(x), model(x))


@pytest.mark.slow
def test_a_compiled_round_trip_is_the_round_trip_and_so_are_its_gradients() -> None:
    model, x = tiny().train(), picture(1, 3, 20, 26).requires_grad_()
    compiled = torch.compile(model, backend="aot_eager")
    ours, theirs = (torch.autograd.grad(f(x).square().sum(), [x, *model.P.parameters()]) for f in (model, compiled))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
