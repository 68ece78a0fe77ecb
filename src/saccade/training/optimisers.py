"""The optimisers of the trainer, by name, and the learning rate of a step."""

from __future__ import annotations

import math
from typing import Any

import torch

from saccade.training.kar import Kar
from saccade.training.muon import Muon

__all__ = ["OPTIMISERS", "learning_rate", "optimiser_named"]

OPTIMISERS = ("adam", "adamw", "sgd", "muon", "kar")


def optimiser_named(name: str, groups: list[dict[str, Any]], rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """An optimiser of `OPTIMISERS`.

    Args:
        groups: what is trained; a group's own ``weight_decay`` wins, but for Adam and Kar, which have none.
        rate: peak learning rate.
        weight_decay: of adamw, sgd and muon.
    """
    if name == "adam":
        return torch.optim.Adam([{**g, "weight_decay": 0.0} for g in groups], lr=rate, betas=(0.9, 0.99))
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=rate, weight_decay=weight_decay)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True, weight_decay=weight_decay)
    if name == "kar":
        return Kar(groups, rate)
    return Muon([p for g in groups for p in g["params"]], lr=rate, weight_decay=weight_decay)


def learning_rate(step: int, steps: int, peak: float, warmup: int, hold: float) -> float:
    """Rate of a step: linear warm-up, ``hold * steps`` at the peak, half a cosine down to zero at ``steps``."""
    if step < warmup:
        return peak * (step + 1) / warmup
    start = max(warmup, int(hold * steps))
    if step < start:
        return peak
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - start) / max(1, steps - start))))
