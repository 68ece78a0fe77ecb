"""Sub-networks as numbers, and the spaces that they are drawn from. Needs no torch.

Space          what may be chosen: picture sizes, stem, and per stage depths, widths, ratios, kernels or value scales
Architecture   one choice of each; all layers of a stage share theirs
row            the same as one line of integers, a column (`Space.columns`) a choice: what samplers and searches work on
code           the same as the published code writes it: ten entries, lists over layers

column of a row   resolution | stem: depth width kernel | stage 1: depth width ratio kernel | ...
                                                        | attention stage: depth width ratio v_scale | ...
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

from saccade.errors import UsageError

__all__ = [
    "MIN_ARCHITECTURES",
    "PUBLISHED",
    "PUBLISHED_ARCHITECTURES",
    "SMALL",
    "SPACES",
    "Architecture",
    "AttentionStage",
    "Column",
    "ConvStage",
    "Space",
    "StageSpace",
    "Stem",
    "as_architecture",
    "as_space",
    "largest",
    "smallest",
]

#: the entries of the published code's list, in order
ENTRIES = (
    "resolution", "channels", "depths", "conv_ratios", "kernel_sizes",
    "mlp_ratios", "num_heads", "windows", "qk_scale", "v_scale",
)  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# One sub-network
# ---------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Stem:
    """First convolution and the depthwise blocks behind it.

    Args:
        depth: blocks.
        width: channels, of the first convolution too.
        kernel: side of their kernels.
    """

    depth: int
    width: int
    kernel: int = 3


@dataclass(frozen=True)
class ConvStage:
    """Inverted bottlenecks.

    Args:
        depth: blocks.
        width: output channels.
        ratio: inner channels over the block's *input* channels.
        kernel: side of the depthwise kernels.
    """

    kind: ClassVar[Literal["conv", "attention"]] = "conv"

    depth: int
    width: int
    ratio: int
    kernel: int


@dataclass(frozen=True)
class AttentionStage:
    """A reducing inverted bottleneck, then pairs of attention and feed-forward.

    Args:
        depth: pairs.
        width: channels; a head has as many as the space says.
        ratio: hidden channels of the feed-forward over ``width``.
        v_scale: channels of a head's values over those of its queries.
    """

    kind: ClassVar[Literal["conv", "attention"]] = "attention"

    depth: int
    width: int
    ratio: int
    v_scale: int


@dataclass(frozen=True)
class Architecture:
    """One sub-network. Whether it lies in a space, `Space.check` tells.

    Args:
        resolution: side to which pictures are resized, in pixels.
        stem, stages: from the picture outwards; convolution stages come first.

    Raises:
        UsageError: no stages, a convolution stage behind an attention stage, a number below 1 or no integer.
    """

    resolution: int
    stem: Stem
    stages: tuple[ConvStage | AttentionStage, ...]

    def __post_init__(self) -> None:
        kinds = [s.kind for s in self.stages]
        if not kinds or sorted(kinds, reverse=True) != kinds:
            raise UsageError(f"stages are some of 'conv', then some of 'attention'; not {kinds}")
        for name, value in zip(_names(kinds), self.row, strict=True):
            if type(value) is not int or value < 1:
                raise UsageError(f"{name} is {value!r}, it must be a whole number of at least 1")

    @property
    def row(self) -> tuple[int, ...]:
        """All choices as one line, in the order of `Space.columns`."""
        parts = (self.stem, *self.stages)
        return (self.resolution, *(value for part in parts for value in astuple(part)))

    def to_dict(self) -> dict[str, Any]:
        """The choices by name, ready for JSON."""
        stages = [{"kind": s.kind, **asdict(s)} for s in self.stages]
        return {"resolution": self.resolution, "stem": asdict(self.stem), "stages": stages}

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Architecture:
        """What `to_dict` gave.

        Raises:
            UsageError: names are missing or unknown.
        """
        try:
            return cls(told["resolution"], Stem(**told["stem"]), tuple(map(_stage, told["stages"])))
        except (KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"this describes no ElasticViT architecture: {error}") from error

    def to_json(self) -> str:
        """`to_dict` as a line of JSON."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> Architecture:
        """What `to_json` gave.

        Raises:
            UsageError: no JSON, or not of an architecture.
        """
        try:
            return cls.from_dict(json.loads(text))
        except ValueError as error:
            if isinstance(error, UsageError):
                raise
            raise UsageError(f"an architecture is to be read from JSON, this is none: {error}") from error

    def to_code(self, head_dim: int = 16) -> list[Any]:
        """The published code's list of ten entries, ready for JSON.

        Args:
            head_dim: channels of a head, as the space has it.
        """
        conv = [s for s in self.stages if isinstance(s, ConvStage)]
        attention = [s for s in self.stages if isinstance(s, AttentionStage)]
        stem = self.stem
        ones = [1 for s in attention for _ in range(s.depth)]
        return [
            self.resolution,
            [stem.width, *(s.width for s in self.stages)],
            [stem.depth, *(s.depth for s in self.stages)],
            [1] * stem.depth + [s.ratio for s in conv for _ in range(s.depth)],
            [stem.kernel] * stem.depth + [s.kernel for s in conv for _ in range(s.depth)],
            [s.ratio for s in attention for _ in range(s.depth)],
            [s.width // head_dim for s in attention for _ in range(s.depth)],
            ones,
            list(ones),
            [s.v_scale for s in attention for _ in range(s.depth)],
        ]

    @classmethod
    def from_code(cls, code: Sequence[Any], space: Space | None = None) -> Architecture:
        """From the published code's list of ten entries.

        Args:
            code: resolution, channels, depths, conv_ratios, kernel_sizes, mlp_ratios, num_heads, windows, qk_scale,
                v_scale; the first channels and depths are the stem's, the others are lists over layers.
            space: where it must lie; the published one by default.

        Raises:
            UsageError: lists of wrong lengths, layers of a stage that differ, or choices outside the space; the
                message names entry and stage.
        """
        return _decoded(code, PUBLISHED if space is None else space)


def _stage(told: Mapping[str, Any]) -> ConvStage | AttentionStage:
    """A stage from its dictionary."""
    choices = {key: value for key, value in told.items() if key != "kind"}
    return AttentionStage(**choices) if told["kind"] == AttentionStage.kind else ConvStage(**choices)


def _names(kinds: Sequence[str]) -> list[str]:
    """Names of a row's columns."""
    last = {"conv": "kernel", "attention": "v_scale"}
    stages = [f"stage {i} {n}" for i, k in enumerate(kinds, 1) for n in ("depth", "width", "ratio", last[k])]
    return ["resolution", "stem depth", "stem width", "stem kernel", *stages]


# ---------------------------------------------------------------------------------------------------------------------
# Spaces
# ---------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Column:
    """One choice of a row.

    Attributes:
        name: e.g. ``stage 3 width``.
        values: what there is to choose, ascending.
    """

    name: str
    values: tuple[int, ...]

    @property
    def kind(self) -> str:
        """What it chooses: resolution, depth, width, ratio, kernel or v_scale."""
        return self.name.split()[-1]


@dataclass(frozen=True)
class StageSpace:
    """What may be chosen in one stage; every tuple ascending.

    Args:
        kind: ``"conv"`` or ``"attention"``.
        depths, widths, ratios: as `ConvStage` and `AttentionStage`.
        extras: kernels of a convolution stage (3, 5), value scales of an attention stage.
        stride: of its first block.
        se: squeeze-and-excitation in the blocks of a convolution stage (reductions of attention stages always have it).
    """

    kind: Literal["conv", "attention"]
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    ratios: tuple[int, ...]
    extras: tuple[int, ...]
    stride: int = 2
    se: bool = False

    @property
    def choices(self) -> tuple[tuple[int, ...], ...]:
        """Values of the four columns."""
        return (self.depths, self.widths, self.ratios, self.extras)


@dataclass(frozen=True)
class Space:
    """What sub-networks may be; the supernet of it holds the largest.

    Args:
        resolutions: sides of the resized picture, ascending.
        stages: convolution stages, then attention stages.
        stem_depths, stem_widths, stem_kernels: choices of the stem.
        head_dim: channels of an attention head's queries.
        head_ratio: channels of the first layer of the head over the last width.
        head_width: channels of its second layer.

    Raises:
        UsageError: a list of choices is empty or not ascending, kernels other than 3 and 5, widths that do not divide
            into heads, a largest width below that of the stage before; the message names the column.
    """

    resolutions: tuple[int, ...]
    stages: tuple[StageSpace, ...]
    stem_depths: tuple[int, ...] = (1, 2)
    stem_widths: tuple[int, ...] = (16, 24)
    stem_kernels: tuple[int, ...] = (3, 5)
    head_dim: int = 16
    head_ratio: int = 6
    head_width: int = 1984

    def __post_init__(self) -> None:
        kinds = [s.kind for s in self.stages]
        if not kinds or sorted(kinds, reverse=True) != kinds or not set(kinds) <= {"conv", "attention"}:
            raise UsageError(f"stages are some of 'conv', then some of 'attention'; not {kinds}")
        for column in self.columns:
            values = column.values
            if not values or list(values) != sorted(set(values)) or values[0] < 1:
                raise UsageError(f"{column.name}: choices are to be at least one, ascending, from 1; not {values}")
            if column.kind == "kernel" and not set(values) <= {3, 5}:
                raise UsageError(f"{column.name}: kernels are 3 or 5, not {values}")
        for i, stage in enumerate(self.stages, 1):
            if stage.stride not in (1, 2):
                raise UsageError(f"stage {i}: the stride is 1 or 2, not {stage.stride}")
            if stage.kind == "attention" and any(w % self.head_dim for w in stage.widths):
                raise UsageError(f"stage {i}: widths {stage.widths} must divide by the head's {self.head_dim} channels")
        for before, after in pairwise(self.columns[i] for i in self.width_columns):
            if after.values[-1] < before.values[-1]:
                raise UsageError(f"the largest {after.name}, {after.values[-1]}, is less than that of {before.name}")

    @property
    def columns(self) -> tuple[Column, ...]:
        """The choices of a row, in order."""
        stem = (self.stem_depths, self.stem_widths, self.stem_kernels)
        choices = [self.resolutions, *stem, *(c for s in self.stages for c in s.choices)]
        return tuple(map(Column, _names([s.kind for s in self.stages]), choices))

    @property
    def width_columns(self) -> tuple[int, ...]:
        """Numbers of the columns that hold widths, stem first: along them values must not fall."""
        return tuple(i for i, column in enumerate(self.columns) if column.kind == "width")

    def architecture(self, row: Sequence[int]) -> Architecture:
        """The architecture of a row, checked.

        Raises:
            UsageError: as `check`, or a row of another length.
        """
        if len(row) != len(self.columns):
            raise UsageError(f"a row of this space has {len(self.columns)} numbers, not {len(row)}")
        values = [int(v) for v in row]
        stages = [
            (ConvStage if s.kind == "conv" else AttentionStage)(*values[4 + 4 * i : 8 + 4 * i])
            for i, s in enumerate(self.stages)
        ]
        found = Architecture(values[0], Stem(*values[1:4]), tuple(stages))
        self.check(found)
        return found

    def check(self, found: Architecture) -> None:
        """Refuse what does not lie in this space.

        Raises:
            UsageError: the message names the entry and the stage, and what there is to choose.
        """
        ours, theirs = [s.kind for s in self.stages], [s.kind for s in found.stages]
        if ours != theirs:
            raise UsageError(f"the space has stages {ours}, the architecture has {theirs}")
        row = found.row
        for column, value in zip(self.columns, row, strict=True):
            if value not in column.values:
                raise UsageError(f"{column.name} is {value}; the space has {', '.join(map(str, column.values))}")
        for before, after in pairwise(self.width_columns):
            if row[after] < row[before]:
                raise UsageError(
                    f"{self.columns[after].name} is {row[after]}, less than {self.columns[before].name}, "
                    f"{row[before]}: widths must not fall from stage to stage"
                )

    def to_dict(self) -> dict[str, Any]:
        """All fields by name, ready for JSON."""
        told: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return told

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Space:
        """What `to_dict` gave.

        Raises:
            UsageError: names are missing or unknown, or the choices describe no space.
        """
        try:
            stages = tuple(StageSpace(**_tuples(stage)) for stage in told["stages"])
            return cls(**{**_tuples(told), "stages": stages})
        except (KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"this describes no ElasticViT space: {error}") from error


def _tuples(told: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in told.items()}


def as_architecture(given: Architecture | str | Mapping[str, Any] | Sequence[Any], space: Space) -> Architecture:
    """An architecture of this space from a published name (``"t1"``), a code, a dictionary, or itself.

    Raises:
        UsageError: no such name, a code or a dictionary that describes none, or one outside the space.
    """
    if isinstance(given, str):
        if given not in PUBLISHED_ARCHITECTURES:
            raise UsageError(f"no architecture {given!r}; there are {', '.join(PUBLISHED_ARCHITECTURES)}")
        given = PUBLISHED_ARCHITECTURES[given]
    if isinstance(given, Mapping):
        given = Architecture.from_dict(given)
    if not isinstance(given, Architecture):
        return Architecture.from_code(given, space)
    space.check(given)
    return given


def as_space(given: Space | str | Mapping[str, Any]) -> Space:
    """A space from its name (`SPACES`), its dictionary or itself.

    Raises:
        UsageError: no space of that name, or a dictionary that describes none.
    """
    if isinstance(given, Space):
        return given
    if isinstance(given, str):
        if given not in SPACES:
            raise UsageError(f"no space {given!r}; there are {', '.join(SPACES)}")
        return SPACES[given]
    return Space.from_dict(given)


def smallest(space: Space) -> Architecture:
    """The least of every choice, widths raised where they would fall."""
    return _extreme(space, 0)


def largest(space: Space) -> Architecture:
    """The most of every choice: what the supernet holds."""
    return _extreme(space, -1)


def _extreme(space: Space, end: int) -> Architecture:
    row = [column.values[end] for column in space.columns]
    for before, after in pairwise(space.width_columns):
        row[after] = min(w for w in space.columns[after].values if w >= max(row[before], row[after]))
    return space.architecture(row)


# ---------------------------------------------------------------------------------------------------------------------
# The published code's lists
# ---------------------------------------------------------------------------------------------------------------------
def _decoded(code: Sequence[Any], space: Space) -> Architecture:
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


# ---------------------------------------------------------------------------------------------------------------------
# What was published
# ---------------------------------------------------------------------------------------------------------------------
def _conv(depths: tuple[int, int], widths: tuple[int, int], se: bool, ratios: tuple[int, int]) -> StageSpace:
    return StageSpace("conv", _range(depths), _range(widths, 8), _range(ratios), (3, 5), se=se)


def _attention(
    depths: tuple[int, int],
    widths: tuple[int, int],
    head_dim: int,
    ratios: tuple[int, int],
    v_scales: tuple[int, int],
    stride: int = 2,
) -> StageSpace:
    return StageSpace("attention", _range(depths), _range(widths, head_dim), _range(ratios), _range(v_scales), stride)


def _range(ends: tuple[int, int], step: int = 1) -> tuple[int, ...]:
    return tuple(range(ends[0], ends[1] + 1, step))


#: the published space
PUBLISHED = Space(
    resolutions=(128, 160, 176, 192, 224, 256),
    stages=(
        _conv((2, 5), (16, 32), False, (3, 6)),
        _conv((2, 6), (16, 48), True, (3, 6)),
        _attention((1, 5), (48, 96), 16, (2, 5), (2, 4)),
        _attention((1, 6), (80, 160), 16, (2, 5), (2, 4), stride=1),
        _attention((1, 6), (144, 288), 16, (2, 5), (2, 4)),
        _attention((1, 6), (160, 320), 16, (2, 5), (2, 4)),
    ),
)

#: a space for small experiments on pictures of 64 to 96 px: 2 to 21 M MACs
SMALL = Space(
    resolutions=(64, 96),
    stages=(
        _conv((1, 2), (16, 24), False, (2, 3)),
        _conv((1, 2), (16, 24), True, (2, 3)),
        _attention((1, 2), (16, 24), 8, (2, 3), (2, 3)),
        _attention((1, 2), (24, 32), 8, (2, 3), (1, 2)),
    ),
    head_dim=8,
    head_ratio=2,
    head_width=64,
)

SPACES: dict[str, Space] = {"elasticvit": PUBLISHED, "elasticvit-small": SMALL}


def _net(resolution: int, stem: tuple[int, int, int], *stages: tuple[int, int, int, int]) -> Architecture:
    """Rows of (depth, width, ratio, kernel | v_scale), two of convolutions first."""
    conv = [ConvStage(*s) for s in stages[:2]]
    return Architecture(resolution, Stem(*stem), (*conv, *(AttentionStage(*s) for s in stages[2:])))


#: the networks that were found and published, by the end of their registered names
PUBLISHED_ARCHITECTURES: dict[str, Architecture] = {
    "t1": _net(128, (1, 16, 3), (2, 24, 3, 3), (3, 32, 3, 3),
               (1, 64, 2, 2), (1, 96, 2, 2), (1, 176, 3, 2), (1, 272, 4, 2)),
    "t2": _net(160, (1, 16, 3), (2, 24, 3, 3), (3, 40, 3, 3),
               (1, 48, 3, 2), (1, 96, 4, 2), (2, 176, 3, 2), (2, 256, 2, 2)),
    "s1": _net(192, (1, 16, 3), (3, 24, 3, 3), (3, 40, 3, 3),
               (2, 64, 2, 2), (2, 96, 2, 2), (2, 192, 3, 2), (2, 272, 4, 2)),
    "s2": _net(224, (1, 16, 3), (3, 24, 3, 3), (3, 48, 3, 3),
               (2, 64, 2, 2), (2, 96, 2, 2), (2, 192, 2, 2), (2, 256, 4, 2)),
    "m": _net(224, (1, 16, 5), (3, 32, 3, 3), (5, 48, 3, 3),
              (2, 64, 2, 2), (2, 96, 4, 2), (2, 192, 4, 2), (2, 288, 5, 2)),
    "l1": _net(256, (1, 16, 5), (3, 24, 3, 5), (3, 40, 6, 5),
               (2, 64, 4, 2), (2, 96, 3, 2), (2, 192, 4, 2), (2, 320, 4, 2)),
    "l2": _net(256, (1, 16, 3), (3, 24, 6, 3), (4, 40, 6, 3),
               (2, 80, 3, 2), (2, 128, 2, 2), (2, 256, 3, 2), (2, 304, 5, 3)),
    "l3": _net(256, (1, 16, 5), (3, 32, 5, 3), (4, 48, 5, 5),
               (2, 80, 4, 2), (2, 128, 4, 2), (2, 256, 3, 2), (2, 320, 5, 2)),
}  # fmt: skip

#: the smallest sub-network of each group of sizes, by the group's upper end in M MACs ("multiple min")
MIN_ARCHITECTURES: dict[int, Architecture] = {
    200: smallest(PUBLISHED),
    400: _net(176, (1, 16, 3), (3, 24, 3, 3), (3, 32, 3, 3),
              (2, 48, 2, 2), (2, 96, 3, 2), (2, 176, 2, 2), (2, 224, 2, 2)),
    800: _net(224, (1, 16, 3), (3, 24, 3, 3), (3, 32, 3, 3),
              (2, 64, 2, 2), (2, 96, 2, 2), (2, 192, 2, 2), (2, 256, 2, 2)),
}  # fmt: skip
