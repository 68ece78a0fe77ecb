"""The learnt ISP: undone exactly, folded equal to stage by stage, mixes stay sensible, bad RAW and settings refused."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from torch import Tensor

from saccade.budget import has_budget
from saccade.checkpoint import load, save
from saccade.errors import InputError, UsageError
from saccade.registry import create
from saccade.restoration.model_isp import operators
from saccade.restoration.model_isp.augment import add_noise, noisy_pair, sample_settings
from saccade.restoration.model_isp.denoiser import RawDenoiser
from saccade.restoration.model_isp.network import STAGES, ModelISP, Settings, whole_grid
from saccade.restoration.model_isp.recipe import Pairs, effective_atoms, fit, losses
from saccade.restoration.model_isp.stages import LensShading, Tone, curve, inverse_curve, regularity


def isp(name: str = "model_isp_tiny", seed: int = 0, **options: object) -> ModelISP:
    """Every parameter away from its start, within what a camera could be."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = create(name, weights=None, **options)
        assert isinstance(model, ModelISP)
        with torch.no_grad():
            for key, p in model.stages.named_parameters():
                p.add_((0.3 if "tone" in key else 0.05) * torch.randn(p.shape))
            model.stages["lsc"].dictionary[..., 5] = 0.3 * torch.rand(model.stages["lsc"].dictionary.shape[:2])
            for encoder in (model.encoder_fwd, model.encoder_inv):
                for p in encoder.parameters():
                    p.add_(0.05 * torch.randn(p.shape))
    return model


def photo(height: int, width: int, batch: int = 1, seed: int = 0, high: float = 0.85) -> Tensor:
    """Colours as photographs have them: weak chroma, at most ``high``."""
    g = torch.Generator().manual_seed(seed)
    grey = 0.1 + (high - 0.2) * torch.rand(batch, 1, height, width, generator=g)
    return grey + 0.1 * torch.rand(batch, 3, height, width, generator=g)


# -- operators


@given(x=st.floats(0, 1))
@limits(max_examples=50, deadline=None)
def test_tone_and_gamma_undo_each_other(x: float) -> None:
    value = torch.tensor(x, dtype=torch.float64)
    assert float(operators.inverse_smoothstep(operators.smoothstep(value))) == pytest.approx(x, abs=1e-6)
    assert float(operators.gamma_expansion(operators.gamma_compression(value))) == pytest.approx(x, abs=2e-8)


def test_gains_are_undone_below_the_highlights_and_white_stays_white() -> None:
    gains = torch.tensor([[2.1, 1.2, 1.6]])
    x = 0.4 * torch.rand(1, 3, 4, 4)
    torch.testing.assert_close(operators.safe_invert_gains(operators.apply_gains(x, gains), gains), x)
    white = torch.ones(1, 3, 2, 2)
    torch.testing.assert_close(operators.safe_invert_gains(white, gains), white)
    dim = torch.full((1, 1), 0.5).expand(1, 3)  # gains below 1 are always undone
    torch.testing.assert_close(operators.safe_invert_gains(white, dim), 2 * white)


def test_negative_raw_is_black_and_never_nan() -> None:
    assert torch.isfinite(operators.gamma_compression(torch.tensor([-0.5, 0.0]))).all()
    model = isp()
    with torch.inference_mode():
        made = model(torch.full((1, 3, 6, 6), -0.02))
    assert torch.isfinite(made).all()


def test_cameras_keep_white_and_noise_levels_are_those_of_the_paper() -> None:
    generator = torch.Generator().manual_seed(0)
    for camera in (operators.average_camera(), *(operators.random_camera(generator) for _ in range(5))):
        torch.testing.assert_close(camera.rgb_to_camera.sum(-1), torch.ones(3))
        torch.testing.assert_close(camera.camera_to_rgb @ camera.rgb_to_camera, torch.eye(3), atol=1e-5, rtol=0)
        assert (camera.gains > 0).all()
    shot, read = operators.noise_levels(4000, generator)
    assert float(shot.min()) >= 1e-4 * 0.999
    assert float(shot.max()) <= 0.012 * 1.001
    residual = read.log() - 2.18 * shot.log() - 1.20
    assert float(residual.mean()) == pytest.approx(0, abs=0.02)
    assert float(residual.std()) == pytest.approx(0.26, abs=0.02)


# -- stages


@given(atoms=st.integers(2, 5), knots=st.integers(2, 20), seed=st.integers(0, 99))
@limits(max_examples=25, deadline=None)
def test_every_mix_of_curves_rises_from_0_to_1_and_is_undone(atoms: int, knots: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tone = Tone(atoms, knots).double()
    with torch.no_grad():
        tone.dictionary.copy_(4 * torch.randn(tone.dictionary.shape, generator=generator))
        weights = torch.softmax(torch.randn(2, atoms, generator=generator).double(), -1)
        mixed = tone.mix(weights)
        assert (mixed.diff(dim=-1) > 0).all()
        torch.testing.assert_close(mixed[..., -1], torch.ones_like(mixed[..., -1]))
        x = torch.rand(2, 3, 4, 5, generator=generator).double()
        torch.testing.assert_close(inverse_curve(curve(x, mixed), mixed), x, atol=1e-9, rtol=0)


def test_curves_pass_gradients_to_values_and_knots() -> None:
    knots = Tone(2, 5).double().mix(torch.tensor([[0.3, 0.7]], dtype=torch.float64)).detach().requires_grad_()
    x = (0.05 + 0.9 * torch.rand(1, 3, 2, 2, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(curve, (x, knots))
    assert torch.autograd.gradcheck(inverse_curve, (x, knots))


def test_matrices_of_any_mix_keep_white() -> None:
    model = isp()
    settings = model.mix(model.choose(photo(16, 16, 3), "forward"))
    assert settings.ccm is not None
    torch.testing.assert_close(settings.ccm.sum(-1), torch.ones(3, 3))


def test_gain_maps_start_as_identity_never_darken_and_strips_equal_the_whole() -> None:
    fresh = LensShading()
    x = torch.zeros(1, 3, 9, 14)
    assert torch.equal(fresh.maps(whole_grid(x)), torch.ones(1, 4, 9, 14))
    stage = isp(seed=3).stages["lsc"]
    with torch.no_grad():
        stage.residual.add_(torch.randn(stage.residual.shape, generator=torch.Generator().manual_seed(1)))
        whole = stage.maps(whole_grid(x))[0]
        assert float(whole.min()) == 1.0
        strips = torch.cat([stage.strip(top, 3, 9, 14) for top in (0, 3, 6)], 1)
    torch.testing.assert_close(strips, whole, atol=1e-5, rtol=0)


def test_penalties_see_ill_conditioned_matrices_and_unused_atoms() -> None:
    good, bad = torch.eye(3)[None], torch.diag(torch.tensor([1.0, 1.0, 0.02]))[None]
    even, one = torch.full((4, 8), 1 / 8), torch.eye(8)[:1].expand(4, -1)
    assert regularity(good, {"wb": even})[0] == 0
    assert float(regularity(bad, {"wb": even})[0]) == pytest.approx(40, rel=1e-3)
    assert float(regularity(good, {"wb": even})[1]) == pytest.approx(0, abs=1e-6)
    assert float(regularity(good, {"wb": one})[1]) == pytest.approx(1, abs=1e-4)
    assert effective_atoms(even) == pytest.approx(8)
    assert effective_atoms(one) == pytest.approx(1)


# -- the network


def test_the_inverse_is_exact_where_nothing_is_saturated() -> None:
    model, rgb = isp("model_isp"), photo(40, 52, 2)
    with torch.inference_mode():
        settings = model.predict(rgb, "inverse")
        raw = model.inverse(rgb, settings)
        assert float(rgb.max()) < 0.85
        torch.testing.assert_close(model.inverse(model(raw, settings), settings), raw, atol=1e-4, rtol=0)
        packed = model.inverse_packed(rgb, settings)
        torch.testing.assert_close(packed[:, 0], raw[:, 0, 0::2, 0::2])
        torch.testing.assert_close(packed[:, 2], raw[:, 1, 1::2, 0::2])


@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    batch=st.integers(1, 2),
    disabled=st.sets(st.sampled_from(STAGES), max_size=3),
    direction=st.sampled_from(["forward", "inverse"]),
)
@limits(max_examples=40, deadline=None)
def test_folded_equals_stage_by_stage(height: int, width: int, batch: int, disabled: set[str], direction: str) -> None:
    model = isp(seed=1)
    model.disabled = tuple(disabled)
    x = photo(height, width, batch, seed=height, high=1.0).clamp(0, 1)
    with torch.inference_mode():
        settings = model.predict(x, direction)  # type: ignore[arg-type]
        truth = model.trace(x, settings, whole_grid(x), direction)[-1]  # type: ignore[arg-type]
        made = model(x, settings) if direction == "forward" else model.inverse(x, settings)
    # without tone there is no clamp at the end of the last stage but that of the matrix
    torch.testing.assert_close(made, truth, atol=1e-4, rtol=0)


def test_large_pictures_go_in_strips_and_give_the_same() -> None:
    model, x = isp(seed=2), photo(300, 400, high=1.0)
    with torch.inference_mode():
        for direction in ("forward", "inverse"):
            settings = model.predict(x, direction)  # type: ignore[arg-type]
            truth = model.trace(x, settings, whole_grid(x), direction)[-1]  # type: ignore[arg-type]
            for _ in range(2):  # the second time with kept gain maps
                made = model(x, settings) if direction == "forward" else model.inverse(x, settings)
                torch.testing.assert_close(made, truth, atol=1e-4, rtol=0)
        with torch.no_grad():
            model.stages["lsc"].residual.add_(0.2)  # kept maps are of the old dictionary
        settings = model.predict(x, "forward")
        torch.testing.assert_close(
            model(x, settings), model.trace(x, settings, whole_grid(x), "forward")[-1], atol=1e-4, rtol=0
        )


def test_gradients_take_the_plain_path_and_reach_every_dictionary() -> None:
    model = isp().train()
    rgb = photo(16, 20, 2)
    (model(model.inverse(rgb)) - 0.3).abs().mean().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert torch.isfinite(p.grad).all(), name
    for stage in model.stages.values():
        assert float(stage.dictionary.grad.abs().sum()) > 0


def test_settings_can_be_edited_by_hand() -> None:
    model, rgb = isp(), photo(12, 12)
    with torch.inference_mode():
        settings = model.predict(rgb, "inverse")
        assert settings.gains is not None
        warmer = replace(settings, gains=settings.gains * torch.tensor([[1.2, 1.0, 1.0]]))
        raw = model.inverse(rgb, settings)
        assert float(model(raw, warmer)[:, 0].mean()) > float(rgb[:, 0].mean())
        one = settings.pictures(slice(0, 1))
        torch.testing.assert_close(model(raw.expand(3, -1, -1, -1), one), rgb.expand(3, -1, -1, -1), atol=1e-4, rtol=0)


def test_parameters_are_about_half_a_million() -> None:
    model = create("model_isp", weights=None)
    assert sum(p.numel() for p in model.parameters()) == 511_136
    assert sum(p.numel() for p in create("model_isp_tiny", weights=None).parameters()) == 33_562
    names = set(model.state_dict())
    assert {f"stages.{s}.dictionary" for s in ("lsc", "wb", "ccm", "tone")} <= names
    assert any(n.startswith("encoder_fwd.") for n in names)
    assert any(n.startswith("encoder_inv.") for n in names)


def test_the_dial_trades_encoder_runs_for_averages() -> None:
    from saccade.cost import cost

    model, rgb = isp("model_isp"), photo(64, 64)
    assert has_budget(model)
    macs = []
    for budget in model.budgets():
        model.budget = budget
        macs.append(cost(model, rgb, timed=False).macs)
    assert macs == sorted(macs)
    assert macs[0] < 0.1 * macs[-1]
    model.budget = 0.05
    assert model.predicted() == ()
    other = model.predict(photo(64, 64, seed=9), "inverse")
    mine = model.predict(rgb, "inverse")
    assert mine.gains is not None
    torch.testing.assert_close(other.gains, mine.gains)
    with pytest.raises(UsageError, match="budget"):
        model.budget = 0


def test_a_file_keeps_pattern_and_dictionaries(tmp_path: Path) -> None:
    model = isp(pattern="gbrg")
    save(model, tmp_path / "isp.safetensors")
    again = load(tmp_path / "isp.safetensors")
    assert isinstance(again, ModelISP)
    assert again.pattern == "gbrg"
    x = photo(20, 20)
    with torch.inference_mode():
        torch.testing.assert_close(again.inverse_packed(x), model.inverse_packed(x))


# -- bad input

RAW = torch.rand(1, 3, 8, 8)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda m: m.inverse_packed(photo(7, 8)), InputError, "even sides"),
        (lambda m: m(torch.rand(1, 4, 8, 8)), InputError, "forward_packed"),
        (lambda m: m.forward_packed(RAW), InputError, "mosaic an RGB picture first"),
        (lambda m: m((RAW * 1023).to(torch.int16)), InputError, "black level"),
        (lambda m: m(RAW * 1023), InputError, "white level"),
        (lambda m: m.forward_packed(torch.full((1, 4, 4, 4), 1.2)), InputError, "white level"),
        (lambda m: m.inverse(RAW * 255), InputError, "divide by 255"),
        (lambda m: m(RAW[0]), InputError, "float"),
        (lambda m: m(RAW[:, :, :0]), InputError, "float"),
        (lambda m: ModelISP(pattern="rgbw"), UsageError, "no Bayer pattern"),
        (lambda m: ModelISP(disabled=("shading",)), UsageError, "no stage named"),
        (lambda m: ModelISP(atoms=1), UsageError, "at least 2 atoms"),
        (lambda m: ModelISP(temperature=0), UsageError, "temperature"),
        (lambda m: m(RAW, Settings(gains=torch.tensor([[0.0, 1.0, 1.0]]))), UsageError, "gains must be positive"),
        (lambda m: m(RAW, Settings(gains=torch.tensor([[-1.0, 1.0, 1.0]]))), UsageError, "gains must be positive"),
        (lambda m: m(RAW, Settings(gains=torch.full((1, 3), math.nan))), UsageError, "gains must be positive"),
        (lambda m: m.inverse(RAW, Settings(ccm=torch.ones(1, 3, 3))), UsageError, "cannot be undone"),
        (lambda m: m(RAW, Settings(tone=torch.tensor([0, 0.6, 0.5, 1]).expand(1, 3, 4))), UsageError, "must rise"),
        (lambda m: m(RAW, Settings(tone=torch.tensor([0.2, 0.6, 1]).expand(1, 3, 3))), UsageError, "must rise"),
        (lambda m: m(RAW, Settings(lsc=torch.tensor([[2.0, -1.0, 0.0]]))), UsageError, "gain maps"),
        (lambda m: m(RAW, Settings(lsc=torch.tensor([[0.5, 0.5]]))), UsageError, "3 gain maps, not 2"),
        (lambda m: m(RAW, Settings(gains=torch.ones(1, 4))), UsageError, r"gains as \(B, 3\), not \(1, 4\)"),
        (lambda m: m(RAW, Settings(ccm=torch.eye(3))), UsageError, r"ccm as \(B, 3, 3\)"),
        (lambda m: m(RAW, Settings(tone=torch.linspace(0, 1, 5)[None, None])), UsageError, r"tone as \(B, 3, any\)"),
        (lambda m: m(RAW.expand(3, -1, -1, -1), Settings(gains=torch.ones(2, 3))), UsageError, "for 2 pictures"),
        (lambda m: sample_settings(m, 2, spread=1.5), UsageError, "spread"),
        (lambda m: fit(m, None, steps=0), UsageError, "at least one step"),  # type: ignore[arg-type]
        (lambda m: Pairs.of([]), InputError, "no pairs"),
        (lambda m: Pairs.of([(torch.rand(4, 8, 8), torch.rand(3, 8, 8))]), InputError, "are no pair"),
        (lambda m: RawDenoiser(width=0), UsageError, "at least one channel"),
        (lambda m: RawDenoiser().eval()(RAW), InputError, "mosaic"),
        (lambda m: RawDenoiser().eval()(torch.rand(1, 4, 8, 8) * 900), InputError, "white level"),
    ],
)
def test_bad_input_is_refused(call: object, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call(isp())  # type: ignore[operator]


def test_a_dictionary_that_has_learnt_a_singular_matrix_is_named() -> None:
    model = isp()
    with torch.no_grad():
        model.stages["ccm"].dictionary.fill_(1 / 3)
    with pytest.raises(UsageError, match="cannot be undone"):
        model.inverse(photo(8, 8))


@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-3), (torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_other_precisions_go_both_ways(dtype: torch.dtype, near: float) -> None:
    model, rgb = isp(), photo(12, 14, 2)
    with torch.inference_mode():
        settings = model.predict(rgb, "inverse")
        raw = model.inverse(rgb, settings)
        cast = {n: v.to(dtype) for n in ("lsc", "gains", "ccm", "tone") if (v := getattr(settings, n)) is not None}
        other = isp().to(dtype)
        found = other.inverse(rgb.to(dtype), replace(settings, **cast))
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), raw, atol=near, rtol=0)
        assert other.inverse(rgb.to(dtype)).dtype == dtype
        assert other(raw.to(dtype)).dtype == dtype


def test_a_white_picture_gets_a_warning() -> None:
    model = isp()
    with torch.inference_mode():
        with pytest.warns(UserWarning, match="undetermined"):
            model.inverse(torch.ones(1, 3, 16, 16))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.inverse(photo(16, 16))


# -- augmentation and denoising


def test_sampled_cameras_differ_stay_valid_and_depend_on_the_seed_alone() -> None:
    model = isp()
    drawn = [sample_settings(model, 6, spread=1.0, seed=s) for s in (0, 0, 1)]
    assert drawn[0].gains is not None
    torch.testing.assert_close(drawn[0].gains, drawn[1].gains)
    assert not torch.allclose(drawn[0].gains, drawn[2].gains)  # type: ignore[arg-type]
    assert float(drawn[0].gains.std(0).max()) > 0.01
    drawn[0].check()
    own = sample_settings(model, 1, spread=0.0, rgb=photo(16, 16))
    torch.testing.assert_close(own.gains, model.predict(photo(16, 16), "inverse").gains)


def test_noise_has_the_variance_that_it_is_told() -> None:
    clean = torch.full((1, 4, 200, 200), 0.3)
    levels = torch.tensor([0.01]), torch.tensor([0.0005])
    noisy, _, _ = add_noise(clean, torch.Generator().manual_seed(0), levels)
    assert float(noisy.var()) == pytest.approx(0.3 * 0.01 + 0.0005, rel=0.02)
    noisy, clean, shot, read = noisy_pair(isp(), photo(32, 36, 3), seed=5)
    assert noisy.shape == clean.shape == (3, 4, 16, 18)
    assert shot.shape == read.shape == (3,)


def test_a_denoiser_starts_as_identity_and_takes_any_size_and_level() -> None:
    model = create("raw_denoiser", weights=None)
    assert isinstance(model, RawDenoiser)
    noisy = torch.rand(2, 4, 5, 7) - 0.02
    with torch.inference_mode():
        torch.testing.assert_close(model(noisy), noisy)
        assert model(noisy, torch.tensor([0.01, 0.001]), 1e-4).shape == noisy.shape
    assert sum(p.numel() for p in model.parameters()) == 49_732


def test_training_learns_from_pairs_and_stores_averages() -> None:
    camera = operators.random_camera(torch.Generator().manual_seed(3))
    pictures = [photo(64, 64, seed=i)[0] for i in range(4)]
    pairs = Pairs.of([(operators.unprocess(p, camera, "rggb"), p) for p in pictures], pixels=1024)
    model = isp(seed=4)
    model.train()
    with torch.no_grad():
        before = {k: float(v) for k, v in losses(model, pairs).items()}
    fit(model, pairs, steps=25, batch=4, pixels=256, rate=1e-2)
    assert not model.training
    with torch.no_grad():
        after = {k: float(v) for k, v in losses(model, pairs).items()}
    assert after["raw"] < 0.8 * before["raw"]
    weights = model.choose(torch.stack(pictures), "inverse")
    torch.testing.assert_close(model.encoder_inv.average("wb"), weights["wb"].mean(0), atol=1e-5, rtol=0)


def test_networks_are_exported_with_dynamic_sizes_and_counted_by_shapes() -> None:
    from saccade.cost import cost

    model, x = isp(), photo(40, 48)
    sides = {2: torch.export.Dim("h", min=33, max=4000), 3: torch.export.Dim("w", min=33, max=4000)}
    exported = torch.export.export(model, (x,), dynamic_shapes=(sides,))
    other = photo(64, 80, seed=1)
    with torch.inference_mode():
        torch.testing.assert_close(exported.module()(other), model(other), atol=1e-4, rtol=0)
    counted = cost(create("raw_denoiser", weights=None), torch.empty(1, 4, 32, 32, device="meta"))
    assert counted.macs == 32 * 32 * 9 * (8 * 32 + 5 * 32 * 32 + 32 * 4)


@pytest.mark.parametrize("kept", ["wb", "tone"])
def test_a_pipeline_of_one_stage_learns_too(kept: str) -> None:
    model = isp(disabled=[name for name in STAGES if name != kept])
    clean = photo(48, 64, 2)
    pairs = Pairs.of([(noisy_pair(isp(seed=1), picture[None])[1][0], picture) for picture in clean], pixels=256)
    before = {name: value.clone() for name, value in model.stages[kept].state_dict().items()}
    fit(model, pairs, steps=2, batch=2, pixels=64)
    assert any(not torch.equal(value, before[name]) for name, value in model.stages[kept].state_dict().items())


def test_training_that_has_nothing_to_learn_or_no_time_is_refused() -> None:
    clean = photo(48, 64, 1)
    pairs = Pairs.of([(noisy_pair(isp(seed=1), clean)[1][0], clean[0])], pixels=64)
    with pytest.raises(UsageError, match="nothing to learn"):
        fit(isp(disabled=STAGES), pairs, steps=1)
    with pytest.raises(UsageError, match="seconds"):
        fit(isp(), pairs, steps=1, seconds=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_noise_keeps_the_precision_of_the_raw(dtype: torch.dtype) -> None:
    noisy, _, _ = add_noise(torch.full((1, 4, 8, 8), 0.2, dtype=dtype), torch.Generator().manual_seed(0))
    assert noisy.dtype == dtype
