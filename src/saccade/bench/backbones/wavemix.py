"""WaveMix beside its published steps run plainly, and the Haar transform beside convolutions."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.backbones.wavemix import WaveBlock
from saccade.bench.classify import backbone_contest, eager, exchanged
from saccade.bench.contest import Contest
from saccade.bench.harness import Row, compare, measure
from saccade.ops.haar import dwt, idwt, naive, pyramid, reconstruct

__all__ = ["PlainBlock", "contests", "convolved", "repeated", "rows"]

COMMAND = "saccade bench backbones --system wavemix --threads {}"


def convolved(x: Tensor) -> tuple[Tensor, Tensor]:
    """One level as published: a grouped convolution along the rows, one along the columns, and copies of the bands."""
    channels, s = x.shape[1], math.sqrt(0.5)
    taps = torch.tensor([[s, s], [s, -s]], dtype=x.dtype, device=x.device)
    along = F.conv2d(x, taps.view(2, 1, 1, 2).repeat(channels, 1, 1, 1), stride=(1, 2), groups=channels)
    both = F.conv2d(along, taps.view(2, 1, 2, 1).repeat(2 * channels, 1, 1, 1), stride=(2, 1), groups=2 * channels)
    bands = both.reshape(x.shape[0], channels, 4, *both.shape[2:])
    return bands[:, :, 0].contiguous(), bands[:, :, 1:].contiguous()


def repeated(x: Tensor, levels: int) -> list[tuple[Tensor, Tensor]]:
    """All levels as published: the whole pyramid anew for each of them, 1 + 2 + ... + L transforms."""
    found = []
    for level in range(1, levels + 1):
        low = x
        for _ in range(level):
            low, high = convolved(low)
        found.append((low, high))
    return found


class PlainBlock(nn.Module):
    """A block as published; shares the layers of ours."""

    def __init__(self, ours: WaveBlock) -> None:
        super().__init__()
        self.reduction, self.mix, self.level = ours.reduction, ours.mix, ours.level

    def forward(self, x: Tensor) -> Tensor:
        bands = repeated(self.reduction(x), self.level)
        up: Tensor | None = None
        for (low, high), mix in zip(reversed(bands), reversed(self.mix), strict=True):
            z = torch.cat((low, high.reshape(low.shape[0], -1, *low.shape[2:])), 1)
            up = mix(z if up is None else torch.cat((z, up), 1))
        assert up is not None
        return up + x


def plain(model: nn.Module) -> Callable[[Tensor], Any]:
    """The network with repeated transforms, bands and norms of their own; shares its weights."""
    return exchanged(copy.deepcopy(model, {id(p): p for p in model.parameters()}), {WaveBlock: PlainBlock})


def contests(size: tuple[int, int], threads: int) -> Iterator[Contest]:
    """The ImageNet classifier."""
    yield backbone_contest("wavemix_192_16", plain, size, threads)


def rows(threads: int, rounds: int) -> tuple[list[Row], list[str]]:
    """The transform of four levels, one level and its inverse, on 64 channels of 128 x 128."""
    x = torch.randn(1, 64, 128, 128, generator=torch.Generator().manual_seed(0))
    low, high = dwt(x)
    bands = pyramid(x, 4)
    highs = [band for _, band in bands]

    def back(_: Tensor) -> Tensor:
        made = bands[-1][0]
        for band in reversed(highs):
            made = naive.synthesis(made, band)
        return made

    jobs: dict[str, tuple[Callable[[Tensor], Any], Callable[[Tensor], Any], str]] = {
        "Haar transform, 4 levels": (lambda v: pyramid(v, 4), lambda v: repeated(v, 4), "the published repeated ones"),
        "Haar transform, 1 level": (dwt, convolved, "two grouped convolutions"),
        "inverse Haar transform, 1 level": (lambda _: idwt(low, high), lambda _: naive.synthesis(low, high), "naive"),
        "inverse Haar transform, 4 levels": (lambda _: reconstruct(bands[-1][0], highs), back, "naive"),
    }
    made: list[Row] = []
    for what, (ours, other, peer) in jobs.items():
        contenders = [eager(what, ours, x, threads), eager(f"{what}: {peer}", other, x, threads)]
        timings = measure(contenders, max(rounds, 15), warmup=2)
        command = COMMAND.format(threads)
        made += compare(timings, what, system="wavemix", what=what, size="128x128", command=command)
    return made, []
