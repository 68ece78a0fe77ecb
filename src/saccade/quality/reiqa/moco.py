"""Pre-training of the quality-aware encoder: momentum contrast on pairs that share their distortion, not their place.

    picture -- region -- 1 + n copies, n kinds of distortion -- half size too -- two overlapping crops of each
        crop a --> encoder, head ----------> q ---+
        crop b --> momentum encoder, head -> k ---+--> [q.k, q.(other keys of the step), q.queue] / T --> cross entropy

Positive is the other crop of the same copy: same damage, other place. Negatives are all other keys, among them the same
content with other damage, which is what makes the features see quality (section 3.2). For the first half of the copies
the two crops change sides, so place does not tell the sides apart. He et al., MoCo v2, arXiv:2003.04297; Saha et al.,
arXiv:2304.00451; Lin et al. for the distortions.

``distortions=False`` is the content-aware sibling: plain momentum contrast on clean crops.

Several processes train as one: gradients are averaged, the keys' batch is dealt out anew before its norms see it
(shuffle-BN), and the keys of all enter the queue of each, which so is the same everywhere.
"""

from __future__ import annotations

import copy
import dataclasses
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.checkpoint import write_bytes
from saccade.errors import CheckpointError, InputError, UsageError
from saccade.progress import bar
from saccade.quality.reiqa.crops import Crops, FreshCrops, crops_of, half_swap, overlapping_crops, shifts
from saccade.quality.reiqa.encoder import Encoder, Head
from saccade.quality.reiqa.recipe import Recipe
from saccade.training.lars import lars
from saccade.training.muon import Muon
from saccade.training.processes import ALONE, Processes

__all__ = [
    "Crops",
    "FreshCrops",
    "Queue",
    "Recipe",
    "contrast_logits",
    "half_swap",
    "overlapping_crops",
    "pretrain",
    "shifts",
]

#: steps between two reports of the loss
REPORT_EVERY = 50


def contrast_logits(
    q: Tensor,
    k: Tensor,
    queue: Tensor,
    temperature: float = 0.2,
    *,
    within: bool = False,
    step_keys: Tensor | None = None,
    first: int = 0,
) -> Tensor:
    """Similarities of queries to their own key (column 0) and to all negatives, over the temperature.

    Args:
        q, k: (B, D), unit length.
        queue: (K, D) earlier keys.
        within: the other keys of the step are negatives as well (section 3.2 of the paper; the published code compares
            with the queue alone).
        step_keys: (N, D) all keys of the step, where ``k`` are those of one process; None: ``k`` are all.
        first: where in ``step_keys`` those of ``k`` begin.

    Returns:
        (B, 1 + K), or (B, 1 + (N - 1) + K) with ``within``; the right answer is column 0.
    """
    parts = [(q * k).sum(1, keepdim=True)]
    if within:
        others = q @ (k if step_keys is None else step_keys).T
        places = torch.arange(others.shape[1], device=q.device)
        foreign = places != (first + torch.arange(len(q), device=q.device))[:, None]
        parts.append(others[foreign].view(len(q), others.shape[1] - 1))
    parts.append(q @ queue.T)
    return torch.cat(parts, 1) / temperature


class Queue:
    """The latest keys, at most ``size`` (0 for none), overwritten in a ring.

    It starts empty. (The published code starts with random directions: in a short training the network then learns
    first of all to be far from those, which a constant does best, and it takes thousands of steps to come back.)

    Raises:
        UsageError: no room for a key.
    """

    def __init__(self, size: int, dims: int, device: torch.device | None = None) -> None:
        if size < 0 or dims < 1:
            raise UsageError(f"a queue has room for some keys or for none, not {size} x {dims}")
        self._keys, self._next, self._filled = torch.zeros(size, dims, device=device), 0, 0

    @property
    def keys(self) -> Tensor:
        """(number so far, dims), a copy: what is put later does not change it."""
        return self._keys[: self._filled].clone()

    @torch.no_grad()
    def put(self, keys: Tensor) -> None:
        """Overwrite the oldest keys with (B, dims); of more than fit the last ones stay."""
        size = len(self._keys)
        if not size:
            return
        at = (self._next + torch.arange(len(keys), device=self._keys.device)) % size
        self._keys[at[-size:]] = keys.detach()[-size:].to(self._keys)
        self._next = (self._next + len(keys)) % size
        self._filled = min(size, self._filled + len(keys))

    def state(self) -> dict[str, Any]:
        """What a resumed training needs."""
        return {"keys": self._keys, "next": self._next, "filled": self._filled}

    def restore(self, state: dict[str, Any]) -> None:
        """Take what `state` gave."""
        self._keys.copy_(state["keys"])
        self._next, self._filled = int(state["next"]), int(state["filled"])


@torch.no_grad()
def _follow(key: nn.Module, query: nn.Module, momentum: float) -> None:
    """The key network moves towards the query network (MoCo, eq. 2)."""
    own, other = tuple(p.detach() for p in key.parameters()), tuple(p.detach() for p in query.parameters())
    torch._foreach_lerp_(own, other, 1 - momentum)


@torch.no_grad()
def _keys(
    network: nn.Module, x: Tensor, parts: int, generator: torch.Generator, processes: Processes = ALONE
) -> Tensor:
    """The keys of the step, of all processes, in the order of their rows; (N, dims) on each process.

    Batch norms are taken over random parts of the step, so that they do not tell which query is theirs: each process
    has rows of all, and at least one part. With as many processes as parts, parts are those that one process has.
    """
    order = torch.randperm(processes.count * len(x), generator=generator)
    mixed = processes.dealt(x, order)
    own = torch.arange(len(x)).chunk(max(1, -(-parts // processes.count)))
    made = torch.cat([network(mixed[p[0] : p[-1] + 1].contiguous(memory_format=torch.channels_last)) for p in own])
    return processes.gathered(made.float())[order.argsort().to(made.device)]


def _optimiser(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimiser == "lars":
        return lars(network.parameters(), recipe.rate, recipe.decay)
    if recipe.optimiser == "adamw":
        return torch.optim.AdamW(network.parameters(), recipe.rate, weight_decay=recipe.decay)
    return Muon(network.parameters(), recipe.rate, weight_decay=recipe.decay)


class Contrast:
    """Everything that a pre-training moves: the network and its optimiser, the key network, the queue, the stacks.

    Args:
        encoder: to be trained, in place; it is moved to the processes' device.
        pictures, recipe, workers: as `pretrain` takes them.
        processes: that train as one.

    Attributes:
        step: steps done.
    """

    def __init__(
        self,
        encoder: Encoder,
        pictures: Sequence[Path | np.ndarray],
        recipe: Recipe,
        processes: Processes = ALONE,
        workers: int = 0,
    ) -> None:
        recipe.check(processes.count)
        self.recipe, self.processes, self.step = recipe, processes, 0
        self.generator = torch.Generator().manual_seed(recipe.seed)
        self.crops = crops_of(pictures, recipe, workers)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            network = nn.Sequential(encoder, Head(encoder.features, *recipe.head))
        self.network = network.train().to(processes.device).to(memory_format=torch.channels_last)
        self.keys = copy.deepcopy(self.network).requires_grad_(False)
        self.queue = Queue(recipe.queue, recipe.head[1], processes.device)
        self.optimiser = _optimiser(self.network, recipe)

    def losses(self) -> Iterator[tuple[Tensor, float]]:
        """Train step by step to the end; yields the loss and the share of queries nearest to their own key.

        Raises:
            InputError: unusable pictures; the loss is no number any more.
        """
        processes, recipe = self.processes, self.recipe
        network, optimiser = processes.set_up(self.network, self.optimiser)
        batches = self.crops.batches(processes.rank, processes.count)
        while self.step < recipe.steps:
            for group in optimiser.param_groups:
                group["lr"] = recipe.rate_at(self.step)
            given = [side.to(processes.device) for side in next(batches)]
            loss, right = self._compared(network, given[0], given[1])
            if not torch.isfinite(loss):
                raise InputError(f"the loss became {float(loss.detach())} at step {self.step}; take a lower rate")
            processes.backward(loss)
            optimiser.step()
            optimiser.zero_grad()
            _follow(self.keys, self.network, recipe.momentum)
            self.step += 1
            yield loss.detach(), right

    def _compared(self, network: nn.Module, asked: Tensor, given: Tensor) -> tuple[Tensor, float]:
        recipe, processes = self.recipe, self.processes
        with torch.autocast(processes.device.type, torch.bfloat16, enabled=recipe.bfloat16):
            q = network(asked)
            every = _keys(self.keys, given, recipe.shuffles, self.generator, processes)
        q, first = q.float(), processes.rank * len(q)
        own = every[first : first + len(q)]
        logits = contrast_logits(
            q, own, self.queue.keys, recipe.temperature, within=recipe.within, step_keys=every, first=first
        )
        self.queue.put(every)
        right = float((logits.detach().argmax(1) == 0).float().mean())
        return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long, device=q.device)), right

    def state(self) -> dict[str, Any]:
        """Everything needed to go on, on any number of processes."""
        return {
            "recipe": _listed(self.recipe),
            "step": self.step,
            "network": self.network.state_dict(),
            "keys": self.keys.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "queue": self.queue.state(),
            "crops": self.crops.state(),
            "generator": self.generator.get_state(),
        }

    def keep(self, path: Path) -> None:
        """Write `state`, whole or not at all.

        Raises:
            InputError: the folder cannot be written.
        """
        made = io.BytesIO()
        torch.save(self.state(), made)
        write_bytes(path, made.getvalue())

    def restore(self, path: Path) -> None:
        """Go on where the training that wrote the file stood.

        Raises:
            UsageError: that training has another recipe.
            CheckpointError: the file is damaged.
        """
        try:
            kept: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            old = dict(kept["recipe"])
        except Exception as error:
            raise CheckpointError(f"{path} is damaged; remove it to start anew") from error
        own = _listed(self.recipe)
        differing = [
            f"{name} was {old.get(name)}, now {value}" for name, value in own.items() if old.get(name) != value
        ]
        if differing:
            raise UsageError(f"{path} holds a pre-training of another recipe ({'; '.join(differing)})")
        try:
            self.network.load_state_dict(kept["network"])
            self.keys.load_state_dict(kept["keys"])
            self.optimiser.load_state_dict(kept["optimiser"])
            self.queue.restore(kept["queue"])
            self.crops.restore(kept["crops"])
            self.generator.set_state(kept["generator"])
            self.step = int(kept["step"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{path} is no checkpoint of this encoder; remove it to start anew") from error


def _listed(recipe: Recipe) -> dict[str, Any]:
    """A recipe as checkpoints hold it: a tuple is a list there."""
    return {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(recipe).items()}


def pretrain(
    encoder: Encoder,
    pictures: Sequence[Path | np.ndarray],
    recipe: Recipe,
    say: Callable[[int, float, float], None] | None = None,
    *,
    processes: Processes = ALONE,
    workers: int = 0,
    checkpoint: Path | None = None,
    save_every: int = 500,
) -> Encoder:
    """Train an encoder by momentum contrast, in place.

    Args:
        encoder: from `seeded` weights, the same on all processes.
        pictures: files or (H, W, 3) uint8 arrays.
        recipe: see `Recipe`.
        say: called with (step, loss, share of queries whose own key is the nearest) every 50 steps.
        processes: that train as one; all call this function with the same arguments.
        workers: processes of each that read and distort ahead, where the recipe has no pool.
        checkpoint: a file that is written every ``save_every`` steps and at the end; if it exists the training goes on
            where it stood. None for none.

    Returns:
        The encoder, in evaluation mode, on the processor, the same on all processes.

    Raises:
        InputError: unusable pictures; the loss is no number any more.
        UsageError: a recipe that cannot be, or not the checkpoint's.
        CheckpointError: a damaged checkpoint.
    """
    contrast = Contrast(encoder, pictures, recipe, processes, workers)
    if checkpoint is not None and checkpoint.exists():
        contrast.restore(checkpoint)
    with bar("pre-training", recipe.steps, enabled=None if processes.leads else False) as advance:
        advance(contrast.step)
        for loss, right in contrast.losses():
            done = contrast.step
            if (done - 1) % REPORT_EVERY == 0:
                told = processes.mean(float(loss), right)  # all processes take part, one of them speaks
                if say is not None:
                    say(done - 1, *told)
            if checkpoint is not None and (done % save_every == 0 or done == recipe.steps):
                if processes.leads:
                    contrast.keep(checkpoint)
                processes.wait()
            advance(1)
    return processes.share_buffers(encoder).to("cpu").eval()
