"""Linear layers without products: every weight is a sign times a power of two, in a few bits.

    W = g 2^s      s = round(clamp(shift)) in [-(2^(b-1) - 2), 0],   g = sign(round(sign)) in {-1, 0, 1}      b bits
    y = x W^T + c  x and c rounded down to fixed point; in integers: y = sum of +- (x >> -s)

Elhoushi et al., "DeepShift", arXiv:1905.13298, as ShiftAddViT (arXiv:2306.06446) uses it.

`naive.py` is the truth, with the gradients that the method trains by; `dense.py` has the same values and gradients with
one matrix kept instead of seven; `packed.py` multiplies by weights of b bits (1 of sign, b - 1 of shift) and unpacks
them block by block into what the cache holds, so the float matrix is never written to memory, nor read from it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saccade.errors import InputError, UsageError
from saccade.ops.shift_add import dense, naive
from saccade.ops.shift_add.naive import decomposed, fixed_point, lowest_shift, power_of_two
from saccade.ops.shift_add.packed import Packed, Traffic, integer_linear, pack, packed_linear, traffic, unpack

__all__ = [
    "Packed",
    "Traffic",
    "check_bits",
    "decomposed",
    "fixed_point",
    "integer_linear",
    "lowest_shift",
    "pack",
    "packed_linear",
    "power_of_two",
    "shift_linear",
    "traffic",
    "unpack",
]


def check_bits(bits: int) -> int:
    """``bits`` once they describe weights: 2 (a sign alone) to 8 (shifts down to -126, which int8 and float32 hold).

    Raises:
        UsageError: any other number.
    """
    if not isinstance(bits, int) or isinstance(bits, bool) or not 2 <= bits <= 8:
        raise UsageError(f"shift weights have 2 to 8 bits (1 of sign; shifts that fit int8), not {bits!r}")
    return bits


def shift_linear(x: Tensor, shift: Tensor, sign: Tensor, bias: Tensor | None = None, *, bits: int = 5) -> Tensor:
    """x W^T + bias with W = sign(round(sign)) 2^round(clamp(shift)), differentiable by the method's own rules.

    Gradients pass straight through clamp, rounding and sign; of the product, with D = dy^T x, the sign gets D (not
    times 2^s, as the chain rule would have it) and the shift D W ln 2.

    Args:
        x: (..., K), floating-point; rounded by the caller where fixed point is wanted (`fixed_point`).
        shift, sign: (N, K), real parameters.
        bias: (N,) or None.
        bits: of a weight, which set the range of the shifts.

    Returns:
        (..., N).

    Raises:
        UsageError: impossible ``bits``.
        InputError: shapes that do not go together.
    """
    check_bits(bits)
    if shift.ndim != 2 or sign.shape != shift.shape or x.ndim < 1 or x.shape[-1] != shift.shape[1]:
        told = f"{tuple(x.shape)}, {tuple(shift.shape)} and {tuple(sign.shape)}"
        raise InputError(f"a shift layer takes x (..., K), shift and sign (N, K), not {told}")
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return dense.shift_linear(x, shift, sign, bias, bits)
    return naive.shift_linear(x, shift, sign, bias, bits)
