"""Arithmetic in single precision at least, whatever dtype comes in and whether or not autocast is on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Self

import torch
from torch import Tensor, nn

__all__ = ["WideBuffers", "widened", "without_autocast"]


def widened(x: Tensor) -> Tensor:
    """Half precision as float32; float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """A context in which products keep the dtype of their factors, on the device of ``x``."""
    if x.is_meta or not torch.is_autocast_enabled(x.device.type):
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


class WideBuffers(nn.Module):
    """A module whose own floating-point buffers stay in single precision at least, as after ``half()``."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        kept = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, before in kept.items():
            now = self._buffers[name]
            if before is not None and now is not None and now.is_floating_point() and now.dtype.itemsize < 4:
                self._buffers[name] = widened(before).to(now.device)
        return self
