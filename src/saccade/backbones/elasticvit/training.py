"""Training of a supernet on pictures with classes: what `saccade train supernet` runs.

The course of a run, its checkpoint and its pictures are those of `saccade.training.classification`; a step is that of
`saccade.training.supernet`, with networks that a sampler draws. Published: 600 epochs, batches of 4,096 pictures or so,
AdamW at 5e-4 for 512 pictures, decay 0.05 but for the first convolution and the inverted bottlenecks, adaptive gradient
clipping at 0.1, average 0.99985.

Beside the published recipe: the score that a bank remembers is the negative loss of the step (there of one more pass on
pictures that are not mixed), all that is remembered is scored anew each ``refresh`` steps alone (there four times an
epoch), and without ``teachers`` networks learn from the labels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade import checkpoint
from saccade.backbones.elasticvit.architecture import Architecture
from saccade.backbones.elasticvit.catalogue import PUBLISHED, as_space
from saccade.backbones.elasticvit.counting import cost_macs, cost_range, ladder
from saccade.backbones.elasticvit.layers import ElasticConvNorm, MobileBlock
from saccade.backbones.elasticvit.network import ElasticViT
from saccade.backbones.elasticvit.sampling import BANKS, SPREAD, NeighbourSampler, UniformSampler
from saccade.backbones.elasticvit.search import Accuracy
from saccade.backbones.elasticvit.space import Space
from saccade.errors import UsageError
from saccade.training import classification, trainer
from saccade.training.distillation import mean_probabilities
from saccade.training.supernet import gradients

__all__ = ["Options", "sampler_for", "train"]

LEVELS, WIDTH = (0.15, 0.25, 0.4, 0.6, 0.85), 0.05  # banks of other spaces, as parts of the greatest cost
MEASURED = (0.0, 0.3, 0.6)  # rungs of the ladder whose accuracies make the figure of a run
CALIBRATION, HELD = 4, 512  # batches of 64 pictures that norms are calibrated on, pictures measured on
EXPLOITED, MORE, PARTS = 0.2, 0.15, 6  # probability of drawing from memory, and what each sixth of a training adds


def sampler_for(
    space: Space, sampling: str, *, drawn: int = 3, classes: int = 1000, seed: int = 0
) -> NeighbourSampler | UniformSampler:
    """A sampler by its name. Other spaces than the published one have five banks, and one least network, the smallest.

    Args:
        space: what there is to choose.
        sampling: ``"neighbours"``, ``"uniform"``, or ``"walk"``: neighbours without memory.
        drawn: networks a step, beside the least.
        classes: outputs of the classifier.
        seed: of all chance.

    Raises:
        UsageError: no such sampler.
    """
    if sampling not in SAMPLINGS:
        raise UsageError(f"--sampling is {', '.join(SAMPLINGS)}, not {sampling!r}")
    if sampling == "uniform":
        return UniformSampler(space, drawn=drawn, seed=seed)
    most = cost_range(space, classes)[1]
    published = space == PUBLISHED
    return NeighbourSampler(
        space,
        banks=BANKS if published else [level * most for level in LEVELS],
        spread=SPREAD if published else WIDTH * most,
        drawn=drawn,
        memory=sampling == "neighbours",
        classes=classes,
        seed=seed,
    )


SAMPLINGS = ("neighbours", "walk", "uniform")


@dataclass
class Options(classification.Options):
    """What a run is, beside what any classifier's is.

    Args:
        space: name of what the supernet holds.
        sampling: as `sampler_for`.
        drawn: networks a step, beside the least of their group.
        teachers: files of classifiers of the same classes, whose probabilities take the place of the labels.
        temperature: divides the teachers' logits.
        refresh: steps after which all that the banks remember is scored anew, on the step's pictures: a pass of each
            network, hundreds of them. 0: never.
    """

    FIGURE: ClassVar[str] = "mean_top1_percent"

    space: str = "elasticvit"
    sampling: str = "neighbours"
    drawn: int = 3
    teachers: tuple[str, ...] = ()
    temperature: float = 0.2
    refresh: int = 0
    rate: float = 5e-4
    clip: float = 0.1
    clip_mode: str = "agc"
    smoothing: float = 0.1
    devices: str = "1"

    def __post_init__(self) -> None:
        self._sampler: NeighbourSampler | UniformSampler | None = None
        self._kept = ""
        self._done = 0

    def check_values(self) -> None:
        super().check_values()
        as_space(self.space)
        sampler_for(as_space(self.space), self.sampling)
        if self.model != "elasticvit":
            raise UsageError(f"{self.model} is no supernet; elasticvit is")
        if self.drawn < 1 or self.temperature <= 0:
            raise UsageError(f"--drawn is at least 1 and --temperature positive, not {self.drawn}, {self.temperature}")
        if self.refresh < 0:
            raise UsageError(f"--refresh is a number of steps, or 0 for never, not {self.refresh}")
        if (self.devices, self.nodes) != ("1", 1) or self.precision == "16-mixed" or self.compile:
            raise UsageError("a supernet is trained on one device, uncompiled, in 32-true or bf16-mixed")

    def created(self) -> dict[str, Any]:
        return {"space": self.space, **super().created()}

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """The first convolution, inverted bottlenecks, vectors and tables of biases are not decayed."""
        assert isinstance(model, ElasticViT)
        free = {id(p) for m in model.modules() if isinstance(m, MobileBlock) for p in m.parameters()}
        free |= {id(p) for m in model.stem.children() if isinstance(m, ElasticConvNorm) for p in m.parameters()}
        decayed, others = super().groups(model)
        kept = [p for p in decayed["params"] if id(p) not in free]
        return [{"params": kept}, {**others, "params": [*others["params"], *_without(decayed["params"], kept)]}]

    def clipped(self, model: Any) -> list[nn.Parameter]:
        """All that learns, the last layer too, as the published code does."""
        return trainer.Options.clipped(self, model)

    def loss_function(self, model: Any) -> Callable[[Tensor, Tensor], Tensor]:
        """The sum of a step's losses, all but the last of which have been sent backward already."""
        classes, taught = int(model.num_classes), [_teacher(file, model) for file in self.teachers]
        sampler = sampler_for(as_space(self.space), self.sampling, drawn=self.drawn, classes=classes, seed=self.seed)
        self._sampler = sampler
        if self._kept:
            told = json.loads(self._kept)
            self._done = int(told["step"])
            sampler.load_state_dict(told["sampler"])

        def loss(pictures: Tensor, wanted: Tensor) -> Tensor:
            teacher = mean_probabilities(taught, pictures, self.temperature) if taught else None
            if isinstance(sampler, NeighbourSampler):
                sampler.probability = EXPLOITED + MORE * (PARTS * self._done // self.steps)
                if self.refresh and self._done and self._done % self.refresh == 0:
                    aims = wanted if teacher is None else teacher
                    sampler.refresh(lambda found: _score(model, found, pictures, aims))
            self._done += 1
            waiting = list[Tensor]()

            def backward(one: Tensor) -> None:
                if waiting:
                    waiting.pop().backward()
                waiting.append(one)

            drawn = sampler.draw()
            told = gradients(model, drawn, pictures, wanted, teacher=teacher, backward=backward)
            sampler.tell(drawn, [-value for value in told.drawn])
            return waiting[0] + sum(told.drawn)

        return loss

    def state(self) -> str:
        """How many steps were made, and where the sampler stands."""
        assert self._sampler is not None
        return json.dumps({"step": self._done, "sampler": self._sampler.state_dict()})

    def restore(self, state: str) -> None:
        """Go on from there."""
        self._kept = state

    def measurer(self, pictures: Sequence[Any], model: nn.Module) -> Callable[[nn.Module], float]:
        """The mean accuracy of three networks, from the smallest on, each with statistics of its own.

        It is taken on `HELD` of the pictures at the most, which are kept in memory.
        """
        assert isinstance(model, ElasticViT)
        chance = torch.Generator().manual_seed(self.seed)
        parts = []
        for source, most in ((self.split()[0], 64 * CALIBRATION), (pictures, HELD)):
            chosen = torch.randperm(len(source), generator=chance)[:most].tolist()
            parts.append(classification.prepared_batches([source[i] for i in chosen], self.patch, model))
        nets = list(_measured(model.space))

        def mean(final: nn.Module) -> float:
            assert isinstance(final, ElasticViT)
            accuracy = Accuracy(final, *parts)
            return sum(map(accuracy, nets)) / len(nets)

        return mean


@torch.no_grad()
def _score(model: Any, found: Architecture, pictures: Tensor, wanted: Tensor) -> float:
    """The negative loss of one network, its norms on the statistics of these pictures."""
    model.architecture = found
    return -float(F.cross_entropy(model(pictures), wanted))


def _without(parameters: Sequence[nn.Parameter], kept: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    known = {id(p) for p in kept}
    return [p for p in parameters if id(p) not in known]


def _measured(space: Space) -> Iterator[Architecture]:
    """Networks whose accuracy stands for the supernet's: the rungs at these parts of the ladder, in its first half."""
    rungs = ladder(space)
    affordable = [r for r in rungs if float(cost_macs(r, space)[0]) <= 0.5 * cost_range(space)[1]] or rungs[:1]
    yield from dict.fromkeys(affordable[round(part * (len(affordable) - 1))] for part in MEASURED)


def _teacher(file: str, model: Any) -> nn.Module:
    """A classifier from a file.

    Raises:
        UsageError: it names other classes.
    """
    found: Any = checkpoint.load(file)
    if getattr(found, "num_classes", None) != model.num_classes:
        raise UsageError(
            f"{file} knows {getattr(found, 'num_classes', 'no')} classes, the supernet {model.num_classes}"
        )
    device = next(iter(model.parameters())).device
    teacher: nn.Module = found.eval().to(device)
    return teacher


def train(options: Options, *, say: Callable[[str], None] = print) -> Path:
    """Train a supernet; see `trainer.train`."""
    return trainer.train(options, say=say)
