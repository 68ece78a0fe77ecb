"""Registered names, and the converter of published supernets."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from saccade.backbones.elasticvit.catalogue import PUBLISHED_ARCHITECTURES, SPACES
from saccade.backbones.elasticvit.network import ElasticViT, SubNetwork
from saccade.backbones.elasticvit.space import Space, StageSpace, largest
from saccade.checkpoint import Recipe, StateDict
from saccade.errors import CheckpointError, UsageError
from saccade.nn.backbone import made
from saccade.registry import recognise, register

__all__ = ["from_official"]

VARIANTS: dict[str, dict[str, Any]] = {f"elasticvit_{n}": {"architecture": n} for n in PUBLISHED_ARCHITECTURES}


@register("elasticvit", system="elasticvit", task="classification", timm=False)
def elasticvit(**options: Any) -> nn.Module:
    """The supernet: 40.49 M parameters, 37 M to 3.2 G MACs; options as `ElasticViT`."""
    return made(ElasticViT, options)


@register(
    "elasticvit_subnet",
    system="elasticvit",
    task="classification",
    fixed_size=True,
    variants={
        "elasticvit_t1": {
            "size": 128,
            "side_option": "img_size",
            "about": "ElasticViT-T1: 8.9 M parameters, 65 M MACs at 128 px",
        },
        "elasticvit_t2": {
            "size": 160,
            "side_option": "img_size",
            "about": "ElasticViT-T2: 9.3 M parameters, 120 M MACs at 160 px",
        },
        "elasticvit_s1": {
            "size": 192,
            "side_option": "img_size",
            "about": "ElasticViT-S1: 10.8 M parameters, 222 M MACs at 192 px",
        },
        "elasticvit_s2": {
            "size": 224,
            "side_option": "img_size",
            "about": "ElasticViT-S2: 10.2 M parameters, 320 M MACs at 224 px",
        },
        "elasticvit_m": {
            "size": 224,
            "side_option": "img_size",
            "about": "ElasticViT-M: 12.0 M parameters, 417 M MACs at 224 px",
        },
        "elasticvit_l1": {
            "size": 256,
            "side_option": "img_size",
            "about": "ElasticViT-L1: 12.8 M parameters, 523 M MACs at 256 px",
        },
        "elasticvit_l2": {
            "size": 256,
            "side_option": "img_size",
            "about": "ElasticViT-L2: 14.9 M parameters, 713 M MACs at 256 px",
        },
        "elasticvit_l3": {
            "size": 256,
            "side_option": "img_size",
            "about": "ElasticViT-L3: 15.3 M parameters, 825 M MACs at 256 px",
        },
    },
)
def elasticvit_subnet(variant: str = "", /, **options: Any) -> nn.Module:
    """Any stand-alone network out of a supernet; options as `SubNetwork`."""
    return made(SubNetwork, options, VARIANTS, variant)


# ---------------------------------------------------------------------------------------------------------------------
# Published weights
# ---------------------------------------------------------------------------------------------------------------------
_LEAVES = (
    (r"\.pw_(conv|bn)\.", r".expand.\1."),
    (r"\.dw_(conv|bn)\.", r".depthwise.\1."),
    (r"\.pwl_(conv|bn)\.", r".project.\1."),
    (r"\.se_conv(\d)\.", r".se.fc\1."),
    (r"\.shortcut_conv\.", ".shortcut."),
    (r"\.norm1\.", ".norm."),
    (r"\.dw_v_conv\.", ".value_conv."),
    (r"\.attention_bias$", ".bias_table"),
)
_PLACES = (
    (r"^first_conv\.", "stem.0.conv."),
    (r"^first_conv_bn\.", "stem.0.bn."),
    (r"^conv_stem\.layers\.(\d+)\.0\.", lambda m: f"stem.{int(m[1]) + 1}."),
    (r"^feature_exactor\.(\d+)\.layers\.(\d+)\.0\.", r"stages.\1.\2."),
    (r"^feature_exactor\.(\d+)\.layers\.(\d+)\.reduction\.", lambda m: f"stages.{m[1]}.{int(m[2]) // 2}.reduction."),
    (r"^feature_exactor\.(\d+)\.layers\.(\d*[02468])\.", lambda m: f"stages.{m[1]}.{int(m[2]) // 2}.attention."),
    (r"^feature_exactor\.(\d+)\.layers\.(\d+)\.", lambda m: f"stages.{m[1]}.{int(m[2]) // 2}.mlp."),
    (r"^pre_head_0\.", "norm.conv."),
    (r"^pre_head_norm_0\.", "norm.bn."),
    (r"^pre_head_1\.", "pre_head."),
    (r"^classifer\.", "head."),
)


def _ours(state: StateDict) -> StateDict:
    """Our names; the tables of positions are left out, as they follow from the sizes."""
    renamed: StateDict = {}
    for theirs, value in state.items():
        if theirs.endswith("relative_position_index"):
            continue
        name = theirs
        for pattern, to in (*_PLACES, *_LEAVES):
            name = re.sub(pattern, to, name)
        renamed[name] = value[..., None, None] if name == "norm.conv.weight" and value.dim() == 2 else value
    return renamed


def _describe(state: StateDict) -> dict[str, Any]:
    """Options of the supernet behind a state in our names.

    What may be chosen below the largest leaves no trace: of the known spaces that one is taken whose largest
    architecture fits, else one with every choice up to the largest.
    """
    try:
        space = _space(state)
        classes = state["head.weight"].shape[0] if "head.weight" in state else 0
        found = {"num_classes": classes, "in_chans": state["stem.0.conv.weight"].shape[1]}
    except (KeyError, ValueError, IndexError, ZeroDivisionError, UsageError) as error:
        raise CheckpointError(f"these weights look like an ElasticViT, but they describe none: {error}") from error
    name = next((n for n, known in SPACES.items() if _same_largest(known, space)), None)
    return {"space": name or space.to_dict(), **found}


def _same_largest(known: Space, found: Space) -> bool:
    fixed = [(s.head_dim, s.head_ratio, s.head_width, [(c.stride, c.se) for c in s.stages]) for s in (known, found)]
    return fixed[0] == fixed[1] and largest(known) == largest(found)


def _count(state: StateDict, start: str) -> int:
    """How many numbered children a module has."""
    return 1 + max(int(key[len(start) :].split(".")[0]) for key in state if key.startswith(start))


def _space(state: StateDict) -> Space:
    """The space of all choices up to the largest that the weights hold."""
    stages, first = [], state["stem.0.conv.weight"]
    sides = []
    for i in range(_count(state, "stages.")):
        start, depth = f"stages.{i}.0", _count(state, f"stages.{i}.")
        if f"{start}.project.conv.weight" in state:
            stages.append(_conv_choices(state, start, depth))
            continue
        table, norm = state[f"{start}.attention.bias_table"], state[f"{start}.attention.norm.weight"]
        width, head_dim = len(norm), len(norm) // table.shape[1]
        values = state[f"{start}.attention.value_conv.weight"].shape[0] // width
        ratio = state[f"stages.{i}.0.mlp.fc1.weight"].shape[0] // width
        sides.append((1 + round(len(table) ** 0.5)) // 2)
        stride = 2 if len(sides) == 1 or sides[-1] < sides[-2] else 1
        widths = tuple(range(head_dim, width + 1, head_dim))
        choices = (_up_to(depth), widths, _up_to(ratio), _up_to(values))
        stages.append(StageSpace("attention", *choices, stride=stride))
    convs = sum(s.kind == "conv" for s in stages)
    kernels = (3, 5) if state["stem.1.depthwise.conv.weight"].shape[-1] == 5 else (3,)
    hidden, last = state["norm.conv.weight"].shape[:2]
    return Space(
        resolutions=tuple(range(32, sides[0] * 2 ** (convs + 2) + 1, 32)),
        stages=tuple(stages),
        stem_depths=_up_to(_count(state, "stem.") - 1),
        stem_widths=tuple(range(8, len(first) + 1, 8)),
        stem_kernels=kernels,
        head_dim=head_dim,
        head_ratio=hidden // last,
        head_width=state["pre_head.weight"].shape[0],
    )


def _conv_choices(state: StateDict, start: str, depth: int) -> StageSpace:
    width, inner = state[f"{start}.project.conv.weight"].shape[:2]
    kernels = (3, 5) if state[f"{start}.depthwise.conv.weight"].shape[-1] == 5 else (3,)
    se = f"{start}.se.fc1.weight" in state
    return StageSpace("conv", _up_to(depth), tuple(range(8, width + 1, 8)), _up_to(inner // width), kernels, se=se)


def _up_to(most: int) -> tuple[int, ...]:
    return tuple(range(1, most + 1))


@recognise("elasticvit", keys=("first_conv.weight", "feature_exactor.*.layers.0.attention_bias", "classifer.weight"))
def from_official(state: StateDict) -> Recipe | None:
    """Checkpoints of the published code: the supernet."""
    ours = _ours(state)
    return Recipe("elasticvit", _describe(ours), ours)
