"""Subspace attention into networks that are there already, ours or anyone's: behind a block, or in its place."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

from saccade.backbones.ulsam.attention import SubspaceAttention
from saccade.errors import UsageError

__all__ = ["insert_after", "replace_blocks"]


def widths_of(block: nn.Module, name: str) -> tuple[int, int, bool]:
    """Channels in and out of a block, and whether it keeps the resolution, by its convolutions.

    Raises:
        UsageError: it has none.
    """
    convolutions = [m for m in block.modules() if isinstance(m, nn.Conv2d)]
    if not convolutions:
        raise UsageError(f"{name} has no convolutions: it is no block that subspace attention goes into")
    keeps = all(max(m.stride) == 1 for m in convolutions)
    return convolutions[0].in_channels, convolutions[-1].out_channels, keeps


def replacement(block: nn.Module, name: str, groups: int) -> SubspaceAttention:
    """What may stand in the place of a block.

    Raises:
        UsageError: the block changes width or resolution, or its channels do not split.
    """
    inputs, outputs, keeps = widths_of(block, name)
    keeps = keeps and _keeps_shape(block, inputs)
    if inputs != outputs:
        raise UsageError(f"{name} cannot be replaced by attention: it changes the width, {inputs} to {outputs}")
    if not keeps:
        raise UsageError(f"{name} cannot be replaced by attention: it changes the resolution")
    return SubspaceAttention(outputs, groups)


def _keeps_shape(block: nn.Module, width: int) -> bool:
    """Whether a map has the same sides behind the block: its pools and the edges of its convolutions count too."""
    x = torch.empty(1, width, 32, 32, device="meta")
    try:
        with torch.no_grad():
            made = copy.deepcopy(block).to("meta").eval()(x)
    except (RuntimeError, TypeError, ValueError):  # it takes more than a map, or looks at values
        return True
    return not isinstance(made, torch.Tensor) or made.shape[-2:] == x.shape[-2:]


def _block(model: nn.Module, name: str) -> nn.Module:
    try:
        if name:
            return model.get_submodule(name)
        raise AttributeError(name)
    except AttributeError:
        raise UsageError(f"{type(model).__name__} has no block named {name!r}") from None


def _apart(names: Sequence[str]) -> list[str]:
    """The names, one of a kind and none inside another.

    Raises:
        UsageError: a block that is named twice, or a part of one that is named too.
    """
    told = [names] if isinstance(names, str) else list(names)
    for i, name in enumerate(told):
        for other in told[:i] + told[i + 1 :]:
            if name == other or name.startswith(f"{other}."):
                raise UsageError(f"a block takes attention once: {name} is {other} or a part of it")
    return told


def replace_blocks(model: nn.Module, names: Sequence[str], groups: int = 4) -> nn.Module:
    """Put fresh subspace attention in the place of blocks; returns the model, changed.

    Args:
        model: any network, e.g. timm's ``mobilenetv2_100``.
        names: of blocks that keep width and resolution, e.g. ``blocks.4.2``.
        groups: subspaces of each.

    Raises:
        UsageError: no such block, one that changes width or resolution, or one that is named twice; nothing is
            changed then.
    """
    made = {name: replacement(_block(model, name), name, groups) for name in _apart(names)}
    for name, module in made.items():
        model.set_submodule(name, module.train(model.training))
    return model


def insert_after(model: nn.Module, names: Sequence[str], groups: int = 4) -> nn.Module:
    """Put fresh subspace attention behind blocks; returns the model, changed. Arguments as `replace_blocks`.

    A block ``b`` becomes ``b.0``, its attention is ``b.1``.

    Raises:
        UsageError: no such block, or channels that do not split into groups; nothing is changed then.
    """
    made = {}
    for name in _apart(names):
        block = _block(model, name)
        made[name] = nn.Sequential(block, SubspaceAttention(widths_of(block, name)[1], groups))
    for name, module in made.items():
        model.set_submodule(name, module.train(model.training))
    return model
