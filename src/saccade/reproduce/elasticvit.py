"""Training networks of similar cost together keeps their gradients from conflicting, and what is then searched is good.

Three parts. The samplers alone, on the published space, in seconds. Gradients of pairs of sub-networks on the weights
that both use, in a small supernet after a short training. And that supernet trained on the shapes set, with the two
samplers and with uniform sampling, for equally many steps: the network that a search finds in each at half of the
greatest cost, beside the same network trained alone for as many steps.

The paper's figures take 600 epochs of ImageNet on accelerators; they are not re-run.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.backbones.elasticvit.architecture import Architecture
from saccade.backbones.elasticvit.catalogue import PUBLISHED, SMALL
from saccade.backbones.elasticvit.code import to_code
from saccade.backbones.elasticvit.counting import cost_macs, cost_range
from saccade.backbones.elasticvit.evolution import Settings
from saccade.backbones.elasticvit.network import ElasticViT
from saccade.backbones.elasticvit.sampling import (
    BANKS,
    SPREAD,
    NeighbourSampler,
    UniformSampler,
    uniform_rows,
)
from saccade.backbones.elasticvit.search import Accuracy, below_macs
from saccade.backbones.elasticvit.space import largest, smallest
from saccade.backbones.elasticvit.training import LEVELS, WIDTH
from saccade.data.shapes import Shapes, shapes
from saccade.registry import create
from saccade.reproduce import Claim, Data, Figures
from saccade.reproduce.shapes import BATCH, learn, shapes_sets
from saccade.reproduce.training import seeded
from saccade.training.supernet import Sampler, gradients

CLAIM = Claim(
    system="elasticvit",
    says="Neighbour sampling keeps each step within a bank of 20 M MACs and moves to the next bank at most, where "
    "uniform sampling jumps by more than 200 M in the median; gradients of neighbours agree better than those of the "
    "smallest and the largest network, by a cosine of at least 0.1; a network searched at half of the greatest cost in "
    "a supernet that was trained so is within 3 points of the same network trained alone, and no worse than that of "
    "uniform sampling.",
    source="sections 3 and 4 of the paper (conflict, complexity- and performance-aware sampling, search)",
    baseline="uniform sampling of sub-networks; the searched network trained alone",
)

SPACE = replace(SMALL, resolutions=(48, 64))
CLASSES = 8
STEPS, WARM = 2_000, 100  # of a training, and of the one before gradients are compared
PAIRS, DRAWS = 20, 10_000
SEARCH = Settings(population=24, generations=4, parents=12, mutations=8, crossovers=8)
SHARE = 0.5  # of the greatest cost that a search may spend
HELD, CALIBRATION = 600, 8  # pictures that a search looks at, batches that norms are calibrated on


def run(data: Data, seed: int) -> Figures:
    """Draw, train two supernets and one network, search twice; fifty minutes on one core."""
    figures = sampling(seed) | conflict(seed)
    calibration, held = list(batches(shapes_sets()[0], CALIBRATION * BATCH)), shapes(HELD, seed=3)
    samplers: dict[str, Sampler] = {"neighbours": neighbours(seed), "uniform": UniformSampler(SPACE, seed=seed)}
    found = dict[str, Architecture]()
    for name, sampler in samplers.items():
        model = trained(sampler, seed, STEPS, f"supernet, {name}")
        inside = Accuracy(model, calibration, list(batches(held, HELD)))
        found[name] = searched(inside)
        test = Accuracy(model, calibration, list(batches(shapes_sets()[1], 1_500)))
        nets = {"searched": found[name], "smallest": smallest(SPACE), "largest": largest(SPACE)}
        figures |= {f"accuracy_{name}_{key}": test(net) for key, net in nets.items()}
        figures |= {
            f"macs_{name}_searched": round(1e6 * macs(found[name])),
            f"code_{name}": str(to_code(found[name], 8)),
        }
    options = {"architecture": found["neighbours"].to_dict(), "space": SPACE.to_dict(), "num_classes": CLASSES}
    alone = learn(seeded(lambda: create("elasticvit_subnet", weights=None, **options), seed), STEPS, seed, what="alone")
    return figures | {"accuracy_alone": alone.accuracy, "steps": STEPS, "data": "generated shapes"}


def macs(net: Architecture) -> float:
    """M MACs of the cost model."""
    return float(cost_macs(net, SPACE, CLASSES)[0])


def neighbours(seed: int) -> NeighbourSampler:
    """The two samplers of the paper, on the small space: five banks, three groups with least networks of their own."""
    most = cost_range(SPACE, CLASSES)[1]
    least = smallest(SPACE)
    sharper = replace(least, resolution=64)
    deeper = replace(sharper, stages=tuple(replace(stage, depth=2) for stage in least.stages))
    return NeighbourSampler(
        SPACE,
        banks=[level * most for level in LEVELS],
        spread=WIDTH * most,
        least={0.3 * most: least, 0.5 * most: sharper, most: deeper},
        large=0.6 * most,
        classes=CLASSES,
        seed=seed,
    )


def batches(given: Shapes, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The first pictures with labels."""
    return zip(given.images[:count].split(BATCH), given.labels[:count].split(BATCH), strict=True)


def trained(sampler: Sampler, seed: int, steps: int, what: str) -> ElasticViT:
    """A supernet after some steps of four networks each; the sampler is told the negative losses."""
    model = seeded(lambda: create("elasticvit", weights=None, space=SPACE.to_dict(), num_classes=CLASSES), seed)
    assert isinstance(model, ElasticViT)
    model.to(memory_format=torch.channels_last)

    def step(_: nn.Module, images: Tensor, labels: Tensor) -> float:
        drawn = sampler.draw()
        told = gradients(model, drawn, images.contiguous(memory_format=torch.channels_last), labels)
        sampler.tell(drawn, [-loss for loss in told.drawn])
        return statistics.fmean(told.drawn)

    learn(model, steps, seed, what=what, gradients=step)
    return model


def searched(fitness: Accuracy) -> Architecture:
    """The network of the highest accuracy at half of the greatest cost."""
    limit = SHARE * cost_range(SPACE, CLASSES)[1]
    return below_macs(SPACE, limit, fitness, SEARCH, classes=CLASSES).best.architecture


# ---------------------------------------------------------------------------------------------------------------------
# The samplers, and conflict
# ---------------------------------------------------------------------------------------------------------------------
def sampling(seed: int) -> Figures:
    """What 10,000 steps of both samplers draw from the published space."""
    sampler = NeighbourSampler(PUBLISHED, memory=False, drawn=1, seed=seed)
    draws = [sampler.draw() for _ in range(DRAWS)]
    banks = [draw.group for draw in draws]
    costs = cost_macs([draw.drawn[0] for draw in draws], PUBLISHED)
    above = costs - np.array(BANKS)[banks]
    ends = [a == b for a, b in pairwise(banks) if a in (0, len(BANKS) - 1)]
    anything = cost_macs(uniform_rows(PUBLISHED, DRAWS, np.random.default_rng(seed)), PUBLISHED)
    jumps = np.abs(np.diff(anything))
    return {
        "bank_jump_max": max(abs(a - b) for a, b in pairwise(banks)),
        "stays_at_ends": sum(ends) / len(ends),
        "above_bank_m_min": float(above.min()),
        "above_bank_m_max": float(above.max()),
        "uniform_m_median": float(np.median(anything)),
        "uniform_m_1_percent": float(np.percentile(anything, 1)),
        "uniform_m_99_percent": float(np.percentile(anything, 99)),
        "uniform_jump_m_median": float(np.median(jumps)),
        "uniform_jump_m_max": float(jumps.max()),
        "uniform_jumps_above_1g": float((jumps > 1_000).mean()),
    }


def conflict(seed: int) -> Figures:
    """Mean cosines of the gradients of two networks, over 20 batches: neighbours in cost, and the two ends."""
    model = trained(UniformSampler(SPACE, seed=seed), seed, WARM, "a short training").train()
    sampler, train = neighbours(seed), shapes_sets()[0]
    cosines: dict[str, list[float]] = {"neighbours": [], "ends": []}
    for i in range(PAIRS):
        images, labels = (t[i * BATCH : (i + 1) * BATCH] for t in (train.images, train.labels))
        pairs = {"neighbours": sampler.draw().drawn[:2], "ends": (smallest(SPACE), largest(SPACE))}
        for name, pair in pairs.items():
            cosines[name].append(cosine(*(flat_gradient(model, net, images, labels) for net in pair)))
    return {f"cosine_{name}": statistics.fmean(values) for name, values in cosines.items()}


def flat_gradient(model: ElasticViT, net: Architecture, images: Tensor, labels: Tensor) -> Tensor:
    """The gradient of one network on all weights, zero on those that it does not use."""
    model.architecture = net
    loss = F.cross_entropy(model(images), labels)
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in found])


def cosine(a: Tensor, b: Tensor) -> float:
    """Of two gradients, on the weights that both networks use."""
    shared = (a != 0) & (b != 0)
    return float(F.cosine_similarity(a[shared], b[shared], dim=0))


# ---------------------------------------------------------------------------------------------------------------------
# The claim
# ---------------------------------------------------------------------------------------------------------------------
def met(f: Figures) -> bool:
    """The samplers do what they say, neighbours agree, and the searched network holds."""
    return bool(
        f["bank_jump_max"] <= 1
        and f["above_bank_m_min"] >= 0
        and f["above_bank_m_max"] <= SPREAD
        and f["uniform_jump_m_median"] > 10 * SPREAD
        and f["cosine_neighbours"] >= f["cosine_ends"] + 0.1
        and f["accuracy_neighbours_searched"] >= f["accuracy_alone"] - 3
        and f["accuracy_neighbours_searched"] >= f["accuracy_uniform_searched"]
    )


def plot(figures: Figures, path: Path) -> None:
    """Accuracies in both supernets beside the network alone, and cosines of gradients."""
    import matplotlib.pyplot as plt

    picture, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for axis, start, unit in ((left, "accuracy_", "accuracy, %"), (right, "cosine_", "cosine of gradients")):
        names = [k for k in figures if k.startswith(start)]
        axis.barh([n.removeprefix(start).replace("_", " ") for n in names], [figures[n] for n in names])
        axis.set_xlabel(unit)
    picture.savefig(path, dpi=120)
    plt.close(picture)
