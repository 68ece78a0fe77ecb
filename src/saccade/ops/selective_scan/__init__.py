"""Selective scan, the recurrence of Mamba: a state that decays and is fed as each element of a sequence says.

Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", arXiv:2312.00752, in the grouped form of
VMamba (arXiv:2401.10166). naive.py is the truth, chunked.py the path of the processor, triton.py that of a GPU.
"""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.cost import register_macs
from saccade.errors import InputError, UnavailableError, UsageError
from saccade.ops.selective_scan.naive import selective_scan_naive

__all__ = ["scan_tokens", "selective_scan", "selective_scan_naive"]

Path = Literal["auto", "naive", "chunked", "triton"]


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    softplus: bool = False,
    reverse: bool = False,
    state: Tensor | None = None,
    return_state: bool = False,
    path: Path = "auto",
) -> Any:
    """Scan sequences with input-dependent decay.

    For each batch element and channel c of group k, with a state h of N numbers:

        delta'_t = softplus(delta_t + bias_c)      (each only if asked for)
        h_t = exp(delta'_t A_c) * h_{t-1} + delta'_t u_t B_t
        y_t = <C_t, h_t> + D_c u_t

    B and C belong to a group and are shared by its channels. The decay is exact (zero-order hold), the input's
    discretisation is Euler's, as in Mamba. Time and memory are linear in L; the states (L times N numbers a channel)
    are never stored, gradients recompute them. Half precision is computed in float32.

    Args:
        u: input, (B, K*E, L) floating point, L >= 1.
        delta: step sizes, (B, K*E, L); not negative unless ``softplus``.
        A: decay rates, (K*E, N), all negative.
        B, C: input and output weights, (B, K, N, L).
        D: weight of the input in the output, (K*E,), or None.
        delta_bias: added to delta, (K*E,), or None.
        softplus: pass delta (and its bias) through softplus.
        reverse: run from the last element to the first; equals flipping every sequence before and y after.
        state: h before the first step, (B, K*E, N); zero if None. Carries a scan from one piece to the next.
        return_state: return (y, h after the last step) instead of y alone.
        path: ``"auto"`` takes Triton on a GPU and the chunked path elsewhere; ``"naive"`` loops over time.

    Returns:
        (B, K*E, L) in u's dtype, and with ``return_state`` the state (B, K*E, N) in the dtype it was computed in.
        Differentiable once in every tensor.

    Raises:
        InputError: shapes that do not go together, an empty sequence, A that is not negative (the state would grow
            without bound), or, looked at on the processor only, a delta that is negative, infinite or NaN.
        UsageError: an unknown path.
        UnavailableError: Triton is asked for and not installed.
    """
    if u.ndim != 3 or not u.is_floating_point():
        raise InputError(f"a selective scan takes u as floating point (B, channels, L), not {u.dtype} {tuple(u.shape)}")
    if B.ndim != 4 or not B.shape[1] or not B.shape[2] or u.shape[1] % B.shape[1]:
        raise InputError(
            f"B is to be (batch, groups, states, L), with groups that divide u's {u.shape[1]} channels, "
            f"not {tuple(B.shape)}"
        )
    (batch, channels, length), (groups, states) = u.shape, B.shape[1:3]
    _check_shapes(
        {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "delta_bias": delta_bias, "state": state},
        {
            "delta": (batch, channels, length),
            "A": (channels, states),
            "B": (batch, groups, states, length),
            "C": (batch, groups, states, length),
            "D": (channels,),
            "delta_bias": (channels,),
            "state": (batch, channels, states),
        },
    )

    def grouped(x: Tensor | None, dim: int) -> Tensor | None:
        return None if x is None else x.unflatten(dim, (groups, -1))

    y, h = scan_tokens(
        u.unflatten(1, (groups, -1)).permute(0, 3, 1, 2),
        delta.unflatten(1, (groups, -1)).permute(0, 3, 1, 2),
        A.unflatten(0, (groups, -1)),
        B.permute(0, 3, 1, 2),
        C.permute(0, 3, 1, 2),
        grouped(D, 0),
        grouped(delta_bias, 0),
        softplus=softplus,
        reverse=reverse,
        state=grouped(state, 1),
        path=path,
    )
    y = y.permute(0, 2, 3, 1).flatten(1, 2)
    return (y, h.flatten(1, 2)) if return_state else y


def scan_tokens(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    softplus: bool = False,
    reverse: bool = False,
    state: Tensor | None = None,
    path: Path = "auto",
) -> tuple[Tensor, Tensor]:
    """`selective_scan` with channels innermost: the order that networks on tokens hold, read without a copy.

    Args:
        u, delta: (B, L, K, E).
        A: (K, E, N).
        B, C: (B, L, K, N).
        D, delta_bias: (K, E), or None.
        softplus, reverse, path: as in `selective_scan`.
        state: (B, K, E, N), or None.

    Returns:
        The outputs (B, L, K, E) and the last state (B, K, E, N).

    Raises:
        InputError, UsageError, UnavailableError: as in `selective_scan`.
    """
    if u.ndim != 4 or not u.is_floating_point() or A.ndim != 3:
        raise InputError(
            f"a scan of tokens takes u as floating point (B, L, groups, channels) and A with 3 dimensions, "
            f"not {u.dtype} {tuple(u.shape)} and {tuple(A.shape)}"
        )
    (batch, length, groups, each), states = u.shape, A.shape[2]
    _check_shapes(
        {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "delta_bias": delta_bias, "state": state},
        {
            "delta": tuple(u.shape),
            "A": (groups, each, states),
            "B": (batch, length, groups, states),
            "C": (batch, length, groups, states),
            "D": (groups, each),
            "delta_bias": (groups, each),
            "state": (batch, groups, each, states),
        },
    )
    if not length:
        raise InputError("a selective scan needs a sequence of at least one element")
    _check_values(delta, A, softplus)
    kind = u.dtype
    wide = torch.float64 if kind == torch.float64 else torch.float32
    u, delta, A, B, C = (x.to(wide) for x in (u, delta, A, B, C))
    D, delta_bias, state = (None if x is None else x.to(wide) for x in (D, delta_bias, state))
    if delta_bias is not None:
        delta = delta + delta_bias
    if softplus:
        delta = F.softplus(delta)
    h = u.new_zeros(batch, groups, each, states) if state is None else state
    y, h = _run(u, delta, A, B, C, h, reverse, path)
    return (y if D is None else torch.addcmul(y, u, D)).to(kind), h


def _run(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor, reverse: bool, path: Path
) -> tuple[Tensor, Tensor]:
    """By the path that is asked for; delta is final, and all is in one dtype."""
    if path == "naive":
        y, last = selective_scan_naive(
            u.flatten(2).transpose(1, 2),
            delta.flatten(2).transpose(1, 2),
            A.flatten(0, 1),
            B.permute(0, 2, 3, 1),
            C.permute(0, 2, 3, 1),
            reverse=reverse,
            state=h.flatten(1, 2),
        )
        return y.transpose(1, 2).unflatten(2, u.shape[2:]), last.unflatten(1, u.shape[2:])
    if path not in ("auto", "chunked", "triton"):
        raise UsageError(f"a selective scan runs by 'auto', 'naive', 'chunked' or 'triton', not by {path!r}")
    found = importlib.util.find_spec("triton") is not None
    if path == "triton" and not found:
        raise UnavailableError("Triton is not installed: pip install triton")
    kernels = path == "triton" or (path == "auto" and u.is_cuda and found)
    A, h = (x.transpose(-1, -2).contiguous() for x in (A, h))  # states before channels
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in (u, delta, A, B, C, h))
    y, last, _ = _operator(u, delta, A, B, C, h, reverse, keep, kernels)
    return y, last.transpose(-1, -2)


# -- checks


def _check_shapes(given: dict[str, Tensor | None], wanted: dict[str, tuple[int, ...]]) -> None:
    """Refuse what does not go together, naming the first tensor that does not fit."""
    for name, shape in wanted.items():
        tensor = given[name]
        if tensor is not None and tuple(tensor.shape) != shape:
            u = tuple(given["u"].shape) if given["u"] is not None else ()
            raise InputError(f"{name} is {tuple(tensor.shape)}; with u {u} it is to be {shape}")


def _check_values(delta: Tensor, A: Tensor, softplus: bool) -> None:
    """Refuse a recurrence that grows or is undefined; values are looked at where that needs no waiting."""
    if torch.compiler.is_compiling() or delta.device.type != "cpu" or A.device.type != "cpu" or not delta.numel():
        return
    if not bool((A < 0).all() & torch.isfinite(A).all()):
        raise InputError("A is to be negative and finite: the state would grow without bound, or is undefined")
    order = sorted(range(delta.ndim), key=delta.stride, reverse=True)  # as it lies in memory: no copy is made
    low, high = (float(x) for x in torch.aminmax(delta.detach().permute(order)))
    if not (low > -torch.inf and high < torch.inf):
        raise InputError("delta holds values that are infinite or not a number")
    if low < 0 and not softplus:
        raise InputError(f"delta is to be positive without softplus; it goes down to {low:.3g}")


# -- the operator: opaque to compilers and to the ledger of costs, with channels innermost
#
# Declared by hand: `torch.library.custom_op` imports the compiler at its first call, which takes seconds.

_LIBRARY = torch.library.Library("saccade", "FRAGMENT")
_LIBRARY.define(
    "selective_scan(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor state, "
    "bool reverse, bool keep, bool kernels) -> (Tensor, Tensor, Tensor)"
)
_LIBRARY.define(
    "selective_scan_backward(Tensor gy, Tensor g_state, Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, "
    "Tensor kept, bool reverse, bool kernels) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_operator = torch.ops.saccade.selective_scan
Six = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def _forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, reverse: bool, keep: bool, kernels: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(outputs (B, L, K, E), last state (B, K, N, E), states kept for the way back (S, B, K, N, E))."""
    if not u.numel():
        return _forward_shapes(u, delta, A, B, C, state, reverse, keep, kernels)
    made: tuple[Tensor, Tensor, Tensor] = _runner(kernels).scan_forward(u, delta, A, B, C, state, reverse, keep)
    return made


def _forward_shapes(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, reverse: bool, keep: bool, kernels: bool
) -> tuple[Tensor, Tensor, Tensor]:
    count = _runner(kernels).Plan.of(state.numel(), u.shape[1]).count(u.shape[1]) if keep else 0
    return torch.empty_like(u), torch.empty_like(state), state.new_empty(count, *state.shape)


def _backward(
    gy: Tensor,
    g_state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    kept: Tensor,
    reverse: bool,
    kernels: bool,
) -> Six:
    """Gradients of u, delta, A, B, C and the first state."""
    if not u.numel():
        return tuple(torch.zeros_like(x) for x in (u, delta, A, B, C, g_state))  # type: ignore[return-value]
    made: Six = _runner(kernels).scan_backward(gy, g_state, u, delta, A, B, C, kept, reverse)
    return made


def _backward_shapes(gy: Tensor, g_state: Tensor, *rest: Any) -> Six:
    return tuple(torch.empty_like(x) for x in (*rest[:5], g_state))  # type: ignore[return-value]


for _name, _run_it, _shapes in (
    ("selective_scan", _forward, _forward_shapes),
    ("selective_scan_backward", _backward, _backward_shapes),
):
    for _key in ("CPU", "CUDA"):
        _LIBRARY.impl(_name, _run_it, _key)
    _LIBRARY.impl(_name, _shapes, "Meta")


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:5], output[2])
    ctx.reverse, ctx.kernels = inputs[6], inputs[8]


def _differentiate(ctx: Any, gy: Tensor, g_state: Tensor, _: Tensor) -> tuple[Any, ...]:
    u, delta, A, B, C, kept = ctx.saved_tensors
    grads = torch.ops.saccade.selective_scan_backward(gy, g_state, u, delta, A, B, C, kept, ctx.reverse, ctx.kernels)
    return (*grads, None, None, None)


torch.library.register_autograd("saccade::selective_scan", _differentiate, setup_context=_remember, lib=_LIBRARY)


@register_macs(torch.ops.saccade.selective_scan)
def _macs(u: Any, delta: Any, A: Any, *_: Any, **__: Any) -> int:
    """Four for each state of each channel and step: the decay's exp and product, what is fed, the output."""
    return 4 * int(A[1]) * _numel(u)


def _numel(shape: Any) -> int:
    count = 1
    for side in shape:
        count *= side
    return count


def _runner(kernels: bool) -> ModuleType:
    """The module that runs the operator."""
    return importlib.import_module(f"saccade.ops.selective_scan.{'triton' if kernels else 'chunked'}")
