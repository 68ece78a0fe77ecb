"""Attention in the place of whole blocks costs few points, and all groups at once are faster than the loop.

A MobileNetV2-like network of seven blocks on the shapes, whole and with its last block of 48 and of 64 channels
replaced (g = 4), at equal steps; the module of 16 groups on 96 channels at 14 x 14 beside its loop, one thread, one
picture. The thresholds are those measured with an independent program: 92 %, within 6 points, 1.5 times.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from saccade.backbones.ulsam import LoopedSubspaceAttention, SubspaceAttention, looped_state
from saccade.cost import cost
from saccade.nn.fuse import fuse
from saccade.registry import create
from saccade.reproduce import Claim, Data, Figures
from saccade.reproduce.shapes import learn
from saccade.reproduce.training import medians, on_threads, seeded

CLAIM = Claim(
    system="ulsam",
    says="With its last two residual blocks replaced by subspace attention a small inverted-residual network keeps "
    "at least 92 % on the shapes and stays within 6 points of the whole one at equal steps, with a third fewer "
    "parameters; all 16 groups at once are at least 1.5 times as fast as the loop over them.",
    source="table 3 (blocks replaced in MobileNetV2), at small scale; section 3.2",
    baseline="the same network with all blocks; the published loop over groups",
)

SMALL = {
    "rows": ((4, 32, 1, 2), (4, 48, 3, 2), (4, 64, 3, 2)),
    "stem_width": 24,
    "head_width": 128,
    "num_classes": 8,
}
REPLACED = (4, 7)
STEPS = 500
ROUNDS, CALLS = 15, 20


def run(data: Data, seed: int) -> Figures:
    """Train two networks, time two modules; about two minutes on two cores."""
    figures = speeds()
    for name, replace in (("whole", ()), ("replaced", REPLACED)):
        model = seeded(partial(create, "ulsam_mobilenetv2", weights=None, replace=replace, **SMALL), seed)
        macs = cost(model, torch.zeros(1, 3, 64, 64), timed=False).macs
        found = learn(model, STEPS, seed, what=f"the {name} network")
        figures |= {f"accuracy_{name}": found.accuracy, f"parameters_{name}": found.parameters}
        figures[f"megamacs_{name}"] = macs / 1e6
    return figures | {"steps": STEPS, "data": "generated shapes"}


def speeds() -> Figures:
    """Milliseconds of the module of 16 groups, at once and looped."""
    module = SubspaceAttention(96, 16).eval()
    loop = LoopedSubspaceAttention(96, 16).eval()
    loop.load_state_dict(looped_state(module.state_dict(), 16))
    x = torch.randn(1, 96, 14, 14, generator=torch.Generator().manual_seed(0))
    with on_threads(1):
        seconds = medians({"grouped": repeated(fuse(module), x), "looped": repeated(loop, x)}, ROUNDS)
    return {f"ms_{name}": 1e3 * value / CALLS for name, value in seconds.items()}


def repeated(model: nn.Module, x: torch.Tensor) -> Callable[[], None]:
    """Several calls in a row, without gradients."""

    def calls() -> None:
        with torch.inference_mode():
            for _ in range(CALLS):
                model(x)

    return calls


def met(f: Figures) -> bool:
    """The three inequalities of the claim."""
    return bool(
        f["accuracy_replaced"] >= 92
        and f["accuracy_whole"] - f["accuracy_replaced"] <= 6
        and f["ms_looped"] >= 1.5 * f["ms_grouped"]
    )


def plot(figures: Figures, path: Path) -> None:
    """Accuracy over parameters, and the two times."""
    import matplotlib.pyplot as plt

    picture, (left, right) = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
    for name in ("whole", "replaced"):
        left.scatter(figures[f"parameters_{name}"] / 1e3, figures[f"accuracy_{name}"], label=name)
    left.set_xlabel("thousand parameters")
    left.set_ylabel("accuracy, %")
    left.legend()
    right.barh(["16 groups at once", "the loop"], [figures["ms_grouped"], figures["ms_looped"]])
    right.set_xlabel("ms")
    picture.savefig(path, dpi=120)
    plt.close(picture)
