"""The foveated transform against the official code: AdaIN, CORAL, blends, painted regions, encoder, decoder, losses."""

from __future__ import annotations

import json
import math

import torch
from torch import Tensor, nn

from saccade.backbones.foveated.adain import Decoder, Encoder, adain, adain_losses, coral, moments
from saccade.backbones.foveated.transform import painted, painted_in_turn
from saccade.backbones.foveated.windows import blending, painted_regions


@torch.no_grad()
def fill(model: nn.Module) -> nn.Module:
    """The rule of the metadata: tensor j, flat element i = a sin(12.9898 (i + 1) + 7.8233 (j + 1)) in float64."""
    for j, parameter in enumerate(model.parameters()):
        fan_in = parameter[0].numel()
        a = math.sqrt(6 / fan_in) if parameter.dim() > 1 else 0.05
        i = torch.arange(1, parameter.numel() + 1, dtype=torch.float64)
        parameter.copy_((a * torch.sin(12.9898 * i + 7.8233 * (j + 1))).view_as(parameter))
    return model


def loaded(layer: nn.Conv2d, vectors: dict[str, Tensor], name: str) -> nn.Conv2d:
    layer.load_state_dict({k: vectors[f"state.fov.{name}.{k}"] for k in ("weight", "bias")})
    return layer


@torch.no_grad()
def check(vectors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    told = json.loads(metadata["config"])["fov"]

    def near(found: Tensor, name: str) -> None:
        torch.testing.assert_close(found, vectors[f"output.{name}"], atol=1e-4, rtol=1e-3)

    near(adain(vectors["input.adain.content"], vectors["input.adain.style"]), "adain.y")
    for found, name in zip(moments(vectors["input.adain.content"]), ("mean", "std"), strict=True):
        near(found, f"adain.{name}")
    near(coral(vectors["input.coral.noise"][None], vectors["input.coral.image"][None])[0], "coral.y")
    pixels = vectors["input.alpha.pixels_above_half"]
    blends = blending(torch.cat([pixels[:1], pixels]))[1:]  # the first is the fovea's
    near(blends, "alpha.value")

    weight = vectors["state.fov.encoder.weight"]
    encoder = loaded(nn.Conv2d(3, told["channels"], weight.shape[2], told["image"] // told["grid"]), vectors, "encoder")
    decoder = loaded(nn.Conv2d(told["channels"], 3, 1), vectors, "decoder")
    image, noise = vectors["input.fov.image"][None], vectors["input.fov.noise"][None]
    regions = painted_regions(vectors["input.fov.masks"], vectors["input.fov.alpha"])
    assert len(regions) == told["regions"]
    content, other = encoder(image), encoder(coral(noise, image))
    for paint in (painted, painted_in_turn):
        near(decoder(paint(content, other, regions)), "fov.y")
    near(decoder(encoder(image)), "fov.reference")

    vgg, mirror = fill(Encoder()), fill(Decoder())
    assert isinstance(vgg, Encoder)
    x = vectors["input.vgg.x"]
    near(vgg(x), "vgg.relu4_1")
    near(mirror(vgg(x)), "decoder.image")
    losses = adain_losses(vgg, mirror, x, x.flip(-1) ** 2)
    for found, name in zip(losses, ("content", "style"), strict=True):
        near(found, f"adain_train.{name}_loss")
