"""What SHViT and EfficientViT share: a stem of stride 16, convolutional feed-forwards, patch merging, classifiers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from saccade.checkpoint import StateDict
from saccade.errors import UsageError
from saccade.nn.backbone import Backbone
from saccade.nn.conv_norm import ConvNorm, NormLinear, ResidualDepthwise, SqueezeExcitation

__all__ = [
    "FeedForward",
    "LeanViT",
    "PatchMerging",
    "nearest_multiple",
    "patch_stem",
    "renamed_official",
    "renamed_timm",
    "transition",
]


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


class LeanViT(Backbone):
    """The stem of stride 16, and one or two classifiers of batch norm and a linear layer; stages are the subclass's.

    Args:
        widths: channels of the stages; the first divides by 8. Each stage halves the map of the one before.
        distillation: a second classifier; in training both logits come as a pair, else their mean.
        options: as `Backbone`.

    Raises:
        UsageError: a first width that the stem cannot reach.
    """

    def __init__(self, widths: Sequence[int], *, distillation: bool = False, **options: Any) -> None:
        if widths[0] % 8:
            raise UsageError(f"widths[0] is {widths[0]}, it must divide by 8: the stem doubles it three times")
        if min(widths) < 1:
            raise UsageError(f"widths has an entry of {min(widths)}, all must be at least 1")
        super().__init__(widths, [16 << i for i in range(len(widths))], least=16, **options)
        self.distillation = distillation
        self.stem = patch_stem(self.in_chans, widths[0])
        self.head_dist: nn.Module | None = None

    def make_head(self, num_classes: int) -> nn.Module:
        """Batch norm and a linear layer."""
        return NormLinear(self.num_features, num_classes)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Fresh classifiers, as `Backbone.reset_classifier`."""
        super().reset_classifier(num_classes, global_pool)
        if self.distillation:
            self.head_dist = self.make_head(num_classes) if num_classes else None

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Any:
        """Logits; with distillation in training the pair of both classifiers'."""
        pooled = super().forward_head(x, pre_logits=True)
        if pre_logits or self.head_dist is None:
            return pooled if pre_logits else self.head(pooled)
        logits = self.head(pooled), self.head_dist(pooled)
        return logits if self.training else (logits[0] + logits[1]) / 2


_LEAVES = (
    (r"^(stages\.\d+\.[02])\.1\.m\.", r"\1.1."),  # feed-forward of a transition
    (r"\.mixer\.m\.", ".mixer."),
    (r"\.proj\.1\.", ".proj."),
    (r"\.(ffn\d?)\.m\.", r".\1."),
    (r"\.c\.", ".conv."),
    (r"^head(_dist)?\.l\.", r"head\1.linear."),
)
_OFFICIAL = (
    (r"^patch_embed\.", "stem."),
    (r"^blocks(\d)\.", lambda m: f"stages.{int(m[1]) - 1}."),
    *_LEAVES,
)
_TIMM = (
    (r"^patch_embed\.conv(\d)\.", lambda m: f"stem.{2 * int(m[1]) - 2}."),
    (r"^patch_embed\.", "stem."),
    (r"\.downsample\.(res1|patchmerge|res2)\.", lambda m: f".{('res1', 'patchmerge', 'res2').index(m[1])}."),
    (r"^(stages\.\d+)\.downsample\.(\d)\.", lambda m: f"{m[1]}.{('0.0', '0.1', '1', '2.0', '2.1')[int(m[2])]}."),
    (r"^stages\.(\d+)\.blocks\.(\d+)", lambda m: f"stages.{m[1]}.{int(m[2]) + (3 if int(m[1]) else 0)}"),
    *_LEAVES,
)


def renamed_official(state: StateDict) -> StateDict:
    """Key names of the two published codes in ours; 1x1 convolutions that old files hold as matrices in their shape."""
    return _renamed(state, _OFFICIAL)


def renamed_timm(state: StateDict) -> StateDict:
    """The same for timm's key names."""
    return _renamed(state, _TIMM)


def _renamed(state: StateDict, rules: Sequence[tuple[str, Any]]) -> StateDict:
    made = {}
    for name, value in state.items():
        for pattern, to in rules:
            name = re.sub(pattern, to, name)
        made[name] = value[..., None, None] if value.dim() == 2 and ".conv.weight" in name else value
    return made
