from __future__ import annotations

from pathlib import Path

import pytest
import torch

import saccade
from saccade.cost import cost, count_parameters
from saccade.errors import InputError, UsageError
from saccade.restoration.autoencoder import Autoencoder


def picture(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def small() -> Autoencoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Autoencoder(channels=2, widths=(4, 6), depths=(1, 1, 1, 1))


@pytest.mark.parametrize("size", [(16, 16), (17, 22), (1, 3), (5, 40)], ids=str)
def test_any_size_comes_back_at_its_size(size: tuple[int, int]) -> None:
    model = small().eval()
    x = picture(2, 3, *size)
    mean, log_variance = model.encode(x)
    assert mean.shape == log_variance.shape == (2, 2, -(-size[0] // 4), -(-size[1] // 4))
    assert model(x).shape == x.shape
    assert model.decode(mean).shape[2:] == (4 * mean.shape[2], 4 * mean.shape[3])


def test_what_lies_beyond_the_halo_does_not_matter() -> None:
    model = saccade.create("vae_small", weights=None)
    x = picture(1, 3, 8, 2 * model.halo + 24)
    changed = x.clone()
    changed[..., -8:] = 1 - changed[..., -8:]
    far = x.shape[3] - 8 - model.halo
    assert torch.equal(model(x)[..., : far - 4], model(changed)[..., : far - 4])


def test_the_small_one_is_small() -> None:
    model = saccade.create("vae_small", weights=None)
    assert count_parameters(model) == 323_836
    assert cost(model, torch.empty(1, 3, 256, 256, device="meta")).macs / 256**2 == pytest.approx(28_392)


def test_a_step_of_training_lowers_its_loss_and_repeats_exactly() -> None:
    model, x = small().train(), picture(2, 3, 32, 32)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    first = model.training_loss(x, x)
    assert torch.equal(first, model.training_loss(x, x))  # the posterior's noise depends on the pictures
    for _ in range(15):
        optimiser.zero_grad()
        model.training_loss(x, x).backward()
        optimiser.step()
    assert model.training_loss(x, x).item() < first.item()


def test_the_divergence_counts_less_with_a_larger_balance() -> None:
    x = picture(1, 3, 32, 32)
    losses = []
    for balance in (1.0, 1e9):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            losses.append(Autoencoder(2, (4, 6), (0, 0, 0, 0), balance=balance).training_loss(x, x).item())
    assert losses[0] > losses[1]


def test_it_is_saved_and_loaded_by_name(tmp_path: Path) -> None:
    model = saccade.create("vae_small", weights=None, channels=2, widths=(4, 4))
    saccade.save(model, tmp_path / "vae.safetensors")
    x = picture(1, 3, 12, 13)
    assert torch.equal(saccade.load(tmp_path / "vae.safetensors")(x), model(x))


def test_what_is_no_picture_or_latent_is_refused() -> None:
    model = small().eval()
    with pytest.raises(InputError, match="the autoencoder takes"):
        model(picture(1, 1, 8, 8))
    with pytest.raises(InputError, match=r"\(B, 2, h, w\)"):
        model.decode(picture(1, 3, 8, 8))
    for options in ({"channels": 0}, {"balance": 0.0}, {"mix": 2.0}):
        with pytest.raises(UsageError, match="autoencoder needs"):
            Autoencoder(**options)
