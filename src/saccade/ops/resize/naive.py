"""The truth for `resize`: each axis as one dense weight matrix, float64, written for reading."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from saccade.ops.resize.weights import axes

__all__ = ["resize_naive", "weight_matrix"]


def resize_naive(
    x: Tensor,
    scale: float | tuple[float, float] | None = None,
    *,
    size: tuple[int, int] | None = None,
    method: str = "bicubic",
    antialias: bool = True,
) -> Tensor:
    """(..., h, w) -> (..., H, W); arguments and errors as in `saccade.ops.resize.resize`."""
    rows, columns = axes(x.shape[-2], x.shape[-1], scale, size, method, antialias)
    down = weight_matrix(rows.n, rows.m, rows.scale, method, antialias)  # (H, h)
    across = weight_matrix(columns.n, columns.m, columns.scale, method, antialias)  # (W, w)
    y = down.to(x.device) @ x.double() @ across.to(x.device).T
    if x.dtype == torch.uint8:
        y = (y + 0.5).floor().clamp(0, 255)
    return y.to(x.dtype)


def weight_matrix(n: int, m: int, scale: float, method: str = "bicubic", antialias: bool = True) -> Tensor:
    """(m, n) float64: row i holds the weights of the n source samples in output sample i."""
    matrix = torch.zeros(m, n, dtype=torch.float64)
    squeeze = min(scale, 1.0) if antialias else 1.0
    for i in range(m):
        centre = (i + 0.5) / scale - 0.5
        reach = math.ceil(2 / squeeze) + 1
        for j in range(math.floor(centre) - reach, math.ceil(centre) + reach + 1):
            matrix[i, _mirror(j, n)] += _kernel((centre - j) * squeeze, method)
    return matrix / matrix.sum(1, keepdim=True)


def _mirror(j: int, n: int) -> int:
    """... 2 1 0 | 0 1 2 ... n-1 | n-1 n-2 ..."""
    j %= 2 * n
    return j if j < n else 2 * n - 1 - j


def _kernel(x: float, method: str) -> float:
    if method == "box":
        return float(-0.5 <= x < 0.5)
    x = abs(x)
    if method == "bilinear":
        return max(0.0, 1 - x)
    if x <= 1:  # cubic convolution, a = -1/2
        return 1.5 * x**3 - 2.5 * x**2 + 1
    if x < 2:
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return 0.0
