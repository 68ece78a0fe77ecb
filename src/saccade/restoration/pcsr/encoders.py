"""The three encoders of PCSR: networks that stay at the input's size, without their upsampling tail.

Each maps (B, 3, h, w) to features (B, width, h, w) and tells two facts: ``width``, and ``halo``, the input pixels that
one feature sees beyond its own place. All convolutions pad with zeros.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import UsageError

__all__ = ["CARNM", "FSRCNN", "MSRResNet"]


class Pointwise(nn.Conv2d):
    """A 1x1 convolution that is a matrix product where the input is channels last on a CPU: three times as fast."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last):
            return F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)
        return super().forward(x)


class Slope(nn.PReLU):
    """PReLU with one slope, in place where no gradient is wanted: half the memory traffic. Follows a convolution."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return F.leaky_relu_(x, self.weight.item())
        return super().forward(x)


def _conv(inputs: int, outputs: int, size: int = 3, groups: int = 1, bias: bool = True) -> nn.Conv2d:
    if size == 1:
        return Pointwise(inputs, outputs, 1, bias=bias)
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, groups=groups, bias=bias)


class FSRCNN(nn.Module):
    """FSRCNN's body: wide, narrow, wide (Dong et al., arXiv:1608.00367, with one PReLU slope a layer).

        x -- 5x5, d -- PReLU -- 1x1, s -- PReLU -- [3x3, s] x m -- PReLU -- 1x1, d -- PReLU

    The ``layers`` mapping convolutions follow each other without activation, as in the published weights.

    Args:
        width: channels d of the features.
        shrink: channels s of the mapping layers.
        layers: mapping layers m.

    Shape: (B, 3, h, w) -> (B, width, h, w).
    """

    def __init__(self, width: int = 48, shrink: int = 12, layers: int = 4) -> None:
        super().__init__()
        self.width = width
        self.extract = _conv(3, width, 5)
        self.extract_slope = Slope()
        self.shrink = _conv(width, shrink, 1)
        self.shrink_slope = Slope()
        self.mapping = nn.Sequential(*(_conv(shrink, shrink) for _ in range(layers)))
        self.mapping_slope = Slope()
        self.expand = _conv(shrink, width, 1)
        self.expand_slope = Slope()

    @property
    def halo(self) -> int:
        """2 of the 5x5 and one of each mapping layer."""
        return 2 + len(self.mapping)

    def forward(self, x: Tensor) -> Tensor:
        x = self.extract_slope(self.extract(x))
        x = self.shrink_slope(self.shrink(x))
        x = self.mapping_slope(self.mapping(x))
        return self.expand_slope(self.expand(x))


class GroupedUnit(nn.Module):
    """CARN-M's residual unit: two grouped 3x3 convolutions and a 1x1, each but the last followed by ReLU, + x, ReLU."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.first = _conv(width, width, groups=groups)
        self.second = _conv(width, width, groups=groups)
        self.mix = _conv(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.second(F.relu(self.first(x))))
        return F.relu(self.mix(y) + x)


class Cascade(nn.Module):
    """Three steps, each fused with everything before it (Ahn et al., arXiv:1803.08664, figure 3).

        o_0 = x;  o_i = fuse_i([x, step_1(o_0), ..., step_i(o_{i-1})]),  fuse: 1x1 without bias, BatchNorm, ReLU

    Args:
        width: channels.
        steps: the three modules that are run in turn, or one module that is run three times (shared weights).
    """

    def __init__(self, width: int, *steps: nn.Module) -> None:
        super().__init__()
        self.steps = nn.ModuleList(steps)
        self.fuse = nn.ModuleList(_conv((i + 2) * width, width, 1, bias=False) for i in range(3))
        self.norm = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        seen, out = x, x
        for i, (fuse, norm) in enumerate(zip(self.fuse, self.norm, strict=True)):
            seen = torch.cat([seen, self.steps[i % len(self.steps)](out)], 1)
            out = F.relu(norm(fuse(seen)))
        return out


class CARNM(nn.Module):
    """CARN-M's body: three cascading blocks in a cascade, each block one grouped unit run three times.

    Args:
        width: channels.
        groups: groups of the 3x3 convolutions; must divide ``width``.

    Shape: (B, 3, h, w) -> (B, width, h, w); mean-free input.

    Raises:
        UsageError: ``groups`` does not divide ``width``.
    """

    halo = 19  # 1 of the entry, 2 of each of the 9 units

    def __init__(self, width: int = 52, groups: int = 4) -> None:
        super().__init__()
        if groups < 1 or width % groups:
            raise UsageError(f"CARN-M's width {width} is not a multiple of its {groups} groups")
        self.width = width
        self.entry = _conv(3, width)
        self.body = Cascade(width, *(Cascade(width, GroupedUnit(width, groups)) for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(self.entry(x))
        return y


class ResidualBlock(nn.Module):
    """x + conv(ReLU(conv(x))), 3x3, without norms."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _conv(width, width)
        self.second = _conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(F.relu(self.first(x)))
        return x + y


class MSRResNet(nn.Module):
    """SRResNet's body without norms, trailing convolution or global skip: 3x3, LeakyReLU(0.1), residual blocks.

    Args:
        width: channels.
        blocks: residual blocks.

    Shape: (B, 3, h, w) -> (B, width, h, w).
    """

    def __init__(self, width: int = 58, blocks: int = 16) -> None:
        super().__init__()
        self.width = width
        self.entry = _conv(3, width)
        self.blocks = nn.Sequential(*(ResidualBlock(width) for _ in range(blocks)))

    @property
    def halo(self) -> int:
        """1 of the entry and 2 of each block."""
        return 1 + 2 * len(self.blocks)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.blocks(F.leaky_relu(self.entry(x), 0.1))
        return y
