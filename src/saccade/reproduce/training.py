"""Short trainings for claims about super-resolution: the same crops, recipe and steps for all that are compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.data.pairs import CropPairs
from saccade.progress import bar
from saccade.runtime.threads import on_threads
from saccade.training.super_resolution import validation_psnr
from saccade.training.trainer import learning_rate

__all__ = ["Bicubic", "medians", "on_threads", "psnr", "seeded", "train"]

M = TypeVar("M", bound=nn.Module)


class Bicubic(nn.Module):
    """Bicubic enlargement of luma, the floor of every comparison: (B, 1, h, w) -> (B, 1, scale*h, scale*w)."""

    colour = "luma"

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        from saccade.ops.resize import resize

        return resize(x, self.scale)


def seeded(make: Callable[[], M], seed: int) -> M:
    """A network whose start depends on ``seed`` alone; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def train(
    model: nn.Module,
    crops: CropPairs,
    *,
    steps: int,
    seed: int,
    batch: int = 16,
    rate: float = 1e-3,
    warmup: int = 100,
    what: str = "training",
) -> nn.Module:
    """Train by L1, Adam and half a cosine; returns the model in evaluation mode.

    Args:
        crops: what it is trained on; step ``t`` sees the same crops for every model of the same seed.
        what: the words before the progress bar.
    """
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(parameters, lr=rate, betas=(0.9, 0.99), fused=True)
    with bar(what, steps) as advance:
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(step, steps, rate, warmup, 0.0)
            low, high = crops.batch(batch, seed, step)
            loss = F.l1_loss(model(low.contiguous(memory_format=torch.channels_last)), high)
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            advance(1)
    return model.eval()


def psnr(model: nn.Module, sets: Mapping[str, Sequence[Path]], scale: int) -> dict[str, float]:
    """PSNR of luma in dB on every set, by the field's protocol."""
    luma = getattr(model, "colour", "luma") == "luma"
    return {
        name: validation_psnr(model, CropPairs(files, scale, 1, luma=luma), phase=1) for name, files in sets.items()
    }


def medians(
    calls: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median seconds of each call, taken in turn (A B A B ...), after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(rounds + 1):
        for name, call in calls.items():
            start = clock()
            call()
            if i:
                seconds[name].append(clock() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}
