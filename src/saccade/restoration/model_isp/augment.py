"""RAW from any photograph: cameras sampled from the dictionaries, and the noise of a sensor (section 4 of the paper).

    RGB -- inverse ISP with sampled weights --> clean RAW -- shot and read noise --> noisy RAW

A learnt ISP spans, with its dictionaries, the cameras near the one it was trained on. Sampling weights of atoms gives
RAW of as many exposures and illuminants as there are photographs, for training where no RAW ground truth exists.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saccade.errors import UsageError
from saccade.ops.demosaic import mosaic
from saccade.restoration.model_isp.network import LEARNT, ModelISP, Settings
from saccade.restoration.model_isp.operators import noise_levels, noise_variance

__all__ = ["add_noise", "noisy_pair", "sample_settings"]


def sample_settings(
    model: ModelISP, count: int, *, spread: float = 0.5, seed: int | torch.Generator = 0, rgb: Tensor | None = None
) -> Settings:
    """Plausible settings of the inverse ISP: weights of atoms drawn around those that it would choose.

    Weights are a mix of the model's own (for ``rgb``, else its averages) and a draw from the flat Dirichlet
    distribution, which has every convex combination of atoms alike.

    Args:
        count: how many cameras; ignored where ``rgb`` (B, 3, H, W) is given, which gives one for each picture.
        spread: share of the draw, 0 for the model's own settings to 1 for anything that the dictionaries hold.
        seed: a number or a generator.

    Raises:
        UsageError: a spread outside [0, 1], or no pictures.
    """
    if not 0 <= spread <= 1 or count < 1:
        raise UsageError(f"sampling needs a spread in [0, 1] and a count of at least 1, not {spread} and {count}")
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
    own = None if rgb is None else model.choose(rgb, "inverse")
    weights = {}
    for name in LEARNT:
        if name in model.disabled:
            continue
        base = model.encoder_inv.average(name).expand(count, -1) if own is None else own[name]
        drawn = -torch.rand(base.shape, generator=generator).clamp_min(1e-9).log()  # exponentials: Dirichlet(1, ..., 1)
        drawn = drawn.to(base)
        weights[name] = (1 - spread) * base + spread * drawn / drawn.sum(-1, keepdim=True)
    return model.mix(weights)


def add_noise(
    packed: Tensor, generator: torch.Generator, levels: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Shot and read noise of a sensor, Gaussian of variance shot * x + read; not clamped.

    Args:
        packed: (B, 4, h, w), clean.
        levels: shot and read (B,); None draws them as real exposures have them (`operators.noise_levels`).

    Returns:
        Noisy RAW, and the two levels.
    """
    shot, read = noise_levels(len(packed), generator) if levels is None else levels
    shot, read = shot.to(packed), read.to(packed)
    variance = noise_variance(packed, shot[:, None, None, None], read[:, None, None, None])
    return packed + variance.clamp_min(0).sqrt() * torch.randn(packed.shape, generator=generator).to(packed), shot, read


@torch.no_grad()
def noisy_pair(
    model: ModelISP, rgb: Tensor, *, spread: float = 0.5, seed: int | torch.Generator = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training data of a RAW denoiser from photographs (B, 3, H, W), even sides.

    Returns:
        Noisy and clean packed RAW (B, 4, H/2, W/2), shot and read noise (B,).

    Raises:
        UsageError: a spread outside [0, 1].
        InputError: no pictures in [0, 1], or an odd side.
    """
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
    settings = sample_settings(model, len(rgb), spread=spread, seed=generator, rgb=rgb)
    clean = mosaic(model.inverse(rgb, settings), model.pattern)
    noisy, shot, read = add_noise(clean, generator)
    return noisy, clean, shot, read
