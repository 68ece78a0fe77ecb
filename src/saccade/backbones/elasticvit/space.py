"""Spaces of sub-networks: what may be chosen, and whether a choice lies inside. Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal

from saccade.backbones.elasticvit.architecture import Architecture, AttentionStage, ConvStage, Stem, column_names
from saccade.errors import UsageError

__all__ = ["Column", "Space", "StageSpace", "largest", "smallest"]


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
        return tuple(map(Column, column_names([s.kind for s in self.stages]), choices))

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
