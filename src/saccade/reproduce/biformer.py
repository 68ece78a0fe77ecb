"""Attention to few regions, chosen by content, costs a fraction of attention to everything and learns as it should.

Times are CPU time on one thread. The operator is measured on stage 1 of a 448 px picture beside torch's fused attention
to everything; BiFormer-S at 448 and 896 px; learning and the dial on the shapes set.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.backbones.biformer import BiFormer
from saccade.cost import cost
from saccade.data.shapes import shapes
from saccade.ops.bi_level_routing import bi_level_routing_attention
from saccade.registry import create
from saccade.reproduce import Claim, Data, Figures
from saccade.reproduce.shapes import TEST, accuracy, learn
from saccade.reproduce.training import medians, on_threads, seeded

CLAIM = Claim(
    system="biformer",
    says="On a 112 x 112 map, routing to 4 of 49 regions takes at most 15 % of the time of fused attention to "
    "everything, and 15 % of the memory of attention that holds its scores; from 448 to 896 px BiFormer-S grows in "
    "CPU time and memory no faster than in MACs; a small BiFormer learns the shapes to 72 % in 525 steps and 94 % in "
    "1,500; with 3/4 of the routed regions it loses at most 5 points, with half of them at most 20.",
    source="sections 3.2 and 3.3 (complexity), table 6; learning and the dial at small scale",
    baseline="attention to everything; the same network with all regions",
)

SMALL = {
    "widths": (24, 48, 96, 128),
    "depths": (1, 1, 2, 1),
    "topk": (1, 4, 8, -2),
    "regions": 4,
    "head_dim": 8,
    "mlp_ratio": 2,
    "num_classes": 8,
}
STEPS = (525, 1_500)
SIDE, WIDTH, HEADS, GRID, TOPK = 112, 64, 2, (7, 7), 4
SIZES = (448, 896)
ROUNDS = 5


def run(data: Data, seed: int) -> Figures:
    """Time the operator and BiFormer-S, train two small networks, turn the dial of one; minutes on two cores."""
    figures = operator(seed) | growth()
    for steps in STEPS:
        model = seeded(lambda: create("biformer", weights=None, **SMALL), seed)
        found = learn(model, steps, seed, what=f"biformer, {steps} steps")
        figures |= {f"accuracy_{steps}_steps": found.accuracy, "parameters": found.parameters}
    assert isinstance(model, BiFormer)
    return figures | dial(model) | {"data": "generated shapes"}


def operator(seed: int) -> Figures:
    """CPU seconds and peak bytes of routing, gathering and attention, and of attention to everything."""
    chance = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, SIDE, SIDE, WIDTH, generator=chance) for _ in range(3))

    def routed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return bi_level_routing_attention(q, k, v, GRID, TOPK, heads=HEADS)

    calls: dict[str, Callable[[], object]] = {
        name: torch.inference_mode()(lambda f=f: f(q, k, v)) for name, f in (("routed", routed), ("full", fused))
    }
    with on_threads(1):
        seconds = medians(calls, ROUNDS, time.process_time)
    shapes_alone = (t.to("meta") for t in (q, k, v))
    return {
        "seconds_routed": seconds["routed"],
        "seconds_full": seconds["full"],
        "time_share": seconds["routed"] / seconds["full"],
        "score_share": TOPK / (GRID[0] * GRID[1]),
        "peak_bytes_routed": (ours := cost(routed, q, k, v, timed=False).peak_bytes),
        "peak_bytes_full_with_scores": (theirs := cost(plainly, *shapes_alone).peak_bytes),
        "peak_bytes_full_fused": cost(fused, q, k, v, timed=False).peak_bytes,
        "memory_share": ours / theirs,
    }


def _heads(x: Tensor) -> Tensor:
    return x.flatten(1, 2).unflatten(2, (HEADS, -1)).transpose(1, 2)  # (B, m, N, d)


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention to everything by torch's fused kernel, which holds no scores."""
    return F.scaled_dot_product_attention(_heads(q), _heads(k), _heads(v), scale=WIDTH**-0.5)


def plainly(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention to everything with its scores as a tensor."""
    return (_heads(q) @ _heads(k).mT * WIDTH**-0.5).softmax(-1) @ _heads(v)


def growth() -> Figures:
    """How BiFormer-S grows from the first to the second size: in time, in memory, and in MACs."""
    model = create("biformer_small", weights=None)
    pictures = {side: torch.zeros(1, 3, side, side) for side in SIZES}
    calls: dict[str, Callable[[], object]] = {
        str(side): torch.inference_mode()(lambda x=x: model(x)) for side, x in pictures.items()
    }
    with on_threads(1):
        seconds = medians(calls, 3, time.process_time)
    weights = sum(p.numel() * p.element_size() for p in (*model.parameters(), *model.buffers()))
    told = {side: cost(model, x, timed=False) for side, x in pictures.items()}
    small, large = SIZES
    figures: Figures = {}
    for side in SIZES:
        figures |= {
            f"seconds_s_{side}_px": seconds[str(side)],
            f"macs_s_{side}_px": told[side].macs,
            f"activation_bytes_s_{side}_px": told[side].peak_bytes - weights,
        }
    return figures | {
        "time_growth": seconds[str(large)] / seconds[str(small)],
        "memory_growth": (told[large].peak_bytes - weights) / (told[small].peak_bytes - weights),
        "macs_growth": told[large].macs / told[small].macs,
    }


def dial(model: BiFormer) -> Figures:
    """Accuracy in percent at three settings of the dial, and with all regions."""
    test = shapes(TEST, seed=2)
    figures: dict[str, Any] = {}
    for budget in (1.0, 0.75, 0.5):
        model.budget = budget
        figures[f"accuracy_budget_{budget:g}"] = accuracy(model, test)
    model.topk = [model.routed[0][0].regions ** 2] * len(model.routed)
    figures["accuracy_all_regions"] = accuracy(model, test)
    model.budget = 1.0
    return figures


def met(f: Figures) -> bool:
    """The inequalities of the claim."""
    full = f["accuracy_budget_1"]
    return bool(
        max(f["time_share"], f["memory_share"]) <= 0.15
        and max(f["time_growth"], f["memory_growth"]) <= f["macs_growth"]
        and f["accuracy_525_steps"] >= 72
        and f["accuracy_1500_steps"] >= 94
        and full - f["accuracy_budget_0.75"] <= 5
        and full - f["accuracy_budget_0.5"] <= 20
    )


def plot(figures: Figures, path: Path) -> None:
    """Shares of the operator, growth of the network, and the dial."""
    import matplotlib.pyplot as plt

    picture, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 2.8), layout="constrained")
    left.bar(["time", "memory"], [100 * figures["time_share"], 100 * figures["memory_share"]])
    left.axhline(15, color="0.5")
    left.set_ylabel("% of attention to everything")
    names = ("time", "memory", "macs")
    middle.bar(names, [figures[f"{n}_growth"] for n in names])
    middle.set_ylabel(f"growth from {SIZES[0]} to {SIZES[1]} px")
    settings = ("budget_0.5", "budget_0.75", "budget_1", "all_regions")
    right.bar(
        [s.replace("budget_", "").replace("_", "\n") for s in settings], [figures[f"accuracy_{s}"] for s in settings]
    )
    right.set_ylabel("accuracy, %")
    picture.savefig(path, dpi=120)
    plt.close(picture)
