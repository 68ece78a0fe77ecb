"""One head on a fifth of the channels is enough, and patches of 16 pixels make it fast.

Speed is measured beside MobileViTv2-1.0 (timm, fused as well) on two threads, both in PyTorch; learning on the shapes
set, beside the same network without attention (all stages of kind ``"i"``).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from saccade.nn.fuse import fuse
from saccade.registry import create
from saccade.reproduce import Claim, Data, Figures
from saccade.reproduce.charts import panels
from saccade.reproduce.shapes import learn
from saccade.reproduce.speed import folded_peer, network_speeds
from saccade.reproduce.training import seeded

CLAIM = Claim(
    system="shvit",
    says="Fused SHViT-S4 at 256 px classifies at least 3 times as many pictures a second as MobileViTv2-1.0 on as many "
    "threads, fused S1 more than unfused S1; a small SHViT learns the shapes to at least 92 % in 1,030 steps.",
    source="table 2 and section 3; learning at small scale",
    baseline="MobileViTv2-1.0 of timm, fused; SHViT-S1 before fusing; the small network without attention",
)

SMALL: dict[str, Any] = {"widths": (64, 96, 128), "depths": (1, 2, 2), "partial": (16, 24, 32), "num_classes": 8}
STEPS = 1_030
BATCH, SIDE, THREADS = 8, 256, 2


def run(data: Data, seed: int) -> Figures:
    """Time four networks, train two; about five minutes on two cores."""
    figures = speeds()
    for name, kinds in (("shvit", ("i", "s", "s")), ("without_attention", ("i", "i", "i"))):
        model = seeded(partial(create, "shvit", weights=None, kinds=kinds, **SMALL), seed)
        found = learn(model, STEPS, seed, what=name)
        figures |= {f"accuracy_{name}": found.accuracy, f"parameters_{name}": found.parameters}
    return figures | {"steps": STEPS, "data": "generated shapes"}


def speeds() -> Figures:
    """Pictures a second in PyTorch, channels last, medians of calls in turns."""
    s4, s1 = (create(n, weights=None) for n in ("shvit_s4", "shvit_s1"))
    networks = {
        "shvit_s4": (fuse(s4), SIDE),
        "mobilevitv2_100": (folded_peer("mobilevitv2_100"), SIDE),
        "shvit_s1": (fuse(s1), 224),
        "shvit_s1_unfused": (s1, 224),
    }
    return network_speeds(networks, BATCH, threads=THREADS, rounds=7)


def met(f: Figures) -> bool:
    """The three inequalities of the claim."""
    return bool(
        f["pictures_per_s_shvit_s4"] >= 3 * f["pictures_per_s_mobilevitv2_100"]
        and f["pictures_per_s_shvit_s1"] > f["pictures_per_s_shvit_s1_unfused"]
        and f["accuracy_shvit"] >= 92
    )


def plot(figures: Figures, path: Path) -> None:
    """Pictures a second, and accuracies."""
    units = {"pictures_per_s_": "pictures a second", "accuracy_": "accuracy, %"}
    panels(figures, path, units, (8, 2.8))
