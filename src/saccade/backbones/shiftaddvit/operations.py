"""What a network multiplies, shifts and adds on an input, and the energy that this takes by a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from saccade.backbones.shiftaddvit.attention import AngularAttention, SoftmaxAttention
from saccade.backbones.shiftaddvit.layers import AdditiveShiftLinear, DenseShift, PackedShift, ShiftLinear
from saccade.nn.moe import NoisyGate, NoisyGateV2

__all__ = ["PICOJOULES", "Operations", "operations"]

#: 45 nm, 32 bits: Horowitz, "Computing's energy problem", ISSCC 2014; the shift as in ShiftAddNet, arXiv:2010.12785
PICOJOULES = {"multiplications": 3.7, "float_additions": 0.9, "integer_additions": 0.1, "shifts": 0.13}


@dataclass
class Operations:
    """Counts of one call: of linear layers, convolutions and products of attention; norms and activations are left out.

    Attributes:
        multiplications, float_additions: of dense layers, in float32.
        shifts, integer_additions: of shift layers.
    """

    multiplications: int = 0
    float_additions: int = 0
    shifts: int = 0
    integer_additions: int = 0

    @property
    def joules(self) -> float:
        """By `PICOJOULES`: arithmetic alone, no memory."""
        return 1e-12 * sum(price * getattr(self, name) for name, price in PICOJOULES.items())


def operations(model: nn.Module, x: Tensor) -> Operations:
    """Count what ``model(x)`` does, with the routing that this input gets.

    A binary code selects rows, so its products count as additions of floats, one for every pair of code and value.
    """
    found = Operations()

    def dense(macs: int) -> None:
        found.multiplications += macs
        found.float_additions += macs

    def hook(module: nn.Module, given: tuple[Any, ...], made: Any) -> None:
        if isinstance(module, nn.Linear):
            dense(given[0].numel() // max(module.in_features, 1) * module.weight.numel())
        elif isinstance(module, nn.Conv2d):
            dense(made.numel() * module.weight[0].numel())
        elif isinstance(module, ShiftLinear | AdditiveShiftLinear | DenseShift | PackedShift):
            work = given[0].numel() * made.shape[-1] * module.powers
            found.shifts += work
            found.integer_additions += work
        elif isinstance(module, SoftmaxAttention):
            tokens = given[0].shape[0] * given[0].shape[1]
            keys = given[0].shape[1] if module.sr is None else -(-given[0].shape[1] // module.sr.stride[0] ** 2)
            dense(2 * tokens * keys * given[0].shape[2])
        elif isinstance(module, NoisyGate | NoisyGateV2):
            dense(given[0].shape[0] * module.w_gate.numel())
        elif isinstance(module, AngularAttention):
            found.float_additions += 2 * given[0].numel() * module.code_bits

    hooks = [m.register_forward_hook(hook) for m in model.modules()]
    try:
        with torch.inference_mode():
            model(x)
    finally:
        for h in hooks:
            h.remove()
    return found
