"""Products with bases, which are made once for a length, dtype and device."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

__all__ = ["forward", "inverse"]


def _waves(length: int, kept: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """D_N[:kept], (kept, N). The phase is reduced in whole numbers, so that long axes lose no digits."""
    n = torch.arange(length, device=device)
    k = torch.arange(kept, device=device)
    phase = torch.remainder(k[:, None] * (2 * n + 1), 4 * (n[-1] + 1))  # in steps of pi / 2N
    gain = torch.where(k == 0, 1.0, 2.0).to(dtype)[:, None]
    return (gain / length).sqrt() * torch.cos(phase.to(dtype) * (math.pi / (2 * length)))


@functools.lru_cache(maxsize=256)
def _cached(length: int, kept: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        return _waves(length, kept, torch.float64, torch.device("cpu")).to(device, dtype)


def basis(length: int, kept: int, like: Tensor) -> Tensor:
    """The first ``kept`` rows of D_N in dtype and place of a tensor. Never a parameter, never in a state."""
    if torch.compiler.is_compiling():  # a graph holds it as a constant, or makes it for the size that comes
        return _waves(length, kept, torch.float32, like.device).to(like.dtype)
    return _cached(length, kept, like.dtype, like.device)


def _product(rows: Tensor, x: Tensor, axis: int) -> Tensor:
    """(m, N) times the axis of length N."""
    if axis == -1:
        return x @ rows.mT
    behind = x.shape[axis + 1 :]
    if len(behind) == 1:
        return rows @ x
    return (rows @ x.flatten(axis + 1)).unflatten(-1, behind)


def forward(x: Tensor, axis: int, kept: int) -> Tensor:
    """The lowest ``kept`` coefficients along an axis, counted from the end."""
    return _product(basis(x.shape[axis], kept, x), x, axis)


def inverse(coefficients: Tensor, axis: int, length: int) -> Tensor:
    """``length`` samples along an axis from its lowest coefficients."""
    return _product(basis(length, coefficients.shape[axis], coefficients).mT, coefficients, axis)
