"""Spaces and sub-networks by name: what was published, and a small space for experiments. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from saccade.backbones.elasticvit.architecture import Architecture, AttentionStage, ConvStage, Stem
from saccade.backbones.elasticvit.code import from_code
from saccade.backbones.elasticvit.space import Space, StageSpace, smallest
from saccade.errors import UsageError

__all__ = [
    "MIN_ARCHITECTURES",
    "PUBLISHED",
    "PUBLISHED_ARCHITECTURES",
    "SMALL",
    "SPACES",
    "as_architecture",
    "as_space",
]


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
        return from_code(given, space)
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
