"""Mean and variance of every channel over every one of many sets of cells, in one reduction.

    mean[b, r, c] = 1/n_r sum over the cells p of r of x[b, p, c]
    var[b, r, c]  = 1/(n_r - 1) sum over the same of (x[b, p, c] - mean[b, r, c])^2

The sets may overlap: they come as pairs (cell, segment). naive.py is the truth, a loop over the segments; indexed.py
adds all up at once, or in compiled and exported graphs multiplies by the matrix of who belongs where.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from saccade.errors import InputError, UsageError
from saccade.ops.segment_stats import indexed, naive

__all__ = ["segment_sizes", "segment_stats"]

Path = Literal["auto", "added", "multiplied", "naive"]
_PATHS = {"added": indexed.added, "multiplied": indexed.multiplied, "naive": naive.looped}


def segment_sizes(segments: Tensor, count: int) -> Tensor:
    """Cells of each segment, (count,) int64.

    Args:
        segments: (P,) int64, from 0 to count - 1.

    Raises:
        InputError: numbers beyond these, or a segment with fewer than two cells: its variance is not defined.
    """
    if segments.numel() and not 0 <= int(segments.min()) <= int(segments.max()) < count:
        raise InputError(f"segments are numbered from 0 to {count - 1}")
    sizes = torch.bincount(segments, minlength=count)
    few = (sizes < 2).nonzero().flatten().tolist()
    if few:
        raise InputError(
            f"segment {few[0]} has {int(sizes[few[0]])} cell(s); the unbiased variance takes two or more: "
            "leave it out, or merge it with a neighbour"
        )
    return sizes


def segment_stats(
    x: Tensor, cells: Tensor, segments: Tensor, sizes: Tensor, *, path: Path = "auto"
) -> tuple[Tensor, Tensor]:
    """Means and unbiased variances of the cells of each segment.

    Args:
        x: (B, N, C), floating point; half precision is added up in float32.
        cells: (P,) int64, places along N.
        segments: (P,) int64, the segment of each of these places.
        sizes: (R,) int64, from `segment_sizes`.
        path: ``"auto"`` adds up, and multiplies in compiled and exported graphs; ``"naive"`` loops.

    Returns:
        mean and var, (B, R, C) each. Differentiable in ``x``.

    Raises:
        InputError: shapes or dtypes that do not go together.
        UsageError: an unknown path.
    """
    if path != "auto" and path not in _PATHS:
        raise UsageError(f"statistics of segments go by 'auto', {', '.join(map(repr, _PATHS))}; not by {path!r}")
    compiling = torch.compiler.is_compiling()
    if not compiling:
        if x.ndim != 3 or not x.is_floating_point():
            raise InputError(f"segments are of floating-point cells (B, N, C), not of {x.dtype} {tuple(x.shape)}")
        if cells.shape != segments.shape or cells.ndim != 1 or sizes.ndim != 1:
            raise InputError(
                f"cells {tuple(cells.shape)} and segments {tuple(segments.shape)} come in pairs, with the sizes of the "
                f"segments (R,), not {tuple(sizes.shape)}"
            )
    if path == "auto":
        path = "multiplied" if compiling else "added"
    wide = torch.promote_types(x.dtype, torch.float32)
    mean, var = _PATHS[path](x.to(wide), cells, segments, sizes)
    return mean.to(x.dtype), var.to(x.dtype)
