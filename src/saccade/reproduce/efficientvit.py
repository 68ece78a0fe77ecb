"""Heads that share out the channels, in a cascade: fast, quick to learn, and less alike than heads that read all.

Speed is measured beside MobileViT-XXS (timm, fused as well) on two threads, both in PyTorch; learning on the shapes set
after two schedules. The same network with heads that each read all channels, and with heads that read their own share
alone, is trained as the shorter schedule has it: how alike the maps of the heads are is told for all three (it is told,
not demanded).
"""

from __future__ import annotations

from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.backbones.efficientvit import CascadedGroupAttention, EfficientViT, WindowAttention
from saccade.data.shapes import shapes
from saccade.nn.conv_norm import ConvNorm
from saccade.nn.fuse import fuse
from saccade.registry import create
from saccade.reproduce import Claim, Data, Figures
from saccade.reproduce.charts import panels
from saccade.reproduce.shapes import learn
from saccade.reproduce.speed import folded_peer, network_speeds
from saccade.reproduce.training import seeded

CLAIM = Claim(
    system="efficientvit",
    says="Fused EfficientViT-M2 at 224 px classifies at least 3 times as many pictures a second as MobileViT-XXS at "
    "256 px on as many threads; a small EfficientViT learns the shapes to at least 85 % in 820 steps and to at least "
    "92 % in 2,000.",
    source="tables 2 and 3, section 3.2; learning at small scale",
    baseline="MobileViT-XXS of timm, fused; the small network with heads that read all channels, and without cascade",
)

SMALL: dict[str, Any] = {
    "widths": (64, 96, 128),
    "depths": (1, 2, 2),
    "heads": (2, 3, 4),
    "kernels": (7, 5, 3, 3),
    "window": 4,
    "img_size": 64,
    "num_classes": 8,
}
STEPS, LONG = 820, 2_000
BATCH, THREADS, ALIKE = 8, 2, 64


class Heads(CascadedGroupAttention):
    """Heads without a cascade, each on its share of the channels or on all of them; keeps their maps when asked."""

    def __init__(self, like: CascadedGroupAttention, reads: str) -> None:
        kernels = [m.conv.kernel_size[0] for m in like.dws if isinstance(m, ConvNorm)]
        width, heads = like.proj.conv.in_channels, len(like.qkvs)
        super().__init__(width, heads, like.dims[0], like.side, kernels)
        self.reads = reads
        if reads == "all":
            self.qkvs = nn.ModuleList(ConvNorm(width, sum(like.dims)) for _ in range(heads))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj(torch.cat(heads(self, x)[0], 1).relu())
        return out


def heads(layer: CascadedGroupAttention, x: Tensor) -> tuple[list[Tensor], Tensor]:
    """What every head finds, (N, C/h, s, s) each, and where it looks, (heads, N, s^2, s^2)."""
    reads = getattr(layer, "reads", "cascade")
    shares = x.chunk(len(layer.qkvs), 1)
    found: list[Tensor] = []
    maps: list[Tensor] = []
    biases = layer.attention_biases[:, layer.places]
    for share, qkv, dw, bias in zip(shares, layer.qkvs, layer.dws, biases, strict=True):
        seen = x if reads == "all" else share + found[-1] if reads == "cascade" and found else share
        q, k, v = qkv(seen).split(layer.dims, 1)
        scores = dw(q).flatten(2).mT @ k.flatten(2) * layer.dims[0] ** -0.5 + bias
        maps.append(scores.softmax(-1))
        found.append((v.flatten(2) @ maps[-1].mT).view(share.shape))
    return found, torch.stack(maps)


def alike(model: nn.Module, images: Tensor) -> float:
    """Mean cosine between the attention maps of every two heads of a layer, over layers, pictures and queries."""
    found: list[float] = []

    def look(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, CascadedGroupAttention)
        maps = heads(layer, inputs[0])[1]
        found.extend(float(F.cosine_similarity(a, b, -1).mean()) for a, b in combinations(maps, 2))

    layers = [m for m in model.modules() if isinstance(m, CascadedGroupAttention)]
    hooks = [layer.register_forward_pre_hook(look) for layer in layers]
    try:
        with torch.inference_mode():
            model.eval()(images)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(found) / len(found)


def network(reads: str) -> nn.Module:
    """The small network, its heads in a cascade, on their own share, or on all channels."""
    model = create("efficientvit", weights=None, **SMALL)
    assert isinstance(model, EfficientViT)
    for module in model.modules():
        if isinstance(module, WindowAttention) and reads != "cascade":
            module.attn = Heads(module.attn, reads)
    return model


def run(data: Data, seed: int) -> Figures:
    """Time two networks, train three, one of them twice; about eight minutes on two cores."""
    figures = speeds() | {"steps": STEPS, "steps_long": LONG}
    images = shapes(ALIKE, seed=3).images
    for reads in ("cascade", "share", "all"):
        model = seeded(partial(network, reads), seed)
        found = learn(model, STEPS, seed, what=f"heads: {reads}")
        figures |= {f"accuracy_{reads}": found.accuracy, f"parameters_{reads}": found.parameters}
        figures[f"cosine_of_heads_{reads}"] = alike(model, images)
    model = seeded(partial(network, "cascade"), seed)
    figures["accuracy_cascade_long"] = learn(model, LONG, seed, what="cascade, long").accuracy
    return figures | {"data": "generated shapes"}


def speeds() -> Figures:
    """Pictures a second in PyTorch, channels last, medians of calls in turns."""
    networks = {
        "efficientvit_m2": (fuse(create("efficientvit_m2", weights=None)), 224),
        "mobilevit_xxs": (folded_peer("mobilevit_xxs"), 256),
    }
    return network_speeds(networks, BATCH, threads=THREADS, rounds=7)


def met(f: Figures) -> bool:
    """The three inequalities of the claim."""
    return bool(
        f["pictures_per_s_efficientvit_m2"] >= 3 * f["pictures_per_s_mobilevit_xxs"]
        and f["accuracy_cascade"] >= 85
        and f["accuracy_cascade_long"] >= 92
    )


def plot(figures: Figures, path: Path) -> None:
    """Pictures a second, accuracies, and how alike the heads are."""
    units = {
        "pictures_per_s_": "pictures a second",
        "accuracy_": "accuracy, %",
        "cosine_of_heads_": "mean cosine of two heads' maps",
    }
    panels(figures, path, units, (11, 2.8))
