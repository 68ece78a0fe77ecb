"""Large kernels see far at once, and the branches that they are trained with cost nothing after training.

How far a network sees is measured before any training, as the paper does after it: the gradient of the middle of the
third stage's map with respect to a picture of 256 x 256, and the share of the picture that holds 99 % (90 %) of it.
Learning and merging on the shapes set; speed of variant A before and after merging, both in PyTorch on one thread. All
thresholds were measured with the published code before.
"""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from saccade.backbones.unireplknet import UniRepLKNet
from saccade.nn.fuse import fuse
from saccade.registry import create
from saccade.reproduce import Claim, Data, Figures
from saccade.reproduce.shapes import TEST, learn
from saccade.reproduce.speed import pictures_a_second
from saccade.reproduce.training import seeded

CLAIM = Claim(
    system="unireplknet",
    says="With 13x13 kernels the third stage sees at least 4 times the area that it sees with 3x3; a small UniRepLKNet "
    "learns the shapes to at least 92 % in 1,500 steps; merged, it names every picture as before, and variant A "
    "classifies at least 1.1 times as many pictures a second.",
    source="sections 3.1 and 3.2, figure 1; learning at small scale",
    baseline="the same network with 3x3 kernels; the branch form before merging",
)

SMALL: dict[str, Any] = {
    "widths": (24, 48, 96, 128),
    "depths": (1, 1, 2, 1),
    "kernels": ((3,), (13,), (13, 13), (7,)),
    "layer_scale": 1e-2,  # 1e-6 starts too slowly for 1,500 steps
    "num_classes": 8,
}
STEPS = 1_500
BATCH, SIDE = 4, 224
FIELD = 256  # pixels a side of the picture whose gradient is looked at


def run(data: Data, seed: int) -> Figures:
    """Measure fields and speed, train one network and merge it; about ten minutes on two cores."""
    figures: Figures = {}
    for name, large in (("13x13", 13), ("3x3", 3)):
        shares = field_shares(large, seed)
        figures |= {f"field_99_{name}": shares[0], f"field_90_{name}": shares[1]}
    figures |= speeds()
    model = seeded(lambda: create("unireplknet", weights=None, **SMALL), seed)
    found = learn(model, STEPS, seed, what="unireplknet")
    figures |= {"accuracy_unireplknet": found.accuracy, "parameters_branches": found.parameters}
    figures |= merged_beside(model)
    return figures | {"steps": STEPS, "data": "generated shapes"}


def field_shares(large: int, seed: int) -> tuple[float, float]:
    """Share of the picture's area that holds 99 and 90 % of the gradient of the middle of the third stage's map.

    The network is fresh, convolutions drawn with Kaiming's variance and layer scales 1: with small scales the shortcuts
    alone would be seen. Channels are weighted at random: the plain sum of a normalised map has no gradient.
    """
    kernels = ((3,) * 2, (large,) * 2, (large,) * 6, (large,))
    options: dict[str, Any] = {"widths": (16, 24, 32, 40), "depths": (2, 2, 6, 1), "layer_scale": 1.0}

    def make() -> nn.Module:
        model = create("unireplknet", weights=None, kernels=kernels, **options)
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        return model

    model = seeded(make, seed)
    assert isinstance(model, UniRepLKNet)
    chance = torch.Generator().manual_seed(seed)
    x = torch.randn(1, 3, FIELD, FIELD, generator=chance).requires_grad_()
    found = next(itertools.islice(model.maps(x), 2, None))
    middle = found[0, :, found.shape[2] // 2, found.shape[3] // 2]
    (middle * torch.randn(middle.shape, generator=chance)).sum().backward()
    assert x.grad is not None
    return share(x.grad, 0.99), share(x.grad, 0.9)


def share(gradient: Tensor, part: float) -> float:
    """Least share of the area whose pixels hold ``part`` of the gradient's magnitude, summed over channels."""
    size = gradient.abs().sum((0, 1)).flatten().sort(descending=True)[0].double()
    needed = int((size.cumsum(0) < part * size.sum()).sum()) + 1
    return needed / size.numel()


@torch.inference_mode()
def merged_beside(model: nn.Module) -> Figures:
    """The trained network and its merged form on the test pictures."""
    from saccade.data.shapes import shapes

    images = shapes(TEST, side=64, seed=2).images
    merged = fuse(model.eval())
    before, after = (torch.cat([m(part) for part in images.split(250)]) for m in (model, merged))
    return {
        "changed_predictions": int((before.argmax(1) != after.argmax(1)).sum()),
        "largest_change_of_a_logit": float((before - after).abs().max()),
        "parameters_merged": sum(p.numel() for p in merged.parameters()),
    }


def speeds() -> Figures:
    """Pictures a second of A in PyTorch on one thread, both forms; medians of calls in turns."""
    branches = create("unireplknet_a", weights=None)
    merged = fuse(copy.deepcopy(branches))
    x = torch.randn(BATCH, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    calls = {
        "branches": torch.inference_mode()(lambda: branches(x)),
        "merged": torch.inference_mode()(lambda: merged(x)),
    }
    return pictures_a_second(calls, BATCH, threads=1, rounds=15)


def met(f: Figures) -> bool:
    """The five inequalities of the claim; merging may change logits by rounding alone."""
    return bool(
        f["field_99_13x13"] >= 4 * f["field_99_3x3"]
        and f["accuracy_unireplknet"] >= 92
        and f["changed_predictions"] == 0
        and f["largest_change_of_a_logit"] < 1e-4
        and f["pictures_per_s_merged"] >= 1.1 * f["pictures_per_s_branches"]
    )


def plot(figures: Figures, path: Path) -> None:
    """How much is seen, and pictures a second."""
    import matplotlib.pyplot as plt

    picture, (left, right) = plt.subplots(1, 2, figsize=(8, 2.6), layout="constrained")
    names = ("13x13", "3x3")
    left.barh(names, [100 * figures[f"field_99_{n}"] for n in names])
    left.set_xlabel("% of the picture that holds 99 % of the gradient")
    forms = ("merged", "branches")
    right.barh(forms, [figures[f"pictures_per_s_{n}"] for n in forms])
    right.set_xlabel("pictures a second, A, 1 thread")
    picture.savefig(path, dpi=120)
    plt.close(picture)
