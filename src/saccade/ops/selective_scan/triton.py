"""Selective scan in Triton: tiles of the sequence in parallel, forward and backward, nothing of size L x N stored.

A program owns `TILE` steps of `CHANNELS` channels of one group, with all their states, as a tile (T, N, E):

    states     the state that each tile makes of zero, and the product of its decays (exp of a sum)
    carry      from tile to tile: into_{j+1} = decay_j into_j + last_j; what comes into each is kept for the way back
    outputs    an associative scan along T from what comes in; y = sum over states of C H

The adjoint G_t = C_t gy_t + a_{t+1} G_{t+1} goes the same three steps from the other end, with the decays of the step
behind. As in chunked.py every factor is the exp of a number that is not positive.

Without a GPU the kernels run in Triton's interpreter (``TRITON_INTERPRET=1`` before the first import of triton), which
is how they are tested.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from saccade.ops.selective_scan.operands import Gradients, Operands

__all__ = ["kept_states", "scan_backward", "scan_forward"]

TILE = 32  # steps
CHANNELS = 16
FLAT = 256  # elements of a carrying program


def kept_states(size: int, length: int) -> int:
    """How many states are kept for the way back, for ``length`` steps of whatever size: one before each tile."""
    return -(-length // TILE)


@triton.jit
def _combine(a1, b1, a2, b2):
    """Two affine maps h -> a h + b, the second after the first."""
    return a1 * a2, a2 * b1 + b2


@triton.jit
def _steps(L, REVERSE: tl.constexpr, T: tl.constexpr, shift):
    """Places in memory of the tile's steps, ``shift`` steps on, and whether they exist."""
    t = tl.program_id(2) * T + tl.arange(0, T) + shift
    place = L - 1 - t if REVERSE else t
    return place, t < L


@triton.jit
def _rows(pointer, place, real, K, W, w, inside):
    """(T, width) of a tensor (B, L, K, W), for the program's batch element and group; zero where nothing is."""
    b, k = tl.program_id(0) // K, tl.program_id(0) % K
    return b, (place[:, None] * K + k) * W + w[None, :], real[:, None] & inside[None, :]


@triton.jit
def _load(pointer, place, real, L, K, W, w, inside):
    b, offsets, there = _rows(pointer, place, real, K, W, w, inside)
    return tl.load(pointer + b * L * K * W + offsets, mask=there, other=0.0)


@triton.jit
def _store(pointer, value, place, real, L, K, W, w, inside):
    b, offsets, there = _rows(pointer, place, real, K, W, w, inside)
    tl.store(pointer + b * L * K * W + offsets, value, mask=there)


@triton.jit
def _lanes(N, E, NP: tl.constexpr, EP: tl.constexpr):
    """States and channels of the program, which of them exist, and their places in (N, E)."""
    n, e = tl.arange(0, NP), tl.program_id(1) * EP + tl.arange(0, EP)
    return n, e, n < N, e < E, n[:, None] * E + e[None, :], (n < N)[:, None] & (e < E)[None, :]


@triton.jit
def _states_kernel(
    x, delta, A, w, last, decay, L, K, N, E,
    REVERSE: tl.constexpr, ADJOINT: tl.constexpr, T: tl.constexpr, NP: tl.constexpr, EP: tl.constexpr,
):  # fmt: skip
    """What a tile makes of zero: from u and B, or, backwards, from gy and C."""
    n, e, n_in, e_in, ne, ne_in = _lanes(N, E, NP, EP)
    k = tl.program_id(0) % K
    rate = tl.load(A + k * N * E + ne, mask=ne_in, other=-1.0)
    place, real = _steps(L, REVERSE, T, 0)
    fed = _load(x, place, real, L, K, E, e, e_in)
    weight = _load(w, place, real, L, K, N, n, n_in)
    if ADJOINT:
        onward, there = _steps(L, REVERSE, T, 1)
        step = _load(delta, onward, there, L, K, E, e, e_in)
    else:
        step = _load(delta, place, real, L, K, E, e, e_in)
        fed = fed * step
    a = tl.exp(step[:, None, :] * rate[None, :, :])
    _, h = tl.associative_scan((a, weight[:, :, None] * fed[:, None, :]), 0, _combine, reverse=ADJOINT)
    final = tl.arange(0, T)[:, None, None] == (0 if ADJOINT else T - 1)
    there = (tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)) * N * E + ne
    tl.store(last + there, tl.sum(tl.where(final, h, 0.0), 0), mask=ne_in)
    tl.store(decay + there, tl.exp(tl.sum(step, 0)[None, :] * rate), mask=ne_in)


@triton.jit
def _carry_kernel(last, decay, into, start, end, S, SIZE, BACK: tl.constexpr, P: tl.constexpr):
    """Hand the state on from tile to tile."""
    i = tl.program_id(0) * P + tl.arange(0, P)
    there = i < SIZE
    h = tl.load(start + i, mask=there, other=0.0)
    for s in range(S):
        j = S - 1 - s if BACK else s
        tl.store(into + j * SIZE + i, h, mask=there)
        a = tl.load(decay + j * SIZE + i, mask=there, other=0.0)
        h = a * h + tl.load(last + j * SIZE + i, mask=there, other=0.0)
    tl.store(end + i, h, mask=there)


@triton.jit
def _outputs_kernel(
    u, delta, A, B, C, into, y, L, K, N, E,
    REVERSE: tl.constexpr, T: tl.constexpr, NP: tl.constexpr, EP: tl.constexpr,
):  # fmt: skip
    """y of a tile from the state that comes in."""
    n, e, n_in, e_in, ne, ne_in = _lanes(N, E, NP, EP)
    k = tl.program_id(0) % K
    rate = tl.load(A + k * N * E + ne, mask=ne_in, other=-1.0)
    place, real = _steps(L, REVERSE, T, 0)
    step = _load(delta, place, real, L, K, E, e, e_in)
    fed = step * _load(u, place, real, L, K, E, e, e_in)
    b = _load(B, place, real, L, K, N, n, n_in)
    c = _load(C, place, real, L, K, N, n, n_in)
    there = (tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)) * N * E + ne
    start = tl.load(into + there, mask=ne_in, other=0.0)
    a = tl.exp(step[:, None, :] * rate[None, :, :])
    through, h = tl.associative_scan((a, b[:, :, None] * fed[:, None, :]), 0, _combine)
    h += through * start[None, :, :]
    _store(y, tl.sum(h * c[:, :, None], 1), place, real, L, K, E, e, e_in)


@triton.jit
def _gradients_kernel(
    gy, u, delta, A, B, C, into, behind, gu, gdelta, gA, gB, gC, L, K, N, E,
    REVERSE: tl.constexpr, T: tl.constexpr, NP: tl.constexpr, EP: tl.constexpr,
):  # fmt: skip
    """All gradients of a tile, from the state that comes in and the adjoint of the first step behind it."""
    n, e, n_in, e_in, ne, ne_in = _lanes(N, E, NP, EP)
    k = tl.program_id(0) % K
    rate = tl.load(A + k * N * E + ne, mask=ne_in, other=-1.0)
    place, real = _steps(L, REVERSE, T, 0)
    onward, later = _steps(L, REVERSE, T, 1)
    out = _load(gy, place, real, L, K, E, e, e_in)
    step = _load(delta, place, real, L, K, E, e, e_in)
    x = _load(u, place, real, L, K, E, e, e_in)
    b = _load(B, place, real, L, K, N, n, n_in)
    c = _load(C, place, real, L, K, N, n, n_in)
    there = (tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)) * N * E + ne
    start = tl.load(into + there, mask=ne_in, other=0.0)
    last = tl.load(behind + there, mask=ne_in, other=0.0)

    fed = b[:, :, None] * (step * x)[:, None, :]
    a = tl.exp(step[:, None, :] * rate[None, :, :])
    through, h = tl.associative_scan((a, fed), 0, _combine)
    h += through * start[None, :, :]
    a_on = tl.exp(_load(delta, onward, later, L, K, E, e, e_in)[:, None, :] * rate[None, :, :])
    through, g = tl.associative_scan((a_on, c[:, :, None] * out[:, None, :]), 0, _combine, reverse=True)
    g += through * last[None, :, :]

    m = g * (h - fed)  # G a H_{t-1}
    q = tl.sum(g * b[:, :, None], 1)
    _store(gu, step * q, place, real, L, K, E, e, e_in)
    _store(gdelta, x * q + tl.sum(m * rate[None, :, :], 1), place, real, L, K, E, e, e_in)
    tl.store(gA + there, tl.sum(m * step[:, None, :], 0), mask=ne_in)
    block = tl.program_id(1) * (tl.num_programs(0) // K) * L * K * N
    _store(gB + block, tl.sum(g * (step * x)[:, None, :], 2), place, real, L, K, N, n, n_in)
    _store(gC + block, tl.sum(h * out[:, None, :], 2), place, real, L, K, N, n, n_in)


def _sizes(u: Tensor, A: Tensor) -> tuple[tuple[int, int, int], tuple[int, int, int, int], dict[str, int]]:
    """The grid, (L, K, N, E) and the constants of a tile."""
    batch, length, groups, each = u.shape
    states = A.shape[1]
    padded = max(triton.next_power_of_2(each), 1)
    lanes = {"T": TILE, "NP": triton.next_power_of_2(states), "EP": min(CHANNELS, padded)}
    grid = (batch * groups, triton.cdiv(each, lanes["EP"]), triton.cdiv(length, TILE))
    return grid, (length, groups, states, each), lanes


def _handed_on(
    x: Tensor, delta: Tensor, A: Tensor, w: Tensor, start: Tensor, reverse: bool, adjoint: bool
) -> tuple[Tensor, Tensor]:
    """What comes into each tile, (S, B, K, N, E), and what the last of them leaves."""
    grid, sizes, lanes = _sizes(x, A)
    last, decay, into = (start.new_empty(grid[2], *start.shape) for _ in range(3))
    _states_kernel[grid](x, delta, A, w, last, decay, *sizes, REVERSE=reverse, ADJOINT=adjoint, **lanes)
    end, size = torch.empty_like(start), start.numel()
    _carry_kernel[(triton.cdiv(size, FLAT),)](last, decay, into, start, end, grid[2], size, BACK=adjoint, P=FLAT)
    return into, end


def _on_device(tensor: Tensor) -> Any:
    """Make the tensor's GPU the current one: Triton launches there."""
    return torch.cuda.device_of(tensor)


def _contiguous(x: Operands, softplus: bool) -> Operands:
    """As the kernels read them, with final step sizes."""
    x = x._replace(delta=F.softplus(x.delta)) if softplus else x
    return Operands(*(t.contiguous() for t in x))


def scan_forward(
    x: Operands, state: Tensor, softplus: bool, reverse: bool, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As `saccade.ops.selective_scan.chunked.scan_forward`."""
    y, state = torch.empty_like(x.u), state.contiguous()
    u, delta, A, B, C = _contiguous(x, softplus)
    with _on_device(u):
        into, end = _handed_on(u, delta, A, B, state, reverse, adjoint=False)
        grid, sizes, lanes = _sizes(u, A)
        made = torch.empty_like(u)
        _outputs_kernel[grid](u, delta, A, B, C, into, made, *sizes, REVERSE=reverse, **lanes)
    return y.copy_(made) if y.stride() != made.stride() else made, end, into if keep else into[:0].clone()


def scan_backward(gy: Tensor, g_state: Tensor, x: Operands, kept: Tensor, softplus: bool, reverse: bool) -> Gradients:
    """As `saccade.ops.selective_scan.chunked.scan_backward`."""
    gy, g_state = gy.contiguous(), g_state.contiguous()
    u, delta, A, B, C = _contiguous(x, softplus)
    grid, sizes, lanes = _sizes(u, A)
    gu, g_delta, gA = torch.empty_like(u), torch.empty_like(u), torch.empty_like(kept)
    gB, gC = (u.new_empty(grid[1], *B.shape) for _ in range(2))  # a part from each block of channels
    with _on_device(u):
        behind, first = _handed_on(gy, delta, A, C, g_state, reverse, adjoint=True)
        _gradients_kernel[grid](
            gy, u, delta, A, B, C, kept, behind, gu, g_delta, gA, gB, gC, *sizes, REVERSE=reverse, **lanes
        )
    begin = delta[:, -1 if reverse else 0]  # (B, K, E)
    if softplus:
        g_delta *= x.delta.sigmoid()
    g_state = first * torch.exp(begin[:, :, None] * A)
    return Gradients(gu, g_delta, gA.sum((0, 1)), gB.sum(0), gC.sum(0), g_state)
