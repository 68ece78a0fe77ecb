"""Training of super-resolution networks: low- and high-resolution crops, PSNR of luma by the field's protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from saccade import registry
from saccade.data.pairs import CropPairs, luma
from saccade.training import trainer

__all__ = ["Options", "train", "validation_psnr"]


@dataclass
class Options(trainer.Options):
    """What a run is.

    Args:
        scale: enlargement; ``patch`` is the side of the low-resolution crop.
        phase: stage of models that train in stages (PCSR: 0 encoder and heavy sampler, 1 the rest).
        start: weights to start from; of another scale too, where the network allows it.
    """

    TASK: ClassVar[str] = "super-resolution"
    FIGURE: ClassVar[str] = "psnr_y_db"

    scale: int = 2

    def check(self) -> None:
        super().check()
        registry.check_scale(registry.entry(self.model), self.scale)

    def title(self) -> str:
        return f"{self.model} x{self.scale}"

    def created(self) -> dict[str, Any]:
        return {"scale": self.scale}

    def examples(self, pictures: Sequence[Path], model: nn.Module) -> CropPairs:
        is_luma = getattr(model, "colour", "rgb") == "luma"
        return CropPairs(pictures, self.scale, self.patch, luma=is_luma, shrink=self.shrink)

    def measurer(self, pictures: Sequence[Path], model: nn.Module) -> Callable[[nn.Module], float]:
        is_luma = getattr(model, "colour", "rgb") == "luma"
        tests = CropPairs(pictures, self.scale, 3, luma=is_luma)  # 3: something is left when the borders are shaved
        return lambda final: validation_psnr(final, tests, phase=self.phase)

    def start_from(self, model: nn.Module) -> str:
        """The whole file, or - for another scale - all but the last layer."""
        other = lambda given: ("last.",) if getattr(given, "scale", self.scale) != self.scale else ()  # noqa: E731
        return trainer.start_from(model, str(self.start), other)


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


def train(options: Options, *, say: Callable[[str], None] = print) -> Path:
    """Train a network; see `trainer.train`."""
    return trainer.train(options, say=say)
