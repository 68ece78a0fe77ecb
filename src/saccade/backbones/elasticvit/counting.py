"""What a sub-network costs: the published cost model, for many rows at once, and a true count.

The cost model is what training samples by and published figures follow. It counts convolutions, matrix products,
attention and its softmax; norms, biases, activations, pooling and resizing cost nothing. Three of its counts are not
what runs, and are kept because published limits are in its unit:

- a shortcut convolution is counted wherever a convolution stage has stride 2, also where widths agree and none runs;
- squeeze-and-excitation and shortcut of a reduction are left out, and its expansion is counted on (stride h)^2
  positions, more than there are where the side before it is odd;
- the taps of the convolution on the values are left out.

`true_macs` counts what runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from saccade.backbones.elasticvit.architecture import Architecture
from saccade.backbones.elasticvit.catalogue import PUBLISHED, PUBLISHED_ARCHITECTURES
from saccade.backbones.elasticvit.space import Space, StageSpace, largest, smallest
from saccade.errors import UsageError

__all__ = ["as_rows", "check_limit", "cost_macs", "cost_range", "ladder", "map_sides", "true_macs"]

Rows = NDArray[np.int64]


def as_rows(found: Architecture | Sequence[Architecture] | NDArray[np.integer]) -> Rows:
    """Architectures as rows (n, columns) of integers, in the order of `Space.columns`."""
    if isinstance(found, np.ndarray):
        return np.atleast_2d(found).astype(np.int64, copy=False)
    listed = [found] if isinstance(found, Architecture) else found
    return np.array([a.row for a in listed], dtype=np.int64)


def cost_macs(
    found: Architecture | Sequence[Architecture] | NDArray[np.integer], space: Space, num_classes: int = 1000
) -> NDArray[np.float64]:
    """MACs of every architecture by the published cost model, in millions.

    Args:
        found: an architecture, several, or rows (n, columns) that lie in the space; rows are not checked.
        space: whose stages, strides and head they have.
        num_classes: outputs of the classifier.

    Returns:
        (n,) millions of MACs; ten thousand rows take milliseconds.

    Raises:
        UsageError: rows of another length than the space's.
    """
    rows = as_rows(found)
    if rows.shape[1] != len(space.columns):
        raise UsageError(f"a row of this space has {len(space.columns)} numbers, not {rows.shape[1]}")
    depth, width, kernel = rows[:, 1], rows[:, 2], rows[:, 3]
    side = _halved(rows[:, 0])
    total = side**2 * 27 * width + depth * side**2 * width * (kernel**2 + width)
    for i, stage in enumerate(space.stages):
        choices = rows[:, 4 + 4 * i : 8 + 4 * i].T
        count = _conv_stage if stage.kind == "conv" else _attention_stage
        out = _halved(side) if stage.stride == 2 else side
        total = total + count(choices, width, side, out, stage, space)
        width, side = choices[1], out
    head = side**2 * width * space.head_ratio * width + space.head_ratio * width * space.head_width
    millions: NDArray[np.float64] = (total + head + space.head_width * num_classes) / 1e6
    return millions


def _halved(side: Rows) -> Rows:
    return -(-side // 2)


def _conv_stage(choices: Rows, inputs: Rows, side: Rows, out: Rows, stage: StageSpace, space: Space) -> Rows:
    depth, width, ratio, kernel = choices

    def block(cin: Rows, before: Rows) -> Rows:
        inner = cin * ratio
        macs = before**2 * cin * inner + out**2 * inner * (kernel**2 + width)
        return macs + 2 * inner * (inner // 4) if stage.se else macs

    shortcut = np.where((inputs != width) | (stage.stride == 2), out**2 * inputs * width, 0)
    return block(inputs, side) + shortcut + (depth - 1) * block(width, out)


def _attention_stage(choices: Rows, inputs: Rows, side: Rows, out: Rows, stage: StageSpace, space: Space) -> Rows:
    depth, width, ratio, v_scale = choices
    inner, tokens = 6 * inputs, out**2
    reduction = (stage.stride * out) ** 2 * inputs * inner + tokens * inner * (9 + width)
    heads, query, value = width // space.head_dim, space.head_dim, space.head_dim * v_scale
    products = tokens * width * heads * (2 * query + value) + tokens**2 * heads * (query + value)
    softmax, on_values = tokens**2 * heads, tokens * heads * value
    projection, mlp = tokens * heads * value * width, 2 * tokens * width * ratio * width
    return reduction + depth * (products + softmax + on_values + projection + mlp)


def map_sides(found: Architecture, space: Space, side: int | None = None) -> list[int]:
    """Sides of the maps behind the stem and every stage.

    Args:
        side: of the picture; the architecture's resolution by default.
    """
    sides = [-(-(found.resolution if side is None else side) // 2)]
    for stage in space.stages:
        sides.append(-(-sides[-1] // 2) if stage.stride == 2 else sides[-1])
    return sides


def cost_range(space: Space, num_classes: int = 1000) -> tuple[float, float]:
    """Cost of the smallest and the largest architecture, in millions of MACs."""
    low, high = cost_macs([smallest(space), largest(space)], space, num_classes)
    return float(low), float(high)


def check_limit(millions: float, space: Space, num_classes: int = 1000) -> float:
    """A limit on the cost once some architecture meets it.

    Raises:
        UsageError: below the smallest architecture or above the largest; the message says the range.
    """
    low, high = cost_range(space, num_classes)
    if not low <= millions <= high:
        raise UsageError(f"no architecture costs {millions:g} M MACs: this space has {low:.1f} to {high:.1f} M")
    return millions


def ladder(space: Space, num_classes: int = 1000) -> list[Architecture]:
    """Architectures of ascending cost, for the dial: from the smallest over the published ones to the largest.

    Where none is published (other spaces; above the largest published one), choices rise one at a time, the one that
    is furthest from its most first: the resolution, then later stages before earlier ones. What costs under 5 % more
    is passed over.
    """

    def price(found: Architecture) -> float:
        return float(cost_macs(found, space, num_classes)[0])

    made = [smallest(space), *PUBLISHED_ARCHITECTURES.values()] if space == PUBLISHED else [smallest(space)]
    for found in _rising(space):
        if price(found) > 1.05 * price(made[-1]):
            made.append(found)
    return made if made[-1] == largest(space) else [*made[:-1], largest(space)]


def _rising(space: Space) -> Iterator[Architecture]:
    """From the smallest architecture to the largest, a choice at a time."""
    columns, widths = space.columns, set(space.width_columns)
    at = [0] * len(columns)
    while True:
        row, least = [], 0
        for i, column in enumerate(columns):
            value = column.values[at[i]]
            if i in widths:  # they must not fall
                value = least = min(v for v in column.values if v >= max(value, least))
            row.append(value)
        yield space.architecture(row)
        left = [i for i, column in enumerate(columns) if at[i] + 1 < len(column.values)]
        if not left:
            return
        at[min(left, key=lambda i: (at[i] / (len(columns[i].values) - 1), i > 0, -i))] += 1


def true_macs(found: Architecture, space: Space, num_classes: int = 1000) -> int:
    """MACs that a sub-network executes on one picture, by `saccade.cost`: built and counted by shapes alone."""
    import torch

    from saccade.backbones.elasticvit.network import SubNetwork
    from saccade.cost import cost

    with torch.device("meta"):
        model = SubNetwork(found, space, num_classes=num_classes).eval()
        return cost(model, torch.empty(1, 3, found.resolution, found.resolution), timed=False).macs
