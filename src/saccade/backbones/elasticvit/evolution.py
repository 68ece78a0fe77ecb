"""Evolutionary search for the best sub-network within a window of cost.

    start (bank entries, random rows) -- legal? -- fitness -- best 256 -- mutations, crossovers -- legal? -- fitness ...

Cost and fitness are any functions: MACs or predicted milliseconds of rows, accuracy or anything else of a network.
Settings are the published ones (Tang et al., ElasticViT, ICCV 2023, arXiv:2303.09730): a mutation draws all depths anew
with probability 0.4 and each other choice with 0.2, the new value being random with 0.45 and else the least.

Where the published code errs: it draws a new resolution and keeps the old one, never draws the greatest depth, steps
widths of convolution stages by 16 and those of attention stages by 8 (the wrong way round), lets a width rise above the
next one's, and sets every stem to kernel 3. Here a mutation can reach every network of the space and makes no other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from saccade.backbones.elasticvit.architecture import Architecture
from saccade.backbones.elasticvit.counting import Rows, as_rows
from saccade.backbones.elasticvit.sampling import Chance, Costs, scattered_rows, uniform_rows, within
from saccade.backbones.elasticvit.space import Space
from saccade.errors import UsageError
from saccade.progress import bar

__all__ = ["Candidate", "Outcome", "Settings", "cross", "evolve", "mutate"]


@dataclass(frozen=True)
class Candidate:
    """One network that was tried.

    Attributes:
        architecture: of it.
        cost: in the search's unit.
        fitness: higher is better.
    """

    architecture: Architecture
    cost: float
    fitness: float


@dataclass(frozen=True)
class Outcome:
    """What a search came to.

    Attributes:
        best: the network of the highest fitness.
        course: the highest fitness after the start and after each generation.
        evaluated: networks whose fitness was taken.
    """

    best: Candidate
    course: tuple[float, ...]
    evaluated: int


@dataclass(frozen=True)
class Settings:
    """How large a search is, and how bold; the defaults are published.

    Args:
        population: networks to start from.
        generations: after the start.
        parents: the best of all so far, from which new ones come.
        mutations, crossovers: new networks of each kind a generation.
        choice: probability that a choice is mutated.
        depths: probability that all depths are mutated together.
        random: probability that a mutated choice is any, else it is the least.
        seed: of all chance.

    Raises:
        UsageError: a number below 1 (generations: below 0), or a probability outside [0, 1].
    """

    population: int = 512
    generations: int = 40
    parents: int = 256
    mutations: int = 128
    crossovers: int = 128
    choice: float = 0.2
    depths: float = 0.4
    random: float = 0.45
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("population", "parents"):
            if getattr(self, name) < 1:
                raise UsageError(f"a search needs {name} of at least 1, not {getattr(self, name)}")
        for name in ("generations", "mutations", "crossovers"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} of a search cannot be {getattr(self, name)}")
        for name in ("choice", "depths", "random"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} is a probability, from 0 to 1, not {getattr(self, name)}")


def mutate(row: Sequence[int], space: Space, settings: Settings, chance: Chance) -> list[int]:
    """Another network near to one: widths stay between their neighbours', everything else is free.

    Args:
        row: of the space.
        space: whose values are drawn.
        settings: the probabilities.
        chance: what decides.
    """
    made, widths = list(row), space.width_columns
    together = chance.random() < settings.depths
    for i, column in enumerate(space.columns):
        if not (together if column.kind == "depth" else chance.random() < settings.choice):
            continue
        values = column.values
        if i in widths:
            place = widths.index(i)
            low = made[widths[place - 1]] if place else 0
            high = made[widths[place + 1]] if place + 1 < len(widths) else values[-1]
            values = tuple(v for v in values if low <= v <= high)
        made[i] = values[int(chance.integers(len(values)))] if chance.random() < settings.random else values[0]
    return made


def cross(first: Sequence[int], second: Sequence[int], space: Space, chance: Chance) -> list[int]:
    """A network that takes each kind of choice whole from one of two: all widths, all depths, all kernels, ..."""
    kinds = ["stem"] * 4 + [stage.kind for stage in space.stages for _ in range(4)]
    made, taken = list(first), dict[tuple[str, str], bool]()
    for i, column in enumerate(space.columns):
        whole = column.kind in ("depth", "width")  # of stem, convolution and attention stages together
        key = ("all" if whole else kinds[i], column.kind)
        if taken.setdefault(key, bool(chance.random() < 0.5)):
            made[i] = second[i]
    return made


def evolve(
    space: Space,
    fitness: Callable[[Architecture], float],
    cost: Callable[[Rows], Costs],
    window: tuple[float, float],
    settings: Settings | None = None,
    *,
    start: Sequence[Architecture] = (),
    what: str = "searching",
) -> Outcome:
    """Search for the network of the highest fitness whose cost lies in a window.

    Args:
        space: what there is to choose.
        fitness: of an architecture, e.g. accuracy after `recalibrate`; taken once of each network.
        cost: of rows (n, columns), e.g. MACs or predicted milliseconds.
        window: least and greatest cost, in units of ``cost``.
        settings: how large the search is; by default as published.
        start: networks to begin with, e.g. what training remembered; those outside the window are left out.
        what: the words before the progress bar.

    Raises:
        UsageError: an empty window, or one that holds (almost) no network of the space.
    """
    settings = settings or Settings()
    low, high = window
    if not low <= high:
        raise UsageError(f"the window of cost is empty: from {low:g} to {high:g}")
    search = _Search(space, fitness, cost, window, settings)
    total = settings.population + settings.generations * (settings.mutations + settings.crossovers)
    with bar(what, total) as advance:
        search.start(start, advance)
        course = [search.tried[0].fitness]
        for _ in range(settings.generations):
            search.generation(advance)
            course.append(search.tried[0].fitness)
    return Outcome(search.tried[0], tuple(course), len(search.tried))


class _Search:
    """A running search: all that was tried, the best first."""

    def __init__(
        self,
        space: Space,
        fitness: Callable[[Architecture], float],
        cost: Callable[[Rows], Costs],
        window: tuple[float, float],
        settings: Settings,
    ) -> None:
        self.space, self.fitness, self.cost, self.window, self.settings = space, fitness, cost, window, settings
        self.chance = np.random.default_rng(settings.seed)
        self.tried: list[Candidate] = []
        self._seen: set[tuple[int, ...]] = set()

    def start(self, given: Sequence[Architecture], advance: Callable[[float], None]) -> None:
        """The given networks, filled up with random ones."""
        if given:
            self._try(as_rows(given), advance)
        missing = self.settings.population - len(self.tried)
        if missing > 0:
            rows = within(self.space, *self.window, missing, self._random, self.cost)
            self._try(rows[:missing], advance)

    def _random(self, count: int) -> Rows:
        """Half of them uniform, half of them from all over the space: windows at its ends are met too."""
        half = count // 2
        scattered = scattered_rows(self.space, count - half, self.chance)
        rows = np.concatenate([uniform_rows(self.space, half, self.chance), scattered])
        return self.chance.permutation(rows)

    def generation(self, advance: Callable[[float], None]) -> None:
        """New networks of the best ones so far."""
        best = [c.architecture.row for c in self.tried[: self.settings.parents]]

        def pick() -> Sequence[int]:
            return best[int(self.chance.integers(len(best)))]

        for wanted, make in (
            (self.settings.mutations, lambda: mutate(pick(), self.space, self.settings, self.chance)),
            (self.settings.crossovers, lambda: cross(pick(), pick(), self.space, self.chance)),
        ):
            if wanted:
                self._try(np.array([make() for _ in range(10 * wanted)], dtype=np.int64), advance, wanted)

    def _try(self, rows: Rows, advance: Callable[[float], None], most: int | None = None) -> None:
        """Take the fitness of legal rows that were not seen before, of ``most`` at the most."""
        low, high = self.window
        taken = 0
        for row, cost in zip(rows.tolist(), self.cost(rows).tolist(), strict=True):
            if taken == most:
                break
            if tuple(row) in self._seen or not low <= cost <= high:
                continue
            self._seen.add(tuple(row))
            architecture = self.space.architecture(row)
            self.tried.append(Candidate(architecture, cost, float(self.fitness(architecture))))
            taken += 1
            advance(1)
        self.tried.sort(key=lambda c: -c.fitness)
