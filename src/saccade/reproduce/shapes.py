"""One short training for the claims of all backbones: the same pictures, recipe and steps for all that are compared."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.data.shapes import Shapes, shapes
from saccade.progress import bar

__all__ = ["Learned", "accuracy", "cross_entropy", "learn", "shapes_sets"]

TRAIN, TEST = 8_000, 1_500
RATE, DECAY, WARMUP, BATCH, CLIP = 2e-3, 0.05, 30, 64, 5.0


@dataclass(frozen=True)
class Learned:
    """What a training came to.

    Attributes:
        accuracy: on the 1,500 test pictures at the end, in percent.
        course: the same after the steps that were asked for.
        parameters: of the network.
        seconds: of the training alone.
        loss: mean over the last 20 steps.
    """

    accuracy: float
    parameters: int
    seconds: float
    loss: float
    course: dict[int, float] = field(default_factory=dict)


class Pictures(Protocol):
    """Pictures (N, 3, side, side) and their classes (N,)."""

    @property
    def images(self) -> Tensor: ...

    @property
    def labels(self) -> Tensor: ...


@functools.lru_cache(maxsize=2)
def shapes_sets(side: int = 64) -> tuple[Shapes, Shapes]:
    """The 8,000 shapes to train on and the 1,500 to test on."""
    return shapes(TRAIN, side=side, seed=1), shapes(TEST, side=side, seed=2)


def cross_entropy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The loss of a batch; its gradients are added to the model's."""
    loss = F.cross_entropy(model(images), labels)
    loss.backward()
    return float(loss.detach())


def learn(
    model: nn.Module,
    steps: int,
    seed: int,
    *,
    at: Sequence[int] = (),
    side: int = 64,
    what: str = "training",
    gradients: Callable[[nn.Module, Tensor, Tensor], float] = cross_entropy,
    sets: tuple[Pictures, Pictures] | None = None,
    flips: bool = True,
) -> Learned:
    """Train on 8,000 shapes: AdamW 2e-3 (decay 0.05), 30 steps of warm-up, cosine to 0, batches of 64, flips, clip 5.

    Args:
        model: classifies (B, 3, side, side) into 8 classes; left in evaluation mode.
        steps: the schedule's length.
        seed: of the order and the flips; step ``t`` sees the same pictures for every model of the same seed.
        at: steps after which the accuracy is measured too. (Before the rate has fallen it trails the end by far.)
        side: of the pictures in pixels.
        what: the words before the progress bar.
        gradients: adds those of a batch (images, labels) to the model's and gives the loss.
        sets: others to train and to test on than the shapes.
        flips: half the pictures are mirrored.
    """
    train, test = sets or shapes_sets(side)
    chance = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY, fused=True)
    course, losses, spent = dict[int, float](), list[float](), 0.0
    with bar(what, steps) as advance:
        for step in range(steps):
            began = time.perf_counter()
            model.train()
            rate = RATE * min(1, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * step / steps))
            for group in optimiser.param_groups:
                group["lr"] = rate
            chosen = torch.randint(len(train.labels), (BATCH,), generator=chance)
            images = train.images[chosen]
            if flips:
                flipped = torch.rand(BATCH, generator=chance) < 0.5
                images[flipped] = images[flipped].flip(-1)
            loss = gradients(model, images, train.labels[chosen])
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimiser.step()
            optimiser.zero_grad()
            losses.append(loss)
            spent += time.perf_counter() - began
            if step + 1 in at:
                course[step + 1] = accuracy(model, test)
            advance(1)
    parameters = sum(p.numel() for p in model.parameters())
    last = losses[-20:]
    return Learned(accuracy(model, test), parameters, spent, sum(last) / max(len(last), 1), course)


@torch.inference_mode()
def accuracy(model: nn.Module, test: Pictures) -> float:
    """Percent of pictures whose class the model names; leaves it in evaluation mode."""
    model.eval()
    right = sum(
        int((model(images).argmax(1) == labels).sum())
        for images, labels in zip(test.images.split(250), test.labels.split(250), strict=True)
    )
    return 100 * right / max(len(test.labels), 1)
