"""Structural similarity of planes: mean SSIM, or mean contrast-structure, under a separable window.

similarity      naive.py is the truth; blockwise.py the fast path on processors, gradient included
gaussian        the window's taps
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from saccade.errors import InputError, UsageError
from saccade.ops.ssim import blockwise, naive

__all__ = ["gaussian", "similarity"]


def gaussian(size: int, sigma: float) -> tuple[float, ...]:
    """Taps of a normalised Gaussian.

    Raises:
        UsageError: an even or non-positive size, or a sigma that is not positive.
    """
    if size < 1 or size % 2 == 0:
        raise UsageError(f"a window needs an odd number of taps, not {size}")
    if not (sigma > 0 and math.isfinite(sigma)):
        raise UsageError(f"the sigma of a window must be positive, not {sigma}")
    taps = [math.exp(-((i - size // 2) ** 2) / (2 * sigma**2)) for i in range(size)]
    return tuple(tap / math.fsum(taps) for tap in taps)


def similarity(
    a: Tensor,
    b: Tensor,
    window: Sequence[float],
    *,
    c1: float,
    c2: float,
    level: float,
    luminance: bool = True,
    fast: bool | None = None,
) -> Tensor:
    """Mean structural similarity of each pair of planes (Wang et al. 2004), where the window lies wholly inside.

    With mu = G*x, var = G*x^2 - mu^2 and cov = G*(ab) - mu_a mu_b, at every pixel

        l  = (2 mu_a mu_b + c1) / (mu_a^2 + mu_b^2 + c1)
        cs = (2 cov + c2) / (var_a + var_b + c2)

    Args:
        a, b: (..., H, W), float32 or float64, one shape.
        window: taps of G along each axis, an odd number of them, symmetric.
        c1, c2: the constants, in squared units of the pictures.
        level: mid-grey; the value around which squares are taken, which changes rounding only.
        luminance: the mean of l * cs (SSIM) if true, of cs alone if not.
        fast: take the blockwise path; None decides: on processors, when nothing is being traced.

    Returns:
        (...): one figure a plane. Differentiable in both pictures, once on the fast path.

    Raises:
        InputError: shapes or dtypes that do not go together, or planes smaller than the window.
        UsageError: a window with an even number of taps.
    """
    if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
        raise InputError(f"pictures differ in kind: {a.dtype} {tuple(a.shape)} and {b.dtype} {tuple(b.shape)}")
    if a.dtype not in (torch.float32, torch.float64) or a.ndim < 2:
        raise InputError(f"expected float32 or float64 planes (..., H, W), got {a.dtype} {tuple(a.shape)}")
    if len(window) % 2 == 0:
        raise UsageError(f"a window needs an odd number of taps, not {len(window)}")
    if min(a.shape[-2:]) < len(window) or a.numel() == 0:
        raise InputError(f"a window of {len(window)} does not fit into {a.shape[-1]}x{a.shape[-2]} pixels")
    if fast is None:
        fast = a.device.type == "cpu" and not torch.compiler.is_compiling()
    path = blockwise.similarity if fast else naive.similarity
    planes = (-1, *a.shape[-2:])
    with torch.autocast(a.device.type, enabled=False):  # E[x^2] - mu^2 has no digits left in half precision
        return path(a.reshape(planes), b.reshape(planes), window, c1, c2, level, luminance).view(a.shape[:-2])
