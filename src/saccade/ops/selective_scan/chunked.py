"""Selective scan by vector operations that stay in cache: the path of a processor without Numba.

Per step, all batches, groups, states and channels are one vector, laid out (B, K, N, E) with the E channels of a
group innermost. A segment of the sequence is worked on at a time, as tensors (B, steps, K, N, E) of about `SEGMENT`
elements; what comes in and goes out is (B, L, K, ...) and is not copied into another order:

    a = exp(delta A), H = delta u B                     two outer products and one exp for the whole segment
    H_t += a_t H_{t-1}                                  one vector operation a step, in place
    y = C H                                             one batched matrix product

Where a step is too short a vector to be worth a call (few channels), the segment is cut in chunks that are stepped
through side by side. Each chunk first runs from zero to find its last state h_j; what it makes of a state S is
h_j + exp(A sum of its deltas) S, which gives the true starts one after another; then all run once more from these.

Every factor is exp of a number that is not positive: nothing overflows, there is no quotient, and an underflow is the
right answer. (The closed form with exp(cumsum) in numerator and denominator has neither virtue.)

Backward keeps the state at the start of each segment and recomputes a and H. The adjoint is the same recurrence
run the other way on the same a:

    G_t = C_t gy_t + a_{t+1} G_{t+1}
    gC = sum_e H gy      gB = sum_e G delta u      q = sum_n B G      M = G a H_{t-1}
    gu = delta q         gdelta = u q + sum_n A M  gA = sum_t delta M
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.ops.selective_scan.operands import Gradients, Operands

__all__ = ["kept_states", "scan_backward", "scan_forward"]

SEGMENT = 1 << 17  # elements of a work tensor; two or three of them are to stay in a core's own cache
VECTOR = 2048  # elements a step is to have at least: below, the call costs more than the work
STEPS = 16  # of a chunk, at least
CHUNKS = 128  # at most
SMALL = 512  # elements of a group's state below which a matrix product costs more to call than to compute


class Plan(NamedTuple):
    """How a sequence is cut: segments of chunks x steps, and a tail that is stepped through as one chunk."""

    chunks: int
    steps: int

    @property
    def span(self) -> int:
        """Steps of the sequence that a segment holds."""
        return self.chunks * self.steps

    @classmethod
    def of(cls, size: int, length: int) -> Plan:
        """For ``length`` steps of ``size`` elements each: chunks and steps are powers of two, as sides often are."""
        size = max(size, 1)
        if size >= VECTOR or length < 2 * STEPS:
            return cls(1, max(SEGMENT // size, 4))
        chunks = min(_power_of_two(2 * VECTOR // size), CHUNKS)
        while chunks * STEPS > length:
            chunks //= 2
        return cls(chunks, min(max(_power_of_two(SEGMENT // (size * chunks)), STEPS), 4 * STEPS))

    def count(self, length: int) -> int:
        """Segments of a sequence, the tail included."""
        return -(-length // self.span)

    def cuts(self, length: int, backwards: bool) -> list[tuple[int, int, int]]:
        """(first step, chunks, steps a chunk) of each segment, in the order of the sequence or against it."""
        whole = length // self.span
        cuts = [(i * self.span, *self) for i in range(whole)]
        if length > whole * self.span:
            cuts.append((whole * self.span, 1, length - whole * self.span))
        return cuts[::-1] if backwards else cuts


def _power_of_two(number: int) -> int:
    """The greatest that is not above ``number``; 1 for less."""
    return 1 << max(number.bit_length() - 1, 0)


class Segment:
    """Work tensors (B, chunks * steps, K, N, E), and their steps (B, chunks, K, N, E) in the order of the scan."""

    def __init__(self, chunks: int, steps: int, like: Tensor, states: int, reverse: bool) -> None:
        batch, _, groups, each = like.shape
        self.chunks, self.steps = chunks, steps
        self.order = slice(None, None, -1 if reverse else 1)
        self.a, self.h = (like.new_empty(batch, chunks * steps, groups, states, each) for _ in range(2))
        self.a_steps, self.h_steps = self.split(self.a), self.split(self.h)
        if chunks > 1:
            self.last, self.into = (like.new_empty(batch, chunks, groups, states, each) for _ in range(2))
            self.lasts, self.intos = (list(x.unbind(1)[self.order]) for x in (self.last, self.into))

    def split(self, x: Tensor) -> list[Tensor]:
        """The steps of (B, chunks * steps, ...) in the order of the scan, each (B, chunks, ...)."""
        return list(x.unflatten(1, (self.chunks, self.steps)).unbind(2)[self.order])

    def starts(self, delta: Tensor, A: Tensor, carry: Tensor, way: int) -> Tensor:
        """Fill ``into`` with what comes into each chunk; returns what leaves the one that is last, (B, K, N, E).

        ``last`` holds what each chunk makes of zero, (B, chunks, K, N, E).

        Args:
            carry: what comes into the first chunk, (B, K, N, E).
            way: 1 to hand on in the order of the scan, -1 against it.
        """
        sums = delta.unflatten(1, (self.chunks, self.steps)).sum(2)  # a product of decays is the exp of their sum
        through = torch.mul(sums[..., None, :], A).exp_().unbind(1)[self.order][::way]
        after = torch.empty_like(carry)
        intos, lasts = self.intos[::way], self.lasts[::way]
        intos[0].copy_(carry)
        for now, a, h, onward in zip(intos, through, lasts, (*intos[1:], after), strict=True):
            torch.addcmul(h, a, now, out=onward)
        return after

    def forwards(self, delta: Tensor, du: Tensor, A: Tensor, B: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Make a, and every state in h; returns the states before each chunk's first step and after the segment.

        Args:
            delta, du: (B, chunks * steps, K, E).
            A: (K, N, E).
            B: (B, chunks * steps, K, N).
            state: before the segment, (B, K, N, E).
        """
        torch.mul(delta[..., None, :], A, out=self.a).exp_()
        torch.mul(B[..., None], du[..., None, :], out=self.h)
        into, after = state[:, None], None
        if self.chunks > 1:
            last = self.last.copy_(self.h_steps[0])
            for a, b in zip(self.a_steps[1:], self.h_steps[1:], strict=True):
                torch.addcmul(b, a, last, out=last)
            into, after = self.into, self.starts(delta, A, state, 1)
        h = into
        for a, now in zip(self.a_steps, self.h_steps, strict=True):
            h = now.addcmul_(a, h)
        return into, h[:, 0].clone() if after is None else after

    def backwards(self, g: Tensor, delta: Tensor, A: Tensor, carry: Tensor) -> Tensor:
        """Turn g, which holds C gy, into the adjoint of every state; returns what goes on to the segment before.

        Args:
            g: (B, chunks * steps, K, N, E).
            delta, A: as in `forwards`.
            carry: a_{t+1} G_{t+1} of the step behind the segment, (B, K, N, E).
        """
        steps, later = self.split(g)[::-1], self.a_steps[:0:-1]  # a_{t+1} for every step but the last
        into, after = carry[:, None], None
        if self.chunks > 1:
            last = self.last.copy_(steps[0])
            for a, c in zip(later, steps[1:], strict=True):
                torch.addcmul(c, a, last, out=last)
            last.mul_(self.a_steps[0])
            into, after = self.into, self.starts(delta, A, carry, -1)
        h = steps[0].add_(into)
        for a, now in zip(later, steps[1:], strict=True):
            h = now.addcmul_(a, h)
        return (h * self.a_steps[0])[:, 0] if after is None else after

    def before(self, into: Tensor) -> Tensor:
        """Turn a into a_t H_{t-1}, with ``into`` before the first step of each chunk."""
        self.a_steps[0].mul_(into)
        a, h = (x.unflatten(1, (self.chunks, self.steps)) for x in (self.a, self.h))
        if self.order.step > 0:
            a[:, :, 1:].mul_(h[:, :, :-1])
        else:
            a[:, :, :-1].mul_(h[:, :, 1:])
        return self.a


def over_states(weights: Tensor, x: Tensor, scratch: Tensor, out: Tensor) -> None:
    """Sum of (B, L, K, N) times (B, L, K, N, E) over N, into (B, L, K, E); may overwrite ``scratch``."""
    if x.shape[-2] * x.shape[-1] < SMALL:
        torch.sum(torch.mul(x, weights[..., None], out=scratch), -2, out=out)
    else:
        out.copy_(torch.matmul(weights[..., None, :], x)[..., 0, :])


def kept_states(size: int, length: int) -> int:
    """How many states are kept for the way back: one before each segment of ``length`` steps of ``size`` elements."""
    return Plan.of(size, length).count(length)


def scan_forward(
    x: Operands, state: Tensor, softplus: bool, reverse: bool, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs without the D term, the last state and, to go back later, the state before each segment.

    Args:
        x: with A as (K, N, E); delta not negative, or what softplus makes so.
        state: before the first step, (B, K, N, E).
        softplus: pass delta through softplus.
        reverse: from the last step to the first.
        keep: whether to keep the states.

    Returns:
        (B, L, K, E), (B, K, N, E) and (S, B, K, N, E) in the order of the scan, S = 0 if none are kept.
    """
    length = x.u.shape[1]
    plan = Plan.of(state.numel(), length)
    y = torch.empty_like(x.u)
    kept = state.new_empty(plan.count(length) if keep else 0, *state.shape)
    work: dict[int, Segment] = {}
    for i, (first, chunks, steps) in enumerate(plan.cuts(length, reverse)):
        if chunks * steps not in work:
            work[chunks * steps] = Segment(chunks, steps, x.u, x.A.shape[1], reverse)
        s, now = work[chunks * steps], slice(first, first + chunks * steps)
        if keep:
            kept[i] = state
        step = F.softplus(x.delta[:, now]) if softplus else x.delta[:, now]
        _, state = s.forwards(step, step * x.u[:, now], x.A, x.B[:, now], state)
        over_states(x.C[:, now], s.h, s.a, y[:, now])
    return y, state, kept


def scan_backward(gy: Tensor, g_state: Tensor, x: Operands, kept: Tensor, softplus: bool, reverse: bool) -> Gradients:
    """Gradients of the operands and of the first state, without those of the D term.

    Args:
        gy: gradient of the outputs, (B, L, K, E).
        g_state: gradient of the last state, (B, K, N, E).
        x, softplus, reverse: as they were given to `scan_forward`.
        kept: of `scan_forward`.
    """
    gu, g_delta, gB, gC = (torch.empty_like(t) for t in (x.u, x.delta, x.B, x.C))
    gA, carry = torch.zeros_like(x.A), g_state
    work: dict[int, tuple[Segment, Tensor]] = {}
    cuts = Plan.of(g_state.numel(), x.u.shape[1]).cuts(x.u.shape[1], not reverse)
    for state, (first, chunks, steps) in zip(kept.flip(0), cuts, strict=True):
        if chunks * steps not in work:
            made = Segment(chunks, steps, x.u, x.A.shape[1], reverse)
            work[chunks * steps] = made, torch.empty_like(made.h)
        (s, g), now = work[chunks * steps], slice(first, first + chunks * steps)
        raw, fed, out, B = x.delta[:, now], x.u[:, now], gy[:, now], x.B[:, now]
        step = F.softplus(raw) if softplus else raw
        du = step * fed
        into = s.forwards(step, du, x.A, B, state)[0].clone()  # the way back uses its memory
        torch.mul(x.C[:, now, :, :, None], out[..., None, :], out=g)
        carry = s.backwards(g, step, x.A, carry)
        gC[:, now] = torch.matmul(s.h, out[..., None])[..., 0]
        gB[:, now] = torch.matmul(g, du[..., None])[..., 0]
        m = s.before(into).mul_(g)  # G a H_{t-1}
        q = torch.empty_like(du)
        over_states(B, g, s.h, q)
        torch.mul(step, q, out=gu[:, now])
        g_step = torch.mul(m, x.A, out=s.h).sum(-2).addcmul_(fed, q)
        g_delta[:, now] = g_step.mul_(raw.sigmoid()) if softplus else g_step
        gA += m.mul_(step[..., None, :]).flatten(0, 1).sum(0)
    return Gradients(gu, g_delta, gA, gB, gC, carry)
