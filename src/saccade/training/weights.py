"""Weights at the two ends of a training: those it starts from, and the average that it ends with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from saccade.checkpoint import load
from saccade.errors import CheckpointError

__all__ = ["Average", "start_from"]


class Average:
    """Exponential moving average of parameters and floating buffers; early steps count less (decay warm-up)."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {k: v.detach().clone() for k, v in model.state_dict().items()}

    def to(self, device: torch.device) -> None:
        """Move the average to a device."""
        self.values = {k: v.to(device) for k, v in self.values.items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Follow the network after a step, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        old, new = [], []
        for k, v in model.state_dict().items():
            if v.is_floating_point():
                old.append(self.values[k])
                new.append(v.detach().to(self.values[k].dtype))
            else:
                self.values[k].copy_(v)
        torch._foreach_lerp_(old, new, 1 - decay)


def start_from(model: nn.Module, path: str, without: Callable[[Any], tuple[str, ...]] = lambda given: ()) -> str:
    """Load what fits of another file.

    Args:
        without: of the network in the file: prefixes of what is not to be taken.

    Raises:
        CheckpointError: it shares less than half of its tensors with the network.
    """
    given: Any = load(path)
    if isinstance(model_expansion := getattr(model, "expansion", None), int) and hasattr(given, "expand"):
        given = given.expand(model_expansion)
    own, other = model.state_dict(), given.state_dict()
    fitting = {k: v for k, v in other.items() if k in own and own[k].shape == v.shape}
    if len(fitting) < len(own) / 2:
        raise CheckpointError(f"{path} shares only {len(fitting)} of {len(own)} tensors with the network to train")
    if prefixes := without(given):
        fitting = {k: v for k, v in fitting.items() if not k.startswith(prefixes)}
    model.load_state_dict({**own, **fitting})
    return f"{len(fitting)} of {len(own)} tensors from {Path(path).name}"
