"""Training of restoration networks: photographs with a degradation put on them as they are drawn.

The task of a model decides nothing here: what gives back a picture of the size that goes in can be trained, be it a
denoiser, an autoencoder or an invertible network (``degrade="clean"``: what goes in is what is wanted).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from saccade import registry
from saccade.data.crops import DEGRADATIONS, Crops, degradation, held_out
from saccade.errors import UsageError
from saccade.training import trainer

__all__ = ["TASKS", "Options", "psnr_rgb", "train"]

TASKS = ("restoration", "deblurring", "autoencoder", "image rescaling")


@dataclass
class Options(trainer.Options):
    """What a run is.

    Args:
        degrade: what is put on the photographs: a name of `data.crops.DEGRADATIONS`.
    """

    TASK: ClassVar[str] = "restoration"
    FIGURE: ClassVar[str] = "psnr_db"

    degrade: str = "noise-jpeg"
    patch: int = 64

    def check(self) -> None:
        if registry.entry(self.model).task not in TASKS:
            raise UsageError(f"{self.model} is for {registry.entry(self.model).task}, not for {' or '.join(TASKS)}")
        self.check_values()
        if self.degrade not in DEGRADATIONS:
            raise UsageError(f"--degrade is one of {', '.join(DEGRADATIONS)}, not {self.degrade!r}")

    def title(self) -> str:
        return f"{self.model}, {self.degrade}"

    def examples(self, pictures: Sequence[Path], model: nn.Module) -> Crops:
        return Crops(pictures, self.patch, degradation(self.degrade), shrink=self.shrink)

    def measurer(self, pictures: Sequence[Path], model: nn.Module) -> Callable[[nn.Module], float]:
        pairs = held_out(pictures, degradation(self.degrade))
        return lambda final: psnr_rgb(final, pairs)


@torch.inference_mode()
def psnr_rgb(model: Any, pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Mean PSNR in dB over pictures, all three channels, output clamped and rounded to 8 bit.

    A network may say what its restored picture is: ``restored(given)``; else it is the output.
    """
    was = model.training
    model.eval()
    restored = getattr(model, "restored", model)
    total = 0.0
    for given, wanted in pairs:
        made = restored(given).clamp(0, 1).mul(255).round().div(255)
        total += float(-10 * torch.log10((made - wanted).square().mean().clamp_min(1e-10)))
    model.train(was)
    return total / len(pairs)


def train(options: Options, *, say: Callable[[str], None] = print) -> Path:
    """Train a network; see `trainer.train`."""
    return trainer.train(options, say=say)
