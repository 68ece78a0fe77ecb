"""The correlation of two pictures as a loss: whether the restored one varies as the true one does."""

from __future__ import annotations

import torch
from torch import Tensor

from saccade.errors import InputError

__all__ = ["pearson_loss"]


def pearson_loss(restored: Tensor, wanted: Tensor) -> Tensor:
    """(1 - r) / 2 with Pearson's r over all values of a sample, mean over the batch (Histoformer, section 3.4).

    0 for pictures that agree but for brightness and contrast, 1/2 for unrelated ones, 1 for a negative. Samples whose
    loss is not finite are left out; without any other the loss is 0.

    Args:
        restored, wanted: (B, ...) of one shape, floating point.

    Returns:
        A scalar, differentiable.

    Raises:
        InputError: shapes differ.
    """
    if restored.shape != wanted.shape or restored.ndim < 2:
        raise InputError(f"pictures to correlate differ: {tuple(restored.shape)} and {tuple(wanted.shape)}")
    a, b = (x.flatten(1) - x.flatten(1).mean(1, keepdim=True) for x in (restored, wanted))
    # vector_norm, not a square root: at a flat picture (a black crop) its gradient is 0 and not NaN
    lengths = (torch.linalg.vector_norm(x, dim=1) for x in (a, b))
    r = (a * b).sum(1) / (next(lengths) * next(lengths) + 1e-6)
    loss = (1 - r) / 2
    finite = loss.isfinite()
    return torch.where(finite, loss, 0).sum() / finite.sum().clamp(min=1)
