"""The recipe's network learns as well as a plain one or better, and its family is fast for its accuracy.

Learning: a bottleneck network of four groups with one block each, in the RS form (D stem, strided convolution for the
pool, mean on the shortcut, squeeze-and-excitation) and in the plain one, on the shapes at equal steps. Speed: 101 at
192 px beside EfficientNet-B3 at 300 px, of similar published accuracy (81.2 and 81.6 %), in PyTorch on two threads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from saccade.nn.fuse import fuse
from saccade.registry import create
from saccade.reproduce import Claim, Data, Figures
from saccade.reproduce.charts import panels
from saccade.reproduce.shapes import learn
from saccade.reproduce.speed import folded_peer, network_speeds
from saccade.reproduce.training import seeded

CLAIM = Claim(
    system="resnet_rs",
    says="A small network in the RS form learns the shapes to at least 97 %, and no worse than the plain form after as "
    "many steps; ResNet-RS-101 at 192 px classifies more pictures a second than EfficientNet-B3 at 300 px, although it "
    "takes three times the MACs.",
    source="table 2 and section 7; learning at small scale",
    baseline="timm's bottleneck ResNet with 7x7 stem and max pooling; EfficientNet-B3 of timm",
)

CHANNELS, STEM = (16, 24, 40, 64), 16
STEPS = 724
BATCH, THREADS = 8, 2


def plain() -> nn.Module:
    """The plain form: 7x7 stem, max pooling, strided 1x1 shortcuts, no gates."""
    from timm.models.resnet import Bottleneck, ResNet

    kind: Any = Bottleneck
    made: nn.Module = ResNet(kind, (1, 1, 1, 1), channels=CHANNELS, num_classes=8)
    return made


def rs() -> nn.Module:
    """The RS form."""
    return create("resnetrs", weights=None, depth=(1, 1, 1, 1), channels=CHANNELS, stem_width=STEM, num_classes=8)


def run(data: Data, seed: int) -> Figures:
    """Train two networks, time two; about four minutes on two cores."""
    figures = speeds()
    for name, make in (("rs", rs), ("plain", plain)):
        found = learn(seeded(make, seed), STEPS, seed, what=f"the {name} form")
        figures |= {f"accuracy_{name}": found.accuracy, f"parameters_{name}": found.parameters}
    return figures | {"steps": STEPS, "data": "generated shapes"}


def speeds() -> Figures:
    """Pictures a second in PyTorch, channels last, batch norms folded, medians of calls in turns."""
    networks = {
        "resnetrs101_192": (fuse(create("resnetrs101", weights=None)), 192),
        "efficientnet_b3_300": (folded_peer("efficientnet_b3"), 300),
    }
    return network_speeds(networks, BATCH, threads=THREADS, rounds=5)


def met(f: Figures) -> bool:
    """The three inequalities of the claim."""
    return bool(
        f["accuracy_rs"] >= 97
        and f["accuracy_rs"] >= f["accuracy_plain"]
        and f["pictures_per_s_resnetrs101_192"] > f["pictures_per_s_efficientnet_b3_300"]
    )


def plot(figures: Figures, path: Path) -> None:
    """Pictures a second, and accuracies."""
    units = {"pictures_per_s_": "pictures a second", "accuracy_": "accuracy, %"}
    panels(figures, path, units, (8, 2.2))
