"""Layers that hold the weights of the largest network and run leading slices of them.

A layer starts with all of its weights active and is then an ordinary one; `set_active` chooses a slice. Every elastic
layer has `extracted`, the ordinary layer with the active weights alone: what stand-alone networks are filled from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import InputError
from saccade.nn.conv_norm import SqueezeExcitation
from saccade.nn.fuse import fused_conv

__all__ = [
    "Attention",
    "BakedAttention",
    "ElasticBatchNorm",
    "ElasticConv",
    "ElasticConvNorm",
    "ElasticLinear",
    "FeedForward",
    "JointNorm",
    "MobileBlock",
    "MobileSize",
    "QueryKeyValue",
    "TransformerBlock",
]


M = TypeVar("M", bound=nn.Module)


# ---------------------------------------------------------------------------------------------------------------------
# Single layers
# ---------------------------------------------------------------------------------------------------------------------
@torch.no_grad()
def _filled(made: M, like: nn.Module, **tensors: Tensor | None) -> M:
    """A fresh layer with copies of these tensors, on their device, in the mode of the layer that they come from."""
    for name, value in tensors.items():
        if value is not None:
            getattr(made, name).copy_(value)
    return made.train(like.training)


class ElasticConv(nn.Conv2d):
    """A convolution of which the first ``outputs`` and ``inputs`` channels run, and the middle of the kernel.

    A depthwise one (``groups > 1``) has as many groups as active channels. Padding keeps the size but for the stride.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        stride: int = 1,
        *,
        depthwise: bool = False,
        bias: bool = False,
    ) -> None:
        groups = outputs if depthwise else 1
        super().__init__(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=bias)
        self.kernel, self.active = kernel, (outputs, inputs, kernel)

    def set_active(self, outputs: int, inputs: int, kernel: int | None = None) -> None:
        """Choose the slice."""
        self.active = (outputs, inputs, self.active[2] if kernel is None else kernel)

    def active_tensors(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias that run."""
        outputs, inputs, kernel = self.active
        rim = (self.kernel - kernel) // 2
        rows = inputs if self.groups == 1 else 1
        weight = self.weight[:outputs, :rows, rim : rim + kernel, rim : rim + kernel]
        return weight, None if self.bias is None else self.bias[:outputs]

    def forward(self, x: Tensor) -> Tensor:
        outputs, _, kernel = self.active
        if self.active == (self.out_channels, self.in_channels, self.kernel):
            return super().forward(x)
        weight, bias = self.active_tensors()
        groups = 1 if self.groups == 1 else outputs
        return F.conv2d(x, weight.contiguous(), bias, self.stride, kernel // 2, groups=groups)

    def extracted(self) -> ElasticConv:
        """The active slice as a layer."""
        outputs, inputs, kernel = self.active
        weight, bias = self.active_tensors()
        with self.weight.device:
            made = ElasticConv(
                inputs, outputs, kernel, self.stride[0], depthwise=self.groups > 1, bias=self.bias is not None
            )
        return _filled(made.to(self.weight.dtype), self, weight=weight, bias=bias)


class ElasticBatchNorm(nn.BatchNorm2d):
    """Batch norm of as many channels as come; statistics of the others stay as they are."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.active = channels

    def forward(self, x: Tensor) -> Tensor:
        n = self.active
        if n == self.num_features:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        momentum = self.momentum
        if self.training:
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            momentum = 1 / float(self.num_batches_tracked) if momentum is None else momentum
        mean, var = self.running_mean[:n], self.running_var[:n]
        return F.batch_norm(x, mean, var, self.weight[:n], self.bias[:n], self.training, momentum or 0.0, self.eps)

    def extracted(self) -> ElasticBatchNorm:
        """The active channels as a layer."""
        n = self.active
        assert self.running_mean is not None
        assert self.running_var is not None
        with self.weight.device:
            made = ElasticBatchNorm(n)
        return _filled(
            made.to(self.weight.dtype),
            self,
            weight=self.weight[:n],
            bias=self.bias[:n],
            running_mean=self.running_mean[:n],
            running_var=self.running_var[:n],
            num_batches_tracked=self.num_batches_tracked,
        )


class ElasticConvNorm(nn.Module):
    """Elastic convolution, batch norm, and the activation if there is one."""

    def __init__(self, conv: ElasticConv, act: nn.Module | None = None, gain: float = 1.0) -> None:
        super().__init__()
        self.conv, self.bn = conv, ElasticBatchNorm(conv.out_channels)
        self.act = act if act is not None else nn.Identity()
        nn.init.constant_(self.bn.weight, gain)

    def set_active(self, outputs: int, inputs: int, kernel: int | None = None) -> None:
        """Choose the slice."""
        self.conv.set_active(outputs, inputs, kernel)
        self.bn.active = outputs

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.bn(self.conv(x)))
        return out

    def fuse(self) -> nn.Module:
        """One convolution of the active weights, with bias, and the activation."""
        conv = fused_conv(self.conv.extracted(), self.bn.extracted())
        if isinstance(self.act, nn.Identity):
            return conv
        # In place: at small widths a second map costs as much as the convolution.
        act = nn.Hardswish(inplace=True) if isinstance(self.act, nn.Hardswish) else self.act
        return nn.Sequential(conv, act).train(self.training)


class ElasticLinear(nn.Linear):
    """A linear layer of which the first ``outputs`` rows and ``inputs`` columns run."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True) -> None:
        super().__init__(inputs, outputs, bias)
        self.active = (outputs, inputs)

    def active_tensors(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias that run."""
        outputs, inputs = self.active
        return self.weight[:outputs, :inputs], None if self.bias is None else self.bias[:outputs]

    def forward(self, x: Tensor) -> Tensor:
        if self.active == (self.out_features, self.in_features):
            return super().forward(x)
        return F.linear(x, *self.active_tensors())

    def extracted(self) -> ElasticLinear:
        """The active slice as a layer."""
        weight, bias = self.active_tensors()
        with self.weight.device:
            made = ElasticLinear(weight.shape[1], weight.shape[0], bias=bias is not None)
        return _filled(made.to(self.weight.dtype), self, weight=weight, bias=bias)


class QueryKeyValue(ElasticLinear):
    """Queries, keys and values in one product; active rows are the first of each of the three parts.

    Args:
        width: channels C of the tokens; queries and keys together have as many each.
        values: channels of all values, V.

    Shape: (B, N, c) -> (B, N, 2c + v).
    """

    def __init__(self, width: int, values: int) -> None:
        super().__init__(width, 2 * width + values, bias=False)
        self.width = width

    def set_active(self, width: int, values: int) -> None:
        """Choose channels of tokens and of values."""
        self.active = (2 * width + values, width)

    def active_tensors(self) -> tuple[Tensor, Tensor | None]:
        """Weight that runs: rows [:c] of the queries, of the keys and [:v] of the values."""
        outputs, inputs = self.active
        starts = ((0, inputs), (self.width, inputs), (2 * self.width, outputs - 2 * inputs))
        return torch.cat([self.weight[start : start + rows, :inputs] for start, rows in starts]), None


class JointNorm(nn.LayerNorm):
    """Layer norm over tokens *and* channels of a picture at once, with a gain and an offset per channel.

    The usual one normalises every token for itself. The published weights depend on this one.

    Shape: (B, N, c) -> (B, N, c), c at most ``width``.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.active = width

    def forward(self, x: Tensor) -> Tensor:
        shape, n = x.shape[1:], x.shape[2]
        return F.layer_norm(x, shape, self.weight[:n].expand(shape), self.bias[:n].expand(shape), self.eps)

    def extracted(self) -> JointNorm:
        """The active channels as a layer."""
        with self.weight.device:
            made = JointNorm(self.active)
        n = self.active
        return _filled(made.to(self.weight.dtype), self, weight=self.weight[:n], bias=self.bias[:n])


class ElasticGate(SqueezeExcitation):
    """Squeeze-and-excitation to a quarter of the channels, with a hard sigmoid."""

    fc1: ElasticConv
    fc2: ElasticConv

    def __init__(self, width: int) -> None:
        super().__init__(width, width // 4, nn.ReLU(), nn.Hardsigmoid())
        self.fc1 = ElasticConv(width, width // 4, bias=True)
        self.fc2 = ElasticConv(width // 4, width, bias=True)

    def set_active(self, width: int) -> None:
        """Choose the channels."""
        self.fc1.set_active(width // 4, width)
        self.fc2.set_active(width, width // 4)


# ---------------------------------------------------------------------------------------------------------------------
# Blocks
# ---------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class MobileSize:
    """Sizes of an inverted bottleneck: channels in and out, inner ones over those in, side of the depthwise kernels."""

    inputs: int
    width: int
    ratio: int
    kernel: int

    @property
    def inner(self) -> int:
        """Channels between the two 1x1 convolutions."""
        return self.inputs * self.ratio


class MobileBlock(nn.Module):
    """Inverted bottleneck: 1x1 wider, depthwise, squeeze-and-excitation, 1x1; with a shortcut always.

    A shortcut over stride 2 is an average pool of 2 (odd sides are padded by zeros, which count), then a bare 1x1
    convolution where widths differ.

    Args:
        size: of the stored weights.
        stride: of the depthwise convolution.
        se: squeeze-and-excitation.
        shortcut: store a 1x1 convolution for shortcuts between different widths.

    Shape: (B, inputs, h, w) -> (B, width, h / stride, w / stride), sides rounded up.
    """

    def __init__(self, size: MobileSize, stride: int = 1, *, se: bool = False, shortcut: bool = True) -> None:
        super().__init__()
        inner, self.stride = size.inner, stride
        wider = size.ratio > 1
        self.expand = ElasticConvNorm(ElasticConv(size.inputs, inner), nn.Hardswish()) if wider else nn.Identity()
        depthwise = ElasticConv(inner, inner, size.kernel, stride, depthwise=True)
        self.depthwise = ElasticConvNorm(depthwise, nn.Hardswish())
        self.se = ElasticGate(inner) if se else nn.Identity()
        self.project = ElasticConvNorm(ElasticConv(inner, size.width), gain=0 if stride == 1 else 1)
        self.shortcut = ElasticConv(size.inputs, size.width) if shortcut else None

    def set_active(self, size: MobileSize) -> None:
        """Choose the slice."""
        if isinstance(self.expand, ElasticConvNorm):
            self.expand.set_active(size.inner, size.inputs)
        self.depthwise.set_active(size.inner, size.inner, size.kernel)
        if isinstance(self.se, ElasticGate):
            self.se.set_active(size.inner)
        self.project.set_active(size.width, size.inner)
        if self.shortcut is not None:
            self.shortcut.set_active(size.width, size.inputs)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.se(self.depthwise(self.expand(x))))
        if self.stride > 1:
            x = F.avg_pool2d(x, 2, padding=(x.shape[2] % 2, x.shape[3] % 2))
        if x.shape[1] != y.shape[1]:
            assert self.shortcut is not None
            x = self.shortcut(x)
        return x + y


def attend(qk: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Attention of heads whose values are wider than their queries.

    PyTorch's fused kernel for processors takes one width alone; without it all products of queries and keys stand in
    memory. So queries and keys are filled up with zeros there. Graphs have their own kernels and stay without.

    Args:
        qk: queries and keys, (B, N, heads, 2, d).
        v: (B, heads, N, e).
        bias: added to the products, (1, heads, N, N).

    Returns:
        (B, heads, N, e).
    """
    dim, wider = qk.shape[4], v.shape[3] - qk.shape[4]
    if wider > 0 and qk.device.type == "cpu" and not (bias.requires_grad or torch.compiler.is_compiling()):
        qk = F.pad(qk, (0, wider))
    q, k = qk.transpose(1, 2).unbind(3)
    return F.scaled_dot_product_attention(q, k, v, bias, scale=dim**-0.5)


def relative_index(reach: int) -> Tensor:
    """Which row of the bias table each pair of cells of a reach x reach map takes: (reach^2, reach^2)."""
    cells = torch.arange(reach)
    steps = cells[:, None] - cells + reach - 1  # (reach, reach), from 0
    return (steps[:, None, :, None] * (2 * reach - 1) + steps[None, :, None, :]).flatten(2).flatten(0, 1)


def sub_grid(table: Tensor, height: int, width: int) -> Tensor:
    """(..., R^2, R^2) over all pairs of cells of a map -> (..., h w, h w), over those of its first rows and columns."""
    reach = round(table.shape[-1] ** 0.5)
    if (height, width) == (reach, reach):
        return table
    if max(height, width) > reach:
        raise InputError(f"this network attends over maps of up to {reach} x {reach} cells, not {width} x {height}")
    pairs = table.unflatten(-1, (reach, reach)).unflatten(-3, (reach, reach))
    return pairs[..., :height, :width, :height, :width].flatten(-2).flatten(-3, -2)


class _Attending(nn.Module):
    """What attention with a bias table and with a baked bias share."""

    def __init__(
        self, norm: JointNorm, qkv: ElasticLinear, value_conv: ElasticConv, proj: ElasticLinear, head_dim: int
    ) -> None:
        super().__init__()
        self.norm, self.qkv, self.value_conv, self.proj = norm, qkv, value_conv, proj
        self.head_dim, self.heads = head_dim, proj.out_features // head_dim

    def bias(self, height: int, width: int) -> Tensor:
        """Added to the products of queries and keys: (1, heads, N, N)."""
        raise NotImplementedError

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        dim, heads = self.head_dim, self.heads
        # Every head takes consecutive channels of queries | keys | values as they come out of the product, so heads cut
        # across the three parts: this is how the published weights were trained.
        parts = self.qkv(self.norm(x)).unflatten(2, (heads, -1))
        qk, v = parts.split((2 * dim, parts.shape[3] - 2 * dim), 3)
        v = self.value_conv(v.flatten(2).mT.unflatten(2, size))  # (B, heads * dv, h, w)
        v = v.flatten(2).mT.unflatten(2, (heads, -1)).transpose(1, 2)  # (B, heads, N, dv)
        mixed = attend(qk.unflatten(3, (2, dim)), v, self.bias(*size))
        out: Tensor = x + self.proj(F.hardswish(mixed.transpose(1, 2).flatten(2)))
        return out


class Attention(_Attending):
    """x + attention of all tokens with a learned bias of their distance; values pass a depthwise 3x3.

    Args:
        width: channels.
        head_dim: of the queries of a head.
        v_scale: channels of a head's values over ``head_dim``.
        index: `relative_index` of the largest map; its side is the reach.

    Shape: (B, h w, c) and (h, w) -> (B, h w, c).
    """

    index: Tensor
    qkv: QueryKeyValue

    def __init__(self, width: int, head_dim: int, v_scale: int, index: Tensor) -> None:
        values = width * v_scale
        conv = ElasticConv(values, values, 3, depthwise=True)
        super().__init__(JointNorm(width), QueryKeyValue(width, values), conv, ElasticLinear(values, width), head_dim)
        self.reach = round(len(index) ** 0.5)
        self.bias_table = nn.Parameter(torch.empty((2 * self.reach - 1) ** 2, self.heads))
        nn.init.trunc_normal_(self.bias_table, std=0.02)
        self.register_buffer("index", index, persistent=False)

    def set_active(self, width: int, v_scale: int) -> None:
        """Choose channels and those of the values."""
        values = width * v_scale
        self.heads = width // self.head_dim
        self.norm.active = width
        self.qkv.set_active(width, values)
        self.value_conv.set_active(values, values)
        self.proj.active = (width, values)

    def bias(self, height: int, width: int) -> Tensor:
        """Looked up in the table."""
        index = sub_grid(self.index, height, width)
        return self.bias_table[:, : self.heads][index].permute(2, 0, 1)[None]

    def active_table(self, reach: int) -> Tensor:
        """The table of the active heads, for maps of reach x reach cells."""
        side, rim = 2 * self.reach - 1, self.reach - reach
        grid = self.bias_table.unflatten(0, (side, side))[rim : side - rim, rim : side - rim, : self.heads]
        return grid.flatten(0, 1)

    def fuse(self) -> nn.Module:
        """The same with the biases looked up."""
        return BakedAttention(self)


class BakedAttention(_Attending):
    """Attention whose biases stand ready, (1, heads, R^2, R^2)."""

    baked: Tensor

    def __init__(self, attention: Attention) -> None:
        layers = (attention.qkv.extracted(), attention.value_conv.extracted(), attention.proj.extracted())
        super().__init__(attention.norm.extracted(), *layers, attention.head_dim)
        bias = attention.bias(attention.reach, attention.reach)
        self.register_buffer("baked", bias.detach().contiguous())
        self.train(attention.training)

    def bias(self, height: int, width: int) -> Tensor:
        """A part of what stands ready."""
        return sub_grid(self.baked, height, width)


class FeedForward(nn.Module):
    """x + fc2(hard-swish(fc1(norm x)))."""

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        self.norm = JointNorm(width)
        self.fc1, self.fc2 = ElasticLinear(width, width * ratio), ElasticLinear(width * ratio, width)

    def set_active(self, width: int, ratio: int) -> None:
        """Choose channels and hidden channels over them."""
        self.norm.active = width
        self.fc1.active, self.fc2.active = (width * ratio, width), (width, width * ratio)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.fc2(F.hardswish(self.fc1(self.norm(x))))
        return out


class TransformerBlock(nn.Module):
    """Reduction (in the first block of a stage), attention, feed-forward.

    Shape: (B, c', h', w') -> (B, c, h, w).
    """

    def __init__(self, attention: Attention, mlp: FeedForward, reduction: MobileBlock | None = None) -> None:
        super().__init__()
        self.reduction = reduction if reduction is not None else nn.Identity()
        self.attention, self.mlp = attention, mlp

    def set_active(self, inputs: int, width: int, ratio: int, v_scale: int) -> None:
        """Choose the slice; ``inputs`` channels come into the reduction."""
        if isinstance(self.reduction, MobileBlock):
            self.reduction.set_active(MobileSize(inputs, width, 6, 3))
        self.attention.set_active(width, v_scale)
        self.mlp.set_active(width, ratio)

    def forward(self, x: Tensor) -> Tensor:
        x = self.reduction(x)
        size = (x.shape[2], x.shape[3])
        tokens = self.mlp(self.attention(x.flatten(2).mT, size))
        out: Tensor = tokens.mT.unflatten(2, size)
        return out
