"""The stages of the four systems: what shows a picture as an eye might.

Deza and Konkle, "Emergent Properties of Foveated Perceptual Systems", arXiv:2006.07991, section 2.

    reference   D(E(x))                                   what encoder and decoder alone make of it
    texture     D(painted regions)                        Foveation-Texture-Net
    uniform     G_sigma * D(E(x))                         Uniform-Net, sigma by SSIM
    blur        rings of G_{gain r} * D(E(x))             Foveation-Blur-Net, gain by SSIM
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from saccade.backbones.foveated.blurs import FoveatedBlur, UniformBlur
from saccade.backbones.foveated.transform import FoveatedTexture
from saccade.errors import UsageError
from saccade.nn.backbone import IMAGENET_MEAN, IMAGENET_STD

__all__ = ["GAIN", "KINDS", "SCALES", "SIGMA", "InFront", "stage"]

KINDS = ("reference", "texture", "uniform", "blur")
SCALES = (0.7, 0.6, 0.5, 0.4, 0.3, 0.25)  # published, fewest regions first
#: deviation of the uniform blur as a part of the picture's side, and deviation over eccentricity of the foveated one:
#: where photographs of 256 px keep the SSIM of their textures at scale 0.4 (`saccade reproduce foveated --data` prints
#: what they are for yours)
SIGMA, GAIN = 6.5 / 256, 0.094


def stage(
    kind: str,
    size: tuple[int, int],
    scale: float = 0.4,
    fixation: tuple[float, float] = (0.5, 0.5),
    *,
    strength: float | None = None,
    exact: bool = True,
    **options: Any,
) -> nn.Module:
    """The stage of a system: pictures (B, C, H, W) in [0, 1] -> the same.

    Args:
        kind: one of `KINDS`.
        size: (height, width).
        scale, fixation: of the pooling windows.
        strength: of the two blurs; by default matched to the texture's SSIM on photographs.
        exact: of the two blurs, as `gaussian_blur`.
        options: of `FoveatedTexture`, for ``"texture"``. With the lapped transform the reference is the picture.

    Raises:
        UsageError: an unknown kind, a strength for a kind that has none.
    """
    if kind not in KINDS:
        raise UsageError(f"a stage is one of {', '.join(KINDS)}, not {kind!r}")
    if strength is not None and kind not in ("uniform", "blur"):
        raise UsageError(f"only blurs have a strength, {kind!r} has none")
    if kind == "texture":
        return FoveatedTexture(size, scale, fixation, **options)
    if kind == "uniform":
        return UniformBlur(SIGMA * (size[0] * size[1]) ** 0.5 if strength is None else strength, exact=exact)
    if kind == "blur":
        return FoveatedBlur(size, scale, fixation, gain=GAIN if strength is None else strength, exact=exact)
    return nn.Identity()


class InFront(nn.Module):
    """A stage in front of any classifier, e.g. torchvision's AlexNet.

    Args:
        stage: takes and gives pictures (B, 3, H, W) in [0, 1].
        network: takes standardised pictures.
        mean, std: by which it wants them.

    Shape: (B, 3, H, W) in [0, 1] -> what the network gives.
    """

    centre: Tensor
    spread: Tensor

    def __init__(
        self,
        stage: nn.Module,
        network: nn.Module,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.stage, self.network = stage, network
        for name, values in (("centre", mean), ("spread", std)):
            self.register_buffer(name, torch.tensor(values, device="cpu")[:, None, None], persistent=False)

    def forward(self, picture: Tensor) -> Tensor:
        out: Tensor = self.network((self.stage(picture) - self.centre) / self.spread)
        return out
