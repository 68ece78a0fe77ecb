"""ACFormer and its optics: published counts, fast forms equal plain ones, the camera, the bank, bad input."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from saccade.checkpoint import load, save
from saccade.errors import CheckpointError, InputError, UsageError
from saccade.registry import create
from saccade.restoration.metalens_former import (
    FILTERS,
    MAFG,
    STAF,
    ACFormer,
    OverlappingAttention,
    add_noise,
    assemble,
    blur,
    check_psf,
    choose_level,
    from_official,
    lens_psfs,
    naive_bank,
    noise_power,
    psf2otf,
    surroundings,
    wiener_bank,
    wiener_field,
)
from saccade.restoration.metalens_former.network import continued
from saccade.restoration.metalens_former.optics import grid_of, place_psf


def randomised(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Every parameter away from its start, which makes wrong code pass."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            fan = p[0].numel() if p.dim() > 1 else 1
            p.copy_(torch.randn(p.shape, generator=generator) / fan**0.5)
    return model


def picture(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


# -- the network


def test_parameters_and_macs_are_the_published_ones() -> None:
    """29,122,907, and 189.8 G at 256 x 256 with 13 filters, products of attention not counted."""
    with torch.device("meta"):
        model = create("acformer", weights=None)
        x = torch.empty(1, 13, 3, 256, 256)
    assert sum(p.numel() for p in model.parameters()) == 29_122_907
    with FlopCounterMode(display=False) as counter:
        model(x)
    counts = counter.get_flop_counts()["Global"]
    macs = sum(n for op, n in counts.items() if "bmm" not in str(op)) / 2
    assert abs(macs / 1e9 - 189.8) < 0.1


@pytest.mark.parametrize(("filters", "count"), [(5, 316_398), (1, 315_534)])
def test_the_tiny_network_has_the_counts_of_the_small_test(filters: int, count: int) -> None:
    model = create("acformer_tiny", weights=None, filters=filters)
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("per_pixel", [False, True])
@pytest.mark.parametrize("query_size", [0, 3, 7])
@pytest.mark.parametrize("size", [(8, 8), (40, 24), (8, 72)])
def test_a_block_in_strips_is_the_block(bias: bool, per_pixel: bool, query_size: int, size: tuple[int, int]) -> None:
    block = randomised(STAF(8, 2, 2, 4, 4, 2.66, bias, per_pixel, query_size)).double()
    x = picture(2, 8, *size).double()
    want = block(x)
    with torch.no_grad():
        torch.testing.assert_close(block(x), want.detach(), rtol=0, atol=1e-10)


def test_strips_that_are_many_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the sizes of tests everything fits one strip: with tiny strips every seam is crossed."""
    from saccade.nn import restormer
    from saccade.restoration.metalens_former import network

    monkeypatch.setattr(restormer, "STRIP", 1)
    monkeypatch.setattr(restormer, "LEAST_ROWS", 3)
    monkeypatch.setattr(network, "WINDOWS", 1)
    model = randomised(create("acformer_tiny", weights=None, filters=3)).double()
    x = picture(2, 3, 3, 30, 60).double()
    want = model(x)
    with torch.no_grad():
        torch.testing.assert_close(model(x), want.detach(), rtol=0, atol=1e-8 * float(want.detach().abs().max()))


def test_overlapping_attention_is_its_formula() -> None:
    """Query by query, key by key, as the closed form has it: zeros outside take part, the offset stays."""
    attention = randomised(OverlappingAttention(6, 2, 4, 4)).double()
    x = picture(1, 6, 8, 12).double()
    q, k, v = F.conv2d(x, attention.qkv.weight).unflatten(1, (3, 2, 4))[0]  # each (heads, dim, h, w)
    k, v = (F.pad(t, (1, 1, 1, 1)) for t in (k, v))
    made = torch.zeros(2, 4, 8, 12, dtype=torch.float64)
    for head in range(2):
        for top in range(0, 8, 4):
            for left in range(0, 12, 4):
                for y in range(4):
                    for z in range(4):
                        query = q[head, :, top + y, left + z] / 2
                        logits, values = [], []
                        for i in range(6):
                            for j in range(6):
                                places = attention.rel_height[i - y + 5] + attention.rel_width[j - z + 5]
                                logits.append(query @ (k[head, :, top + i, left + j] + places))
                                values.append(v[head, :, top + i, left + j])
                        weights = torch.stack(logits).softmax(0)
                        made[head, :, top + y, left + z] = weights @ torch.stack(values)
    want = F.conv2d(made.flatten(0, 1)[None], attention.project_out.weight)
    torch.testing.assert_close(attention(x), want, rtol=0, atol=1e-10)


def test_every_filtered_picture_is_read_under_the_middle_ones_queries() -> None:
    """Changing the middle picture changes what comes of all; changing another changes that one alone."""
    guide = randomised(MAFG(8, 2, 4)).double()
    stack = picture(1, 3, 3, 8, 8).double()
    base = guide(stack).unflatten(1, (3, 3))
    for changed in range(3):
        other = stack.clone()
        other[:, changed] = 1 - other[:, changed]
        moved = [(guide(other).unflatten(1, (3, 3)) - base)[:, m].abs().max() > 1e-9 for m in range(3)]
        assert moved == [changed in (1, m) for m in range(3)]


@given(height=st.integers(1, 70), width=st.integers(1, 70))
@settings(max_examples=8, deadline=None)
def test_any_size_is_taken(height: int, width: int) -> None:
    model = create("acformer_tiny", weights=None, filters=1)
    with torch.no_grad():
        assert model(picture(1, 1, 3, height, width)).shape == (1, 3, height, width)


def test_a_picture_of_full_windows_is_not_padded_and_others_are_reflected() -> None:
    model = randomised(create("acformer_tiny", weights=None, filters=2)).double()
    x = picture(1, 2, 3, 30, 32).double()
    whole = F.pad(x.flatten(1, 2), (0, 0, 0, 2), mode="reflect").unflatten(1, (2, 3))
    torch.testing.assert_close(model(x), model(whole)[..., :30, :])
    assert continued(x, 0, 0) is x


@pytest.mark.parametrize(("value", "says"), [(math.nan, "nan"), (200.0, "divide by 255")])
def test_a_stack_of_other_values_is_refused(value: float, says: str) -> None:
    model = create("acformer_tiny", weights=None, filters=1)
    with pytest.raises(InputError, match=says):
        model(torch.full((1, 1, 3, 8, 8), value))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions_give_the_same_up_to_their_rounding(dtype: torch.dtype) -> None:
    model = randomised(create("acformer_tiny", weights=None, filters=3))
    x = picture(1, 3, 3, 20, 36)
    with torch.no_grad():
        want, found = model(x), model.to(dtype)(x.to(dtype))
    assert found.dtype == dtype
    limit = 1e-5 if dtype == torch.float64 else 0.05
    assert float((found.float() - want).square().mean().sqrt() / want.std()) < limit


@pytest.mark.slow
def test_it_exports_at_a_fixed_size_and_its_compiled_blocks_are_the_blocks() -> None:
    model, x = randomised(create("acformer_tiny", weights=None, filters=1)).double(), picture(1, 1, 3, 32, 32).double()
    with torch.no_grad():
        exported = torch.export.export(model, (picture(1, 1, 3, 32, 32, seed=1).double(),)).module()
        torch.testing.assert_close(exported(x), model(x), rtol=0, atol=1e-8)
    block, y = randomised(STAF(8, 2, 2, 4, 4, query_size=3)).double(), picture(1, 8, 8, 12).double().requires_grad_()
    compiled = torch.compile(block, backend="aot_eager")
    ours, theirs = (torch.autograd.grad(f(y).square().sum(), [y, *block.parameters()]) for f in (block, compiled))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_the_residual_is_the_middle_picture() -> None:
    model = create("acformer_tiny", weights=None, filters=5)
    torch.nn.init.zeros_(model.output.weight)
    x = picture(1, 5, 3, 32, 32)
    torch.testing.assert_close(model(x), x[:, 2])


def test_both_layouts_of_the_stack_are_taken_and_others_refused() -> None:
    model = randomised(create("acformer_tiny", weights=None, filters=2)).double()
    x = picture(1, 2, 3, 32, 32).double()
    torch.testing.assert_close(model(x), model(x.flatten(1, 2)))
    for wrong in (x[:, :1], x[0], x[:, :, :2], x[..., :0], (x * 255).byte()):
        with pytest.raises(InputError, match="takes"):
            model(wrong)


def test_halves_of_attention_move_the_picture_a_little() -> None:
    torch.manual_seed(0)
    model = create("acformer_tiny", weights=None, filters=2)
    official = create("acformer_tiny", weights=None, filters=2, compat="official")
    official.load_state_dict(model.state_dict())
    x = picture(1, 2, 3, 32, 32)
    with torch.no_grad():
        moved = float((model(x) - official(x)).abs().max())
    assert 0 < moved < 3e-3


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"filters": 0}, "at least one filtered picture"),
        ({"blocks": (1, 1, 1)}, "four levels"),
        ({"query_sizes": (3, 3)}, "five query sizes"),
        ({"channel_heads": (5, 1, 1, 1)}, "do not divide"),
        ({"window": 6}, "multiples of 4"),
        ({"query_sizes": (4, 3, 3, 3, 3)}, "odd"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        create("acformer", weights=None, **options)


# -- published files


def official(model: ACFormer) -> dict[str, Tensor]:
    """A state under the published names."""
    made = {}
    for key, value in model.state_dict().items():
        for ours in ("norm1", "norm2", "norm3", "norm4"):
            key = key.replace(f".{ours}.", f".{ours}.body.")
        key = key.replace(".fusion.", ".fusion.fusion.").replace(".rel_", ".rel_pos_emb.rel_")
        made[key.replace("patch_embed.", "patch_embed.proj.")] = value
    return made


def small(**options: object) -> ACFormer:
    told = {"filters": 3, "dim": 8, "blocks": (1, 2, 1, 1), "refinement": 2, "embed": 8, "head_dim": 4, "window": 4}
    return randomised(create("acformer", weights=None, **{**told, **options}))


@pytest.mark.parametrize("options", [{}, {"bias": True}, {"expansion": 2.0, "embed_window": 4}])
def test_a_published_file_is_recognised_alone(options: dict, tmp_path: Path) -> None:
    model = small(**options)
    torch.save({"params": official(model)}, tmp_path / "net_g_latest.pth")
    found = load(tmp_path / "net_g_latest.pth")
    x = picture(1, 3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(found(x), model(x))
    save(found, tmp_path / "own.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(load(tmp_path / "own.safetensors")(x), model(x))


@pytest.mark.parametrize(
    ("lose", "says"),
    [
        ("decoder_level2.0", "missing decoder_level2"),
        ("refinement.0", "lacks block 0 of refinement"),
        ("encoder_level2.0", "encoder_level2.0.spatial_ffn.project_out.weight"),
        ("ca.proj_high.weight", "ca.proj_high.weight"),
        ("output.weight", "missing output.weight"),
    ],
)
def test_an_incomplete_published_file_names_what_it_lacks(lose: str, says: str, tmp_path: Path) -> None:
    state = {k: v for k, v in official(small()).items() if not k.startswith(lose)}
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match=says):
        load(tmp_path / "net.pth")


def test_shapes_that_contradict_each_other_are_refused() -> None:
    state = official(small())
    with pytest.raises(CheckpointError, match="no square"):
        from_official({**state, "ca.pos_emb_q": torch.zeros(17, 8)})
    with pytest.raises(CheckpointError, match="no one expansion"):
        from_official({**state, "latent.0.spatial_ffn.project_out.weight": torch.zeros(64, 99, 1, 1)})
    with pytest.raises(CheckpointError, match="dimensions"):
        from_official({**state, "patch_embed.proj.weight": torch.zeros(3)})


# -- the camera


@pytest.mark.parametrize("size", [(26, 30), (27, 30), (405, 405)])
@pytest.mark.parametrize("side", [1, 6, 7])
def test_a_point_stays_in_place_and_moves_by_a_pixel_with_the_published_order(size: tuple[int, int], side: int) -> None:
    delta = torch.zeros(side, side, 1)
    delta[side // 2, side // 2] = 1
    x = picture(1, *size)
    torch.testing.assert_close(blur(x, psf2otf(delta, *size)), x, rtol=0, atol=1e-5)
    if side % 2:
        moved = blur(x, psf2otf(delta, *size, "official"))
        torch.testing.assert_close(moved, x.roll((-1, -1), (-2, -1)), rtol=0, atol=1e-5)


def test_blur_is_the_convolution() -> None:
    x, psf = picture(1, 1, 20, 24), picture(5, 3, 1, seed=1)
    psf = psf / psf.sum()
    wrapped = F.pad(x, (1, 1, 2, 2), mode="circular")
    want = F.conv2d(wrapped, psf[..., 0].flip(0, 1)[None, None])
    torch.testing.assert_close(blur(x, psf2otf(psf, 20, 24)), want, rtol=0, atol=1e-5)


def test_half_a_spectrum_is_the_half_of_the_whole_one() -> None:
    psf = picture(2, 5, 4, 3)
    for compat in (None, "official"):
        whole = psf2otf(psf, 12, 15, compat, half=False)
        torch.testing.assert_close(psf2otf(psf, 12, 15, compat), whole[..., :8])


def test_a_canvas_smaller_than_the_psf_is_refused_unless_cut_officially() -> None:
    psf = picture(9, 9, 3)
    with pytest.raises(InputError, match="smaller than its PSF"):
        psf2otf(psf, 8, 20)
    cut = place_psf(psf, 4, 5, "official")
    assert cut.shape == (3, 4, 5)
    assert float(cut[0, 0, -1]) == float(psf[4, 4, 0]), "the smaller half is cut on the left, an odd side ends on -1"


@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (3, 3)])
def test_cells_are_cut_and_put_together_again(grid: tuple[int, int]) -> None:
    rows, columns = grid
    scene = picture(2, 3, (rows + 2) * 4, (columns + 2) * 5)
    patches = surroundings(scene, grid)
    assert patches.shape == (2, rows * columns, 3, 12, 15)
    torch.testing.assert_close(assemble(patches, grid), scene[..., 4:-4, 5:-5])


def test_fields_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="no whole number"):
        surroundings(picture(1, 3, 17, 16), (2, 2))
    with pytest.raises(InputError, match="do not make a field"):
        assemble(picture(1, 5, 3, 6, 6), (2, 2))
    with pytest.raises(InputError, match="no square field"):
        grid_of(8)
    with pytest.raises(InputError, match="no square field"):
        wiener_field(picture(1, 3, 16, 16), picture(3, 5, 5, 3))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda p: p.sub_(0.9), "negative values"),
        (lambda p: p.fill_(math.nan), "not finite"),
        (lambda p: p.fill_(math.inf), "not finite"),
        (lambda p: p.zero_(), "sum 0"),
        (lambda p: p[2, :, :, 1].zero_(), r"cell 2, colour 1 has the sum 0"),
    ],
)
def test_bad_psfs_are_refused(change: object, says: str) -> None:
    psf = picture(4, 5, 5, 3)
    change(psf)  # type: ignore[operator]
    with pytest.raises(InputError, match=says):
        check_psf(psf)


@pytest.mark.parametrize("wrong", [torch.ones(5, 5), torch.ones(5, 5, 3).byte(), torch.ones(0, 5, 3)])
def test_what_is_no_psf_is_refused(wrong: Tensor) -> None:
    with pytest.raises(InputError):
        check_psf(wrong)


def test_noise_has_the_variance_of_photons_and_reading() -> None:
    light = torch.full((200, 200), 0.5)
    noisy = add_noise(light, torch.Generator().manual_seed(0), gain=1e-3, read=0.01)
    assert float(noisy.mean()) == pytest.approx(0.5, abs=1e-3)
    assert float(noisy.var()) == pytest.approx(0.5e-3 + 1e-4, rel=0.05)
    assert torch.equal(add_noise(light, torch.Generator(), 0, 0), light)
    with pytest.raises(UsageError, match="at least 0"):
        add_noise(light, torch.Generator(), -1)
    for wrong in (-0.1, math.nan):
        with pytest.raises(InputError, match="not negative, and a number"):
            add_noise(light * 0 + wrong, torch.Generator())


def test_a_lens_blurs_its_corners_and_colours_differently() -> None:
    psfs = lens_psfs(3, 31)
    assert psfs.shape == (9, 31, 31, 3)
    torch.testing.assert_close(psfs.sum((1, 2)), torch.ones(9, 3))
    torch.testing.assert_close(psfs[4].flip(0, 1)[1:, 1:], psfs[4][1:, 1:], rtol=0, atol=2e-2)
    assert float((psfs[0] - psfs[4]).abs().max()) > 0.02
    assert float((psfs[4, ..., 0] - psfs[4, ..., 1]).abs().max()) > 0.02
    with pytest.raises(UsageError, match="no lens"):
        lens_psfs(3, 65)


# -- the bank


@given(
    height=st.integers(3, 24),
    width=st.integers(3, 24),
    filters=st.integers(1, 4),
    colours=st.sampled_from([1, 3]),
    cells=st.sampled_from([None, 1, 4]),
    batch=st.integers(1, 2),
)
@settings(max_examples=40, deadline=None)
def test_the_bank_is_the_naive_one(
    height: int, width: int, filters: int, colours: int, cells: int | None, batch: int
) -> None:
    shape = (batch, 3, height, width) if cells is None else (batch, cells, 3, height, width)
    x = picture(*shape).double()
    psf = picture(*(() if cells is None else (cells,)), 3, 3, colours, seed=1).double()
    levels = [10 ** (-1 - m) for m in range(filters)]
    half, whole = (psf2otf(psf, height, width, half=h) for h in (True, False))
    want = naive_bank(x, whole, levels)
    assert want.shape == (*shape[:-3], filters, *shape[-3:])
    torch.testing.assert_close(wiener_bank(x, half, levels), want, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_of_the_bank_are_those_of_the_naive_one(dtype: torch.dtype) -> None:
    x = (0.2 + 0.6 * picture(2, 3, 12, 11)).to(dtype).requires_grad_()
    psf = picture(5, 5, 3, seed=1).to(dtype).requires_grad_()
    weight = picture(2, 4, 3, 12, 11, seed=2).to(dtype)
    grads = []
    for bank, half in ((wiener_bank, True), (naive_bank, False)):
        made = bank(x, psf2otf(psf / psf.sum((0, 1)), 12, 11, half=half), FILTERS[:4])
        grads.append(torch.autograd.grad((made * weight).sum(), [x, psf]))
    for ours, truth in zip(*grads, strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-3 if dtype == torch.float32 else 1e-8, atol=1e-6)


def test_contrast_is_taken_of_each_colour_on_its_own() -> None:
    x = picture(3, 16, 16)
    otf = psf2otf(picture(5, 5, 3, seed=1), 16, 16)
    made = wiener_bank(x, otf, [0.05])
    darker = x.clone()
    darker[0] *= 0.2
    torch.testing.assert_close(wiener_bank(darker, otf, [0.05])[:, 1:], made[:, 1:])


def test_a_white_picture_and_a_lens_with_zeros_make_numbers() -> None:
    psf = torch.zeros(3, 3, 3)
    psf[0], psf[2] = 1 / 6, 1 / 6  # passes nothing at a quarter of the sampling rate
    made = wiener_bank(torch.ones(3, 16, 16), psf2otf(psf, 16, 16), [1e-5])
    assert bool(made.isfinite().all())


def test_deblurring_the_field_takes_each_cells_own_psf() -> None:
    psfs = lens_psfs(3, 15)
    scene = F.pad(picture(1, 3, 48, 48), (16,) * 4)
    otf = psf2otf(psfs, 48, 48)
    patches = blur(surroundings(scene, (3, 3)), otf)
    sharp = assemble(wiener_bank(patches, otf, [1e-6]), (3, 3))[0, 0]
    one = assemble(wiener_bank(patches, otf[4], [1e-6]), (3, 3))[0, 0]
    error, other = (float((t - scene[0, :, 16:-16, 16:-16])[:, :16, :16].square().mean()) for t in (sharp, one))
    assert error < other / 4


@pytest.mark.parametrize("levels", [[], [0.0], [-1e-3], [math.nan], [math.inf, 1.0]])
def test_levels_that_are_not_positive_are_refused(levels: list[float]) -> None:
    with pytest.raises(UsageError, match="positive"):
        wiener_bank(picture(3, 8, 8), psf2otf(picture(3, 3, 3), 8, 8), levels)


def test_shapes_that_do_not_go_together_are_refused() -> None:
    x, otf = picture(2, 3, 8, 8), psf2otf(picture(3, 3, 3), 8, 8)
    for wrong in (otf[..., :4], otf[:2], otf.real, otf[0, 0], otf.expand(3, -1, -1, -1)):
        with pytest.raises(InputError):
            wiener_bank(x, wrong)


# -- the choice of K


@pytest.mark.parametrize("deviation", [0.003, 0.02, 0.06])
def test_noise_is_measured_where_the_lens_passes_least(deviation: float) -> None:
    from saccade.data.generated import dead_leaves

    scene = torch.from_numpy(dead_leaves(192, 192, 3)).permute(2, 0, 1).float() / 255
    otf = psf2otf(lens_psfs(1)[0], 192, 192)
    noisy = blur(scene, otf) + deviation * torch.randn(3, 192, 192, generator=torch.Generator().manual_seed(0))
    assert float(noise_power(noisy, otf).mean().sqrt()) == pytest.approx(deviation, rel=0.25)


def test_the_chosen_filter_is_near_the_best() -> None:
    from saccade.data.generated import dead_leaves
    from saccade.restoration.metalens_former.levels import CANDIDATES

    scene = torch.from_numpy(dead_leaves(192, 192, 4)).permute(2, 0, 1).float() / 255
    otf = psf2otf(lens_psfs(1)[0], 192, 192)
    chosen = []
    for deviation in (0.002, 0.02):
        noise = deviation * torch.randn(3, 192, 192, generator=torch.Generator().manual_seed(0))
        noisy = (blur(scene, otf) + noise).clamp(0, 1)
        bright = 1 + torch.tensor(CANDIDATES)[:, None, None, None] * (1 - noisy.mean((1, 2)))[:, None, None]
        errors = (wiener_bank(noisy, otf, CANDIDATES) * bright - scene).square().mean((1, 2, 3))
        k = choose_level([(noisy, otf)])
        chosen.append(k)
        assert 10 * math.log10(float(errors[CANDIDATES.index(k)] / errors.min())) < 1
    assert chosen[0] < chosen[1], "more noise, more caution"
