"""The truth of `saccade.ops.ssim`: five maps by depthwise convolution, formulas as printed, gradients by autograd."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["similarity"]


def similarity(
    a: Tensor, b: Tensor, window: Sequence[float], c1: float, c2: float, level: float, luminance: bool
) -> Tensor:
    """Mean over the pixels of (luminance times) contrast-structure, planes (P, H, W) -> (P,); see the package."""
    a, b = (a - level)[:, None], (b - level)[:, None]  # around mid-grey, where squares lose fewest digits
    mean_a, mean_b = _blur(a, window), _blur(b, window)
    variances = _blur(a * a, window) - mean_a**2 + _blur(b * b, window) - mean_b**2
    covariance = _blur(a * b, window) - mean_a * mean_b
    score = (2 * covariance + c2) / (variances + c2)
    if luminance:
        mean_a, mean_b = mean_a + level, mean_b + level
        score = score * (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return score.mean((1, 2, 3))


def _blur(x: Tensor, window: Sequence[float]) -> Tensor:
    """(P, 1, H, W) -> (P, 1, H-w+1, W-w+1): columns, then rows."""
    taps = torch.tensor(window, dtype=x.dtype, device=x.device)
    return F.conv2d(F.conv2d(x, taps[None, None, :, None]), taps[None, None, None])
