"""EfficientViT beside its published steps run plainly, and M2 beside MobileViT-XXS."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.backbones.efficientvit import CascadedGroupAttention, WindowAttention
from saccade.bench.classify import backbone_contest, beside_timm, exchanged
from saccade.bench.contest import Contest
from saccade.bench.harness import Row

__all__ = ["PlainCascade", "PlainWindows", "contests", "rows"]


class PlainCascade(nn.Module):
    """The cascade as its equations have it: scores and their softmax as tensors of their own, biases gathered once."""

    def __init__(self, ours: CascadedGroupAttention) -> None:
        super().__init__()
        self.qkvs, self.dws, self.proj, self.dims = ours.qkvs, ours.dws, ours.proj, ours.dims
        self.biases = ours.attention_biases.detach()[:, ours.places]

    def forward(self, x: Tensor) -> Tensor:
        shares, found = x.chunk(len(self.qkvs), 1), list[Tensor]()
        for i, (qkv, dw) in enumerate(zip(self.qkvs, self.dws, strict=True)):
            q, k, v = qkv(shares[i] + found[-1] if found else shares[i]).split(self.dims, 1)
            q, k, v = dw(q).flatten(2), k.flatten(2), v.flatten(2)
            scores = (q.transpose(-2, -1) @ k) * self.dims[0] ** -0.5 + self.biases[i]
            found.append((v @ scores.softmax(-1).transpose(-2, -1)).view(shares[i].shape))
        out: Tensor = self.proj(torch.relu(torch.cat(found, 1)))
        return out


class PlainWindows(nn.Module):
    """Windows cut from the map with channels last, and put back, as published."""

    def __init__(self, ours: WindowAttention) -> None:
        super().__init__()
        self.attn, self.side = PlainCascade(ours.attn), ours.side

    def forward(self, x: Tensor) -> Tensor:
        batch, width, height, across = x.shape
        side = self.side
        if (height, across) == (side, side):
            whole: Tensor = x + self.attn(x)
            return whole
        y = F.pad(x.permute(0, 2, 3, 1), (0, 0, 0, -across % side, 0, -height % side))
        rows, columns = y.shape[1] // side, y.shape[2] // side
        cut = y.view(batch, rows, side, columns, side, width).transpose(2, 3)
        mixed = self.attn(cut.reshape(-1, side, side, width).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        back = mixed.view(batch, rows, columns, side, side, width).transpose(2, 3).reshape(y.shape)
        return x + back[:, :height, :across].contiguous().permute(0, 3, 1, 2)


def plain(model: nn.Module) -> Callable[[Tensor], Any]:
    """The network with batch norms and residual sums of their own and plain attention; shares its weights."""
    return exchanged(copy.deepcopy(model, {id(p): p for p in model.parameters()}), {WindowAttention: PlainWindows})


def contests(size: tuple[int, int], threads: int) -> Iterator[Contest]:
    """M0 and M5, built for the size (a square one: the larger side)."""
    side = max(size)
    for name in ("efficientvit_m0", "efficientvit_m5"):
        yield backbone_contest(name, plain, (side, side), threads, img_size=side)


def rows(threads: int, rounds: int) -> tuple[list[Row], list[str]]:
    """M2 at 224 px beside MobileViT-XXS at 256 px."""
    return beside_timm("efficientvit", ("efficientvit_m2", 224), ("mobilevit_xxs", 256), threads, rounds)
