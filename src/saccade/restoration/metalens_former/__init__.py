"""MetaFormer / ACFormer: sharp pictures from a lens whose blur is known and changes over the field.

Lee et al., "MetaFormer: High-fidelity Metalens Imaging via Aberration Correcting Transformers", arXiv:2412.04591
(later "Aberration Correcting Vision Transformers for High-Fidelity Metalens Imaging").

    capture, PSFs of a grid of cells -- Wiener bank: M deconvolutions, cautious to bold -- ACFormer -- sharp picture

* `optics`: PSFs from a lens' phase, blur that changes over the field, noise;
* `wiener`: the adaptive Wiener bank (section 3.2);
* `network`: ACFormer, two attentions side by side (sections 3.3 and 3.4);
* `deblur`: all of it on pictures of any size with a user's own PSFs, with or without the network.

The published code shifts pictures by a pixel (see `optics`) and rounds attention to 16 bit (see `network`); both are
``compat="official"``.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from saccade.checkpoint import Recipe, StateDict
from saccade.errors import CheckpointError
from saccade.registry import recognise, register
from saccade.restoration.metalens_former.deblur import Deblurrer, psf_field, read_psf
from saccade.restoration.metalens_former.levels import choose_level, noise_power
from saccade.restoration.metalens_former.network import MAFG, STAF, ACFormer, OverlappingAttention
from saccade.restoration.metalens_former.optics import (
    Compat,
    add_noise,
    assemble,
    blur,
    check_psf,
    lens_psfs,
    psf2otf,
    surroundings,
)
from saccade.restoration.metalens_former.wiener import FILTERS, naive_bank, wiener_bank, wiener_field

__all__ = [
    "FILTERS",
    "MAFG",
    "STAF",
    "ACFormer",
    "Deblurrer",
    "OverlappingAttention",
    "add_noise",
    "assemble",
    "blur",
    "check_psf",
    "choose_level",
    "from_official",
    "lens_psfs",
    "naive_bank",
    "noise_power",
    "psf2otf",
    "psf_field",
    "read_psf",
    "surroundings",
    "wiener_bank",
    "wiener_field",
]


@register("acformer", system="metalens_former", task="restoration", removes=("blur",), needs="psf")
def acformer(**options: Any) -> ACFormer:
    """ACFormer as published: 13 filters, 29,122,907 parameters; options as of `ACFormer`."""
    return ACFormer(**_tuples(options))


@register("acformer_tiny", system="metalens_former", task="restoration", removes=("blur",), needs="psf")
def acformer_tiny(filters: int = 5, compat: Compat = None) -> ACFormer:
    """Ours, for small trainings: 8 channels, one block a level, windows of 4; 316,398 parameters with 5 filters."""
    heads = (1, 2, 2, 4)
    return ACFormer(
        filters, 8, (1, 1, 1, 1), 1, heads, heads, 8, 4, 2.66, False, (5, 3, 3, 3, 3), 8, 2, 4, compat=compat
    )


def _tuples(options: dict[str, Any]) -> dict[str, Any]:
    """Lists, which JSON makes of tuples, as tuples."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}


# -- published files

_RENAMED = (
    (re.compile(r"\.(norm[1-4])\.body\."), r".\1."),
    (re.compile(r"\.fusion\.fusion\."), ".fusion."),
    (re.compile(r"\.rel_pos_emb\."), "."),
    (re.compile(r"^patch_embed\.proj\."), "patch_embed."),
)
_LEVELS = ("encoder_level1", "encoder_level2", "encoder_level3", "latent")


@recognise("metalens_former", keys=("ca.pos_emb_q", "patch_embed.proj.weight", "*.spatial_attn.rel_pos_emb.rel_height"))
def from_official(
    state: StateDict, query_sizes: tuple[int, ...] = (15, 11, 7, 3, 3), embed_heads: int = 2, compat: Compat = None
) -> Recipe | None:
    """Published key names -> options and our key names; all but the following is read from shapes.

    Args:
        query_sizes: see `ACFormer`; no tensor tells, the published ones by default.
        embed_heads: of MAFG, likewise.
        compat: see `MAFG`.

    Raises:
        CheckpointError: tensors are missing, or shapes contradict each other.
    """
    renamed: StateDict = {}
    for key, value in state.items():
        for pattern, ours in _RENAMED:
            key = pattern.sub(ours, key)
        renamed[key] = value.float()
    options: dict[str, Any] = {
        **_sizes(renamed),
        "blocks": tuple(_count(renamed, level) for level in _LEVELS),
        "refinement": _count(renamed, "refinement"),
        "query_sizes": tuple(query_sizes),
        "embed_heads": embed_heads,
    }
    if compat is not None:
        options["compat"] = compat
    return Recipe("acformer", options, renamed)


def _need(state: StateDict, key: str, rank: int) -> Tensor:
    tensor = state.get(key)
    if tensor is None or tensor.ndim != rank or tensor.numel() == 0:
        wrong = "lacks it" if tensor is None else f"holds it as {tuple(tensor.shape)}"
        raise CheckpointError(f"an ACFormer file needs {key} with {rank} dimensions; this one {wrong}")
    return tensor


def _count(state: StateDict, level: str) -> int:
    found = {int(m[1]) for k in state if (m := re.match(rf"{level}\.(\d+)\.", k))}
    if found != set(range(len(found))):
        lacking = min(set(range(max(found))) - found)
        raise CheckpointError(f"this ACFormer file lacks block {lacking} of {level}")
    return len(found)


def _root(value: int, what: str) -> int:
    side = round(value**0.5)
    if side * side != value:
        raise CheckpointError(f"this ACFormer file has {value} {what}: no square")
    return side


def _sizes(state: StateDict) -> dict[str, Any]:
    """Widths, heads, windows and expansion from the shapes of the first block of each level."""
    first = _need(state, "patch_embed.weight", 4)
    relative = _need(state, f"{_LEVELS[0]}.0.spatial_attn.rel_height", 2)
    head_dim, dim = relative.shape[1], first.shape[0]
    hidden = [_need(state, f"{level}.0.spatial_ffn.project_out.weight", 4).shape[1] for level in _LEVELS]
    qkv = [_need(state, f"{level}.0.spatial_attn.qkv.weight", 4).shape[0] for level in _LEVELS]
    heads = [_need(state, f"{level}.0.channel_attn.temperature", 3).shape[0] for level in _LEVELS]
    return {
        "filters": first.shape[1] // 3,
        "dim": dim,
        "channel_heads": tuple(heads),
        "spatial_heads": tuple(n // (3 * head_dim) for n in qkv),
        "head_dim": head_dim,
        "window": (relative.shape[0] + 1) // 3,  # keys see half as much again: 2 * 1.5 * window - 1 places
        "expansion": _expansion(dim, hidden),
        "bias": "output.bias" in state,
        "embed": _need(state, "ca.proj_high.weight", 4).shape[0],
        "embed_window": _root(_need(state, "ca.pos_emb_q", 2).shape[0], "query places"),
    }


def _expansion(dim: int, hidden: list[int]) -> float:
    """The expansion that gives these hidden widths at all levels: the published one, or the middle of what would."""
    if all(int((dim << i) * 2.66) == h for i, h in enumerate(hidden)):
        return 2.66
    low = max(h / (dim << i) for i, h in enumerate(hidden))
    high = min((h + 1) / (dim << i) for i, h in enumerate(hidden))
    if not low < high:
        raise CheckpointError(f"this ACFormer file has hidden widths {hidden} for {dim} channels: no one expansion")
    return (low + high) / 2
