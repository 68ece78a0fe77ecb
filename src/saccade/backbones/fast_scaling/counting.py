"""Cost of a network from its numbers alone: MACs, parameters, activations. Needs no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce

from saccade.backbones.fast_scaling.architecture import Architecture
from saccade.errors import UsageError

__all__ = ["BlockShape", "Complexity", "block_shapes", "complexity", "exponent", "part_complexities"]


@dataclass(frozen=True)
class Complexity:
    """Multiply-accumulates (bias additions included), parameters, and activations of one picture.

    Activations are the elements that convolutions, linear layers and the stem's pool write: the proxy of
    run time. Norms, activation functions, gates and global pools count as free, as in the official code.
    """

    macs: int = 0
    params: int = 0
    acts: int = 0

    def __add__(self, other: Complexity) -> Complexity:
        return Complexity(self.macs + other.macs, self.params + other.params, self.acts + other.acts)

    def __mul__(self, times: int) -> Complexity:
        return Complexity(self.macs * times, self.params * times, self.acts * times)


@dataclass(frozen=True)
class BlockShape:
    """All that a block needs to know to be counted or built; ``expand`` is false where MBConv has no first 1x1."""

    inputs: int
    inner: int
    outputs: int
    stride: int
    kernel: int
    groups: int
    squeeze: int
    expand: bool
    projection: bool
    identity: bool


def block_shapes(net: Architecture) -> list[list[BlockShape]]:
    """The blocks of every stage, in order."""
    stages, inputs = [], net.stem_width
    for stage in net.stages:
        blocks = []
        for i in range(stage.depth):
            stride = stage.stride if i == 0 else 1
            same = stride == 1 and inputs == stage.width
            if net.block == "mbconv":
                inner = int(inputs * stage.bottleneck)
                groups, squeeze, expand = inner, int(inputs * net.se_ratio), inner != inputs
            else:
                inner = round(stage.width * stage.bottleneck)
                groups, squeeze, expand = inner // stage.group_width, round(inputs * net.se_ratio), True
            projection = net.block == "bottleneck" and not same
            blocks.append(
                BlockShape(inputs, inner, stage.width, stride, stage.kernel, groups, squeeze, expand, projection, same)
            )
            inputs = stage.width
        stages.append(blocks)
    return stages


def _conv(
    n: int, inputs: int, outputs: int, k: int = 1, stride: int = 1, groups: int = 1, bias: bool = False
) -> tuple[int, Complexity]:
    """Side after a convolution of an n x n picture, and its cost."""
    n = (n - 1) // stride + 1
    weights, written = k * k * inputs * outputs // groups, outputs * n * n
    return n, Complexity(weights * n * n + bias * written, weights + bias * outputs, written)


def _norm(width: int) -> Complexity:
    return Complexity(params=2 * width)


def _block_complexity(n: int, b: BlockShape) -> tuple[int, Complexity]:
    total = Complexity()
    if b.projection:
        total += _conv(n, b.inputs, b.outputs, 1, b.stride)[1] + _norm(b.outputs)
    if b.expand:
        total += _conv(n, b.inputs, b.inner)[1] + _norm(b.inner)
    n, inner = _conv(n, b.inner, b.inner, b.kernel, b.stride, b.groups)
    total += inner + _norm(b.inner)
    if b.squeeze:
        total += _conv(1, b.inner, b.squeeze, bias=True)[1] + _conv(1, b.squeeze, b.inner, bias=True)[1]
    return n, total + _conv(n, b.inner, b.outputs)[1] + _norm(b.outputs)


def part_complexities(net: Architecture, size: int | None = None) -> list[tuple[str, int, Complexity]]:
    """Name, side of the output in pixels and cost of the stem, every stage and the head, for one size x size picture.

    Args:
        size: side in pixels; the training size by default.
    """
    n = net.train_size if size is None else size
    if n < 1:
        raise UsageError(f"a picture of {n} px has no complexity")
    kernel, stride = {"simple": (3, 2), "pool": (7, 2), "cifar": (3, 1)}[net.stem]
    n, cost = _conv(n, 3, net.stem_width, kernel, stride)
    cost += _norm(net.stem_width)
    if net.stem == "pool":
        n = (n - 1) // 2 + 1
        cost += Complexity(acts=net.stem_width * n * n)
    parts = [("stem", n, cost)]
    for i, blocks in enumerate(block_shapes(net), 1):
        n, cost = _block_complexity(n, blocks[0])
        if len(blocks) > 1:
            cost += _block_complexity(n, blocks[1])[1] * (len(blocks) - 1)  # all but the first are alike
        parts.append((f"s{i}", n, cost))
    width, cost = net.stages[-1].width, Complexity()
    if net.head_width:
        cost += _conv(n, width, net.head_width)[1] + _norm(net.head_width)
        width = net.head_width
    cost += _conv(1, width, net.classes, bias=True)[1]
    return [*parts, ("head", 1, cost)]


def complexity(net: Architecture, size: int | None = None) -> Complexity:
    """Analytic cost of one size x size picture (the training size by default), without building the network."""
    return reduce(Complexity.__add__, (part for _, _, part in part_complexities(net, size)))


def exponent(base: Architecture, scaled: Architecture) -> float:
    """How activations grew with MACs: log of their ratio over log of the MACs ratio; 0.5 is fast, 1 is slow.

    Returns:
        The exponent, or NaN where the MACs are equal.
    """
    a, b = complexity(base), complexity(scaled)
    return math.log(b.acts / a.acts) / math.log(b.macs / a.macs) if a.macs != b.macs else math.nan
