"""SHViT beside its published steps run plainly, and S4 beside MobileViTv2-1.0."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from saccade.backbones.shvit import SHViT, SingleHeadAttention
from saccade.bench.classify import backbone_contest, beside_timm, exchanged
from saccade.bench.contest import Contest
from saccade.bench.harness import Row
from saccade.registry import create

__all__ = ["Plain", "contests", "rows"]


class Plain(nn.Module):
    """The attention as its equations have it: scores and their softmax as tensors of their own."""

    def __init__(self, ours: SingleHeadAttention) -> None:
        super().__init__()
        self.pre_norm, self.qkv, self.proj = ours.pre_norm, ours.qkv, ours.proj
        self.parts, self.qk_dim = ours.parts, ours.qk_dim

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        attending, passing = x.split(self.parts, 1)
        q, k, v = self.qkv(self.pre_norm(attending)).split((self.qk_dim, self.qk_dim, self.parts[0]), 1)
        scores = (q.flatten(2).transpose(-2, -1) @ k.flatten(2)) * self.qk_dim**-0.5
        mixed = (v.flatten(2) @ scores.softmax(-1).transpose(-2, -1)).reshape(batch, -1, height, width)
        out: Tensor = x + self.proj(torch.relu(torch.cat([mixed, passing], 1)))
        return out


def plain(model: nn.Module) -> Callable[[Tensor], Any]:
    """The network with batch norms and residual sums of their own and plain attention; of the same weights."""
    assert isinstance(model, SHViT)
    twin = create("shvit", weights=None, **{k: getattr(model, k) for k in ("widths", "depths", "partial", "kinds")})
    twin.load_state_dict(model.state_dict())
    return exchanged(twin, {SingleHeadAttention: Plain})


def contests(size: tuple[int, int], threads: int) -> Iterator[Contest]:
    """S1 and S4."""
    for name in ("shvit_s1", "shvit_s4"):
        yield backbone_contest(name, plain, size, threads)


def rows(threads: int, rounds: int) -> tuple[list[Row], list[str]]:
    """S4 beside MobileViTv2-1.0 (the paper's comparison), both at 256 px."""
    return beside_timm("shvit", ("shvit_s4", 256), ("mobilevitv2_100", 256), threads, rounds)
