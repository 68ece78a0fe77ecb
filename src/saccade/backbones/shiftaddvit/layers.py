"""Linear layers of signed powers of two, alone or as one of two experts, and how a trained network gets them."""

from __future__ import annotations

import copy
import fnmatch
import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import InputError, UsageError
from saccade.nn.moe import make_gate, run_experts
from saccade.ops.shift_add import (
    Packed,
    check_bits,
    fixed_point,
    lowest_shift,
    pack,
    packed_linear,
    power_of_two,
    shift_linear,
)
from saccade.ops.shift_add.naive import LOWEST, additive_weight_of, decomposed, nearest_sum, weight_of

__all__ = [
    "AdditiveShiftLinear",
    "DenseShift",
    "MoELinear",
    "PackedShift",
    "ShiftLinear",
    "ShiftLinearQ",
    "convert_linears",
    "packed_weights",
    "two_experts",
]

M = TypeVar("M", bound=nn.Module)
Kind = Literal["dense", "shift", "additive", "moe"]
LATENCIES = (6.0, 4.0)  # of a multiplication and of a shift, up to a factor: the published code's


class ShiftLinear(nn.Module):
    """y = fixed(x) W^T + fixed(bias), W = sign(round(sign)) 2^round(clamp(shift)) (DeepShift-PS).

    In training shifts that left their range are put back into it, as in the published code.

    Args:
        inputs, outputs: channels.
        bias: whether there is one.
        bits: of a weight; 5 for shifts down to -14.
        rounded: x and bias in fixed point, 16 bits on either side of the point.

    Shape: (..., inputs) -> (..., outputs).

    Raises:
        UsageError: impossible ``bits``.
    """

    powers = 1  # of each weight

    def __init__(self, inputs: int, outputs: int, bias: bool = True, bits: int = 5, rounded: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bits, self.rounded = inputs, outputs, check_bits(bits), rounded
        self.shift = nn.Parameter(torch.empty(outputs, inputs).uniform_(lowest_shift(bits), 0))
        self.sign = nn.Parameter(torch.empty(outputs, inputs).uniform_(-1, 1))
        bound = inputs**-0.5
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-bound, bound)) if bias else None

    @torch.no_grad()
    def take(self, weight: Tensor, bias: Tensor | None) -> ShiftLinear:
        """Become the nearest (in the logarithm) to a dense layer; a weight of 0 stays 0. Returns itself."""
        shift, sign = decomposed(weight)
        self.shift.copy_(shift.clamp(lowest_shift(self.bits), 0))  # -inf of a zero becomes the lowest
        self.sign.copy_(sign)
        if self.bias is not None:
            self.bias.copy_(torch.zeros_like(self.bias) if bias is None else bias)
        return self

    @torch.no_grad()
    def weight(self) -> Tensor:
        """W (outputs, inputs)."""
        return weight_of(self.shift, self.sign, self.bits)

    def forward(self, x: Tensor) -> Tensor:
        bias: Tensor | None = self.bias
        if self.rounded:
            x, bias = fixed_point(x), None if bias is None else fixed_point(bias)
        if self.training and not torch.compiler.is_compiling():
            with torch.no_grad():
                self.shift.clamp_(lowest_shift(self.bits), 0)
        return shift_linear(x, self.shift, self.sign, bias, bits=self.bits)

    def fuse(self) -> nn.Module:
        """The same with W computed once."""
        return DenseShift(self)

    def packed(self) -> PackedShift:
        """The same with W in ``bits`` bits a weight."""
        return PackedShift(self)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bits={self.bits}"


class ShiftLinearQ(nn.Linear):
    """y = fixed(x) W^T + fixed(bias), W the power of two nearest to a real weight (DeepShift-Q); as `ShiftLinear`."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True, bits: int = 5) -> None:
        super().__init__(inputs, outputs, bias)
        self.bits = check_bits(bits)

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else fixed_point(self.bias)
        return F.linear(fixed_point(x), power_of_two(self.weight, self.bits), bias)


class AdditiveShiftLinear(nn.Module):
    """y = fixed(x) W^T + fixed(bias), W the sum of two signed powers of two (SP2, APoT): `additive_weight_of`.

    Twice the shifts of a `ShiftLinear`, and levels that are spread more evenly: 15 sizes from 1/48 to 1, and 0. There
    is no scale, as in the published code: dense weights below 1/96 become 0. Written out it has 5 bits a weight. In
    training shifts and signs that left their range are put back into it.

    Args:
        inputs, outputs: channels.
        bias: whether there is one.
        rounded: x and bias in fixed point, 16 bits on either side of the point.

    Shape: (..., inputs) -> (..., outputs).
    """

    powers = 2  # of each weight

    def __init__(self, inputs: int, outputs: int, bias: bool = True, rounded: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rounded = inputs, outputs, rounded
        for name, low, high in (
            ("shift_1", LOWEST, 0), ("shift_2", LOWEST, 0), ("sign_1", 0, 1), ("sign_2", 0, 1), ("sign", -1, 1)
        ):  # fmt: skip
            self.register_parameter(name, nn.Parameter(torch.empty(outputs, inputs).uniform_(low, high)))
        bound = inputs**-0.5
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-bound, bound)) if bias else None

    def _parts(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], Tensor]:
        found = [self.get_parameter(name) for name in ("shift_1", "shift_2", "sign_1", "sign_2", "sign")]
        return (found[0], found[1]), (found[2], found[3]), found[4]

    @torch.no_grad()
    def take(self, weight: Tensor, bias: Tensor | None) -> AdditiveShiftLinear:
        """Become the nearest to a dense layer; a weight of 0 stays 0. Returns itself."""
        (shifts, signs, sign), (own_shifts, own_signs, own_sign) = nearest_sum(weight), self._parts()
        for own, value in zip((*own_shifts, *own_signs, own_sign), (*shifts, *signs, sign), strict=True):
            own.copy_(value)
        if self.bias is not None:
            self.bias.copy_(torch.zeros_like(self.bias) if bias is None else bias)
        return self

    @torch.no_grad()
    def weight(self) -> Tensor:
        """W (outputs, inputs)."""
        return additive_weight_of(*self._parts())

    def forward(self, x: Tensor) -> Tensor:
        bias: Tensor | None = self.bias
        if self.rounded:
            x, bias = fixed_point(x), None if bias is None else fixed_point(bias)
        shifts, signs, sign = self._parts()
        if self.training and not torch.compiler.is_compiling():
            with torch.no_grad():
                for shift, part in zip(shifts, signs, strict=True):
                    shift.clamp_(LOWEST, 0)
                    part.clamp_(0, 1)
        return F.linear(x, additive_weight_of(shifts, signs, sign), bias)

    def fuse(self) -> nn.Module:
        """The same with W computed once."""
        return DenseShift(self)


class DenseShift(nn.Module):
    """A layer of shifts at inference: its weights are floats that happen to be sums of ``powers`` powers of two."""

    @torch.no_grad()
    def __init__(self, layer: ShiftLinear | AdditiveShiftLinear) -> None:
        super().__init__()
        self.powers = layer.powers
        self.rounded, self.in_features, self.out_features = layer.rounded, layer.in_features, layer.out_features
        self.weight = nn.Parameter(layer.weight())
        bias = None if layer.bias is None else layer.bias.detach()
        self.bias = None if bias is None else nn.Parameter(fixed_point(bias) if self.rounded else bias.clone())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(fixed_point(x) if self.rounded else x, self.weight, self.bias)


class PackedShift(nn.Module):
    """A `ShiftLinear` at inference whose weights lie in memory as signs and shifts; they are no longer trained."""

    powers = 1  # of each weight
    codes: Tensor
    signs: Tensor
    bias: Tensor | None

    @torch.no_grad()
    def __init__(self, layer: ShiftLinear) -> None:
        super().__init__()
        self.rounded, self.bits, self.in_features = layer.rounded, layer.bits, layer.in_features
        made = pack(layer.shift.clamp(lowest_shift(layer.bits), 0).round(), layer.sign.round().sign(), layer.bits)
        self.register_buffer("codes", made.codes)
        self.register_buffer("signs", made.signs)
        bias = None if layer.bias is None else layer.bias.detach()
        self.register_buffer("bias", None if bias is None else fixed_point(bias) if self.rounded else bias.clone())

    def forward(self, x: Tensor) -> Tensor:
        weight = Packed(self.codes, self.signs, self.in_features, self.bits)
        return packed_linear(fixed_point(x) if self.rounded else x, weight, self.bias)


class MoELinear(nn.Module):
    """A linear layer of two experts, one that multiplies and one that shifts; each token goes to one of them.

    Args:
        inputs, outputs: channels.
        bias: whether the experts have one.
        bits: of a weight of the second.
        gate: ``"noisy_v2"`` (the default here) scales outputs by the soft-max, so that the task teaches it;
            ``"noisy"`` learns from the balance loss alone; ``"naive"``, which the published scripts use, never learns:
            its routing stays as it was drawn.
        latencies: of the experts, up to a factor.

    Attributes:
        capacity: the share of each picture's tokens that may multiply, those with the largest margin first; 1 leaves it
            to the gate.
        share: of the last batch's tokens that shifted.

    Shape: (B, N, inputs) -> (B, N, outputs), or any other number of leading dimensions (then one picture).

    Raises:
        UsageError: an unknown gate, impossible ``bits`` or latencies.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        bias: bool = True,
        bits: int = 5,
        gate: str = "noisy_v2",
        latencies: Sequence[float] = LATENCIES,
    ) -> None:
        super().__init__()
        if len(latencies) != 2:
            raise UsageError(f"the pair has two latencies, of a multiplication and a shift, not {len(latencies)}")
        self.in_features, self.out_features = inputs, outputs
        self.gate = make_gate(gate, inputs, 2, latencies)
        self.experts = nn.ModuleList([nn.Linear(inputs, outputs, bias), ShiftLinear(inputs, outputs, bias, bits)])
        self.capacity, self.share = 1.0, math.nan

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, -2)
        logits, values = self.gate(tokens)
        chosen = logits.argmax(1)
        if self.capacity < 1:
            pictures = x.shape[0] if x.ndim == 3 else 1
            chosen = _capped(chosen, (logits[:, 0] - logits[:, 1]).detach(), pictures, self.capacity)
        if not torch.compiler.is_compiling() and not chosen.is_meta:
            self.share = float(chosen.float().mean()) if len(chosen) else math.nan
        value = values.gather(1, chosen[:, None])[:, 0]
        return run_experts(tokens, list(self.experts), chosen, value).unflatten(0, x.shape[:-1])


def _capped(chosen: Tensor, margin: Tensor, pictures: int, capacity: float) -> Tensor:
    """Experts (N,) after at most ``capacity`` of each picture's tokens, those of the largest margin, kept the first."""
    margin = margin.unflatten(0, (pictures, -1))
    best = margin.topk(math.ceil(capacity * margin.shape[1]), 1).indices
    mine = torch.zeros_like(margin, dtype=torch.bool).scatter_(1, best, True)
    return torch.where(mine.flatten(), chosen, torch.ones_like(chosen))


def layer_maker(kind: Kind, **options: Any) -> Any:
    """What makes the linear layers of a family: (inputs, outputs) -> a layer.

    Raises:
        UsageError: an unknown kind.
    """
    if kind == "dense":
        return nn.Linear
    if kind == "shift":
        return lambda inputs, outputs: ShiftLinear(inputs, outputs, bits=options.get("bits", 5))
    if kind == "additive":
        return AdditiveShiftLinear
    if kind == "moe":
        return lambda inputs, outputs: MoELinear(inputs, outputs, **options)
    raise UsageError(f"linear layers are 'dense', 'shift', 'additive' or 'moe', not {kind!r}")


@torch.no_grad()
def two_experts(dense: nn.Linear, into: nn.Module) -> nn.Module:
    """Give a layer of any kind the function of a dense one, as nearly as it can: what stage follows stage by.

    A `MoELinear` gets it as its first expert and the nearest powers of two as its second; its gate stays fresh.

    Raises:
        UsageError: it is no linear layer of ours.
    """
    if isinstance(into, MoELinear):
        first, second = into.experts
        assert isinstance(first, nn.Linear)
        assert isinstance(second, ShiftLinear)
        two_experts(dense, first)
        second.take(dense.weight, dense.bias)
    elif isinstance(into, ShiftLinear | AdditiveShiftLinear):
        into.take(dense.weight, dense.bias)
    elif isinstance(into, nn.Linear):
        into.weight.copy_(dense.weight)
        if into.bias is not None:
            into.bias.copy_(torch.zeros_like(into.bias) if dense.bias is None else dense.bias)
    else:
        raise UsageError(f"{type(into).__name__} takes no weights of a linear layer")
    return into.to(dense.weight.device, dense.weight.dtype)


def convert_linears(model: M, patterns: str | Iterable[str], to: Kind = "moe", **options: Any) -> M:
    """A copy of any network whose linear layers of these names shift, or choose between shifting and multiplying.

    Args:
        model: e.g. timm's ``deit_tiny_patch16_224``.
        patterns: shell patterns of module names, e.g. ``"blocks.*.mlp.fc?"``.
        to: ``"shift"``, ``"additive"`` (sums of two powers) or ``"moe"``.
        options: of `ShiftLinear` or `MoELinear`.

    Raises:
        UsageError: a pattern that names no linear layer, or a layer that is converted already.
    """
    if to == "dense":
        raise UsageError("convert to 'shift', 'additive' or 'moe'; dense layers are dense already")
    make, made = layer_maker(to, **options), copy.deepcopy(model)
    names = dict(made.named_modules())
    kinds = nn.Linear | ShiftLinear | AdditiveShiftLinear | MoELinear
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        found = [n for n in fnmatch.filter(names, pattern) if isinstance(names[n], kinds)]
        if not found:
            raise UsageError(f"no linear layer of this network is named {pattern!r}")
        for name in found:
            layer = names[name]
            parents = [names[".".join(name.split(".")[:i])] for i in range(1, name.count(".") + 1)]
            if not isinstance(layer, nn.Linear) or any(isinstance(p, MoELinear) for p in parents):
                raise UsageError(f"{name} is converted already")
            parent, _, leaf = name.rpartition(".")
            names[name] = two_experts(layer, make(layer.in_features, layer.out_features)).train(layer.training)
            setattr(names[parent], leaf, names[name])
    return made


def packed_weights(model: M) -> M:
    """A copy for inference whose shift layers hold their weights packed: bits, not floats.

    Raises:
        InputError: the network has no shift layer.
    """
    made = copy.deepcopy(model).eval()
    found = {n: m for n, m in made.named_modules() if isinstance(m, ShiftLinear)}
    if not found:
        raise InputError(f"{type(model).__name__} has no shift layers to pack")
    for name, layer in found.items():
        parent, _, leaf = name.rpartition(".")
        setattr(made.get_submodule(parent), leaf, PackedShift(layer))
    return made
