"""ElasticViT: networks of their own beside the supernet that slices at each call; the smallest beside the largest."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.backbones.elasticvit import PUBLISHED, SubNetwork, largest, smallest
from saccade.backbones.elasticvit.layers import Attention
from saccade.bench.classify import PICTURES, backbone_contest, eager, exchanged
from saccade.bench.contest import Contest
from saccade.bench.harness import Row, compare, measure
from saccade.registry import create
from saccade.runtime.accelerate import accelerate

__all__ = ["Plain", "contests", "rows"]


class Plain(nn.Module):
    """The attention as published: biases of the whole table looked up at each call, scores as tensors of their own."""

    def __init__(self, ours: Attention) -> None:
        super().__init__()
        self.norm, self.qkv, self.value_conv, self.proj = ours.norm, ours.qkv, ours.value_conv, ours.proj
        self.table, self.index, self.reach = ours.bias_table, ours.index, ours.reach
        self.heads, self.dim = ours.heads, ours.head_dim

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        batch, tokens, _ = x.shape
        height, width = size
        parts = self.qkv(self.norm(x)).view(batch, tokens, self.heads, -1)
        q, k, v = parts.split((self.dim, self.dim, parts.shape[3] - 2 * self.dim), 3)
        v = v.reshape(batch, tokens, -1).transpose(1, 2).reshape(batch, -1, height, width)
        v = self.value_conv(v).flatten(2).transpose(1, 2).view(batch, tokens, self.heads, -1)
        scores = (q.permute(0, 2, 1, 3) @ k.permute(0, 2, 3, 1)) * self.dim**-0.5
        bias = self.table[self.index.view(-1)].view(*[self.reach] * 4, -1)[:height, :width, :height, :width]
        bias = bias.contiguous().reshape(tokens, tokens, -1).permute(2, 0, 1).contiguous()[None, : self.heads]
        mixed = (scores + bias).softmax(-1) @ v.permute(0, 2, 1, 3)
        out: Tensor = x + self.proj(F.hardswish(mixed.transpose(1, 2).reshape(batch, tokens, -1)))
        return out


def plain(model: nn.Module) -> Callable[[Tensor], Any]:
    """The supernet, slicing at each call, with plain attention; of the same weights."""
    return exchanged(copy.deepcopy(model), {Attention: Plain})


def contests(size: tuple[int, int], threads: int) -> Iterator[Contest]:
    """T1, S1 and L3, each out of a supernet whose architecture it is."""
    for name in ("t1", "s1", "l3"):
        contest = backbone_contest("elasticvit", plain, size, threads, architecture=name)
        yield replace(contest, what=contest.what.replace("elasticvit", f"elasticvit_{name}"))


def rows(threads: int, rounds: int) -> tuple[list[Row], list[str]]:
    """The smallest network beside the largest, each at its own resolution, on as many pictures.

    85 times the MACs are to take 20 times as long.
    """
    chance, contenders, sides = torch.Generator().manual_seed(0), [], []
    for name, found in (("smallest", smallest(PUBLISHED)), ("largest", largest(PUBLISHED))):
        net = create("elasticvit_subnet", weights=None, architecture=found.to_dict())
        assert isinstance(net, SubNetwork)
        x = torch.randn(PICTURES, 3, found.resolution, found.resolution, generator=chance)
        fast = accelerate(net, x.shape, threads=threads)
        sides.append(str(found.resolution))
        contenders.append(eager(f"{name} network ({fast.backend})", fast, x, threads))
    timings = measure(contenders, rounds, warmup=1)
    what, command = f"{PICTURES} pictures", f"saccade bench backbones --system elasticvit --threads {threads}"
    size = f"{' and '.join(sides)} px"
    made = compare(timings, contenders[0].name, system="elasticvit", what=what, size=size, command=command)
    note = (
        "elasticvit: the largest network has 85 times the MACs of the smallest; at least 20 times as long is expected"
    )
    return made, [note]
