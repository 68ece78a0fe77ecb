"""Mixing by wavelets keeps little for the way back, and is enough to learn classes and masks.

What a training step keeps for the way back is counted by the hooks that autograd has for it, parameters left out, for
WaveMix and for a ConvMixer (timm; blocks that keep the map's size too) with as many parameters. Classes and masks are
learnt on the shapes set; the transform is timed beside the published one, which begins anew for every level.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.bench.backbones.wavemix import repeated
from saccade.cost import count_parameters
from saccade.data.shapes import Shapes, shapes
from saccade.ops.haar import pyramid
from saccade.progress import bar
from saccade.registry import create
from saccade.reproduce import Claim, Data, Figures
from saccade.reproduce.charts import bars
from saccade.reproduce.shapes import BATCH, CLIP, DECAY, RATE, TEST, TRAIN, WARMUP, learn
from saccade.reproduce.training import medians, on_threads, seeded

CLAIM = Claim(
    system="wavemix",
    says="A training step of WaveMix keeps at most 1/1.5 of the bytes that a ConvMixer of as many parameters keeps; a "
    "small WaveMix learns the shapes to at least 90 % in 1,500 steps, another their masks to a mean IoU of at least "
    "0.85; one pass over four levels of the transform takes at most 1/1.5 of the time of the published repeated ones.",
    source="sections 3 and 4; learning at small scale",
    baseline="ConvMixer-256/8 of timm, patches of 4; the transform as the published code repeats it",
)

STEPS, MASK_STEPS = 1_500, 600
SIDE, PICTURES = 128, 4
CLASSIFIER = {"width": 64, "depth": 3, "level": 2, "patch": 4, "num_classes": 8}
MASKS = {"width": 32, "depth": 2, "level": 3, "num_classes": 2}
PAIR = {"width": 64, "depth": 8, "level": 1, "patch": 4, "num_classes": 8}


def run(data: Data, seed: int) -> Figures:
    """Count what is kept, time the transform, train two networks; about ten minutes on two cores."""
    figures = memory() | transform()
    model = seeded(lambda: create("wavemix", weights=None, **CLASSIFIER), seed)
    found = learn(model.to(memory_format=torch.channels_last), STEPS, seed, what="classes")
    figures |= {"steps": STEPS, "accuracy": found.accuracy, "parameters": found.parameters}
    segmenter = seeded(lambda: create("wavemix_segmentation", weights=None, **MASKS), seed)
    figures |= {
        "mask_steps": MASK_STEPS,
        "mean_iou": learn_masks(segmenter.to(memory_format=torch.channels_last), MASK_STEPS, seed),
    }
    return figures | {"mask_parameters": count_parameters(segmenter), "data": "generated shapes"}


def memory() -> Figures:
    """Megabytes kept by a training step, and parameters, of both networks."""
    from timm.models.convmixer import ConvMixer

    networks = {
        "wavemix": create("wavemix", weights=None, **PAIR),
        "convmixer": ConvMixer(256, 8, kernel_size=9, patch_size=4, num_classes=8),
    }
    x = torch.randn(PICTURES, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    figures: Figures = {}
    for name, model in networks.items():
        figures[f"kept_megabytes_{name}"] = kept(model, x) / 1e6
        figures[f"compared_parameters_{name}"] = count_parameters(model)
    return figures


def kept(model: nn.Module, x: Tensor) -> int:
    """Bytes that a forward pass in training mode keeps for the way back, each storage once, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes: dict[int, int] = {}

    def note(t: Tensor) -> Tensor:
        sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        out = model.train()(x)  # alive until the sum: what is kept is not freed and its places not used again
    total = sum(size for place, size in sizes.items() if place not in own)
    del out
    return total


def transform() -> Figures:
    """Milliseconds of four levels on 64 channels of 128 x 128, one thread."""
    x = torch.randn(1, 64, 128, 128, generator=torch.Generator().manual_seed(0))
    with on_threads(1), torch.inference_mode():
        seconds = medians({"one_pass": lambda: pyramid(x, 4), "repeated": lambda: repeated(x, 4)}, 15)
    return {f"transform_ms_{name}": 1e3 * value for name, value in seconds.items()}


def learn_masks(model: nn.Module, steps: int, seed: int) -> float:
    """Train as `reproduce.shapes.learn` does, but on masks; the mean over both classes of the IoU on the test set."""
    train = shapes(TRAIN, seed=1)
    chance = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY, fused=True)
    model.train()
    with bar("masks", steps) as advance:
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = RATE * min(1, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * step / steps))
            chosen = torch.randint(TRAIN, (BATCH,), generator=chance)
            loss = F.cross_entropy(model(train.images[chosen]), train.masks[chosen].long())
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimiser.step()
            optimiser.zero_grad()
            advance(1)
    return mean_iou(model, shapes(TEST, seed=2))


@torch.inference_mode()
def mean_iou(model: nn.Module, test: Shapes) -> float:
    """Intersection over union of shape and of background over all pictures together, and their mean."""
    model.eval()
    both, either = torch.zeros(2), torch.zeros(2)
    for images, masks in zip(test.images.split(250), test.masks.split(250), strict=True):
        said = model(images).argmax(1).bool()
        for i, (a, b) in enumerate(((~said, ~masks), (said, masks))):
            both[i] += (a & b).sum()
            either[i] += (a | b).sum()
    return float((both / either.clamp(min=1)).mean())


def met(f: Figures) -> bool:
    """The four inequalities of the claim, and that the two networks compared have as many parameters (within 5 %)."""
    return bool(
        f["kept_megabytes_convmixer"] >= 1.5 * f["kept_megabytes_wavemix"]
        and abs(f["compared_parameters_wavemix"] / f["compared_parameters_convmixer"] - 1) <= 0.05
        and f["transform_ms_repeated"] >= 1.5 * f["transform_ms_one_pass"]
        and f["accuracy"] >= 90
        and f["mean_iou"] >= 0.85
    )


def plot(figures: Figures, path: Path) -> None:
    """Bytes kept, milliseconds of the transform, accuracy and IoU."""
    import matplotlib.pyplot as plt

    picture, axes = plt.subplots(1, 3, figsize=(11, 2.4), layout="constrained")
    bars(axes[0], figures, "kept_megabytes_", "MB kept by a training step")
    bars(axes[1], figures, "transform_ms_", "ms, four levels")
    axes[2].barh(["classes, accuracy", "masks, mean IoU"], [figures["accuracy"], 100 * figures["mean_iou"]])
    axes[2].set_xlabel("%")
    axes[2].set_xlim(0, 100)
    picture.savefig(path, dpi=120)
    plt.close(picture)
