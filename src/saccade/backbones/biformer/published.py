"""Checkpoints of the published code."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from saccade.backbones.biformer.attention import CONVOLUTION, FULL, PLAIN
from saccade.backbones.biformer.network import VARIANTS
from saccade.checkpoint import Recipe, StateDict
from saccade.errors import CheckpointError
from saccade.nn.backbone import named
from saccade.registry import recognise

__all__ = ["from_official", "from_official_nchw"]

_OFFICIAL = (
    (r"^downsample_layers\.0\.([0134])\.", lambda m: f"stem.{int(m[1]) // 3}.{('conv', 'bn')[int(m[1]) % 3]}."),
    (r"^downsample_layers\.(\d)\.([01])\.", lambda m: f"stages.{m[1]}.0.{('conv', 'bn')[int(m[2])]}."),
    (r"^stages\.(\d)\.(\d+)\.(?!conv\.|bn\.)", lambda m: f"stages.{m[1]}.{int(m[2]) + (m[1] != '0')}."),
    (r"\.pos_embed\.", ".pos_embed.conv."),
    (r"\.attn\.qkv\.qkv\.", ".attn.qkv."),
    (r"\.attn\.([123])\.", lambda m: f".attn.{int(m[1]) - 1}."),  # convolutions behind a layer without weights
    (r"\.mlp\.3\.", ".mlp.2."),
)
_NCHW = (
    (r"^downsample_layers\.0\.([01])\.", lambda m: f"stem.0.{('conv', 'bn')[int(m[1])]}."),
    (r"^downsample_layers\.(\d)\.([01])\.", lambda m: f"stages.{m[1]}.0.{('bn', 'conv')[int(m[2])]}."),
    (r"^stages\.(\d)\.blocks\.(\d+)\.", lambda m: f"stages.{m[1]}.{int(m[2]) + (m[1] != '0')}."),
    (r"\.attn\.qkv_linear\.", ".attn.qkv."),
    (r"\.attn\.output_linear\.", ".attn.wo."),
)


def _renamed(state: StateDict, rules: Sequence[tuple[str, Any]]) -> StateDict:
    """Our names; 1x1 convolutions of the NCHW form as matrices."""
    made = {}
    for name, value in state.items():
        for pattern, to in rules:
            name = re.sub(pattern, to, name)
        matrix = re.search(r"\.(attn\.(qkv|wo|proj)|mlp\.\d)\.weight$", name) and value.dim() == 4
        made[name] = value.flatten(1) if matrix else value
    return made


def _describe(state: StateDict, layout: str) -> dict[str, Any]:
    """Options of the network behind a state in our key names.

    ``topk`` and the number of regions leave no trace in weights: where there is routing they are the published ones.
    """
    try:
        count = 1 + max(int(k.split(".")[1]) for k in state if k.startswith("stages."))
        last = [max(int(k.split(".")[2]) for k in state if k.startswith(f"stages.{i}.")) for i in range(count)]
        mixers = [f"stages.{i}.{last[i]}.attn" for i in range(count)]
        kinds = tuple(_kind(state, mixer, i) for i, mixer in enumerate(mixers))
        hidden = state[f"stages.0.{last[0]}.mlp.0.weight"]
        options: dict[str, Any] = {
            "widths": tuple(state[f"stages.{i}.{last[i]}.mlp.0.weight"].shape[1] for i in range(count)),
            "depths": tuple(end + (i == 0) for i, end in enumerate(last)),
            "layout": layout,
            "mlp_ratio": hidden.shape[0] / hidden.shape[1],
            "topk": kinds,
            "in_chans": state["stem.0.conv.weight"].shape[1],
            "num_classes": state["head.weight"].shape[0] if "head.weight" in state else 0,
        }
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"these weights look like a BiFormer, but they describe none: {error}") from error
    for key, default in (("mlp_ratio", 3 if layout == "biformer" else None), ("topk", (1, 4, 16, FULL))):
        if options[key] == default:
            del options[key]
    if f"stages.0.{last[0]}.gamma1" in state:
        options["layer_scale"] = 1e-6  # the weights bring the values
    if "stages.0.0.attn.router.emb.weight" in state:
        options |= {"soft_routing": True, "differentiable_routing": True, "learned_routing": True}
    return options


def _kind(state: StateDict, mixer: str, i: int) -> int:
    """``topk`` of a stage."""
    if f"{mixer}.wo.weight" in state:
        return (1, 4, 16, 16)[min(i, 3)]
    if f"{mixer}.qkv.weight" in state:
        return FULL if f"{mixer}.lepe.weight" in state else PLAIN
    return CONVOLUTION


@recognise("biformer", keys=("downsample_layers.0.4.running_mean", "stages.0.0.pos_embed.weight", "stages.0.0.norm1.*"))
def from_official(state: StateDict) -> Recipe | None:
    """Checkpoints of the published code."""
    ours = _renamed(state, _OFFICIAL)
    return named("biformer", VARIANTS, _describe(ours, "biformer"), ours)


@recognise("biformer", keys=("downsample_layers.0.1.running_mean", "stages.0.blocks.0.attn.qkv_linear.weight"))
def from_official_nchw(state: StateDict) -> Recipe | None:
    """Checkpoints of the published NCHW network in Swin-T's layout."""
    ours = _renamed(state, _NCHW)
    return named("biformer", VARIANTS, _describe(ours, "swin"), ours)
