"""A map cut into square windows and put together again; channels last."""

from __future__ import annotations

from torch import Tensor

__all__ = ["join_windows", "split_windows"]


def split_windows(x: Tensor, size: int) -> Tensor:
    """(B, h, w, C) -> (B, h / size, w / size, size * size, C)."""
    y = x.unflatten(1, (-1, size)).unflatten(3, (-1, size))  # (B, rows, size, columns, size, C)
    return y.transpose(2, 3).flatten(3, 4)


def join_windows(x: Tensor, size: int) -> Tensor:
    """The inverse of `split_windows`."""
    return x.unflatten(3, (size, size)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
