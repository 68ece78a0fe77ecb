"""VAN: every place of a map is gated by what its 21 x 21 neighbourhood says, for the price of 5 x 5 and 7 x 7.

Guo et al., "Visual Attention Network", Computational Visual Media 2023, arXiv:2202.09741.

    picture -- 7x7, stride 4 -- stage 1 (4) -- 3x3, stride 2 -- stage 2 (8) -- ... 3 (16) -- ... 4 (32) -- head

    block:      x + s1 * (attention(n) + n), n = norm(x)  -->  x + s2 * mlp(norm(x))
    attention:  1x1 -- GELU -- gate -- 1x1
    gate:       u * 1x1(depthwise 7x7, dilation 3 (depthwise 5x5 (u)))      no sigmoid, no norm (equation 4)

A K x K depthwise kernel becomes one of 2d-1 and one of K/d with dilation d (section 3.2); K = 21, d = 3. Each stage
ends in a layer norm over channels, which the maps of `features_only` have too. Written from the paper alone.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.checkpoint import Recipe, StateDict
from saccade.errors import CheckpointError, UsageError
from saccade.nn.backbone import Backbone, check_stages, made, named
from saccade.nn.channel_norm import ChannelNorm
from saccade.nn.drop_path import drop_path, rising
from saccade.nn.fuse import affine_of, fused_conv
from saccade.ops.large_depthwise import LargeDepthwise
from saccade.registry import recognise, register

__all__ = ["VAN", "LargeKernelAttention"]


class LargeKernelAttention(nn.Module):
    """x * attention(x), where attention is a decomposed depthwise convolution and mixes channels last (equation 4).

    Args:
        width: channels.
        kernel: K, of the kernel that is decomposed.
        dilation: d, of its second part. The first has 2d-1 taps a side, the second K/d, rounded up.

    Shape: (B, C, H, W) -> (B, C, H, W).

    Raises:
        UsageError: a pair for which a part has an even number of taps: it cannot keep the size.
    """

    def __init__(self, width: int, kernel: int = 21, dilation: int = 3) -> None:
        super().__init__()
        if dilation < 1 or kernel < dilation:
            raise UsageError(
                f"a kernel of {kernel} is not decomposed with dilation {dilation}: 1 <= dilation <= kernel"
            )
        near, far = 2 * dilation - 1, math.ceil(kernel / dilation)
        if far % 2 == 0:
            raise UsageError(
                f"kernel {kernel} with dilation {dilation} gives a part of {far} taps a side: only odd ones keep size"
            )
        self.near = LargeDepthwise(width, near)
        self.far = LargeDepthwise(width, far, dilation=dilation)
        self.mix = nn.Conv2d(width, width, 1)

    def attention(self, x: Tensor) -> Tensor:
        """What each place is multiplied by, of any sign."""
        out: Tensor = self.mix(self.far(self.near(x)))
        return out

    def forward(self, x: Tensor) -> Tensor:
        return x * self.attention(x)


class Attention(nn.Module):
    """project(gate(GELU(expand(x)))), without the shortcut around it, which `Block` adds (figure 3d)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(width, width, 1)
        self.gate = LargeKernelAttention(width)
        self.project = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.project(self.gate(F.gelu(self.expand(x))))
        return out


class Mlp(nn.Module):
    """1x1 to ``ratio`` times the width, depthwise 3x3, GELU, 1x1 back."""

    def __init__(self, width: int, ratio: int, drop: float = 0.0) -> None:
        super().__init__()
        inner = width * ratio
        self.expand = nn.Conv2d(width, inner, 1)
        self.depthwise = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.drop = nn.Dropout(drop)
        self.project = nn.Conv2d(inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.drop(F.gelu(self.depthwise(self.expand(x))))
        out: Tensor = self.drop(self.project(inner))
        return out


class Block(nn.Module):
    """Attention, whose own shortcut starts at the normalised map, and MLP; each scaled by a number a channel."""

    def __init__(self, width: int, ratio: int, drop: float = 0.0, rate: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.attn = nn.BatchNorm2d(width), Attention(width)
        self.norm2, self.mlp = nn.BatchNorm2d(width), Mlp(width, ratio, drop)
        self.drop_path = drop_path(rate)
        self.scale1 = nn.Parameter(torch.full((width,), 1e-2))
        self.scale2 = nn.Parameter(torch.full((width,), 1e-2))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        x = x + self.drop_path(self.scale1[:, None, None] * (self.attn(normed) + normed))
        out: Tensor = x + self.drop_path(self.scale2[:, None, None] * self.mlp(self.norm2(x)))
        return out

    def fuse(self) -> nn.Module:
        """The same without norms and scales."""
        return FusedBlock(self)


class FusedBlock(nn.Module):
    """A block at inference: skip * x + attention(x) --> x + mlp(x).

    Both norms go into the 1x1 convolutions behind them and both scales into those before them. The attention's own
    shortcut runs over the normalised map g x + o: of it, ``skip`` = 1 + s1 g keeps the gain, a bias s1 o the offset.
    """

    @torch.no_grad()
    def __init__(self, block: Block) -> None:
        super().__init__()
        gain, offset = affine_of(block.norm1)
        self.skip = nn.Parameter(1 + block.scale1 * gain)
        self.attn, self.mlp = copy.deepcopy(block.attn), copy.deepcopy(block.mlp)
        _fold_before(self.attn.expand, gain, offset)
        _fold_after(self.attn.project, block.scale1, block.scale1 * offset)
        _fold_before(self.mlp.expand, *affine_of(block.norm2))
        _fold_after(self.mlp.project, block.scale2, torch.zeros_like(block.scale2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.skip[:, None, None] * x + self.attn(x)
        out: Tensor = x + self.mlp(x)
        return out


def _fold_before(conv: nn.Conv2d, gain: Tensor, offset: Tensor) -> None:
    """conv(gain x + offset) as conv(x), of one pixel: there is no border where the offset would be missing."""
    assert conv.bias is not None
    conv.bias.add_(conv.weight[:, :, 0, 0] @ offset)
    conv.weight.mul_(gain[:, None, None])


def _fold_after(conv: nn.Conv2d, scale: Tensor, offset: Tensor) -> None:
    """scale * conv(x) + offset as conv(x)."""
    assert conv.bias is not None
    conv.weight.mul_(scale[:, None, None, None])
    conv.bias.mul_(scale).add_(offset)


class PatchEmbed(nn.Module):
    """Overlapping patches: a convolution of stride 4 (7x7) or 2 (3x3), and batch norm; one convolution when fused."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn(self.conv(x))
        return out

    def fuse(self) -> nn.Module:
        """One convolution."""
        return fused_conv(self.conv, self.bn)


class VAN(Backbone):
    """Visual attention network (table 2).

    Args:
        widths: channels of the four stages.
        ratios: inner over outer width of their MLPs.
        depths: blocks of each.
        norm_eps: of the layer norm behind each stage. (Batch norms have torch's defaults; to keep their statistics
            while tuning on small batches, timm's ``freeze_batch_norm_2d`` takes the network as it is.)
        proj_drop: dropout inside the MLPs.
        drop_path_rate: of the last block; it rises linearly from 0.
        options: ``num_classes``, ``in_chans``, ``drop_rate``, ``global_pool`` (`Backbone`).

    Shape: (B, 3, H, W) -> (B, num_classes); maps at strides 4, 8, 16, 32. Sides of at least 32 pixels.

    Raises:
        UsageError: the numbers describe no network.
    """

    def __init__(
        self,
        widths: Sequence[int] = (64, 128, 320, 512),
        ratios: Sequence[int] = (8, 8, 4, 4),
        depths: Sequence[int] = (2, 2, 4, 2),
        norm_eps: float = 1e-6,
        proj_drop: float = 0.0,
        drop_path_rate: float = 0.0,
        **options: Any,
    ) -> None:
        check_stages(widths=widths, ratios=ratios, depths=depths)
        if not 0 <= proj_drop <= 1:
            raise UsageError(f"proj_drop lies in [0, 1], not {proj_drop}")
        super().__init__(widths, (4, 8, 16, 32), **options)
        self.widths, self.ratios, self.depths = tuple(widths), tuple(ratios), tuple(depths)
        rates = rising(drop_path_rate, depths)
        self.stem = PatchEmbed(self.in_chans, widths[0], 7, 4)
        stages: list[nn.Module] = []
        for i, (width, ratio, depth) in enumerate(zip(widths, ratios, depths, strict=True)):
            layers: list[nn.Module] = [PatchEmbed(widths[i - 1], width, 3, 2)] if i else []
            layers += [Block(width, ratio, proj_drop, rates.pop(0)) for _ in range(depth)]
            stages.append(nn.Sequential(*layers, ChannelNorm(width, norm_eps)))
        self.stages = nn.ModuleList(stages)
        self.apply(_initialise)
        self.reset_classifier(self.num_classes)

    def no_weight_decay(self) -> set[str]:
        """The scales."""
        return {name for name, _ in self.named_parameters() if name.rpartition(".")[2] in ("scale1", "scale2")}


def _initialise(module: nn.Module) -> None:
    """Convolutions normal with variance 2 / fan-out."""
    if isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


# ---------------------------------------------------------------------------------------------------------------------
# Registered models
# ---------------------------------------------------------------------------------------------------------------------
_NARROW, _WIDE = (64, 128, 320, 512), (96, 192, 480, 768)
VARIANTS: dict[str, dict[str, Any]] = {
    "van_b0": {"widths": (32, 64, 160, 256), "ratios": (8, 8, 4, 4), "depths": (3, 3, 5, 2)},
    "van_b1": {"widths": _NARROW, "ratios": (8, 8, 4, 4), "depths": (2, 2, 4, 2)},
    "van_b2": {"widths": _NARROW, "ratios": (8, 8, 4, 4), "depths": (3, 3, 12, 3)},
    "van_b3": {"widths": _NARROW, "ratios": (8, 8, 4, 4), "depths": (3, 5, 27, 3)},
    "van_b4": {"widths": _NARROW, "ratios": (8, 8, 4, 4), "depths": (3, 6, 40, 3)},
    "van_b5": {"widths": _WIDE, "ratios": (8, 8, 4, 4), "depths": (3, 3, 24, 3)},
    "van_b6": {"widths": (96, 192, 384, 768), "ratios": (8, 8, 4, 4), "depths": (6, 6, 90, 6)},
}


@register(
    "van",
    system="van",
    task="classification",
    variants={
        "van_b0": "VAN-B0: 4.1 M parameters, 0.86 G MACs at 224 px",
        "van_b1": "VAN-B1: 13.9 M parameters, 2.5 G MACs at 224 px",
        "van_b2": "VAN-B2: 26.6 M parameters, 5.0 G MACs at 224 px",
        "van_b3": "VAN-B3: 44.8 M parameters, 8.9 G MACs at 224 px",
        "van_b4": "VAN-B4: 60.3 M parameters, 12.1 G MACs at 224 px",
        "van_b5": "VAN-B5: 90.0 M parameters, 17.1 G MACs at 224 px",
        "van_b6": "VAN-B6: 200 M parameters, 38.7 G MACs at 224 px",
    },
)
def van(variant: str = "", /, **options: Any) -> nn.Module:
    """Any VAN; options as `VAN`."""
    return made(VAN, options, VARIANTS, variant)


# ---------------------------------------------------------------------------------------------------------------------
# Published weights
# ---------------------------------------------------------------------------------------------------------------------
_LEAVES = (
    (".attn.proj_1.", ".attn.expand."),
    (".attn.proj_2.", ".attn.project."),
    (".attn.spatial_gating_unit.conv0.", ".attn.gate.near."),
    (".attn.spatial_gating_unit.conv_spatial.", ".attn.gate.far."),
    (".attn.spatial_gating_unit.conv1.", ".attn.gate.mix."),
    (".mlp.fc1.", ".mlp.expand."),
    (".mlp.dwconv.dwconv.", ".mlp.depthwise."),
    (".mlp.fc2.", ".mlp.project."),
    (".layer_scale_", ".scale"),
)
_EMBED = {"proj": "conv", "norm": "bn"}


def _our_name(name: str, depths: Sequence[int]) -> str:
    """In our network, where the patch embedding is a stage's first layer (the first stage's is the stem)."""
    kind, rest = name.split(".", 1)
    stage = int(kind[-1]) - 1 if kind[-1].isdigit() else -1
    if kind.startswith("patch_embed"):
        leaf, _, what = rest.partition(".")
        return f"{f'stages.{stage}.0' if stage else 'stem'}.{_EMBED.get(leaf, leaf)}.{what}"
    if kind.startswith("norm"):
        return f"stages.{stage}.{depths[stage] + bool(stage)}.{rest}"
    if not kind.startswith("block"):
        return name
    block, _, leaf = rest.partition(".")
    leaf = f".{leaf}"
    for theirs, ours in _LEAVES:
        leaf = leaf.replace(theirs, ours)
    return f"stages.{stage}.{int(block) + bool(stage)}{leaf}"


@recognise(
    "van",
    keys=(
        "patch_embed1.proj.weight",
        "block1.*.attn.spatial_gating_unit.conv_spatial.weight",
        "block4.*.mlp.fc1.weight",
    ),
)
def from_official(state: StateDict) -> Recipe | None:
    """Checkpoints of the published code; dense predictors' backbones have no head."""
    found = [re.match(r"block(\d)\.(\d+)\.", k) for k in state]
    try:
        depths = tuple(1 + max(int(m[2]) for m in found if m and m[1] == str(i)) for i in (1, 2, 3, 4))
        widths = tuple(state[f"patch_embed{i}.proj.weight"].shape[0] for i in (1, 2, 3, 4))
        inner = tuple(state[f"block{i}.0.mlp.fc1.weight"].shape[0] for i in (1, 2, 3, 4))
        options: dict[str, Any] = {"widths": widths, "depths": depths}
        options["ratios"] = tuple(n // w for n, w in zip(inner, widths, strict=True))
        options["in_chans"] = state["patch_embed1.proj.weight"].shape[1]
        options["num_classes"] = state["head.weight"].shape[0] if "head.weight" in state else 0
        ours = {_our_name(name, depths): value for name, value in state.items()}
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(f"these weights look like a VAN, but they describe none: {error}") from error
    return named("van", VARIANTS, options, ours)
