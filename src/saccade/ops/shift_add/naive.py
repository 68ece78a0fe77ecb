"""Shift weights as their definition says: the truth, values and gradients."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "additive_weight_of",
    "decomposed",
    "fixed_point",
    "integer_linear",
    "lowest_shift",
    "nearest_sum",
    "power_of_two",
    "shift_linear",
    "weight_of",
]

LOWEST = -2  # shift of each of the two powers of an additive weight


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
    return _signed(torch.exp2(s), sign)


def _signed(size: Tensor, sign: Tensor) -> Tensor:
    """``size`` times sign(round(sign)); of the product, ``size`` gets grad * g, but g gets grad."""
    g = straight_through(sign.detach().round().sign(), sign)
    return size * g.detach() + (g - g.detach())


def additive_weight_of(shifts: tuple[Tensor, Tensor], signs: tuple[Tensor, Tensor], sign: Tensor) -> Tensor:
    """W = g 2/3 (g_1 4^s_1 + g_2 4^s_2 / 2), s in {-2, -1, 0}, g_i in {0, 1}: additive powers of two (SP2, APoT).

    Li et al., "Additive Powers-of-Two Quantization", ICLR 2020, arXiv:1909.13144; gradients as of `weight_of`.

    Args:
        shifts, signs: of the two powers, (N, K) each; shifts are held in [-2, 0], signs in [0, 1].
        sign: (N, K), of the whole.
    """
    powers = []
    for i, (shift, part) in enumerate(zip(shifts, signs, strict=True)):
        s = straight_through(shift.detach().clamp(LOWEST, 0).round(), shift)
        held = straight_through(part.detach().clamp(0, 1), part)
        powers.append(_signed(torch.exp2(2 * s - i), held))
    return _signed((powers[0] + powers[1]) * 2 / 3, sign)


def nearest_sum(weight: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], Tensor]:
    """Shifts, signs and sign whose `additive_weight_of` is nearest to a weight; beyond 1 that is 1."""
    choices = [(g, s) for g, s in ((0, LOWEST), *((1, s) for s in range(LOWEST, 1)))]
    pairs = torch.tensor([(*a, *b) for a in choices for b in choices], dtype=weight.dtype, device=weight.device)
    g1, s1, g2, s2 = pairs.T
    levels, order = ((g1 * 4**s1 + g2 * 4**s2 / 2) * 2 / 3).sort()
    middles = (levels[1:] + levels[:-1]) / 2
    g1, s1, g2, s2 = pairs[order[torch.bucketize(weight.abs(), middles)]].unbind(-1)
    return (s1, s2), (g1, g2), weight.sign()


def shift_linear(x: Tensor, shift: Tensor, sign: Tensor, bias: Tensor | None, bits: int) -> Tensor:
    """As `saccade.ops.shift_add.shift_linear`."""
    return F.linear(x, weight_of(shift, sign, bits), bias)


def integer_linear(x: Tensor, s: Tensor, g: Tensor) -> Tensor:
    """sum_k g (x >> -s) in integers: x (M, K), s and g (N, K) -> (M, N) int64. Takes M N K elements of memory."""
    terms = (x[:, None].long() >> -s.long()) * g.long()  # an arithmetic shift rounds down
    return terms.sum(-1)
