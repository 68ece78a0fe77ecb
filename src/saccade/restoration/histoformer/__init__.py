"""Histoformer: one network against rain, snow and raindrops, attending between pixels of similar brightness.

Sun et al., "Restoring Images in Adverse Weather Conditions via Histogram Transformer", ECCV 2024, arXiv:2407.10172.

    picture x (B,3,h,w) -- 3x3 -- blocks, d -------------------------- e1 ---(cat)- blocks, 2d -- refinement -- 3x3
                    |               \\ down (+ x/2) - blocks, 2d - e2 -(cat)- blocks, 2d / up                       |
                    |                    \\ down (+ x/4) - blocks, 4d - e3 -(cat)- blocks, 4d / up                  |
                    |                         \\ down (+ x/8) - blocks, 8d ------/ up                              |
                    |________________________________________________________________________________________(+)-- y

    block:  x + attention(norm(x)), then x + feed-forward(norm(x)); the norm has no weights

Weather scatters light: what it hides is bright or dark in the same way all over the picture. So attention sorts the
pixels of each channel by value, cuts the sorted sequence into bins and relates bins, not neighbourhoods. Sorting is
global, which makes every output pixel depend on the whole picture, and discontinuous: two values that differ by less
than rounding may change places, and then their pixels change by much more than rounding. So two machines, or two ways
of computing, agree in PSNR and not in bits (see `saccade.restoration.histoformer.blocks`).

`histogram` holds the functions on sorted sequences, `blocks` attention and feed-forward, `lean` the same as they run on
the CPU, `network` the U-Net.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from saccade.checkpoint import Recipe, StateDict
from saccade.errors import CheckpointError
from saccade.registry import recognise, register
from saccade.restoration.histoformer.blocks import Block, FeedForward, HistogramAttention
from saccade.restoration.histoformer.network import Histoformer

__all__ = ["Block", "FeedForward", "Histoformer", "HistogramAttention", "from_official"]


@register("histoformer", system="histoformer", task="restoration", removes=("weather",))
def histoformer(
    dim: int = 36,
    blocks: Sequence[int] = (4, 4, 6, 8),
    refinement: int = 4,
    heads: Sequence[int] = (1, 2, 4, 8),
    expansion: float = 2.667,
    bias: bool = False,
    centred: bool = True,
) -> Histoformer:
    """The published network: 16,615,100 parameters, 91.59 GMACs of convolutions and 21.7 of attention at 256x256."""
    return Histoformer(dim, blocks, refinement, heads, expansion, bias, centred)


@register("histoformer_tiny", system="histoformer", task="restoration", removes=("weather",))
def histoformer_tiny() -> Histoformer:
    """A block a level and 8 channels, 211,047 parameters: ours, for CPUs and for training in an hour."""
    return Histoformer(8, (1, 1, 1, 1), 1, (1, 2, 4, 4), 2.0)


# -- published files

LEVELS = ("encoder_level1", "encoder_level2", "encoder_level3", "latent")


def _depth(state: StateDict, level: str) -> int:
    """How many blocks a level has; a gap means that the file is incomplete."""
    found = {int(m[1]) for k in state if (m := re.match(rf"{level}\.(\d+)\.attn_g\.", k))}
    if found != set(range(len(found))):
        raise CheckpointError(f"this Histoformer file lacks a block of {level}: it has {sorted(found)}")
    return len(found)


def _need(state: StateDict, key: str, rank: int) -> tuple[int, ...]:
    tensor = state.get(key)
    if tensor is None or tensor.ndim != rank:
        wrong = "lacks it" if tensor is None else f"holds it as {tuple(tensor.shape)}"
        raise CheckpointError(f"a Histoformer file needs {key} with {rank} dimensions; this one {wrong}")
    return tuple(tensor.shape)


def _expansion(dim: int, widths: Sequence[int]) -> float:
    """The expansion whose products with the widths of the levels, rounded down, are the hidden widths of a file."""
    for tried in (2.667, 2.66, 2.0, 2.5, widths[-1] / (dim * 8), (widths[-1] + 0.5) / (dim * 8)):
        if [int((dim << i) * tried) for i in range(len(widths))] == list(widths):
            return tried
    raise CheckpointError(f"no expansion of {dim} channels gives the hidden widths {tuple(widths)} of this file")


@recognise("histoformer", keys=("encoder_level1.0.attn_g.qkv.weight", "reduce_chan_level_1.weight"))
def from_official(state: StateDict) -> Recipe | None:
    """The official code's weights; None where another network shares its names.

    Whether normalisation subtracts the mean (``LayerNorm_type``) stands in no tensor: as published, it does.

    Raises:
        CheckpointError: blocks or tensors are missing, or shapes contradict each other.
    """
    outputs, dim, *_ = _need(state, "encoder_level1.0.attn_g.qkv.weight", 4)
    if outputs != 5 * dim:
        return None
    depths = [_depth(state, level) for level in LEVELS]
    if not all(depths):
        raise CheckpointError(f"this Histoformer file has levels without blocks: {tuple(depths)}")
    heads = [_need(state, f"{level}.0.attn_g.temperature", 3)[0] for level in LEVELS]
    widths = [_need(state, f"{level}.0.ffn.project_in.weight", 4)[0] // 2 for level in LEVELS]
    options = {
        "dim": dim,
        "blocks": depths,
        "refinement": _depth(state, "refinement"),
        "heads": heads,
        "expansion": _expansion(dim, widths),
        "bias": "output.bias" in state,
    }
    if (dim, depths, options["refinement"], heads, options["expansion"], options["bias"]) == (
        8, [1, 1, 1, 1], 1, [1, 2, 4, 4], 2.0, False,
    ):  # fmt: skip
        return Recipe("histoformer_tiny", {}, dict(state))
    plain = histoformer.__defaults__ or ()
    kept = {k: v for (k, v), default in zip(options.items(), plain, strict=False) if v != _plain(default)}
    return Recipe("histoformer", kept, dict(state))


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
