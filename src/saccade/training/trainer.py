"""The trainer: one device or many, resumable at any moment; tasks say what a step sees and how a network is measured.

    Options (a task's own subclass) -- examples of a step, depending on (seed, step, rank) alone -- network's loss
         -- Adam, AdamW or Muon on a warmed-up cosine -- averaged weights -- measured, saved

Lightning Fabric carries the devices: ``saccade train ...`` uses what it finds on this machine, and
``torchrun --nnodes 4 --nproc-per-node 8 -m saccade.cli train ...`` the same code on four machines.

A run is a folder: ``last.ckpt`` (everything needed to continue, replaced atomically), ``weights.safetensors`` (the
averaged, collapsed network, to be used), ``run.json`` (options and the course of the figures) and TensorBoard events.
What a step sees depends on (seed, step, rank) alone, so a run that was killed and resumed ends as if it never was.

A network may define ``training_loss(given, wanted, phase)`` (else L1 or L2 of its output), ``phase_parameters(phase)``
and ``collapse()``.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade import registry
from saccade.checkpoint import save, write_bytes
from saccade.data.pairs import photographs
from saccade.errors import CheckpointError, InputError, UnavailableError, UsageError, first_line
from saccade.progress import bar

__all__ = ["Examples", "Options", "learning_rate", "places", "train"]


class Examples(Protocol):
    """What a network is trained on."""

    def batch(self, size: int, seed: int, step: int, rank: int = 0) -> tuple[Tensor, Tensor]:
        """What goes in and what should come out at one step, float32, decided by the arguments alone."""
        ...


@dataclass
class Options:
    """What a run is, whatever its task. Everything but paths and limits is fixed when the run starts.

    Args:
        model: registered name.
        data: folder of training photographs.
        out: folder of the run.
        validate: folder of pictures to measure on, or None to hold out every 16th training picture.
        steps: optimiser steps in all.
        batch: crops a step and device.
        patch: side of the crop that the network sees, pixels.
        shrink: sizes at which every photograph is taken, fractions of its own.
        rate: peak learning rate.
        warmup: steps of linear warm-up.
        hold: fraction of the steps at the peak rate before the cosine begins.
        loss: ``l1`` or ``l2``, for networks without a loss of their own.
        optimiser: ``adam``, ``adamw``, ``sgd`` (Nesterov momentum 0.9) or ``muon`` (matrices and kernels; the rest by
            Adam).
        weight_decay: of adamw, sgd and muon.
        clip: bound on the norm of the gradient, 0 for none.
        ema: decay of the weight average, 0 for none.
        phase: stage of models that train in stages.
        start: weights to start from.
        precision: Fabric's, e.g. ``32-true``, ``bf16-mixed``.
        validate_every, save_every: steps between validations and checkpoints.
        seed: of the initial weights and the crops.
        compile: run the step through torch.compile.
        threads: CPU threads, 0 leaves them alone.
        model_options: further options of the model.
    """

    TASK: ClassVar[str] = ""  # of the registered models that can be trained
    FIGURE: ClassVar[str] = "psnr_db"  # what `measure` gives
    LOSSES: ClassVar[tuple[str, ...]] = ("l1", "l2")
    FORWARDS: ClassVar[tuple[str, ...]] = ("training_loss",)  # methods that a step calls in place of the network itself

    model: str
    data: str
    out: str
    validate: str | None = None
    steps: int = 40_000
    batch: int = 16
    patch: int = 48
    shrink: tuple[float, ...] = (1.0,)
    rate: float = 1e-3
    warmup: int = 300
    hold: float = 0.0
    loss: str = "l1"
    optimiser: str = "adam"
    weight_decay: float = 0.0
    clip: float = 0.0
    ema: float = 0.999
    phase: int = 0
    start: str | None = None
    precision: str = "32-true"
    validate_every: int = 2_000
    save_every: int = 500
    seed: int = 0
    compile: bool = False
    threads: int = 0
    accelerator: str = "auto"
    devices: str = "auto"
    nodes: int = 1
    model_options: dict[str, Any] = dataclasses.field(default_factory=dict)

    # -- what a task says

    def title(self) -> str:
        """The words before the progress bar."""
        return self.model

    def created(self) -> dict[str, Any]:
        """Options that the network is made with, beside the user's own."""
        return {}

    def examples(self, pictures: Sequence[Any], model: nn.Module) -> Examples:
        """What the network is trained on."""
        raise NotImplementedError

    def measurer(self, pictures: Sequence[Any], model: nn.Module) -> Callable[[nn.Module], float]:
        """A function that gives the figure of a network on the pictures that were held out."""
        raise NotImplementedError

    def split(self) -> tuple[Sequence[Any], Sequence[Any]]:
        """What is trained on, and what is held out to measure on."""
        pictures = photographs(self.data)
        held = photographs(self.validate) if self.validate else pictures[::16]
        if not self.validate:
            pictures = [p for p in pictures if p not in held] or pictures
        return pictures, held

    def loss_function(self, model: Any) -> Callable[[Tensor, Tensor], Tensor]:
        """The loss of what goes in and what is wanted: the network's own, else L1 or L2 of its output."""
        own = getattr(model, "training_loss", None)
        if own is not None:
            return lambda low, high: own(low, high, self.phase)
        measure = F.l1_loss if self.loss == "l1" else F.mse_loss
        return lambda low, high: measure(model(low), high)

    def groups(self, model: Any) -> list[dict[str, Any]]:
        """What is trained, with settings of its own for each group."""
        of_phase = getattr(model, "phase_parameters", None)
        return [{"params": list(of_phase(self.phase)) if of_phase else [*filter(_learns, model.parameters())]}]

    def prepare(self, model: nn.Module) -> None:
        """Change what the network does in training alone; its weights and options stay."""

    def metadata(self) -> dict[str, str]:
        """What the file of weights tells beside the network."""
        return {}

    def state(self) -> Any:
        """What the task must remember so that a run can go on, beside network, optimiser and step: text, tensors."""
        return ""

    def restore(self, state: Any) -> None:
        """Take what `state` gave; before `set_up`, and before `loss_function` is asked for."""

    def set_up(self, fabric: Any, model: nn.Module) -> None:
        """Make what learns or judges beside the network, on the run's devices."""

    def before_update(self, step: int) -> None:
        """The gradients are there, the network has not moved yet."""

    def after_update(self, step: int) -> None:
        """The network has moved; what learns beside it may now."""

    def parts(self) -> dict[str, float]:
        """Figures of the course beside the loss, over the steps since they were last asked for."""
        return {}

    def start_from(self, model: nn.Module) -> str:
        """Load what fits of ``start``; returns what was done, in words."""
        return start_from(model, str(self.start))

    # -- what all share

    def check(self) -> None:
        """Refuse a model of another task, and values that cannot be meant.

        Raises:
            UsageError: naming the option.
        """
        entry = registry.entry(self.model)
        if entry.task != self.TASK:
            raise UsageError(f"{self.model} is for {entry.task}, not for {self.TASK}")
        self.check_values()

    def check_values(self) -> None:
        """Refuse values that cannot be meant.

        Raises:
            UsageError: naming the option.
        """
        for name in ("steps", "batch", "patch", "validate_every", "save_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}")
        if not (math.isfinite(self.rate) and self.rate > 0):
            raise UsageError(f"--rate must be a positive number, not {self.rate}")
        if not 0 <= self.ema < 1:
            raise UsageError(f"--ema must lie in [0, 1), not {self.ema}")
        if not 0 <= self.hold <= 1:
            raise UsageError(f"--hold must lie in [0, 1], not {self.hold}")
        if not self.shrink or not all(0 < size <= 1 for size in self.shrink):
            raise UsageError(f"--shrink takes sizes in (0, 1], not {self.shrink}")
        for name in ("clip", "weight_decay"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise UsageError(f"--{name.replace('_', '-')} must not be negative, not {getattr(self, name)}")
        if self.warmup < 0 or self.threads < 0:
            raise UsageError("--warmup and --threads must not be negative")
        if self.loss not in self.LOSSES:
            raise UsageError(f"--loss is {' or '.join(self.LOSSES)}, not {self.loss!r}")
        if self.optimiser not in OPTIMISERS:
            raise UsageError(f"--optimiser is {', '.join(OPTIMISERS)}, not {self.optimiser!r}")


OPTIMISERS = ("adam", "adamw", "sgd", "muon")


#: options that a resumed run may change
FREE = {
    "data",
    "out",
    "validate",
    "validate_every",
    "save_every",
    "compile",
    "threads",
    "accelerator",
    "devices",
    "nodes",
}


def learning_rate(step: int, steps: int, peak: float, warmup: int, hold: float) -> float:
    """Rate of a step: linear warm-up, ``hold * steps`` at the peak, half a cosine down to zero at ``steps``."""
    if step < warmup:
        return peak * (step + 1) / warmup
    start = max(warmup, int(hold * steps))
    if step < start:
        return peak
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - start) / max(1, steps - start))))


class Average:
    """Exponential moving average of parameters and floating buffers; early steps count less (decay warm-up)."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        old, new = [], []
        for k, v in model.state_dict().items():
            if v.is_floating_point():
                old.append(self.values[k])
                new.append(v.detach().to(self.values[k].dtype))
            else:
                self.values[k].copy_(v)
        torch._foreach_lerp_(old, new, 1 - decay)


def _learns(parameter: nn.Parameter) -> bool:
    return parameter.requires_grad


def start_from(model: nn.Module, path: str, without: Callable[[Any], tuple[str, ...]] = lambda given: ()) -> str:
    """Load what fits of another file.

    Args:
        without: of the network in the file: prefixes of what is not to be taken.

    Raises:
        CheckpointError: it shares less than half of its tensors with the network.
    """
    from saccade.checkpoint import load

    given: Any = load(path)
    if isinstance(model_expansion := getattr(model, "expansion", None), int) and hasattr(given, "expand"):
        given = given.expand(model_expansion)
    own, other = model.state_dict(), given.state_dict()
    fitting = {k: v for k, v in other.items() if k in own and own[k].shape == v.shape}
    if len(fitting) < len(own) / 2:
        raise CheckpointError(f"{path} shares only {len(fitting)} of {len(own)} tensors with the network to train")
    if prefixes := without(given):
        fitting = {k: v for k, v in fitting.items() if not k.startswith(prefixes)}
    model.load_state_dict({**own, **fitting})
    return f"{len(fitting)} of {len(own)} tensors from {Path(path).name}"


def _final(average: Average, options: Options) -> nn.Module:
    """The network to be used: averaged weights, collapsed where the model has a collapsed form."""
    final: Any = registry.create(options.model, weights=None, **_model_options(options))
    final.load_state_dict(average.values)
    made: nn.Module = final.collapse() if hasattr(final, "collapse") else final
    return made


def _model_options(options: Options) -> dict[str, Any]:
    """The form of the network that is trained: what its registration says, and the user's own options."""
    return {**options.created(), **registry.entry(options.model).facts.get("training", {}), **options.model_options}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _optimiser(groups: list[dict[str, Any]], options: Options) -> torch.optim.Optimizer:
    if options.optimiser == "adam":
        return torch.optim.Adam([{**g, "weight_decay": 0.0} for g in groups], lr=options.rate, betas=(0.9, 0.99))
    if options.optimiser == "adamw":
        return torch.optim.AdamW(groups, lr=options.rate, weight_decay=options.weight_decay)
    if options.optimiser == "sgd":
        decay = options.weight_decay
        return torch.optim.SGD(groups, lr=options.rate, momentum=0.9, nesterov=True, weight_decay=decay)
    from saccade.training.muon import Muon

    return Muon([p for g in groups for p in g["params"]], lr=options.rate, weight_decay=options.weight_decay)


class Run:
    """The folder of one training: its checkpoint, its log, its result."""

    def __init__(self, options: Options) -> None:
        self.folder = Path(options.out)
        self.last = self.folder / "last.ckpt"
        self.weights = self.folder / "weights.safetensors"
        self.course: list[dict[str, float]] = []

    def resume(self, options: Options) -> dict[str, Any] | None:
        """The checkpoint to continue from, or None for a new run.

        Raises:
            UsageError: the folder holds a run with other options.
            CheckpointError: the checkpoint is damaged.
        """
        if not self.last.exists():
            return None
        try:
            kept: dict[str, Any] = torch.load(self.last, map_location="cpu", weights_only=True)
            old, _ = kept["options"], [kept[k] for k in ("model", "optimiser", "average", "step", "seconds", "course")]
        except Exception as error:
            raise CheckpointError(f"{self.last} is damaged; remove it to start anew") from error
        differing = [
            f"--{k.replace('_', '-')} was {old[k]!r}, now {v!r}"
            for k, v in dataclasses.asdict(options).items()
            if k not in FREE and k in old and old[k] != _plain(v)
        ]
        if differing:
            raise UsageError(
                f"{self.folder} holds a run with other options ({'; '.join(differing)}); choose another --out"
            )
        self.course = [dict(c) for c in kept["course"]]
        return kept

    def keep(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint atomically; what a killed run left half-written is overwritten."""
        temporary = self.folder / ".last.ckpt.part"
        torch.save(state, temporary)
        with temporary.open("rb+") as f:
            os.fsync(f.fileno())
        temporary.replace(self.last)

    def report(self, options: Options, seconds: float) -> None:
        told = {"options": dataclasses.asdict(options), "course": self.course, "seconds": round(seconds, 1)}
        write_bytes(self.folder / "run.json", json.dumps(told, indent=1).encode())


def places(options: Options) -> tuple[int | str, int]:
    """Devices of a machine, and machines: torchrun's counts where it started this process and no others are asked for.

    Left to itself, Fabric takes a process of torchrun's on a processor for a run of its own.
    """
    told = [os.environ.get(name, "") for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE")]
    if options.devices == "auto" and all(n.isdigit() and int(n) for n in told):
        local, every = map(int, told)
        return local, max(1, every // local)
    return int(options.devices) if options.devices.isdigit() else options.devices, options.nodes


def train(options: Options, *, say: Callable[[str], None] = print) -> Path:
    """Train a network; continue where the run in ``options.out`` stands.

    Returns:
        The file of the averaged (and, for SESR, collapsed) weights.

    Raises:
        UsageError: impossible options, or a run folder with other ones.
        InputError: no or unreadable pictures.
        UnavailableError: the ``train`` extra is not installed.
    """
    try:
        from lightning_fabric import Fabric
    except ImportError as error:
        raise UnavailableError.extra("training", "train") from error
    options.check()
    if options.threads:
        torch.set_num_threads(options.threads)
    devices, nodes = places(options)
    try:
        fabric = Fabric(
            accelerator=options.accelerator,
            devices=devices,
            num_nodes=nodes,
            precision=options.precision,  # type: ignore[arg-type]
        )
    except (RuntimeError, TypeError, ValueError) as error:
        raise UsageError(f"no training on these devices: {first_line(error)}") from error
    fabric.launch()
    leading = fabric.is_global_zero
    if leading and fabric.world_size > 1:
        say(f"{fabric.world_size} processes learn as one")

    pictures, held = options.split()
    run = Run(options)
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot create {run.folder}: {error.strerror}") from error
    kept = run.resume(options)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        raw = registry.create(options.model, weights=None, **_model_options(options)).train()
    options.prepare(raw)
    is_luma = getattr(raw, "colour", "rgb") == "luma"
    crops, measure = options.examples(pictures, raw), options.measurer(held, raw)
    if options.start and kept is None:
        started = options.start_from(raw)
        if leading:
            say(started)

    optimiser: Any = _optimiser(options.groups(raw), options)
    average = Average(raw, options.ema)
    first, seconds = 0, 0.0
    if kept is not None:
        raw.load_state_dict(kept["model"])
        optimiser.load_state_dict(kept["optimiser"])
        average.values = kept["average"]
        first, seconds = int(kept["step"]), float(kept["seconds"])
        options.restore(kept.get("task", ""))
        if leading:
            say(f"continuing {run.folder} at step {first:,} of {options.steps:,}")
    for k, v in average.values.items():
        average.values[k] = v.to(fabric.device)
    model, optimiser = fabric.setup(raw, optimiser)
    for name in options.FORWARDS:
        if hasattr(raw, name):
            model.mark_forward_method(name)
    options.set_up(fabric, raw)
    loss_of = options.loss_function(model)
    if options.compile:
        loss_of = torch.compile(loss_of)
    writer = _writer(run.folder) if leading else None
    began = time.monotonic() - seconds

    def state(step: int) -> dict[str, Any]:
        return {
            "model": raw.state_dict(),
            "optimiser": optimiser.state_dict(),
            "average": average.values,
            "step": step,
            "seconds": time.monotonic() - began,
            "course": run.course,
            "task": options.state(),
            "options": {k: _plain(v) for k, v in dataclasses.asdict(options).items()},
        }

    running, counted = 0.0, 0
    with bar(options.title(), options.steps, enabled=None if leading else False) as advance:
        advance(first)
        for step in range(first, options.steps):
            rate = learning_rate(step, options.steps, options.rate, options.warmup, options.hold)
            for group in optimiser.param_groups:
                group["lr"] = rate * group.get("share", 1.0)
            given, wanted = (
                t.to(fabric.device) for t in crops.batch(options.batch, options.seed, step, fabric.global_rank)
            )
            if given.ndim == 4 and (fabric.device.type == "cpu" or is_luma):
                given = given.contiguous(memory_format=torch.channels_last)
            loss = loss_of(given, wanted)
            if not torch.isfinite(loss):
                raise InputError(f"the loss became {float(loss.detach())} at step {step}; lower --rate")
            fabric.backward(loss)
            options.before_update(step)
            if options.clip:
                fabric.clip_gradients(model, optimiser, max_norm=options.clip)
            optimiser.step()
            optimiser.zero_grad()
            options.after_update(step)
            average.update(raw, step)
            running, counted = running + float(loss.detach()), counted + 1
            done = step + 1
            advance(1)
            if leading and (done % options.validate_every == 0 or done == options.steps):
                final = _final(average, options).to(fabric.device)
                found = measure(final)
                run.course.append({"step": done, "loss": running / counted, options.FIGURE: found, "rate": rate})
                run.course[-1] |= options.parts()
                running, counted = 0.0, 0
                if writer:
                    for name in list(run.course[-1])[1:]:  # all but the step
                        writer.add_scalar(name, run.course[-1][name], done)
                    writer.flush()
                told = {"step": str(done), options.FIGURE: f"{found:.3f}", **options.metadata()}
                save(final, run.weights, **told)
                run.report(options, time.monotonic() - began)
                loss_was, passed = run.course[-1]["loss"], time.monotonic() - began
                say(f"step {done:>7,}  loss {loss_was:.5f}  {options.FIGURE} {found:.3f}  {passed:,.0f} s")
            if leading and (done % options.save_every == 0 or done == options.steps):
                run.keep(state(done))
            if done % options.save_every == 0:
                fabric.barrier()
    if writer:
        writer.close()
    fabric.barrier()  # nobody returns before the leader has written
    return run.weights


def _writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))
