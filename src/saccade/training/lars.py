"""LARS: a rate of its own for every layer, so that batches of thousands can take large steps.

You, Gitman and Ginsburg, "Large Batch Training of Convolutional Networks", 2017, arXiv:1708.03888.

    step of a layer = rate * trust * |w| / (|g| + decay * |w|) * (g + decay * w), with momentum     (eq. 6)

Norms and biases take plain momentum, without decay, as in the trainings of MoCo's and SimCLR's kin: their weights are
few and near 0 or 1, so that the ratio would say nothing. The optimiser is timm's; as in PyTorch's SGD the rate is
multiplied after the momentum.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

__all__ = ["lars"]


def lars(
    parameters: Iterable[nn.Parameter],
    rate: float,
    weight_decay: float = 1e-4,
    momentum: float = 0.9,
    trust: float = 1e-3,
) -> torch.optim.Optimizer:
    """LARS on matrices and kernels, momentum on the rest.

    Args:
        parameters: of the network.
        rate: learning rate, before the layers' own.
        weight_decay: of matrices and kernels.
        momentum: of both.
        trust: share of a layer's norm that a step at rate 1 may change (the paper's eta).
    """
    from timm.optim.lars import Lars

    given = list(parameters)
    groups = [
        {"params": [p for p in given if p.ndim > 1], "weight_decay": weight_decay, "always_adapt": True},
        {"params": [p for p in given if p.ndim <= 1], "weight_decay": 0.0, "always_adapt": False},
    ]
    made: torch.optim.Optimizer = Lars(
        [g for g in groups if g["params"]], lr=rate, momentum=momentum, trust_coeff=trust
    )
    return made
