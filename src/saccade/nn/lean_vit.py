"""What SHViT and EfficientViT share: a stem of stride 16, feed-forward branches of convolutions, patch merging."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from saccade.nn.conv_norm import ConvNorm, ResidualDepthwise, SqueezeExcitation

__all__ = ["FeedForward", "PatchMerging", "nearest_multiple", "patch_stem", "transition"]


def nearest_multiple(value: float, divisor: int = 8) -> int:
    """The multiple of ``divisor`` nearest to ``value``, at least one."""
    return max(divisor, int(value + divisor / 2) // divisor * divisor)


def patch_stem(in_chans: int, width: int) -> nn.Sequential:
    """Four 3x3 convolutions of stride 2, (B, in_chans, H, W) -> (B, width, H/16, W/16); no activation at the end."""
    widths = (in_chans, width // 8, width // 4, width // 2, width)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [ConvNorm(inputs, outputs, 3, 2), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])


class FeedForward(nn.Module):
    """x + pw2(relu(pw1(x))): 1x1 to twice the width and back."""

    def __init__(self, width: int, ratio: int = 2) -> None:
        super().__init__()
        self.pw1 = ConvNorm(width, width * ratio, act=nn.ReLU(inplace=True))
        self.pw2 = ConvNorm(width * ratio, width, gain=0)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.pw2(self.pw1(x))
        return out


class PatchMerging(nn.Module):
    """An inverted bottleneck of stride 2 with squeeze-and-excitation: (B, C, h, w) -> (B, C', h/2, w/2)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        inner = 4 * inputs
        self.conv1 = ConvNorm(inputs, inner, act=nn.ReLU(inplace=True))
        self.conv2 = ConvNorm(inner, inner, 3, 2, groups=inner, act=nn.ReLU(inplace=True))
        self.se = SqueezeExcitation(inner, nearest_multiple(inner / 4))
        self.conv3 = ConvNorm(inner, outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv3(self.se(self.conv2(self.conv1(x))))
        return out


def transition(inputs: int, outputs: int) -> list[nn.Module]:
    """From one stage to the next: depthwise and feed-forward, merging, depthwise and feed-forward."""
    return [
        nn.Sequential(ResidualDepthwise(inputs, gain=1), FeedForward(inputs)),
        PatchMerging(inputs, outputs),
        nn.Sequential(ResidualDepthwise(outputs, gain=1), FeedForward(outputs)),
    ]
