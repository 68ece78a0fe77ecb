"""Networks as numbers: stages, RegNet's generator and the networks that the paper starts from. Needs no torch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from saccade.errors import UsageError

__all__ = ["BASES", "Architecture", "Stage", "adjust_block_compatibility", "generate_regnet", "regnet"]

Block = Literal["bottleneck", "linear", "mbconv"]
Stem = Literal["simple", "pool", "cifar"]
Activation = Literal["relu", "silu"]


@dataclass(frozen=True)
class Stage:
    """Blocks of one resolution.

    Args:
        depth: number of blocks.
        width: output channels of each.
        stride: of the first block.
        bottleneck: inner channels over the block's output channels (over its *input* channels in ``mbconv`` blocks,
            where it is the expansion); below 1 or an integer.
        group_width: channels of a group of the inner convolution; ignored by ``mbconv``, which is depthwise.
        kernel: side of the inner convolution, odd.
    """

    depth: int
    width: int
    stride: int = 2
    bottleneck: float = 1.0
    group_width: int = 1
    kernel: int = 3


@dataclass(frozen=True)
class Architecture:
    """A network of the AnyNet / RegNet / EfficientNet family, as numbers.

    Args:
        stages: from the stem outwards.
        stem_width: channels of the stem.
        head_width: channels of the 1x1 convolution before the pooling, 0 for none.
        block: ``"bottleneck"`` (RegNetX/Y), ``"linear"`` (RegNetZ: no activation after the sum, no projection) or
            ``"mbconv"`` (EfficientNet).
        stem: ``"simple"`` (3x3, stride 2), ``"pool"`` (7x7, stride 2, max-pool) or ``"cifar"`` (3x3, stride 1).
        activation: everywhere, squeeze-and-excitation included.
        se_ratio: squeeze-and-excitation channels over the block's *input* channels, 0 for none.
        train_size, test_size: sides of the pictures in pixels; complexity counts at ``train_size``.
        classes: outputs.

    Raises:
        UsageError: the numbers describe no network; the message names the stage.
    """

    stages: tuple[Stage, ...]
    stem_width: int = 32
    head_width: int = 0
    block: Block = "bottleneck"
    stem: Stem = "simple"
    activation: Activation = "relu"
    se_ratio: float = 0.0
    train_size: int = 224
    test_size: int = 256
    classes: int = 1000

    def __post_init__(self) -> None:
        for what, value, known in (
            ("block", self.block, ("bottleneck", "linear", "mbconv")),
            ("stem", self.stem, ("simple", "pool", "cifar")),
            ("activation", self.activation, ("relu", "silu")),
        ):
            if value not in known:
                raise UsageError(f"no {what} {value!r}; there are {', '.join(known)}")
        if not self.stages:
            raise UsageError("a network needs at least one stage")
        for what, least in (("stem_width", 1), ("head_width", 0), ("train_size", 1), ("test_size", 1), ("classes", 1)):
            if getattr(self, what) < least:
                raise UsageError(f"{what} is {getattr(self, what)}, it must be at least {least}")
        if not 0 <= self.se_ratio < math.inf:
            raise UsageError(f"se_ratio is {self.se_ratio}, it must be 0 or above")
        for i, s in enumerate(self.stages, 1):
            if min(s.depth, s.width, s.stride, s.group_width) < 1:
                raise UsageError(f"stage {i}: depth, width, stride and group width must be at least 1, got {s}")
            if s.kernel < 1 or s.kernel % 2 == 0:
                raise UsageError(f"stage {i}: the kernel must be odd, not {s.kernel}")
            _check_bottleneck(s.bottleneck, f"stage {i}: ")
            inner = round(s.width * s.bottleneck)
            if self.block != "mbconv" and (inner < 1 or inner % s.group_width):
                raise UsageError(
                    f"stage {i}: {inner} inner channels ({s.width} x {s.bottleneck:g}) do not split into groups of "
                    f"{s.group_width}; adjust_block_compatibility finds the nearest that do"
                )

    @classmethod
    def from_lists(
        cls,
        depths: Sequence[int],
        widths: Sequence[int],
        *,
        strides: Sequence[int] | int = 2,
        bottlenecks: Sequence[float] | float = 1.0,
        group_widths: Sequence[int] | int = 1,
        kernels: Sequence[int] | int = 3,
        stem_width: int = 32,
        head_width: int = 0,
        block: Block = "bottleneck",
        stem: Stem = "simple",
        activation: Activation = "relu",
        se_ratio: float = 0.0,
        train_size: int = 224,
        test_size: int = 256,
        classes: int = 1000,
    ) -> Architecture:
        """From one list per property, as papers print it; a single number stands for all stages.

        Raises:
            UsageError: lists of different lengths, or numbers that describe no network.
        """
        columns: list[Sequence[float]] = []
        for name, given in (
            ("depths", depths),
            ("widths", widths),
            ("strides", strides),
            ("bottlenecks", bottlenecks),
            ("group_widths", group_widths),
            ("kernels", kernels),
        ):
            column = [given] * len(depths) if isinstance(given, int | float) else list(given)
            if len(column) != len(depths):
                raise UsageError(f"{len(depths)} depths but {len(column)} {name}: one number per stage")
            columns.append(column)
        stages = tuple(
            Stage(int(d), int(w), int(t), float(b), int(g), int(k)) for d, w, t, b, g, k in zip(*columns, strict=True)
        )
        return cls(stages, stem_width, head_width, block, stem, activation, se_ratio, train_size, test_size, classes)


def _check_bottleneck(b: float, where: str = "") -> None:
    if not (0 < b < math.inf) or (b > 1 and b % 1):
        raise UsageError(f"{where}the bottleneck multiplier must be below 1 or an integer, not {b:g}")


def generate_regnet(w_a: float, w_0: int, w_m: float, depth: int, q: int = 8) -> tuple[list[int], list[int]]:
    """Stage widths and depths of a RegNet: a line, quantised to a geometric series (Radosavovic et al. 2020, eq. 2-4).

    Args:
        w_a: slope of the line, >= 0.
        w_0: width of the first block, a multiple of ``q``.
        w_m: ratio of the series, > 1.
        depth: number of blocks.
        q: all widths are multiples of it.

    Raises:
        UsageError: parameters outside these ranges.
    """
    if not (0 <= w_a < math.inf and w_0 > 0 and 1 < w_m < math.inf and depth > 0 and q > 0):
        raise UsageError(
            f"a RegNet needs w_a >= 0, w_0 > 0, w_m > 1 and a depth > 0; got {w_a:g}, {w_0:g}, {w_m:g}, {depth}"
        )
    if w_0 % q:
        raise UsageError(f"the RegNet's first width {w_0:g} must be a multiple of {q}")
    counts: Counter[int] = Counter()
    for j in range(depth):
        k = round(math.log((w_0 + w_a * j) / w_0) / math.log(w_m))
        counts[round(w_0 * w_m**k / q) * q] += 1
    widths = sorted(counts)
    return widths, [counts[w] for w in widths]


def adjust_block_compatibility(
    widths: Sequence[int], bottlenecks: Sequence[float], group_widths: Sequence[int]
) -> tuple[list[int], list[float], list[int]]:
    """The nearest widths and group widths for which every inner convolution splits evenly into its groups.

    Returns:
        Widths, bottleneck multipliers (unchanged, as floats) and group widths.

    Raises:
        UsageError: lists of different lengths, numbers below 1, a bottleneck above 1 that is no integer.
    """
    if not len(widths) == len(bottlenecks) == len(group_widths):
        raise UsageError(
            f"{len(widths)} widths, {len(bottlenecks)} bottlenecks and {len(group_widths)} group widths: "
            "one number per stage"
        )
    out_widths, out_groups = [], []
    for width, b, group in zip(widths, bottlenecks, group_widths, strict=True):
        _check_bottleneck(b)
        if width < 1 or group < 1 or int(width * b) < 1:
            raise UsageError(f"width {width} x bottleneck {b:g} in groups of {group} is no block")
        inner = int(width * b)
        group = int(min(group, inner))
        unit = math.lcm(group, int(b)) if b > 1 else group
        inner = max(unit, round(inner / unit) * unit)
        out_widths.append(int(inner / b))
        out_groups.append(group)
    return out_widths, [float(b) for b in bottlenecks], out_groups


def regnet(
    depth: int,
    w_0: int,
    w_a: float,
    w_m: float,
    group_width: int,
    *,
    bottleneck: float = 1.0,
    block: Block = "bottleneck",
    stem_width: int = 32,
    head_width: int = 0,
    activation: Activation = "relu",
    se_ratio: float = 0.0,
    classes: int = 1000,
) -> Architecture:
    """Expand the parameters of a RegNet into its stages. What is scaled is always the expanded form.

    Raises:
        UsageError: as `generate_regnet` and `adjust_block_compatibility`.
    """
    widths, depths = generate_regnet(w_a, w_0, w_m, depth)
    n = len(widths)
    widths, bottlenecks, groups = adjust_block_compatibility(widths, [bottleneck] * n, [group_width] * n)
    return Architecture.from_lists(
        depths,
        widths,
        bottlenecks=bottlenecks,
        group_widths=groups,
        stem_width=stem_width,
        head_width=head_width,
        block=block,
        activation=activation,
        se_ratio=se_ratio,
        classes=classes,
    )


def _regnetz(depth: int, w_0: int, w_a: float, w_m: float, group_width: int, head_width: int) -> Architecture:
    return regnet(
        depth, w_0, w_a, w_m, group_width,
        bottleneck=4.0, block="linear", head_width=head_width, activation="silu", se_ratio=0.25,
    )  # fmt: skip


#: the networks that the paper scales; RegNetZ-4GF has no head convolution (its published list of parameters has none)
BASES: dict[str, Architecture] = {
    "regnetx_200mf": regnet(13, 24, 36.44, 2.49, 8),
    "regnetx_400mf": regnet(22, 24, 24.48, 2.54, 16),
    "regnety_400mf": regnet(16, 48, 27.89, 2.09, 8, se_ratio=0.25),
    "regnety_4gf": regnet(22, 96, 31.41, 2.24, 64, se_ratio=0.25),
    "regnetz_500mf": _regnetz(21, 16, 10.7, 2.51, 4, head_width=1024),
    "regnetz_4gf": _regnetz(28, 48, 14.5, 2.226, 8, head_width=0),
    "efficientnet_b0": Architecture.from_lists(
        depths=(1, 2, 2, 3, 3, 4, 1),
        widths=(16, 24, 40, 80, 112, 192, 320),
        strides=(1, 2, 2, 2, 1, 2, 1),
        bottlenecks=(1, 6, 6, 6, 6, 6, 6),
        kernels=(3, 3, 5, 3, 5, 5, 3),
        head_width=1280,
        block="mbconv",
        activation="silu",
        se_ratio=0.25,
    ),
}
