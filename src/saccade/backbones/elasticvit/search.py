"""The best sub-network below a limit: of MACs, or of milliseconds on this machine.

    limit in M MACs ------------------------------------------------- evolve -- the network
    limit in ms -- predictor -- evolve -- measure -- above the limit? -- evolve below a lower one -- ... -- the network

What is best, a trained supernet and pictures tell (`Accuracy`); without them costs alone decide (`most_macs`,
`wide_and_shallow`), which is no measurement of quality and is said to be none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from saccade.backbones.elasticvit.architecture import Architecture
from saccade.backbones.elasticvit.counting import Rows, as_rows, check_limit, cost_macs
from saccade.backbones.elasticvit.deploy import recalibrate
from saccade.backbones.elasticvit.evolution import Candidate, Outcome, Settings, evolve
from saccade.backbones.elasticvit.latency import Predictor, measure
from saccade.backbones.elasticvit.network import ElasticViT
from saccade.backbones.elasticvit.sampling import Costs, deep_rather_than_wide
from saccade.backbones.elasticvit.space import Space, smallest
from saccade.errors import InputError, UsageError
from saccade.training.classification import top1

__all__ = ["Accuracy", "Timed", "below_latency", "below_macs", "most_macs", "wide_and_shallow"]

SLACK = 0.1  # a search looks from 90 % of its limit to the limit
ROUNDS = 4  # of searching and measuring, at the most

Batches = Sequence[tuple[Tensor, Tensor]]
Fitness = Callable[[Architecture], float]


# ---------------------------------------------------------------------------------------------------------------------
# What is best
# ---------------------------------------------------------------------------------------------------------------------
class Accuracy:
    """Percent of held-out pictures that a sub-network names, its norms calibrated anew on others first.

    Args:
        model: a trained supernet; its architecture and running statistics change.
        calibration: batches of training pictures and labels.
        held: batches that were not trained on.

    Raises:
        InputError: one of the two holds no batches. Without calibration a supernet's accuracy means nothing.
    """

    def __init__(self, model: ElasticViT, calibration: Batches, held: Batches) -> None:
        if not calibration or not held:
            raise InputError("accuracy needs training pictures for the norms and held-out ones to measure on")
        self.model, self.calibration, self.held = model, calibration, held
        self._known: dict[Architecture, float] = {}

    def __call__(self, found: Architecture) -> float:
        """The accuracy of an architecture; taken once."""
        if found not in self._known:
            self.model.architecture = found
            recalibrate(self.model, self.calibration)
            self._known[found] = top1(self.model, self.held)
        return self._known[found]


def most_macs(space: Space, classes: int = 1000) -> Fitness:
    """What does most within its time: M MACs of the cost model."""
    return lambda found: float(cost_macs(found, space, classes)[0])


def wide_and_shallow(space: Space, classes: int = 1000) -> Fitness:
    """What training by `NeighbourSampler` prefers among networks of one cost; the smallest network is the anchor."""
    anchor = smallest(space).row
    return lambda found: -float(deep_rather_than_wide(as_rows(found), anchor, space, classes)[0])


# ---------------------------------------------------------------------------------------------------------------------
# Below a limit
# ---------------------------------------------------------------------------------------------------------------------
def below_macs(
    space: Space,
    limit: float,
    fitness: Fitness,
    settings: Settings | None = None,
    *,
    start: Sequence[Architecture] = (),
    classes: int = 1000,
) -> Outcome:
    """The fittest network of at most so many M MACs of the cost model.

    Args:
        space: what there is to choose.
        limit: M MACs.
        fitness: higher is better.
        settings: of the search.
        start: networks to begin with.
        classes: outputs of the classifier.

    Raises:
        UsageError: the limit lies below the smallest network or above the largest; the message names the range.
    """
    check_limit(limit, space, classes)

    def cost(rows: Rows) -> Costs:
        return cost_macs(rows, space, classes)

    return evolve(space, fitness, cost, ((1 - SLACK) * limit, limit), settings, start=start)


def _fittest_within(
    aim: float, predictor: Predictor, fitness: Fitness, settings: Settings | None, start: Sequence[Architecture]
) -> Outcome:
    """The fittest network that is predicted to take at most ``aim`` ms; the smallest where hardly any is.

    Limits near the time of the smallest network are met by it as measured, even where its prediction lies above.
    """
    try:
        return evolve(predictor.space, fitness, predictor, ((1 - SLACK) * aim, aim), settings, start=start)
    except UsageError:
        found = smallest(predictor.space)
        alone = Candidate(found, float(predictor(as_rows(found))[0]), float(fitness(found)))
        return Outcome(alone, (alone.fitness,), 1)


@dataclass(frozen=True)
class Timed:
    """What a search below a latency came to.

    Attributes:
        outcome: of the last search; its best is the network.
        predicted, measured: milliseconds of it.
        rounds: searches that were made; each but the last gave a network that took longer than the limit.
    """

    outcome: Outcome
    predicted: float
    measured: float
    rounds: int


def below_latency(
    limit: float,
    predictor: Predictor,
    fitness: Fitness,
    settings: Settings | None = None,
    *,
    start: Sequence[Architecture] = (),
    measured: Callable[[Architecture], float] | None = None,
) -> Timed:
    """The fittest network that takes at most so many milliseconds, as measured in the end.

    Where the network found takes longer than the limit, the predictor learns its time, and the search is made again,
    below a limit that is lower by what the predictor still cannot explain.

    Args:
        limit: milliseconds.
        predictor: of the space, at the threads and on the device that are meant.
        fitness: higher is better.
        settings: of the search.
        start: networks to begin with.
        measured: milliseconds of a network; by default `latency.measure` as the predictor was fitted.

    Raises:
        UsageError: the limit lies below the smallest network's time or above the largest's; the message names both.
    """
    low, high = predictor.ends
    if not low <= limit <= high:
        raise UsageError(
            f"no network of this space takes {limit:g} ms here: the smallest takes {low:.3g} ms, the largest "
            f"{high:.3g} ms ({predictor.platform.threads} threads, {predictor.platform.device})"
        )
    timed = measured or (lambda found: measure(found, predictor.space, predictor.platform))
    aim, took, made = limit, limit, 0
    while made == 0 or (took > limit and made < ROUNDS):
        outcome = _fittest_within(aim, predictor, fitness, settings, start)
        row = outcome.best.architecture.row
        took, made = timed(outcome.best.architecture), made + 1
        predictor = predictor.learnt(row, took)
        unexplained = took / float(predictor(np.array([row]))[0])
        aim = 0.98 * limit / max(unexplained, 1.0)
    return Timed(outcome, outcome.best.cost, took, made)
