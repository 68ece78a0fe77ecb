"""Layers that one layer replaces at inference, and the protocol by which a network is rewritten with them.

A module that has a cheaper equivalent for inference has a method ``fuse() -> nn.Module`` that returns it, wholly fused;
`fuse` walks a network and puts these in place. timm's ``reparameterize_model`` calls the same method.

    conv + batch norm        W' = W g / s     b' = beta + (b - mean) g / s         s = sqrt(var + eps)
    batch norm + linear      W' = W g / s     b' = b + W (beta - mean g / s)
    x + depthwise conv(x)    1 is added to the middle tap of every channel
"""

from __future__ import annotations

import copy
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from saccade.errors import UsageError

__all__ = ["absorb_identity", "affine_of", "folded", "fuse", "fused_conv", "fused_linear"]

M = TypeVar("M", bound=nn.Module)
Norm = nn.BatchNorm1d | nn.BatchNorm2d


def affine_of(norm: Norm) -> tuple[Tensor, Tensor]:
    """Gain and offset (C,) that a batch norm applies at inference.

    Raises:
        UsageError: it keeps no running statistics.
    """
    if norm.running_mean is None or norm.running_var is None:
        raise UsageError("a batch norm without running statistics cannot be fused")
    gain = (norm.running_var + norm.eps).rsqrt()
    if norm.affine:
        gain = gain * norm.weight
    offset = -norm.running_mean * gain
    return gain, offset + norm.bias if norm.affine else offset


@torch.no_grad()
def fused_conv(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """The convolution with bias that equals ``norm(conv(x))`` at inference."""
    gain, offset = affine_of(norm)
    made = copy.deepcopy(conv)
    made.weight.mul_(gain[:, None, None, None])
    made.bias = nn.Parameter((offset if conv.bias is None else offset + conv.bias * gain).to(conv.weight.dtype))
    return made


@torch.no_grad()
def fused_linear(norm: Norm, linear: nn.Linear) -> nn.Linear:
    """The linear layer that equals ``linear(norm(x))`` at inference."""
    gain, offset = affine_of(norm)
    made = nn.Linear(linear.in_features, linear.out_features, device=linear.weight.device, dtype=linear.weight.dtype)
    made.weight.copy_(linear.weight * gain)
    made.bias.copy_(linear.weight @ offset if linear.bias is None else linear.weight @ offset + linear.bias)
    return made.train(linear.training)


def folded(layers: nn.Sequential) -> nn.Sequential:
    """The same sequence with every batch norm that follows a convolution folded into it; identities are left out."""
    made: list[nn.Module] = []
    for layer in layers:
        if isinstance(layer, nn.BatchNorm2d) and made and isinstance(made[-1], nn.Conv2d):
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
    return cast(M, _fused(model))


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
