"""Which sub-networks a training step draws: anything, or neighbours in cost, and of these the promising.

    UniformSampler       every choice uniform, widths not falling; sizes of one step differ by a factor of ten
    NeighbourSampler     a walk over banks of cost; all networks of a step lie in one bank, those of the next step in
                         the same or the next one (complexity-aware sampling); a least network for each group of banks
      + memory           each bank remembers what did well and draws from that now and then; new ones are preferred wide
                         and shallow (performance-aware sampling)

Tang et al., ElasticViT, ICCV 2023, arXiv:2303.09730, sections 4.1 and 4.2. What is drawn is decided by the seed alone.

Where the published code errs, this does what the paper says: least values of kernels and of feed-forward ratios are
kept to (there a least *ratio* is taken for the kernel, and the feed-forward's is dropped), an empty bank gives the
smallest network as the anchor, and entries that left their bank's range are all removed when scores are refreshed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saccade.backbones.elasticvit.architecture import Architecture
from saccade.backbones.elasticvit.catalogue import MIN_ARCHITECTURES, PUBLISHED
from saccade.backbones.elasticvit.counting import Rows, cost_macs, cost_range
from saccade.backbones.elasticvit.space import Space, smallest
from saccade.errors import UsageError
from saccade.training.supernet import Draw

__all__ = [
    "BANKS",
    "SPREAD",
    "Chance",
    "Costs",
    "Memory",
    "NeighbourSampler",
    "Rows",
    "UniformSampler",
    "deep_rather_than_wide",
    "next_bank",
    "scattered_rows",
    "uniform_rows",
    "within",
]

Costs = NDArray[np.float64]
Chance = np.random.Generator

BANKS = (100, 200, 300, 400, 500, 700, 900, 1200)  # lower ends, M MACs of the analytic model
SPREAD = 20.0  # M MACs from the lower to the upper end of a bank
_BLOCK, _MOST = 4_096, 400  # rows drawn at once, and how often, until enough of them fit


# ---------------------------------------------------------------------------------------------------------------------
# Rows at random
# ---------------------------------------------------------------------------------------------------------------------
def uniform_rows(space: Space, count: int, chance: Chance, least: Sequence[int] | None = None) -> Rows:
    """Rows whose every choice is uniform; a width among those that are not below the one before it.

    Args:
        space: what there is to choose.
        count: rows.
        chance: what decides.
        least: a row that no choice may fall below; by default nothing is ruled out.
    """
    floor = [column.values[0] for column in space.columns] if least is None else list(least)
    return _drawn(space, count, chance, floor, lambda places, last: places)


def scattered_rows(space: Space, count: int, chance: Chance) -> Rows:
    """Rows from one end of the space to the other, extremes included far more often than by `uniform_rows`.

    Each row has a leaning: with a probability of its own a choice is uniform, else the least (in half of the rows) or
    the most.
    """
    freedom, upwards = chance.random(count), chance.random(count) < 0.5

    def lean(places: Rows, last: int) -> Rows:
        ends = np.where(upwards, last, -1)
        return np.where(chance.random(count) < freedom, places, ends)

    return _drawn(space, count, chance, [column.values[0] for column in space.columns], lean)


def _drawn(space: Space, count: int, chance: Chance, floor: Sequence[int], change: Callable[[Rows, int], Rows]) -> Rows:
    """Column by column; ``change`` may replace places among a column's values, -1 stands for the least allowed."""
    made = np.empty((count, len(space.columns)), dtype=np.int64)
    widths = space.width_columns
    for i, column in enumerate(space.columns):
        values = np.array(column.values, dtype=np.int64)
        before = made[:, widths[widths.index(i) - 1]] if i in widths[1:] else np.zeros(count, dtype=np.int64)
        first = np.searchsorted(values, np.maximum(before, floor[i]))
        if (first == len(values)).any():
            raise UsageError(f"{column.name}: no value of {column.values} is at least {max(floor[i], before.max())}")
        places = first + np.floor(chance.random(count) * (len(values) - first)).astype(np.int64)
        places = change(places, len(values) - 1)
        made[:, i] = values[np.maximum(places, first)]
    return made


def within(
    space: Space,
    low: float,
    high: float,
    count: int,
    draw: Callable[[int], Rows],
    cost: Callable[[Rows], Costs],
) -> Rows:
    """At least ``count`` rows, all whose cost lies from ``low`` to ``high``.

    Args:
        space: of the rows, for its bounds in the error.
        low, high: in units of ``cost``.
        count: how many are needed; there may be more.
        draw: gives so many rows.
        cost: of rows.

    Raises:
        UsageError: hardly anything of the space costs that; the message names what the space's ends cost.
    """
    found: list[Rows] = []
    for _ in range(_MOST):
        rows = draw(_BLOCK)
        costs = cost(rows)
        found.append(rows[(costs >= low) & (costs <= high)])
        if sum(map(len, found)) >= count:
            return np.concatenate(found)
    ends = cost(np.array([[column.values[end] for column in space.columns] for end in (0, -1)], dtype=np.int64))
    raise UsageError(
        f"only {sum(map(len, found))} of {_MOST * _BLOCK:,} networks drawn cost from {low:g} to {high:g}; "
        f"those of this space cost from {ends[0]:.4g} to {ends[1]:.4g}"
    )


def deep_rather_than_wide(rows: Rows, anchor: Sequence[int], space: Space, classes: int = 1000) -> Costs:
    """How much networks owe to depth rather than width: the lower, the more promising (section 4.2).

    The cost with the widths of an anchor in the attention stages, less the cost with its depths there, M MACs.

    Args:
        rows: (n, columns).
        anchor: a row, of a small network.
        space: of them.
        classes: outputs of the classifier.
    """
    first = sum(stage.kind == "conv" for stage in space.stages)
    costs = []
    for kind in ("width", "depth"):
        names = {f"stage {i} {kind}" for i in range(first + 1, len(space.stages) + 1)}
        changed = rows.copy()
        for i, column in enumerate(space.columns):
            if column.name in names:
                changed[:, i] = anchor[i]
        costs.append(cost_macs(changed, space, classes))
    return costs[0] - costs[1]


# ---------------------------------------------------------------------------------------------------------------------
# Samplers
# ---------------------------------------------------------------------------------------------------------------------
class UniformSampler:
    """Networks of any size together, and the smallest: what the others are compared with.

    Args:
        space: what there is to choose.
        drawn: networks a step, beside the smallest.
        seed: of all chance.
    """

    def __init__(self, space: Space, *, drawn: int = 3, seed: int = 0) -> None:
        self.space, self.drawn = space, drawn
        self.chance = np.random.default_rng(seed)
        self._least = smallest(space)

    def draw(self) -> Draw:
        """The networks of the next step."""
        rows = uniform_rows(self.space, self.drawn, self.chance)
        return Draw(tuple(self.space.architecture(row) for row in rows.tolist()), self._least)

    def tell(self, draw: Draw, scores: Sequence[float]) -> None:
        """Nothing is learnt from scores."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides what comes next, as plain data."""
        return {"chance": self.chance.bit_generator.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.chance.bit_generator.state = dict(state["chance"])


def next_bank(at: int, count: int, chance: Chance) -> int:
    """The bank of the next step: one down, the same, or one up; at the ends it stays twice as often.

    Args:
        at: the present one, from 0.
        count: of banks.
        chance: what decides.
    """
    step = int(chance.integers(-1, 2))
    return min(max(at + step, 0), count - 1)


class Memory:
    """What did well in one bank: rows with their scores, the worst replaced by better ones.

    Args:
        size: the most entries.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.entries: dict[tuple[int, ...], float] = {}

    @property
    def half_full(self) -> bool:
        """Whether it holds at least half of its size."""
        return len(self.entries) >= self.size // 2

    def keep(self, row: Sequence[int], score: float) -> None:
        """Remember a row, or its new score; a full memory gives up its worst entry for a better one."""
        key = tuple(row)
        if key not in self.entries and len(self.entries) >= self.size:
            worst = min(self.entries, key=self.entries.__getitem__)
            if self.entries[worst] >= score:
                return
            del self.entries[worst]
        self.entries[key] = score

    def best(self) -> tuple[int, ...]:
        """The row of the highest score."""
        return max(self.entries, key=self.entries.__getitem__)

    def draw(self, chance: Chance) -> tuple[int, ...]:
        """A row, with the soft-max of the scores as probabilities."""
        rows, scores = list(self.entries), np.array(list(self.entries.values()))
        weights = np.exp(scores - scores.max())
        return rows[int(chance.choice(len(rows), p=weights / weights.sum()))]


class NeighbourSampler:
    """Complexity-aware and performance-aware sampling.

    Args:
        space: what there is to choose.
        banks: their lower ends, M MACs of the analytic model, ascending.
        spread: from the lower to the upper end of a bank, M MACs.
        least: the least network of each group of banks, by the group's upper end (+ ``spread``); by default the
            published ones, and for other spaces the smallest network alone.
        drawn: networks a step, beside the least one.
        memory: whether banks remember.
        sizes: entries of a memory, of banks below ``large`` and from there on.
        large: M MACs.
        probability: of drawing from a memory that is more than half full. 0.2 in the first 100 epochs of the published
            training, 0.15 more in each 100 that follow: set it as training goes on.
        candidates: new networks of which the widest and shallowest is taken.
        classes: outputs of the classifier, for the costs.
        seed: of all chance.

    Raises:
        UsageError: banks that are not ascending, or outside what the space's networks cost; no least network.
    """

    def __init__(
        self,
        space: Space,
        *,
        banks: Sequence[float] = BANKS,
        spread: float = SPREAD,
        least: Mapping[float, Architecture] | None = None,
        drawn: int = 3,
        memory: bool = True,
        sizes: tuple[int, int] = (150, 50),
        large: float = 500.0,
        probability: float = 0.2,
        candidates: int = 5,
        classes: int = 1000,
        seed: int = 0,
    ) -> None:
        self.space, self.banks, self.spread = space, tuple(map(float, banks)), float(spread)
        self.drawn, self.candidates, self.probability, self.classes = drawn, candidates, probability, classes
        self.chance = np.random.default_rng(seed)
        self._smallest = smallest(space)
        self._check_banks()
        alone: Mapping[float, Architecture] = {self.banks[-1]: self._smallest}
        published: Mapping[float, Architecture] = {float(upper): a for upper, a in MIN_ARCHITECTURES.items()}
        by_default = published if space == PUBLISHED else alone
        self.least = dict(sorted((by_default if least is None else least).items()))
        if not self.least:
            raise UsageError("neighbour sampling needs a least network; none was given")
        self.memories = [Memory(sizes[bank >= large]) for bank in self.banks] if memory else None
        self.bank = 0
        self._waiting: list[list[list[int]]] = [[] for _ in self.banks]

    def _check_banks(self) -> None:
        if not self.banks or list(self.banks) != sorted(set(self.banks)) or self.spread <= 0:
            raise UsageError(f"banks of cost ascend and have a width, not {self.banks} by {self.spread:g}")
        low, high = cost_range(self.space, self.classes)
        if self.banks[0] + self.spread < low or self.banks[-1] > high:
            raise UsageError(f"networks of this space cost from {low:.4g} to {high:.4g} M MACs; banks are {self.banks}")

    def _costs(self, rows: Rows) -> Costs:
        return cost_macs(rows, self.space, self.classes)

    def least_of(self, bank: int) -> Architecture:
        """The least network of a bank's group: of the first group that reaches up to it, else of the last."""
        reaching = (a for upper, a in self.least.items() if self.banks[bank] <= upper + self.spread)
        return next(reaching, list(self.least.values())[-1])

    def draw(self) -> Draw:
        """The networks of the next step: one bank's, and the least one of its group."""
        self.bank = next_bank(self.bank, len(self.banks), self.chance)
        rows = [self._one(self.bank) for _ in range(self.drawn)]
        made = tuple(self.space.architecture(row) for row in rows)
        return Draw(made, self.least_of(self.bank), self.bank)

    def _one(self, bank: int) -> Sequence[int]:
        memory = self.memories[bank] if self.memories is not None else None
        chosen = self.chance.random() < self.probability
        if memory is not None and chosen and len(memory.entries) > memory.size // 2:
            return memory.draw(self.chance)
        if memory is None or not memory.half_full:
            return self._new(bank)
        rows = np.array([self._new(bank) for _ in range(self.candidates)], dtype=np.int64)
        found: list[int] = rows[int(self.preference(rows, bank).argmin())].tolist()
        return found

    def _new(self, bank: int) -> list[int]:
        """A network of a bank that was not drawn from memory. What is drawn in excess waits for the next call."""
        waiting = self._waiting[bank]
        if not waiting:
            low, floor = self.banks[bank], self.least_of(bank).row
            rows = within(
                self.space,
                low,
                low + self.spread,
                1,
                lambda count: uniform_rows(self.space, count, self.chance, floor),
                self._costs,
            )
            waiting.extend(rows.tolist())
        return waiting.pop()

    def preference(self, rows: Rows, bank: int) -> Costs:
        """`deep_rather_than_wide` of rows; the anchor is the best network that the cheapest bank remembers.

        In that bank, or while it remembers none, the smallest network is.
        """
        anchor: Sequence[int] = self._smallest.row
        if self.memories is not None and bank > 0 and self.memories[0].entries:
            anchor = self.memories[0].best()
        return deep_rather_than_wide(rows, anchor, self.space, self.classes)

    def tell(self, draw: Draw, scores: Sequence[float]) -> None:
        """Remember how the networks drawn did, e.g. their negative losses."""
        if self.memories is None:
            return
        for architecture, score in zip(draw.drawn, scores, strict=True):
            self.memories[draw.group].keep(architecture.row, float(score))

    def refresh(self, score: Callable[[Architecture], float]) -> None:
        """Score all that is remembered anew, and forget what its bank does not hold (published: each quarter epoch)."""
        for low, memory in zip(self.banks, self.memories or (), strict=False):
            rows = list(memory.entries)
            costs = self._costs(np.array(rows, dtype=np.int64)) if rows else np.empty(0)
            kept = [row for row, cost in zip(rows, costs, strict=True) if low <= cost <= low + self.spread]
            memory.entries = {row: float(score(self.space.architecture(row))) for row in kept}

    # -- to go on where a training stopped

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides what comes next, as plain data."""
        memories = [[[list(row), score] for row, score in m.entries.items()] for m in self.memories or ()]
        return {
            "bank": self.bank,
            "probability": self.probability,
            "memories": memories,
            "waiting": [[list(row) for row in rows] for rows in self._waiting],
            "chance": self.chance.bit_generator.state,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.bank, self.probability = int(state["bank"]), float(state["probability"])
        self._waiting = [[list(row) for row in rows] for rows in state["waiting"]]
        for memory, entries in zip(self.memories or (), state["memories"], strict=True):
            memory.entries = {tuple(row): score for row, score in entries}
        self.chance.bit_generator.state = dict(state["chance"])
