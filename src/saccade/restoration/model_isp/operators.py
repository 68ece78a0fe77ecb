"""The canonical operators of a camera's image signal processor, and of undoing it.

Brooks et al., "Unprocessing Images for Learned Raw Denoising", CVPR 2019, arXiv:1811.11127, sections 3.1 to 3.7.

    rgb -- smoothstep^-1 -- gamma^-1 -- CCM^-1 -- safe gains^-1 -- mosaic --> RAW      (`unprocess`)
    RAW -- gains -- CCM -- gamma -- smoothstep --> rgb                                   (`process`, without mosaic)

Pictures are (B, 3, H, W) or (3, H, W), linear or not as each operator says; gains are (red, green, blue) factors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from saccade.ops.demosaic import mosaic

__all__ = [
    "GAMMA",
    "Camera",
    "apply_ccm",
    "apply_gains",
    "average_camera",
    "channel_gains",
    "gamma_compression",
    "gamma_expansion",
    "inverse_smoothstep",
    "noise_levels",
    "noise_variance",
    "process",
    "random_camera",
    "safe_invert_gains",
    "smoothstep",
    "unprocess",
]

GAMMA = 2.2
INFLECTION = 0.9  # grey level above which highlights are kept (section 3.4)

#: XYZ -> camera of four cameras at daylight (their colour matrices), from which Brooks et al. mix (section 3.5)
XYZ_TO_CAMERA = (
    ((1.0234, -0.2969, -0.2266), (-0.5625, 1.6328, -0.0469), (-0.0703, 0.2188, 0.6406)),
    ((0.4913, -0.0541, -0.0202), (-0.6130, 1.3513, 0.2906), (-0.1564, 0.2151, 0.7183)),
    ((0.8380, -0.2630, -0.0639), (-0.2887, 1.0725, 0.2496), (-0.0627, 0.1427, 0.5438)),
    ((0.6596, -0.2079, -0.0562), (-0.4782, 1.3016, 0.1933), (-0.0970, 0.1581, 0.5181)),
)
#: linear sRGB -> XYZ, D65 (IEC 61966-2-1)
SRGB_TO_XYZ = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))
RED, BLUE, DIGITAL = (1.9, 2.4), (1.5, 1.9), (0.8, 0.1)  # ranges of white balance; mean and deviation of 1/gain
SHOT = (1e-4, 0.012)  # range of the shot noise, log-uniform (section 3.1)
READ = (2.18, 1.20, 0.26)  # log read = slope * log shot + offset + deviation * normal


def smoothstep(x: Tensor) -> Tensor:
    """The tone curve 3x^2 - 2x^3 on [0, 1] (section 3.7); values outside are clamped."""
    x = x.clamp(0, 1)
    return x * x * (3 - 2 * x)


def inverse_smoothstep(y: Tensor) -> Tensor:
    """The x in [0, 1] whose `smoothstep` is y."""
    return 0.5 - torch.sin(torch.asin(1 - 2 * y.clamp(0, 1)) / 3)


def gamma_compression(x: Tensor) -> Tensor:
    """max(x, 1e-8)^(1/2.2) (section 3.6); negative values, which a RAW has below black level, become black."""
    return x.clamp_min(1e-8) ** (1 / GAMMA)


def gamma_expansion(x: Tensor) -> Tensor:
    """max(x, 1e-8)^2.2."""
    return x.clamp_min(1e-8) ** GAMMA


def apply_ccm(x: Tensor, ccm: Tensor) -> Tensor:
    """Multiply colours by a matrix.

    Args:
        x: (..., 3, H, W).
        ccm: (3, 3), or (B, 3, 3) for (B, 3, H, W).

    Returns:
        As ``x``, not clamped.
    """
    return (ccm @ x.flatten(-2)).unflatten(-1, x.shape[-2:])


def channel_gains(rgb_gain: Tensor, red_gain: Tensor, blue_gain: Tensor) -> Tensor:
    """Digital gain and white balance as factors (..., 3) of the channels: (red, 1, blue) * rgb."""
    return torch.stack((red_gain * rgb_gain, rgb_gain, blue_gain * rgb_gain), -1)


def apply_gains(x: Tensor, gains: Tensor) -> Tensor:
    """White balance of camera colours (..., 3, H, W) by factors (..., 3); clamped to [0, 1]."""
    return (x * gains[..., None, None]).clamp(0, 1)


def safe_invert_gains(x: Tensor, gains: Tensor) -> Tensor:
    """Undo `apply_gains` so that highlights stay white (section 3.4); not clamped.

    Below a grey of 0.9 this divides by the gains; above, the more a pixel nears white the less it is darkened. Gains
    below 1 are always undone.
    """
    inverse = 1 / gains[..., None, None]
    grey = x.mean(-3, keepdim=True)
    mask = ((grey - INFLECTION).clamp_min(0) / (1 - INFLECTION)) ** 2
    return x * torch.maximum(mask + (1 - mask) * inverse, inverse)


def noise_variance(x: Tensor, shot: Tensor | float, read: Tensor | float) -> Tensor:
    """Variance of a RAW of expected value x: x * shot + read (section 3.1)."""
    return x * shot + read


def noise_levels(count: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Shot and read noise of ``count`` exposures, each (count,), as real cameras have them together (section 3.1)."""
    low, high = math.log(SHOT[0]), math.log(SHOT[1])
    log_shot = low + (high - low) * torch.rand(count, generator=generator)
    slope, offset, deviation = READ
    log_read = slope * log_shot + offset + deviation * torch.randn(count, generator=generator)
    return log_shot.exp(), log_read.exp()


@dataclass(frozen=True)
class Camera:
    """Parameters of the canonical pipeline.

    Attributes:
        rgb_to_camera: (3, 3) linear sRGB -> camera colours after white balance, rows sum to 1.
        camera_to_rgb: its inverse, the CCM.
        gains: (3,) factors of red, green and blue, digital gain included.
    """

    rgb_to_camera: Tensor
    camera_to_rgb: Tensor
    gains: Tensor


def mixed_matrix(weights: Tensor) -> Tensor:
    """Linear sRGB -> camera (..., 3, 3) from convex weights (..., 4) of the known cameras, rows normalised."""
    xyz_to_camera = torch.einsum("...n,nij->...ij", weights, weights.new_tensor(XYZ_TO_CAMERA))
    made = xyz_to_camera @ weights.new_tensor(SRGB_TO_XYZ)
    return made / made.sum(-1, keepdim=True)


def average_camera() -> Camera:
    """The mean of `random_camera`: equal weights, red 2.15, blue 1.7, digital gain 1/0.8."""
    matrix = mixed_matrix(torch.full((4,), 0.25))
    red, blue = (torch.tensor(sum(r) / 2) for r in (RED, BLUE))
    return Camera(matrix, torch.linalg.inv(matrix), channel_gains(torch.tensor(1 / DIGITAL[0]), red, blue))


def random_camera(generator: torch.Generator | None = None) -> Camera:
    """A camera as Brooks et al. draw them: random mix of matrices, red 1.9-2.4, blue 1.5-1.9, gain 1/N(0.8, 0.1)."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand((), generator=generator)

    weights = torch.rand(4, generator=generator) + 1e-8
    matrix = mixed_matrix(weights / weights.sum())
    digital = 1 / (DIGITAL[0] + DIGITAL[1] * torch.randn((), generator=generator)).clamp(0.4, 1.2)
    gains = channel_gains(digital, uniform(*RED), uniform(*BLUE))
    return Camera(matrix, torch.linalg.inv(matrix), gains)


def unprocess(rgb: Tensor, camera: Camera, pattern: str | None = None) -> Tensor:
    """A picture back to RAW: tone, gamma, colours, gains (section 3), then the mosaic if a pattern is given.

    Args:
        rgb: (..., 3, H, W) in [0, 1].
        pattern: a Bayer pattern, or None for all three colours at every pixel.

    Returns:
        Linear camera colours in [0, 1]: (..., 3, H, W), or packed (..., 4, H/2, W/2).
    """
    x = gamma_expansion(inverse_smoothstep(rgb))
    x = apply_ccm(x, camera.rgb_to_camera.to(x)).clamp(0, 1)
    x = safe_invert_gains(x, camera.gains.to(x)).clamp(0, 1)
    return x if pattern is None else mosaic(x, pattern)


def process(linear: Tensor, camera: Camera) -> Tensor:
    """Linear camera colours (..., 3, H, W) to a picture in [0, 1]: gains, colours, gamma, tone."""
    x = apply_gains(linear, camera.gains.to(linear))
    x = apply_ccm(x, camera.camera_to_rgb.to(x)).clamp(0, 1)
    return smoothstep(gamma_compression(x))
