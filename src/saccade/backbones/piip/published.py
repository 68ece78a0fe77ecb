"""Registered names, and the readers of published classifiers, detectors and segmenters."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from saccade.backbones.piip.branch import joined_biases, plain_name, squared
from saccade.backbones.piip.network import PIIP, even_ranges
from saccade.checkpoint import Recipe, StateDict
from saccade.errors import CheckpointError, UsageError
from saccade.nn.backbone import made, named
from saccade.registry import recognise, register

__all__ = ["from_dense", "from_official"]

#: what the published detectors and segmenters have: no class token, four maps of the merged one, and the position
#: tables of the vision transformers of 224 px that they come from
DENSE: dict[str, Any] = {"with_cls": False, "merge": "dense", "pyramid": True, "num_classes": 0, "tables": 14}
#: tiny, small and base; small, base and large
TSB: dict[str, Any] = {"widths": (768, 384, 192), "depths": (12, 12, 12), "heads": (12, 6, 3)}
SBL: dict[str, Any] = {"widths": (1024, 768, 384), "depths": (24, 12, 12), "heads": (16, 12, 6)}
#: InternViT-6B and huge, whose blocks do not divide evenly between the exchanges
H6B: dict[str, Any] = {
    "widths": (3200, 1280),
    "depths": (48, 32),
    "heads": (25, 16),
    "ranges": (
        tuple((4 * i, 4 * i + 3) for i in range(12)),
        (*((2 * i, 2 * i + 1) for i in range(4)), *((3 * i - 4, 3 * i - 2) for i in range(4, 12))),
    ),
    "kinds": ("intern", "vit"),
}
#: pyramids for faster training: exchanges without norms and projections, fused feed-forwards
FAST: dict[str, Any] = {"exchange_norms": False, "project": False, "gelu": "tanh"}
SCALED = (True, True, True)

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
    "piip_tsb_368": {**TSB, "sides": (128, 192, 368), "scaled": SCALED},
    "piip_sbl_320": {**SBL, "sides": (96, 160, 320), "scaled": SCALED},
    "piip_sbl_384": {**SBL, "sides": (128, 192, 384), "scaled": SCALED},
    "piip_tsb_1120": {**TSB, "sides": (448, 896, 1120), "window": 14, **DENSE},
    "piip_tsb_1568": {**TSB, "sides": (672, 1120, 1568), "window": 14, **DENSE},
    "piip_sbl_1568": {**SBL, "sides": (672, 896, 1568), "window": 28, **DENSE},
    "piip_h6b_512": {**H6B, "sides": (512, 512), "scaled": (True, True), **FAST, **DENSE},
}


@register(
    "piip",
    system="piip",
    task="classification",
    fixed_size=True,
    side_option="img_size",
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


# ---------------------------------------------------------------------------------------------------------------------
# Published names in ours
# ---------------------------------------------------------------------------------------------------------------------
_UNIT = re.compile(r"^interactions\.(\d+)\.interaction_units_(\d)\d\.")
_BRANCH = re.compile(r"^branch(\d)\.")
_MERGING = re.compile(r"^merge_branch(\d)\.(?:(\d)\.)?")
_PARTS = (
    ("branch2to1_proj", "fine_proj"),
    ("branch1to2_proj", "coarse_proj"),
    ("branch2to1_injector", "into_coarse"),
    ("branch1to2_injector", "into_fine"),
    ("ffn.dwconv.dwconv.", "ffn.dwconv."),
)
_STEPS = {"": "norm1", "0": "norm1", "2": "linear", "4": "norm2"}
_DENSE_STEPS = {"0": "conv1", "1": "norm1", "3": "conv2", "4": "norm2"}
_OTHERS = (("cls_norm.", "norm."), ("cls_head.", "head."), ("fpn1.", "fpn.up4."), ("fpn2.0.", "fpn.up2."))


def _ours(state: StateDict) -> StateDict:
    """Our names."""
    first = state.get("merge_branch1.0.weight")
    steps = _DENSE_STEPS if first is not None and first.dim() == 4 else _STEPS
    made = joined_biases(dict(_renamed(name, value, steps) for name, value in state.items()))
    scalars = sorted(k for k in made if re.fullmatch(r"w\d", k))
    if scalars:
        made["weights"] = torch.stack([made.pop(k).reshape(()) for k in scalars])
    return made


def _renamed(name: str, value: Tensor, steps: Mapping[str, str]) -> tuple[str, Tensor]:
    """Our name and form of one tensor; ``steps`` are the places in the merging of a branch."""
    if unit := _UNIT.match(name):
        name = f"interactions.{unit[1]}.{int(unit[2]) - 1}.{name[unit.end() :]}"
        for theirs, ours in _PARTS:
            name = name.replace(theirs, ours)
        return name, value
    if branch := _BRANCH.match(name):
        i, rest = int(branch[1]) - 1, name[branch.end() :]
        if rest.startswith("norm."):
            return f"norms.{i}.{rest[5:]}", value
        if rest.startswith("head."):
            return f"head.heads.{i}.{rest[5:]}", value
        rest = plain_name(rest)
        return f"branches.{i}.{rest}", squared(value) if rest == "pos_embed" else value
    if merging := _MERGING.match(name):
        leaf = name[merging.end() :]
        value = value[:, :, None, None] if value.dim() == 2 else value
        return f"merging.{int(merging[1]) - 1}.{steps[merging[2] or '']}.{leaf}", value
    for theirs, ours in _OTHERS:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs), value
    return name, value


# ---------------------------------------------------------------------------------------------------------------------
# What the weights tell
# ---------------------------------------------------------------------------------------------------------------------
HEADS = {1280: 16, 3200: 25}  # of the huge network and of InternViT-6B; others have 64 channels a head
#: what `PIIP` takes for granted
DEFAULTS: dict[str, Any] = {
    "patch": 16,
    "in_chans": 3,
    "mlp_ratio": 4.0,
    "merge": False,
    "pyramid": False,
    "with_cls": True,
    "project": True,
    "cffn_ratio": 0.25,
    "attention": "deform",
    "ratio": 0.5,
    "deform_heads": 16,
    "exchange_norms": True,
    "gelu": "exact",
    "tables": 0,
    "window": 0,
}


def _describe(state: StateDict) -> dict[str, Any]:
    """Options of the network behind a state in our names.

    Heads leave no trace in the weights: 64 channels each in the branches but for the huge and the 6-billion one, 4
    points in the exchanges, as published. Nor do windows and the form of GELU, which goes with exchanges without norms
    and projections. The tables of biases of BEiT tell heads and windows, but nothing tells its sides.
    """
    try:
        options = {**_branches(state), **_exchanges(state)}
        dense = "merging.0.conv1.weight" in state
        options["merge"] = "dense" if dense else "weights" in state
        options["pyramid"] = "fpn.up2.weight" in state
        last = "head.weight" if options["merge"] else "head.heads.0.weight"
        options["num_classes"] = state[last].shape[0] if last in state else 0
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"these weights look like a PIIP's, but describe no network: {error}") from error
    if dense and not options["exchange_norms"] and not options["project"]:
        options["gelu"] = "tanh"
    if set(options["kinds"]) == {"vit"}:
        del options["kinds"]
    return {k: v for k, v in options.items() if DEFAULTS.get(k, ...) != v}


def _count(state: StateDict, start: str) -> int:
    """Numbered children of ``start``, counted from 0."""
    return 1 + max(int(k[len(start) :].split(".")[0]) for k in state if k.startswith(start))


def _branches(state: StateDict) -> dict[str, Any]:
    """Options of the branches; each side is that of the position table."""
    places = range(_count(state, "branches."))
    embeds = [state[f"branches.{i}.patch_embed.weight"] for i in places]
    patch, widths = embeds[0].shape[-1], tuple(e.shape[0] for e in embeds)
    depths = tuple(_count(state, f"branches.{i}.blocks.") for i in places)
    stages = _count(state, "interactions.")
    biases = [state.get(f"branches.{i}.blocks.0.bias_table") for i in places]
    options = {
        "widths": widths,
        "depths": depths,
        "heads": tuple(
            HEADS.get(w, max(1, w // 64)) if b is None else b.shape[1] for w, b in zip(widths, biases, strict=True)
        ),
        "sides": tuple(
            patch * round(state[f"branches.{i}.pos_embed"].shape[1] ** 0.5) if b is None else 0
            for i, b in enumerate(biases)
        ),
        "scaled": tuple(f"branches.{i}.blocks.0.gamma_1" in state for i in places),
        "patch": patch,
        "in_chans": embeds[0].shape[1],
        "mlp_ratio": state["branches.0.blocks.0.fc1.weight"].shape[0] / widths[0],
        "with_cls": "branches.0.cls_token" in state,
        "kinds": tuple(_kind(state, i) for i in places),
    }
    windows = {(math.isqrt(len(b)) + 1) // 2 for b in biases if b is not None}
    if len(windows) == 1:
        options["window"] = windows.pop()
    if (widths, depths, stages) == (H6B["widths"], H6B["depths"], len(H6B["ranges"][0])):
        options["ranges"] = H6B["ranges"]
    elif stages != min(depths):
        options["ranges"] = even_ranges(depths, stages)
    return options


def _kind(state: StateDict, i: int) -> str:
    """Of the blocks of a branch."""
    first = f"branches.{i}.blocks.0"
    return "beit" if f"{first}.bias_table" in state else "intern" if f"{first}.q_norm.weight" in state else "vit"


def _exchanges(state: StateDict) -> dict[str, Any]:
    """Options of the exchanges."""
    into = "interactions.0.0.into_coarse"
    width = state["branches.0.patch_embed.weight"].shape[0]
    fed = state.get(f"{into}.ffn.fc1.weight")
    options: dict[str, Any] = {
        "exchange_norms": f"{into}.query_norm.weight" in state,
        "project": "interactions.0.0.fine_proj.weight" in state,
        "cffn_ratio": 0 if fed is None else fed.shape[0] / width,
        "attention": "normal",
    }
    values = state.get(f"{into}.attn.value_proj.weight")
    if values is not None:
        heads = state[f"{into}.attn.attention_weights.weight"].shape[0] // 4
        options |= {"attention": "deform", "ratio": values.shape[0] / width, "deform_heads": max(1, heads)}
    return options


# ---------------------------------------------------------------------------------------------------------------------
# Readers
# ---------------------------------------------------------------------------------------------------------------------
#: sides and windows of the published detectors, by the widths of their branches: they leave no trace in the weights.
#: Where several were published, those of the registered name or the largest
LAYOUTS: dict[tuple[int, ...], dict[str, Any]] = {
    TSB["widths"]: {"sides": (672, 1120, 1568), "window": 14},
    SBL["widths"]: {"sides": (672, 896, 1568), "window": 28},
    (*SBL["widths"], 192): {"sides": (448, 672, 1120, 1568), "window": 28},
    H6B["widths"]: {"sides": (512, 1024), "window": 0},
    (*H6B["widths"], 1024): {"sides": (512, 1024, 1536), "window": 0},
}
BEIT_LAYOUTS = {SBL["widths"]: {"sides": (672, 1120, 1568)}}
DINO_LAYOUTS = {SBL["widths"]: {"sides": (672, 1120, 1792), "window": (24, 24, 0)}}
SEGMENTER_LAYOUTS = {H6B["widths"]: {"sides": (512, 512), "window": 0}}


@recognise("piip", keys=("branch1.patch_embed.proj.weight", "interactions.0.interaction_units_12.*"))
def from_official(
    state: StateDict, *, sides: Sequence[int] | None = None, window: Sequence[int] | int | None = None
) -> Recipe | None:
    """Checkpoints of the published classifiers; or the pyramid of a detector by itself (`from_dense`).

    Raises:
        UsageError: sides or windows of a classifier, whose position tables tell the sides.
    """
    _refuse_others(state)
    ours = _ours(state)
    options = _describe(ours)
    if options.get("merge") == "dense":
        return _dense(ours, options, LAYOUTS, sides, window)
    if sides is not None or window is not None:
        raise UsageError(
            f"the position tables of this classifier tell its sides, {options['sides']}, and it has no windows: leave "
            "sides and window out; model.use(sides=...) runs it at others"
        )
    return named("piip", VARIANTS, options, ours)


@recognise("piip", keys=("backbone.interactions.0.interaction_units_12.*",))
def from_dense(
    state: StateDict, *, sides: Sequence[int] | None = None, window: Sequence[int] | int | None = None
) -> Recipe | None:
    """The pyramids of the published detectors (mmdetection) and segmenters (mmsegmentation).

    Necks and heads are left out; a norm for a head of your own starts fresh. Sides and windows leave no trace in the
    weights.

    Args:
        sides: of the branches' pictures, the largest network's first, as `PIIP`; None for those of `LAYOUTS`.
        window: of the blocks, as `PIIP`; None for those of `LAYOUTS`.

    Raises:
        CheckpointError: branches that are no plain vision transformers (ConvNeXt, Uni-Perceiver), of widths that were
            not published where sides or windows are not told, or no map at a quarter of the patch (DINO on two
            branches).
        UsageError: sides or windows that cannot be.
    """
    pyramid = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    _refuse_others(pyramid)
    ours = _ours(pyramid)
    layouts = LAYOUTS
    if any(k.startswith("decode_head.") for k in state):
        layouts = {**LAYOUTS, **SEGMENTER_LAYOUTS}
    elif any(k.startswith("bbox_head.") for k in state):
        layouts = {**LAYOUTS, **DINO_LAYOUTS}
    return _dense(ours, _describe(ours), layouts, sides, window)


#: what names of branches that are not read hold, and whose they are
OTHERS = {
    ".convnext_model.": "ConvNeXt",
    ".visual_embed.": "Uni-Perceiver",
    ".rel_pos_bias.": "BEiT with shared biases",
}


def _refuse_others(state: StateDict) -> None:
    """Refuse pyramids of other branches, and those that merge several maps; ``state`` has published names.

    Raises:
        CheckpointError: names what they have.
    """
    for name in state:
        for part, whose in OTHERS.items():
            if part in name:
                raise CheckpointError(
                    f"{name.split('.')[0]} is {whose}: detectors are read whose branches are plain vision "
                    "transformers (DeiT, AugReg, MAE, DINOv2), InternViT-6B or BEiT with biases of their own"
                )
        if name.startswith("intermediate_merging_"):
            raise CheckpointError(
                f"{name} belongs to a detector that merges maps behind several exchanges; those of one are read"
            )


def _dense(
    state: StateDict,
    found: dict[str, Any],
    layouts: Mapping[tuple[int, ...], dict[str, Any]],
    sides: Sequence[int] | None = None,
    window: Sequence[int] | int | None = None,
) -> Recipe:
    """A pyramid with four maps, from its state in our names, what that told, and what the user did."""
    if found.get("pyramid") and "fpn.up4.0.weight" not in state:
        raise CheckpointError("this detector makes three maps of its pyramid (DINO on two branches); four are read")
    patch, width = found.get("patch", 16), found["widths"][0]
    layout = dict((BEIT_LAYOUTS if "window" in found else layouts).get(found["widths"], {}))
    layout |= {"window": found["window"]} if "window" in found else {}
    layout |= (own := _layout(len(found["widths"]), patch, sides, window))
    if len(layout) < 2:
        lost = " and ".join(name for name in ("sides", "window") if name not in layout)
        example = (448, 896, 1120, 1568)[: len(found["widths"])]
        raise CheckpointError(
            f"no detector was published with branches of {found['widths']}, and no weight tells their {lost}: tell "
            f"both, the largest network's side first and window=0 for none, as in saccade.load(file, sides={example}, "
            "window=14)"
        )
    if "sides" not in own:
        warnings.warn(
            f"no weight tells the sides of these branches' pictures: taken as first published, {layout['sides']}; "
            "saccade.load(file, sides=..., window=...) tells others",
            stacklevel=2,
        )
    tables = tuple(side // patch for side in found["sides"])
    options = {**found, **layout, "tables": tables[0] if len(set(tables)) == 1 else tables}
    state = {**state, "norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
    return named("piip", VARIANTS, {k: v for k, v in options.items() if DEFAULTS.get(k, ...) != v}, state)


def _layout(count: int, patch: int, sides: Sequence[int] | None, window: Sequence[int] | int | None) -> dict[str, Any]:
    """What the user told of sides and windows.

    Raises:
        UsageError: another number of sides, none that divide into patches, windows of less than no cell.
    """
    made: dict[str, Any] = {}
    if sides is not None:
        try:
            made["sides"] = tuple(int(side) for side in sides)
        except (TypeError, ValueError) as error:
            raise UsageError(f"sides are numbers, one for each branch, not {sides!r}") from error
        if len(made["sides"]) != count or any(side < patch or side % patch for side in made["sides"]):
            raise UsageError(f"{count} sides that are multiples of {patch} px are wanted, not {made['sides']}")
    if window is not None:
        cells = tuple(window) if isinstance(window, Sequence) else (window,)
        if not cells or not all(isinstance(n, int) and n >= 0 for n in cells):
            raise UsageError(f"window is a number of cells, 0 for none, or several by turns, not {window!r}")
        made["window"] = cells[0] if len(cells) == 1 else cells
    return made
