"""What a training run is: the options that all tasks share, and what a task of its own says of pictures and losses.

Options -- split --> pictures -- examples --> what a step sees
                    pictures held out -- measurer --> the figure of the run
        -- loss_function, groups --> what is lowered, what is trained
        -- set_up, before_update, after_update, parts, state, restore --> what learns or judges beside the network
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from saccade import registry
from saccade.data.pairs import photographs
from saccade.errors import UsageError
from saccade.training.clipping import CLIP_MODES
from saccade.training.optimisers import OPTIMISERS
from saccade.training.weights import start_from

__all__ = ["Examples", "Options"]


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
        optimiser: ``adam``, ``adamw``, ``sgd`` (Nesterov momentum 0.9), ``muon`` (matrices and kernels; the rest by
            Adam) or ``kar`` (Kar3, sums of signs).
        weight_decay: of adamw, sgd and muon.
        clip: bound on the gradient, 0 for none.
        clip_mode: what is bounded: ``norm``, that of the gradient; ``agc``, that of each unit over that of its weights.
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
    SPELT: ClassVar[Mapping[str, str]] = {}  # options that the command line calls otherwise
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
    clip_mode: str = "norm"
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

    def clipped(self, model: Any) -> list[nn.Parameter]:
        """What adaptive gradient clipping holds to its bound."""
        return [p for p in model.parameters() if p.requires_grad]

    def prepare(self, model: nn.Module) -> None:
        """Change what the network does in training alone; its weights and options stay."""

    def solve(self, model: nn.Module, examples: Any) -> None:
        """Set a fresh network's weights by what it will see, before the first step; not where others are given."""

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
                option = self.SPELT.get(name, name.replace("_", "-"))
                raise UsageError(f"--{option} must be at least 1, not {getattr(self, name)}")
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
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"--seed lies between 0 and 2^63 - 1, not at {self.seed}")
        if self.loss not in self.LOSSES:
            raise UsageError(f"--loss is {' or '.join(self.LOSSES)}, not {self.loss!r}")
        if self.optimiser not in OPTIMISERS:
            raise UsageError(f"--optimiser is {', '.join(OPTIMISERS)}, not {self.optimiser!r}")
        if self.clip_mode not in CLIP_MODES:
            raise UsageError(f"--clip-mode is {' or '.join(CLIP_MODES)}, not {self.clip_mode!r}")


def _learns(parameter: nn.Parameter) -> bool:
    return parameter.requires_grad
