"""The largest picture through the smallest network: better at small things than other ways to spend as many MACs.

Small digits among scraps on a canvas of 96 px (`saccade.data.glyphs`), every network of about as many MACs and after as
many steps on the same pictures: the pyramid; the ordinary pyramid, whose largest network sees the largest picture; one
plain transformer at 48 px; and the pyramid without its exchanges, its branches trained side by side.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.backbones.piip import PIIP
from saccade.cost import cost
from saccade.data.glyphs import Glyphs, glyphs
from saccade.reproduce import Claim, Data, Figures
from saccade.reproduce.shapes import learn
from saccade.reproduce.training import seeded

CLAIM = Claim(
    system="piip",
    says="At as many MACs (within 2 %), a parameter-inverted pyramid names small digits on 96 px pictures at least 5 "
    "points better than one transformer at 48 px, and at least 5 points better than the ordinary pyramid with its "
    "largest network on the largest picture; without exchanges it loses at least 2 points; fresh, it is its branches "
    "side by side to the last bit.",
    source="tables 1 and 2 (equal cost), section 3.3; the margins are expectations at small scale",
    baseline="timm's vision transformer at 48 px; the un-inverted pyramid; the same branches without exchanges",
)

SIDE, MIDDLE, SIDES = 96, 48, (24, 48, 96)
WIDTHS, ORDINARY, PLAIN = (96, 64, 40), (56, 32, 24), 148
SMALL: dict[str, Any] = {
    "depths": (3, 3, 3),
    "heads": (4, 4, 4),
    "patch": 8,
    "deform_heads": 4,
    "scaled": False,
    "read": "mean",
    "num_classes": 10,
}
COPIES, STEP = 8, 4
TRAIN, TEST, STEPS = 8_000, 1_500, 300


class Resized(nn.Module):
    """A network behind a bilinear reduction of its pictures: (B, 3, H, W) -> (B, classes)."""

    def __init__(self, network: nn.Module, side: int) -> None:
        super().__init__()
        self.network, self.side = network, side

    def forward(self, x: Tensor) -> Tensor:
        seen = F.interpolate(x, size=(self.side, self.side), mode="bilinear", align_corners=False)
        out: Tensor = self.network(seen)
        return out


def inverted() -> PIIP:
    """The largest network at 24 px, the smallest at 96."""
    return PIIP(widths=WIDTHS, sides=SIDES, **SMALL)


def apart() -> PIIP:
    """The same branches without exchanges."""
    made = inverted()
    made.use(exchanges=False)
    return made


def ordinary() -> PIIP:
    """The largest network at 96 px, the smallest at 24."""
    return PIIP(widths=ORDINARY, sides=SIDES[::-1], **SMALL)


def plain() -> nn.Module:
    """One transformer at 48 px, as deep."""
    from timm.models.vision_transformer import VisionTransformer

    made = VisionTransformer(
        img_size=MIDDLE, patch_size=8, embed_dim=PLAIN, depth=3, num_heads=4, num_classes=10, global_pool="avg"
    )
    return Resized(made, MIDDLE)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "inverted": inverted,
    "without_exchanges": apart,
    "ordinary": ordinary,
    "plain_48": plain,
}


@functools.cache
def sets(seed: int) -> tuple[Glyphs, Glyphs]:
    """Pictures to train and to test on."""
    drawn = functools.partial(glyphs, side=SIDE, copies=COPIES, step=STEP)
    return drawn(TRAIN, seed=2 * seed + 1), drawn(TEST, seed=2 * seed + 2)


def run(data: Data, seed: int) -> Figures:
    """Train four networks; about seven minutes on one core."""
    figures: Figures = {"fresh_difference": fresh_difference(seed)}
    for name, make in NETWORKS.items():
        model = seeded(make, seed)
        figures[f"macs_{name}"] = cost(model, torch.zeros(1, 3, SIDE, SIDE), timed=False).macs
        found = learn(model, STEPS, seed, what=name.replace("_", " "), sets=sets(seed), flips=False)
        figures |= {f"accuracy_{name}": found.accuracy, f"parameters_{name}": found.parameters}
    return figures | {"steps": STEPS, "chance": 10.0, "data": "generated digits among scraps"}


def fresh_difference(seed: int) -> float:
    """Largest change of the logits when a fresh pyramid's exchanges are left out."""
    model = seeded(inverted, seed).eval()
    assert isinstance(model, PIIP)
    x = glyphs(4, side=SIDE, seed=seed).images
    with torch.inference_mode():
        whole = model(x)
        model.use(exchanges=False)
        return float((model(x) - whole).abs().max())


def met(f: Figures) -> bool:
    """The inequalities of the claim."""
    ours = f["accuracy_inverted"]
    return bool(
        max(abs(f[f"macs_{name}"] / f["macs_inverted"] - 1) for name in ("ordinary", "plain_48")) <= 0.02
        and ours - f["accuracy_plain_48"] >= 5
        and ours - f["accuracy_ordinary"] >= 5
        and ours - f["accuracy_without_exchanges"] >= 2
        and f["fresh_difference"] == 0
    )


def plot(figures: Figures, path: Path) -> None:
    """Accuracies and MACs of the four."""
    import matplotlib.pyplot as plt

    picture, (left, right) = plt.subplots(1, 2, figsize=(8, 2.4), layout="constrained", sharey=True)
    names = [name.replace("_", " ") for name in NETWORKS]
    left.barh(names, [figures[f"accuracy_{name}"] for name in NETWORKS])
    left.axvline(figures["chance"], color="0.5")
    left.set_xlabel("small digits named, %")
    right.barh(names, [figures[f"macs_{name}"] / 1e6 for name in NETWORKS])
    right.set_xlabel("MACs, millions")
    picture.savefig(path, dpi=120)
    plt.close(picture)
