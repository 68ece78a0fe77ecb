"""MobileNetV2 and ShuffleNetV2 for aligned faces, with TVConv in the place of depthwise convolutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from saccade.backbones.tvconv.layer import BakedTVConv, TVConv, TVConvNorm
from saccade.errors import UsageError
from saccade.nn.backbone import Backbone, made
from saccade.nn.conv_norm import ConvNorm
from saccade.nn.dimensions import Dimensions, Numbers, as_rows, rescaled
from saccade.nn.fuse import affine_of
from saccade.ops.tvconv import output_size
from saccade.registry import register

__all__ = ["MOBILENETS", "SHUFFLENETS", "TABLE", "FaceNetwork", "TVMobileNetV2", "TVShuffleNetV2"]

#: makes a depthwise layer with its norm: channels, output's size, stride, activation
Depthwise = Callable[[int, tuple[int, int], int, nn.Module | None], nn.Module]


def _depthwise(layer: str, deployed: bool, generator: dict[str, Any]) -> Depthwise:
    if layer not in ("tvconv", "depthwise"):
        raise UsageError(f"layer is 'tvconv' or 'depthwise', not {layer!r}")
    kernel = generator.get("kernel", 3)

    def make(channels: int, size: tuple[int, int], stride: int, act: nn.Module | None) -> nn.Module:
        if layer == "depthwise":
            return ConvNorm(channels, channels, kernel, stride, groups=channels, act=act)
        if not deployed:
            return TVConvNorm(TVConv(channels, size, stride=stride, **generator), channels, act)
        bias = torch.zeros(1, channels, *size) if generator.get("bias") else None
        return TVConvNorm(BakedTVConv(torch.zeros(kernel**2, channels, *size), bias, stride), channels, act)

    return make


class InvertedResidual(nn.Module):
    """1x1 to ``hidden`` channels (where they differ), depthwise, 1x1; with a shortcut where shapes allow it."""

    def __init__(
        self, inputs: int, hidden: int, outputs: int, stride: int, size: tuple[int, int], depthwise: Depthwise
    ) -> None:
        super().__init__()
        wider = [] if hidden == inputs else [ConvNorm(inputs, hidden, act=nn.ReLU6(inplace=True))]
        self.conv = nn.Sequential(
            *wider, depthwise(hidden, size, stride, nn.ReLU6(inplace=True)), ConvNorm(hidden, outputs)
        )
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return x + out if self.shortcut else out


class ShuffleUnit(nn.Module):
    """ShuffleNetV2's unit: half of the channels pass, or both branches see all; then channels are shuffled."""

    def __init__(self, inputs: int, outputs: int, stride: int, size: tuple[int, int], depthwise: Depthwise) -> None:
        super().__init__()
        half = outputs // 2
        self.branch1: nn.Module | None = None
        if stride > 1:
            first = depthwise(inputs, size, stride, None)
            self.branch1 = nn.Sequential(first, ConvNorm(inputs, half, act=nn.ReLU(inplace=True)))
        self.branch2 = nn.Sequential(
            ConvNorm(inputs if stride > 1 else half, half, act=nn.ReLU(inplace=True)),
            depthwise(half, size, stride, None),
            ConvNorm(half, half, act=nn.ReLU(inplace=True)),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.branch1 is None:
            passing, rest = x.chunk(2, 1)
            both = torch.cat([passing, self.branch2(rest)], 1)
        else:
            both = torch.cat([self.branch1(x), self.branch2(x)], 1)
        return both.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


class Embedding(nn.Module):
    """Linear layer and batch norm, (B, inputs) -> (B, outputs); one linear layer when fused."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear, self.bn = nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs)
        nn.init.normal_(self.linear.weight, 0, 0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn(self.linear(x))
        return out

    @torch.no_grad()
    def fuse(self) -> nn.Module:
        """One linear layer."""
        gain, offset = affine_of(self.bn)
        made = nn.Linear(self.linear.in_features, self.linear.out_features).to(self.linear.weight)
        made.weight.copy_(self.linear.weight * gain[:, None])
        made.bias.copy_(self.linear.bias * gain + offset)
        return made


class FaceNetwork(Backbone):
    """What both networks share: options of the layers, the embedding at the end, and the start of the weights.

    Args:
        widths, reductions: see `Backbone`.
        img_size: the side of the pictures; any from 16 px where ``layer`` is ``"depthwise"``.
        layer: ``"tvconv"``, or ``"depthwise"`` for the same network with ordinary depthwise convolutions.
        deployed: kernels without their generator, for weights of the published deployed form; not for training.
        kernel, posi_chans, inter_chans, inter_layers, bias: see `TVConv`.
        num_classes: of the embedding (512), which has a batch norm of its own; 0 for pooled features.
        options: ``in_chans``, ``drop_rate``, ``global_pool`` (`Backbone`).
    """

    def __init__(
        self,
        widths: Sequence[int],
        reductions: Sequence[int],
        *,
        img_size: int = 96,
        layer: str = "tvconv",
        deployed: bool = False,
        kernel: int = 3,
        posi_chans: int = 4,
        inter_chans: int = 64,
        inter_layers: int = 3,
        bias: bool = False,
        num_classes: int = 512,
        **options: Any,
    ) -> None:
        size = img_size if layer == "tvconv" else None
        super().__init__(widths, reductions, num_classes=num_classes, size=size, least=16, **options)
        generator: dict[str, Any] = {"kernel": kernel}
        generator |= {"posi_chans": posi_chans, "inter_chans": inter_chans, "inter_layers": inter_layers, "bias": bias}
        self.depthwise = _depthwise(layer, deployed, generator)
        self.img_size, self.layer = img_size, layer

    def begin(self) -> None:
        """Norm, classifier and the published start: convolutions, the generator's too, by their fan-out."""
        self.norm = nn.BatchNorm2d(self.num_features)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
        self.reset_classifier(self.num_classes)

    def make_head(self, num_classes: int) -> nn.Module:
        """The embedding: a linear layer and a batch norm."""
        return Embedding(self.num_features, num_classes)


class TVMobileNetV2(FaceNetwork):
    """MobileNetV2 for aligned faces (section 4.1): (B, 3, 96, 96) -> (B, 512); a map for each stride.

    Args:
        blocks: (hidden channels, output channels, stride) of every inverted residual.
        stem_width, last: channels of the first convolution, of stride 1, and of the last, 1x1.
        options: of `FaceNetwork`.
    """

    def __init__(self, blocks: Sequence[Sequence[int]], stem_width: int = 32, last: int = 512, **options: Any) -> None:
        if not blocks or any(len(b) != 3 or min(b) < 1 for b in blocks):
            raise UsageError("blocks are (hidden channels, output channels, stride) each, all at least 1")
        starts = [0, *(i for i, b in enumerate(blocks) if b[2] > 1 and i)]
        spans = list(zip(starts, [*starts[1:], len(blocks)], strict=True))
        widths, reductions, reduction = [], [], 1
        for first, end in spans:
            reduction *= blocks[first][2]
            widths.append(last if end == len(blocks) else blocks[end - 1][1])
            reductions.append(reduction)
        super().__init__(widths, reductions, **options)
        self.blocks, self.stem_width, self.last = blocks, stem_width, last
        self.stem = ConvNorm(self.in_chans, stem_width, 3, act=nn.ReLU6(inplace=True))
        inputs, size, stages = stem_width, (self.img_size, self.img_size), []
        for first, end in spans:
            layers: list[nn.Module] = []
            for hidden, outputs, stride in blocks[first:end]:
                size = output_size(*size, stride)
                layers.append(InvertedResidual(inputs, hidden, outputs, stride, size, self.depthwise))
                inputs = outputs
            stages.append(layers)
        stages[-1].append(ConvNorm(inputs, last, act=nn.ReLU6(inplace=True)))
        self.stages = nn.ModuleList(nn.Sequential(*layers) for layers in stages)
        self.begin()

    def dimensions(self) -> Dimensions:
        """Widths of the stem and of blocks alike in a row, and how many these are; the last convolution's stays."""
        inputs = [self.stem_width, *(block[1] for block in self.blocks)]
        rows = as_rows((b[0] / before, b[1], b[2]) for b, before in zip(self.blocks, inputs, strict=False))

        def options(numbers: Numbers) -> dict[str, Any]:
            blocks, before = list[tuple[int, int, int]](), numbers["widths"][0]
            for row in rescaled(rows, numbers):
                for i in range(row.depth):
                    blocks.append((round(row.expansion * before), row.width, 1 if i else row.stride))
                    before = row.width
            return {"blocks": tuple(blocks), "stem_width": numbers["widths"][0]}

        widths = (self.stem_width, *(row.width for row in rows))
        return Dimensions({"widths": widths, "depths": tuple(row.depth for row in rows)}, options)


class TVShuffleNetV2(FaceNetwork):
    """ShuffleNetV2 for aligned faces (section 4.1): (B, 3, 96, 96) -> (B, 512); maps at strides 4, 8, 16.

    Args:
        widths: channels of the stem, of the stages, and of the last convolution, 1x1.
        depths: units of each stage.
        options: of `FaceNetwork`.
    """

    def __init__(
        self, widths: Sequence[int] = (24, 116, 232, 464, 1024), depths: Sequence[int] = (4, 8, 4), **options: Any
    ) -> None:
        if len(widths) != len(depths) + 2:
            raise UsageError(f"{len(depths)} stages need {len(depths) + 2} widths, stem and last among them")
        if any(width % 2 for width in widths[1:-1]):
            raise UsageError(f"widths of stages are even, not {tuple(widths[1:-1])}")
        maps = [*widths[1:-2], widths[-1]]
        super().__init__(maps, [4 << i for i in range(len(maps))], **options)
        self.widths, self.depths = widths, depths
        conv = ConvNorm(self.in_chans, widths[0], 3, act=nn.ReLU(inplace=True))
        self.stem = nn.Sequential(conv, nn.MaxPool2d(3, 2, 1))
        size, stages = output_size(self.img_size, self.img_size, 2), list[list[nn.Module]]()
        for inputs, outputs, depth in zip(widths, widths[1:-1], depths, strict=False):
            size = output_size(*size, 2)
            first = ShuffleUnit(inputs, outputs, 2, size, self.depthwise)
            rest = [ShuffleUnit(outputs, outputs, 1, size, self.depthwise) for _ in range(depth - 1)]
            stages.append([first, *rest])
        stages[-1].append(ConvNorm(widths[-2], widths[-1], act=nn.ReLU(inplace=True)))
        self.stages = nn.ModuleList(nn.Sequential(*layers) for layers in stages)
        self.begin()


# ---------------------------------------------------------------------------------------------------------------------
# Registered models
# ---------------------------------------------------------------------------------------------------------------------
TABLE = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def _rounded(value: float) -> int:
    """The multiple of 8 nearest to a width, at least 8 and not below 90 % of it."""
    nearest = max(8, int(value + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * value else nearest


def _mobilenet(width: float) -> dict[str, Any]:
    """Blocks of MobileNetV2 with all widths multiplied."""
    inputs = stem = _rounded(32 * width)
    blocks = []
    for expansion, channels, count, stride in TABLE:
        outputs = _rounded(channels * width)
        for i in range(count):
            blocks.append((inputs * expansion, outputs, stride if i == 0 else 1))
            inputs = outputs
    return {"blocks": tuple(blocks), "stem_width": stem}


MOBILENETS: dict[str, dict[str, Any]] = {
    f"tvconv_mobilenetv2_x{str(width).replace('.', '_')}": _mobilenet(width) for width in (0.1, 0.2, 0.3, 0.5, 1.0)
}
SHUFFLENETS: dict[str, dict[str, Any]] = {
    "tvconv_shufflenetv2_x0_5": {"widths": (24, 48, 96, 192, 1024), "depths": (4, 8, 4)},
    "tvconv_shufflenetv2_x1_0": {"widths": (24, 116, 232, 464, 1024), "depths": (4, 8, 4)},
    "tvconv_shufflenetv2_x1_5": {"widths": (24, 176, 352, 704, 1024), "depths": (4, 8, 4)},
}


@register(
    "tvconv_mobilenetv2",
    system="tvconv",
    task="classification",
    size=96,
    fixed_size=True,
    side_option="img_size",
    variants={
        "tvconv_mobilenetv2_x0_1": "MobileNetV2 x0.1 with TVConv: 16.4 M parameters in training",
        "tvconv_mobilenetv2_x0_2": "MobileNetV2 x0.2 with TVConv",
        "tvconv_mobilenetv2_x0_3": "MobileNetV2 x0.3 with TVConv",
        "tvconv_mobilenetv2_x0_5": "MobileNetV2 x0.5 with TVConv",
        "tvconv_mobilenetv2_x1_0": "MobileNetV2 x1.0 with TVConv",
    },
)
def tvconv_mobilenetv2(variant: str = "", /, **options: Any) -> nn.Module:
    """Any MobileNetV2 with TVConv; options as `TVMobileNetV2`."""
    return made(TVMobileNetV2, options, MOBILENETS, variant)


@register(
    "tvconv_shufflenetv2",
    system="tvconv",
    task="classification",
    size=96,
    fixed_size=True,
    side_option="img_size",
    variants={
        "tvconv_shufflenetv2_x0_5": "ShuffleNetV2 x0.5 with TVConv",
        "tvconv_shufflenetv2_x1_0": "ShuffleNetV2 x1.0 with TVConv",
        "tvconv_shufflenetv2_x1_5": "ShuffleNetV2 x1.5 with TVConv",
    },
)
def tvconv_shufflenetv2(variant: str = "", /, **options: Any) -> nn.Module:
    """Any ShuffleNetV2 with TVConv; options as `TVShuffleNetV2`."""
    return made(TVShuffleNetV2, options, SHUFFLENETS, variant)
