"""SHViT: patches of 16 pixels from the start, and one attention head on a fifth of the channels.

Yun and Ro, "SHViT: Single-Head Vision Transformer with Memory Efficient Macro Design", CVPR 2024, arXiv:2401.16456.

    picture -- four 3x3, stride 2 -- stage 1 (stride 16) -- merge -- stage 2 (32) -- merge -- stage 3 (64) -- head

    block:  x + dw3x3 --> + single-head attention (stages 2 and 3) --> + feed-forward
    attention:  x1 | x2 = split(x);  x1 = softmax(q k / sqrt(d)) v of GN(x1);  project(relu(x1 | x2))

Only ``partial`` channels are normalised and attended; the others pass the branch untouched but for the ReLU. There is
no position code: the depthwise convolutions tell the place. All norms but GN fold into convolutions (`saccade.fuse`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.checkpoint import Recipe, StateDict
from saccade.errors import CheckpointError, UsageError
from saccade.nn.backbone import made, named
from saccade.nn.conv_norm import ConvNorm, ResidualDepthwise
from saccade.nn.lean_vit import FeedForward, LeanViT, renamed_official, renamed_timm, transition
from saccade.registry import recognise, register

__all__ = ["SHViT", "SingleHeadAttention"]


class SingleHeadAttention(nn.Module):
    """x + projected attention of one head over the first ``partial`` channels (section 3.3).

    Args:
        width: channels C.
        partial: channels that attend, P.
        qk_dim: of queries and keys, d.

    Shape: (B, C, h, w) -> (B, C, h, w).
    """

    def __init__(self, width: int, partial: int, qk_dim: int = 16) -> None:
        super().__init__()
        self.parts, self.qk_dim = (partial, width - partial), qk_dim
        self.pre_norm = nn.GroupNorm(1, partial)
        self.qkv = ConvNorm(partial, 2 * qk_dim + partial)
        self.proj = ConvNorm(width, width, gain=0)

    def forward(self, x: Tensor) -> Tensor:
        attending, passing = x.split(self.parts, 1)
        size = attending.shape
        tokens = self.qkv(self.pre_norm(attending)).flatten(2).mT  # (B, N, 2d + P)
        q, k, v = tokens.split((self.qk_dim, self.qk_dim, self.parts[0]), 2)
        mixed = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]  # (B, N, P)
        both = torch.cat([mixed.mT.reshape(size), passing], 1)
        out: Tensor = x + self.proj(F.relu(both))
        return out


class Block(nn.Module):
    """Depthwise, attention in stages of kind ``"s"``, feed-forward; each with its own shortcut."""

    def __init__(self, width: int, partial: int, qk_dim: int, kind: str) -> None:
        super().__init__()
        self.conv = ResidualDepthwise(width)
        self.mixer = SingleHeadAttention(width, partial, qk_dim) if kind == "s" else nn.Identity()
        self.ffn = FeedForward(width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.ffn(self.mixer(self.conv(x)))
        return out


class SHViT(LeanViT):
    """Single-head vision transformer (table 1).

    Args:
        widths: channels of the three stages; the first divides by 8.
        depths: blocks of each.
        partial: channels that attend in each; those of stages without attention do not matter.
        kinds: ``"i"`` for stages without attention, ``"s"`` with.
        qk_dim: channels of queries and keys.
        distillation: a second classifier; in training both logits come as a pair, else their mean.
        options: ``num_classes``, ``in_chans``, ``drop_rate``, ``global_pool`` (`Backbone`).

    Shape: (B, 3, H, W) -> (B, num_classes); maps at strides 16, 32, 64. Sides of at least 16 pixels.

    Raises:
        UsageError: the numbers describe no network.
    """

    def __init__(
        self,
        widths: Sequence[int] = (128, 224, 320),
        depths: Sequence[int] = (2, 4, 5),
        partial: Sequence[int] = (0, 48, 68),
        kinds: Sequence[str] = ("i", "s", "s"),
        qk_dim: int | Sequence[int] = 16,
        distillation: bool = False,
        **options: Any,
    ) -> None:
        dims = [qk_dim] * len(widths) if isinstance(qk_dim, int) else list(qk_dim)
        for what, given in (("depths", depths), ("partial", partial), ("kinds", kinds), ("qk_dim", dims)):
            if len(given) != len(widths):
                raise UsageError(f"{what} has {len(given)} entries for {len(widths)} stages")
        for what, numbers in (("depths", depths), ("qk_dim", dims)):
            if min(numbers) < 1:
                raise UsageError(f"{what} has an entry of {min(numbers)}, all must be at least 1")
        for i, (width, part, kind) in enumerate(zip(widths, partial, kinds, strict=True)):
            if kind not in ("i", "s"):
                raise UsageError(f"kinds[{i}] is {kind!r}: 'i' (no attention) or 's' (single head)")
            if kind == "s" and not 0 < part < width:
                raise UsageError(f"partial[{i}] is {part}, it must lie between 0 and the width, {width}")
        super().__init__(widths, distillation=distillation, **options)
        self.widths, self.depths, self.partial, self.kinds = widths, depths, partial, kinds
        stages: list[nn.Module] = []
        for i, width in enumerate(widths):
            layers = transition(widths[i - 1], width) if i else []
            layers += [Block(width, partial[i], dims[i], kinds[i]) for _ in range(depths[i])]
            stages.append(nn.Sequential(*layers))
        self.stages = nn.ModuleList(stages)
        self.reset_classifier(self.num_classes)


# ---------------------------------------------------------------------------------------------------------------------
# Registered models
# ---------------------------------------------------------------------------------------------------------------------
VARIANTS: dict[str, dict[str, Any]] = {
    "shvit_s1": {"widths": (128, 224, 320), "depths": (2, 4, 5), "partial": (0, 48, 68)},
    "shvit_s2": {"widths": (128, 308, 448), "depths": (2, 4, 5), "partial": (0, 66, 96)},
    "shvit_s3": {"widths": (192, 352, 448), "depths": (3, 5, 5), "partial": (0, 75, 96)},
    "shvit_s4": {"widths": (224, 336, 448), "depths": (4, 7, 6), "partial": (0, 72, 96)},
}


@register(
    "shvit",
    system="shvit",
    task="classification",
    variants={
        "shvit_s1": "SHViT-S1: 6.3 M parameters, 241 M MACs at 224 px",
        "shvit_s2": "SHViT-S2: 11.5 M parameters, 365 M MACs at 224 px",
        "shvit_s3": "SHViT-S3: 14.2 M parameters, 601 M MACs at 224 px",
        "shvit_s4": {"size": 256, "about": "SHViT-S4: 16.6 M parameters, 986 M MACs at 256 px"},
    },
)
def shvit(variant: str = "", /, **options: Any) -> nn.Module:
    """Any SHViT; options as `SHViT`."""
    return made(SHViT, options, VARIANTS, variant)


# ---------------------------------------------------------------------------------------------------------------------
# Published weights
# ---------------------------------------------------------------------------------------------------------------------
def _describe(state: StateDict) -> dict[str, Any]:
    """Options of the network behind a state in our key names."""
    try:
        stages = [_stage(state, i) for i in range(1 + max(int(k.split(".")[1]) for k in state if "stages." in k))]
        names = ("widths", "depths", "partial", "kinds", "qk_dim")
        options: dict[str, Any] = dict(zip(names, zip(*stages, strict=True), strict=True))
        options["in_chans"] = state["stem.0.conv.weight"].shape[1]
        options["num_classes"] = state["head.linear.weight"].shape[0] if "head.linear.weight" in state else 0
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"these weights look like an SHViT, but they describe none: {error}") from error
    options["distillation"] = "head_dist.linear.weight" in state
    return options


def _stage(state: StateDict, i: int) -> tuple[int, int, int, str, int]:
    """Width, depth, attending channels, kind and channels of the queries."""
    skip = 3 if i else 0  # a transition comes first
    first = f"stages.{i}.{skip}"
    depth = 1 + max(int(k.split(".")[2]) for k in state if k.startswith(f"stages.{i}.")) - skip
    width = state[f"{first}.conv.m.conv.weight"].shape[0]
    if f"{first}.mixer.pre_norm.weight" not in state:
        return width, depth, 0, "i", 16
    partial = state[f"{first}.mixer.pre_norm.weight"].shape[0]
    return width, depth, partial, "s", (state[f"{first}.mixer.qkv.conv.weight"].shape[0] - partial) // 2


@recognise("shvit", keys=("patch_embed.0.c.weight", "blocks2.1.conv1.c.weight", "blocks*.mixer.m.pre_norm.weight"))
def from_official(state: StateDict) -> Recipe | None:
    """Checkpoints of the published code."""
    ours = renamed_official(state)
    return named("shvit", VARIANTS, _describe(ours), ours)


@recognise("shvit", keys=("patch_embed.0.c.weight", "stages.1.downsample.2.conv1.c.weight", "head.l.weight"))
def from_timm(state: StateDict) -> Recipe | None:
    """Checkpoints of timm's zoo."""
    ours = renamed_timm(state)
    return named("shvit", VARIANTS, _describe(ours), ours)
