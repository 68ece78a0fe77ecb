"""Blocks, the network, its dial, and the registered models."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from saccade.backbones.biformer.attention import (
    CONVOLUTION,
    FULL,
    BiLevelRoutingAttention,
    ConvolutionMixer,
    FullAttention,
)
from saccade.budget import check_budget
from saccade.errors import UsageError
from saccade.nn.backbone import Backbone, made
from saccade.nn.conv_norm import ConvNorm
from saccade.nn.drop_path import drop_path, rising
from saccade.nn.fuse import absorb_identity, affine_of, fused_linear, is_batch_norm
from saccade.registry import register

__all__ = ["VARIANTS", "BiFormer"]


class Position(nn.Module):
    """x + depthwise 3x3 of x, the only position code; one convolution when fused. Shape: (B, C, H, W), same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.conv(x)
        return out

    def fuse(self) -> nn.Module:
        """One depthwise convolution."""
        return absorb_identity(copy.deepcopy(self.conv))


class NormConv(nn.Module):
    """Batch norm, then a 2x2 convolution of stride 2 (patch merging of the Swin layout); one convolution when fused."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.bn, self.conv = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, outputs, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(self.bn(x))
        return out

    @torch.no_grad()
    def fuse(self) -> nn.Module:
        """One convolution: without padding the norm's offset goes wholly into its bias."""
        gain, offset = affine_of(self.bn)
        conv = copy.deepcopy(self.conv)
        assert conv.bias is not None
        conv.bias += (conv.weight * offset[:, None, None]).sum((1, 2, 3))
        conv.weight *= gain[:, None, None]
        return conv


class Block(nn.Module):
    """Position, attention and feed-forward, each with its shortcut (figure 3). Shape: (B, C, H, W), same."""

    def __init__(
        self,
        width: int,
        mixer: nn.Module,
        mlp_ratio: float,
        *,
        swin: bool = False,
        layer_scale: float = 0.0,
        rate: float = 0.0,
    ) -> None:
        super().__init__()
        inner = int(mlp_ratio * width)
        self.pos_embed: nn.Module = nn.Identity() if swin else Position(width)
        self.norm1: nn.Module
        self.norm2: nn.Module
        self.norm1, self.norm2 = ((nn.BatchNorm2d(width) if swin else nn.LayerNorm(width, eps=1e-6)) for _ in "am")
        self.attn = mixer
        self.mlp = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))
        self.drop = drop_path(rate)
        scales = [nn.Parameter(torch.full((width,), float(layer_scale))) if layer_scale else None for _ in "am"]
        self.gamma1, self.gamma2 = scales

    def forward(self, x: Tensor) -> Tensor:
        x = self.pos_embed(x).permute(0, 2, 3, 1)  # (B, H, W, C)
        branch = self.attn(_normed(self.norm1, x))
        x = x + self.drop(branch if self.gamma1 is None else branch * self.gamma1)
        branch = self.mlp(_normed(self.norm2, x))
        x = x + self.drop(branch if self.gamma2 is None else branch * self.gamma2)
        return x.permute(0, 3, 1, 2)

    def fuse(self) -> nn.Module:
        """Shortcut of the position folded into its convolution, batch norms into the linear layers behind them."""
        made = copy.deepcopy(self)
        if isinstance(made.pos_embed, Position):
            made.pos_embed = made.pos_embed.fuse()
        if is_batch_norm(made.norm1) and isinstance(made.attn, BiLevelRoutingAttention | FullAttention):
            made.attn.qkv = fused_linear(made.norm1, made.attn.qkv)
            made.norm1 = nn.Identity()
        if is_batch_norm(made.norm2):
            expand = made.mlp[0]
            assert isinstance(expand, nn.Linear)
            made.mlp[0] = fused_linear(made.norm2, expand)
            made.norm2 = nn.Identity()
        return made


def _normed(norm: nn.Module, x: Tensor) -> Tensor:
    """A norm on a map with channels last; batch norms, of whatever class a tool made of them, take them first."""
    out: Tensor = norm(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) if is_batch_norm(norm) else norm(x)
    return out


class BiFormer(Backbone):
    """Bi-level routing vision transformer (table 1).

    Args:
        widths: channels of the stages.
        depths: blocks of each.
        topk: regions that each region of a stage attends to; -2 for attention to everything with a depthwise
            convolution beside it, -1 without that, 0 for convolutions instead.
        regions: of each side of a map, in every stage with routing.
        head_dim: channels of a head where there is routing.
        mlp_ratio: inner channels of the feed-forward over the width.
        layout: ``"biformer"``, or ``"swin"``: patches of 4 and 2 pixels, batch norm throughout, no position code, and
            attention in its published NCHW form.
        layer_scale: start of a gain on every branch; 0 for none.
        drop_path_rate: rate of stochastic depth in the last block, rising from 0 (trained with 0.15 for S).
        auto_pad: take sizes whose maps do not divide into regions (`BiLevelRoutingAttention`).
        soft_routing, differentiable_routing, learned_routing: see `BiLevelRoutingAttention`.
        options: ``num_classes``, ``in_chans``, ``drop_rate``, ``global_pool`` (`Backbone`).

    Shape: (B, 3, H, W) -> (B, num_classes); maps at strides 4, 8, 16, 32. Sides of at least 32 pixels.

    Raises:
        UsageError: the numbers describe no network.
    """

    def __init__(
        self,
        widths: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (2, 2, 8, 2),
        topk: Sequence[int] = (1, 4, 16, FULL),
        regions: int = 7,
        head_dim: int = 32,
        mlp_ratio: float = 3,
        layout: str = "biformer",
        layer_scale: float = 0.0,
        drop_path_rate: float = 0.0,
        auto_pad: bool = True,
        soft_routing: bool = False,
        differentiable_routing: bool = False,
        learned_routing: bool = False,
        **options: Any,
    ) -> None:
        _check(widths, depths, topk, regions, head_dim, mlp_ratio, layout)
        super().__init__(widths, [4 << i for i in range(len(widths))], **options)
        self._budget, swin = 1.0, layout == "swin"
        routing = {"soft": soft_routing, "differentiable": differentiable_routing, "learned": learned_routing}
        rates = rising(drop_path_rate, depths)

        def mixer(i: int) -> nn.Module:
            place = f"stage {i + 1}"
            if topk[i] == CONVOLUTION:
                return ConvolutionMixer(widths[i])
            if topk[i] < 0:
                return FullAttention(widths[i], ("value" if swin else "input") if topk[i] == FULL else "", place)
            more: dict[str, Any] = {**routing, "auto_pad": auto_pad, "refactored": swin, "place": place}
            return BiLevelRoutingAttention(widths[i], widths[i] // head_dim, topk[i], regions, **more)

        def block(i: int) -> nn.Module:
            return Block(widths[i], mixer(i), mlp_ratio, swin=swin, layer_scale=layer_scale, rate=rates.pop(0))

        self.stem = _stem(self.in_chans, widths[0], swin)
        stages = [[block(0) for _ in range(depths[0])]]
        for i, (inputs, outputs) in enumerate(pairwise(widths), 1):
            down = NormConv(inputs, outputs) if swin else ConvNorm(inputs, outputs, 3, 2, bias=True)
            stages.append([down, *(block(i) for _ in range(depths[i]))])
        self.stages = nn.ModuleList(nn.Sequential(*stage) for stage in stages)
        self.norm = nn.BatchNorm2d(widths[-1])
        for module in self.stages.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.reset_classifier(self.num_classes)

    # -- the dial

    @property
    def routed(self) -> list[list[BiLevelRoutingAttention]]:
        """Layers with routing, stage by stage; stages without any are left out."""
        found = [[m for m in stage.modules() if isinstance(m, BiLevelRoutingAttention)] for stage in self.stages]
        return [layers for layers in found if layers]

    @property
    def topk(self) -> tuple[int, ...]:
        """Regions that each region attends to now, of every stage with routing."""
        return tuple(layers[0].topk for layers in self.routed)

    @topk.setter
    def topk(self, values: Sequence[int]) -> None:
        routed = self.routed
        if len(values) != len(routed):
            raise UsageError(f"{len(values)} values of topk for {len(routed)} stages with routing")
        for layers, value in zip(routed, values, strict=True):
            for layer in layers:
                layer.topk = value

    @property
    def budget(self) -> float:
        """Share of the routed regions that is kept, in (0, 1]; 1 is the trained ``topk``, at least one region stays."""
        return self._budget

    @budget.setter
    def budget(self, value: float) -> None:
        self._budget = check_budget(value)
        self.topk = [max(1, int(layers[0].trained * self._budget + 0.5)) for layers in self.routed]

    def budgets(self) -> Sequence[float]:
        """Quarters."""
        return (0.25, 0.5, 0.75, 1.0)


def _check(
    widths: Sequence[int],
    depths: Sequence[int],
    topk: Sequence[int],
    regions: int,
    head_dim: int,
    mlp_ratio: float,
    layout: str,
) -> None:
    for what, given in (("depths", depths), ("topk", topk)):
        if len(given) != len(widths):
            raise UsageError(f"{what} has {len(given)} entries for {len(widths)} stages")
    if layout not in ("biformer", "swin"):
        raise UsageError(f"layout is 'biformer' or 'swin', not {layout!r}")
    if min(widths) < 2:
        raise UsageError(f"widths are numbers of at least 2, one a stage, not {tuple(widths)}")
    if regions < 1 or head_dim < 1 or min(depths) < 1:
        raise UsageError(f"regions, head_dim and depths are at least 1, not {regions}, {head_dim} and {tuple(depths)}")
    if int(mlp_ratio * min(widths)) < 1:
        raise UsageError(f"mlp_ratio is {mlp_ratio}, which leaves the feed-forward of {min(widths)} channels none")
    for i, (width, k) in enumerate(zip(widths, topk, strict=True)):
        if k < FULL:
            raise UsageError(f"topk[{i}] is {k}: a number of regions, or 0, -1 or -2 for another mixer")
        if k > 0 and (width < head_dim or width % head_dim):
            raise UsageError(f"widths[{i}] is {width}, it must divide by head_dim, {head_dim}")


def _stem(in_chans: int, width: int, swin: bool) -> nn.Module:
    """(B, in_chans, H, W) -> (B, width, H/4, W/4)."""
    if swin:
        return nn.Sequential(ConvNorm(in_chans, width, 4, 4, padding=0, bias=True))
    first = ConvNorm(in_chans, width // 2, 3, 2, act=nn.GELU(), bias=True)
    return nn.Sequential(first, ConvNorm(width // 2, width, 3, 2, bias=True))


# ---------------------------------------------------------------------------------------------------------------------
# Registered models
# ---------------------------------------------------------------------------------------------------------------------
VARIANTS: dict[str, dict[str, Any]] = {
    "biformer_tiny": {"widths": (64, 128, 256, 512), "depths": (2, 2, 8, 2), "layout": "biformer"},
    "biformer_small": {"widths": (64, 128, 256, 512), "depths": (4, 4, 18, 4), "layout": "biformer"},
    "biformer_base": {"widths": (96, 192, 384, 768), "depths": (4, 4, 18, 4), "layout": "biformer"},
    "biformer_stl": {"widths": (96, 192, 384, 768), "depths": (2, 2, 6, 2), "layout": "swin", "mlp_ratio": 4},
}


@register(
    "biformer",
    system="biformer",
    task="classification",
    variants={
        "biformer_tiny": "BiFormer-T: 13.1 M parameters, 2.2 G MACs at 224 px",
        "biformer_small": "BiFormer-S: 25.5 M parameters, 4.5 G MACs at 224 px",
        "biformer_base": "BiFormer-B: 56.8 M parameters, 9.8 G MACs at 224 px",
        "biformer_stl": "in Swin-T's layout, the published NCHW form: 28.4 M parameters, 4.6 G MACs at 224 px",
    },
)
def biformer(variant: str = "", /, **options: Any) -> nn.Module:
    """Any BiFormer; options as `BiFormer`."""
    return made(BiFormer, options, VARIANTS, variant)
