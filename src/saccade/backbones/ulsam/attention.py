"""Subspace attention: all groups at once, and as the loop over groups that the equations are."""

from __future__ import annotations

import re
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.checkpoint import StateDict
from saccade.errors import CheckpointError, InputError, UsageError
from saccade.nn.fuse import affine_of, fused_conv

__all__ = ["LoopedSubspaceAttention", "SubspaceAttention", "grouped_state", "looped_state"]

MOMENTUM = 0.9  # torch's convention: statistics follow the last batch by 90 %, as published


def check(width: int, groups: int) -> None:
    """Refuse groups that do not divide the channels.

    Raises:
        UsageError: no groups, or of unequal sizes.
    """
    if width < 1 or groups < 1 or width % groups:
        raise UsageError(f"{width} channels do not split into {groups} groups of equal size")


def check_input(x: Tensor, width: int) -> None:
    """Refuse what is no map of ``width`` channels; warn where attention has one place alone to look at.

    Raises:
        InputError: another rank, dtype or number of channels, or a map without places.
    """
    if torch.compiler.is_compiling():
        return
    if x.ndim != 4 or x.shape[1] != width or not x.is_floating_point() or 0 in x.shape[2:]:
        raise InputError(f"subspace attention takes float maps (B, {width}, H, W), not {x.dtype} {tuple(x.shape)}")
    if x.shape[2] * x.shape[3] == 1:
        warnings.warn("subspace attention on a map of 1 x 1 doubles it and does nothing else", stacklevel=3)


def share(logits: Tensor) -> Tensor:
    """Soft-max over all places, (B, g, H, W) -> the same; in float32 at least, whatever comes."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    return logits.flatten(2).softmax(-1, dtype=wide).view_as(logits)


def weighted(x: Tensor, logits: Tensor) -> Tensor:
    """x (1 + softmax of its group's logits over all places): (B, C, H, W), (B, g, H, W) -> (B, C, H, W)."""
    groups = logits.shape[1]
    gain = 1 + share(logits).unsqueeze(2)
    return (x.unflatten(1, (groups, -1)) * gain).flatten(1, 2).to(x.dtype)


class SubspaceAttention(nn.Module):
    """Subspace attention of all groups at once, for inference and training (section 3.2).

    Args:
        width: channels C.
        groups: subspaces g; they divide C.

    Shape: (B, C, H, W) -> (B, C, H, W). 5 C + 3 g parameters; 2 C H W multiply-accumulates.

    Raises:
        UsageError: groups that do not divide the channels.
    """

    def __init__(self, width: int, groups: int = 4) -> None:
        super().__init__()
        check(width, groups)
        self.width, self.groups = width, groups
        self.conv_dws = nn.Conv2d(width, width, 1, groups=width)
        self.bn_dws = nn.BatchNorm2d(width, momentum=MOMENTUM)
        self.conv_point = nn.Conv2d(width, groups, 1, groups=groups)
        self.bn_point = nn.BatchNorm2d(groups, momentum=MOMENTUM)

    def forward(self, x: Tensor) -> Tensor:
        check_input(x, self.width)
        pooled = F.max_pool2d(F.relu(self.bn_dws(self.conv_dws(x))), 3, 1, 1)
        return weighted(x, F.relu(self.bn_point(self.conv_point(pooled))))

    def fuse(self) -> nn.Module:
        """Both norms folded; the convolution per channel is a gain and an offset then."""
        return FusedSubspaceAttention(self)


class FusedSubspaceAttention(nn.Module):
    """`SubspaceAttention` at inference."""

    gain: Tensor
    offset: Tensor

    def __init__(self, ours: SubspaceAttention) -> None:
        super().__init__()
        self.width = ours.width
        with torch.no_grad():
            gain, offset = affine_of(ours.bn_dws)
            assert ours.conv_dws.bias is not None
            kernel, bias = ours.conv_dws.weight.flatten(), ours.conv_dws.bias
            self.register_buffer("gain", (kernel * gain)[:, None, None])
            self.register_buffer("offset", (bias * gain + offset)[:, None, None])
        self.conv_point = fused_conv(ours.conv_point, ours.bn_point)

    def forward(self, x: Tensor) -> Tensor:
        check_input(x, self.width)
        pooled = F.max_pool2d(F.relu(torch.addcmul(self.offset, x, self.gain)), 3, 1, 1)
        return weighted(x, F.relu(self.conv_point(pooled)))


class Subspace(nn.Module):
    """One group: (B, C/g, H, W) -> (B, C/g, H, W)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_dws = nn.Conv2d(width, width, 1, groups=width)
        self.bn_dws = nn.BatchNorm2d(width, momentum=MOMENTUM)
        self.conv_point = nn.Conv2d(width, 1, 1)
        self.bn_point = nn.BatchNorm2d(1, momentum=MOMENTUM)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn_dws(self.conv_dws(x)))
        y = F.relu(self.bn_point(self.conv_point(F.max_pool2d(y, 3, 1, 1))))
        out: Tensor = (x + share(y) * x).to(x.dtype)
        return out


class LoopedSubspaceAttention(nn.Module):
    """`SubspaceAttention` group by group: the truth that it is tested against; key names are the published ones."""

    def __init__(self, width: int, groups: int = 4) -> None:
        super().__init__()
        check(width, groups)
        self.width = width
        self.subspaces = nn.ModuleList(Subspace(width // groups) for _ in range(groups))

    def forward(self, x: Tensor) -> Tensor:
        check_input(x, self.width)
        parts = x.chunk(len(self.subspaces), 1)
        return torch.cat([subspace(part) for subspace, part in zip(self.subspaces, parts, strict=True)], 1)


_LOOPED = re.compile(r"^(.*?)subspaces\.(\d+)\.(\w+)\.(\w+)$")


def grouped_state(state: StateDict) -> StateDict:
    """The state of a network with `LoopedSubspaceAttention` for the same one with `SubspaceAttention`.

    Raises:
        CheckpointError: a group is missing.
    """
    made: StateDict = {}
    parts: dict[str, dict[int, Tensor]] = {}
    for name, value in state.items():
        found = _LOOPED.match(name)
        if found is None:
            made[name] = value
        else:
            before, number, layer, leaf = found.groups()
            parts.setdefault(f"{before}{layer}.{leaf}", {})[int(number)] = value
    for name, by_number in parts.items():
        if sorted(by_number) != list(range(len(by_number))):
            raise CheckpointError(f"{name} is there for groups {sorted(by_number)} alone")
        values = [by_number[i] for i in range(len(by_number))]
        made[name] = values[0] if values[0].dim() == 0 else torch.cat(values)
    return made


def looped_state(state: StateDict, groups: int) -> StateDict:
    """The inverse of `grouped_state` for one module (names without prefix)."""
    made: StateDict = {}
    for name, value in state.items():
        values = [value] * groups if value.dim() == 0 else value.chunk(groups)
        made |= {f"subspaces.{i}.{name}": part for i, part in enumerate(values)}
    return made
