from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import saccade
from saccade.errors import CheckpointError, InputError, SaccadeError, UsageError
from saccade.restoration.autoencoder import Autoencoder
from saccade.restoration.dot import DeepOptimalTransport, fit, from_official, identity, open_autoencoder, wrap
from saccade.restoration.dot.gaussian import make_psd, root, transport_operators, w2
from saccade.restoration.dot.patches import Map, fold_weights, patchify

pytestmark = pytest.mark.usefixtures("one_thread")


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def covariance(size: int, rank: int | None = None, seed: int = 0) -> Tensor:
    made = torch.randn(size, rank or 2 * size, generator=chance(seed), dtype=torch.float64)
    return made @ made.mT / (2 * size)


def texture(*shape: int, smooth: int = 1, seed: int = 0) -> Tensor:
    """Noise in [0, 1], smoothed."""
    made = torch.rand(shape, generator=chance(seed))
    for _ in range(smooth):
        made = nn.functional.avg_pool2d(nn.functional.pad(made, (1, 1, 1, 1), mode="reflect"), 3, 1)
    return made


def fitted(patch: int = 3, **options: object) -> DeepOptimalTransport:
    model = DeepOptimalTransport(patch, **options)
    for seed in range(2):
        model.update_source(texture(1, 3, 40, 44, smooth=2, seed=seed))
        model.update_target(texture(1, 3, 44, 40, smooth=1, seed=10 + seed))
    model.compute()
    return model


# --- Gaussians ------------------------------------------------------------------------------------------------------


def test_the_map_is_exact_symmetric_positive_and_the_identity_between_equals() -> None:
    source, target = covariance(9, seed=1), covariance(9, seed=2)
    operator, noise = transport_operators(source, target, 1e-9)
    assert noise is None
    torch.testing.assert_close(operator, operator.mT)
    assert float(torch.linalg.eigvalsh(operator)[0]) > 0
    torch.testing.assert_close(operator @ source @ operator.mT, target, atol=1e-7, rtol=0)
    same, _ = transport_operators(source, source, 1e-12)
    torch.testing.assert_close(same, torch.eye(9, dtype=torch.float64), atol=1e-8, rtol=0)


def test_directions_of_small_variance_are_not_blown_up() -> None:
    source = torch.diag(torch.tensor([1.0, 1e-2, 1e-5], dtype=torch.float64))  # eps is far above the last ones' product
    target = torch.diag(torch.tensor([1.0, 2e-2, 4e-5], dtype=torch.float64))
    operator, _ = transport_operators(source, target, 1e-7)
    wanted = torch.diag(torch.tensor([1.0, 2**0.5, 2.0], dtype=torch.float64))
    torch.testing.assert_close(operator, wanted, atol=1e-9, rtol=0)
    official, _ = transport_operators(source, target, 1e-7, "official")
    assert float(official[2, 2]) > 30  # the published code's, which no longer is the map between the two


def test_samples_arrive_with_the_targets_covariance_at_the_least_cost() -> None:
    source, target = covariance(6, seed=3), covariance(6, seed=4)
    shift = torch.linspace(-1, 1, 6, dtype=torch.float64)
    x = torch.randn(200_000, 6, generator=chance(), dtype=torch.float64) @ torch.linalg.cholesky(source).mT
    y = x @ transport_operators(source, target, 1e-9)[0].mT + shift
    assert float((torch.cov(y.mT) - target).norm() / target.norm()) < 0.02
    least = float(w2(torch.zeros(6).double(), shift, source, target, 1e-12))
    assert float((y - x).square().sum(1).mean()) == pytest.approx(least, rel=0.01)
    triangular = torch.linalg.cholesky(target) @ torch.linalg.cholesky(source).inverse()
    assert float((x @ triangular.mT + shift - x).square().sum(1).mean()) > 1.02 * least


def test_pot_agrees_about_map_and_distance() -> None:
    ot = pytest.importorskip("ot", reason="an oracle of the tests")
    source, target = covariance(5, seed=5), covariance(5, seed=6)
    means = torch.randn(2, 5, generator=chance(), dtype=torch.float64)
    operator, _ = ot.gaussian.bures_wasserstein_mapping(means[0], means[1], source, target)
    torch.testing.assert_close(transport_operators(source, target, 1e-12)[0], operator, atol=1e-6, rtol=0)
    distance = ot.gaussian.bures_wasserstein_distance(means[0], means[1], source, target)
    assert float(w2(means[0], means[1], source, target, 1e-14)) == pytest.approx(float(distance) ** 2, rel=1e-5)


def test_a_degenerate_source_is_completed_by_noise() -> None:
    source, target = covariance(8, rank=4, seed=7), covariance(8, seed=8)
    operator, noise = transport_operators(source, target, 1e-7)
    assert noise is not None
    torch.testing.assert_close(operator @ source @ operator.mT + noise, target, atol=1e-4, rtol=0)
    assert float(torch.linalg.eigvalsh((noise + noise.mT) / 2)[0]) > -1e-6


def test_roots_of_what_rounding_made_negative_are_numbers() -> None:
    flat = covariance(6, rank=2, seed=9)
    flat = flat - 1e-17 * torch.eye(6, dtype=torch.float64)
    assert torch.isfinite(root(flat)).all()
    torch.testing.assert_close(root(flat) @ root(flat), flat, atol=1e-12, rtol=0)
    assert float(torch.linalg.eigvalsh(make_psd(-torch.eye(3, dtype=torch.float64), 1e-3))[0]) == pytest.approx(1e-3)
    for source in (flat, torch.zeros(6, 6, dtype=torch.float64)):
        assert all(torch.isfinite(m).all() for m in transport_operators(source, flat, 1e-7) if m is not None)


# --- patches --------------------------------------------------------------------------------------------------------


def some_map(channels: int, patch: int, fold: int, sigma: float | None) -> Map:
    size = channels * patch**2
    operator = torch.eye(size, dtype=torch.float64) + 0.1 * torch.randn(size, size, generator=chance()).double()
    means = torch.randn(2, size, generator=chance(1), dtype=torch.float64)
    return Map(operator, means[0], means[1], fold_weights(patch, fold, sigma))


@pytest.mark.parametrize("size", [(30, 41), (13, 13), (7, 40), (29, 14), (5, 5)], ids=str)
@pytest.mark.parametrize(
    ("channels", "patch", "fold", "sigma"),
    [(3, 5, 5, None), (3, 3, 3, 1.0), (4, 5, 3, 0.7), (8, 3, 1, None), (1, 1, 1, None)],
)
def test_the_convolution_is_the_patches_to_the_border(
    channels: int, patch: int, fold: int, sigma: float | None, size: tuple[int, int]
) -> None:
    made = some_map(channels, patch, fold, sigma)
    x = torch.randn(2, channels, *size, generator=chance(2))
    torch.testing.assert_close(made.fast(x.double()), made.slow(x.double()), atol=1e-12, rtol=0)
    found = made.fast(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, made.slow(x), atol=1e-4, rtol=0)


def test_patches_in_parts_are_patches_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made, x = some_map(3, 5, 5, None), torch.randn(1, 3, 24, 20, generator=chance()).double()
    whole = made.slow(x)
    monkeypatch.setattr("saccade.restoration.dot.patches.CHUNK", 1)
    torch.testing.assert_close(made.slow(x), whole, atol=1e-12, rtol=0)


def test_patches_are_written_out_by_hand() -> None:
    made, x = some_map(2, 3, 3, 1.0), torch.randn(1, 2, 5, 6, generator=chance(), dtype=torch.float64)
    padded = nn.functional.pad(x, (1, 1, 1, 1), mode="replicate")[0]
    total, weight = torch.zeros(2, 7, 8).double(), torch.zeros(7, 8).double()
    for i in range(5):
        for j in range(6):
            patch = padded[:, i : i + 3, j : j + 3].flatten()
            moved = (made.operator @ (patch - made.mean_source) + made.mean_target).view(2, 3, 3)
            total[:, i : i + 3, j : j + 3] += moved * made.weights
            weight[i : i + 3, j : j + 3] += made.weights
    torch.testing.assert_close(made.slow(x)[0], (total / weight)[:, 1:-1, 1:-1])


# --- statistics and pictures ----------------------------------------------------------------------------------------


def test_statistics_are_streamed_and_additive() -> None:
    pictures = [texture(2, 3, 20, 26, seed=i) for i in range(3)]
    whole, one, two = (DeepOptimalTransport(3) for _ in range(3))
    for i, x in enumerate(pictures):
        for model in (whole, one if i else two):
            model.update_source(x)
            model.update_target(1 - x)
    one.merge(two)
    for name, value in whole.named_buffers():
        torch.testing.assert_close(dict(one.named_buffers())[name], value, atol=1e-6, rtol=1e-12)
    patches = torch.cat([patchify((2 * x - 1).double(), 3) for x in pictures])
    whole.compute()
    torch.testing.assert_close(whole.mean_source, patches.mean(0), atol=1e-12, rtol=0)
    torch.testing.assert_close(whole.cov_source, torch.cov(patches.mT), atol=1e-10, rtol=0)
    with pytest.raises(UsageError, match="same patches"):
        one.merge(DeepOptimalTransport(5))


def test_patches_move_almost_all_the_way() -> None:
    model = fitted()
    after = DeepOptimalTransport(3)
    for seed in range(2):
        moved = model.transport(texture(1, 3, 40, 44, smooth=2, seed=seed)).clamp(0, 1)
        after.update_source(moved)
        after.update_target(texture(1, 3, 44, 40, smooth=1, seed=10 + seed))
    assert after.compute() < 0.35 * model.distance()


def test_equal_statistics_change_nothing() -> None:
    model, x = DeepOptimalTransport(3), texture(1, 3, 30, 31, smooth=0)
    model.update_source(x)
    model.update_target(x)
    assert model.compute() == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(model.transport(x), x, atol=1e-4, rtol=0)


def test_alpha_in_the_latent_goes_from_all_to_nothing() -> None:
    model, x = fitted(), texture(1, 3, 30, 31, smooth=2, seed=5)
    whole, half, none = (model.transport(x, latent_alpha=a) for a in (0.0, 0.5, 1.0))
    shift = (model.mean_target - model.mean_source).view(3, 9).mean(1) / 2
    inside = (..., slice(1, -1), slice(1, -1))  # where all places of a patch take part
    torch.testing.assert_close(none[inside], (x + shift.float()[:, None, None])[inside], atol=1e-5, rtol=0)
    torch.testing.assert_close(half, (whole + none) / 2, atol=1e-5, rtol=0)
    torch.testing.assert_close(model.transport(x, slow=True), whole, atol=1e-5, rtol=0)


def test_zero_shot_takes_the_source_from_the_picture() -> None:
    model, x = fitted(), texture(1, 3, 40, 40, smooth=3, seed=6)
    kept = model.state_dict()["cov_source"].clone()
    found = model.transport(x, zero_shot=True)
    own = DeepOptimalTransport(3)
    own.update_source(x)
    for seed in range(2):
        own.update_target(texture(1, 3, 44, 40, smooth=1, seed=10 + seed))
    own.compute()
    torch.testing.assert_close(found, own.transport(x), atol=1e-4, rtol=0)
    assert torch.equal(model.cov_source, kept)


def degenerate(compat: str = "right") -> DeepOptimalTransport:
    """Grey restored pictures: a third of the rank."""
    model = DeepOptimalTransport(3, compat=compat)
    model.update_source(texture(1, 1, 40, 40, seed=1).expand(-1, 3, -1, -1))
    model.update_target(texture(1, 3, 40, 40, seed=2))
    model.compute()
    return model


def test_noise_is_drawn_for_every_patch_from_a_seed_and_once_in_the_official_form() -> None:
    x = texture(1, 1, 20, 20, seed=3).expand(-1, 3, -1, -1)
    right, official = degenerate(), degenerate("official")
    assert right.halo is None
    first, again, other = (right.transport(x, seed=s) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    difference = official.transport(x, seed=0) - official.transport(x, seed=1)
    inner = difference[..., 3:-3, 3:-3]
    assert float((inner - inner.mean((2, 3), keepdim=True)).abs().max()) < 1e-5  # one vector, seen everywhere
    assert torch.equal(right.transport(x, latent_alpha=1.0, seed=0), right.transport(x, latent_alpha=1.0, seed=1))
    assert torch.equal(official(x, latent_alpha=0.5), official(x))  # options are ignored
    assert not torch.equal(right(x, latent_alpha=0.5), right(x))


# --- the dial -------------------------------------------------------------------------------------------------------


class Smooth(nn.Module):
    halo = 1

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(nn.functional.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)


def test_the_dial_goes_from_the_restorers_output_to_the_transported_one() -> None:
    restorer = Smooth()
    clean = [texture(1, 3, 40, 40, seed=i) for i in range(3)]
    state = fit(restorer, clean, clean, patch=3)
    x = texture(1, 3, 25, 27, seed=9)
    made = wrap(restorer, state, 0.0)
    assert made.halo == 1 + 2
    assert torch.equal(made(x), restorer(x))
    made.perception = 1.0
    natural = state.transport(restorer(x)).clamp(0, 1)
    torch.testing.assert_close(made(x), natural)
    made.perception = 0.25
    torch.testing.assert_close(made(x), 0.75 * restorer(x) + 0.25 * natural)
    torch.testing.assert_close(made.mixed(restorer(x), 0.75), made(x))
    assert float((natural - x).var()) < float((restorer(x) - x).var()) * 4
    assert float(natural.std()) > float(restorer(x).std())
    for value in (-0.1, 1.1, math.nan):
        with pytest.raises(UsageError, match="between 0 and 1"):
            made.perception = value
    with pytest.raises(UsageError, match="number"):
        made.mixed(x, math.inf)


def test_any_callable_and_any_picture_will_do(tmp_path: Path) -> None:
    from PIL import Image

    pixels = (texture(3, 30, 30)[None][0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    forms = [tmp_path / "a.png", Image.fromarray(pixels), pixels, pixels.astype(np.float32) / 255]
    states = [fit(lambda x: x * 0.9, [form], [form], patch=3) for form in forms]
    for state in states[1:]:
        torch.testing.assert_close(state.cov_source, states[0].cov_source, atol=1e-6, rtol=0)
    with pytest.raises(InputError, match="0 patches of source"):
        fit(Smooth(), [], forms, patch=3)


def test_pictures_in_memory_of_16_bits_and_of_other_strides_will_do() -> None:
    from PIL import Image

    pixels = (texture(3, 30, 30).permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    deep = pixels[..., :1].astype(np.uint16) * 257
    flipped = np.ascontiguousarray(pixels[::-1])[::-1]
    kinds = [
        [pixels, flipped, pixels.astype(np.uint16) * 257],
        [np.repeat(deep, 3, 2), Image.fromarray(deep[..., 0]), Image.fromarray(pixels[..., 0])],
    ]
    for forms in kinds:
        states = [fit(lambda x: x * 0.9, [form], [form], patch=3) for form in forms]
        for state in states[1:]:
            torch.testing.assert_close(state.cov_target, states[0].cov_target, atol=1e-6, rtol=0)


def test_tiles_with_the_halo_are_the_whole() -> None:
    made = wrap(Smooth(), fitted(), 1.0)
    x = texture(1, 3, 40, 44, seed=3)
    whole, halo = made(x), made.halo
    assert halo is not None
    part = made(x[:, :, 10 - halo : 30 + halo, 12 - halo : 32 + halo])[:, :, halo:-halo, halo:-halo]
    torch.testing.assert_close(part, whole[:, :, 10:30, 12:32], atol=1e-5, rtol=0)


# --- autoencoders ---------------------------------------------------------------------------------------------------


def small_vae() -> Autoencoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Autoencoder(channels=4, widths=(8, 8), depths=(0, 1, 1, 0))


def test_our_own_autoencoder_serves_at_any_size_and_is_no_part_of_the_state(tmp_path: Path) -> None:
    vae = small_vae()
    model = fit(Smooth(), [texture(1, 3, 61, 50, seed=i) for i in range(2)], [texture(1, 3, 64, 49)], vae=vae, patch=3)
    x = texture(1, 3, 41, 47)
    made = model.transport(x)
    assert made.shape == x.shape
    assert model.halo is None
    assert set(model.state_dict()) == set(DeepOptimalTransport(3, 4).state_dict())
    model.save(tmp_path / "state.safetensors")
    torch.testing.assert_close(DeepOptimalTransport.load(tmp_path / "state.safetensors", vae).transport(x), made)
    other = small_vae()
    with torch.no_grad():
        next(other.parameters()).add_(1e-3)
    with pytest.raises(CheckpointError, match="with another autoencoder"):
        DeepOptimalTransport.load(tmp_path / "state.safetensors", other)
    with pytest.raises(UsageError, match="made with an autoencoder"):
        DeepOptimalTransport.load(tmp_path / "state.safetensors")
    pixels = fitted()
    with pytest.raises(CheckpointError, match="in pixels"):
        pixels.attach(vae)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_an_autoencoder_works_in_its_own_precision(dtype: torch.dtype) -> None:
    vae, x = small_vae(), texture(1, 3, 24, 27)
    for model in (vae, vae.to(dtype)):
        state = DeepOptimalTransport(3, vae=model)
        state.update_source(texture(1, 3, 40, 40).to(dtype))
        state.update_target(texture(1, 3, 40, 40, smooth=0))
        made = state.transport(x.to(dtype))
        assert (made.shape, made.dtype) == (x.shape, dtype)
        torch.testing.assert_close(made.float(), state.transport(x), atol=0.1, rtol=0)


def test_statistics_of_the_shipped_autoencoder_find_it_by_themselves(tmp_path: Path) -> None:
    vae = saccade.create("vae_small")
    state = fit(Smooth(), [texture(1, 3, 64, 64)], [texture(1, 3, 64, 64, smooth=0)], vae=vae, patch=1)
    state.save(tmp_path / "state.safetensors")
    x = texture(1, 3, 30, 34)
    torch.testing.assert_close(
        DeepOptimalTransport.load(tmp_path / "state.safetensors").transport(x), state.transport(x)
    )


def test_autoencoders_are_opened_from_files_and_folders(tmp_path: Path) -> None:
    saccade.save(saccade.create("vae_small"), tmp_path / "own.safetensors")
    assert identity(open_autoencoder(tmp_path / "own.safetensors")) == identity(saccade.create("vae_small"))
    with pytest.raises(CheckpointError, match="no autoencoder at"):
        open_autoencoder(tmp_path / "nothing")
    diffusers = pytest.importorskip("diffusers", reason="an extra")
    with pytest.raises(CheckpointError, match="cannot read the autoencoder in"):
        open_autoencoder(tmp_path)
    made = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    made.save_pretrained(tmp_path / "kl")
    assert identity(open_autoencoder(tmp_path / "kl")) == identity(made)
    made.save_pretrained(tmp_path / "pickled", safe_serialization=False)
    with pytest.raises(CheckpointError, match="cannot read the autoencoder in"):
        open_autoencoder(tmp_path / "pickled")


def test_samples_of_the_posterior_come_from_the_seed() -> None:
    model = DeepOptimalTransport(3, vae=small_vae(), sample=True)
    model.update_source(texture(1, 3, 40, 40))
    model.update_target(texture(1, 3, 40, 40, smooth=0))
    x = texture(1, 3, 24, 24)
    first, again, other = (model.transport(x, seed=s) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.filterwarnings("ignore")
def test_diffusers_autoencoder_serves() -> None:
    diffusers = pytest.importorskip("diffusers", reason="an extra")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = diffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            layers_per_block=1,
            norm_num_groups=4,
            latent_channels=4,
        )
    for sample in (False, True):
        model = fit(Smooth(), [texture(1, 3, 33, 30)], [texture(1, 3, 32, 32)], vae=vae, patch=3, sample=sample)
        assert (model.channels, model.codec) == (4, identity(vae))
        assert model.transport(texture(1, 3, 21, 23)).shape == (1, 3, 21, 23)
    with pytest.raises(InputError, match="smaller than a patch"):
        model.transport(texture(1, 3, 4, 40))


# --- files ----------------------------------------------------------------------------------------------------------


def test_a_state_is_written_and_read_whole(tmp_path: Path) -> None:
    model, x = fitted(fold_size=1), texture(1, 3, 20, 20)
    model.save(tmp_path / "state.safetensors")
    for read in (DeepOptimalTransport.load, saccade.load):
        again = read(tmp_path / "state.safetensors")
        assert again.saccade_options == model.saccade_options
        for name, value in model.state_dict().items():
            assert torch.equal(again.state_dict()[name], value)
            assert value.dtype in (torch.float64, torch.int64)
        assert torch.equal(again.transport(x), model.transport(x))
    assert (tmp_path / "state.safetensors").stat().st_size < 60_000


def test_casting_leaves_statistics_exact() -> None:
    model = fitted().half()
    assert model.cov_source.dtype == torch.float64
    assert model.transport(texture(1, 3, 20, 20).double()).dtype == torch.float64


def test_an_official_state_is_recognised(tmp_path: Path) -> None:
    model = fitted()
    names = [n for n in model.state_dict() if "_features_" in n]
    torch.save({n: model.state_dict()[n] for n in names}, tmp_path / "official.pt")
    read = saccade.load(tmp_path / "official.pt")
    assert isinstance(read, DeepOptimalTransport)
    assert read.compute() == pytest.approx(model.distance())
    four = DeepOptimalTransport(5, 4).state_dict()
    recipe = from_official(four)
    assert recipe is not None
    assert recipe.options == {"patch": 5, "channels": 4, "codec": "unknown"}
    assert from_official({**four, "source_features_sum": torch.zeros(7)}) is None


def test_damaged_states_are_refused(tmp_path: Path) -> None:
    model = fitted()
    model.save(tmp_path / "whole.safetensors")
    data = (tmp_path / "whole.safetensors").read_bytes()
    dice = np.random.default_rng(0)
    path = tmp_path / "bad.safetensors"
    for length in dice.integers(0, len(data), 30):
        path.write_bytes(data[:length])
        with pytest.raises(SaccadeError):
            DeepOptimalTransport.load(path)
    for _ in range(60):
        changed = bytearray(data)
        for place in dice.integers(0, len(data), 20):
            changed[place] = dice.integers(256)
        path.write_bytes(bytes(changed))
        try:
            read = DeepOptimalTransport.load(path)
        except SaccadeError:
            continue
        assert all(torch.isfinite(v).all() for v in read.state_dict().values())
    model.cov_source[0, 1] += 1
    model.save(path)
    with pytest.raises(CheckpointError, match="cov_source is not symmetric"):
        DeepOptimalTransport.load(path)
    saccade.save(saccade.create("espcn", weights=None), path)
    with pytest.raises(CheckpointError, match="no statistics"):
        DeepOptimalTransport.load(path)


# --- bad input ------------------------------------------------------------------------------------------------------


def ready() -> DeepOptimalTransport:
    return fitted()


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: DeepOptimalTransport(4), UsageError, "odd sides, not 4"),
        (lambda: DeepOptimalTransport(5, fold_size=2), UsageError, "odd sides, not 5 and 2"),
        (lambda: DeepOptimalTransport(3, fold_size=5), UsageError, "larger than the patches"),
        (lambda: DeepOptimalTransport(101), UsageError, "3 x 101 x 101"),
        (lambda: DeepOptimalTransport(3, eps=0.0), UsageError, "positive"),
        (lambda: DeepOptimalTransport(3, compat="old"), UsageError, "compat"),
        (lambda: DeepOptimalTransport(3, vae=nn.Identity()), UsageError, "no autoencoder"),
        (lambda: DeepOptimalTransport(3).transport(texture(1, 3, 9, 9)), UsageError, "update_source, update_target"),
        (lambda: DeepOptimalTransport(3).compute(), InputError, "0 patches of source"),
        (lambda: ready().transport(texture(1, 3, 9, 9), latent_alpha=math.nan), UsageError, "number"),
        (lambda: ready().transport(texture(1, 1, 9, 9)), InputError, r"\(B, 3, h, w\)"),
        (lambda: ready().transport(texture(3, 9, 9)[None][0]), InputError, r"\(B, 3, h, w\)"),
        (lambda: ready().transport(torch.zeros(1, 3, 9, 9, dtype=torch.uint8)), InputError, "uint8"),
        (lambda: ready().transport(texture(1, 3, 2, 9)), InputError, "smaller than a patch"),
        (lambda: ready().update_source(2 * texture(1, 3, 9, 9, smooth=0) - 1), InputError, "halve and add"),
        (lambda: ready().update_target(255 * texture(1, 3, 9, 9)), InputError, "divide by 255"),
        (lambda: ready().update_target(texture(1, 3, 9, 9) * math.nan), InputError, r"\[nan"),
        (lambda: wrap("sesr", ready()), UsageError, "str cannot be"),
        (lambda: wrap(Smooth(), ready(), 2.0), UsageError, "between 0 and 1"),
    ],
)
def test_bad_input_is_refused_with_a_reason(call, error: type[Exception], says: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=says):
        call()


def test_too_few_patches_are_warned_of_and_still_serve() -> None:
    model = DeepOptimalTransport(5)
    model.update_source(texture(1, 3, 8, 8))
    model.update_target(texture(1, 3, 30, 30, smooth=0))
    with pytest.warns(UserWarning, match="16 patches of 75 numbers"):
        model.compute()
    assert bool(model.noise_covariance.any())
    assert torch.isfinite(model.transport(texture(1, 3, 20, 20))).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted()
