"""A periphery that keeps texture costs a scene classifier little, and leaves it fine detail that blur takes away.

Ten classes of generated scenes, in two ways each: a layout of light and shade that any blur leaves, and a material, a
band of waves of its own length and direction. Each of the two is another class's in one picture of ten. The rest is
noise with the spectrum of photographs, so that about the same blur (a part of the side) matches the texture. Pictures
are rendered once for each system, as published; the blurs are matched to the texture by SSIM; all systems start from
the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.backbones.foveated.blurs import FoveatedBlur, gaussian_blur, matched
from saccade.backbones.foveated.network import FoveatedNetwork
from saccade.backbones.foveated.probes import area, cue_conflict, high_pass, low_pass, occlude, sweep
from saccade.backbones.foveated.stages import KINDS
from saccade.backbones.foveated.transform import FoveatedTexture, drawn
from saccade.progress import bar
from saccade.quality.structure import ssim
from saccade.reproduce import Claim, Data, Figures
from saccade.reproduce.training import seeded

CLAIM = Claim(
    system="foveated",
    says="On ten classes of generated scenes, 64 px, two seeds: the network behind the foveated texture is within 3 "
    "points of the one that sees the pictures as they are, and on high-pass pictures at least 5 points above the one "
    "behind a uniform blur of the same SSIM.",
    source="abstract and sections 3, 4.2; at small scale",
    baseline="the same network, start and pictures without a stage, behind a uniform and behind a foveated blur",
)

SIDE, CLASSES, SCALE = 64, 10, 0.4
BLOCK = 2  # the regions are then those of 256 px on the grid of VGG-19, a fovea of 9 % of the picture among them
TRAIN, TEST = 3_000, 1_000
STEPS, BATCH, RATE, WARMUP = 300, 64, 2e-3, 30
SEEDS = 2
SWAPPED = 0.1  # of the pictures have a layout, or a material, of another class
MATCHED = 200  # pictures that the blurs are matched on
PHOTOGRAPHS = 12
HIGH = (3.0, 1.5, 1.0, 0.7)  # deviations in pixels
LOW = (0.0, 1.0, 2.0, 3.0, 5.0)
OCCLUSION = (0, 4, 8, 12, 16)  # sixteenths of the area
CENTRE = (0.25, 0.5)  # parts of the area that show the other class
PROBED = 500


@dataclass(frozen=True)
class Scenes:
    """Pictures (N, 3, SIDE, SIDE) in [0, 1] and their classes (N,)."""

    images: Tensor
    labels: Tensor


def scenes(count: int, seed: int) -> Scenes:
    """Generated scenes; the same for the same seed."""
    chance = torch.Generator().manual_seed(seed)

    def cue() -> Tensor:
        other = torch.randint(CLASSES, (count,), generator=chance)
        return torch.where(torch.rand(count, generator=chance) < SWAPPED, other, labels)

    labels = torch.randint(CLASSES, (count,), generator=chance)
    light = 0.16 * _waves(cue(), (SIDE / 1.0, SIDE / 1.8), 0.08, chance)
    grain = 0.11 * _waves(cue(), (4.0, 7.0), 0.15, chance)
    colour = 0.5 + 0.12 * torch.randn(count, 3, 1, 1, generator=chance)
    tint = 1 + 0.3 * torch.randn(count, 3, 1, 1, generator=chance)
    shape = (count, 3, SIDE, SIDE)
    pink = drawn(shape, chance, pink=True)
    noise = 0.08 * pink / pink.std() + 0.02 * torch.randn(shape, generator=chance)
    return Scenes((colour + (light + grain)[:, None] * tint + noise).clamp(0, 1), labels)


def _waves(kinds: Tensor, lengths: tuple[float, float], spread: float, chance: torch.Generator) -> Tensor:
    """Sums of six waves near a class's direction and length, of any phase: (N, SIDE, SIDE), of deviation about 1."""
    shape = (len(kinds), 6)
    turn = (kinds % 5)[:, None] * math.pi / 5 + spread * torch.randn(shape, generator=chance)
    length = torch.tensor(lengths)[kinds // 5][:, None] * torch.exp(spread * torch.randn(shape, generator=chance))
    phase = 2 * math.pi * torch.rand(shape, generator=chance)
    place = torch.arange(SIDE).float()
    total = torch.zeros(len(kinds), SIDE, SIDE)
    for i in range(shape[1]):
        x, y = (2 * math.pi / length[:, i] * f(turn[:, i]) for f in (torch.cos, torch.sin))
        waves = x[:, None, None] * place + y[:, None, None] * place[:, None] + phase[:, i, None, None]
        total += waves.cos()
    return total * (2 / shape[1]) ** 0.5


def run(data: Data, seed: int) -> Figures:
    """Render, match, train eight networks and probe them; about eight minutes on one core."""
    figures: Figures = {"data": "generated scenes", "steps": STEPS, "pictures": TRAIN, **photographs(data, seed)}
    train, test = scenes(TRAIN, 2 * seed + 1), scenes(TEST, 2 * seed + 2)
    seen, told = rendered(train, test, seed)
    figures |= told
    for kind in KINDS:
        found = [_trained(kind, *seen[kind], seed * SEEDS + i) for i in range(SEEDS)]
        for name in found[0]:
            figures[f"{name}_{kind}"] = np.mean([f[name] for f in found], 0)
        figures[f"accuracy_{kind}_each"] = [f["accuracy"] for f in found]
    return figures


def rendered(train: Scenes, test: Scenes, seed: int) -> tuple[dict[str, tuple[Scenes, Scenes]], Figures]:
    """Both sets as each system sees them, and what the blurs were matched to."""
    size, chance = (SIDE, SIDE), torch.Generator().manual_seed(seed)
    texture = FoveatedTexture(size, SCALE, block=BLOCK)
    seen = {"reference": (train, test), "texture": _both(lambda x: texture(x, chance), train, test)}
    some = train.images[:MATCHED]
    wanted = float(ssim(seen["texture"][0].images[:MATCHED], some).mean())
    sigma = matched(lambda v: gaussian_blur(some, v), some, wanted, high=8)
    gain = matched(lambda v: FoveatedBlur(size, SCALE, gain=v)(some), some, wanted, high=2)
    foveated = FoveatedBlur(size, SCALE, gain=gain)
    seen["uniform"] = _both(lambda x: gaussian_blur(x, sigma), train, test)
    seen["blur"] = _both(foveated, train, test)
    told = {f"ssim_{kind}": float(ssim(seen[kind][0].images[:MATCHED], some).mean()) for kind in KINDS[1:]}
    return seen, {**told, "sigma_px": sigma, "gain": gain, "regions": len(texture.regions)}


@torch.no_grad()
def _both(show: Callable[[Tensor], Tensor], *sets: Scenes) -> tuple[Scenes, Scenes]:
    first, second = (Scenes(torch.cat([show(some) for some in s.images.split(100)]), s.labels) for s in sets)
    return first, second


def _trained(kind: str, train: Scenes, test: Scenes, seed: int) -> dict[str, Any]:
    """A network's figures on pictures as its system shows them."""
    mean, spread = train.images.mean((0, 2, 3)), train.images.std((0, 2, 3))

    def prepare(x: Tensor) -> Tensor:
        return ((x - mean[:, None, None]) / spread[:, None, None]).contiguous(memory_format=torch.channels_last)

    model = seeded(_network, seed).to(memory_format=torch.channels_last)
    _learn(model, train, prepare, seed, kind)
    return _probed(model.eval(), train, test, mean, prepare)


def _network() -> nn.Module:
    return FoveatedNetwork("none", SIDE, widths=(24, 48, 96), depths=(1, 1, 1), num_classes=CLASSES)


def _learn(model: nn.Module, train: Scenes, prepare: Callable[[Tensor], Tensor], seed: int, kind: str) -> None:
    """AdamW 2e-3, 30 steps of warm-up and half a cosine; the same order for all systems of a seed."""
    chance = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.05, fused=True)
    model.train()
    with bar(f"{kind}, seed {seed}", STEPS) as advance:
        for step in range(STEPS):
            for group in optimiser.param_groups:
                group["lr"] = RATE * min(1, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * step / STEPS))
            chosen = torch.randint(len(train.labels), (BATCH,), generator=chance)
            loss = F.cross_entropy(model(prepare(train.images[chosen])), train.labels[chosen])
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            advance(1)


def _probed(
    model: nn.Module, train: Scenes, test: Scenes, mean: Tensor, prepare: Callable[[Tensor], Tensor]
) -> dict[str, Any]:
    def curve(probe: Callable[[Tensor, Any], Tensor], levels: Any, some: Scenes, count: int = PROBED) -> list[float]:
        return sweep(model, some.images[:count], some.labels[:count], probe, levels, prepare=prepare)

    accuracy = curve(lambda x, _: x, (0,), test, TEST)[0]
    high = curve(lambda x, sigma: high_pass(x, sigma, mean), HIGH, test)
    figures: dict[str, Any] = {
        "accuracy": accuracy,
        "gap": curve(lambda x, _: x, (0,), train, TEST)[0] - accuracy,
        "high_pass": sum(high) / len(high),
        "high_pass_curve": high,
        "low_pass_curve": curve(low_pass, LOW, test),
    }
    for kind in ("scotoma", "glaucoma"):
        figures[f"area_{kind}"] = area(curve(partial(_covered, kind), OCCLUSION, test))
    # the middle of a picture shows another picture: how often is that one named?
    order = torch.roll(torch.arange(PROBED), 1)
    images, other = test.images[:PROBED], test.labels[:PROBED][order]
    mixed = [cue_conflict(images[order], images, part) for part in CENTRE]
    differ = other != test.labels[:PROBED]
    named = [sweep(model, m[differ], other[differ], lambda x, _: x, (0,), prepare=prepare)[0] for m in mixed]
    return figures | {"names_the_centre_curve": named}


def _covered(kind: str, pictures: Tensor, level: float) -> Tensor:
    return occlude(pictures, kind, int(level))


@torch.no_grad()
def photographs(data: Data, seed: int) -> Figures:
    """What the two blurs are to be on photographs of 256 px at scale 0.4: the library's defaults."""
    from PIL import Image

    side, pictures = 256, list[Tensor]()
    for path in data.training()[:: max(1, len(data.training()) // PHOTOGRAPHS)][:PHOTOGRAPHS]:
        with Image.open(path) as opened:
            square = min(opened.size)
            left, top = (opened.width - square) // 2, (opened.height - square) // 2
            crop = opened.convert("RGB").crop((left, top, left + square, top + square))
            pixels = np.asarray(crop.resize((side, side), Image.Resampling.LANCZOS))
        pictures.append(torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255)
    x = torch.stack(pictures)
    shown = FoveatedTexture((side, side))(x, torch.Generator().manual_seed(seed))
    wanted = float(ssim(shown, x).mean())
    sigma = matched(lambda v: gaussian_blur(x, v), x, wanted, high=16)
    gain = matched(lambda v: FoveatedBlur((side, side), gain=v)(x), x, wanted, high=0.4)
    return {"ssim_photographs": wanted, "sigma_over_side_photographs": sigma / side, "gain_photographs": gain}


def met(f: Figures) -> bool:
    """Both inequalities of the claim."""
    return bool(
        f["accuracy_texture"] >= f["accuracy_reference"] - 3 and f["high_pass_texture"] >= f["high_pass_uniform"] + 5
    )


def plot(figures: Figures, path: Path) -> None:
    """Accuracy at rest and on high-pass pictures, and both curves."""
    import matplotlib.pyplot as plt

    picture, axes = plt.subplots(1, 3, figsize=(10, 3), layout="constrained")
    for i, kind in enumerate(KINDS):
        axes[0].bar(i - 0.2, figures[f"accuracy_{kind}"], 0.4, color=f"C{i}")
        axes[0].bar(i + 0.2, figures[f"high_pass_{kind}"], 0.4, color=f"C{i}", alpha=0.5)
        axes[1].plot(HIGH, figures[f"high_pass_curve_{kind}"], "o-", color=f"C{i}", label=kind)
        axes[2].plot(LOW, figures[f"low_pass_curve_{kind}"], "o-", color=f"C{i}")
    axes[0].set_xticks(range(len(KINDS)), KINDS)
    axes[0].set_ylabel("accuracy, %; pale: high-pass")
    axes[1].set_xlabel("high-pass, sigma in px")
    axes[2].set_xlabel("low-pass, sigma in px")
    axes[1].legend()
    picture.savefig(path, dpi=120)
    plt.close(picture)
