"""One head on a fifth of the channels is enough, and patches of 16 pixels make it fast.

Speed is measured beside MobileViTv2-1.0 (timm, fused as well) on two threads, both in PyTorch; learning on the shapes
set, beside the same network without attention (all stages of kind ``"i"``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from saccade.nn.fuse import fuse
from saccade.registry import create
from saccade.reproduce import Claim, Data, Figures
from saccade.reproduce.shapes import learn
from saccade.reproduce.training import medians, on_threads, seeded

CLAIM = Claim(
    system="shvit",
    says="Fused SHViT-S4 at 256 px classifies at least 3 times as many pictures a second as MobileViTv2-1.0 on as many "
    "threads, fused S1 more than unfused S1; a small SHViT learns the shapes to at least 92 % in 1,030 steps.",
    source="table 2 and section 3; learning at small scale",
    baseline="MobileViTv2-1.0 of timm, fused; SHViT-S1 before fusing; the small network without attention",
)

SMALL = {"widths": (64, 96, 128), "depths": (1, 2, 2), "partial": (16, 24, 32), "num_classes": 8}
STEPS = 1_030
BATCH, SIDE, THREADS = 8, 256, 2


def run(data: Data, seed: int) -> Figures:
    """Time four networks, train two; about five minutes on two cores."""
    figures = speeds()
    for name, kinds in (("shvit", ("i", "s", "s")), ("without_attention", ("i", "i", "i"))):
        model = seeded(lambda kinds=kinds: create("shvit", weights=None, kinds=kinds, **SMALL), seed)  # type: ignore[misc]
        found = learn(model, STEPS, seed, what=name)
        figures |= {f"accuracy_{name}": found.accuracy, f"parameters_{name}": found.parameters}
    return figures | {"steps": STEPS, "data": "generated shapes"}


def speeds() -> Figures:
    """Pictures a second in PyTorch, channels last, medians of calls in turns."""
    import timm
    from timm.utils.model import reparameterize_model

    s4, s1 = (create(n, weights=None) for n in ("shvit_s4", "shvit_s1"))
    networks: dict[str, tuple[nn.Module, int]] = {
        "shvit_s4": (fuse(s4), SIDE),
        "mobilevitv2_100": (reparameterize_model(timm.create_model("mobilevitv2_100").eval()), SIDE),
        "shvit_s1": (fuse(s1), 224),
        "shvit_s1_unfused": (s1, 224),
    }
    calls: dict[str, Any] = {}
    for name, (model, side) in networks.items():
        x = torch.randn(BATCH, 3, side, side).contiguous(memory_format=torch.channels_last)
        calls[name] = torch.inference_mode()(lambda m=model.to(memory_format=torch.channels_last), x=x: m(x))
    with on_threads(THREADS):
        seconds = medians(calls, 7)
    return {f"pictures_per_s_{name}": BATCH / seconds[name] for name in networks} | {"threads": THREADS}


def met(f: Figures) -> bool:
    """The three inequalities of the claim."""
    return bool(
        f["pictures_per_s_shvit_s4"] >= 3 * f["pictures_per_s_mobilevitv2_100"]
        and f["pictures_per_s_shvit_s1"] > f["pictures_per_s_shvit_s1_unfused"]
        and f["accuracy_shvit"] >= 92
    )


def plot(figures: Figures, path: Path) -> None:
    """Pictures a second, and accuracies."""
    import matplotlib.pyplot as plt

    picture, (left, right) = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
    for axis, start, unit in ((left, "pictures_per_s_", "pictures a second"), (right, "accuracy_", "accuracy, %")):
        names = [k for k in figures if k.startswith(start)]
        axis.barh([n.removeprefix(start).replace("_", " ") for n in names], [figures[n] for n in names])
        axis.set_xlabel(unit)
    picture.savefig(path, dpi=120)
    plt.close(picture)
