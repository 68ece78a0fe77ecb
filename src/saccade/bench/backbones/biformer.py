"""BiFormer beside its published steps run plainly, its dial, and its attention beside attention to everything."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.backbones.biformer.attention import BiLevelRoutingAttention, FullAttention, depthwise
from saccade.bench.classify import backbone_contest, eager, exchanged
from saccade.bench.contest import Contest
from saccade.bench.harness import Contender, Row, compare, measure
from saccade.ops.bi_level_routing import bi_level_routing_attention
from saccade.registry import create

__all__ = ["Plain", "PlainFull", "contests", "dial_rows", "rows"]

SIDE, WIDTH, HEADS, REGIONS, TOPK = 112, 64, 2, 7, 4  # of the operator's row: stage 1 of a 448 px picture
SIDES = (448, 896)  # of the pictures that the dial is turned on


class Plain(nn.Module):
    """The attention as published: regions first, keys and values gathered whole, scores as tensors of their own."""

    def __init__(self, ours: BiLevelRoutingAttention) -> None:
        super().__init__()
        self.qkv, self.wo, self.lepe = ours.qkv, ours.wo, ours.lepe
        self.n, self.heads, self.dim, self.width = ours.regions, ours.heads, ours.dim, ours.width
        self.topk, self.scale = ours.topk, ours.scale

    def forward(self, x: Tensor) -> Tensor:
        n, m = self.n, self.heads
        batch, height, width, channels = x.shape
        x = F.pad(x, (0, 0, 0, -width % n, 0, -height % n))
        h, w = x.shape[1] // n, x.shape[2] // n
        cut = x.view(batch, n, h, n, w, channels).permute(0, 1, 3, 2, 4, 5).reshape(batch, n * n, h * w, channels)
        q, kv = self.qkv(cut).split([self.dim, self.dim + self.width], -1)
        value = kv[..., self.dim :].reshape(batch, n, n, h, w, self.width).transpose(2, 3)
        assert self.lepe is not None
        local = depthwise(self.lepe, value.reshape(batch, n * h, n * w, self.width))
        affinity = (q.mean(2) * self.scale) @ kv[..., : self.dim].mean(2).mT
        chosen = affinity.topk(self.topk, -1).indices
        spread = kv[:, None].expand(-1, n * n, -1, -1, -1)  # (B, R, R, T, 2C)
        index = chosen[..., None, None].expand(-1, -1, -1, h * w, self.dim + self.width)
        k, v = spread.gather(2, index).flatten(2, 3).split([self.dim, self.width], -1)
        q, k, v = (t.unflatten(3, (m, -1)).transpose(2, 3) for t in (q, k, v))  # (B, R, m, T, d)
        mixed = ((q * self.scale) @ k.mT).softmax(-1) @ v
        mixed = mixed.transpose(2, 3).reshape(batch, n, n, h, w, self.width).transpose(2, 3)
        out: Tensor = self.wo(mixed.reshape(batch, n * h, n * w, self.width) + local)
        return out[:, :height, :width]


class PlainFull(nn.Module):
    """The last stage as published: all scores as a tensor."""

    def __init__(self, ours: FullAttention) -> None:
        super().__init__()
        self.qkv, self.proj, self.lepe = ours.qkv, ours.proj, ours.lepe

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.flatten(1, 2).unflatten(2, (8, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, 3))
        mixed = ((q @ k.mT) * q.shape[3] ** -0.5).softmax(-1) @ v
        assert self.lepe is not None
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(x.shape) + depthwise(self.lepe, x))
        return out


def plain(model: nn.Module) -> Callable[[Tensor], Any]:
    """The network with norms and shortcuts of their own and plain attention; shares no weights."""
    return exchanged(copy.deepcopy(model), {BiLevelRoutingAttention: Plain, FullAttention: PlainFull})


def contests(size: tuple[int, int], threads: int) -> Iterator[Contest]:
    """T and S; on larger maps PyTorch gathers less at a time than a graph can, and is faster."""
    backend = "auto" if size[0] * size[1] <= 300 * 300 else "torch"
    for name in ("biformer_tiny", "biformer_small"):
        yield backbone_contest(name, plain, size, threads, backend=backend)


def full_attention(maps: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Attention of all tokens to all, by torch's fused kernel."""
    q, k, v = (t.flatten(1, 2).unflatten(2, (HEADS, -1)).transpose(1, 2) for t in maps)
    return F.scaled_dot_product_attention(q, k, v, scale=WIDTH**-0.5).transpose(1, 2).reshape(maps[2].shape)


def routing_attention(maps: tuple[Tensor, Tensor, Tensor], fast: bool | None = None) -> Tensor:
    """Routing, gathering and attention."""
    return bi_level_routing_attention(*maps, (REGIONS, REGIONS), TOPK, heads=HEADS, fast=fast)


def rows(threads: int, rounds: int) -> tuple[list[Row], list[str]]:
    """The operator on stage 1 of a 448 px picture beside attention to everything, on a smaller map beside its truth.

    And the dial of S, at both sizes of `SIDES`.
    """
    chance = torch.Generator().manual_seed(0)
    found: list[Row] = []
    command = f"saccade bench backbones --system biformer --threads {threads}"
    peers: list[tuple[int, str, Callable[[Any], Any]]] = [
        (SIDE, "attention to everything, fused", full_attention),
        (SIDE // 2, "naive.py, masked", partial(routing_attention, fast=False)),
    ]
    for side, peer, other in peers:
        q, k, v = (torch.randn(1, side, side, WIDTH, generator=chance) for _ in range(3))

        def contender(
            name: str, run: Callable[[Any], Any], maps: tuple[Tensor, Tensor, Tensor] = (q, k, v)
        ) -> Contender:
            return eager(name, lambda _: run(maps), maps[0], threads)

        ours = contender("bi-level routing attention", routing_attention)
        timings = measure([ours, contender(peer, other)], rounds, warmup=1)
        what = f"attention, {WIDTH} channels, {REGIONS}x{REGIONS} regions, topk {TOPK}"
        found += compare(timings, ours.name, system="biformer", what=what, size=f"{side}x{side}", command=command)
    for side in SIDES:
        found += dial_rows(threads, rounds, side, command)
    return found, []


def dial_rows(
    threads: int, rounds: int, side: int, command: str, name: str = "biformer_small", **more: Any
) -> list[Row]:
    """A quarter of the routed regions beside the other settings of the dial: one network, eager, one picture."""
    model: Any = create(name, weights=None, **more)
    x = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))

    def run(budget: float, x: Tensor) -> Any:
        model.budget = budget
        return model(x)

    told = {budget: f"{name}, budget {budget:g}" for budget in model.budgets()}
    contenders = [eager(told[budget], partial(run, budget), x, threads) for budget in told]
    least = told[min(told)]
    what = f"{name}, 1 picture, budgets"
    timings = measure(contenders, rounds, warmup=1)
    return compare(timings, least, system="biformer", what=what, size=f"{side}x{side}", command=command)
