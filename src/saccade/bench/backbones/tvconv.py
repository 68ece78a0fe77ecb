"""Face networks with TVConv beside their published steps run plainly, and the layer beside its truth and depthwise."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.backbones.tvconv import BakedTVConv, TVConv
from saccade.bench.classify import backbone_contest, eager, exchanged
from saccade.bench.contest import Contest
from saccade.bench.harness import Row, compare, measure
from saccade.ops.tvconv import tvconv

__all__ = ["Plain", "contests", "rows"]

BATCH, CHANNELS, SIDE = 64, 96, 24


class Plain(nn.Module):
    """The deployed layer as published: all k^2 products of a strided view as one tensor, then their sum."""

    def __init__(self, ours: TVConv | BakedTVConv) -> None:
        super().__init__()
        baked = ours.fuse() if isinstance(ours, TVConv) else ours
        assert isinstance(baked, BakedTVConv)
        self.stride, self.bias = baked.stride, baked.bias
        self.kernel = round(baked.weight.shape[0] ** 0.5)
        maps = baked.weight.unflatten(0, (self.kernel, self.kernel)).permute(2, 0, 1, 3, 4)
        self.register_buffer("maps", maps.contiguous())  # (C, k, k, h, w)

    def forward(self, x: Tensor) -> Tensor:
        edge, s = self.kernel // 2, self.stride
        padded = F.pad(x, (edge, edge, edge, edge)).contiguous()
        batch, channels, _, wide = padded.shape
        maps: Any = self.maps
        step = padded.stride()
        size = (batch, channels, self.kernel, self.kernel, *maps.shape[3:])
        seen = padded.as_strided(size, (step[0], step[1], wide, 1, s * wide, s))
        out: Tensor = (maps * seen).sum((2, 3))
        return out if self.bias is None else out + self.bias


def plain(model: nn.Module) -> Callable[[Tensor], Any]:
    """The network with norms of their own and plainly deployed layers."""
    return exchanged(copy.deepcopy(model), {TVConv: Plain, BakedTVConv: Plain})


def contests(size: tuple[int, int], threads: int) -> Iterator[Contest]:
    """The smallest of both kinds, built for the size of the picture."""
    for name in ("tvconv_mobilenetv2_x0_1", "tvconv_shufflenetv2_x0_5"):
        side = min(size)
        yield backbone_contest(name, plain, (side, side), threads, img_size=side, inter_chans=8, inter_layers=1)


def rows(threads: int, rounds: int) -> tuple[list[Row], list[str]]:
    """The layer with its kernels fixed: beside unfolding, and beside a depthwise convolution."""
    chance = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, CHANNELS, SIDE, SIDE, generator=chance)
    maps = torch.randn(9, CHANNELS, SIDE, SIDE, generator=chance)
    kernels = torch.randn(CHANNELS, 1, 3, 3, generator=chance)
    contenders = [
        eager("TVConv, kernels fixed", partial(tvconv, weight=maps), x, threads),
        eager("naive.py, unfolded", partial(tvconv, weight=maps, fast=False), x, threads),
        eager("depthwise conv2d", partial(F.conv2d, weight=kernels, padding=1, groups=CHANNELS), x, threads),
    ]
    timings = measure(contenders, rounds, warmup=1)
    what = f"3x3 on {BATCH} maps of {CHANNELS} channels"
    command = f"saccade bench backbones --system tvconv --threads {threads}"
    found = compare(timings, contenders[0].name, system="tvconv", what=what, size=f"{SIDE}x{SIDE}", command=command)
    return found, [f"the kernels of this layer take {maps.nbytes / 1e6:.2f} MB, those of a depthwise one 3.5 kB"]
