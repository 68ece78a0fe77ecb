"""One training step of a supernet: networks of many sizes that share one set of weights.

    batch -- network drawn 1 -- cross entropy --> gradient \\
          -- network drawn 2 -- cross entropy --> gradient  + -- one step of the optimiser
          -- network drawn 3 -- cross entropy --> gradient /                  |
          -- the least one -- alpha-divergence from the mean of the three --> gradient

The gradients of all four add up on the shared weights ("sandwich rule" without the largest network; Tang et al.,
ElasticViT, ICCV 2023, arXiv:2303.09730, section 4). Which networks a step draws is a sampler's affair.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.errors import UsageError
from saccade.training.distillation import adaptive_alpha_divergence

__all__ = ["Draw", "Elastic", "Losses", "Sampler", "gradients"]


class Elastic(Protocol):
    """A network whose size is set by its attribute ``architecture``; the weights stay the same."""

    architecture: Any

    def __call__(self, x: Tensor) -> Tensor:
        """Logits (B, classes)."""
        ...


@dataclass(frozen=True)
class Draw:
    """The networks of one step.

    Attributes:
        drawn: what learns from the labels, or from teachers in their place.
        least: what learns from the mean of those, or None.
        group: place of their cost among the sampler's levels of cost; 0 where it has none.
    """

    drawn: tuple[Any, ...]
    least: Any = None
    group: int = 0


class Sampler(Protocol):
    """What decides which networks a step trains."""

    def draw(self) -> Draw:
        """The networks of the next step."""
        ...

    def tell(self, draw: Draw, scores: Sequence[float]) -> None:
        """How the networks that were drawn did, higher is better."""
        ...


@dataclass(frozen=True)
class Losses:
    """Those of one step.

    Attributes:
        drawn: of each network drawn, before its backward pass.
        least: of the least one; NaN without it.
    """

    drawn: tuple[float, ...]
    least: float


def gradients(
    model: Elastic,
    draw: Draw,
    images: Tensor,
    targets: Tensor,
    *,
    teacher: Tensor | None = None,
    backward: Callable[[Tensor], Any] = torch.Tensor.backward,
) -> Losses:
    """Add the gradients of a step to the model's parameters, one network after the other.

    Args:
        model: the supernet, in training mode; its architecture is left at the last that ran.
        draw: which networks.
        images: (B, C, H, W).
        targets: labels (B,), or probabilities (B, classes).
        teacher: probabilities (B, classes) in place of the targets, e.g. `distillation.mean_probabilities` at
            temperature 0.2 as published. Without teachers the networks learn from the targets alone.
        backward: of a loss; Fabric's own where there is one.

    Raises:
        UsageError: no network is drawn.
    """
    if not draw.drawn:
        raise UsageError("a step of a supernet trains at least one network; none was drawn")
    wanted = targets if teacher is None else teacher
    losses, together = list[float](), list[Tensor]()
    for architecture in draw.drawn:
        model.architecture = architecture
        logits = model(images)
        loss = F.cross_entropy(logits, wanted)
        backward(loss)
        losses.append(float(loss.detach()))
        together.append(logits.detach().softmax(1))
    if draw.least is None:
        return Losses(tuple(losses), float("nan"))
    model.architecture = draw.least
    least = adaptive_alpha_divergence(model(images), torch.stack(together).mean(0))
    backward(least)
    return Losses(tuple(losses), float(least.detach()))
