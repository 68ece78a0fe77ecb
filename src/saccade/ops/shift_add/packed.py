"""Shift weights in memory as they are: a bit of sign and 3, 4 or 7 bits of shift, unpacked where they are used.

    codes (N, K/2) uint8, two of 4 bits each (weights of up to 5 bits; else (N, K), one each)     |shift|, or zero
    signs (N, K/8) uint8, a bit each, the first in the lowest place                              1 for negative

A block of rows is unpacked through a table of all bytes into a buffer that the second-level cache holds, multiplied,
and overwritten by the next. Against unpacking the whole matrix first, 8 of the 8 + b/8 bytes a weight are saved.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.errors import InputError
from saccade.ops.shift_add.naive import lowest_shift

__all__ = ["Packed", "Traffic", "integer_linear", "pack", "packed_linear", "traffic", "unpack"]

BLOCK = 1 << 16  # weights unpacked at a time: 256 kB of float32


@dataclass(frozen=True)
class Packed:
    """A matrix of signed powers of two.

    Attributes:
        codes, signs: bytes, see the module's docstring.
        columns: K; the bytes may hold up to 7 more, which are zero.
        bits: of a weight.
    """

    codes: Tensor
    signs: Tensor
    columns: int
    bits: int

    @property
    def nbytes(self) -> int:
        """Of both parts: b/8 a weight for b = 5, where K divides by 8."""
        return self.codes.numel() + self.signs.numel()

    def rows(self, first: int, last: int) -> Packed:
        """Some of the rows, without a copy."""
        return Packed(self.codes[first:last], self.signs[first:last], self.columns, self.bits)


def pack(shift: Tensor, sign: Tensor, bits: int = 5) -> Packed:
    """Pack whole shifts and signs.

    Args:
        shift: (N, K), whole numbers in [lowest_shift(bits), 0].
        sign: (N, K), -1, 0 or 1.
        bits: of a weight, 2 to 8.

    Raises:
        InputError: values out of range; the message says which.
    """
    low = lowest_shift(bits)
    if shift.ndim != 2 or shift.shape != sign.shape:
        raise InputError(f"shifts and signs are two matrices alike, not {tuple(shift.shape)} and {tuple(sign.shape)}")
    wrong = (sign != 0) & ~((shift >= low) & (shift <= 0) & (shift == shift.round()))
    if bool(wrong.any()) or not bool((sign.abs() <= 1).all() & (sign == sign.round()).all()):
        raise InputError(f"weights of {bits} bits have whole shifts in [{low}, 0] and signs -1, 0, 1")
    zero = 1 - low
    codes = torch.where(sign == 0, zero, -shift.nan_to_num(0, 0, 0)).to(torch.uint8)
    pad = -shift.shape[1] % 8
    codes, negative = F.pad(codes, (0, pad), value=zero), F.pad((sign < 0).to(torch.uint8), (0, pad))
    places = torch.arange(8, dtype=torch.uint8, device=shift.device)
    signs = (negative.unflatten(1, (-1, 8)) << places).sum(-1).to(torch.uint8)
    if bits <= 5:
        codes = codes[:, 0::2] | (codes[:, 1::2] << 4)
    return Packed(codes.contiguous(), signs.contiguous(), shift.shape[1], bits)


@functools.cache
def _tables(bits: int) -> tuple[Tensor, Tensor]:
    """Of every byte: the sizes that its codes stand for (256, 2 or 1), and the signs of its bits (256, 8)."""
    zero = 1 - lowest_shift(bits)
    sizes = torch.tensor([2.0**-code if code < zero else 0.0 for code in range(256)])
    byte = torch.arange(256)
    signs = 1.0 - 2.0 * (byte[:, None] >> torch.arange(8) & 1)
    return torch.stack([sizes[byte & 15], sizes[byte >> 4]], 1) if bits <= 5 else sizes[:, None], signs


def unpack(weight: Packed, dtype: torch.dtype = torch.float32) -> Tensor:
    """The matrix (N, K) in floating-point, exactly."""
    sizes, signs = (t.to(weight.codes.device, dtype) for t in _tables(weight.bits))
    rows = weight.codes.shape[0]
    made = F.embedding(weight.codes.int(), sizes).view(rows, -1)
    made = made * F.embedding(weight.signs.int(), signs).view(rows, -1)
    return made[:, : weight.columns]


def _blocked(x: Tensor, weight: Packed) -> Tensor:
    """x (M, K) -> W x^T (N, M), block by block."""
    count = weight.codes.shape[0]
    step = max(1, BLOCK // max(weight.columns, 1))
    made = x.new_empty(count, x.shape[0])
    turned = x.mT
    for first in range(0, count, step):
        last = min(first + step, count)
        torch.mm(unpack(weight.rows(first, last), x.dtype), turned, out=made[first:last])
    return made


class _PackedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, signs: Tensor, columns: int, bits: int) -> Tensor:
        ctx.save_for_backward(codes, signs)
        ctx.told = (columns, bits)
        return _blocked(x, Packed(codes, signs, columns, bits)).mT

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        weight = Packed(*ctx.saved_tensors, *ctx.told)
        count = weight.codes.shape[0]
        step = max(1, BLOCK // max(weight.columns, 1))
        dx = dy.new_zeros(dy.shape[0], weight.columns)
        for first in range(0, count, step):
            last = min(first + step, count)
            dx.addmm_(dy[:, first:last], unpack(weight.rows(first, last), dy.dtype))
        return dx, None, None, None, None


def packed_linear(x: Tensor, weight: Packed, bias: Tensor | None = None) -> Tensor:
    """x W^T + bias, (..., K) -> (..., N), the weights unpacked block by block; differentiable in x and bias.

    Raises:
        InputError: x has other than K channels.
    """
    if x.shape[-1] != weight.columns or not x.is_floating_point():
        raise InputError(f"these weights take float (..., {weight.columns}), not {x.dtype} {tuple(x.shape)}")
    if torch.compiler.is_compiling():  # a graph unpacks in one piece: its compiler fuses as it likes
        return F.linear(x, unpack(weight, x.dtype), bias)
    rows = x.reshape(-1, weight.columns)
    made: Tensor = _PackedLinear.apply(rows, weight.codes, weight.signs, weight.columns, weight.bits)
    made = made.reshape(*x.shape[:-1], weight.codes.shape[0])
    return made if bias is None else made + bias


def integer_linear(x: Tensor, weight: Packed) -> Tensor:
    """sum_k g (x >> -s) of fixed-point integers: what hardware without multipliers computes.

    All weights of one shift together: a shift of x, and a product with signs alone, in float64, which holds sums of
    up to 2^21 terms of 32 bits exactly.

    Args:
        x: (..., K) int32, e.g. ``(fixed_point(x) * 2**16).int()``.
        weight: of shifts down to -31.

    Returns:
        (..., N) int64, in the units of x.

    Raises:
        InputError: another dtype or width, or shifts of more than 31 places.
    """
    if x.dtype != torch.int32 or x.shape[-1] != weight.columns or lowest_shift(weight.bits) < -31:
        raise InputError(
            f"integer shift layers take int32 (..., {weight.columns}) and weights of up to 6 bits, "
            f"not {x.dtype} {tuple(x.shape)} and {weight.bits} bits"
        )
    matrix = unpack(weight, torch.float64)
    rows = x.reshape(-1, weight.columns)
    made = torch.zeros(rows.shape[0], matrix.shape[0], dtype=torch.float64, device=x.device)
    for places in range(1 - lowest_shift(weight.bits)):
        here = torch.where(matrix.abs() == 2.0**-places, matrix.sign(), 0.0)
        if bool(here.any()):
            made += (rows >> places).double() @ here.mT
    return made.long().reshape(*x.shape[:-1], -1)


@dataclass(frozen=True)
class Traffic:
    """What a linear layer moves and does, counted from its sizes; the activations are read and written once.

    Attributes:
        dense_bytes: weights in float32.
        dequantised_bytes: packed weights read, the float matrix written and read again.
        packed_bytes: packed weights alone.
        activation_bytes: x and y in float32, which all three have.
        multiplications: of the float layer.
        shifts, additions: of the integer layer.
    """

    dense_bytes: int
    dequantised_bytes: int
    packed_bytes: int
    activation_bytes: int
    multiplications: int
    shifts: int
    additions: int

    @property
    def saved(self) -> float:
        """Bytes of dequantise-then-multiply over those of the packed layer, activations counted in both."""
        return (self.dequantised_bytes + self.activation_bytes) / (self.packed_bytes + self.activation_bytes)


def traffic(tokens: int, columns: int, rows: int, bits: int = 5) -> Traffic:
    """Of ``tokens`` through a layer of ``columns`` inputs and ``rows`` outputs (no bias)."""
    weights = rows * columns
    padded = columns + -columns % 8
    packed = rows * (padded // 2 if bits <= 5 else padded) + rows * padded // 8
    work = tokens * weights
    return Traffic(4 * weights, packed + 8 * weights, packed, 4 * tokens * (rows + columns), work, work, work)
