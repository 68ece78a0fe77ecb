"""Pixel-level routing: quality held at half the compute, and more of it than when whole patches are routed.

For each test picture the network is run all heavy and all light. At half the multiply-accumulates it can afford a share
of heavy pixels; four ways of choosing them are compared at that one share:

    pixels      the classifier's most certain ones (the method)
    patches     whole patches of 32x32 input pixels by the classifier's mean over them, as ClassSR and its kin route
    laplacian   the pixels with the largest Laplacian energy in the bilinear picture: needs no classifier
    random      any

The other two cost nothing to choose here, so the comparison favours them a little.
"""

from __future__ import annotations

import statistics
import time
from functools import partial
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.checkpoint import load
from saccade.data.pairs import CropPairs, luma
from saccade.progress import bar
from saccade.registry import create, default_weights
from saccade.reproduce import Claim, Data, Figures
from saccade.reproduce.training import medians, on_threads, seeded
from saccade.restoration.pcsr import PCSR
from saccade.training.trainer import learning_rate

CLAIM = Claim(
    system="pcsr",
    says="At x2 and half the multiply-accumulates, pixel-wise routing stays within 0.10 dB of all pixels heavy on "
    "every set and is better than routing patches of 32x32 by the same classifier at the same share.",
    source="sections 3 and 4.2, table 1, figure 1",
    baseline="all pixels heavy; patch-wise routing; also reported: choosing by Laplacian energy, and at random",
)

SCALE = 2
MODEL = "pcsr_fsrcnn"
PATCH = 32  # input pixels
BUDGET = 0.5
STEPS = (1_500, 1_000)  # of the two phases, where no weights ship
WAYS = ("pixels", "patches", "laplacian", "random")


def run(data: Data, seed: int) -> Figures:
    """Measure the shipped weights; without them train ``pcsr_small`` first (five minutes on two cores)."""
    shipped = default_weights(MODEL, scale=SCALE)
    model = cast(PCSR, load(shipped)) if shipped else brief(data, seed)
    model.refine = False
    sets = data.tests("set5", "set14", "b100")
    figures: Figures = {"weights": f"shipped {MODEL}" if shipped else f"pcsr_small, {'+'.join(map(str, STEPS))} steps"}
    rows: dict[str, dict[str, float]] = {}
    fractions, shares = [], []
    for name, files in sets.items():
        pairs = CropPairs(files, SCALE, 1, luma=False).pairs
        found = [measure(model, low, high, seed) for low, high in pairs]
        for way in found[0][0]:
            rows.setdefault(way, {})[name] = statistics.mean(f[0][way] for f in found)
        fractions += [f[1] for f in found]
        shares += [f[2] for f in found]
    figures |= {f"psnr_y_db_{way}": by_set for way, by_set in rows.items()}
    figures["macs_fraction"] = max(fractions)
    figures["heavy_share"] = statistics.mean(shares)
    return figures | speed(model, max((low for low, _ in pairs), key=Tensor.numel))


@torch.no_grad()
def measure(model: PCSR, low: Tensor, high: Tensor, seed: int) -> tuple[dict[str, float], float, float]:
    """PSNR of every way on one picture, and the executed fraction of the MACs and the heavy share of the routed one."""
    x, target = low[None].float() / 255, luma(high[None].float() / 255)
    model.budget = BUDGET
    routed, chosen = model.route(x)
    report = model.last_report
    assert report is not None
    model.k = -25
    heavy = model.route(x)[0]
    model.threshold = float("inf")
    light = model.route(x)[0]
    energies = scores(model, x, seed)
    made = {"heavy": heavy, "light": light, "pixels": routed}
    for way in WAYS[1:]:
        mask = (
            largest_patches(energies[way], report.heavy) if way == "patches" else largest(energies[way], report.heavy)
        )
        made[way] = torch.where(mask, heavy, light)
    return {way: quality(y, target) for way, y in made.items()}, report.fraction, float(chosen.float().mean())


def scores(model: PCSR, x: Tensor, seed: int) -> dict[str, Tensor]:
    """(1, 1, H, W) each: what the ways sort by, the largest first."""
    enlarged = luma(F.interpolate(x, scale_factor=SCALE, mode="bilinear"))
    kernel = x.new_tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])[None, None]
    edges = F.conv2d(F.pad(enlarged, (1,) * 4, mode="replicate"), kernel).square()
    return {
        "patches": model.margins(x),
        "laplacian": F.avg_pool2d(edges, 3, 1, 1),
        "random": torch.rand(enlarged.shape, generator=torch.Generator().manual_seed(seed)),
    }


def largest(score: Tensor, count: int) -> Tensor:
    """The ``count`` pixels with the largest score, as a mask."""
    mask = torch.zeros(score.numel(), dtype=torch.bool)
    mask[score.flatten().topk(count).indices] = True
    return mask.view(score.shape)


def largest_patches(score: Tensor, count: int) -> Tensor:
    """Whole patches by their mean score, as many as come nearest to ``count`` pixels; smaller ones at the edges."""
    side = PATCH * SCALE
    h, w = score.shape[-2:]
    rows, columns = -(-h // side), -(-w // side)
    numbers = (torch.arange(h) // side)[:, None] * columns + torch.arange(w) // side  # (H, W): which patch
    areas = torch.bincount(numbers.flatten(), minlength=rows * columns)
    means = torch.bincount(numbers.flatten(), score.flatten().double(), rows * columns) / areas
    order = means.argsort(descending=True)
    sums = areas[order].cumsum(0)
    taken = int((torch.cat([sums.new_zeros(1), sums]) - count).abs().argmin())
    wanted = torch.zeros(rows * columns, dtype=torch.bool)
    wanted[order[:taken]] = True
    return wanted[numbers].view(score.shape)


def quality(rgb: Tensor, target: Tensor) -> float:
    """PSNR of luma in dB by the field's protocol: RGB rounded to 8 bit, ``SCALE`` pixels shaved, luma rounded."""
    y = luma(rgb.clamp(0, 1).mul(255).round().div(255))
    error = (y.mul(255).round() - target.mul(255).round())[..., SCALE:-SCALE, SCALE:-SCALE]
    return float(10 * torch.log10(255**2 / error.square().mean().clamp_min(1e-10)))


def speed(model: PCSR, low: Tensor) -> Figures:
    """Processor seconds a megapixel of input on one thread, all heavy and at half the budget."""
    picture, megapixels = low[None].float() / 255, low[0].numel() / 1e6

    def at(budget: float) -> None:
        model.budget = budget
        model.route(picture)

    with on_threads(1):
        seconds = medians({"heavy": partial(at, 1.0), "half": partial(at, BUDGET)}, 7, time.thread_time)
    return {
        "seconds_a_megapixel_one_thread_heavy": seconds["heavy"] / megapixels,
        "seconds_a_megapixel_one_thread_half": seconds["half"] / megapixels,
        "time_ratio": seconds["heavy"] / seconds["half"],
    }


def brief(data: Data, seed: int) -> PCSR:
    """A small PCSR trained in both phases: encoder and heavy sampler, then light sampler and classifier."""
    model = cast(PCSR, seeded(partial(create, "pcsr_small", weights=None, scale=SCALE), seed)).train()
    crops = CropPairs(data.training(), SCALE, 32, luma=False)
    for phase, steps in enumerate(STEPS):
        rate = (1e-3, 3e-3)[phase]
        optimiser = torch.optim.Adam(model.phase_parameters(phase), lr=rate, betas=(0.9, 0.99), fused=True)
        with bar(f"PCSR, phase {phase}", steps) as advance:
            for step in range(steps):
                for group in optimiser.param_groups:
                    group["lr"] = learning_rate(step, steps, rate, 100, 0.0)
                low, high = crops.batch(16, seed + phase, step)
                model.training_loss(low.contiguous(memory_format=torch.channels_last), high, phase).backward()
                optimiser.step()
                optimiser.zero_grad()
                advance(1)
    return model.eval()


def met(f: Figures) -> bool:
    """Half the cost, 0.10 dB at most below all heavy, and above patch-wise routing, on every set."""
    half, heavy, patches = f["psnr_y_db_pixels"], f["psnr_y_db_heavy"], f["psnr_y_db_patches"]
    return f["macs_fraction"] <= BUDGET + 0.01 and all(
        half[name] >= heavy[name] - 0.10 and half[name] > patches[name] for name in half
    )


def plot(figures: Figures, path: Path) -> None:
    """What each way of choosing loses against all pixels heavy, on every set."""
    import matplotlib.pyplot as plt

    ways = ("light", "random", "patches", "laplacian", "pixels")
    sets = list(figures["psnr_y_db_heavy"])
    picture, axis = plt.subplots(figsize=(1.8 + 1.8 * len(sets), 3.4), layout="constrained")
    for i, way in enumerate(ways):
        losses = [figures[f"psnr_y_db_{way}"][name] - figures["psnr_y_db_heavy"][name] for name in sets]
        axis.bar([j + 0.16 * (i - 2) for j in range(len(sets))], losses, 0.15, label=way)
    axis.axhline(-0.10, color="grey", linewidth=0.8, linestyle="--")
    axis.set_xticks(range(len(sets)), sets)
    axis.set_ylabel("PSNR-Y against all heavy (dB)")
    axis.set_title(
        f"half the MACs, {figures['heavy_share']:.0%} of the pixels heavy ({figures['weights']})", fontsize=9
    )
    axis.legend(fontsize=8)
    picture.savefig(path, dpi=120)
    plt.close(picture)
