"""MobileNetV1 and V2 with subspace attention behind blocks or in their place, and the published placements.

Howard et al., arXiv:1704.04861; Sandler et al., arXiv:1801.04381. The blocks are counted as in the tables of these
papers, from 1: V1's layers with the stem as the first (8 to 12 are the five of 512 channels at 14 x 14), V2's
bottlenecks from the one of 16 channels (8 to 10 have 64, 12 and 13 have 96, 15 and 16 have 160 channels).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from saccade.backbones.ulsam.attention import SubspaceAttention
from saccade.backbones.ulsam.surgery import replacement, widths_of
from saccade.errors import UsageError
from saccade.nn.backbone import Backbone, made
from saccade.nn.conv_norm import ConvNorm
from saccade.nn.dimensions import Dimensions, Numbers, Row, as_rows, moved, rescaled
from saccade.registry import register

__all__ = ["MobileNetV1", "MobileNetV2"]

Places = Sequence[int]


class Separable(nn.Module):
    """3x3 per channel and 1x1, each with norm and ReLU6 (as the published code has it, and timm).

    Shape: (B, i, H, W) -> (B, o, H/stride, W/stride).
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.depthwise = ConvNorm(inputs, inputs, 3, stride, groups=inputs, act=nn.ReLU6(inplace=True))
        self.pointwise = ConvNorm(inputs, outputs, act=nn.ReLU6(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.pointwise(self.depthwise(x))
        return out


class InvertedResidual(nn.Module):
    """1x1 to ``expansion`` times the width, 3x3 per channel, 1x1 out, and the shortcut where the shape stays."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, expansion: int = 6) -> None:
        super().__init__()
        inner = inputs * expansion
        self.shortcut = stride == 1 and inputs == outputs
        self.expand = ConvNorm(inputs, inner, act=nn.ReLU6(inplace=True)) if expansion > 1 else nn.Identity()
        self.depthwise = ConvNorm(inner, inner, 3, stride, groups=inner, act=nn.ReLU6(inplace=True))
        self.project = ConvNorm(inner, outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.project(self.depthwise(self.expand(x)))
        return out + x if self.shortcut else out


def with_attention(
    blocks: Sequence[nn.Module], first: int, insert: Places, replace: Places, groups: int
) -> list[nn.Sequential]:
    """Each block, its attention, or both, as a sequence; ``first`` is the number of the first block.

    Raises:
        UsageError: no such block, one that cannot be replaced, or a place that is given twice.
    """
    last = first + len(blocks) - 1
    wrong = [n for n in (*insert, *replace) if not first <= n <= last]
    if wrong:
        raise UsageError(f"there is no block {wrong[0]}: they are counted from {first} to {last}")
    if len(set(replace)) < len(replace) or len(set(insert)) < len(insert):
        raise UsageError(f"a block takes attention once: insert {tuple(insert)}, replace {tuple(replace)}")
    out = []
    for number, block in enumerate(blocks, first):
        name = f"block {number}"
        parts: list[nn.Module] = [replacement(block, name, groups) if number in replace else block]
        if number in insert:
            parts.append(SubspaceAttention(widths_of(block, name)[1], groups))
        out.append(nn.Sequential(*parts))
    return out


class MobileNetV1(Backbone):
    """Separable convolutions with subspace attention.

    Args:
        width: multiplies all channels; 1, 0.75 and 0.5 were published.
        insert: layers behind which attention goes, 2 to 14.
        replace: layers in whose place it goes; they keep width and resolution.
        groups: subspaces of each.
        rows: (channels, stride) of the layers behind the stem, before ``width``.
        stem_width: channels of the stem, before ``width``.
        options: ``num_classes``, ``in_chans``, ``drop_rate``, ``global_pool`` (`Backbone`).

    Shape: (B, 3, H, W) -> (B, num_classes); maps at strides 2, 4, 8, 16, 32. Sides of at least 32 pixels.

    Raises:
        UsageError: places where attention cannot go.
    """

    def __init__(
        self,
        width: float = 1.0,
        insert: Places = (),
        replace: Places = (),
        groups: int = 4,
        rows: Sequence[tuple[int, int]] = (
            *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
            *((512, 1),) * 5,
            *((1024, 2), (1024, 1)),
        ),
        stem_width: int = 32,
        **options: Any,
    ) -> None:
        stem = scaled(stem_width, width)
        layers, inputs = list[nn.Module](), stem
        for channels, stride in rows:
            layers.append(Separable(inputs, inputs := scaled(channels, width), stride))
        stages = grouped(with_attention(layers, 2, insert, replace, groups), [stride for _, stride in rows])
        super().__init__(*described(stages, layers, 2), **options)
        self.stem = ConvNorm(self.in_chans, stem, 3, 2, act=nn.ReLU6(inplace=True))
        self.stages = nn.ModuleList(nn.Sequential(*stage) for stage in stages)
        self.placement = Placement(tuple(insert), tuple(replace), 2)
        self.rows = as_rows((1, scaled(channels, width), stride) for channels, stride in rows)
        self.stem_width = stem
        initialise(self)
        self.reset_classifier(self.num_classes)

    def dimensions(self) -> Dimensions:
        """Widths of stem and rows, with ``width`` in them, and layers of each row."""

        def options(numbers: Numbers) -> dict[str, Any]:
            rows, placed = self.placement.within(self.rows, rescaled(self.rows, numbers))
            layers = tuple((row.width, 1 if i else row.stride) for row in rows for i in range(row.depth))
            return {"width": 1.0, "rows": layers, "stem_width": numbers["widths"][0], **placed}

        return Dimensions(sizes(self.stem_width, self.rows), options)


class MobileNetV2(Backbone):
    """Inverted residuals with subspace attention.

    Args:
        insert: bottlenecks behind which attention goes, 1 to 17.
        replace: bottlenecks in whose place it goes; they keep width and resolution.
        groups: subspaces of each.
        rows: (expansion, channels, repeats, stride) as in table 2 of the MobileNetV2 paper.
        stem_width: channels of the stem.
        head_width: channels that are pooled.
        options: ``num_classes``, ``in_chans``, ``drop_rate``, ``global_pool`` (`Backbone`).

    Shape: (B, 3, H, W) -> (B, num_classes); maps at strides 2, 4, 8, 16, 32. Sides of at least 32 pixels.

    Raises:
        UsageError: places where attention cannot go.
    """

    def __init__(
        self,
        insert: Places = (),
        replace: Places = (),
        groups: int = 4,
        rows: Sequence[tuple[int, int, int, int]] = (
            *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
            *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
        ),
        stem_width: int = 32,
        head_width: int = 1280,
        **options: Any,
    ) -> None:
        blocks, strides, inputs = list[nn.Module](), list[int](), stem_width
        for expansion, channels, repeats, stride in rows:
            for i in range(repeats):
                strides.append(1 if i else stride)
                blocks.append(InvertedResidual(inputs, inputs := channels, strides[-1], expansion))
        stages = grouped(with_attention(blocks, 1, insert, replace, groups), strides)
        super().__init__(*described(stages, blocks, 2), **options)
        self.stem = ConvNorm(self.in_chans, stem_width, 3, 2, act=nn.ReLU6(inplace=True))
        self.stages = nn.ModuleList(nn.Sequential(*stage) for stage in stages)
        self.norm = ConvNorm(inputs, head_width, act=nn.ReLU6(inplace=True))
        self.num_features = self.head_hidden_size = head_width
        self.placement = Placement(tuple(insert), tuple(replace), 1)
        self.rows, self.stem_width = [Row(*row) for row in rows], stem_width
        initialise(self)
        self.reset_classifier(self.num_classes)

    def dimensions(self) -> Dimensions:
        """Widths of stem, rows and head, and bottlenecks of each row."""
        told = sizes(self.stem_width, self.rows)

        def options(numbers: Numbers) -> dict[str, Any]:
            *widths, head = numbers["widths"]
            wanted = rescaled(self.rows, {**numbers, "widths": widths})
            rows, placed = self.placement.within(self.rows, wanted)
            table = tuple((int(row.expansion), row.width, row.depth, row.stride) for row in rows)
            return {"rows": table, "stem_width": widths[0], "head_width": head, **placed}

        return Dimensions({**told, "widths": (*told["widths"], self.num_features)}, options)


@dataclass(frozen=True)
class Placement:
    """Where attention stands: blocks by their numbers, the first of which is ``first``."""

    insert: tuple[int, ...]
    replace: tuple[int, ...]
    first: int

    def within(self, before: Sequence[Row], after: Sequence[Row]) -> tuple[list[Row], dict[str, Places]]:
        """Rows that are long enough for the attention in them, and its new places.

        The first block of a row is never replaced: it changes width or resolution.
        """
        old, start, rows = [row.depth for row in before], self.first, list[Row]()
        for row, depth in zip(after, old, strict=True):
            own = range(start, start + depth)
            needed = max(len({*own} & {*self.insert}), 1 + len({*own} & {*self.replace}))
            rows.append(dataclasses.replace(row, depth=max(row.depth, needed)))
            start += depth
        new = [row.depth for row in rows]
        told = {"insert": self.insert, "replace": self.replace}
        return rows, {name: moved(places, old, new, self.first) for name, places in told.items()}


def sizes(stem: int, rows: Sequence[Row]) -> dict[str, tuple[int, ...]]:
    """Widths of stem and rows, and depths."""
    return {"widths": (stem, *(row.width for row in rows)), "depths": tuple(row.depth for row in rows)}


def scaled(channels: int, width: float) -> int:
    """Channels of a network of another width.

    Raises:
        UsageError: a width that is not positive.
    """
    if not width > 0:
        raise UsageError(f"width is a positive factor, not {width}")
    return max(1, int(channels * width))


def grouped(blocks: Sequence[nn.Sequential], strides: Sequence[int]) -> list[list[nn.Sequential]]:
    """Blocks in stages; a stage begins where the resolution falls."""
    stages: list[list[nn.Sequential]] = []
    for block, stride in zip(blocks, strides, strict=True):
        if stride > 1 or not stages:
            stages.append([])
        stages[-1].append(block)
    return stages


def described(
    stages: Sequence[Sequence[nn.Module]], blocks: Sequence[nn.Module], stride: int
) -> tuple[list[int], list[int]]:
    """Channels and strides of the maps behind the stages; ``stride`` is that before the first."""
    widths, reductions, done = [], [], 0
    for stage in stages:
        for block in blocks[done : done + len(stage)]:
            stride *= max(max(m.stride) for m in block.modules() if isinstance(m, nn.Conv2d))
        done += len(stage)
        widths.append(widths_of(blocks[done - 1], "block")[1])
        reductions.append(stride)
    return widths, reductions


def initialise(model: nn.Module) -> None:
    """Convolutions normal with variance 2 / fan-out, biases 0."""
    for m in model.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out")
            if m.bias is not None:
                nn.init.zeros_(m.bias)


# ---------------------------------------------------------------------------------------------------------------------
# Registered models: the placements behind the published counts, named after their millions of MACs
# ---------------------------------------------------------------------------------------------------------------------
VARIANTS: dict[str, dict[str, Any]] = {
    "ulsam_mobilenetv1_569m": {"insert": (12,)},
    "ulsam_mobilenetv1_517m": {"replace": (12,)},
    "ulsam_mobilenetv1_296m": {"width": 0.75, "replace": (12,), "groups": 1},
    "ulsam_mobilenetv1_136m": {"width": 0.5, "replace": (12,), "groups": 1},
    "ulsam_mobilenetv2_300m": {"insert": (16,)},
    "ulsam_mobilenetv2_285m": {"replace": (16,)},
    "ulsam_mobilenetv2_277m": {"replace": (13,)},
    "ulsam_mobilenetv2_269m": {"replace": (15, 16)},
    "ulsam_mobilenetv2_267m": {"replace": (10, 13)},
    "ulsam_mobilenetv2_262m": {"replace": (13, 16)},
    "ulsam_mobilenetv2_224m": {"replace": (12, 13, 15, 16)},
}


@register(
    "ulsam_mobilenetv1",
    system="ulsam",
    task="classification",
    variants={
        "ulsam_mobilenetv1_569m": "attention behind layer 12: 4.2 M parameters, 569 M MACs at 224 px",
        "ulsam_mobilenetv1_517m": "attention for layer 12: 4.0 M parameters, 517 M MACs at 224 px",
        "ulsam_mobilenetv1_296m": "x0.75, one subspace for layer 12: 2.4 M parameters, 296 M MACs at 224 px",
        "ulsam_mobilenetv1_136m": "x0.5, one subspace for layer 12: 1.3 M parameters, 136 M MACs at 224 px",
    },
)
def ulsam_mobilenetv1(variant: str = "", /, **options: Any) -> nn.Module:
    """Any MobileNetV1 with subspace attention, or without; options as `MobileNetV1`."""
    return made(MobileNetV1, options, VARIANTS, variant)


@register(
    "ulsam_mobilenetv2",
    system="ulsam",
    task="classification",
    variants={
        "ulsam_mobilenetv2_300m": "attention behind bottleneck 16: 3.5 M parameters, 301 M MACs at 224 px",
        "ulsam_mobilenetv2_285m": "attention for bottleneck 16: 3.2 M parameters, 285 M MACs at 224 px",
        "ulsam_mobilenetv2_277m": "attention for bottleneck 13: 3.4 M parameters, 278 M MACs at 224 px",
        "ulsam_mobilenetv2_269m": "attention for bottlenecks 15, 16: 2.9 M parameters, 270 M MACs at 224 px",
        "ulsam_mobilenetv2_267m": "attention for bottlenecks 10, 13: 3.3 M parameters, 268 M MACs at 224 px",
        "ulsam_mobilenetv2_262m": "attention for bottlenecks 13, 16: 3.1 M parameters, 263 M MACs at 224 px",
        "ulsam_mobilenetv2_224m": "attention for bottlenecks 12, 13, 15, 16: 2.6 M parameters, 225 M MACs at 224 px",
    },
)
def ulsam_mobilenetv2(variant: str = "", /, **options: Any) -> nn.Module:
    """Any MobileNetV2 with subspace attention, or without; options as `MobileNetV2`."""
    return made(MobileNetV2, options, VARIANTS, variant)
