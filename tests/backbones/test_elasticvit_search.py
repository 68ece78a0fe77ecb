"""ElasticViT's samplers and its evolutionary search: what they draw, keep to, and find."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from saccade.backbones.elasticvit.architecture import Architecture
from saccade.backbones.elasticvit.catalogue import MIN_ARCHITECTURES, PUBLISHED, SMALL
from saccade.backbones.elasticvit.counting import as_rows, cost_macs
from saccade.backbones.elasticvit.evolution import Settings, cross, evolve, mutate
from saccade.backbones.elasticvit.sampling import (
    BANKS,
    SPREAD,
    Costs,
    Memory,
    NeighbourSampler,
    Rows,
    UniformSampler,
    next_bank,
    scattered_rows,
    uniform_rows,
    within,
)
from saccade.backbones.elasticvit.space import Space, largest, smallest
from saccade.errors import UsageError

LAST = len(BANKS) - 1


def chance(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# -- rows


@pytest.mark.parametrize("draw", [uniform_rows, scattered_rows])
@pytest.mark.parametrize("space", [PUBLISHED, SMALL])
def test_every_row_drawn_lies_in_the_space_and_every_choice_is_drawn(space: Space, draw: Callable[..., Rows]) -> None:
    rows = draw(space, 2_000, chance())
    for row in rows[:300].tolist():
        space.check(space.architecture(row))
    for i, column in enumerate(space.columns):
        assert set(rows[:, i].tolist()) == set(column.values)


def test_uniform_sampling_jumps_as_published() -> None:
    """Measured with the published code, 10,000 draws: median 488 M, 1 to 99 % 140 to 1,489 M, jumps of 274 M."""
    costs = cost_macs(uniform_rows(PUBLISHED, 10_000, chance()), PUBLISHED)
    jumps = np.abs(np.diff(costs))
    assert np.median(costs) == pytest.approx(488, rel=0.03)
    assert np.percentile(costs, [1, 99]) == pytest.approx([140, 1489], rel=0.04)
    assert np.median(jumps) == pytest.approx(274, rel=0.04)
    assert (jumps > 1_000).mean() == pytest.approx(0.034, abs=0.006)


@pytest.mark.parametrize("upper", sorted(MIN_ARCHITECTURES))
def test_no_choice_falls_below_the_least_network(upper: int) -> None:
    """Kernels and feed-forward ratios too, which the published code lets fall."""
    least = MIN_ARCHITECTURES[upper].row
    rows = uniform_rows(PUBLISHED, 2_000, chance(), least)
    assert (rows >= np.array(least)).all()


def test_a_least_ratio_above_all_kernels_leaves_both_kernels_to_draw() -> None:
    """The published code takes the least ratio for the least kernel: 4 leaves only 5, 6 leaves nothing and it stops."""
    least = list(smallest(PUBLISHED).row)
    for i, column in enumerate(PUBLISHED.columns):
        if column.name == "stage 1 ratio":
            least[i] = 6
    rows = uniform_rows(PUBLISHED, 200, chance(), least)
    kernel = [c.name for c in PUBLISHED.columns].index("stage 1 kernel")
    assert set(rows[:, kernel].tolist()) == {3, 5}


def test_scattered_rows_reach_both_ends() -> None:
    costs = cost_macs(scattered_rows(PUBLISHED, 2_000, chance()), PUBLISHED)
    assert costs.min() == pytest.approx(37.365, abs=1e-3)
    assert costs.max() == pytest.approx(3191.459, abs=1e-3)


def test_a_window_that_nothing_fits_names_the_range_of_the_space() -> None:
    with pytest.raises(UsageError, match=r"those of this space cost from 37\.3\d* to 3191"):
        within(
            PUBLISHED, 4_000, 5_000, 1, lambda n: uniform_rows(PUBLISHED, n // 64, chance()),
            lambda rows: cost_macs(rows, PUBLISHED),
        )  # fmt: skip


# -- the walk over banks


def test_the_walk_takes_steps_of_one_and_stays_at_its_ends_twice_as_often() -> None:
    source, banks = chance(), [0]
    for _ in range(10_000):
        banks.append(next_bank(banks[-1], len(BANKS), source))
    assert max(abs(a - b) for a, b in pairwise(banks)) == 1
    assert set(banks) == set(range(len(BANKS)))
    ends = [a == b for a, b in pairwise(banks) if a in (0, LAST)]
    assert sum(ends) / len(ends) == pytest.approx(2 / 3, abs=0.04)
    inner = [a == b for a, b in pairwise(banks) if a not in (0, LAST)]
    assert sum(inner) / len(inner) == pytest.approx(1 / 3, abs=0.02)


def test_networks_of_a_step_lie_in_its_bank_and_above_its_least() -> None:
    sampler = NeighbourSampler(PUBLISHED, memory=False, seed=1)
    for _ in range(400):
        draw = sampler.draw()
        costs = cost_macs(draw.drawn, PUBLISHED)
        assert (costs >= BANKS[draw.group]).all()
        assert (costs <= BANKS[draw.group] + SPREAD).all()
        assert len(draw.drawn) == 3
        group = 200 if BANKS[draw.group] <= 220 else 400 if BANKS[draw.group] <= 420 else 800
        assert draw.least == MIN_ARCHITECTURES[group]
        assert (as_rows(draw.drawn) >= np.array(draw.least.row)).all()


def test_uniform_sampler_draws_the_smallest_beside_any() -> None:
    draw = UniformSampler(SMALL, drawn=4).draw()
    assert draw.least == smallest(SMALL)
    assert len(set(draw.drawn)) > 1
    with pytest.raises(UsageError):
        SMALL.check(largest(PUBLISHED))


@pytest.mark.parametrize("banks", [(), (100, 100), (300, 200), (1, 2), (5_000,)])
def test_banks_that_hold_nothing_are_refused(banks: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match=r"banks"):
        NeighbourSampler(PUBLISHED, banks=banks)


# -- memories


def test_a_least_network_is_needed() -> None:
    with pytest.raises(UsageError, match="least network"):
        NeighbourSampler(PUBLISHED, least={})


def test_a_full_memory_gives_up_its_worst_for_a_better_one_only() -> None:
    memory = Memory(2)
    memory.keep((1,), -1.0)
    assert memory.half_full
    memory.keep((2,), -3.0)
    memory.keep((3,), -4.0)
    assert memory.entries == {(1,): -1.0, (2,): -3.0}
    memory.keep((3,), -2.0)
    assert memory.entries == {(1,): -1.0, (3,): -2.0}
    memory.keep((1,), -9.0)  # seen again: its new score counts
    assert memory.best() == (3,)


def test_memories_are_drawn_from_by_the_soft_max_of_their_scores() -> None:
    memory, source = Memory(4), chance()
    for row, score in (((1,), 0.0), ((2,), -1.0), ((3,), -800.0)):
        memory.keep(row, score)
    drawn = [memory.draw(source) for _ in range(3_000)]
    assert drawn.count((1,)) / 3_000 == pytest.approx(1 / (1 + np.exp(-1)), abs=0.03)
    assert (3,) not in drawn


def small_sampler(**options: Any) -> NeighbourSampler:
    return NeighbourSampler(SMALL, banks=(4.0, 8.0, 14.0), spread=2.0, **options)


def test_what_is_told_is_remembered_and_drawn_again() -> None:
    sampler = small_sampler(sizes=(6, 6), probability=1.0, seed=2)
    for _ in range(60):
        draw = sampler.draw()
        sampler.tell(draw, [-float(i) for i, _ in enumerate(draw.drawn)])
    assert sampler.memories is not None
    assert all(len(m.entries) > 3 for m in sampler.memories)
    for _ in range(20):
        draw = sampler.draw()
        assert all(a.row in sampler.memories[draw.group].entries for a in draw.drawn)


def test_before_its_memory_is_half_full_a_bank_takes_what_comes_then_the_wide_and_shallow() -> None:
    sampler = small_sampler(sizes=(8, 8), probability=0.0, candidates=5, seed=3)
    first = [sampler._new(1) for _ in range(400)]
    assert sampler.memories is not None
    for row in first[:4]:
        sampler.memories[1].keep(row, 0.0)
    chosen = np.array([sampler._one(1) for _ in range(80)])
    rows = np.array(first)
    assert sampler.preference(chosen, 1).mean() < sampler.preference(rows, 1).mean()
    names = [c.name for c in SMALL.columns]
    deep = [names.index(f"stage {i} depth") for i in (3, 4)]
    assert chosen[:, deep].mean() < rows[:, deep].mean()


def test_the_anchor_of_the_preference_is_the_best_of_the_cheapest_bank() -> None:
    sampler = small_sampler()
    rows = np.array([largest(SMALL).row])
    names = [c.name for c in SMALL.columns]
    before = float(sampler.preference(rows, 2)[0])
    assert sampler.memories is not None
    anchor = list(smallest(SMALL).row)
    anchor[names.index("stage 4 depth")] = 2
    sampler.memories[0].keep(anchor, 1.0)
    narrow, shallow = rows.copy(), rows.copy()
    for i, name in enumerate(names):
        if name in ("stage 3 width", "stage 4 width"):
            narrow[:, i] = anchor[i]
        if name in ("stage 3 depth", "stage 4 depth"):
            shallow[:, i] = anchor[i]
    after = float(sampler.preference(rows, 2)[0])
    assert after == pytest.approx(float((cost_macs(narrow, SMALL) - cost_macs(shallow, SMALL))[0]))
    assert after != before
    assert float(sampler.preference(rows, 0)[0]) == before


def test_refreshing_scores_all_and_forgets_all_that_left_the_bank() -> None:
    sampler = small_sampler()
    assert sampler.memories is not None
    inside = sampler._new(0)
    for row in (smallest(SMALL).row, inside, largest(SMALL).row):
        sampler.memories[0].keep(row, -5.0)
    sampler.refresh(lambda found: float(found.resolution))
    assert sampler.memories[0].entries == {tuple(inside): float(inside[0])}


def test_a_sampler_goes_on_as_if_it_had_not_stopped() -> None:
    first = small_sampler(sizes=(6, 6), seed=4)
    for _ in range(30):
        draw = first.draw()
        first.tell(draw, [-1.0, -2.0, -3.0])
    kept = json.loads(json.dumps(first.state_dict()))
    second = small_sampler(sizes=(6, 6), seed=99)
    second.load_state_dict(kept)
    for _ in range(30):
        draw = first.draw()
        assert draw == second.draw()
        first.tell(draw, [-3.0, -2.0, -1.0])
        second.tell(draw, [-3.0, -2.0, -1.0])


# -- evolution


def macs(rows: Rows) -> Costs:
    return cost_macs(rows, SMALL)


@pytest.mark.parametrize("space", [PUBLISHED, SMALL])
def test_mutations_stay_in_the_space_and_reach_all_of_it(space: Space) -> None:
    """Resolutions change, greatest depths are drawn, widths do not fall: what the published code gets wrong."""
    source, row = chance(), list(smallest(space).row)
    seen: list[set[int]] = [set() for _ in row]
    for _ in range(3_000):
        row = mutate(row, space, Settings(random=0.9), source)
        space.architecture(row)
        for values, value in zip(seen, row, strict=True):
            values.add(value)
    assert [sorted(values) for values in seen] == [list(c.values) for c in space.columns]


def test_a_mutation_draws_depths_together_or_not_at_all() -> None:
    source, row = chance(), largest(SMALL).row
    depths = [i for i, c in enumerate(SMALL.columns) if c.kind == "depth"]
    changed = [
        any(made[i] != row[i] for i in depths)
        for made in (mutate(row, SMALL, Settings(random=0.0), source) for _ in range(2_000))
    ]
    assert sum(changed) / len(changed) == pytest.approx(0.4, abs=0.04)


def test_a_crossover_takes_each_kind_of_choice_whole() -> None:
    source, low, high = chance(), smallest(SMALL).row, largest(SMALL).row
    widths = SMALL.width_columns
    seen = set()
    for _ in range(200):
        made = cross(low, high, SMALL, source)
        SMALL.architecture(made)
        taken = [made[i] == high[i] for i in widths]
        assert len(set(taken)) == 1
        seen.add(tuple(made))
    assert len(seen) > 30


def test_evolution_finds_what_trying_many_at_random_finds_or_better() -> None:
    target = np.array(uniform_rows(SMALL, 1, chance(5))[0])

    def fitness(found: Architecture) -> float:
        return -float(np.abs(np.array(found.row) - target).sum())

    cost = float(macs(target[None])[0])
    settings = Settings(population=40, generations=12, parents=16, mutations=20, crossovers=20, random=0.9, seed=1)
    found = evolve(SMALL, fitness, macs, (0.8 * cost, 1.2 * cost), settings)
    assert found.evaluated <= 40 + 12 * 40
    assert list(found.course) == sorted(found.course)
    assert found.course[-1] == found.best.fitness > found.course[0]
    assert 0.8 * cost <= found.best.cost <= 1.2 * cost
    rows = uniform_rows(SMALL, 20_000, chance(6))
    legal = rows[np.abs(macs(rows) / cost - 1) <= 0.2][: found.evaluated]
    assert found.best.fitness >= -float(np.abs(legal - target).sum(1).min())


def test_a_search_is_decided_by_its_seed_and_starts_from_what_it_is_given() -> None:
    def fitness(found: Architecture) -> float:
        return float(found.row[0])

    settings = Settings(population=12, generations=2, parents=6, mutations=6, crossovers=6, seed=3)
    given = [SMALL.architecture(row) for row in uniform_rows(SMALL, 4, chance(7)).tolist()]
    costs = macs(as_rows(given))
    window = (float(costs.min()), float(costs.max()))
    first, second = (evolve(SMALL, fitness, macs, window, settings, start=given) for _ in range(2))
    assert first == second
    alone = evolve(SMALL, fitness, macs, window, Settings(population=4, generations=0), start=given)
    assert alone.evaluated == 4
    assert alone.best.architecture in given


def test_fitness_is_taken_once_of_each_network() -> None:
    asked = list[Architecture]()

    def fitness(found: Architecture) -> float:
        asked.append(found)
        return 0.0

    settings = Settings(population=20, generations=3, parents=5, mutations=10, crossovers=10)
    found = evolve(SMALL, fitness, macs, (5.0, 9.0), settings)
    assert len(asked) == len(set(asked)) == found.evaluated


@pytest.mark.parametrize("wrong", [{"population": 0}, {"generations": -1}, {"choice": 1.5}])
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Settings(**wrong)


def test_impossible_searches_are_refused() -> None:
    with pytest.raises(UsageError, match="window of cost is empty"):
        evolve(SMALL, lambda found: 0.0, macs, (9.0, 5.0))
    with pytest.raises(UsageError, match="cost from"):
        evolve(SMALL, lambda found: 0.0, macs, (1_000.0, 2_000.0), Settings(population=1))
