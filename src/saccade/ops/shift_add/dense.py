"""Shift weights with gradients from one kept matrix: W itself gives those of x, and times ln 2 those of the shifts."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.ops.shift_add.naive import weight_of

__all__ = ["shift_linear"]


class _ShiftLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor, sign: Tensor, bias: Tensor | None, bits: int) -> Tensor:  # (..., N)
        weight = weight_of(shift, sign, bits)
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        x, weight = ctx.saved_tensors
        rows = dy.reshape(-1, dy.shape[-1])
        dx = dy @ weight if ctx.needs_input_grad[0] else None
        dsign = dshift = dbias = None
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            dsign = rows.mT @ x.reshape(-1, x.shape[-1])
            dshift = dsign * weight * math.log(2)  # d 2^s / ds = 2^s ln 2, and g 2^s is W
        if ctx.needs_input_grad[3]:
            dbias = rows.sum(0)
        return dx, dshift, dsign, dbias, None


def shift_linear(x: Tensor, shift: Tensor, sign: Tensor, bias: Tensor | None, bits: int) -> Tensor:
    """As `saccade.ops.shift_add.shift_linear`, in eager mode with gradients."""
    made: Tensor = _ShiftLinear.apply(x, shift, sign, bias, bits)
    return made
