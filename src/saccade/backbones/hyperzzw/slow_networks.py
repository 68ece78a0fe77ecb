"""Coordinate networks: small networks from places to kernel values, whose kernels are as large as the picture.

    places (N, d) in [-1, 1] -- f_l = sin(W_l places + b_l)        h = f_0;  h = f_l * (A_l h + a_l) + P;  O h + o

Multiplicative filter networks as in CCNN, with a learnt map P that is added behind every layer. All layers act on each
place alone, so a kernel of N places is a matrix (N, channels) and every layer a linear one.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import UsageError

__all__ = ["ChannelKernel", "ConstantKernel", "GlobalKernel", "LocalKernel", "pooling"]

CARRIED, LEARNT = 1.0, 0.1  # alpha and beta of the local generators: constants in the published code


def _linear(inputs: int, outputs: int, bias: float = 0.0) -> nn.Linear:
    """Kaiming uniform of gain 1, one number for all biases."""
    layer = nn.Linear(inputs, outputs)
    nn.init.kaiming_uniform_(layer.weight, nonlinearity="linear")
    nn.init.constant_(layer.bias, bias)
    return layer


class _CoordinateNetwork(nn.Module):
    """What all generators share.

    Args:
        axes: d, of the places.
        side: places along an axis; N = side^d.
        channels: of the kernel.
        hidden: channels between layers.
        depth: layers behind the first filter.
        omega: frequency of the filters at the start, omega_0.
    """

    def __init__(self, axes: int, side: int, channels: int, hidden: int, depth: int, omega: float) -> None:
        super().__init__()
        if min(side, channels, hidden, depth) < 1 or omega <= 0:
            raise UsageError(
                f"a kernel generator needs at least one place, channel, hidden channel and layer and a positive "
                f"frequency, not {side}, {channels}, {hidden}, {depth} and {omega}"
            )
        along = torch.linspace(-1, 1, side)
        places = torch.stack(torch.meshgrid(*[along] * axes, indexing="ij"), -1).reshape(-1, axes)
        self.register_buffer("places", places, persistent=False)
        self.places: Tensor
        self.shape = (1, channels, *[side] * axes)
        self.filters = nn.ModuleList(nn.Linear(axes, hidden) for _ in range(depth + 1))
        self.linears = nn.ModuleList(_linear(hidden, hidden, bias=1.0) for _ in range(depth))
        self.output = _linear(hidden, channels)
        self.bias_map = nn.Parameter(torch.zeros(side**axes, 1))
        self._start(omega)

    @torch.no_grad()
    def _start(self, omega: float) -> None:
        """Frequencies drawn from Gamma distributions that fall with depth; output of a variance free of N.

        The published code scales the output at the first call and does so again after a file is loaded; it belongs
        to the start.
        """
        for i, layer in enumerate(self.filters):
            assert isinstance(layer, nn.Linear)
            spread = torch.distributions.Gamma(6 / (i + 1), 1.0).sample(layer.weight.shape).to(layer.weight)
            layer.weight.mul_(2 * math.pi * omega * spread)
            layer.bias.zero_()
        self.output.weight.mul_(len(self.places) ** -0.5)

    def filtered(self, i: int) -> Tensor:
        """f_i at all places: (N, hidden)."""
        return torch.sin(self.filters[i](self.places))

    def shaped(self, h: Tensor) -> Tensor:
        """The kernel (1, channels, side, ...) of the last hidden values (N, hidden)."""
        made: Tensor = self.output(h)
        return made.mT.reshape(self.shape)


class GlobalKernel(_CoordinateNetwork):
    """A kernel as large as the picture (``MAGNet_G``), the same for every input.

    Shape: () -> (1, channels, side, side).
    """

    def __init__(self, side: int, channels: int, hidden: int, depth: int, omega: float) -> None:
        super().__init__(2, side, channels, hidden, depth, omega)

    def forward(self) -> Tensor:
        h = self.filtered(0)
        for i, linear in enumerate(self.linears, 1):
            h = self.filtered(i) * linear(h) + self.bias_map
        return self.shaped(h)

    def fuse(self) -> nn.Module:
        """The kernel itself: it does not depend on the input."""
        return ConstantKernel(self())


class ChannelKernel(GlobalKernel):
    """A number for every channel, by a network of one coordinate (``MAGNet_GC``). Shape: () -> (1, 1, channels)."""

    def __init__(self, channels: int, hidden: int, depth: int, omega: float) -> None:
        _CoordinateNetwork.__init__(self, 1, channels, 1, hidden, depth, omega)


class ConstantKernel(nn.Module):
    """A generated kernel, kept; whatever the input. Shape: (...) -> the kernel's."""

    def __init__(self, kernel: Tensor) -> None:
        super().__init__()
        self.register_buffer("kernel", kernel.detach().clone())
        self.kernel: Tensor

    def forward(self, x: Tensor | None = None) -> Tensor:
        return self.kernel


def pooling(side: int, kernel: int) -> Tensor:
    """Adaptive average pooling along an axis as a matrix (kernel, side): cell i is the mean of its places."""
    rows = torch.zeros(kernel, side)
    for i in range(kernel):
        first, last = i * side // kernel, -(-(i + 1) * side // kernel)
        rows[i, first:last] = 1 / (last - first)
    return rows


class LocalKernel(_CoordinateNetwork):
    """A small depthwise kernel that depends on the batch (``MAGNet_L``).

    The features, pooled to the kernel's size and averaged over the batch, gate every layer. Only the normalised part
    of what a layer gives carries a gradient, a tenth of it: the rest is passed on as a constant.

    Args:
        side: of the kernel, odd.
        map_side: of the features.
        channels: of the features and of the kernel.
        tracked: keep a running mean of the pooled features, and use it in evaluation.

    Shape: (B, channels, map_side, map_side) -> (channels, 1, side, side).
    """

    def __init__(
        self, side: int, map_side: int, channels: int, hidden: int, depth: int, omega: float, tracked: bool = False
    ) -> None:
        if side % 2 == 0:
            raise UsageError(f"a local kernel has an odd side, not {side}: an even one would shift the features")
        super().__init__(2, side, channels, hidden, depth, omega)
        self.shape = (channels, 1, side, side)
        self.reduce, self.fc = _linear(channels, hidden), _linear(hidden, hidden)
        self.gates = nn.ModuleList(_linear(hidden, hidden, bias=1.0) for _ in range(depth))
        self.register_buffer("pool", pooling(map_side, side), persistent=False)
        self.pool: Tensor
        self.tracked = tracked
        if tracked:
            self.register_buffer("running_pooled", torch.zeros(channels, side, side))
            self.running_pooled: Tensor

    def pooled(self, x: Tensor) -> Tensor:
        """Means of the batch, or the running ones in evaluation: (channels, side, side)."""
        if self.tracked and not self.training:
            return self.running_pooled
        found = self.pool @ x.mean(0) @ self.pool.mT  # the mean commutes with all that follows up to the GELU
        if self.tracked:
            with torch.no_grad():
                self.running_pooled.lerp_(found.to(self.running_pooled.dtype), 0.1)
        return found

    def forward(self, x: Tensor) -> Tensor:
        return self.generated(self.pooled(x))

    def generated(self, pooled: Tensor) -> Tensor:
        """The kernel for pooled features (channels, side, side)."""
        g = F.gelu(self.fc(self.reduce(pooled.flatten(1).mT)))  # (N, hidden)
        h = self.filtered(0)
        for i, (linear, gate) in enumerate(zip(self.linears, self.gates, strict=True), 1):
            h = self.filtered(i) * linear(h) + self.bias_map
            h = CARRIED * h.detach() + LEARNT * F.normalize(h, dim=0)
            h = h * gate(g)
        return self.shaped(h)

    def fuse(self) -> nn.Module:
        """The kernel itself where running means make it a constant; else this module."""
        return ConstantKernel(self.generated(self.running_pooled)) if self.tracked else self
