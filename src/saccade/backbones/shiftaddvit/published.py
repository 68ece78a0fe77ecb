"""Published weights of ShiftAddViT, and of the PVTv2 that it starts from, in our key names."""

from __future__ import annotations

import re
from typing import Any

from saccade.backbones.shiftaddvit.layers import Kind
from saccade.backbones.shiftaddvit.network import VARIANTS, AttentionKind
from saccade.checkpoint import Recipe, StateDict
from saccade.errors import CheckpointError
from saccade.nn.backbone import named
from saccade.registry import recognise

__all__ = ["from_official", "from_timm"]


def _inner_name(name: str) -> str | None:
    """Of what lies in a block, in our names; None for what has no use."""
    if name.endswith("projection_matrix"):
        return None
    return name.replace("qk_quant.ksh.", "hash.").replace("dwconv.dwconv.", "dwconv.")


def _renamed(state: StateDict, place: re.Pattern[str]) -> StateDict:
    """Keys whose stages and blocks are named as ``place`` says, in ours, where patches and norm are layers too."""
    depths = [0, 0, 0, 0]
    for key in state:
        found = place.match(key)
        if found and found["block"]:
            stage = _stage(found)
            depths[stage] = max(depths[stage], int(found["block"]) + 1)
    renamed = {}
    for key, value in state.items():
        found = place.match(key)
        if found is None:
            renamed[key.replace("patch_embed.", "stem.")] = value
            continue
        stage, rest = _stage(found), key[found.end() :]
        if found["block"]:
            inner = _inner_name(rest)
            if inner is not None:
                renamed[f"stages.{stage}.{int(found['block']) + (stage > 0)}.{inner}"] = value
        elif found["norm"]:
            renamed[f"stages.{stage}.{depths[stage] + (stage > 0)}.{rest}"] = value
        else:
            renamed[f"stages.{stage}.0.{rest}" if stage else f"stem.{rest}"] = value
    return renamed


_TIMM = re.compile(r"stages\.(?P<stage>\d)\.(?:blocks\.(?P<block>\d+)\.|(?P<norm>norm\.)|downsample\.)")
_OFFICIAL = re.compile(
    r"(?:block(?P<stage>\d)\.(?P<block>\d+)\.|(?P<norm>norm)(?P<of>\d)\.|patch_embed(?P<embed>\d)\.)"
)


def _stage(found: re.Match[str]) -> int:
    groups = found.groupdict()
    if found.re is _TIMM:
        return int(groups["stage"])
    return int(groups["stage"] or groups["of"] or groups["embed"]) - 1


def _linears(state: StateDict, layer: str) -> Kind:
    if f"{layer}.experts.0.weight" in state:
        return "moe"
    if f"{layer}.shift_1" in state:
        return "additive"
    return "shift" if f"{layer}.shift" in state else "dense"


def _describe(state: StateDict) -> dict[str, Any]:
    """Options of the network behind a state in our key names; heads of softmax attention are PVTv2's."""
    try:
        options: dict[str, Any] = {}
        firsts = [f"stages.{i}.{int(i > 0)}" for i in range(4)]
        widths = tuple(state[f"{first}.norm1.weight"].shape[0] for first in firsts)
        counts = [1 + max(int(k.split(".")[2]) for k in state if k.startswith(f"stages.{i}.")) for i in range(4)]
        options["widths"] = widths
        options["depths"] = tuple(n - 1 - (i > 0) for i, n in enumerate(counts))
        inner = [state[f"{first}.mlp.dwconv.weight"].shape[0] for first in firsts]
        options["mlp_ratios"] = tuple(n // w if n % w == 0 else n / w for n, w in zip(inner, widths, strict=True))
        attn = f"{firsts[0]}.attn"
        options["attention"], options["mlp"] = _attention(state, attn), _linears(state, f"{firsts[0]}.mlp.fc1")
        options["attention_linears"] = _linears(state, f"{attn}.proj")
        if f"{attn}.dconv.weight" in state:
            given = [state[f"{first}.attn.dconv.weight"].shape for first in firsts[:3]]
            options |= {"heads": (*(s[0] for s in given), 8), "kernel": given[0][2]}
        else:
            options["heads"] = (1, 2, 5, 8)
        if f"{attn}.hash.A" in state:
            options |= dict(zip(("hash_bits", "anchors"), state[f"{attn}.hash.A"].shape[1:], strict=True))
        if options["attention"] == "reduced":
            strides = [state.get(f"{first}.attn.sr.weight") for first in firsts]
            options["sr_ratios"] = tuple(1 if s is None else s.shape[2] for s in strides)
        gates = {"gate.gate.weight": "naive", "gate.w_noise": "noisy", "gate.w_gate": "noisy_v2"}
        told = [kind for end, kind in gates.items() if any(k.endswith(end) for k in state)]
        if told:
            options["gate"] = told[0]
        options["in_chans"] = state["stem.proj.weight"].shape[1]
        options["num_classes"] = state["head.weight"].shape[0] if "head.weight" in state else 0
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"these weights look like a ShiftAddViT, but they describe none: {error}") from error
    return options


def _attention(state: StateDict, attn: str) -> AttentionKind:
    if f"{attn}.hash.A" in state:
        return "hash"
    if f"{attn}.dconv.weight" in state:
        return "binary"
    return "reduced" if f"{attn}.sr.weight" in state else "softmax"


@recognise("shiftaddvit", keys=("patch_embed1.proj.weight", "block1.0.mlp.dwconv.dwconv.weight", "norm4.weight"))
def from_official(state: StateDict) -> Recipe | None:
    """Checkpoints of the published code, and of PVTv2's, which they start from."""
    ours = _renamed(state, _OFFICIAL)
    return named("shiftaddvit", VARIANTS, _describe(ours), ours)


@recognise(
    "shiftaddvit", keys=("patch_embed.proj.weight", "stages.0.blocks.0.mlp.dwconv.weight", "stages.3.norm.weight")
)
def from_timm(state: StateDict) -> Recipe | None:
    """timm's PVTv2: the start of the recipe."""
    ours = _renamed(state, _TIMM)
    return named("shiftaddvit", VARIANTS, _describe(ours), ours)
