"""Selective scan compiled by Numba: one pass over the sequence, a block of channels at a time, no work tensors.

A unit of work is `LANES` channels of one group and batch element. Its states (N, LANES) stay in the processor's first
cache while the sequence goes by; each step reads its inputs where they lie and writes its outputs where they belong:

    delta = softplus(...)                           (LANES), in registers
    h[n] = 2^(delta A[n] log2 e) h[n] + delta u B[n]      a loop over states around one over lanes, which is vectorised
    y = sum over n of C[n] h[n]

The exponential is a polynomial on the fraction and the exponent's bits, within 2 units in the last place, and exactly
0 below 2^-125; in float64 it is the C library's, one number at a time.

Backward keeps the state before every `STEPS` steps. A segment's decays and states are made again, (STEPS, N, LANES)
each, in the second cache, then it is gone through from its end; the equations are those of chunked.py.

Units are shared out among PyTorch's number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from numba import types
from numba.extending import intrinsic, overload
from torch import Tensor

from saccade.ops.compiled import FUSED, SUMMED, compiled, on_all_threads
from saccade.ops.selective_scan.operands import Gradients, Operands

__all__ = ["kept_states", "scan_backward", "scan_forward"]

LANES = 24  # channels: whole vectors of 4 and 8, and a divisor of the usual widths
STEPS = 64  # between kept states; decays and states of so many are to stay in the second cache
ALONE = 1 << 18  # updates of a state below which a second thread takes longer to start than it saves

Sizes = tuple[int, int, int, int, int]  # B, L, K, E, N
Strides = tuple[int, ...]  # over B, L and K


# -- exp and softplus as the vector units can do them

_F = np.float32
SHIFT = _F(1.5 * 2**23)  # added, it leaves the nearest whole number in the low bits
LOG2E = _F(math.log2(math.e))
LOG2E_REST = _F(math.log2(math.e) - float(LOG2E))
LEAST = _F(-125)  # below, 2^x is taken as 0
#: 2^x on [-1/2, 1/2], x to x^6, least greatest relative error 2e-9 before rounding (weighted least squares, iterated)
P1, P2, P3, P4, P5, P6 = (
    _F(c) for c in (0.6931471825, 0.2402264774, 0.05550332367, 0.009618436918, 0.001339887385, 0.0001535336196)
)
#: atanh(s) / s - 1 by powers of s^2
Q3, Q5, Q7, Q9, Q11, Q13 = (_F(1 / n) for n in (3, 5, 7, 9, 11, 13))
NONE, ONE, TWO, MANTISSA = _F(0), _F(1), _F(2), np.int32(23)


def _reread(source: Any, target: Any) -> Any:
    """In compiled code: the bits of one type as those of another."""

    def typed(_: Any, x: Any) -> Any:
        return target(source), lambda context, builder, *rest: builder.bitcast(
            rest[1][0], context.get_value_type(target)
        )

    return intrinsic(typed)


_bits, _float = _reread(types.float32, types.int32), _reread(types.int32, types.float32)


@compiled(FUSED)
def _power(shifted: Any, r: Any) -> Any:
    """2^(k + r), with k in the low bits of ``shifted`` and r in [-1/2, 1/2]; float32."""
    p = ONE + r * (P1 + r * (P2 + r * (P3 + r * (P4 + r * (P5 + r * P6)))))
    return _float(np.int32(_bits(p) + np.int32(_bits(shifted) << MANTISSA)))


@compiled(FUSED)
def _exp2_single(x: Any) -> Any:
    shifted = x + SHIFT
    power = _power(shifted, x - (shifted - SHIFT))
    return power if x > LEAST else NONE


@compiled(FUSED)
def _exp_single(x: Any) -> Any:
    """exp of a float32 not above 0; the product with log2(e) is carried further than a float32."""
    shifted = x * LOG2E + SHIFT
    power = _power(shifted, (x * LOG2E - (shifted - SHIFT)) + x * LOG2E_REST)
    return power if x * LOG2E > LEAST else NONE


@compiled(FUSED)
def _softplus_single(x: Any) -> Any:
    """max(x, 0) + log(1 + z) with z = exp(-|x|) and log(1 + z) = 2 atanh(z / (2 + z))."""
    z = _exp_single(-abs(x))
    s = z / (TWO + z)
    q = s * s
    series = q * (Q3 + q * (Q5 + q * (Q7 + q * (Q9 + q * (Q11 + q * Q13)))))
    return (x if x > NONE else NONE) + TWO * (s + s * series)


@compiled(FUSED)
def _sigmoid_single(x: Any) -> Any:
    z = _exp_single(-abs(x))
    return (ONE if x >= NONE else z) / (ONE + z)


def _exp2(x: float) -> float:
    """2^x for x not above 0."""
    return 2.0**x


def _softplus(x: float) -> float:
    """log(1 + e^x)."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def _sigmoid(x: float) -> float:
    """1 / (1 + e^-x)."""
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x))


def _by_width(double: Callable[[float], float], single: Any) -> None:
    """In compiled code ``double`` is itself for float64, and ``single`` for float32."""
    itself = numba.njit(double)
    # lambdas: Numba wants the same argument, without a type, in what chooses and in what is chosen
    overload(double)(lambda x: (lambda x: single(x)) if x == types.float32 else (lambda x: itself(x)))


_by_width(_exp2, _exp2_single)
_by_width(_softplus, _softplus_single)
_by_width(_sigmoid, _sigmoid_single)


# -- the passes over the sequence
#
# A tensor comes as all of its memory, flat, and its strides over (B, L, K): the innermost is 1, which the compiler
# must know to load vectors.


@compiled(FUSED)
def _place(unit: Any, sizes: Any) -> Any:
    """(batch element, group, first channel, channels) of a unit."""
    _, _, groups, each, _ = sizes
    blocks = (each + LANES - 1) // LANES
    low = unit % blocks * LANES
    return unit // blocks // groups, unit // blocks % groups, low, min(LANES, each - low)


@compiled(FUSED)
def _load(x: Any, first: Any, count: Any, i: Any, into: Any) -> None:
    """The channels of one place, into row ``i`` of (steps, LANES)."""
    if count == LANES:
        for e in range(LANES):
            into[i, e] = x[first + e]
    else:
        for e in range(count):
            into[i, e] = x[first + e]
        for e in range(count, LANES):
            into[i, e] = 0


@compiled(FUSED)
def _store(value: Any, x: Any, first: Any, count: Any) -> None:
    if count == LANES:
        for e in range(LANES):
            x[first + e] = value[e]
    else:
        for e in range(count):
            x[first + e] = value[e]


@compiled(FUSED)
def _load_states(x: Any, low: Any, count: Any, into: Any) -> None:
    """(N, E) from channel ``low`` on, into (N, LANES)."""
    for n in range(x.shape[0]):
        for e in range(LANES):
            into[n, e] = x[n, low + e] if e < count else 0


@compiled(FUSED)
def _store_states(value: Any, x: Any, low: Any, count: Any) -> None:
    for n in range(x.shape[0]):
        for e in range(count):
            x[n, low + e] = value[n, e]


@compiled(FUSED)
def _inputs(
    b: int, k: int, low: int, count: int, first: int, steps: int, sizes: Sizes, reverse: bool, softplus: bool,
    delta: np.ndarray, ds: Strides, u: np.ndarray, us: Strides,
    raw: np.ndarray, step: np.ndarray, x: np.ndarray, fed: np.ndarray,
) -> None:  # fmt: skip
    """Fill the buffers (STEPS, LANES) of a segment: delta as it is and as it is used, u, and the two multiplied."""
    for i in range(steps):
        t = sizes[1] - 1 - first - i if reverse else first + i
        _load(delta, b * ds[0] + t * ds[1] + k * ds[2] + low, count, i, raw)
        _load(u, b * us[0] + t * us[1] + k * us[2] + low, count, i, x)
    flat_raw, flat_step, flat_x, flat_fed = raw.reshape(-1), step.reshape(-1), x.reshape(-1), fed.reshape(-1)
    for j in range(steps * LANES):  # in one go: vectors as long as they come
        flat_step[j] = _softplus(flat_raw[j]) if softplus else flat_raw[j]
    for j in range(steps * LANES):
        flat_fed[j] = flat_step[j] * flat_x[j]


@compiled(FUSED)
def _advance(
    i: int, states: int, step: np.ndarray, rate: np.ndarray, fed: np.ndarray, B: np.ndarray, at_b: int,
    C: np.ndarray, at_c: int, h: np.ndarray, out: np.ndarray,
) -> None:  # fmt: skip
    """Step ``i`` of a segment for all states, and what is read out of them. (No views: each would be counted.)"""
    for e in range(LANES):
        out[e] = 0
    for n in range(states):
        into, outof = B[at_b + n], C[at_c + n]
        for e in range(LANES):
            state = _exp2(step[i, e] * rate[n, e]) * h[n, e] + fed[i, e] * into
            h[n, e] = state
            out[e] += state * outof


@compiled(FUSED)
def _forward(
    first: int, every: int, sizes: Sizes, reverse: bool, softplus: bool, u: np.ndarray, us: Strides,
    delta: np.ndarray, ds: Strides, rates: np.ndarray, B: np.ndarray, bs: Strides, C: np.ndarray, cs: Strides,
    start: np.ndarray, kept: np.ndarray, y: np.ndarray, ys: Strides, last: np.ndarray,
) -> None:  # fmt: skip
    """Units ``first``, ``first + every``, ... of the whole."""
    batch, length, groups, each, states = sizes
    rate, h, out = np.empty((states, LANES), u.dtype), np.empty((states, LANES), u.dtype), np.empty(LANES, u.dtype)
    buffers = np.empty((4, STEPS, LANES), u.dtype)
    raw, step, x, fed = buffers[0], buffers[1], buffers[2], buffers[3]
    for unit in range(first, batch * groups * ((each + LANES - 1) // LANES), every):
        b, k, low, count = _place(unit, sizes)
        _load_states(rates[k], low, count, rate)
        _load_states(start[b, k], low, count, h)
        for begin in range(0, length, STEPS):
            steps = min(STEPS, length - begin)
            if kept.shape[0]:
                _store_states(h, kept[begin // STEPS, b, k], low, count)
            _inputs(b, k, low, count, begin, steps, sizes, reverse, softplus, delta, ds, u, us, raw, step, x, fed)
            for i in range(steps):
                t = length - 1 - begin - i if reverse else begin + i
                at_b, at_c = b * bs[0] + t * bs[1] + k * bs[2], b * cs[0] + t * cs[1] + k * cs[2]
                _advance(i, states, step, rate, fed, B, at_b, C, at_c, h, out)
                _store(out, y, b * ys[0] + t * ys[1] + k * ys[2] + low, count)
        _store_states(h, last[b, k], low, count)


@compiled(FUSED)
def _segment(
    steps: int, states: int, step: np.ndarray, fed: np.ndarray, into: np.ndarray, rate: np.ndarray,
    decays: np.ndarray, path: np.ndarray,
) -> None:  # fmt: skip
    """Decays (STEPS, N, LANES) of a segment and its states, (STEPS + 1, N, LANES), from the one that comes in."""
    for i in range(steps):
        for n in range(states):
            for e in range(LANES):
                a = _exp2(step[i, e] * rate[n, e])
                decays[i, n, e] = a
                path[i + 1, n, e] = a * path[i, n, e] + fed[i, e] * into[i, n]


@compiled(SUMMED)
def _adjoint(
    i: int, n: int, into: float, outof: float, gy: np.ndarray, fed: np.ndarray, step: np.ndarray, rate: np.ndarray,
    path: np.ndarray, decays: np.ndarray, carry: np.ndarray, q: np.ndarray, g_step: np.ndarray, g_rate: np.ndarray,
) -> tuple[float, float]:  # fmt: skip
    """One state of one step: hands ``carry`` on to the step before, adds to gradients; returns those of B and C."""
    g_into, g_outof = gy[i, 0] * 0, gy[i, 0] * 0
    for e in range(LANES):
        g = outof * gy[i, e] + carry[n, e]
        g_outof += path[i + 1, n, e] * gy[i, e]
        g_into += g * fed[i, e]
        q[e] += g * into
        onward = g * decays[i, n, e]
        carry[n, e] = onward
        m = onward * path[i, n, e]
        g_step[e] += m * rate[n, e]
        g_rate[n, e] += m * step[i, e]
    return g_into, g_outof


@compiled(FUSED)
def _backward(
    first: int, every: int, sizes: Sizes, reverse: bool, softplus: bool, u: np.ndarray, us: Strides,
    delta: np.ndarray, ds: Strides, A: np.ndarray, rates: np.ndarray, B: np.ndarray, bs: Strides,
    C: np.ndarray, cs: Strides, gy: np.ndarray, gs: Strides, g_state: np.ndarray, kept: np.ndarray,
    gu: np.ndarray, gus: Strides, g_delta: np.ndarray, gds: Strides,
    gA: np.ndarray, gB: np.ndarray, gC: np.ndarray, g_start: np.ndarray,
) -> None:  # fmt: skip
    """Units of the whole, as `_forward`; gA, gB and gC are parts, to be summed over batch or blocks of channels."""
    batch, length, groups, each, states = sizes
    blocks, kind = (each + LANES - 1) // LANES, u.dtype
    per_unit = np.empty((4, states, LANES), kind)
    exact, rate, carry, g_rate = per_unit[0], per_unit[1], per_unit[2], per_unit[3]
    buffers = np.empty((4, STEPS, LANES), kind)
    raw, step, x, fed = buffers[0], buffers[1], buffers[2], buffers[3]
    weights = np.empty((STEPS, states), kind)
    decays, path = np.empty((STEPS, states, LANES), kind), np.empty((STEPS + 1, states, LANES), kind)
    out, q, g_step = np.empty((STEPS, LANES), kind), np.empty(LANES, kind), np.empty(LANES, kind)
    for unit in range(first, batch * groups * blocks, every):
        b, k, low, count = _place(unit, sizes)
        _load_states(A[k], low, count, exact)
        _load_states(rates[k], low, count, rate)
        _load_states(g_state[b, k], low, count, carry)
        g_rate[:] = 0
        for segment in range((length + STEPS - 1) // STEPS - 1, -1, -1):
            begin = segment * STEPS
            steps = min(STEPS, length - begin)
            _load_states(kept[segment, b, k], low, count, path[0])
            _inputs(b, k, low, count, begin, steps, sizes, reverse, softplus, delta, ds, u, us, raw, step, x, fed)
            for i in range(steps):
                t = length - 1 - begin - i if reverse else begin + i
                for n in range(states):
                    weights[i, n] = B[b * bs[0] + t * bs[1] + k * bs[2] + n]
            _segment(steps, states, step, fed, weights, rate, decays, path)
            for i in range(steps - 1, -1, -1):
                t = length - 1 - begin - i if reverse else begin + i
                _load(gy, b * gs[0] + t * gs[1] + k * gs[2] + low, count, i, out)
                q[:] = 0
                g_step[:] = 0
                at_c = b * cs[0] + t * cs[1] + k * cs[2]
                for n in range(states):
                    sums = _adjoint(
                        i, n, weights[i, n], C[at_c + n], out, fed, step, exact, path, decays, carry, q, g_step, g_rate
                    )  # fmt: skip
                    gB[unit % blocks, b, t, k, n], gC[unit % blocks, b, t, k, n] = sums
                for e in range(LANES):
                    g_step[e] += x[i, e] * q[e]
                    q[e] *= step[i, e]
                if softplus:
                    for e in range(LANES):
                        g_step[e] *= _sigmoid(raw[i, e])
                _store(q, gu, b * gus[0] + t * gus[1] + k * gus[2] + low, count)
                _store(g_step, g_delta, b * gds[0] + t * gds[1] + k * gds[2] + low, count)
        _store_states(carry, g_start[b, k], low, count)
        _store_states(g_rate, gA[b, k], low, count)


# -- from tensors


def kept_states(size: int, length: int) -> int:
    """How many states are kept for the way back, for ``length`` steps of whatever size."""
    return -(-length // STEPS)


def _flat(x: Tensor) -> tuple[np.ndarray, tuple[int, ...]]:
    """All memory from the first to the last element of (B, L, K, W), and the strides of the first three."""
    x = x.detach() if x.stride(-1) == 1 else x.detach().contiguous()
    extent = 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
    return x.as_strided((extent,), (1,)).numpy(), x.stride()[:3]


def _to_fill(like: Tensor) -> tuple[Tensor, Tensor]:
    """Memory in the order of ``like``, and where to write to: the same if its channels lie side by side."""
    made = torch.empty_like(like)
    return made, made if made.stride(-1) == 1 else torch.empty_like(like, memory_format=torch.contiguous_format)


def _filled(made: Tensor, written: Tensor) -> Tensor:
    return made if made is written else made.copy_(written)


def _whole(x: Tensor) -> np.ndarray:
    return x.detach().contiguous().numpy()


def _sizes(x: Operands) -> Sizes:
    """(B, L, K, E, N)."""
    batch, length, groups, each = x.u.shape
    return batch, length, groups, each, x.A.shape[1]


def _shared(kernel: Any, sizes: tuple[int, ...], *arguments: Any) -> None:
    """Run all units, on as many threads as PyTorch would take."""
    batch, length, groups, each, states = sizes
    units = batch * groups * -(-each // LANES)
    worth = batch * length * groups * each * states // ALONE
    on_all_threads(kernel, min(units, worth), sizes, *arguments)


def scan_forward(
    x: Operands, state: Tensor, softplus: bool, reverse: bool, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As `saccade.ops.selective_scan.chunked.scan_forward`."""
    (made, y), last = _to_fill(x.u), torch.empty_like(state, memory_format=torch.contiguous_format)
    kept = state.new_empty(kept_states(state.numel(), x.u.shape[1]) if keep else 0, *state.shape)
    rates = _whole(x.A * math.log2(math.e))
    _shared(
        _forward, _sizes(x), reverse, softplus, *_flat(x.u), *_flat(x.delta), rates, *_flat(x.B), *_flat(x.C),
        _whole(state), kept.numpy(), *_flat(y), last.numpy(),
    )  # fmt: skip
    return _filled(made, y), last, kept


def scan_backward(gy: Tensor, g_state: Tensor, x: Operands, kept: Tensor, softplus: bool, reverse: bool) -> Gradients:
    """As `saccade.ops.selective_scan.chunked.scan_backward`."""
    sizes = _sizes(x)
    batch, _, _, each, _ = sizes
    (made_u, gu), (made_delta, g_delta) = _to_fill(x.u), _to_fill(x.delta)
    gA, start = kept.new_empty(batch, *x.A.shape), torch.empty_like(g_state, memory_format=torch.contiguous_format)
    gB, gC = (kept.new_empty(-(-each // LANES), *x.B.shape) for _ in range(2))  # a part from each block of channels
    _shared(
        _backward, sizes, reverse, softplus, *_flat(x.u), *_flat(x.delta), _whole(x.A),
        _whole(x.A * math.log2(math.e)), *_flat(x.B), *_flat(x.C), *_flat(gy), _whole(g_state), _whole(kept),
        *_flat(gu), *_flat(g_delta), gA.numpy(), gB.numpy(), gC.numpy(), start.numpy(),
    )  # fmt: skip
    return Gradients(_filled(made_u, gu), _filled(made_delta, g_delta), gA.sum(0), gB.sum(0), gC.sum(0), start)
