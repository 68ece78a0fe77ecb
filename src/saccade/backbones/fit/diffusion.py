"""Training and sampling with FIT's denoiser: noise schedules, the loss, DDIM and DDPM.

Chen, "On the Importance of Noise Scheduling for Diffusion Models", 2023, arXiv:2301.10972 (schedules); Jabri, Fleet
and Chen, "Scalable Adaptive Computation for Iterative Generation", ICML 2023, arXiv:2212.11972 (latent
self-conditioning); Song et al., arXiv:2010.02502 (DDIM); Ho et al., arXiv:2006.11239 (DDPM).

    x_t = sqrt(g) x_0 + sqrt(1 - g) eps,   g = signal(t) from 1 at t = 0 to about 0 at t = 1,   t uniform in [0, 1]

The network is told g, not t, as in the published code. It foretells the noise, the clean tokens, or
v = sqrt(g) eps - sqrt(1 - g) x_0.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.backbones.fit.network import FITDenoiser
from saccade.errors import InputError, UsageError

__all__ = ["SCHEDULES", "TARGETS", "generate", "loss", "noised", "signal"]

SCHEDULES = ("cosine", "sigmoid", "linear")
TARGETS = ("noise", "clean", "v")
SAMPLERS = ("ddim", "ddpm")
LEAST = 1e-9  # of the signal's share: the noise alone would leave nothing to divide by
BOTH = 0.9  # of the steps: the latents of a first pass go into a second one


def signal(t: Tensor, schedule: str = "cosine") -> Tensor:
    """The signal's share g of the variance at times in [0, 1]: 1 at 0, falling to `LEAST` at 1; any shape.

    Args:
        schedule: ``"cosine"``: cos^2(pi t / 2); ``"sigmoid"``: a sigmoid from -3 to 3, scaled to the same ends;
            ``"linear"``: 1 - t.

    Raises:
        UsageError: another schedule.
    """
    if schedule == "cosine":
        g = torch.cos(t * (math.pi / 2)) ** 2
    elif schedule == "sigmoid":
        top, bottom = torch.sigmoid(torch.tensor([3.0, -3.0], dtype=t.dtype, device=t.device))
        g = (top - torch.sigmoid(6 * t - 3)) / (top - bottom)
    elif schedule == "linear":
        g = 1 - t
    else:
        raise UsageError(f"noise schedules are {', '.join(SCHEDULES)}, not {schedule!r}")
    return g.clamp(LEAST, 1.0)


def noised(tokens: Tensor, noise: Tensor, g: Tensor) -> Tensor:
    """x_t of clean tokens (B, ...), noise of the same shape and the signal's share (B,)."""
    g = _beside(g, tokens)
    return g.sqrt() * tokens + (1 - g).sqrt() * noise


def _beside(g: Tensor, x: Tensor) -> Tensor:
    return g.view(-1, *[1] * (x.ndim - 1))


def _wanted(tokens: Tensor, noise: Tensor, g: Tensor, target: str) -> Tensor:
    g = _beside(g, tokens)
    return {"noise": noise, "clean": tokens, "v": g.sqrt() * noise - (1 - g).sqrt() * tokens}[target]


def _check(target: str) -> None:
    if target not in TARGETS:
        raise UsageError(f"the network foretells one of {', '.join(TARGETS)}, not {target!r}")


def loss(
    model: FITDenoiser,
    tokens: Tensor,
    cond: Tensor,
    chance: torch.Generator,
    *,
    target: str = "noise",
    schedule: str = "cosine",
    drop_cond: float = 0.0,
) -> Tensor:
    """Mean squared error of one draw of times and noises.

    With latent self-conditioning, nine batches in ten are seen twice: without gradients first, then with the latents
    of that pass.

    Args:
        tokens: (B, t, n, out_dim), clean; about [-1, 1].
        cond: (B, cond_dim) or (B, s, cond_dim).
        chance: of times, noises, second passes and dropped conditions; on the processor.
        target: what the network foretells, one of `TARGETS`.
        schedule: as `signal`.
        drop_cond: chance of a condition of zeros, for guidance in `generate`.

    Raises:
        UsageError: another target or schedule, a chance out of [0, 1].
        InputError: as `FITDenoiser`.
    """
    _check(target)
    if not 0 <= drop_cond <= 1:
        raise UsageError(f"drop_cond lies in [0, 1], not {drop_cond}")
    device, dtype, count = tokens.device, tokens.dtype, len(tokens)
    g = signal(torch.rand(count, generator=chance), schedule).to(device)
    noise = torch.randn(tokens.shape, generator=chance).to(device, dtype)
    twice = float(torch.rand((), generator=chance)) < BOTH
    if drop_cond:
        kept = (torch.rand(count, generator=chance) >= drop_cond).to(device, cond.dtype)
        cond = cond * _beside(kept, cond)
    x = noised(tokens, noise, g.to(dtype))
    before = None
    if model.self_cond and twice:
        with torch.no_grad():
            before = model(x, g, cond)[1]
    found = model(x, g, cond, before)[0]
    return F.mse_loss(found, _wanted(tokens, noise, g.to(dtype), target))


@torch.no_grad()
def generate(
    model: FITDenoiser,
    cond: Tensor,
    steps: int = 100,
    *,
    sampler: str = "ddim",
    target: str = "noise",
    schedule: str = "cosine",
    clip: float | None = 1.0,
    guidance: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """Tokens drawn from noise, (B, t, n, out_dim); `from_subimages` makes pictures of them.

    Args:
        model: in evaluation mode; its ``in_dim`` is its ``out_dim``.
        cond: (B, cond_dim) or (B, s, cond_dim).
        steps: calls of the network.
        sampler: ``"ddim"``, decided by the first noise alone, or ``"ddpm"``, with the larger variance.
        target, schedule: as in training.
        clip: clean tokens are bounded to [-clip, clip] at each step; None for not at all.
        guidance: how far away from what a condition of zeros gives (classifier-free; needs ``drop_cond`` in training
            and a second call a step); 0 for none.
        seed: of all noise.

    Raises:
        UsageError: another sampler, target or schedule, no steps, a bound that is not positive, a negative guidance.
        InputError: a network whose tokens come out in another width, and as `FITDenoiser`.
    """
    _check(target)
    if sampler not in SAMPLERS or steps < 1 or guidance < 0 or (clip is not None and not clip > 0):
        raise UsageError(
            f"sampling takes {' or '.join(SAMPLERS)}, at least 1 step, a positive clip and a guidance of at least 0, "
            f"not {sampler!r}, {steps}, {clip} and {guidance}"
        )
    out_dim = model.x_output_linear.out_features
    if model.in_dim != out_dim:
        raise InputError(f"this network takes tokens of {model.in_dim} numbers and gives {out_dim}: it cannot go on")
    chance = torch.Generator().manual_seed(seed)
    shape = (len(cond), model.num_groups, model.per_group, out_dim)

    def draw() -> Tensor:
        return torch.randn(shape, generator=chance).to(cond.device, cond.dtype)

    before, x = None, draw()
    clean = x
    for step in range(steps):
        g, after = signal(torch.tensor([1 - step / steps, 1 - (step + 1) / steps], dtype=torch.float64), schedule)
        told = g.to(cond.device, torch.float32).expand(len(cond))
        found, latents = model(x, told, cond, before)
        if guidance:
            found = found + guidance * (found - model(x, told, torch.zeros_like(cond), before)[0])
        before = latents if model.self_cond else None
        clean = _clean(x, found, float(g), target)
        clean = clean if clip is None else clean.clamp(-clip, clip)
        if step == steps - 1:  # nothing is left but the clean tokens
            break
        eps = (x - math.sqrt(g) * clean) / math.sqrt(1 - g)  # that goes with the bounded tokens
        if sampler == "ddim":
            x = math.sqrt(after) * clean + math.sqrt(1 - after) * eps
        else:
            alpha = float(g / after)
            x = (x - (1 - alpha) / math.sqrt(1 - g) * eps) / math.sqrt(alpha) + math.sqrt(1 - alpha) * draw()
    return clean


def _clean(x: Tensor, found: Tensor, g: float, target: str) -> Tensor:
    """The clean tokens that a foretelling at x means."""
    if target == "clean":
        return found
    if target == "v":
        return math.sqrt(g) * x - math.sqrt(1 - g) * found
    return (x - math.sqrt(1 - g) * found) / math.sqrt(g)
