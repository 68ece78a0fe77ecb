"""One sub-network as numbers. Needs no torch.

Architecture   a choice of picture size, stem, and per stage depth, width, ratio, kernel or value scale; all layers of a
               stage share theirs
row            the same as one line of integers, a column a choice: what samplers and searches work on

column of a row   resolution | stem: depth width kernel | stage 1: depth width ratio kernel | ...
                                                        | attention stage: depth width ratio v_scale | ...
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from typing import Any, ClassVar, Literal

from saccade.errors import UsageError

__all__ = ["Architecture", "AttentionStage", "ConvStage", "Stem", "column_names"]


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
        for name, value in zip(column_names(kinds), self.row, strict=True):
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


def _stage(told: Mapping[str, Any]) -> ConvStage | AttentionStage:
    """A stage from its dictionary."""
    choices = {key: value for key, value in told.items() if key != "kind"}
    return AttentionStage(**choices) if told["kind"] == AttentionStage.kind else ConvStage(**choices)


def column_names(kinds: Sequence[str]) -> list[str]:
    """Names of a row's columns, for stages of these kinds (``"conv"``, ``"attention"``)."""
    last = {"conv": "kernel", "attention": "v_scale"}
    stages = [f"stage {i} {n}" for i, k in enumerate(kinds, 1) for n in ("depth", "width", "ratio", last[k])]
    return ["resolution", "stem depth", "stem width", "stem kernel", *stages]
