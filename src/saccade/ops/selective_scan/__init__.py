"""Selective scan, the recurrence of Mamba: a state that decays and is fed as each element of a sequence says.

Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", arXiv:2312.00752, in the grouped form of
VMamba (arXiv:2401.10166). naive.py is the truth; numba.py (where Numba is installed) and chunked.py (plain PyTorch) are
the paths of the processor, triton.py that of a GPU.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor

from saccade.cost import register_macs
from saccade.errors import InputError, UnavailableError, UsageError
from saccade.ops.compiled import works
from saccade.ops.selective_scan.naive import selective_scan_naive
from saccade.ops.selective_scan.operands import Gradients, Operands

__all__ = ["Operands", "scan_tokens", "selective_scan"]

Path = Literal["auto", "naive", "chunked", "numba", "triton"]
WORTH = 1 << 12  # updates of a state from which the compiled path is the faster one


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
        path: ``"auto"`` takes Triton on a GPU; elsewhere, in single precision, what Numba compiles if that is installed
            and the scan is not tiny; else the chunked path. ``"naive"`` loops over time.

    Returns:
        (B, K*E, L) in u's dtype, and with ``return_state`` the state (B, K*E, N) in the dtype it was computed in.
        Differentiable once in every tensor.

    Raises:
        InputError: shapes that do not go together, an empty sequence, A that is not negative (the state would grow
            without bound), or, looked at on the processor only, a delta that is negative, infinite or NaN.
        UsageError: an unknown path.
        UnavailableError: Triton or Numba is asked for and not installed.
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
        Operands(
            u.unflatten(1, (groups, -1)).permute(0, 3, 1, 2),
            delta.unflatten(1, (groups, -1)).permute(0, 3, 1, 2),
            A.unflatten(0, (groups, -1)),
            B.permute(0, 3, 1, 2),
            C.permute(0, 3, 1, 2),
        ),
        D=grouped(D, 0),
        delta_bias=grouped(delta_bias, 0),
        softplus=softplus,
        reverse=reverse,
        state=grouped(state, 1),
        path=path,
    )
    y = y.permute(0, 2, 3, 1).flatten(1, 2)
    return (y, h.flatten(1, 2)) if return_state else y


def scan_tokens(
    x: Operands,
    *,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    softplus: bool = False,
    reverse: bool = False,
    state: Tensor | None = None,
    path: Path = "auto",
) -> tuple[Tensor, Tensor]:
    """`selective_scan` with channels innermost: the order that networks on tokens hold, read without a copy.

    Args:
        x: with A as (K, E, N).
        D, delta_bias: (K, E), or None.
        softplus, reverse, path: as in `selective_scan`.
        state: (B, K, E, N), or None.

    Returns:
        The outputs (B, L, K, E) and the last state (B, K, E, N).

    Raises:
        InputError, UsageError, UnavailableError: as in `selective_scan`.
    """
    u, A = x.u, x.A
    if u.ndim != 4 or not u.is_floating_point() or A.ndim != 3:
        raise InputError(
            f"a scan of tokens takes u as floating point (B, L, groups, channels) and A with 3 dimensions, "
            f"not {u.dtype} {tuple(u.shape)} and {tuple(A.shape)}"
        )
    (batch, length, groups, each), states = u.shape, A.shape[2]
    _check_shapes(
        {**x._asdict(), "D": D, "delta_bias": delta_bias, "state": state},
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
    if any(t.is_complex() for t in (*x, D, delta_bias, state) if t is not None):
        raise InputError("a selective scan is of real numbers; some of these are complex")
    kind = u.dtype
    wide = torch.float64 if kind == torch.float64 else torch.float32
    x = Operands(*(t.to(wide) for t in x))
    D, delta_bias, state = (None if t is None else t.to(wide) for t in (D, delta_bias, state))
    if delta_bias is not None:
        x = x._replace(delta=x.delta + delta_bias)
    _check_values(x.delta, A, softplus)  # with its bias
    h = x.u.new_zeros(batch, groups, states, each) if state is None else state.transpose(-1, -2).contiguous()
    y, h = _run(x._replace(A=x.A.transpose(-1, -2).contiguous()), h, softplus, reverse, path)
    return (y if D is None else torch.addcmul(y, x.u, D)).to(kind), h.transpose(-1, -2)


def _run(x: Operands, state: Tensor, softplus: bool, reverse: bool, path: Path) -> tuple[Tensor, Tensor]:
    """By the path that is asked for; all is in one dtype, and states stand before channels."""
    if path == "naive":
        return selective_scan_naive(x, state, softplus, reverse)
    if path not in ("auto", "chunked", "numba", "triton"):
        raise UsageError(f"a selective scan runs by 'auto', 'naive', 'chunked', 'numba' or 'triton', not by {path!r}")
    if path in ("numba", "triton") and importlib.util.find_spec(path) is None:
        raise UnavailableError(f"{path.capitalize()} is not installed: pip install {path}")
    if path == "numba" and x.u.is_cuda:
        raise UsageError("Numba's path of the selective scan runs on a processor, not on a GPU")
    if path == "auto" and x.u.is_cuda:
        path = "triton" if importlib.util.find_spec("triton") is not None else "chunked"
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in (*x, state))
    y, last, _ = _operator(*x, state, softplus, reverse, keep, path)
    return y, last


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
_OPERANDS = "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C"
_LIBRARY.define(
    f"selective_scan({_OPERANDS}, Tensor state, bool softplus, bool reverse, bool keep, str path) "
    "-> (Tensor, Tensor, Tensor)"
)
_LIBRARY.define(
    f"selective_scan_backward(Tensor gy, Tensor g_state, {_OPERANDS}, Tensor kept, bool softplus, bool reverse, "
    "str path) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_operator = torch.ops.saccade.selective_scan
COUNT = len(Operands._fields)


def _forward(*given: Any) -> tuple[Tensor, Tensor, Tensor]:
    """(outputs (B, L, K, E), last state (B, K, N, E), states kept for the way back (S, B, K, N, E))."""
    x, (state, softplus, reverse, keep, path) = Operands(*given[:COUNT]), given[COUNT:]
    if not x.u.numel():
        return _forward_shapes(*given)
    made: tuple[Tensor, Tensor, Tensor] = _runner(path, x).scan_forward(x, state, softplus, reverse, keep)
    return made


def _forward_shapes(*given: Any) -> tuple[Tensor, Tensor, Tensor]:
    x, (state, _, _, keep, path) = Operands(*given[:COUNT]), given[COUNT:]
    count = _runner(path, x).kept_states(state.numel(), x.u.shape[1]) if keep else 0
    return torch.empty_like(x.u), torch.empty_like(state), state.new_empty(count, *state.shape)


def _backward(gy: Tensor, g_state: Tensor, *given: Any) -> Gradients:
    """Of each operand and the first state."""
    x, (kept, softplus, reverse, path) = Operands(*given[:COUNT]), given[COUNT:]
    if not x.u.numel():
        return Gradients(*(torch.zeros_like(t) for t in (*x, g_state)))
    made: Gradients = _runner(path, x).scan_backward(gy, g_state, x, kept, softplus, reverse)
    return made


def _backward_shapes(gy: Tensor, g_state: Tensor, *given: Any) -> Gradients:
    return Gradients(*(torch.empty_like(t) for t in (*given[:COUNT], g_state)))


for _name, _run_it, _shapes in (
    ("selective_scan", _forward, _forward_shapes),
    ("selective_scan_backward", _backward, _backward_shapes),
):
    for _key in ("CPU", "CUDA"):
        _LIBRARY.impl(_name, _run_it, _key)
    _LIBRARY.impl(_name, _shapes, "Meta")


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:COUNT], output[2])
    _, ctx.softplus, ctx.reverse, _, ctx.path = inputs[COUNT:]


def _differentiate(ctx: Any, gy: Tensor, g_state: Tensor, _: Tensor) -> tuple[Any, ...]:
    grads = torch.ops.saccade.selective_scan_backward(
        gy, g_state, *ctx.saved_tensors, ctx.softplus, ctx.reverse, ctx.path
    )
    return (*grads, None, None, None, None)


torch.library.register_autograd("saccade::selective_scan", _differentiate, setup_context=_remember, lib=_LIBRARY)


@register_macs(torch.ops.saccade.selective_scan)
def _macs(u: Any, delta: Any, A: Any, *_: Any, **__: Any) -> int:
    """Four for each state of each channel and step: the decay's exp and product, what is fed, the output."""
    return 4 * int(A[1]) * math.prod(u)


def _runner(path: str, x: Operands) -> ModuleType:
    """The module that runs the operator; the same for shapes alone as for tensors."""
    if path == "auto":  # in double precision PyTorch's exp is the faster one
        worth = x.u.dtype == torch.float32 and x.u.numel() * x.A.shape[1] >= WORTH
        path = "numba" if worth and works("selective_scan") else "chunked"
    return importlib.import_module(f"saccade.ops.selective_scan.{path}")
