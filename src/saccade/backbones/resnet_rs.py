"""ResNet-RS: ResNets scaled and trained anew, and the rules by which that was done.

Bello et al., "Revisiting ResNets: Improved Training and Scaling Strategies", NeurIPS 2021, arXiv:2103.07579.

    picture -- three 3x3 (32, 32, 64; the first of stride 2) -- 3x3 of stride 2 -- layer1 .. layer4 (4, 8, 16, 32) -- fc

    block:     x -- 1x1 -- 3x3 -- 1x1 to 4p -- squeeze-and-excitation at 1/4 -- drop path -- + shortcut -- ReLU
    shortcut:  2x2 mean of stride 2 -- 1x1 where the size changes, 1x1 where the width alone does

The network is timm's ResNet, configured; its key names stay, so timm's weights load as they are. What timm does not
have is here: drop path by group (0.4, 0.6, 0.8 and 1 times the rate, as in the published code; timm's rises block by
block), squeeze widths that are cut off instead of rounded to multiples of 8, fusing, and the paper's rules: `advise`
(what to scale next). The paper's training is the recipe ``resnet_rs`` of `saccade.training.classification`; what it
changes from member to member stands with their names, below (the 350 trained at 320 px has a dropout of 0.4).
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.models.resnet import Bottleneck, ResNet
from torch import Tensor, nn

from saccade.checkpoint import Recipe, StateDict
from saccade.errors import CheckpointError, UsageError
from saccade.nn.backbone import NamedStages, made, named
from saccade.nn.conv_norm import SqueezeExcitation
from saccade.nn.drop_path import drop_path
from saccade.nn.fuse import folded, fused_conv
from saccade.registry import recognise, register

__all__ = ["FAMILY", "Advice", "Member", "ResNetRS", "advise", "largest_within"]

DEPTHS = {
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
    270: (4, 29, 53, 4),
    350: (4, 36, 72, 4),
    420: (4, 44, 87, 4),
}
SQUEEZE = 0.25
GROUP_RATES = (0.4, 0.6, 0.8, 1.0)  # k / 5 for the groups that the published code numbers 2 to 5


class FusedBlock(nn.Module):
    """A bottleneck at inference: three convolutions with bias, gates, and the shortcut."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.conv1 = fused_conv(block.conv1, block.bn1)
        self.conv2 = fused_conv(block.conv2, block.bn2)
        self.conv3 = fused_conv(block.conv3, block.bn3)
        self.se = block.se
        self.downsample = nn.Identity() if block.downsample is None else folded(block.downsample)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(self.conv1(x).relu_()).relu_()
        out = self.se(self.conv3(out)) + self.downsample(x)
        return out.relu_()


class Block(Bottleneck):
    """timm's bottleneck, with its cheaper form for inference."""

    bn1: nn.BatchNorm2d
    bn2: nn.BatchNorm2d
    bn3: nn.BatchNorm2d
    downsample: nn.Sequential | None

    def fuse(self) -> nn.Module:
        """Batch norms folded into the convolutions."""
        return FusedBlock(self)


class ResNetRS(NamedStages):
    """Bottleneck ResNet with the D stem, a strided convolution for the pool, and squeeze-and-excitation.

    Args:
        depth: 50, 101, 152, 200, 270, 350 or 420; or the blocks of the four groups.
        channels: inner width p of each group; their outputs have 4p.
        stem_width: of the first two convolutions; the third and fourth have twice as much.
        width: multiplies ``channels`` and ``stem_width``; what is no multiple of 8 then is rounded to one, with a
            warning.
        se_ratio: inner channels of the gates, as a share of 4p, cut off to a whole number; 0 for no gates.
        drop_path_rate: r; the groups have 0.4 r, 0.6 r, 0.8 r and r.
        options: ``num_classes``, ``in_chans``, ``drop_rate``, ``global_pool`` (`Backbone`).

    Shape: (B, 3, H, W) -> (B, num_classes); maps at strides 4, 8, 16, 32. Sides of at least 32 pixels.

    Raises:
        UsageError: an unknown depth, or numbers that describe no network.
    """

    classifier = "fc"
    conv1: nn.Sequential
    bn1: nn.Module
    act1: nn.Module
    maxpool: nn.Sequential

    def __init__(
        self,
        depth: int | Sequence[int] = 50,
        channels: Sequence[int] = (64, 128, 256, 512),
        stem_width: int = 32,
        width: float = 1.0,
        se_ratio: float = SQUEEZE,
        drop_path_rate: float = 0.0,
        **options: Any,
    ) -> None:
        layers = blocks_of(depth)
        if len(channels) != 4 or min(*channels, stem_width) < 1:
            raise UsageError(f"a ResNet-RS has four groups of at least 1 channel and a stem, not {channels}")
        if not 0 <= drop_path_rate < 1 or not 0 <= se_ratio <= 1:
            raise UsageError(f"rates lie in [0, 1): drop_path_rate {drop_path_rate}, se_ratio {se_ratio}")
        *channels, stem_width = scaled_widths((*channels, stem_width), width)
        names = [f"layer{i}" for i in range(1, 5)]
        super().__init__(names, [4 * c for c in channels], (4, 8, 16, 32), **options)
        self.layers, self.channels, self.stem_width = layers, tuple(channels), stem_width
        self.se_ratio, self.drop_path_rate = se_ratio, drop_path_rate
        gates = (lambda c, **_: SqueezeExcitation(c, max(1, int(c * se_ratio)))) if se_ratio else None
        kind: Any = Block
        whole = ResNet(
            kind,
            layers,
            in_chans=self.in_chans,
            num_classes=0,
            stem_width=stem_width,
            stem_type="deep",
            replace_stem_pool=True,
            avg_down=True,
            channels=self.channels,
            block_args={"attn_layer": gates or nn.Identity},
        )
        for name, child in whole.named_children():
            if name not in ("global_pool", "fc"):
                self.add_module(name, child)
        for name, share in zip(names, GROUP_RATES, strict=True):
            for block in getattr(self, name):
                block.drop_path = drop_path(drop_path_rate * share)
        self.reset_parameters()
        self.reset_classifier(self.num_classes)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """As published: convolutions truncated normal of variance 1 / fan-in, the last norm of every branch 0."""
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                deviation = m.weight[0].numel() ** -0.5 / 0.87962566103423978  # that of a normal cut at two deviations
                nn.init.trunc_normal_(m.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
                if m.bias is not None:
                    m.bias.zero_()
            elif isinstance(m, Bottleneck):
                m.zero_init_last()

    def opening(self, x: Tensor) -> Tensor:
        """Stem, and the convolution in the pool's place: (B, 3, H, W) -> (B, 64, H/4, W/4)."""
        out: Tensor = self.maxpool(self.act1(self.bn1(self.conv1(x))))
        return out

    def make_head(self, num_classes: int) -> nn.Module:
        """A linear layer, normal of deviation 0.01."""
        head = nn.Linear(self.num_features, num_classes)
        nn.init.normal_(head.weight, std=0.01)
        nn.init.zeros_(head.bias)
        return head

    def fuse(self) -> nn.Module:
        """The network without batch norms."""
        if isinstance(self.bn1, nn.Identity):
            return self
        whole = copy.deepcopy(self)
        whole.conv1, whole.bn1 = folded(nn.Sequential(*whole.conv1, whole.bn1)), nn.Identity()
        whole.maxpool = folded(whole.maxpool)
        for name in self.stage_names:
            setattr(whole, name, nn.Sequential(*(block.fuse() for block in getattr(whole, name))))
        return whole


def blocks_of(depth: int | Sequence[int]) -> tuple[int, int, int, int]:
    """Blocks of the four groups.

    Raises:
        UsageError: neither a depth of the family nor four positive numbers.
    """
    if isinstance(depth, int):
        if depth not in DEPTHS:
            raise UsageError(
                f"no ResNet-RS of depth {depth}; there are {', '.join(map(str, DEPTHS))}, "
                "or give the blocks of the four groups"
            )
        return DEPTHS[depth]
    layers = tuple(depth)
    if len(layers) != 4 or not all(isinstance(n, int) and n > 0 for n in layers):
        raise UsageError(f"the depth is one of {', '.join(map(str, DEPTHS))} or blocks of four groups, not {layers}")
    return layers


def scaled_widths(channels: Iterable[int], width: float) -> list[int]:
    """Widths times a factor; what is no multiple of 8 then is rounded to the nearest one, and a warning says so.

    Raises:
        UsageError: a factor that is not positive.
    """
    if not (width > 0 and math.isfinite(width)):
        raise UsageError(f"width is a positive factor, not {width}")
    if width == 1:
        return list(channels)
    exact = [c * width for c in channels]
    rounded = [max(8, round(c / 8) * 8) for c in exact]
    if rounded != exact:
        told = ", ".join(f"{e:g} -> {r}" for e, r in zip(exact, rounded, strict=True) if e != r)
        warnings.warn(f"widths rounded to multiples of 8: {told}", stacklevel=3)
    return rounded


# ---------------------------------------------------------------------------------------------------------------------
# The family and the rules
# ---------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Member:
    """A network of the family as published (table of the official code).

    Attributes:
        name: registered.
        size: side of the pictures that it is trained on and used at, pixels.
        gmacs: at that size (the paper's FLOPs are twice as many).
        top1: of the published weights on ImageNet, percent; None where the table has none for this size.
    """

    name: str
    size: int
    gmacs: float
    top1: float | None


FAMILY = (
    Member("resnetrs50", 160, 2.28, 78.8),
    Member("resnetrs101", 192, 6.01, 81.2),
    Member("resnetrs152", 256, 15.5, 83.0),
    Member("resnetrs200", 256, 20.1, 83.4),
    Member("resnetrs270", 256, 27.0, 83.8),
    Member("resnetrs350", 256, 34.4, 84.0),
    Member("resnetrs350", 320, 53.7, 84.2),
    Member("resnetrs420", 320, 63.9, 84.4),
)


def largest_within(gmacs: float) -> Member:
    """The most accurate published member of at most this many GMACs a picture.

    Raises:
        UsageError: the smallest takes more.
    """
    fitting = [m for m in FAMILY if m.gmacs <= gmacs]
    if not fitting:
        raise UsageError(f"the smallest, {FAMILY[0].name} at {FAMILY[0].size} px, takes {FAMILY[0].gmacs} GMACs")
    return fitting[-1]


SIZES = (128, 160, 192, 224, 256, 320)


@dataclass(frozen=True)
class Advice:
    """What to scale next, and why.

    Attributes:
        grow: ``"depth"`` or ``"width"``.
        size: side of the pictures for the next larger network, pixels.
        weight_decay: to go with it.
        why: the rules of the paper that say so.
    """

    grow: str
    size: int
    weight_decay: float
    why: tuple[str, ...]


def advise(epochs: int, size: int, *, regularised: bool = True) -> Advice:
    """The paper's scaling rules (sections 5 and 6) for the next larger network.

    Args:
        epochs: that it will be trained for, on something of ImageNet's size.
        size: side of the pictures now, pixels.
        regularised: with RandAugment, label smoothing, dropout or drop path.

    Raises:
        UsageError: no epochs, or no pictures.
    """
    if epochs < 1 or size < 1:
        raise UsageError(f"epochs and size are at least 1, not {epochs} and {size}")
    why = ["choose on pilots of full length at several scales; short ones and small ones mislead"]
    long = epochs > 100
    if long:
        why.append("long training can over-fit: depth scales better than width")
    else:
        why.append("in 10 to 100 epochs width scales better than depth")
    larger = next((s for s in SIZES if s > size), size)
    if size >= SIZES[-1]:
        why.append("beyond 320 px larger pictures stop helping: keep the size")
    else:
        why.append(f"grow the picture slowly: {larger} px next, most of the rest into {'depth' if long else 'width'}")
    if regularised:
        why.append("with more regularisation weight decay goes down: 4e-5 instead of 1e-4")
    return Advice("depth" if long else "width", larger, 4e-5 if regularised else 1e-4, tuple(why))


# ---------------------------------------------------------------------------------------------------------------------
# Registered models
# ---------------------------------------------------------------------------------------------------------------------
VARIANTS: dict[str, dict[str, Any]] = {f"resnetrs{depth}": {"depth": depth} for depth in DEPTHS}


@register(
    "resnetrs",
    system="resnet_rs",
    task="classification",
    variants={
        "resnetrs50": {
            "size": 160,
            "crop_pct": 0.91,
            "about": "ResNet-RS-50: 35.7 M parameters, 2.3 G MACs at 160 px",
        },
        "resnetrs101": {
            "size": 192,
            "crop_pct": 0.94,
            "about": "ResNet-RS-101: 63.6 M parameters, 6.0 G MACs at 192 px",
            "recipes": {"resnet_rs": {"magnitude": 15}},
        },
        "resnetrs152": {
            "size": 256,
            "crop_pct": 1.0,
            "about": "ResNet-RS-152: 86.6 M parameters, 15.5 G MACs at 256 px",
            "recipes": {"resnet_rs": {"magnitude": 15}},
        },
        "resnetrs200": {
            "size": 256,
            "crop_pct": 1.0,
            "about": "ResNet-RS-200: 93.2 M parameters, 20.1 G MACs at 256 px",
            "recipes": {"resnet_rs": {"magnitude": 15, "drop_path": 0.1}},
        },
        "resnetrs270": {
            "size": 256,
            "crop_pct": 1.0,
            "about": "ResNet-RS-270: 129.9 M parameters, 27.0 G MACs at 256 px",
            "recipes": {"resnet_rs": {"magnitude": 15, "drop_path": 0.1}},
        },
        "resnetrs350": {
            "size": 256,
            "crop_pct": 1.0,
            "about": "ResNet-RS-350: 164.0 M parameters, 34.4 G MACs at 256 px",
            "recipes": {"resnet_rs": {"magnitude": 15, "drop_path": 0.1}},
        },
        "resnetrs420": {
            "size": 320,
            "crop_pct": 1.0,
            "about": "ResNet-RS-420: 191.9 M parameters, 63.9 G MACs at 320 px",
            "recipes": {"resnet_rs": {"magnitude": 15, "drop_path": 0.1, "drop": 0.4}},
        },
    },
)
def resnetrs(variant: str = "", /, **options: Any) -> nn.Module:
    """Any ResNet-RS; options as `ResNetRS`."""
    return made(ResNetRS, options, VARIANTS, variant)


# ---------------------------------------------------------------------------------------------------------------------
# Published weights
# ---------------------------------------------------------------------------------------------------------------------
def _describe(state: StateDict) -> dict[str, Any]:
    """Options of the network behind a state."""
    try:
        layers = tuple(1 + max(int(k.split(".")[1]) for k in state if k.startswith(f"layer{i}.")) for i in range(1, 5))
        channels = tuple(state[f"layer{i}.0.conv1.weight"].shape[0] for i in range(1, 5))
        squeeze, width = state["layer1.0.se.fc1.weight"].shape[:2]
        stem_width, in_chans = state["conv1.0.weight"].shape[:2]
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"these weights look like a ResNet-RS, but they describe none: {error}") from error
    options: dict[str, Any] = {
        "depth": next((depth for depth, blocks in DEPTHS.items() if blocks == layers), layers),
        "channels": channels,
        "stem_width": stem_width,
        "se_ratio": SQUEEZE if squeeze == max(1, int(width * SQUEEZE)) else squeeze / width,
        "in_chans": in_chans,
        "num_classes": state["fc.weight"].shape[0] if "fc.weight" in state else 0,
    }
    usual = {"channels": (64, 128, 256, 512), "stem_width": 32, "se_ratio": SQUEEZE}
    return {key: value for key, value in options.items() if usual.get(key) != value}


@recognise("resnet_rs", keys=("conv1.6.weight", "maxpool.0.weight", "layer4.0.se.fc1.weight", "layer4.0.conv3.weight"))
def from_timm(state: StateDict) -> Recipe | None:
    """Checkpoints of timm's zoo, whose key names are ours (the published ones of TensorFlow are converted there)."""
    return named("resnetrs", VARIANTS, _describe(state), dict(state))
