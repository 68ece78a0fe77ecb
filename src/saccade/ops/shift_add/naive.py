"""Shift weights as their definition says: the truth, values and gradients."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["decomposed", "fixed_point", "integer_linear", "lowest_shift", "power_of_two", "shift_linear", "weight_of"]


def lowest_shift(bits: int) -> int:
    """The smallest shift of weights of ``bits``: -14 for 5. The code that would be one lower stands for zero."""
    return -(2 ** (bits - 1) - 2)


def straight_through(made: Tensor, x: Tensor) -> Tensor:
    """``made`` on the way forward, to the last bit, and ``x`` on the way back."""
    return made.detach() + (x - x.detach())


def fixed_point(x: Tensor, integer_bits: int = 16, fraction_bits: int = 16) -> Tensor:
    """Rounded down to a multiple of 2^-fraction_bits in [-2^(i-1), 2^(i-1) - 1]; gradients pass straight through."""
    step, limit = 2.0**-fraction_bits, 2.0 ** (integer_bits - 1)
    made = (torch.floor(x.detach() / step) * step).clamp(-limit, limit - 1)
    return straight_through(made, x) if x.requires_grad and torch.is_grad_enabled() else made


def decomposed(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(shift, sign) of the nearest power of two in the logarithm: round(log2 |w|) and sign(w); -inf where w is 0."""
    return weight.abs().log2().round(), weight.sign()


def power_of_two(weight: Tensor, bits: int = 5) -> Tensor:
    """sign(w) 2^round(log2 |w|) of |w| held in [2^lowest, 1]; gradients pass straight through (DeepShift-Q).

    Gaussian weights lose 0.206 of their deviation and gain 2 %.
    """
    held = weight.detach().abs().clamp(2.0 ** lowest_shift(bits), 1)
    return straight_through(weight.sign() * torch.exp2(held.log2().round()), weight)


def weight_of(shift: Tensor, sign: Tensor, bits: int) -> Tensor:
    """W = g 2^s with straight-through gradients: of the product, 2^s gets grad * g, but g gets grad."""
    s = straight_through(shift.detach().clamp(lowest_shift(bits), 0).round(), shift)
    g = straight_through(sign.detach().round().sign(), sign)
    return torch.exp2(s) * g.detach() + (g - g.detach())


def shift_linear(x: Tensor, shift: Tensor, sign: Tensor, bias: Tensor | None, bits: int) -> Tensor:
    """As `saccade.ops.shift_add.shift_linear`."""
    return F.linear(x, weight_of(shift, sign, bits), bias)


def integer_linear(x: Tensor, s: Tensor, g: Tensor) -> Tensor:
    """sum_k g (x >> -s) in integers: x (M, K), s and g (N, K) -> (M, N) int64. Takes M N K elements of memory."""
    terms = (x[:, None].long() >> -s.long()) * g.long()  # an arithmetic shift rounds down
    return terms.sum(-1)
