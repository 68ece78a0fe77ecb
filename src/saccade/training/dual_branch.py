"""Two branches of one network, each trained on its own kind of data, tied by an exchange of weights.

Qin et al., arXiv:2407.14880 (PBaSR): cross disentanglement (each branch sees its own batches and has its own optimiser)
and cross fusion (after each step either branch takes a little of the other; in the end their weights are averaged).
For any network: both branches start from the same weights, else their mean computes nothing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import CheckpointError, UsageError
from saccade.progress import bar
from saccade.training.trainer import Examples, learning_rate

__all__ = ["Branches", "adaptive_decay", "check_alpha", "dual_branch", "exchange", "merge_into", "merged", "similarity"]

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


def check_alpha(alpha: float, extrapolate: bool = False) -> None:
    """Refuse a weight outside [0, 1] that was not asked for.

    Raises:
        UsageError: saying how to ask for it.
    """
    if not math.isfinite(alpha):
        raise UsageError(f"alpha is a number between 0 and 1, not {alpha}")
    if not 0 <= alpha <= 1 and not extrapolate:
        raise UsageError(f"alpha {alpha:g} lies outside [0, 1]; --extrapolate allows it")


def merged(
    general: Mapping[str, Tensor],
    blur: Mapping[str, Tensor],
    alpha: float = 0.5,
    *,
    parameters: set[str] | None = None,
    buffers: str = "general",
) -> dict[str, Tensor]:
    """(1 - alpha) general + alpha blur, tensor by tensor (section 3.4).

    Args:
        general, blur: state dicts of one network.
        alpha: weight of the second.
        parameters: names that are parameters; the others are buffers. None: all floating-point tensors are parameters.
        buffers: ``general`` copies buffers from the first, ``average`` interpolates floating-point ones. Counters
            (integers) are always copied.

    Raises:
        CheckpointError: different names or shapes; the first difference is named.
        UsageError: another word for ``buffers``.
    """
    made = {name: value.detach().clone() for name, value in general.items()}
    merge_into(made, blur, alpha, parameters=parameters, buffers=buffers)
    return made


@torch.no_grad()
def merge_into(
    general: Mapping[str, Tensor],
    blur: Mapping[str, Tensor],
    alpha: float = 0.5,
    *,
    parameters: set[str] | None = None,
    buffers: str = "general",
) -> None:
    """`merged` in place: the first branch's tensors become the mixture, so that no third network exists in memory."""
    if buffers not in ("general", "average"):
        raise UsageError(f"buffers are taken from 'general' or 'average'd, not {buffers!r}")
    check_branches(general, blur)
    for name, value in general.items():
        if value.is_floating_point() and (parameters is None or name in parameters or buffers == "average"):
            value.lerp_(blur[name].to(value), alpha)


def check_branches(general: Mapping[str, Tensor], blur: Mapping[str, Tensor]) -> None:
    """Refuse what are no branches of one network.

    Raises:
        CheckpointError: different names, shapes or kinds of numbers; the first difference is named.
    """
    for name in (*general, *blur):
        if name not in general or name not in blur:
            raise CheckpointError(f"{name} is in one of the two branches only: they are no branches of one network")
        if general[name].shape != blur[name].shape:
            shapes = " and ".join(str(tuple(s[name].shape)) for s in (general, blur))
            raise CheckpointError(f"{name} has the shapes {shapes}: the branches are no branches of one network")
        if general[name].is_floating_point() != blur[name].is_floating_point():
            kinds = " and ".join(str(s[name].dtype).removeprefix("torch.") for s in (general, blur))
            raise CheckpointError(f"{name} is {kinds}: the branches are no branches of one network")


def similarity(general: Mapping[str, Tensor], blur: Mapping[str, Tensor]) -> float:
    """Mean over tensors of the cosine between the two branches' values; 1 for equal ones, also where both are zero."""
    pairs = [(v.detach().flatten(), blur[k].detach().flatten().to(v)) for k, v in general.items()]
    each = [F.cosine_similarity(a, b, dim=0) if a.any() or b.any() else a.new_ones(()) for a, b in pairs]
    return float(torch.stack(each).detach().mean()) if each else 1.0


def adaptive_decay(cosine: float, least: float = 0.995) -> float:
    """Decay of the exchange for networks with a codebook: alike branches mix less, ``(1 - least) cosine + least``."""
    return min(1.0, (1 - least) * cosine + least)


@torch.no_grad()
def exchange(general: nn.Module, blur: nn.Module, decay: float = 0.999) -> None:
    """Let either branch take a little of the other: b' = d b + (1-d) g, g' = d g + (1-d) b, both from the old values.

    Raises:
        UsageError: a decay outside [0, 1].
    """
    if not 0 <= decay <= 1:
        raise UsageError(f"the decay of the exchange lies in [0, 1], not {decay}")
    ours, theirs = (list[Tensor](branch.parameters()) for branch in (general, blur))
    apart = torch._foreach_sub(theirs, ours)
    torch._foreach_add_(ours, apart, alpha=1 - decay)
    torch._foreach_sub_(theirs, apart, alpha=1 - decay)


@dataclass
class Branches:
    """What `dual_branch` returns: both branches, their mixture, and the cosine between them at the end."""

    general: nn.Module
    blur: nn.Module
    combined: nn.Module
    similarity: float


def _absolute(network: nn.Module, given: Tensor, wanted: Tensor) -> Tensor:
    return F.l1_loss(network(given), wanted)


def dual_branch(
    network: nn.Module,
    general: Examples,
    blur: Examples,
    *,
    steps: int,
    batch: int = 8,
    rate: float = 5e-4,
    warmup: int = 0,
    decay: float | None = 0.999,
    adaptive: bool = False,
    alpha: float = 0.5,
    seed: int = 0,
    losses: tuple[Loss, Loss] = (_absolute, _absolute),
    after: Callable[[int, nn.Module, nn.Module], Any] | None = None,
) -> Branches:
    """Train two branches from one network and melt them (sections 3.3 and 3.4).

    Args:
        network: where both start, pretrained; it is not changed.
        general, blur: what each branch sees.
        steps, batch, rate, warmup: of Adam on half a cosine, each branch its own.
        decay: of the exchange after every step; None for none.
        adaptive: let the decay follow the branches' likeness (`adaptive_decay` from ``decay``).
        alpha: weight of the blur branch in the mixture.
        seed: of the examples.
        losses: of (network, given, wanted), for each branch; adversarial ones may hold their own discriminator.
        after: called with the step and both branches after each step.

    Returns:
        The branches and their mixture, in evaluation mode.
    """
    branches = [copy.deepcopy(network).train(), copy.deepcopy(network).train()]
    optimisers = [torch.optim.Adam(b.parameters(), lr=rate, betas=(0.9, 0.99), fused=True) for b in branches]
    with bar("two branches", steps) as advance:
        for step in range(steps):
            for i, (branch, optimiser, examples) in enumerate(zip(branches, optimisers, (general, blur), strict=True)):
                for group in optimiser.param_groups:
                    group["lr"] = learning_rate(step, steps, rate, warmup, 0.0)
                losses[i](branch, *examples.batch(batch, seed, step)).backward()
                optimiser.step()
                optimiser.zero_grad()
            if decay is not None:
                alike = similarity(*(dict(b.named_parameters()) for b in branches)) if adaptive else 1.0
                exchange(branches[0], branches[1], adaptive_decay(alike, decay) if adaptive else decay)
            if after is not None:
                after(step, *branches)
            advance(1)
    combined = copy.deepcopy(branches[0])
    learnt = {name for name, _ in combined.named_parameters()}
    states = [branch.state_dict() for branch in branches]
    combined.load_state_dict(merged(states[0], states[1], alpha, parameters=learnt))
    alike = similarity(*({k: s[k] for k in learnt} for s in states))
    return Branches(branches[0].eval(), branches[1].eval(), combined.eval(), alike)
