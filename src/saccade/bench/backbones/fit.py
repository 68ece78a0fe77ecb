"""FIT on sub-images of a picture beside its published steps run plainly, and beside plain layers over all tokens."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from saccade.backbones.fit import FIT, subimages
from saccade.backbones.fit.layers import Attention, Layer
from saccade.bench.classify import eager, exchanged
from saccade.bench.contest import Contest
from saccade.bench.harness import Row, compare, measure
from saccade.runtime.accelerate import accelerate

__all__ = ["PlainAttention", "contests", "rows"]

PATCH, GROUPS = 8, 16
WIDE = {"x_dim": 192, "latent_dim": 256, "x_num_heads": 6, "latent_num_heads": 8}


class PlainAttention(nn.Module):
    """Attention as Keras computes it: a product a head for queries, keys and values, scores and soft-max as tensors."""

    def __init__(self, ours: Attention) -> None:
        super().__init__()
        self.ln, self.enc_ln, self.heads = ours.ln, ours.enc_ln, ours.heads
        self.query, self.key, self.value, self.attention_output = (
            ours.query,
            ours.key,
            ours.value,
            ours.attention_output,
        )

    def _project(self, x: Tensor, layer: nn.Linear) -> Tensor:
        assert layer.bias is not None
        kernel = layer.weight.mT.unflatten(1, (self.heads, -1))
        return torch.einsum("bnc,chd->bnhd", x, kernel) + layer.bias.view(self.heads, -1)

    def forward(self, x: Tensor, source: Tensor | None = None, mask: Tensor | None = None, **_: Any) -> Tensor:
        x = self.ln(x)
        told = x if source is None else self.enc_ln(source)
        q, k, v = self._project(x, self.query), self._project(told, self.key), self._project(told, self.value)
        scores = torch.einsum("bmhd,bnhd->bhnm", k, q * q.shape[-1] ** -0.5)
        if mask is not None:
            scores = scores + (~mask) * -1e9
        mixed = torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v)
        kernel = self.attention_output.weight.mT.unflatten(0, (self.heads, -1))
        return torch.einsum("bnhd,hdc->bnc", mixed, kernel) + self.attention_output.bias


def plain(model: nn.Module) -> Callable[[Tensor], Any]:
    """The network with plain attention; of the same weights."""
    return exchanged(copy.deepcopy(model), {Attention: PlainAttention})


def contests(size: tuple[int, int], threads: int) -> Iterator[Contest]:
    """``(2)4(2)`` on 4 x 4 sub-images of patches of 8 pixels, 8 latents each."""
    width, height = size[0] // 4 // PATCH * PATCH, size[1] // 4 // PATCH * PATCH
    chance = torch.Generator().manual_seed(0)
    x = subimages(torch.randn(1, 3, 4 * height, 4 * width, generator=chance), (height, width), PATCH)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = FIT("(2)4(2)", x.shape[1] * x.shape[2], GROUPS, 8, in_dim=x.shape[3], **WIDE).eval()
    ours, official = accelerate(model, x.shape, threads=threads), plain(model)

    def check() -> None:
        with torch.inference_mode():
            for found, want in zip(ours(x), official(x), strict=True):
                torch.testing.assert_close(found, want, rtol=1e-3, atol=1e-3)

    name = f"FIT (2)4(2), {x.shape[1] * x.shape[2]} tokens"
    yield Contest(
        name,
        eager(f"{name}, accelerated ({ours.backend})", ours, x, threads),
        eager(name, official, x, threads),
        check=check,
    )


def rows(threads: int, rounds: int) -> tuple[list[Row], list[str]]:
    """4,096 tokens: ``(1)1(1)1`` beside four plain layers with fused attention, as in the claim; no gradients."""
    wide = {"x_dim": 64, "latent_dim": 64, "x_num_heads": 4, "latent_num_heads": 4}
    ours = FIT("(1)1(1)1", 4096, 64, 4, in_dim=64, **wide).eval()
    peer = nn.Sequential(nn.Linear(64, 64), *(Layer(64, 4, 4) for _ in range(4))).eval()
    x = torch.randn(1, 64, 64, 64, generator=torch.Generator().manual_seed(0))
    contenders = [
        eager("FIT (1)1(1)1", ours, x, threads),
        eager("four plain layers", lambda x: peer(x.flatten(1, 2)), x, threads),
    ]
    timings = measure(contenders, rounds, warmup=1)
    command = f"saccade bench backbones --system fit --threads {threads}"
    return compare(timings, contenders[0].name, system="fit", what="4096 tokens", size="4096x64", command=command), []
