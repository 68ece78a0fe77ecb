"""All pixels through one sampler as a plain convolutional network, for export and other engines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from saccade.restoration.pcsr.sampler import Sampler, phase_positions

if TYPE_CHECKING:
    from saccade.restoration.pcsr.network import PCSR

__all__ = ["OneSampler"]


class OneSampler(nn.Module):
    """Encoder and one sampler as convolutions: what `PCSR.one_sampler` returns.

    Exports with dynamic height and width.

    Shape: (B, 3, h, w) in [0, 1] -> (B, 3, h*scale, w*scale), clamped to [0, 1] in evaluation mode.
    """

    colour = "rgb"
    in_channels = 3

    def __init__(self, model: PCSR, which: Literal["heavy", "light"]) -> None:
        super().__init__()
        self.scale = int(model.scale)
        self.encoder = model.encoder
        self.register_buffer("mean", model.mean.clone())  # type: ignore[operator]
        sampler: Sampler = getattr(model, which)
        by_feature, by_position, bias = (t.detach() for t in sampler.split())
        phases = by_position @ phase_positions(self.scale).to(bias) + bias[:, None]  # (o, s^2)
        self.register_buffer("by_feature", by_feature[:, :, None, None].clone())
        self.register_buffer("phases", phases[None, :, :, None, None].clone())
        self.tail = nn.ModuleList(nn.Conv2d(i.in_features, i.out_features, 1) for i in sampler.tail_layers)
        for conv, layer in zip(self.tail, sampler.tail_layers, strict=True):
            conv.weight = nn.Parameter(layer.weight.detach()[:, :, None, None].clone())
            conv.bias = nn.Parameter(layer.bias.detach().clone())

    @property
    def halo(self) -> int:
        """Input pixels that an output pixel sees beyond its own place."""
        own: int = self.encoder.halo  # type: ignore[assignment]
        return max(1, own)

    def forward(self, lr: Tensor) -> Tensor:
        h, w = lr.shape[-2:]
        features = self.encoder(lr - self.mean)  # type: ignore[operator]
        x = F.conv2d(features, self.by_feature)[:, :, None] + self.phases  # type: ignore[arg-type,operator]
        x = x.flatten(2, 3)  # (B, o, s^2*h, w): the phases one below the other
        for layer in self.tail:
            x = layer(F.relu(x))
        residual = F.pixel_shuffle(x.reshape(lr.shape[0], -1, h, w), self.scale)  # (B, 3*s^2, h, w)
        y = residual + F.interpolate(lr, scale_factor=self.scale, mode="bilinear", align_corners=False)
        return y if self.training else y.clamp(0, 1)
