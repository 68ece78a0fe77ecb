"""How an encoder of Re-IQA is pre-trained: on dozens of photographs, or as in the paper on hundreds of thousands."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from saccade.errors import UsageError

__all__ = ["HALVINGS", "OPTIMISERS", "Recipe", "published_rate", "rate_of"]

Optimiser = Literal["muon", "adamw", "lars"]
Halving = Literal["pillow", "corners"]

#: name -> weight decay that goes with it
OPTIMISERS: dict[str, float] = {"muon": 1e-2, "adamw": 1e-2, "lars": 1e-4}
HALVINGS = ("pillow", "corners")


def published_rate(pictures: int) -> float:
    """Peak rate of LARS for a step of so many pictures; 11.8, in round numbers 12, for the paper's 630."""
    return 0.6 * pictures * 2 / 64


def rate_of(optimiser: str, pictures: int) -> float:
    """A peak rate to begin with: the paper's rule for LARS, else what small trainings took."""
    return {"muon": 4e-3, "adamw": 1e-3}.get(optimiser, published_rate(pictures))


@dataclass(frozen=True)
class Recipe:
    """How to pre-train; the defaults are small. `Recipe.published` gives the paper's.

    Attributes:
        steps: optimiser steps.
        pictures: stacks in a step, over all processes; each gives 2 * (1 + copies) pairs, from both scales.
        copies: distorted copies of a picture, of different kinds (11 in the paper).
        side: of a crop in pixels (160 in the paper).
        queue: keys kept (65,536 in the paper). Without one all negatives are of the same few contents, so that nothing
            but damage tells them apart: in short trainings features then become useful soonest.
        temperature: of the softmax (0.2 in the paper).
        momentum: of the key encoder (0.999 in the paper, for 100 times the steps). A key encoder that follows too
            fast collapses: all keys run away from the queue's old ones together.
        optimiser: ``muon``, ``adamw`` or ``lars``. (The paper takes LARS for batches of 630 pictures. AdamW needs
            several times the steps of Muon here.)
        rate: peak learning rate; then half a cosine.
        warmup: steps of linear warm-up, None for a 20th of all steps.
        warm_from: rate that the warm-up begins at.
        decay: weight decay.
        within: the other keys of a step are negatives too.
        distortions: False leaves the copies clean, each from a place of its own: plain momentum contrast.
        normalise: by ImageNet's mean and deviation, as the content branch takes its pixels.
        fresh: new stacks a step, on average; the others come from a pool of earlier ones, at new places.
        pool: stacks kept; 0 for none: every stack is new, and every photograph is taken once in each pass over them.
        halving: ``pillow`` (bicubic with antialias, as features are taken later) or ``corners`` (bicubic without,
            corner pixels on corner pixels, as the published pre-training has it).
        shuffles: parts in which the keys' batch norms are taken, in random order (shuffle-BN); at least one a process.
        head: (hidden, out) of the projection.
        seed: of crops, distortions and queue.
        bfloat16: convolve in bfloat16 where the processor does it faster.
    """

    steps: int = 2000
    pictures: int = 4
    copies: int = 12
    side: int = 64
    queue: int = 0
    temperature: float = 0.1
    momentum: float = 0.95
    optimiser: Optimiser = "muon"
    rate: float = 4e-3
    warmup: int | None = None
    warm_from: float = 0.0
    decay: float = 1e-2
    within: bool = True
    distortions: bool = True
    normalise: bool = False
    fresh: float = 0.1
    pool: int = 48
    halving: Halving = "pillow"
    shuffles: int = 2
    head: tuple[int, int] = (256, 64)
    seed: int = 0
    bfloat16: bool = False

    @classmethod
    def published(cls, photographs: int, pictures: int = 630, epochs: int = 40, **changed: Any) -> Recipe:
        """The paper's recipe: LARS, large batches, a long queue, every photograph once an epoch.

        The rate grows with the batch; the warm-up takes five epochs and begins at 0.01.

        Args:
            photographs: how many there are (770,000 in the paper).
            pictures: in a step, over all processes.
            epochs: passes over them (the published code's 40; the paper tells of 25).
            changed: attributes that are to be others.

        Raises:
            UsageError: not one photograph, picture or epoch.
        """
        if min(photographs, pictures, epochs) < 1:
            raise UsageError(f"pre-training takes photographs and epochs, not {photographs}, {pictures} and {epochs}")
        recipe = cls(
            steps=math.ceil(epochs * photographs / pictures),
            pictures=pictures,
            copies=11,
            side=160,
            queue=65_536,
            temperature=0.2,
            momentum=0.999,
            optimiser="lars",
            rate=published_rate(pictures),
            warmup=math.ceil(min(5, epochs) * photographs / pictures),
            warm_from=0.01,
            decay=OPTIMISERS["lars"],
            within=False,
            pool=0,
            halving="corners",
            shuffles=1,
            head=(2048, 128),
        )
        steps = changed.pop("steps", recipe.steps)
        return replace(recipe.lasting(steps), **changed)

    def lasting(self, steps: int) -> Recipe:
        """The same for so many steps; a warm-up is shortened or stretched with them."""
        warmup = None if self.warmup is None else round(self.warmup * steps / self.steps)
        return replace(self, steps=steps, warmup=warmup)

    def check(self, processes: int = 1) -> None:
        """Refuse values that cannot be meant.

        Raises:
            UsageError: naming the value.
        """
        if self.optimiser not in OPTIMISERS:
            raise UsageError(f"pre-training's optimiser is {', '.join(OPTIMISERS)}, not {self.optimiser!r}")
        if self.halving not in HALVINGS:
            raise UsageError(f"half size is made by {' or '.join(HALVINGS)}, not {self.halving!r}")
        for name in ("steps", "pictures", "shuffles"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} of a pre-training must be at least 1, not {getattr(self, name)}")
        for name in ("rate", "temperature"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise UsageError(f"the {name} of a pre-training must be a positive number, not {getattr(self, name)}")
        if self.warmup is not None and self.warmup < 0:
            raise UsageError(f"a warm-up takes some steps or none, not {self.warmup}")
        if self.pool and self.pool < self.pictures:
            raise UsageError(f"a pool of {self.pool} stacks is too small for steps of {self.pictures} (0 for no pool)")
        if self.pictures % processes:
            raise UsageError(
                f"{self.pictures} pictures in a step cannot be shared out evenly among {processes} processes"
            )

    def rate_at(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, then half a cosine down to zero."""
        warm = max(1, self.steps // 20) if self.warmup is None else self.warmup
        if step < warm:
            return self.warm_from + (self.rate - self.warm_from) * (step + 1) / warm
        return self.rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, self.steps - warm)))
