"""The two controls that lose as much, without texture: one Gaussian for all, or wider ones farther out."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.backbones.foveated.windows import Windows
from saccade.errors import InputError, UsageError
from saccade.ops.ssim import gaussian
from saccade.quality.structure import ssim

__all__ = ["FoveatedBlur", "UniformBlur", "gaussian_blur", "matched"]

NARROW = 0.2  # pixels; a narrower Gaussian changes less than one part in 10^5
REACH = 3.0  # deviations at which a Gaussian is cut off


def checked_sigma(sigma: float) -> float:
    """A deviation in pixels.

    Raises:
        UsageError: a negative one, or one that is not finite.
    """
    if not (sigma >= 0 and math.isfinite(sigma)):
        raise UsageError(f"the deviation of a Gaussian is 0 or more pixels, not {sigma}")
    return sigma


def gaussian_blur(x: Tensor, sigma: float, *, reach: float = REACH) -> Tensor:
    """Convolve with a Gaussian; the border is repeated outwards.

    Args:
        x: (B, C, H, W).
        sigma: deviation in pixels; 0 leaves the picture as it is.
        reach: deviations to which the taps go on either side, rounded up to pixels.

    Raises:
        UsageError: a sigma that is negative or not finite.
    """
    if checked_sigma(sigma) < NARROW:
        return x
    radius = math.ceil(reach * sigma)
    kernel = torch.tensor(gaussian(2 * radius + 1, sigma), dtype=x.dtype, device=x.device)
    channels = x.shape[1]
    wide = F.pad(x, (radius,) * 4, mode="replicate")
    rows = F.conv2d(wide, kernel.expand(channels, 1, 1, -1), groups=channels)
    return F.conv2d(rows, kernel[:, None].expand(channels, 1, -1, 1), groups=channels)


class UniformBlur(nn.Module):
    """One Gaussian everywhere: (B, C, H, W) -> the same.

    Args:
        sigma: deviation in pixels.

    Raises:
        UsageError: a sigma that is negative or not finite.
    """

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = checked_sigma(sigma)

    def forward(self, picture: Tensor) -> Tensor:
        return gaussian_blur(picture, self.sigma)


class FoveatedBlur(nn.Module):
    """A Gaussian whose deviation grows with eccentricity, ring of pooling windows by ring.

        out = sum over rings k of weight_k(pixel) (G_{gain r_k} * x)(pixel)

    All windows of a ring have the same eccentricity r_k, so a ring is blurred at once; the windows' ramps join the
    rings. The fovea, inside the first ring, stays.

    Args:
        size: (height, width).
        scale, fixation: of the windows, as `Windows`.
        gain: deviation over eccentricity.

    Shape: (B, C, H, W) -> the same.

    Raises:
        UsageError: a negative gain.
        InputError: pictures of another size.
    """

    weights: Tensor

    def __init__(
        self,
        size: tuple[int, int],
        scale: float = 0.4,
        fixation: tuple[float, float] = (0.5, 0.5),
        *,
        gain: float,
    ) -> None:
        super().__init__()
        if not (gain >= 0 and math.isfinite(gain)):
            raise UsageError(f"the gain of the blur is 0 or more, not {gain}")
        windows = Windows(size, scale, fixation)
        self.size, self.gain = size, gain
        self.sigmas = [0.0, *(gain * windows.radius(k) for k in range(windows.rings))]
        self.register_buffer("weights", torch.from_numpy(windows.ring_weights()).float(), persistent=False)

    def forward(self, picture: Tensor) -> Tensor:
        if not torch.compiler.is_compiling() and tuple(picture.shape[2:]) != tuple(self.size):
            raise InputError(
                f"these windows were built for {self.size[1]} x {self.size[0]} px, not for {tuple(picture.shape)}"
            )
        out = torch.zeros_like(picture)
        for sigma, weight in zip(self.sigmas, self.weights, strict=True):
            out = out + weight.to(picture.dtype) * gaussian_blur(picture, sigma)
        return out


def matched(
    degrade: Callable[[float], Tensor],
    reference: Tensor,
    similarity: float,
    *,
    high: float,
    tolerance: float = 0.005,
) -> float:
    """The strength at which degraded pictures are as similar to the reference as asked for, by bisection on mean SSIM.

    Args:
        degrade: of a strength, 0 for none, gives pictures (B, C, H, W) in [0, 1]; similarity falls with strength.
        reference: (B, C, H, W) in [0, 1].
        similarity: mean SSIM to meet, e.g. that of the texture pictures to the reference.
        high: a strength that is more than enough.
        tolerance: of the SSIM.

    Raises:
        InputError: not even the strongest degrades that much.
    """
    low, found = 0.0, math.nan
    for _ in range(60):
        middle = (low + high) / 2
        found = float(ssim(degrade(middle).clamp(0, 1), reference).mean())
        if abs(found - similarity) <= tolerance:
            return middle
        low, high = (middle, high) if found > similarity else (low, middle)
    raise InputError(f"no strength gives an SSIM of {similarity:.3f} within {tolerance:g}; the last gave {found:.3f}")
