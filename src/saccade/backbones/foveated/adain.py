"""Style as means and deviations: AdaIN, CORAL, and the published encoder and decoder with their losses.

Huang and Belongie, "Arbitrary Style Transfer in Real-time with Adaptive Instance Normalization", ICCV 2017,
arXiv:1703.06868; used by Deza et al., "Towards Metamerism via Foveated Style Transfer", ICLR 2019, arXiv:1705.10041.

    picture in [0, 1] -- 1x1 -- VGG-19, reflected borders, to relu4_1 -- (B, 512, H/8, W/8)
    features -- 3x3 convolutions, three nearest enlargements -- (B, 3, H, W)
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.checkpoint import Recipe, StateDict
from saccade.errors import CheckpointError, InputError, UsageError
from saccade.nn.precision import widened, without_autocast
from saccade.registry import recognise, register

__all__ = ["EPSILON", "Decoder", "Encoder", "adain", "adain_losses", "coloured", "coral", "moments", "whitened"]

EPSILON = 1e-5  # added to variances before the root
STEPS = 30  # of the iteration for square roots: enough for eigenvalues 1e7 apart


def moments(features: Tensor, epsilon: float = EPSILON) -> tuple[Tensor, Tensor]:
    """Mean and deviation, sqrt(unbiased variance + epsilon), of each channel: (B, C, H, W) -> (B, C, 1, 1) twice.

    Raises:
        InputError: a single cell, whose unbiased variance is not defined.
    """
    if features.shape[2] * features.shape[3] < 2:
        raise InputError("the deviation of a single cell is not defined")
    flat = widened(features).flatten(2)  # squares leave the range of float16
    deviation = (flat.var(2) + epsilon).sqrt()
    mean, deviation = (value[:, :, None, None].to(features.dtype) for value in (flat.mean(2), deviation))
    return mean, deviation


def adain(content: Tensor, style: Tensor, epsilon: float = EPSILON) -> Tensor:
    """Content with the means and deviations of style: (B, C, H, W), (B, C, h, w) -> (B, C, H, W).

    Raises:
        InputError: other batches or channels, or a single cell.
    """
    if content.shape[:2] != style.shape[:2]:
        raise InputError(f"content {tuple(content.shape)} and style {tuple(style.shape)} differ in batch or channels")
    wide = widened(content)
    mean, deviation = moments(wide, epsilon)
    style_mean, style_deviation = moments(widened(style), epsilon)
    return ((wide - mean) / deviation * style_deviation + style_mean).to(content.dtype)


# ---------------------------------------------------------------------------------------------------------------------
# CORAL
# ---------------------------------------------------------------------------------------------------------------------
def roots(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Square root and its inverse of symmetric positive definite matrices (B, C, C), by coupled Newton steps.

    The same as by eigenvectors, but made of products: it has a gradient where eigenvalues coincide, and a graph.
    """
    wide = matrix.double()
    size = wide.square().sum((1, 2), keepdim=True).sqrt()
    eye = torch.eye(matrix.shape[-1], dtype=wide.dtype, device=wide.device).expand_as(wide)
    root, inverse = wide / size, eye
    for _ in range(STEPS):
        step = 1.5 * eye - 0.5 * inverse @ root
        root, inverse = root @ step, step @ inverse
    return (root * size.sqrt()).to(matrix.dtype), (inverse / size.sqrt()).to(matrix.dtype)


def _standardised(picture: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, C, N) with mean 0 and deviation 1, and both; a channel without contrast becomes 0."""
    flat = picture.flatten(2)
    mean, deviation = flat.mean(2, keepdim=True), flat.std(2, keepdim=True)
    return (flat - mean) / deviation.clamp_min(1e-12), mean, deviation


def _scatter(standardised: Tensor) -> Tensor:
    """X X^T + I, not divided by the number of pixels."""
    eye = torch.eye(standardised.shape[1], dtype=standardised.dtype, device=standardised.device)
    return standardised @ standardised.mT + eye


def whitened(picture: Tensor) -> Tensor:
    """First half of `coral`: (B, C, H, W) with its channels decorrelated. Half precision goes through float32."""
    with without_autocast(picture):
        flat, _, _ = _standardised(widened(picture))
        return (roots(_scatter(flat))[1] @ flat).view_as(picture).to(picture.dtype)


def coloured(white: Tensor, target: Tensor) -> Tensor:
    """Second half of `coral`: gives what `whitened` made the correlations, deviations and means of a target."""
    with without_autocast(target):
        flat, mean, deviation = _standardised(widened(target))
        out = roots(_scatter(flat))[0] @ white.flatten(2).to(flat.dtype) * deviation + mean
        return out.view(out.shape[0], *white.shape[1:]).to(target.dtype)


def coral(source: Tensor, target: Tensor) -> Tensor:
    """Source with the colours of target: its channels' means, deviations and correlations.

    Args:
        source: (B, C, H, W), e.g. noise.
        target: (B, C, h, w), the picture that it is to look like.

    Returns:
        (B, C, H, W). A constant target gives a constant: its scatter matrix is 0, which the unit matrix regularises.

    Raises:
        InputError: other batches or channels, or a single pixel, whose deviation is not defined.
    """
    if source.ndim != 4 or target.ndim != 4 or source.shape[:2] != target.shape[:2]:
        raise InputError(
            f"source and target are pictures of one batch and as many channels, not {tuple(source.shape)} and "
            f"{tuple(target.shape)}"
        )
    if min(x.shape[2] * x.shape[3] for x in (source, target)) < 2:
        raise InputError("the deviation of a single pixel is not defined")
    return coloured(whitened(source), target)


# ---------------------------------------------------------------------------------------------------------------------
# The published networks; the places of the layers are the key names
# ---------------------------------------------------------------------------------------------------------------------
def _padded(inputs: int, outputs: int, *, last: bool = False) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.ReflectionPad2d(1), nn.Conv2d(inputs, outputs, 3)]
    return layers if last else [*layers, nn.ReLU()]


class Encoder(nn.Sequential):
    """Normalised VGG-19 up to relu4_1 (31 layers): (B, 3, H, W) in [0, 1] -> (B, 512, H/8, W/8), rounded up."""

    stride = 8
    ends = (4, 11, 18, 31)  # behind relu1_1, relu2_1, relu3_1, relu4_1

    def __init__(self) -> None:
        def pool() -> nn.Module:
            return nn.MaxPool2d(2, ceil_mode=True)

        layers = [nn.Conv2d(3, 3, 1), *_padded(3, 64), *_padded(64, 64), pool()]
        layers += [*_padded(64, 128), *_padded(128, 128), pool(), *_padded(128, 256)]
        for _ in range(3):
            layers += _padded(256, 256)
        super().__init__(*layers, pool(), *_padded(256, 512))

    def levels(self, picture: Tensor) -> Iterator[Tensor]:
        """relu1_1, relu2_1, relu3_1, relu4_1."""
        for first, end in zip((0, *self.ends), self.ends, strict=False):
            for layer in list(self)[first:end]:
                picture = layer(picture)
            yield picture


class Decoder(nn.Sequential):
    """The mirror of `Encoder`: (B, 512, h, w) -> (B, 3, 8h, 8w), not clamped."""

    in_channels = 512

    def __init__(self) -> None:
        def larger() -> nn.Module:
            return nn.Upsample(scale_factor=2, mode="nearest")

        layers = [*_padded(512, 256), larger()]
        for _ in range(3):
            layers += _padded(256, 256)
        layers += [*_padded(256, 128), larger(), *_padded(128, 128), *_padded(128, 64), larger()]
        super().__init__(*layers, *_padded(64, 64), *_padded(64, 3, last=True))


def adain_losses(
    encoder: Encoder, decoder: nn.Module, content: Tensor, style: Tensor, alpha: float = 1.0
) -> tuple[Tensor, Tensor]:
    """What a decoder is trained by: how far its pictures' features are from their target, and their styles.

    Args:
        encoder: frozen by the caller.
        content, style: (B, 3, H, W) in [0, 1].
        alpha: how much style the target has, 0 to 1.

    Returns:
        content loss: MSE of relu4_1 and the target t; style loss: sum over the four levels of MSE of the means and MSE
        of the deviations.

    Raises:
        UsageError: alpha outside [0, 1].
    """
    if not 0 <= alpha <= 1:
        raise UsageError(f"alpha lies in [0, 1], not {alpha}")
    with torch.no_grad():
        wanted = [moments(level) for level in encoder.levels(style)]
        features = encoder(content)
        target = alpha * adain(features, encoder(style)) + (1 - alpha) * features
    made = list(encoder.levels(decoder(target)))
    found = [moments(level) for level in made]
    pairs = [(a, b) for own, other in zip(found, wanted, strict=True) for a, b in zip(own, other, strict=True)]
    return F.mse_loss(made[-1], target), torch.stack([F.mse_loss(a, b) for a, b in pairs]).sum()


@register("foveated_encoder", system="foveated", task="features", timm=False)
def foveated_encoder() -> nn.Module:
    """Normalised VGG-19 up to relu4_1: 3.5 M parameters."""
    return Encoder()


@register("foveated_decoder", system="foveated", task="features", timm=False, size=28)
def foveated_decoder() -> nn.Module:
    """From relu4_1 back to the picture: 3.5 M parameters."""
    return Decoder()


@recognise("foveated", keys=("0.weight", "2.weight", "5.weight", "9.weight", "29.weight"))
def from_encoder(state: StateDict) -> Recipe | None:
    """``vgg_normalised.pth``: the layers behind relu4_1 are left out."""
    if tuple(state["0.weight"].shape) != (3, 3, 1, 1):
        return None
    own = {key: value for key, value in state.items() if int(key.split(".")[0]) < Encoder.ends[-1]}
    if tuple(own["29.weight"].shape) != (512, 256, 3, 3):
        raise CheckpointError("these weights look like the normalised VGG-19, but relu4_1 has other channels")
    return Recipe("foveated_encoder", {}, own)


@recognise("foveated", keys=("1.weight", "5.weight", "8.weight", "18.weight", "28.weight"))
def from_decoder(state: StateDict) -> Recipe | None:
    """``decoder.pth`` or ``decoder-content-similar.pth``."""
    return None if "0.weight" in state else Recipe("foveated_decoder", {}, dict(state))
