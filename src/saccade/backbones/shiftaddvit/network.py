"""The backbone: PVTv2's pyramid with additive attention and mixtures of multiplying and shifting layers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.backbones.shiftaddvit.attention import (
    BinaryAttention,
    HashAttention,
    KernelHash,
    Linear,
    SoftmaxAttention,
)
from saccade.backbones.shiftaddvit.layers import (
    LATENCIES,
    AdditiveShiftLinear,
    Kind,
    MoELinear,
    ShiftLinear,
    layer_maker,
    two_experts,
)
from saccade.budget import check_budget
from saccade.errors import UsageError
from saccade.nn.backbone import Backbone, check_stages, made
from saccade.nn.channel_norm import ChannelNorm
from saccade.nn.drop_path import drop_path, rising
from saccade.registry import register

__all__ = ["VARIANTS", "AttentionKind", "ShiftAddViT", "convert", "fit_hashes"]

AttentionKind = Literal["reduced", "softmax", "binary", "hash"]
Attention = BinaryAttention | HashAttention | SoftmaxAttention


class PatchEmbed(nn.Module):
    """Overlapping patches: a convolution of stride 4 (7x7) or 2 (3x3), and layer norm over channels."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)
        self.norm = ChannelNorm(outputs, 1e-5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.proj(x))
        return out


class Mlp(nn.Module):
    """fc2(GELU(depthwise 3x3(fc1(x)))), (B, N, C) -> the same; the convolution multiplies always."""

    def __init__(self, width: int, ratio: float, linear: Linear) -> None:
        super().__init__()
        inner = int(width * ratio)
        self.fc1, self.fc2 = linear(width, inner), linear(inner, width)
        self.dwconv = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        inner = self.dwconv(self.fc1(x).mT.unflatten(2, size)).flatten(2).mT
        out: Tensor = self.fc2(F.gelu(inner))
        return out


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), on a map."""

    def __init__(self, width: int, attention: Attention, mlp: Mlp, rate: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width, 1e-6), attention
        self.norm2, self.mlp = nn.LayerNorm(width, 1e-6), mlp
        self.drop_path = drop_path(rate)

    def forward(self, x: Tensor) -> Tensor:
        size = (x.shape[2], x.shape[3])
        tokens = x.flatten(2).mT  # (B, N, C), row-major order: along it runs the additive attention's convolution
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens), size))
        tokens = tokens + self.drop_path(self.mlp(self.norm2(tokens), size))
        return tokens.mT.unflatten(2, size)


class ShiftAddViT(Backbone):
    """PVTv2 whose attention adds and whose linear layers shift (section 4).

    The dial: ``budget`` b lets at most the share b of each picture's tokens multiply in every mixture, those whose gate
    prefers it most; the others shift. 1 leaves it to the gates. Networks without mixtures have no dial.

    Args:
        widths, depths, heads, mlp_ratios: of the four stages.
        attention: ``"hash"`` or ``"binary"``: additive, but for the last stage, which keeps softmax; ``"softmax"``
            everywhere; ``"reduced"``: PVTv2's own, softmax with keys of a coarser map.
        attention_linears, mlp: how their linear layers compute: ``"dense"``, ``"shift"``, ``"additive"`` (sums of two
            powers of two), or ``"moe"``, a choice between multiplying and shifting.
        gate: of the mixtures (`MoELinear`); ``"naive"`` is the published scripts', and never learns.
        bits: of a shift weight.
        hash_bits, anchors: of the hash codes, which are random until `fit_hashes`.
        kernel: taps of the additive attention's convolution along the tokens.
        sparse: in training the strongest entries of soft-max attention are added to the additive one.
        sr_ratios: strides of the keys' map, for ``"reduced"`` alone.
        latencies: of a multiplying and a shifting layer, up to a factor, for the balance loss.
        compat: ``"official"`` takes binary codes over the whole batch.
        drop_path_rate: of the last block; it rises linearly from 0.
        options: ``num_classes``, ``in_chans``, ``drop_rate``, ``global_pool`` (`Backbone`).

    Shape: (B, 3, H, W) -> (B, num_classes); maps at strides 4, 8, 16, 32. Sides of at least 32 pixels.

    Raises:
        UsageError: the numbers describe no network.
    """

    def __init__(
        self,
        widths: Sequence[int] = (32, 64, 160, 256),
        depths: Sequence[int] = (2, 2, 2, 2),
        heads: Sequence[int] = (1, 2, 5, 8),
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        attention: AttentionKind = "hash",
        attention_linears: Kind = "moe",
        mlp: Kind = "moe",
        gate: str = "noisy_v2",
        bits: int = 5,
        hash_bits: int = 16,
        anchors: int = 25,
        kernel: int = 9,
        sparse: bool = False,
        sr_ratios: Sequence[int] = (8, 4, 2, 1),
        latencies: Sequence[float] = LATENCIES,
        compat: str = "",
        drop_path_rate: float = 0.0,
        **options: Any,
    ) -> None:
        check_stages(widths=widths, depths=depths, heads=heads, mlp_ratios=mlp_ratios)
        if attention not in ("reduced", "softmax", "binary", "hash"):
            raise UsageError(f"attention is 'hash', 'binary', 'softmax' or 'reduced', not {attention!r}")
        if compat not in ("", "official"):
            raise UsageError(f"compat is 'official' or nothing, not {compat!r}")
        super().__init__(widths, (4, 8, 16, 32), **options)
        self.told: dict[str, Any] = {
            "widths": widths,
            "depths": depths,
            "heads": heads,
            "mlp_ratios": mlp_ratios,
            "attention": attention,
            "attention_linears": attention_linears,
            "mlp": mlp,
            "gate": gate,
            "bits": bits,
            "hash_bits": hash_bits,
            "anchors": anchors,
            "kernel": kernel,
            "sparse": sparse,
            "sr_ratios": sr_ratios,
            "latencies": latencies,
            "compat": compat,
            "num_classes": self.num_classes,
            "in_chans": self.in_chans,
        }
        experts = {"bits": bits, "gate": gate, "latencies": latencies}
        linears, mlps = layer_maker(attention_linears, **experts), layer_maker(mlp, **experts)

        along: dict[str, Any] = {"kernel": kernel, "sparse": sparse}

        def attend(i: int) -> Attention:
            if attention == "binary" and i < 3:
                return BinaryAttention(widths[i], heads[i], linear=linears, compat=compat, **along)
            if attention == "hash" and i < 3:
                return HashAttention(widths[i], heads[i], linear=linears, bits=hash_bits, anchors=anchors, **along)
            return SoftmaxAttention(widths[i], heads[i], sr_ratios[i] if attention == "reduced" else 1, linears)

        rates = rising(drop_path_rate, depths)
        self.stem = PatchEmbed(self.in_chans, widths[0], 7, 4)
        stages: list[nn.Module] = []
        for i, width in enumerate(widths):
            layers: list[nn.Module] = [PatchEmbed(widths[i - 1], width, 3, 2)] if i else []
            layers += [Block(width, attend(i), Mlp(width, mlp_ratios[i], mlps), rates.pop(0)) for _ in range(depths[i])]
            stages.append(nn.Sequential(*layers, ChannelNorm(width)))
        self.stages = nn.ModuleList(stages)
        self.apply(_initialise)
        self.reset_classifier(self.num_classes)

    @property
    def mixtures(self) -> list[MoELinear]:
        """The layers with two experts, in order."""
        return [m for m in self.modules() if isinstance(m, MoELinear)]

    @property
    def budget(self) -> float:
        """The largest share of a picture's tokens that may multiply."""
        return min((m.capacity for m in self.mixtures), default=1.0)

    @budget.setter
    def budget(self, value: float) -> None:
        wanted = check_budget(value)
        if wanted < 1 and not self.mixtures:
            raise UsageError("this network has no mixtures, so no dial: build it with mlp='moe'")
        for layer in self.mixtures:
            layer.capacity = wanted

    def budgets(self) -> Sequence[float]:
        """Settings worth trying."""
        return (0.1, 0.25, 0.4, 0.6, 1.0) if self.mixtures else (1.0,)

    def shift_share(self) -> float:
        """Of all tokens that reached mixtures in the last batch, the share that shifted; NaN without any."""
        shares = [m.share for m in self.mixtures]
        return sum(shares) / len(shares) if shares else math.nan

    def no_weight_decay(self) -> set[str]:
        """Shifts and signs: decay would pull the former to 1 and the latter to nothing."""
        return {n for n, _ in self.named_parameters() if n.rpartition(".")[2].startswith(("shift", "sign"))}


def _initialise(module: nn.Module) -> None:
    """Linear layers truncated normal of deviation 0.02, convolutions normal with variance 2 / fan-out, biases 0.

    Shift layers become the powers of two nearest to what they would be as dense layers: their own start (uniform
    shifts and signs) gives weights far too large for a network of this depth.
    """
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, ShiftLinear | AdditiveShiftLinear):
        dense = torch.empty_like(module.get_parameter("sign"))
        module.take(nn.init.trunc_normal_(dense, std=0.02), None)
    elif isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
    if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
        nn.init.zeros_(module.bias)


# ---------------------------------------------------------------------------------------------------------------------
# From step to step
# ---------------------------------------------------------------------------------------------------------------------
def convert(model: ShiftAddViT, **steps: Any) -> ShiftAddViT:
    """The network of the next step of the recipe, with the weights of this one; this one is left as it is.

    PVTv2 (``"reduced"``) -> ``attention="softmax"`` -> ``attention="hash"`` -> ``attention_linears="moe", mlp="moe"``,
    each to be trained for a while (section D of the recipe: AdamW, 5e-5, 5e-5, 1e-5), or all at once. Queries give the
    shared projection of hash codes; the keys' weights and the coarser map's are dropped where they have no place.
    Codes stay random until `fit_hashes`; gates and the convolution along tokens are fresh.

    Args:
        model: with dense linear layers in what is to be converted.
        steps: ``attention``, ``attention_linears``, ``mlp``, and whatever else of `ShiftAddViT` goes with them.

    Raises:
        UsageError: a step that was taken already, backwards, or that changes the network's size.
    """
    order = {"reduced": 0, "softmax": 1, "binary": 2, "hash": 2}
    told = model.told
    for name in ("widths", "depths", "heads", "mlp_ratios", "num_classes", "in_chans"):
        if name in steps and steps[name] != told[name]:
            raise UsageError(f"a conversion keeps {name}={told[name]}")
    for name in ("attention_linears", "mlp"):
        if name in steps and told[name] != "dense":
            raise UsageError(f"{name} is converted already ({told[name]!r})")
    if "attention" in steps and order.get(steps["attention"], -1) <= order[told["attention"]]:
        raise UsageError(f"attention is {told['attention']!r}; it is not converted to {steps['attention']!r}")
    options = {**told, **steps}
    made = ShiftAddViT(**options)
    if hasattr(model, "saccade_name"):
        vars(made).update(saccade_name="shiftaddvit", saccade_options=options)
    theirs = dict(model.named_modules())
    for name, module in made.named_modules():
        source = theirs.get(name)
        if isinstance(module, Block) and isinstance(source, Block):
            _convert_block(source, module)
        elif isinstance(module, PatchEmbed | ChannelNorm) or name == "head":
            assert source is not None
            module.load_state_dict(source.state_dict())
    return made.train(model.training)


def _convert_block(source: Block, into: Block) -> None:
    for name in ("norm1", "norm2"):
        getattr(into, name).load_state_dict(getattr(source, name).state_dict())
    into.mlp.dwconv.load_state_dict(source.mlp.dwconv.state_dict())
    for name in ("fc1", "fc2"):
        _carry(getattr(source.mlp, name), into.mlp, name)
    theirs, ours = source.attn, into.attn
    _carry(theirs.proj, ours, "proj")
    if type(theirs) is type(ours):
        for name, child in theirs.named_children():
            if isinstance(child, nn.Linear | ShiftLinear | AdditiveShiftLinear | MoELinear):
                _carry(child, ours, name)
            elif getattr(ours, name, None) is not None:
                getattr(ours, name).load_state_dict(child.state_dict())
        return
    assert isinstance(theirs, SoftmaxAttention)
    q, kv = theirs.q, theirs.kv
    if not (isinstance(q, nn.Linear) and isinstance(kv, nn.Linear)):
        raise UsageError("attention becomes additive while its linear layers are dense; mixtures come after that")
    width = q.out_features
    if isinstance(ours, HashAttention):
        _carry(q, ours, "to_qk")
        _carry(_dense(kv.weight[width:], kv.bias[width:]), ours, "to_v")
    else:
        _carry(_dense(torch.cat([q.weight, kv.weight]), torch.cat([q.bias, kv.bias])), ours, "qkv")


def _dense(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight, layer.bias = nn.Parameter(weight.detach().clone()), nn.Parameter(bias.detach().clone())
    return layer


def _carry(layer: nn.Module, owner: nn.Module, name: str) -> None:
    """Weights of a layer into the one of that name: as they are where both are alike, else by `two_experts`."""
    into = getattr(owner, name)
    if type(layer) is type(into):
        into.load_state_dict(layer.state_dict())
    else:
        assert isinstance(layer, nn.Linear)
        two_experts(layer, into)


@torch.no_grad()
def fit_hashes(model: nn.Module, x: Tensor, *, seed: int = 0, **options: Any) -> int:
    """Learn the hashes of all attentions from a batch, first to last, each from what those before it give.

    Args:
        model: with hashing attention; changed in place.
        x: (B, 3, H, W), a few pictures.
        seed: of anchors and first hyperplanes.
        options: ``neighbours``, ``steps``, ``rate`` (`KernelHash.fit`).

    Returns:
        How many were fitted.

    Raises:
        UsageError: the network has none.
        InputError: as `KernelHash.fit`.
    """
    hashes = [m for m in model.modules() if isinstance(m, KernelHash)]
    if not hashes:
        raise UsageError("this network has no hashing attention to fit")

    def fit(module: nn.Module, given: tuple[Any, ...]) -> None:
        assert isinstance(module, KernelHash)
        module.fit(given[0], seed=seed, **options)

    with _at_rest(model):
        handles = [m.register_forward_pre_hook(fit) for m in hashes]
        try:
            model(x)
        finally:
            for handle in handles:
                handle.remove()
    return len(hashes)


@contextmanager
def _at_rest(model: nn.Module) -> Iterator[None]:
    before = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(before)


# ---------------------------------------------------------------------------------------------------------------------
# Registered models
# ---------------------------------------------------------------------------------------------------------------------
_NARROW, _WIDE = (32, 64, 160, 256), (64, 128, 320, 512)
VARIANTS: dict[str, dict[str, Any]] = {
    "shiftaddvit_b0": {"widths": _NARROW, "depths": (2, 2, 2, 2)},
    "shiftaddvit_b1": {"widths": _WIDE, "depths": (2, 2, 2, 2)},
    "shiftaddvit_b2": {"widths": _WIDE, "depths": (3, 4, 6, 3)},
}
for _variant in VARIANTS.values():
    _variant |= {"heads": (1, 2, 5, 8), "mlp_ratios": (8, 8, 4, 4)}


@register(
    "shiftaddvit",
    system="shiftaddvit",
    task="classification",
    variants={
        "shiftaddvit_b0": "ShiftAddViT on PVTv2-B0",
        "shiftaddvit_b1": "ShiftAddViT on PVTv2-B1",
        "shiftaddvit_b2": "ShiftAddViT on PVTv2-B2",
    },
)
def shiftaddvit(variant: str = "", /, **options: Any) -> nn.Module:
    """Any ShiftAddViT; options as `ShiftAddViT`.

    With ``attention="reduced", attention_linears="dense", mlp="dense"`` it is the PVTv2 that its name stands for.
    """
    return made(ShiftAddViT, options, VARIANTS, variant)
