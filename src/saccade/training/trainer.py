"""The trainer: one device or many, resumable at any moment; tasks say what a step sees and how a network is measured.

    Options (a task's own subclass) -- examples of a step, depending on (seed, step, rank) alone -- network's loss
         -- Adam, AdamW, SGD or Muon on a warmed-up cosine -- averaged weights -- measured, saved

Lightning Fabric carries the devices: ``saccade train ...`` uses what it finds on this machine, and
``torchrun --nnodes 4 --nproc-per-node 8 -m saccade.cli train ...`` the same code on four machines.

A run is a folder: ``last.ckpt`` (everything needed to continue, replaced atomically), ``weights.safetensors`` (the
averaged, collapsed network, to be used), ``run.json`` (options and the course of the figures) and TensorBoard events.
What a step sees depends on (seed, step, rank) alone, so a run that was killed and resumed ends as if it never was.

A network may define ``training_loss(given, wanted, phase)`` (else L1 or L2 of its output), ``phase_parameters(phase)``
and ``collapse()``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from saccade import registry
from saccade.checkpoint import save
from saccade.errors import InputError
from saccade.progress import bar
from saccade.training.clipping import clip
from saccade.training.devices import launched, places
from saccade.training.optimisers import learning_rate, optimiser_named
from saccade.training.options import Examples, Options
from saccade.training.run import Run, listed
from saccade.training.weights import Average, start_from

__all__ = ["Average", "Examples", "Learner", "Options", "Run", "learning_rate", "places", "start_from", "train"]


def train(options: Options, *, say: Callable[[str], None] = print) -> Path:
    """Train a network; continue where the run in ``options.out`` stands.

    Returns:
        The file of the averaged (and, for SESR, collapsed) weights.

    Raises:
        UsageError: impossible options, or a run folder with other ones.
        InputError: no or unreadable pictures.
        UnavailableError: the ``train`` extra is not installed.
    """
    options.check()
    if options.threads:
        torch.set_num_threads(options.threads)
    fabric = launched(options)
    leading = fabric.is_global_zero
    tell: Callable[[str], None] = say if leading else _silence
    if fabric.world_size > 1:
        tell(f"{fabric.world_size} processes learn as one")

    pictures, held = options.split()
    run = Run(options)
    run.make()
    kept = run.resume(options)
    network = _initial(options)
    examples, measure = options.examples(pictures, network), options.measurer(held, network)
    if kept is not None:
        tell(f"continuing {run.folder} at step {int(kept['step']):,} of {options.steps:,}")
    elif options.start:
        tell(options.start_from(network))
    else:
        options.solve(network, examples)
    learner = Learner(options, fabric, network, examples, kept)

    events = run.events() if leading else contextlib.nullcontext(_silence)
    with events as log, bar(options.title(), options.steps, enabled=None if leading else False) as advance:
        advance(learner.step)
        while learner.step < options.steps:
            learner.learn()
            advance(1)
            if leading and learner.is_due(options.validate_every):
                run.course.append(_validated(learner, measure, run.weights))
                log(run.course[-1])
                run.report(options, learner.seconds)
                tell(_line(run.course[-1], options.FIGURE, learner.seconds))
            if leading and learner.is_due(options.save_every):
                run.keep({**learner.state(), "course": run.course})
            if learner.step % options.save_every == 0:
                fabric.barrier()
    fabric.barrier()  # nobody returns before the leading process has written
    return run.weights


class Learner:
    """A network that learns, with its optimiser and its average, on the devices of the run.

    Args:
        options: of the run.
        fabric: launched.
        network: as it starts; its weights and the optimiser's state are replaced by those of ``kept``.
        examples: what the steps see.
        kept: what `state` gave, to go on from.

    Attributes:
        step: steps done.
        rate: of the last step, the peak group's.
        average: of the weights, what is measured and saved.
    """

    def __init__(
        self, options: Options, fabric: Any, network: nn.Module, examples: Examples, kept: dict[str, Any] | None
    ) -> None:
        self.options, self.fabric, self.network, self.examples = options, fabric, network, examples
        self.step, self.rate = 0, 0.0
        self.average = Average(network, options.ema)
        optimiser = optimiser_named(options.optimiser, options.groups(network), options.rate, options.weight_decay)
        seconds = 0.0
        if kept is not None:
            network.load_state_dict(kept["model"])
            optimiser.load_state_dict(kept["optimiser"])
            self.average.values = kept["average"]
            self.step, seconds = int(kept["step"]), float(kept["seconds"])
            options.restore(kept.get("task", ""))
        self.average.to(fabric.device)
        self._model, self._optimiser = fabric.setup(network, optimiser)
        for name in options.FORWARDS:
            if hasattr(network, name):
                self._model.mark_forward_method(name)
        options.set_up(fabric, network)
        loss = options.loss_function(self._model)
        self._loss = torch.compile(loss) if options.compile else loss
        self._total, self._counted = 0.0, 0  # of the loss, since it was last asked for
        self._began = time.monotonic() - seconds

    @property
    def seconds(self) -> float:
        """Time of the run so far, without the pauses between its parts."""
        return time.monotonic() - self._began

    def is_due(self, every: int) -> bool:
        """Whether what is done each ``every`` steps, and at the end, is to be done now."""
        return self.step % every == 0 or self.step == self.options.steps

    def learn(self) -> None:
        """One step.

        Raises:
            InputError: the loss is no number any more.
        """
        self._set_rate()
        loss = self._loss(*self._batch())
        if not torch.isfinite(loss):
            raise InputError(f"the loss became {float(loss.detach())} at step {self.step}; lower --rate")
        self.fabric.backward(loss)
        self._update()
        self._total, self._counted = self._total + float(loss.detach()), self._counted + 1
        self.step += 1

    def _set_rate(self) -> None:
        options = self.options
        self.rate = learning_rate(self.step, options.steps, options.rate, options.warmup, options.hold)
        for group in self._optimiser.param_groups:
            group["lr"] = self.rate * group.get("share", 1.0)

    def _batch(self) -> tuple[Tensor, Tensor]:
        """What goes in and what is wanted at this step, on this process's device."""
        batch = self.examples.batch(self.options.batch, self.options.seed, self.step, self.fabric.global_rank)
        given, wanted = (t.to(self.fabric.device) for t in batch)
        is_luma = getattr(self.network, "colour", "rgb") == "luma"
        if given.ndim == 4 and (self.fabric.device.type == "cpu" or is_luma):
            given = given.contiguous(memory_format=torch.channels_last)
        return given, wanted

    def _update(self) -> None:
        """Move the network along its gradients, and what follows it."""
        options, fabric = self.options, self.fabric
        options.before_update(self.step)
        if options.clip:
            clipped = options.clipped(self.network)
            clip(options.clip_mode, options.clip, fabric, self._model, self._optimiser, clipped)
        self._optimiser.step()
        self._optimiser.zero_grad()
        options.after_update(self.step)
        self.average.update(self.network, self.step)

    def mean_loss(self) -> float:
        """Mean of the loss over the steps since it was last asked for."""
        mean = self._total / self._counted
        self._total, self._counted = 0.0, 0
        return mean

    def finished(self) -> nn.Module:
        """The network to be used: averaged weights, collapsed where the model has a collapsed form."""
        final: Any = registry.create(self.options.model, weights=None, **_model_options(self.options))
        final.load_state_dict(self.average.values)
        made: nn.Module = final.collapse() if hasattr(final, "collapse") else final
        return made.to(self.fabric.device)

    def state(self) -> dict[str, Any]:
        """Everything needed to go on."""
        return {
            "model": self.network.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "average": self.average.values,
            "step": self.step,
            "seconds": self.seconds,
            "task": self.options.state(),
            "options": {k: listed(v) for k, v in dataclasses.asdict(self.options).items()},
        }


def _initial(options: Options) -> nn.Module:
    """The network as a run starts it: weights from the seed, in training mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        network = registry.create(options.model, weights=None, **_model_options(options)).train()
    options.prepare(network)
    return network


def _model_options(options: Options) -> dict[str, Any]:
    """The form of the network that is trained: what its registration says, and the user's own options."""
    return {**options.created(), **registry.entry(options.model).facts.get("training", {}), **options.model_options}


def _validated(learner: Learner, measure: Callable[[nn.Module], float], weights: Path) -> dict[str, float]:
    """Measure the network as it would be used and write it to ``weights``; the entry of the course."""
    options, final = learner.options, learner.finished()
    found = measure(final)
    entry = {"step": learner.step, "loss": learner.mean_loss(), options.FIGURE: found, "rate": learner.rate}
    told = {"step": str(learner.step), options.FIGURE: f"{found:.3f}", **options.metadata()}
    save(final, weights, **told)
    return entry | options.parts()


def _line(entry: dict[str, float], figure: str, seconds: float) -> str:
    step, loss = int(entry["step"]), entry["loss"]
    return f"step {step:>7,}  loss {loss:.5f}  {figure} {entry[figure]:.3f}  {seconds:,.0f} s"


def _silence(told: object) -> None:
    """Where only the leading process speaks."""
