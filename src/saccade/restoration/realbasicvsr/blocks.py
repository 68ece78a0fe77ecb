"""The one block that cleaning and propagation are made of."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["SLOPE", "ResidualBlock", "ResidualStack", "conv", "shrunk_start"]

SLOPE = 0.1  # of every leaky ReLU here


def conv(inputs: int, outputs: int) -> nn.Conv2d:
    """3x3, zero padding, bias."""
    return nn.Conv2d(inputs, outputs, 3, padding=1)


@torch.no_grad()
def shrunk_start(layer: nn.Conv2d, scale: float) -> None:
    """He's start times ``scale``, no bias: residual blocks begin near the identity."""
    nn.init.kaiming_normal_(layer.weight)
    layer.weight.mul_(scale)
    nn.init.zeros_(cast(Tensor, layer.bias))


class ResidualBlock(nn.Module):
    """x + conv2(ReLU(conv1(x))): (B, C, h, w) -> same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(width, width), conv(width, width)
        shrunk_start(self.conv1, 0.1)
        shrunk_start(self.conv2, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return x + self.conv2(F.relu(self.conv1(x)))
        y: Tensor = self.conv2(self.conv1(x).relu_())
        return y.add_(x)


class ResidualStack(nn.Module):
    """A convolution, leaky ReLU, then residual blocks: (B, inputs, h, w) -> (B, width, h, w)."""

    def __init__(self, inputs: int, width: int, blocks: int) -> None:
        super().__init__()
        self.first = conv(inputs, width)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        # channels last: 1.5 times as fast on a CPU, which else repacks what goes in and out of every convolution
        x = F.leaky_relu(self.first(x.contiguous(memory_format=torch.channels_last)), SLOPE)
        for block in self.blocks:
            x = block(x)
        return x

    @property
    def kernels(self) -> int:
        """MACs an input pixel."""
        return sum(p.numel() for p in self.parameters() if p.dim() == 4)
