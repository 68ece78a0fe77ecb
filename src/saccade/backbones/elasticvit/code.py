"""Sub-networks as the published code writes them: a list of ten entries, most of them lists over layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from saccade.backbones.elasticvit.architecture import Architecture, AttentionStage, ConvStage
from saccade.backbones.elasticvit.space import Space
from saccade.errors import UsageError

__all__ = ["from_code", "to_code"]

#: the entries of the published code's list, in order
ENTRIES = (
    "resolution", "channels", "depths", "conv_ratios", "kernel_sizes",
    "mlp_ratios", "num_heads", "windows", "qk_scale", "v_scale",
)  # fmt: skip


def to_code(found: Architecture, head_dim: int = 16) -> list[Any]:
    """The published code's list of ten entries, ready for JSON.

    Args:
        found: which sub-network.
        head_dim: channels of a head, as the space has it.
    """
    conv = [s for s in found.stages if isinstance(s, ConvStage)]
    attention = [s for s in found.stages if isinstance(s, AttentionStage)]
    stem = found.stem
    ones = [1 for s in attention for _ in range(s.depth)]
    return [
        found.resolution,
        [stem.width, *(s.width for s in found.stages)],
        [stem.depth, *(s.depth for s in found.stages)],
        [1] * stem.depth + [s.ratio for s in conv for _ in range(s.depth)],
        [stem.kernel] * stem.depth + [s.kernel for s in conv for _ in range(s.depth)],
        [s.ratio for s in attention for _ in range(s.depth)],
        [s.width // head_dim for s in attention for _ in range(s.depth)],
        ones,
        list(ones),
        [s.v_scale for s in attention for _ in range(s.depth)],
    ]


def from_code(code: Sequence[Any], space: Space) -> Architecture:
    """From the published code's list of ten entries.

    Args:
        code: resolution, channels, depths, conv_ratios, kernel_sizes, mlp_ratios, num_heads, windows, qk_scale,
            v_scale; the first channels and depths are the stem's, the others are lists over layers.
        space: where it must lie.

    Raises:
        UsageError: lists of wrong lengths, layers of a stage that differ, or choices outside the space; the message
            names entry and stage.
    """
    if isinstance(code, str) or not isinstance(code, Sequence) or len(code) != len(ENTRIES):
        raise UsageError(f"a code has {len(ENTRIES)} entries: {', '.join(ENTRIES)}; this one: {code!r}")
    lists = {name: _integers(name, entry) for name, entry in zip(ENTRIES[1:], code[1:], strict=True)}
    parts = ["stem", *(f"stage {i}" for i in range(1, len(space.stages) + 1))]
    for name in ("channels", "depths"):
        if len(lists[name]) != len(parts):
            raise UsageError(f"{name} has {len(lists[name])} entries, one for each of {', '.join(parts)} is needed")
    convs = 1 + sum(s.kind == "conv" for s in space.stages)
    depths = lists["depths"]
    shared = {}  # name of an entry -> the value of each part
    for name in ENTRIES[3:]:
        first, last = (0, convs) if name in ("conv_ratios", "kernel_sizes") else (convs, len(parts))
        shared[name] = _per_stage(name, lists[name], parts[first:last], depths[first:last])
    _check_fixed(shared, lists["channels"], parts, convs, space.head_dim)
    row: list[Any] = [code[0], depths[0], lists["channels"][0], shared["kernel_sizes"][0]]
    for i in range(1, len(parts)):
        ratio, extra = ("conv_ratios", "kernel_sizes") if i < convs else ("mlp_ratios", "v_scale")
        place = i if i < convs else i - convs
        row += [depths[i], lists["channels"][i], shared[ratio][place], shared[extra][place]]
    for column, value in zip(space.columns, row, strict=True):
        if type(value) is not int:
            raise UsageError(f"{column.name} is {value!r}, it must be a whole number")
    return space.architecture(row)


def _integers(name: str, entry: Any) -> list[Any]:
    if not isinstance(entry, list | tuple):
        raise UsageError(f"{name} is to be a list, not {entry!r}")
    return list(entry)


def _per_stage(name: str, values: list[Any], parts: Sequence[str], depths: Sequence[Any]) -> list[Any]:
    """The one value of each stage from a list over layers."""
    for part, depth in zip(parts, depths, strict=True):
        if type(depth) is not int or depth < 1:
            raise UsageError(f"depths, {part}: {depth!r} is no number of layers")
    if len(values) != sum(depths):
        raise UsageError(
            f"{name} has {len(values)} entries; {', '.join(parts)} have {' + '.join(map(str, depths))} = "
            f"{sum(depths)} layers"
        )
    found, start = [], 0
    for part, depth in zip(parts, depths, strict=True):
        layers = values[start : start + depth]
        start += depth
        if any(v != layers[0] for v in layers):
            raise UsageError(f"{name}, {part}: layers of a stage share their choice, not {layers}")
        found.append(layers[0])
    return found


def _check_fixed(
    shared: Mapping[str, list[Any]], channels: Sequence[Any], parts: Sequence[str], convs: int, head_dim: int
) -> None:
    """What a code writes although there is nothing to choose."""
    if shared["conv_ratios"][0] != 1:
        raise UsageError(f"conv_ratios, stem: the ratio is 1, not {shared['conv_ratios'][0]!r}")
    for i, part in enumerate(parts[convs:]):
        width = channels[convs + i]
        if type(width) is not int or width % head_dim or shared["num_heads"][i] != width // head_dim:
            raise UsageError(
                f"num_heads, {part}: {shared['num_heads'][i]!r} heads of {head_dim} channels do not make a width of "
                f"{width!r}"
            )
        for name, what in (("windows", "attention is global, windows"), ("qk_scale", "the scale of the queries")):
            if shared[name][i] != 1:
                raise UsageError(f"{name}, {part}: {what} is 1, not {shared[name][i]!r}")
