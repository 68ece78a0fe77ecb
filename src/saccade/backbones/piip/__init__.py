"""PIIP: an image pyramid in which the largest picture goes through the smallest network, with exchanges between them.

Zhu et al., "Parameter-Inverted Image Pyramid Networks", NeurIPS 2024, arXiv:2406.04330.

branch.py is a plain vision transformer, interaction.py what neighbours tell each other, network.py the pyramid.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from saccade.backbones.piip.branch import Branch, plain_names, squared
from saccade.backbones.piip.interaction import DeformAttention, Injector, InteractionUnit
from saccade.backbones.piip.network import PIIP, SeparateHeads
from saccade.checkpoint import Recipe, StateDict
from saccade.errors import CheckpointError
from saccade.nn.backbone import made, named
from saccade.registry import recognise, register

__all__ = ["PIIP", "Branch", "DeformAttention", "Injector", "InteractionUnit", "SeparateHeads"]

#: what all published detectors and segmenters have: no class token, four maps of the merged one
DENSE: dict[str, Any] = {"with_cls": False, "merge": "dense", "pyramid": True, "num_classes": 0}

VARIANTS: dict[str, dict[str, Any]] = {
    "piip_nano": {
        "widths": (64, 32, 16),
        "depths": (4, 4, 4),
        "heads": (4, 2, 1),
        "sides": (24, 48, 96),
        "scaled": (False, False, False),
        "patch": 4,
        "deform_heads": 4,
    },
    "piip_tsb_368": {
        "widths": (768, 384, 192),
        "depths": (12, 12, 12),
        "heads": (12, 6, 3),
        "sides": (128, 192, 368),
        "scaled": (True, True, True),
    },
    "piip_sbl_320": {
        "widths": (1024, 768, 384),
        "depths": (24, 12, 12),
        "heads": (16, 12, 6),
        "sides": (96, 160, 320),
        "scaled": (True, True, True),
    },
    "piip_sbl_384": {
        "widths": (1024, 768, 384),
        "depths": (24, 12, 12),
        "heads": (16, 12, 6),
        "sides": (128, 192, 384),
        "scaled": (True, True, True),
    },
    "piip_tsb_1120": {"sides": (448, 896, 1120), "window": 14, **DENSE},
    "piip_tsb_1568": {"sides": (672, 1120, 1568), "window": 14, **DENSE},
    "piip_sbl_1568": {
        "widths": (1024, 768, 384),
        "depths": (24, 12, 12),
        "heads": (16, 12, 6),
        "sides": (672, 896, 1568),
        "window": 28,
        **DENSE,
    },
    "piip_h6b_512": {
        "widths": (3200, 1280),
        "depths": (48, 32),
        "heads": (25, 16),
        "sides": (512, 512),
        "ranges": (
            tuple((4 * i, 4 * i + 3) for i in range(12)),
            (*((2 * i, 2 * i + 1) for i in range(4)), *((3 * i - 4, 3 * i - 2) for i in range(4, 12))),
        ),
        "scaled": (True, True),
        "kinds": ("intern", "vit"),
        "exchange_norms": False,
        "project": False,
        **DENSE,
    },
}


@register(
    "piip",
    system="piip",
    task="classification",
    fixed_size=True,
    variants={
        "piip_nano": {"size": 96, "about": "ours, for experiments: widths 64, 32, 16 at 24, 48, 96 px, patches of 4"},
        "piip_tsb_368": {
            "size": 368,
            "about": "PIIP-TSB: tiny at 368 px, small at 192, base at 128; 144 M parameters, 17.4 G MACs",
        },
        "piip_sbl_320": {
            "size": 320,
            "about": "PIIP-SBL: small at 320 px, base at 160, large at 96; 489 M parameters, 39.0 G MACs",
        },
        "piip_sbl_384": {
            "size": 384,
            "about": "PIIP-SBL: small at 384 px, base at 192, large at 128; 489 M parameters, 61.2 G MACs",
        },
        "piip_tsb_1120": {
            "size": 1120,
            "timm": False,
            "about": "PIIP-TSB for detection: tiny at 1120 px, small at 896, base at 448; windows, four maps",
        },
        "piip_tsb_1568": {
            "size": 1568,
            "timm": False,
            "about": "PIIP-TSB for detection: tiny at 1568 px, small at 1120, base at 672; windows, four maps",
        },
        "piip_sbl_1568": {
            "size": 1568,
            "timm": False,
            "about": "PIIP-SBL for detection: small at 1568 px, base at 896, large at 672; windows, four maps",
        },
        "piip_h6b_512": {
            "size": 512,
            "timm": False,
            "about": "PIIP-H6B for segmentation: huge and InternViT-6B at 512 px, four maps; 6.7 G parameters before",
        },
    },
)
def piip(variant: str = "", /, **options: Any) -> nn.Module:
    """Any pyramid; options as `PIIP`."""
    return made(PIIP, options, VARIANTS, variant)


_UNIT = re.compile(r"^interactions\.(\d+)\.interaction_units_(\d)\d\.")
_BRANCH = re.compile(r"^branch(\d)\.")
_PARTS = (
    ("branch2to1_proj", "fine_proj"),
    ("branch1to2_proj", "coarse_proj"),
    ("branch2to1_injector", "into_coarse"),
    ("branch1to2_injector", "into_fine"),
    ("ffn.dwconv.dwconv.", "ffn.dwconv."),
)
HEADS = {1280: 16, 3200: 25}  # of the huge network and of InternViT-6B
_MERGE = {"0": "norm1", "2": "linear", "4": "norm2"}


def _ours(state: StateDict) -> StateDict:
    """Our names."""
    made: StateDict = {}
    for name, value in state.items():
        unit, branch = _UNIT.match(name), _BRANCH.match(name)
        if unit:
            name = f"interactions.{unit[1]}.{int(unit[2]) - 1}.{name[unit.end() :]}"
            for theirs, ours in _PARTS:
                name = name.replace(theirs, ours)
        elif branch:
            i, rest = int(branch[1]) - 1, name[branch.end() :]
            if rest.startswith(("norm.", "head.")):
                name = f"norms.{i}.{rest[5:]}" if rest.startswith("norm.") else f"head.heads.{i}.{rest[5:]}"
            else:
                ((rest, value),) = plain_names({rest: value}).items()
                value = squared(value) if rest == "pos_embed" else value
                name = f"branches.{i}.{rest}"
        elif name.startswith("merge_branch"):
            i, rest = int(name[12]) - 1, name[14:]
            step, _, leaf = rest.rpartition(".")
            name = f"merging.{i}.{_MERGE[step] if step else 'norm1'}.{leaf}"
            value = value[:, :, None, None] if value.dim() == 2 else value
        elif name.startswith(("cls_norm.", "cls_head.")):
            name = name.removeprefix("cls_")
        made[name] = value
    scalars = sorted(k for k in made if re.fullmatch(r"w\d", k))
    if scalars:
        import torch

        made["weights"] = torch.stack([made.pop(k).reshape(()) for k in scalars])
    return made


def _describe(state: StateDict) -> dict[str, Any]:
    """Options of the network behind a state in our names.

    Heads leave no trace in the weights: 64 channels each in the branches but for the huge and the 6-billion one, 4
    points in the exchanges, as published. Nor do windows.
    """
    try:
        count = 1 + max(int(k.split(".")[1]) for k in state if k.startswith("branches."))
        embeds = [state[f"branches.{i}.patch_embed.weight"] for i in range(count)]
        patch = embeds[0].shape[-1]
        widths = tuple(e.shape[0] for e in embeds)
        unit = "interactions.0.0"
        into = f"{unit}.into_coarse"
        deform = f"{into}.attn.value_proj.weight" in state
        options: dict[str, Any] = {
            "widths": widths,
            "depths": tuple(
                1 + max(int(k.split(".")[3]) for k in state if k.startswith(f"branches.{i}.blocks."))
                for i in range(count)
            ),
            "heads": tuple(HEADS.get(w, max(1, w // 64)) for w in widths),
            "sides": tuple(patch * round(state[f"branches.{i}.pos_embed"].shape[1] ** 0.5) for i in range(count)),
            "scaled": tuple(f"branches.{i}.blocks.0.gamma_1" in state for i in range(count)),
            "patch": patch,
            "in_chans": embeds[0].shape[1],
            "mlp_ratio": state["branches.0.blocks.0.fc1.weight"].shape[0] / widths[0],
            "merge": "weights" in state,
            "with_cls": "branches.0.cls_token" in state,
            "kinds": tuple(
                "intern" if f"branches.{i}.blocks.0.q_norm.weight" in state else "vit" for i in range(count)
            ),
            "exchange_norms": f"{into}.query_norm.weight" in state,
            "project": f"{unit}.fine_proj.weight" in state,
            "cffn_ratio": state[f"{into}.ffn.fc1.weight"].shape[0] / widths[0]
            if f"{into}.ffn.fc1.weight" in state
            else 0,
            "attention": "deform" if deform else "normal",
        }
        if deform:
            options["ratio"] = state[f"{into}.attn.value_proj.weight"].shape[0] / widths[0]
            options["deform_heads"] = max(1, state[f"{into}.attn.attention_weights.weight"].shape[0] // 4)
        last = "head.weight" if options["merge"] else "head.heads.0.weight"
        options["num_classes"] = state[last].shape[0] if last in state else 0
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"these weights look like a PIIP's, but describe no network: {error}") from error
    if set(options["kinds"]) == {"vit"}:
        del options["kinds"]
    return {k: v for k, v in options.items() if DEFAULTS.get(k, ...) != v}


#: what `PIIP` takes for granted
DEFAULTS = {
    "patch": 16,
    "in_chans": 3,
    "mlp_ratio": 4.0,
    "merge": False,
    "with_cls": True,
    "project": True,
    "cffn_ratio": 0.25,
    "attention": "deform",
    "ratio": 0.5,
    "deform_heads": 16,
    "exchange_norms": True,
}


@recognise("piip", keys=("branch1.patch_embed.proj.weight", "interactions.0.interaction_units_12.*"))
def from_official(state: StateDict) -> Recipe | None:
    """Checkpoints of the published code."""
    ours = _ours(state)
    return named("piip", VARIANTS, _describe(ours), ours)
