"""FIT's diffusion: schedules, losses and samplers against what is known in closed form, and a small training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from saccade.backbones.fit import FITDenoiser, diffusion_loss, generate, noised, signal
from saccade.backbones.fit.diffusion import LEAST, SCHEDULES, TARGETS
from saccade.errors import InputError, UsageError

SIZES: dict[str, Any] = {
    "layers": "(1)1(1)",
    "x_size": 8,
    "num_groups": 2,
    "latents_per_group": 2,
    "x_dim": 16,
    "latent_dim": 16,
    "x_num_heads": 2,
    "latent_num_heads": 2,
    "out_dim": 4,
    "cond_dim": 2,
}
MEAN, DEVIATION = 0.4, 0.3


class Gaussian(FITDenoiser):
    """Foretells at best what is normal data of the mean and deviation above, shifted by the first of the condition."""

    def __init__(self, target: str, **options: Any) -> None:
        super().__init__(**{**SIZES, **options})
        self.target, self.calls = target, 0

    def forward(
        self, x: Tensor, time: Tensor, cond: Tensor, latents_prev: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        self.calls += 1
        g = time.to(x.dtype).view(-1, 1, 1, 1).clamp(max=1 - 1e-6)
        mean = MEAN + cond[:, :1, None, None]
        clean = mean + g.sqrt() * DEVIATION**2 / (g * DEVIATION**2 + 1 - g) * (x - g.sqrt() * mean)
        noise = (x - g.sqrt() * clean) / (1 - g).sqrt()
        made = {"clean": clean, "noise": noise, "v": g.sqrt() * noise - (1 - g).sqrt() * clean}[self.target]
        return made, x.new_zeros(len(x), self.num_groups, self.used, self.latent_dim)


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_signal_falls_from_all_to_nothing(schedule: str) -> None:
    t = torch.linspace(0, 1, 33, dtype=torch.float64)
    g = signal(t, schedule)
    assert float(g[0]) == pytest.approx(1)
    assert float(g[-1]) == pytest.approx(LEAST)
    assert bool((g.diff() < 0).all())
    assert float(g[16]) == pytest.approx(0.5)  # all three are symmetric
    with pytest.raises(UsageError, match="cosine, sigmoid, linear"):
        signal(t, "square")


def test_noise_keeps_the_variance() -> None:
    x, noise = torch.randn(1000, 2, 4, 4, generator=chance(1)), torch.randn(1000, 2, 4, 4, generator=chance(2))
    g = torch.full((1000,), 0.3)
    made = noised(x, noise, g)
    assert float(made.var()) == pytest.approx(1, rel=0.02)
    torch.testing.assert_close(made[3], 0.3**0.5 * x[3] + 0.7**0.5 * noise[3])


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
@pytest.mark.parametrize("target", TARGETS)
def test_what_is_drawn_is_spread_as_the_data(sampler: str, target: str) -> None:
    """With the best possible network for normal data samples are normal with the same mean and deviation."""
    model = Gaussian(target).double().eval()
    cond = torch.zeros(500, 2, dtype=torch.float64)
    drawn = generate(model, cond, 200, sampler=sampler, target=target, clip=None, seed=3)
    assert drawn.shape == (500, 2, 4, 4)
    assert model.calls == 200
    assert float(drawn.mean()) == pytest.approx(MEAN, abs=0.02)
    assert float(drawn.std()) == pytest.approx(DEVIATION, rel=0.06)
    assert torch.equal(drawn, generate(model, cond, 200, sampler=sampler, target=target, clip=None, seed=3))
    assert not torch.equal(drawn, generate(model, cond, 200, sampler=sampler, target=target, clip=None, seed=4))


def test_bounds_and_guidance() -> None:
    model, cond = Gaussian("noise").double().eval(), torch.full((50, 2), 0.5, dtype=torch.float64)
    assert float(generate(model, cond, 20, clip=0.6).max()) <= 0.6
    plain, led = (float(generate(model, cond, 50, clip=None, guidance=w).mean()) for w in (0.0, 1.0))
    assert plain == pytest.approx(MEAN + 0.5, abs=0.05)
    assert led > plain + 0.2  # away from what no condition gives


@pytest.mark.parametrize("target", TARGETS)
def test_the_best_network_has_the_least_loss(target: str) -> None:
    """The loss of the best foretelling of normal data is known; any other constant is worse."""
    tokens = MEAN + DEVIATION * torch.randn(4000, 2, 4, 4, generator=chance(5))
    cond = torch.zeros(4000, 2)
    best = float(diffusion_loss(Gaussian(target), tokens, cond, chance(6), target=target))
    off = float(diffusion_loss(Gaussian(target), tokens, cond + 0.3, chance(6), target=target))
    assert best < off
    if target == "clean":  # the variance that is left, over all times
        g = signal(torch.linspace(0, 1, 20_001))
        left = DEVIATION**2 * (1 - g) / (g * DEVIATION**2 + 1 - g)
        assert best == pytest.approx(float(left.mean()), rel=0.05)
    blind = diffusion_loss(Gaussian(target), tokens, cond + 0.3, chance(6), target=target, drop_cond=1.0)
    assert float(blind) < off


def test_nine_in_ten_steps_see_the_latents_of_a_first_pass() -> None:
    tokens, cond = torch.zeros(2, 2, 4, 4), torch.zeros(2, 2)
    model = Gaussian("noise", self_cond="latent")
    g = chance(0)
    for _ in range(200):
        diffusion_loss(model, tokens, cond, g)
    assert 360 <= model.calls <= 398
    alone = Gaussian("noise")
    diffusion_loss(alone, tokens, cond, chance(0))
    assert alone.calls == 1


def test_a_small_network_learns_to_draw_what_its_condition_asks_for() -> None:
    """Two classes, tokens of +0.5 and of -0.5."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = FITDenoiser(**SIZES, self_cond="latent")
    optimiser, g = torch.optim.AdamW(model.parameters(), 3e-3), chance(0)
    for _ in range(150):
        label = torch.randint(2, (32,), generator=g)
        tokens = (label.float() - 0.5).view(-1, 1, 1, 1).expand(-1, 2, 4, 4)
        optimiser.zero_grad()
        diffusion_loss(model, tokens, torch.nn.functional.one_hot(label, 2).float(), g, schedule="sigmoid").backward()
        optimiser.step()
    drawn = generate(model.eval(), torch.eye(2).repeat_interleave(8, 0), 20, schedule="sigmoid").mean((1, 2, 3))
    assert float(drawn[:8].mean()) < -0.25
    assert float(drawn[8:].mean()) > 0.25


def test_what_cannot_be_drawn_is_refused() -> None:
    model, cond = Gaussian("noise"), torch.zeros(1, 2)
    for options, says in (
        ({"sampler": "euler"}, "'euler'"),
        ({"steps": 0}, "at least 1 step"),
        ({"clip": 0.0}, "positive clip"),
        ({"guidance": -1.0}, "guidance"),
        ({"target": "score"}, "'score'"),
        ({"schedule": "square"}, "'square'"),
    ):
        with pytest.raises(UsageError, match=says):
            generate(model, cond, **options)
    with pytest.raises(UsageError, match="drop_cond"):
        diffusion_loss(model, torch.zeros(1, 2, 4, 4), cond, chance(), drop_cond=2.0)
    with pytest.raises(InputError, match="cannot go on"):
        generate(Gaussian("noise", in_dim=6), cond)
