"""The simple blind degradation: white noise of unknown strength, then perhaps JPEG of unknown quality.

For denoisers and JPEG cleaners that are told neither; cheap enough to run beside training on the same core.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from saccade.data.degrade.jpeg import jpeg
from saccade.errors import InputError

__all__ = ["noise_jpeg", "white_noise"]


def white_noise(pictures: Tensor, sigmas: np.ndarray, chance: np.random.Generator) -> Tensor:
    """Add independent Gaussian noise; nothing is cut off or rounded.

    Args:
        pictures: (B, C, h, w).
        sigmas: (B,) standard deviations in the pictures' units.
    """
    noise = torch.from_numpy(chance.standard_normal(tuple(pictures.shape), dtype=np.float32)).to(pictures)
    return pictures + noise * torch.from_numpy(np.asarray(sigmas, np.float32)).to(pictures)[:, None, None, None]


@torch.no_grad()
def noise_jpeg(
    clean: Tensor,
    chance: np.random.Generator,
    *,
    sigma: tuple[float, float] = (0.0, 50.0),
    quality: tuple[int, int] = (10, 95),
    noiseless: float = 0.15,
    coded: float = 0.5,
    rounded: bool = True,
) -> Tensor:
    """White noise, then JPEG, each picture with its own strength of both.

    A share of ``noiseless * (1 - coded)`` of the pictures comes back unharmed, so that a cleaner learns to leave good
    pictures alone. About 0.3 ms for a picture of 64 x 64 on one core.

    Args:
        clean: (B, 3, h, w) in [0, 1].
        chance: where all randomness comes from.
        sigma: range of the noise's standard deviation, of 255; uniform.
        quality: range of the JPEG quality, both ends included; uniform.
        noiseless: probability of no noise.
        coded: probability of JPEG.
        rounded: give 8-bit levels in [0, 1], as files do; False leaves pictures that saw no JPEG unrounded and uncut.

    Returns:
        (B, 3, h, w), of the input's dtype and device.

    Raises:
        InputError: another shape.
    """
    if clean.ndim != 4 or clean.shape[1] != 3:
        raise InputError(f"noise_jpeg takes pictures (B, 3, h, w), not {tuple(clean.shape)}")
    count = len(clean)
    sigmas = chance.uniform(*sigma, count) / 255 * (chance.random(count) >= noiseless)
    chosen = np.flatnonzero(chance.random(count) < coded)
    qualities = chance.integers(quality[0], quality[1], count, endpoint=True)
    made = white_noise(clean, sigmas, chance)
    if rounded:
        made = made.mul_(255).round_().clamp_(0, 255).div_(255)
    if len(chosen):
        which = torch.from_numpy(chosen).to(made.device)
        made[which] = jpeg(made[which], [int(q) for q in qualities[chosen]])
    return made
