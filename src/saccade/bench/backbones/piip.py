"""PIIP beside its published steps run plainly, and the reading of points beside its truth."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.backbones.piip import DeformAttention
from saccade.backbones.piip.branch import Block
from saccade.bench.classify import backbone_contest, eager, exchanged
from saccade.bench.contest import Contest
from saccade.bench.harness import Contender, Row, compare, measure
from saccade.ops.deform_attention import centres, deform_attention

__all__ = ["PlainBlock", "PlainDeform", "contests", "rows"]

GRID, HEADS, DIM, POINTS = (23, 23), 16, 6, 4


class PlainBlock(nn.Module):
    """The block with scores and their softmax as tensors of their own."""

    def __init__(self, ours: Block) -> None:
        super().__init__()
        self.block = ours

    def forward(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        own = self.block
        q, k, v = own.qkv(own.norm1(x)).unflatten(2, (3, own.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        mixed = own.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        x = x + (mixed if own.gamma_1 is None else own.gamma_1 * mixed)
        out: Tensor = x + own.feed(own.norm2(x))
        return out


class PlainDeform(nn.Module):
    """The attention by its reference steps: all levels' samples stacked, weighted, added up."""

    def __init__(self, ours: DeformAttention) -> None:
        super().__init__()
        self.own = ours

    @property
    def last(self) -> nn.Linear:
        return self.own.last

    def forward(self, query: Tensor, feat: Tensor, grid: tuple[int, int], other: tuple[int, int]) -> Tensor:
        own = self.own
        batch, queries = query.shape[:2]
        value = own.value_proj(feat).view(batch, -1, own.heads, own.value_proj.out_features // own.heads)
        offsets = own.sampling_offsets(query).view(batch, queries, own.heads, 1, own.points, 2)
        weights = own.attention_weights(query).view(batch, queries, own.heads, own.points).softmax(-1)
        size = torch.tensor([other[1], other[0]], dtype=query.dtype)
        places = centres(*grid, query)[None, :, None, None, None, :] + offsets / size
        grids = (2 * places - 1)[:, :, :, 0].transpose(1, 2).flatten(0, 1)
        plane = value.flatten(2).transpose(1, 2).reshape(batch * own.heads, -1, *other)
        read = F.grid_sample(plane, grids, mode="bilinear", padding_mode="zeros", align_corners=False)
        stacked = torch.stack([read], dim=-2).flatten(-2)
        shares = weights.transpose(1, 2).reshape(batch * own.heads, 1, queries, own.points)
        out: Tensor = own.output_proj((stacked * shares).sum(-1).view(batch, -1, queries).transpose(1, 2).contiguous())
        return out


def plain(model: nn.Module) -> Callable[[Tensor], Any]:
    """The network with scales of their own, plain attention in the blocks and the reference steps between branches."""
    return exchanged(copy.deepcopy(model), {Block: PlainBlock, DeformAttention: PlainDeform})


def contests(size: tuple[int, int], threads: int) -> Iterator[Contest]:
    """The small pyramid of tiny, small and base, its sides in the published proportion to the picture."""
    finest = size[0] // 16 * 16
    if size[0] != size[1] or finest != size[0]:
        return
    sides = (*(max(16, round(finest * part / 16) * 16) for part in (128 / 368, 192 / 368)), finest)
    yield backbone_contest("piip_tsb_368", plain, size, threads, sides=sides)


def rows(threads: int, rounds: int) -> tuple[list[Row], list[str]]:
    """The operator at the size of the finest branch of the small pyramid: a map of 23 x 23, 16 heads, 4 points."""
    chance = torch.Generator().manual_seed(0)
    count = GRID[0] * GRID[1]
    value = torch.randn(1, count, HEADS, DIM, generator=chance)
    places = torch.rand(1, count, HEADS, 1, POINTS, 2, generator=chance)
    weights = torch.rand(1, count, HEADS, 1, POINTS, generator=chance)

    def contender(name: str, fast: bool) -> Contender:
        return eager(name, lambda v: deform_attention(v, [GRID], places, weights, fast=fast), value, threads)

    contenders = [contender("deform_attention, sampled", True), contender("the loop", False)]
    timings = measure(contenders, min(rounds, 2), warmup=1)
    what, command = "reading of points", f"saccade bench backbones --system piip --threads {threads}"
    size = f"{GRID[1]}x{GRID[0]}"
    return compare(timings, contenders[0].name, system="piip", what=what, size=size, command=command), []
