"""The Haar wavelet transform of planes, and back.

    x (..., H, W) -- dwt --> low (..., H/2, W/2) and high (..., 3, H/2, W/2) -- idwt --> x

Of a block of 2x2 pixels (a b; c d) it makes

    low = (a + b + c + d) / 2       high[0] = (a + b - c - d) / 2     high along the height, low along the width
    high[1] = (a - b + c - d) / 2   high[2] = (a - b - c + d) / 2     the other way round; high along both

which is orthonormal: it keeps the sum of squares, and its gradient is its inverse. In the words of PyWavelets
``wavedec2(x, "db1", mode="zero")``, where high[0] is called horizontal, high[1] vertical, high[2] diagonal detail.
`naive.py` says it in convolutions and is the truth; `strided.py` adds strided views, in one pass a level.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from saccade.errors import InputError, UsageError
from saccade.ops.haar import strided

__all__ = ["dwt", "idwt", "pyramid", "reconstruct"]


def dwt(x: Tensor) -> tuple[Tensor, Tensor]:
    """One level of the transform. Differentiable any number of times.

    Args:
        x: (..., H, W), floating-point; odd sides are continued by one line of zeros below or on the right.

    Returns:
        Low band (..., ceil(H/2), ceil(W/2)) and the three high ones (..., 3, ceil(H/2), ceil(W/2)).

    Raises:
        InputError: no planes, nothing in them, or no floating-point numbers.
    """
    if x.ndim < 2 or not x.is_floating_point() or 0 in x.shape[-2:]:
        raise InputError(f"a wavelet transform takes float planes (..., H, W), not {x.dtype} {tuple(x.shape)}")
    height, width = x.shape[-2:]
    if height % 2 or width % 2:
        x = F.pad(x, (0, width % 2, 0, height % 2))
    return strided.analysis(x)


def idwt(low: Tensor, high: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """The inverse of `dwt`. Differentiable any number of times.

    Args:
        low: (..., h, w).
        high: (..., 3, h, w).
        size: (H, W) of the result, 2h or 2h - 1 and 2w or 2w - 1; None for (2h, 2w).

    Raises:
        InputError: bands that do not go together, or a size that they cannot have come from.
    """
    shape = (*low.shape[:-2], 3, *low.shape[-2:])
    if low.ndim < 2 or high.shape != shape or high.dtype != low.dtype or not low.is_floating_point():
        told = f"{low.dtype} {tuple(low.shape)} and {high.dtype} {tuple(high.shape)}"
        raise InputError(f"bands are (..., h, w) and (..., 3, h, w) of one floating-point dtype, not {told}")
    made = strided.synthesis(low, high)
    if size is None:
        return made
    if any(-(-n // 2) != m for n, m in zip(size, low.shape[-2:], strict=True)):
        raise InputError(f"bands of {tuple(low.shape[-2:])} do not come from planes of {tuple(size)}")
    return made[..., : size[0], : size[1]]


def pyramid(x: Tensor, levels: int) -> list[tuple[Tensor, Tensor]]:
    """All levels of the transform in one pass, finest first: the bands of level j come from the low band of j - 1.

    Args:
        x: (..., H, W), floating-point.
        levels: at least 1.

    Returns:
        Level by level (low, high), as `dwt`. The wavelet decomposition proper is the last low band and all high ones.

    Raises:
        UsageError: fewer than one level.
        InputError: as `dwt`.
    """
    if levels < 1:
        raise UsageError(f"a wavelet transform has at least one level, not {levels}")
    found = [dwt(x)]
    while len(found) < levels:
        found.append(dwt(found[-1][0]))
    return found


def reconstruct(low: Tensor, highs: Sequence[Tensor], size: tuple[int, int] | None = None) -> Tensor:
    """The inverse of `pyramid` from its last low band and all high ones, finest first.

    Args:
        low: (..., h, w) of the coarsest level.
        highs: (..., 3, h_j, w_j), finest first.
        size: (H, W) of the result, where the sides were odd; those in between follow from the bands.

    Raises:
        InputError: bands that do not go together.
    """
    for i in reversed(range(len(highs))):
        within = size if i == 0 else (int(highs[i - 1].shape[-2]), int(highs[i - 1].shape[-1]))
        low = idwt(low, highs[i], within)
    return low
