"""The scaler: a factor on MACs, shared among depth, width, group width and resolution. Needs no torch."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import NamedTuple

from saccade.backbones.fast_scaling.architecture import Architecture, adjust_block_compatibility
from saccade.errors import UsageError

__all__ = ["STRATEGIES", "Factors", "scale", "scaling_factors"]

#: plain names of the strategies, beside the paper's own type strings
STRATEGIES: dict[str, str] = {
    "fast": "d1_w8_g8_r1",  # dWr with alpha = 0.8
    "depth": "d",
    "width": "wg",
    "resolution": "r",
    "compound": "dwgr",  # uniform, alpha = 1/3
    # Bello et al., arXiv:2103.07579, section 6: depth for long training, width for up to 100 epochs; pictures grow
    # slowly, at the pace of the published family (160 px at 2.28 G MACs, 320 px at 63.9 G: a share of 0.42)
    "rs_long": "d7_r5",
    "rs_short": "w7_g7_r5",
}
#: strategies that stop enlarging pictures at this side, pixels; the rest goes where the other share goes
LARGEST = {"rs_long": 320, "rs_short": 320}


class Factors(NamedTuple):
    """Multipliers of depth, width, group width and picture side; depth * width^2 * resolution^2 is the MACs factor."""

    depth: float
    width: float
    group: float
    resolution: float


_LETTERS = re.compile(r"[dwgr]+")
_TERM = re.compile(r"([dwgr])(-?\d+(?:\.\d+)?)")


def _weights(strategy: str) -> dict[str, float]:
    text = STRATEGIES.get(strategy, strategy)
    if _LETTERS.fullmatch(text):
        terms = [(letter, 1.0) for letter in text]
    else:
        found = [_TERM.fullmatch(term) for term in text.split("_")]
        if not all(found):
            raise UsageError(
                f"no scaling strategy {strategy!r}; there are {', '.join(STRATEGIES)}, letters of 'dwgr' such as "
                "'dwr', and weighted letters such as 'd1_w8_g8_r1'"
            )
        terms = [(m[1], float(m[2])) for m in found if m]
    weights = dict(terms)
    if len(weights) < len(terms):
        raise UsageError(f"scaling strategy {strategy!r} names a letter twice")
    negative = [letter for letter, weight in terms if weight < 0]
    if negative:
        raise UsageError(f"scaling strategy {strategy!r} has a negative weight for {negative[0]!r}")
    return {letter: weights.get(letter, 0.0) for letter in "dwgr"}


def scaling_factors(strategy: str, s: float, size: int | None = None) -> Factors:
    """Share a MACs factor among depth, width, group width and resolution.

    With shares e_d + e_w + e_r = 1 of log s: d = s^e_d, w = s^(e_w/2), r = s^(e_r/2). The group width g takes no
    share: it follows the width, so that a grouped convolution grows like a full one.

    Args:
        strategy: a name of `STRATEGIES`, letters of ``dwgr`` with equal shares, or terms such as ``d1_w8_g8_r1``.
        s: the factor on MACs, > 0; below 1 shrinks.
        size: side of the pictures before, for strategies that stop at a side (`LARGEST`); None: they do not stop.

    Raises:
        UsageError: unknown strategy, negative or all-zero weights, ``s`` not positive and finite.
    """
    if not 0 < s < math.inf:
        raise UsageError(f"the scale must be positive and finite, not {s}")
    weight = _weights(strategy)
    total = weight["d"] + weight["w"] + weight["r"] or weight["g"] / 2
    if not total:
        if s != 1:
            raise UsageError(f"scaling strategy {strategy!r} gives every dimension weight 0, it cannot scale by {s:g}")
        total = 1.0
    resolution = s ** (weight["r"] / total / 2)
    if size and strategy in LARGEST and resolution > (most := max(1.0, LARGEST[strategy] / size)):
        resolution, weight["r"] = most, 0.0
        s, total = s / most**2, weight["d"] + weight["w"]
    return Factors(
        s ** (weight["d"] / total), s ** (weight["w"] / total / 2), s ** (weight["g"] / total / 2), resolution
    )


def _times8(x: float) -> int:
    return max(1, round(x / 8)) * 8


def _scaled_group(group: int, factor: float) -> int:
    group = max(1, round(group * factor))
    if group <= 2:
        return group
    return 4 if group <= 5 else round(group / 8) * 8


def _scaled_size(size: int, factor: float) -> int:
    scaled = round(size * factor / 4) * 4
    if scaled < 1:
        raise UsageError(f"scaled by {factor:g}, pictures of {size} px would have no pixel left")
    return scaled


def scale(base: Architecture, strategy: str, s: float) -> Architecture:
    """The network of about ``s`` times the MACs, grown or shrunk as ``strategy`` says.

    Depths, widths, group widths and picture sizes are scaled; the stem and the head of AnyNets are not, those of
    EfficientNets are. All rounding is half to even, as in the official code.

    Raises:
        UsageError: as `scaling_factors`; a picture size that rounds to 0.
    """
    d, w, g, r = scaling_factors(strategy, s, base.train_size)
    mbconv = base.block == "mbconv"
    widths, _, groups = adjust_block_compatibility(
        [_times8(stage.width * w) for stage in base.stages],
        [stage.bottleneck for stage in base.stages],
        [1 if mbconv else _scaled_group(stage.group_width, g) for stage in base.stages],
    )
    return replace(
        base,
        stages=tuple(
            replace(stage, depth=max(1, round(stage.depth * d)), width=width, group_width=group)
            for stage, width, group in zip(base.stages, widths, groups, strict=True)
        ),
        stem_width=_times8(base.stem_width * w) if mbconv else base.stem_width,
        head_width=_times8(base.head_width * w) if mbconv and base.head_width else base.head_width,
        train_size=_scaled_size(base.train_size, r),
        test_size=_scaled_size(base.test_size, r),
    )
