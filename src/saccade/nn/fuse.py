"""Layers that one layer replaces at inference, and the protocol by which a network is rewritten with them.

A module that has a cheaper equivalent for inference has a method ``fuse() -> nn.Module`` that returns it, wholly fused;
`fuse` walks a network and puts these in place. timm's ``reparameterize_model`` calls the same method.

    conv + batch norm        W' = W g / s     b' = beta + (b - mean) g / s         s = sqrt(var + eps)
    batch norm + linear      W' = W g / s     b' = b + W (beta - mean g / s)
    x + depthwise conv(x)    1 is added to the middle tap of every channel
    conv + conv              W'[o, i] = sum over m of W2[o, m] (*) W1[m, i]        b' = b2 + sum of W2 times b1
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import UsageError

__all__ = ["absorb_identity", "affine_of", "folded", "fuse", "fused_conv", "fused_linear", "is_batch_norm", "joined"]

M = TypeVar("M", bound=nn.Module)


def affine_of(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Gain and offset (C,) that a batch norm applies at inference, synchronised and frozen ones included.

    Raises:
        UsageError: it keeps no running statistics.
    """
    told: Any = norm
    if not is_batch_norm(norm):
        raise UsageError("a batch norm without running statistics cannot be fused")
    gain: Tensor = (told.running_var + told.eps).rsqrt()
    if told.affine:
        gain = gain * told.weight
    offset: Tensor = -told.running_mean * gain
    return gain, offset + told.bias if told.affine else offset


def is_batch_norm(module: nn.Module) -> bool:
    """Whether it normalises by running statistics: torch's batch norms, and what timm's and torch's tools make of them
    for several devices (``SyncBatchNorm``) or for tuning (``FrozenBatchNorm2d``), which are no ``BatchNorm2d``."""
    return all(isinstance(getattr(module, name, None), Tensor) for name in ("running_mean", "running_var"))


@torch.no_grad()
def fused_conv(conv: nn.Conv2d, norm: nn.Module) -> nn.Conv2d:
    """The convolution with bias that equals ``norm(conv(x))`` at inference."""
    gain, offset = affine_of(norm)
    made = copy.deepcopy(conv)
    made.weight.mul_(gain[:, None, None, None])
    made.bias = nn.Parameter((offset if conv.bias is None else offset + conv.bias * gain).to(conv.weight.dtype))
    return made


@torch.no_grad()
def fused_linear(norm: nn.Module, linear: nn.Linear) -> nn.Linear:
    """The linear layer that equals ``linear(norm(x))`` at inference."""
    gain, offset = affine_of(norm)
    made = nn.Linear(linear.in_features, linear.out_features, device=linear.weight.device, dtype=linear.weight.dtype)
    made.weight.copy_(linear.weight * gain)
    made.bias.copy_(linear.weight @ offset if linear.bias is None else linear.weight @ offset + linear.bias)
    return made.train(linear.training)


@torch.no_grad()
def joined(first: nn.Conv2d, second: nn.Conv2d) -> nn.Conv2d:
    """``second(first(x))`` as one convolution with bias.

    Raises:
        UsageError: the first has strides, or the second padding, or one of them dilation, groups or a padding of its
            own kind: no single convolution gives the same numbers then, at the borders at least.
    """
    plain = all(c.groups == 1 and c.dilation == (1, 1) and c.padding_mode == "zeros" for c in (first, second))
    if not plain or first.stride != (1, 1) or second.padding != (0, 0) or isinstance(first.padding, str):
        raise UsageError("two plain convolutions are joined where the first has stride 1 and the second no padding")
    reach = [side - 1 for side in first.kernel_size]
    # the second one's taps, each spread by the first kernel: a convolution in the full sense, so that one is turned
    taps = F.conv2d(second.weight, first.weight.transpose(0, 1).flip(2, 3), padding=reach)
    size = (taps.shape[2], taps.shape[3])
    stride, padding = (second.stride[0], second.stride[1]), (first.padding[0], first.padding[1])
    made = nn.Conv2d(first.in_channels, second.out_channels, size, stride, padding).to(taps)
    made.weight.copy_(taps)
    assert made.bias is not None
    made.bias.zero_()
    if first.bias is not None:
        made.bias.add_(second.weight.sum((2, 3)) @ first.bias)
    if second.bias is not None:
        made.bias.add_(second.bias)
    return made.train(first.training)


def folded(layers: nn.Sequential) -> nn.Sequential:
    """The same sequence with every batch norm that follows a convolution folded into it; identities are left out."""
    made: list[nn.Module] = []
    for layer in layers:
        if made and is_batch_norm(layer) and isinstance(made[-1], nn.Conv2d):
            made[-1] = fused_conv(made[-1], layer)
        elif not isinstance(layer, nn.Identity):
            made.append(layer)
    return nn.Sequential(*made).train(layers.training)


@torch.no_grad()
def absorb_identity(conv: nn.Conv2d) -> nn.Conv2d:
    """Turn a depthwise convolution that keeps the size into ``x + conv(x)``, in place.

    Raises:
        UsageError: not depthwise, or it does not keep the size.
    """
    height, width = conv.kernel_size
    keeps = conv.stride == (1, 1) and conv.padding == (
        conv.dilation[0] * (height // 2),
        conv.dilation[1] * (width // 2),
    )
    if conv.groups != conv.in_channels or conv.in_channels != conv.out_channels or not keeps or height * width % 2 == 0:
        raise UsageError("an identity goes into depthwise convolutions that keep the size, with odd kernels, alone")
    conv.weight[:, 0, height // 2, width // 2] += 1
    return conv


def fuse(model: M, *, inplace: bool = False) -> M:
    """The same function with fewer layers, for inference.

    Every module that has a cheaper equivalent (``fuse``) is replaced by it; fusing twice changes nothing more. Results
    differ by rounding alone.

    Args:
        model: in evaluation mode.
        inplace: rewrite this network instead of a copy. (Where the network itself is replaced, the result is another
            object all the same.)

    Raises:
        UsageError: the model is in training mode: its running statistics would be frozen without a word.
    """
    if any(m.training for m in model.modules()):
        raise UsageError("fuse() freezes running statistics: call model.eval() first")
    if not inplace:
        model = copy.deepcopy(model)
    names, told = set(model.state_dict()), _options(model)
    fused = _fused(model)
    if set(fused.state_dict()) != names and _options(fused) == told:  # no option makes it: `saccade.save` refuses it
        vars(fused)["saccade_fused"] = True
    return cast(M, fused)


def _options(model: nn.Module) -> dict[str, object]:
    """What `saccade.create` made it with."""
    return dict(getattr(model, "saccade_options", {}))


def _fused(module: nn.Module) -> nn.Module:
    own = getattr(module, "fuse", None)
    if callable(own):
        made: nn.Module = own()
        return made.eval()
    for name, child in module.named_children():
        replacement = _fused(child)
        if replacement is not child:
            module.add_module(name, replacement)
    return module
