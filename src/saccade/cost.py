"""The ledger: what a model costs on an input - parameters, MACs, activations, peak bytes, latency.

    cost(model, x)                                        run, counted once and timed
    cost(model, torch.empty(1, 3, 4320, 7680, device="meta"))   counted by shapes alone, nothing is computed

Definitions, the same everywhere in this library:

    parameters   elements of the model's parameters, each shared tensor once
    macs         multiply-accumulate operations of convolutions, matrix products and attention: half of what
                 ``torch.utils.flop_counter`` counts. Biases, norms, activations and resampling count nothing.
    activations  elements that these same operations write: the memory traffic that run time follows (Dollar et al.,
                 "Fast and Accurate Model Scaling", arXiv:2103.06877, section 2). Attention counts its output only.
    peak_bytes   most bytes of tensors alive at once: parameters, buffers and inputs throughout, and every tensor from
                 the operation that makes it until the last reference is gone. Views share their storage. What a kernel
                 takes for itself while it runs is not seen.
    latency_s    median over timed runs, after warm-up, at a stated number of threads

Counting and timing run in evaluation mode without gradients; the model is left as it was. What a model decides from
its input (`budget`, routing) is counted as it happens on this input.
"""

from __future__ import annotations

import functools
import re
import statistics
import sys
import time
import types
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from saccade.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["MOST_THREADS", "Cost", "cost", "count_parameters", "register_macs"]

#: more than machines have; torch and OpenMP crash, without an error, where so many threads cannot be made
MOST_THREADS = 1024

Formula = TypeVar("Formula", bound=Callable[..., int])


@dataclass(frozen=True)
class Cost:
    """What one call of a model costs; the module's docstring defines each figure.

    Attributes:
        parameters: a count.
        macs: a count.
        activations: elements.
        peak_bytes: bytes.
        latency_s: seconds, or None when nothing was timed.
        threads: of the processor during the timed runs, or None when nothing was timed.
        device: where it was counted, e.g. ``cpu``; ``meta`` when nothing was computed.
    """

    parameters: int
    macs: int
    activations: int
    peak_bytes: int
    latency_s: float | None
    threads: int | None
    device: str

    def to_dict(self) -> dict[str, Any]:
        """The figures by name, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        parts = [
            f"{_short(self.parameters)} parameters",
            f"{_short(self.macs)} MACs",
            f"{_short(self.activations)} activations",
            f"{_short(self.peak_bytes)}B peak",
        ]
        if self.latency_s is None:
            parts.append(f"not timed ({self.device})")
        else:
            plural = "" if self.threads == 1 else "s"
            parts.append(f"{_short(self.latency_s)}s ({self.device}, {self.threads} thread{plural})")
        return ", ".join(parts)


def _short(value: float) -> str:
    """Four digits and the SI prefix: 2_053_324_800 -> "2.053 G"."""
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "u")):
        if value >= size:
            return f"{value / size:.4g} {prefix}"
    return "0 "


def count_parameters(model: nn.Module, *, kernels_only: bool = False, trainable_only: bool = False) -> int:
    """Elements of a model's parameters, each shared tensor once.

    Args:
        model: any module.
        kernels_only: leave out vectors and scalars (biases, norms, PReLU slopes), as many published counts do.
        trainable_only: leave out frozen parameters.
    """
    return sum(
        p.numel()
        for p in model.parameters()
        if (p.dim() > 1 or not kernels_only) and (p.requires_grad or not trainable_only)
    )


def register_macs(*operators: Any) -> Callable[[Formula], Formula]:
    """Tell the ledger what an operator of our own costs.

    The decorated function gets the operator's arguments with every tensor replaced by its shape, and ``out_shape``; it
    returns MACs. Any user of ``torch.utils.flop_counter`` then counts the operator too, as twice that many FLOPs.

    Args:
        operators: overload packets, e.g. ``torch.ops.saccade.selective_scan``.
    """

    def mark(formula: Formula) -> Formula:
        from torch.utils.flop_counter import register_flop_formula

        def flops(*args: Any, out_shape: Any = None, **kwargs: Any) -> int:
            return 2 * formula(*args, out_shape=out_shape, **kwargs)

        register_flop_formula(list(operators))(flops)
        return formula

    return mark


def cost(
    model: Callable[..., Any],
    *inputs: Any,
    timed: bool = True,
    repeats: int = 5,
    warmup: int = 1,
    threads: int | None = None,
) -> Cost:
    """Count what ``model(*inputs)`` costs, and time it.

    Args:
        model: a module, or any function of tensors.
        inputs: what it is called with. Where any tensor among them is on the ``meta`` device, the call is followed by
            shapes alone: nothing is computed or timed, and a real model stays where it is.
        timed: whether to time as well.
        repeats: timed runs, of which the median is taken.
        warmup: runs before them, beside the one that is counted.
        threads: of the processor for the timed runs; by default as many as torch uses now.

    Raises:
        UsageError: no timed run or no thread asked for; the model reads values of a ``meta`` input.
    """
    import torch

    if repeats < 1 or warmup < 0:
        raise UsageError(f"cost needs at least 1 timed run and no negative warm-up, not {repeats} and {warmup}")
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise UsageError(f"cost takes 1 to {MOST_THREADS} threads, not {threads}")
    leaves = torch.utils._pytree.tree_leaves
    module = getattr(model, "_orig_mod", model)  # torch.compile hides the operators from the counter
    held = [x for x in [*leaves(inputs), *_owned(module)] if isinstance(x, torch.Tensor)]
    meta = any(x.is_meta for x in held)
    device = "meta" if meta else held[0].device.type if held else "cpu"
    latency = None
    with _evaluating(module), torch.inference_mode():
        if meta:
            macs, activations, peak = _count_shapes(module, inputs)
        else:
            macs, activations, peak = _count(module, inputs, held)
            if timed:
                with _threads(threads) as threads:
                    latency = _time(model, inputs, repeats, warmup, device)
    parameters = count_parameters(module) if isinstance(module, torch.nn.Module) else 0
    return Cost(parameters, macs, activations, peak, latency, None if latency is None else threads, device)


def _owned(model: Any) -> Iterator[Tensor]:
    """Parameters and buffers of a module; nothing for a plain function."""
    import torch

    if isinstance(model, torch.nn.Module):
        yield from model.parameters()
        yield from model.buffers()


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode inside, every submodule's own mode again outside."""
    import torch

    modules = list(model.modules()) if isinstance(model, torch.nn.Module) else []
    modes = [m.training for m in modules]
    if modules:
        model.eval()
    try:
        yield
    finally:
        for m, mode in zip(modules, modes, strict=True):
            m.training = mode


def _count(run: Callable[..., Any], inputs: tuple[Any, ...], held: list[Tensor]) -> tuple[int, int, int]:
    """(MACs, activations, peak bytes) of one run; ``held`` are the tensors alive throughout."""
    ledger = _ledger_class()(held)
    try:
        with ledger:
            run(*inputs)
    finally:
        ledger.close()
    return ledger.flops // 2, ledger.activations, ledger.peak


def _count_shapes(model: Any, inputs: tuple[Any, ...]) -> tuple[int, int, int]:
    """The same by shapes alone: every tensor is replaced by its shape for the call, a module keeps its own values."""
    import torch

    def shape(value: Any) -> Any:
        return torch.empty_like(value, device="meta") if isinstance(value, torch.Tensor) else value

    inputs = torch.utils._pytree.tree_map(shape, inputs)
    held = [x for x in torch.utils._pytree.tree_leaves(inputs) if isinstance(x, torch.Tensor)]
    run = model
    if isinstance(model, torch.nn.Module):
        state = {name: shape(t) for name, t in [*model.named_parameters(), *model.named_buffers()]}
        held += state.values()

        def run(*shapes: Any) -> Any:
            return torch.func.functional_call(model, state, shapes)

    try:
        return _count(run, inputs, held)
    except (NotImplementedError, RuntimeError) as error:
        name = getattr(model, "__name__", type(model).__name__)
        reason = re.split(r"\n|\. ", str(error).strip() or type(error).__name__)[0]
        raise UsageError(f"cannot count {name} by shapes alone, give it a real input instead: {reason}") from error


def _more_formulas() -> dict[Any, Callable[..., int]]:
    """FLOPs of operators that torch's counter leaves out. Attention is taken whole, on every device alike."""
    import torch
    from torch.utils.flop_counter import sdpa_flop_count

    aten = torch.ops.aten

    def product(a_shape: Any, b_shape: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return 2 * _numel(a_shape)  # a vector on the right: every element of a is used once

    def product_added(
        c_shape: Any, a_shape: Any, b_shape: Any, *args: Any, out_shape: Any = None, **kwargs: Any
    ) -> int:
        return 2 * _numel(a_shape)

    def attention(q_shape: Any, k_shape: Any, v_shape: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        heads = q_shape[:-2]  # with grouped queries, keys and values have fewer heads than they are used by
        flops: int = sdpa_flop_count(*((_numel(heads), 1, *shape[-2:]) for shape in (q_shape, k_shape, v_shape)))
        return flops

    def deform_conv(x_shape: Any, w_shape: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return 2 * _numel(out_shape) * _numel(w_shape[1:])

    formulas: dict[Any, Callable[..., int]] = {
        aten.mv: product,
        aten.dot: product,
        aten.vdot: product,
        aten.addmv: product_added,
        aten.scaled_dot_product_attention: attention,
    }
    if "torchvision" in sys.modules:
        formulas[torch.ops.torchvision.deform_conv2d] = deform_conv
    return formulas


def _numel(shape: Iterable[int]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count


@functools.cache
def _ledger_class() -> type[Any]:
    """The class of the mode that sees every operator of a run; made late because torch is not imported before."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import FlopCounterMode

    class Ledger(TorchDispatchMode):
        """Adds up FLOPs and elements of operators with a formula, and bytes alive beside the ``held`` tensors."""

        supports_higher_order_operators = True

        def __init__(self, held: list[Tensor]) -> None:
            super().__init__()
            # The formulas are those of torch's counter; its mode is left aside as it imports the compiler (seconds).
            self.formulas = FlopCounterMode(display=False, custom_mapping=_more_formulas()).flop_registry
            self.flops = self.activations = self.live = self.peak = 0
            self.sizes: dict[int, int] = {}
            self.watches: list[weakref.finalize[..., Any]] = []
            for tensor in held:
                self.take(tensor)

        @classmethod
        def _should_skip_dynamo(cls) -> bool:
            return False

        def take(self, tensor: Tensor) -> None:
            """Count a tensor's storage as alive until nothing refers to it any more."""
            if tensor.layout is not torch.strided:
                return
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self.sizes:
                self.sizes[key] = storage.nbytes()
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                self.watches.append(weakref.finalize(storage, self.drop, key))

        def drop(self, key: int) -> None:
            self.live -= self.sizes.pop(key)

        def close(self) -> None:
            """Stop watching; what is still alive is no concern of this ledger any more."""
            for watch in self.watches:
                watch.detach()

        def __torch_dispatch__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            operator = getattr(func, "overloadpacket", func)
            formula = self.formulas.get(operator)
            if formula is None:
                if not isinstance(func, torch._ops.OpOverload):
                    return NotImplemented  # control flow that holds operators of its own: refuse, do not undercount
                with self:  # a composite operator is counted by what it is made of
                    parts = func.decompose(*args, **kwargs)
                if parts is not NotImplemented:
                    return parts
            out = func(*args, **kwargs)
            made = [x for x in torch.utils._pytree.tree_leaves(out) if isinstance(x, torch.Tensor)]
            if formula is not None:
                self.flops += formula(*args, **kwargs, out_val=out)
                self.activations += sum(x.numel() for x in made[:1])
            for tensor in made:
                self.take(tensor)
            return out

    return Ledger


@contextmanager
def _threads(count: int | None) -> Iterator[int]:
    """Run torch on ``count`` threads inside; yields how many there are."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield count or before
    finally:
        torch.set_num_threads(before)


def _time(model: Callable[..., Any], inputs: tuple[Any, ...], repeats: int, warmup: int, device: str) -> float:
    """Median seconds of a run, waiting for an accelerator to finish where there is one at work."""
    import torch

    wait = (lambda: None) if device == "cpu" else torch.accelerator.synchronize
    seconds: list[float] = []
    for _ in range(warmup + repeats):
        wait()
        start = time.perf_counter()
        model(*inputs)
        wait()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[warmup:])


class _CallableModule(types.ModuleType):
    """`saccade.cost` is this module for the import system and the function for everyone else: both work."""

    def __call__(self, model: Callable[..., Any], *inputs: Any, **options: Any) -> Cost:
        return cost(model, *inputs, **options)


sys.modules[__name__].__class__ = _CallableModule
