"""Training of super-resolution networks: one device or many, resumable at any moment.

Lightning Fabric carries the devices: ``saccade train sr ...`` uses what it finds on this machine, and
``torchrun --nnodes 4 --nproc-per-node 8 -m saccade.cli train sr ...`` the same code on four machines.

A run is a folder: ``last.ckpt`` (everything needed to continue, replaced atomically), ``weights.safetensors`` (the
averaged, collapsed network, to be used), ``run.json`` (options and the course of the figures) and TensorBoard events.
What a step sees depends on (seed, step, rank) alone, so a run that was killed and resumed ends as if it never was.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade import registry
from saccade.checkpoint import save, write_bytes
from saccade.data.pairs import CropPairs, luma, photographs
from saccade.errors import CheckpointError, InputError, UnavailableError, UsageError, first_line
from saccade.progress import bar

__all__ = ["Options", "learning_rate", "train", "validation_psnr"]


@dataclass
class Options:
    """What a run is. Everything but paths and limits is fixed when the run starts.

    Args:
        model: registered name of a super-resolution network.
        scale: enlargement.
        data: folder of training photographs.
        out: folder of the run.
        validate: folder of pictures for the PSNR, or None to hold out every 16th training picture.
        steps: optimiser steps in all.
        batch: crops a step and device.
        patch: side of the low-resolution crop, pixels.
        shrink: sizes at which every photograph is taken, fractions of its own.
        rate: peak learning rate of Adam.
        warmup: steps of linear warm-up.
        hold: fraction of the steps at the peak rate before the cosine begins.
        loss: ``l1`` or ``l2``.
        ema: decay of the weight average, 0 for none.
        phase: stage of models that train in stages (PCSR: 0 encoder and heavy sampler, 1 the rest).
        start: weights to start from; of another scale too, where the network allows it.
        precision: Fabric's, e.g. ``32-true``, ``bf16-mixed``.
        validate_every, save_every: steps between validations and checkpoints.
        seed: of the initial weights and the crops.
        compile: run the step through torch.compile.
        threads: CPU threads, 0 leaves them alone.
        model_options: further options of the model.
    """

    model: str
    data: str
    out: str
    scale: int = 2
    validate: str | None = None
    steps: int = 40_000
    batch: int = 16
    patch: int = 48
    shrink: tuple[float, ...] = (1.0,)
    rate: float = 1e-3
    warmup: int = 300
    hold: float = 0.0
    loss: str = "l1"
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

    def check(self) -> None:
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
        entry = registry.entry(self.model)
        if entry.task != "super-resolution":
            raise UsageError(f"{self.model} is for {entry.task}, not for super-resolution")
        registry.check_scale(entry, self.scale)
        if self.warmup < 0 or self.threads < 0:
            raise UsageError("--warmup and --threads must not be negative")
        if self.loss not in ("l1", "l2"):
            raise UsageError(f"--loss is l1 or l2, not {self.loss!r}")


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


def _loss_function(model: Any, options: Options) -> Callable[[Tensor, Tensor], Tensor]:
    own = getattr(model, "training_loss", None)
    if own is not None:
        return lambda low, high: own(low, high, options.phase)
    measure = F.l1_loss if options.loss == "l1" else F.mse_loss
    return lambda low, high: measure(model(low), high)


def _parameters(model: Any, phase: int) -> list[nn.Parameter]:
    of_phase = getattr(model, "phase_parameters", None)
    return list(of_phase(phase)) if of_phase else [p for p in model.parameters() if p.requires_grad]


@torch.inference_mode()
def validation_psnr(model: Any, pairs: CropPairs, *, phase: int = 0) -> float:
    """Mean PSNR of luma in dB over whole pictures: 8-bit rounding, ``scale`` pixels shaved from each border."""
    was, scale = model.training, pairs.scale
    model.eval()
    enlarge: Any = getattr(model, "forward_heavy", model) if phase == 0 else model
    total = 0.0
    for low, high in pairs.pairs:
        rgb, target = low[None].float() / 255, luma(high[None].float() / 255)
        if getattr(model, "colour", "luma") == "luma":
            made = model(luma(rgb))
        else:
            made = luma(enlarge(rgb).clamp(0, 1).mul(255).round().div(255))
        inner = (..., slice(scale, -scale), slice(scale, -scale))
        error = (made.clamp(0, 1).mul(255).round() - target.mul(255).round())[inner]
        total += float(10 * torch.log10(255**2 / error.square().mean().clamp_min(1e-10)))
    model.train(was)
    return total / len(pairs.pairs)


def _start_from(model: nn.Module, path: str, scale: int) -> str:
    """Load what fits of another file: the whole, or - for another scale - all but the last layer."""
    from saccade.checkpoint import load

    given: Any = load(path)
    if isinstance(model_expansion := getattr(model, "expansion", None), int) and hasattr(given, "expand"):
        given = given.expand(model_expansion)
    own, other = model.state_dict(), given.state_dict()
    fitting = {k: v for k, v in other.items() if k in own and own[k].shape == v.shape}
    if len(fitting) < len(own) / 2:
        raise CheckpointError(f"{path} shares only {len(fitting)} of {len(own)} tensors with the network to train")
    if scale != getattr(given, "scale", scale):
        fitting = {k: v for k, v in fitting.items() if not k.startswith("last.")}
    model.load_state_dict({**own, **fitting})
    return f"{len(fitting)} of {len(own)} tensors from {Path(path).name}"


def _final(average: Average, options: Options) -> nn.Module:
    """The network to be used: averaged weights, collapsed where the model has a collapsed form."""
    final: Any = registry.create(options.model, weights=None, scale=options.scale, **_model_options(options))
    final.load_state_dict(average.values)
    made: nn.Module = final.collapse() if hasattr(final, "collapse") else final
    return made


def _model_options(options: Options) -> dict[str, Any]:
    """The form of the network that is trained: what its registration says, and the user's own options."""
    return {**registry.entry(options.model).facts.get("training", {}), **options.model_options}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


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
    try:
        fabric = Fabric(
            accelerator=options.accelerator,
            devices=int(options.devices) if options.devices.isdigit() else options.devices,
            num_nodes=options.nodes,
            precision=options.precision,  # type: ignore[arg-type]
        )
    except (RuntimeError, TypeError, ValueError) as error:
        raise UsageError(f"no training on these devices: {first_line(error)}") from error
    fabric.launch()
    leading = fabric.is_global_zero

    pictures = photographs(options.data)
    held = photographs(options.validate) if options.validate else pictures[::16]
    if not options.validate:
        pictures = [p for p in pictures if p not in held] or pictures
    run = Run(options)
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot create {run.folder}: {error.strerror}") from error
    kept = run.resume(options)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        raw = registry.create(options.model, weights=None, scale=options.scale, **_model_options(options)).train()
    is_luma = getattr(raw, "colour", "rgb") == "luma"
    crops = CropPairs(pictures, options.scale, options.patch, luma=is_luma, shrink=options.shrink)
    tests = CropPairs(held, options.scale, 3, luma=is_luma)  # 3: something is left when the borders are shaved
    if options.start and kept is None:
        started = _start_from(raw, options.start, options.scale)
        if leading:
            say(started)

    optimiser = torch.optim.Adam(_parameters(raw, options.phase), lr=options.rate, betas=(0.9, 0.99))
    average = Average(raw, options.ema)
    first, seconds = 0, 0.0
    if kept is not None:
        raw.load_state_dict(kept["model"])
        optimiser.load_state_dict(kept["optimiser"])
        average.values = kept["average"]
        first, seconds = int(kept["step"]), float(kept["seconds"])
        if leading:
            say(f"continuing {run.folder} at step {first:,} of {options.steps:,}")
    for k, v in average.values.items():
        average.values[k] = v.to(fabric.device)
    model, optimiser = fabric.setup(raw, optimiser)
    for name in ("training_loss",):
        if hasattr(raw, name):
            model.mark_forward_method(name)
    loss_of = _loss_function(model, options)
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
            "options": {k: _plain(v) for k, v in dataclasses.asdict(options).items()},
        }

    running, counted = 0.0, 0
    with bar(f"{options.model} x{options.scale}", options.steps, enabled=None if leading else False) as advance:
        advance(first)
        for step in range(first, options.steps):
            rate = learning_rate(step, options.steps, options.rate, options.warmup, options.hold)
            for group in optimiser.param_groups:
                group["lr"] = rate
            low, high = (
                t.to(fabric.device) for t in crops.batch(options.batch, options.seed, step, fabric.global_rank)
            )
            if fabric.device.type == "cpu" or is_luma:
                low = low.contiguous(memory_format=torch.channels_last)
            loss = loss_of(low, high)
            if not torch.isfinite(loss):
                raise InputError(f"the loss became {float(loss.detach())} at step {step}; lower --rate")
            fabric.backward(loss)
            optimiser.step()
            optimiser.zero_grad()
            average.update(raw, step)
            running, counted = running + float(loss.detach()), counted + 1
            done = step + 1
            advance(1)
            if leading and (done % options.validate_every == 0 or done == options.steps):
                final = _final(average, options).to(fabric.device)
                psnr = validation_psnr(final, tests, phase=options.phase)
                run.course.append({"step": done, "loss": running / counted, "psnr_y_db": psnr, "rate": rate})
                running, counted = 0.0, 0
                if writer:
                    for name in ("loss", "psnr_y_db", "rate"):
                        writer.add_scalar(name, run.course[-1][name], done)
                    writer.flush()
                save(final, run.weights, step=str(done), psnr_y_db=f"{psnr:.3f}")
                run.report(options, time.monotonic() - began)
                loss_was, passed = run.course[-1]["loss"], time.monotonic() - began
                say(f"step {done:>7,}  loss {loss_was:.5f}  PSNR-Y {psnr:.3f} dB  {passed:,.0f} s")
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
