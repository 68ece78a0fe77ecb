"""Training of arbitrary rescaling: crops with a factor of their own, and a start that is solved for, not drawn.

    crops (B, 3, H, W) and their bicubic reductions (B, 3, h, w), sizes by step
    linear start: F hides fine grey detail in the small picture's colours; G's linear path = least squares on crops
    then gradient steps on everything (`saccade.training.trainer`)

A network that starts at zero stands on a saddle: hiding pays only where it is read, reading only where something is
hidden. Measured (docs/systems/iarn.md): 34.97 dB on Set5 x2 after 400 steps from zero, 38.5 from the linear start.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade import registry
from saccade.data.crops import read_sizes
from saccade.data.pairs import read_resized
from saccade.errors import UsageError
from saccade.ops.resize import resize
from saccade.progress import track
from saccade.restoration.iarn import IARN
from saccade.restoration.iarn.network import COLOURS, LINEAR, Lifting, from_opponent, mirrored, to_opponent
from saccade.restoration.iarn.phases import maps, window
from saccade.training import trainer

__all__ = ["FactorCrops", "Options", "linear_start", "rescaling_psnr", "train"]

FIT_STEP = 1 << 30  # crops of the linear start are those of steps from here on, never seen in training
GAIN = 0.6  # of the detail that the start hides
UNEVEN = 0.4  # share of batches with unequal factors


@dataclass
class Options(trainer.Options):
    """What a run is; ``patch`` is the side of the small picture at factor 2 (other factors: about as many pixels).

    Args:
        factors: least and greatest factor.
        start_crops: batches that the linear start is solved on; 0 starts at zero.
    """

    TASK: ClassVar[str] = "image rescaling"
    FIGURE: ClassVar[str] = "psnr_y_db"

    patch: int = 24
    factors: tuple[float, float] = (1.05, 4.0)
    start_crops: int = 150

    def check(self) -> None:
        entry = registry.entry(self.model)
        if entry.task != self.TASK or "factor" in entry.facts:
            raise UsageError(f"{self.model} is not trained for arbitrary factors")
        self.check_values()
        low, high = self.factors
        if not 1 < low <= high < math.inf:
            raise UsageError(f"factors lie above 1, the least first, not {self.factors}")
        if self.patch < 8:
            raise UsageError(f"--patch is the small picture's side, at least 8, not {self.patch}")

    def examples(self, pictures: Sequence[Path], model: nn.Module) -> FactorCrops:
        return FactorCrops(pictures, self.patch, self.factors, shrink=self.shrink)

    def solve(self, model: nn.Module, examples: FactorCrops) -> None:
        if self.start_crops:
            assert isinstance(model, IARN)
            linear_start(model, examples, batches=self.start_crops, batch=self.batch, seed=self.seed)

    def measurer(self, pictures: Sequence[Path], model: nn.Module) -> Callable[[nn.Module], float]:
        wholes = [read_resized(path, 1.0) for path in pictures]
        return lambda final: rescaling_psnr(final, wholes)


class FactorCrops:
    """Crops of photographs and their bicubic reductions by a factor that the step decides.

    Args:
        pictures: files of photographs.
        patch: side of the small picture at factor 2; at factor f it is patch * sqrt(2 / f).
        factors: least and greatest.
        shrink: every picture is taken at these sizes.

    Raises:
        InputError: an unreadable picture, or one smaller than the largest crop.
    """

    def __init__(
        self, pictures: Sequence[Path], patch: int, factors: tuple[float, float], *, shrink: Sequence[float] = (1.0,)
    ) -> None:
        self.patch, self.factors = patch, factors
        most = math.ceil(self.side(factors[1]) * factors[1]) + 1
        self.pictures = read_sizes(pictures, shrink, most)

    def side(self, factor: float) -> int:
        """Of the small picture in pixels."""
        return max(8, round(self.patch * math.sqrt(2 / factor)))

    def batch(self, size: int, seed: int, step: int, rank: int = 0) -> tuple[Tensor, Tensor]:
        """Crops of one step: (size, 3, H, W) in [0, 1], and their bicubic reductions (size, 3, h, w), not rounded."""
        chance = np.random.default_rng((seed, step, rank))
        low, high = self.factors
        rows = chance.uniform(low, high)
        columns = rows
        if chance.random() < UNEVEN:
            columns = min(high, max(low, rows * math.exp(chance.uniform(-0.6, 0.6))))
        side = self.side(rows)
        height, width = max(side + 1, round(side * rows)), max(side + 1, round(side * columns))
        crops = []
        for which in chance.integers(len(self.pictures), size=size):
            picture = self.pictures[which]
            top = int(chance.integers(picture.shape[1] - height + 1))
            left = int(chance.integers(picture.shape[2] - width + 1))
            crop = picture[:, top : top + height, left : left + width]
            if height == width and chance.random() < 0.5:
                crop = crop.transpose(1, 2)
            flips = [dim for dim in (1, 2) if chance.random() < 0.5]
            crops.append(crop.flip(flips) if flips else crop)
        large = torch.stack(crops).float().div_(255)
        return large, resize(large, size=(side, side))


@torch.no_grad()
def linear_start(model: IARN, crops: FactorCrops, *, batches: int, batch: int, seed: int, gain: float = GAIN) -> None:
    """Give the last coupling the best linear reader of a simple way of hiding.

    F's linear path adds the first cosine's grey detail along rows to one difference of colours, along columns to the
    other: chroma of a photograph is smooth, so there is room. P's tells F what fine colour is there already. G's is
    then the least-squares solution of reading the detail from 3x3 small pixels, rounded to 8 bit, over all factors.

    Args:
        batches, batch: how many crops.
        gain: of what is hidden.
    """
    block = model.blocks[-1]
    assert isinstance(block, Lifting)
    k = model.functions
    if k > 1:
        block.F.linear.weight[1, k, 1, 1] = gain / LINEAR  # grey, cosine 1 along rows
        block.F.linear.weight[2, 1, 1, 1] = gain / LINEAR  # grey, cosine 1 along columns
    for colour in (1, 2):
        model.P.linear.weight[colour * k * k, colour] = -1 / 9 / LINEAR  # what is finer than 3x3 small pixels
        model.P.linear.weight[colour * k * k, colour, 1, 1] += 1 / LINEAR
    normal, right = torch.zeros(()), torch.zeros(())
    for step in track(range(batches), "solving the linear start"):
        large, small = crops.batch(batch, seed, FIT_STEP + step)
        seen, wanted = _equations(model, large, (small.shape[-2], small.shape[-1]))
        normal = normal + (seen.T @ seen).double()
        right = right + (seen.T @ wanted).double()
    ridge = 1e-7 * normal.diagonal().mean() * torch.eye(len(normal), dtype=torch.float64)
    found = torch.linalg.solve(normal + ridge, right).float().view(-1, k * k, COLOURS)  # (9 * 9 + 1, k k, 3)
    weight = found[:-1].permute(2, 1, 0).reshape(COLOURS * k * k, -1, 3, 3)
    block.G.linear.weight.copy_(-weight / LINEAR)
    block.G.linear.bias.copy_(-found[-1].permute(1, 0).flatten() / LINEAR)  # type: ignore[union-attr]


def _equations(model: IARN, large: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """What the linear path of G can make, (pixels, unknowns), and the detail that it should, (pixels, 3)."""
    where = window((large.shape[-2], large.shape[-1]), size)
    k = model.functions
    axes = [maps(n, m, k, s, wide) for (n, m), s, wide in zip(where.sizes, where.small, where.large, strict=True)]
    x = to_opponent(large)
    y, z = model._hide(x, where, latent=False)
    y = to_opponent(from_opponent(y).clamp(0, 1).mul(255).round().div(255))
    block = model.blocks[-1]
    assert isinstance(block, Lifting)
    around = F.unfold(mirrored(block.G.linear_inputs(y, where.ratios)), 3)
    around = around.unflatten(-1, size)  # (B, 9 C, h, w)
    around = torch.cat([around, torch.ones_like(around[:, :1])], 1)
    rows, columns = (axis.synthesis.dense().unflatten(1, (k, -1)) for axis in axes)
    seen = torch.stack(
        [rows[:, i] @ around @ columns[:, j].T for i in range(k) for j in range(k)], 2
    )  # (B, U, kk, H, W)
    return seen.permute(0, 3, 4, 1, 2).flatten(3).flatten(0, 2), z.permute(0, 2, 3, 1).flatten(0, 2)


@torch.inference_mode()
def rescaling_psnr(model: Any, pictures: Sequence[Tensor], factors: Sequence[float] = (1.5, 2.0, 2.7, 4.0)) -> float:
    """Mean PSNR of luma in dB over pictures (3, H, W) uint8 and factors, stored in 8 bit, 4 pixels shaved."""
    from saccade.quality.fidelity import psnr, quantise8

    total = 0.0
    for picture in pictures:
        x = picture[None].float() / 255
        for factor in factors:
            total += float(psnr(quantise8(model(x, factor)), x, border=4, luma=True))
    return total / (len(pictures) * len(factors))


def train(options: Options, *, say: Callable[[str], None] = print) -> Path:
    """Train a network; see `trainer.train`."""
    return trainer.train(options, say=say)
