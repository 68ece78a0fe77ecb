"""What of a network grows with its cost, told by networks whose options are no lists of widths and depths.

`saccade.backbones.fast_scaling` scales options. Where these are a table of blocks, or a choice out of a space, the
network's ``dimensions`` translate: to numbers that can be scaled, and from scaled numbers back to options.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

__all__ = ["Dimensions", "Row", "as_rows", "moved", "rescaled"]

Numbers = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Dimensions:
    """The numbers of one network, and the way back.

    Attributes:
        numbers: ``widths`` and ``depths``, one a stage each, and ``sides`` of pictures where there is a choice.
        options: of such numbers: what the network's constructor takes.
        choices: of numbers that are not free: what each may be, ascending. Widths with choices never fall.
    """

    numbers: Numbers
    options: Callable[[Numbers], dict[str, Any]]
    choices: Mapping[str, Sequence[Sequence[int]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """Blocks of one width, as in the table of the MobileNetV2 paper.

    Attributes:
        expansion: inner channels over those that come in.
        width: channels out.
        depth: blocks.
        stride: of the first.
    """

    expansion: float
    width: int
    depth: int
    stride: int


def as_rows(blocks: Iterable[tuple[float, int, int]]) -> list[Row]:
    """Rows of blocks (expansion, width, stride): one begins where width, expansion or resolution change."""
    rows: list[Row] = []
    for expansion, width, stride in blocks:
        last = rows[-1] if rows else None
        if last and stride == 1 and (expansion, width) == (last.expansion, last.width):
            rows[-1] = replace(last, depth=last.depth + 1)
        else:
            rows.append(Row(expansion, width, 1, stride))
    return rows


def rescaled(rows: Sequence[Row], numbers: Numbers) -> list[Row]:
    """Rows of other widths and depths; the first of the widths is the stem's."""
    sizes = zip(rows, numbers["widths"][1:], numbers["depths"], strict=True)
    return [replace(row, width=width, depth=depth) for row, width, depth in sizes]


def moved(places: Iterable[int], before: Sequence[int], after: Sequence[int], first: int) -> tuple[int, ...]:
    """Where blocks of rows stand after the rows have become longer or shorter: each at its share of its row.

    Blocks counted as the last of a row stay the last, and two never fall on one.

    Args:
        places: numbers of blocks, counted over all rows.
        before, after: blocks of each row; no row is left with fewer than it has places.
        first: number of the first block.
    """
    found, start, begins = list[int](), first, first
    for old, new in zip(before, after, strict=True):
        own = sorted(p - start for p in places if start <= p < start + old)
        last = -1
        for i, place in enumerate(own):
            wanted = round(place * (new - 1) / (old - 1)) if old > 1 else new - 1
            last = min(max(wanted, last + 1), new - len(own) + i)
            found.append(begins + last)
        start, begins = start + old, begins + new
    return tuple(found)
