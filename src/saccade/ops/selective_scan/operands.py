"""What a selective scan works on, and what goes back through it, each under one name for every path."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["Gradients", "Operands"]


class Operands(NamedTuple):
    """The tensors of the recurrence, channels innermost.

    Attributes:
        u: input, (B, L, K, E): L steps, K groups of E channels.
        delta: step sizes, (B, L, K, E).
        A: decay rates, negative: (K, E, N) for N states; inside of the paths (K, N, E).
        B, C: input and output weights, shared by the channels of a group, (B, L, K, N).
    """

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor


class Gradients(NamedTuple):
    """Of each operand, and of the state before the first step, (B, K, N, E)."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    state: Tensor
