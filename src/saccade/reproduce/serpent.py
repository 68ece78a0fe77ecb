"""Serpent: a scan that cannot overflow, time linear in the pixels, a picture-wide view, and blur and noise taken away.

The paper's tables are for networks trained for days on faces; what can be re-run in minutes is the operator, the
growth of its cost, its reach, and that a small network restores. Nothing is claimed against a convolutional network of
the same size and shape (the twin); it stands beside, at equal steps and at equal time.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.cost import cost, count_parameters
from saccade.data.crops import Crops
from saccade.data.degrade.kernels import gaussian_blur
from saccade.data.pairs import read_resized
from saccade.ops.selective_scan import selective_scan
from saccade.progress import bar
from saccade.reproduce import Claim, Data, Figures
from saccade.reproduce.training import medians, on_threads, seeded
from saccade.restoration.serpent import Serpent, SerpentBlock
from saccade.training.trainer import learning_rate

CLAIM = Claim(
    system="serpent",
    says="The chunked scan stays within 2e-7 (relative, of the loop in float64) where step sizes are far too large; "
    "the time of a block grows with pixels to the power of 1.0 +- 0.1; every output depends on every input; "
    "serpent_tiny gains at least 0.7 dB on blurred, noisy photographs.",
    source="abstract; sections 3 and 4",
    baseline="the loop over time; softmax attention over all pixels; the same U-Net with convolutions for scans",
)

SIGMA, NOISE = 1.6, 5 / 255
STEPS = 300
BATCH, PATCH = 4, 32
RATE, WARMUP = 1e-3, 10
SIDES = (128, 192, 256, 384, 512)  # below, a fixed cost of some milliseconds bends the curve down (64 to 256 px: 0.8)
ATTENDED = (48, 64, 96)
EPSILON2 = 1e-6  # Charbonnier


class Twin(nn.Module):
    """What stands in for the scans in the twin: conv 3x3, GELU, conv 3x3 on (B, H, W, C)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(F.gelu(self.first(x.permute(0, 3, 1, 2))))
        return y.permute(0, 2, 3, 1)


class Attention(nn.Module):
    """Softmax attention of every pixel with every other, one head, on (B, H, W, C): what grows with their square."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).flatten(1, 2).chunk(3, -1)
        y: Tensor = self.out(F.scaled_dot_product_attention(q, k, v))
        return y.view_as(x)


def tiny(scales: Sequence[int] = (1, 2, 4)) -> Serpent:
    """serpent_tiny, at other scales where asked."""
    return Serpent(24, (1, 1, 1, 2), 8, 1.0, scales)


def twin() -> Serpent:
    """serpent_tiny with two convolutions for the scans of each block: 1,099,875 parameters."""
    model = tiny((1,))
    for block in model.modules():
        if isinstance(block, SerpentBlock):
            block.ssm[0] = Twin(block.width)
    model.multiple = tiny().multiple
    return model


def blurred(clean: Tensor, chance: np.random.Generator) -> Tensor:
    """Gaussian blur of 1.6 pixels, then noise of 5/255."""
    noise = torch.from_numpy(chance.standard_normal(clean.shape, np.float32))
    return gaussian_blur(clean, SIGMA) + NOISE * noise


def held_out(file: Path, seed: int) -> tuple[Tensor, Tensor]:
    """Rows and columns 128 to 383 of a picture, or its first 256 where it is smaller: degraded and clean."""
    whole = read_resized(file)
    top, left = (128 if side >= 384 else 0 for side in whole.shape[1:])
    clean = whole[None, :, top : top + 256, left : left + 256].float().div(255)
    return blurred(clean, np.random.default_rng((seed, 0))), clean


def run(data: Data, seed: int) -> Figures:
    """Train four networks for 300 steps and more; about ten minutes on one thread, which it keeps to."""
    with on_threads(1):
        figures = stability(seed) | growth(seed) | reach(seed)
        return figures | restoring(data, seed)


# -- the operator


def stability(seed: int) -> Figures:
    """Relative error against the loop in float64, with step sizes of softplus(4 +- 2) and rates down to -16.

    Beside it, how many outputs the usual closed form exp(S_t) * cumsum(exp(-S_s) x_s) makes NaN, in chunks of 8.
    """
    chance = torch.Generator().manual_seed(seed)
    shape, groups, states, length = (1, 96, 128), 4, 16, 128
    u, delta = (torch.randn(shape, generator=chance) for _ in range(2))
    delta = F.softplus(4 + 2 * delta)
    A = -torch.arange(1.0, states + 1).repeat(shape[1], 1)
    B, C = (torch.randn(1, groups, states, length, generator=chance) for _ in range(2))
    truth = selective_scan(*(x.double() for x in (u, delta, A, B, C)), path="naive")
    found = selective_scan(u, delta, A, B, C, path="chunked").double()
    return {
        "hostile_steps_relative_error": float((found - truth).abs().max() / truth.abs().max()),
        "hostile_steps_nan_outputs": int(found.isnan().sum()),
        "hostile_steps_nan_outputs_cumsum_form": int(cumsum_form(u, delta, A, B, C).isnan().sum()),
        "hostile_steps_outputs": found.numel(),
    }


def cumsum_form(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk: int = 8) -> Tensor:
    """The scan as a ratio of exponentials within chunks: short to write, and not safe at any length of chunk."""
    each = u.shape[1] // B.shape[1]
    x = (delta * u)[:, :, None] * B.repeat_interleave(each, 1)  # (B, D, N, L)
    h, outputs = torch.zeros_like(x[..., 0]), []
    for first in range(0, u.shape[2], chunk):
        now = slice(first, first + chunk)
        total = (delta[:, :, None, now] * A[..., None]).cumsum(-1)
        states = total.exp() * (h[..., None] + (x[..., now] * torch.exp(-total)).cumsum(-1))
        h = states[..., -1]
        outputs.append((states * C.repeat_interleave(each, 1)[..., now]).sum(2))
    return torch.cat(outputs, -1)


def slope(pixels: Sequence[int], seconds: Sequence[float]) -> float:
    """Exponent of time in pixels: the line through their logarithms."""
    fitted = np.polyfit(np.log(pixels), np.log(seconds), 1)
    return float(fitted[0])


def growth(seed: int) -> Figures:
    """Processor seconds of a block of serpent_tiny forward, and forward and backward, and of attention, by size."""
    block = seeded(lambda: SerpentBlock(24, 8, 1.0, (1, 2, 4)), seed)
    attention = seeded(lambda: Attention(24), seed)

    def forward(layer: nn.Module, side: int) -> Callable[[], object]:
        x = torch.randn(1, side, side, 24, generator=torch.Generator().manual_seed(side))
        return lambda: torch.inference_mode()(layer)(x)

    def both(side: int) -> Callable[[], object]:
        x = torch.randn(1, side, side, 24, generator=torch.Generator().manual_seed(side)).requires_grad_()
        return lambda: block(x).sum().backward()

    calls = {f"forward {s}": forward(block, s) for s in SIDES} | {f"both {s}": both(s) for s in SIDES}
    calls |= {f"attention {s}": forward(attention, s) for s in ATTENDED}
    taken = medians(calls, 3, time.thread_time)
    figures: Figures = {"block_sides": list(SIDES), "attention_sides": list(ATTENDED)}
    for kind, sides in (("forward", SIDES), ("both", SIDES), ("attention", ATTENDED)):
        seconds = [taken[f"{kind} {s}"] for s in sides]
        figures[f"seconds_{kind}"] = seconds
        figures[f"exponent_{kind}"] = slope([s * s for s in sides], seconds)
    return figures


def reach(seed: int) -> Figures:
    """Gradient of one corner's output for the opposite corner's input, 64 px; the head is drawn, not zero."""
    model = seeded(tiny, seed)
    assert isinstance(model, Serpent)
    with torch.no_grad():
        nn.init.normal_(model.head.weight, 0, 0.1, torch.Generator().manual_seed(seed))
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(seed + 1)).requires_grad_()
    (gradient,) = torch.autograd.grad(model(x)[..., 0, 0].sum(), x)
    return {
        "gradient_opposite_corner": float(gradient[0, :, -1, -1].abs().max()),
        "gradient_own_pixel": float(gradient[0, :, 0, 0].abs().max()),
    }


# -- restoring


def restoring(data: Data, seed: int) -> Figures:
    """PSNR after equal steps of serpent_tiny, of its scale 1 alone and of the twin, and of the twin in equal time."""
    crops = Crops(data.training(), PATCH, blurred)
    files = [file for set_files in data.tests("kodak").values() for file in set_files]
    tests = [held_out(file, i) for i, file in enumerate(files[::2] if len(files) > 6 else files)]
    figures: Figures = {"steps": STEPS, "pictures": len(tests), "psnr_db_input": psnr(None, tests)}
    model, seconds = train(seeded(tiny, seed), crops, STEPS, seed, "serpent_tiny")
    beside, short = train(seeded(twin, seed), crops, STEPS, seed, "twin")
    steps = max(STEPS, round(STEPS * seconds / short))
    longer, long = train(seeded(twin, seed), crops, steps, seed, "twin, as long")
    single, alone = train(seeded(lambda: tiny((1,)), seed), crops, STEPS, seed, "scale 1 alone")
    trained = {"serpent": model, "twin": beside, "twin_equal_time": longer, "scale_1": single}
    for (name, network), taken in zip(trained.items(), (seconds, short, long, alone), strict=True):
        figures[f"psnr_db_{name}"] = psnr(network, tests)
        figures[f"seconds_{name}"] = taken
        counted = cost(network, torch.empty(1, 3, 256, 256, device="meta"))
        figures[f"parameters_{name}"], figures[f"gmacs_256_{name}"] = count_parameters(network), counted.macs / 1e9
    figures["steps_twin_equal_time"] = steps
    figures["gain_db"] = figures["psnr_db_serpent"] - figures["psnr_db_input"]
    figures["gain_over_twin_db_equal_steps"] = figures["psnr_db_serpent"] - figures["psnr_db_twin"]
    figures["gain_over_twin_db_equal_time"] = figures["psnr_db_serpent"] - figures["psnr_db_twin_equal_time"]
    figures["gain_over_scale_1_db"] = figures["psnr_db_serpent"] - figures["psnr_db_scale_1"]
    return figures


def train(model: nn.Module, crops: Crops, steps: int, seed: int, what: str) -> tuple[nn.Module, float]:
    """By AdamW, half a cosine and Charbonnier's loss; returns the model, evaluating, and its processor seconds."""
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE)
    began = time.thread_time()
    with bar(what, steps) as advance:
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(step, steps, RATE, WARMUP, 0.0)
            given, clean = crops.batch(BATCH, seed, step)
            ((model(given) - clean).square() + EPSILON2).sqrt().mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
            advance(1)
    return model.eval(), time.thread_time() - began


@torch.inference_mode()
def psnr(model: nn.Module | None, tests: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Mean over pictures, RGB, dB; of the given pictures themselves where there is no model."""

    def of(given: Tensor, clean: Tensor) -> float:
        made = given if model is None else model(given)
        return -10 * math.log10(float(F.mse_loss(made.clamp(0, 1), clean)))

    return statistics.mean(of(*pair) for pair in tests)


def met(f: Figures) -> bool:
    """Safe, linear, global, and 0.7 dB."""
    return (
        f["hostile_steps_nan_outputs"] == 0
        and f["hostile_steps_relative_error"] <= 2e-7
        and abs(f["exponent_forward"] - 1) <= 0.1
        and abs(f["exponent_both"] - 1) <= 0.1
        and f["gradient_opposite_corner"] > 0
        and f["gain_db"] >= 0.7
    )


def plot(figures: Figures, path: Path) -> None:
    """Time against pixels, and quality against training time."""
    import matplotlib.pyplot as plt

    picture, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    kinds = (("forward", "block_sides"), ("both", "block_sides"), ("attention", "attention_sides"))
    words = {"forward": "Serpent block", "both": "and backward", "attention": "attention over all pixels"}
    for kind, sides in kinds:
        label = f"{words[kind]}, exponent {figures[f'exponent_{kind}']:.2f}"
        left.loglog([s * s for s in figures[sides]], figures[f"seconds_{kind}"], "o-", label=label)
    left.set(xlabel="pixels", ylabel="processor seconds, one thread")
    left.legend(loc="lower right")
    names = {"serpent": "serpent_tiny", "scale_1": "scale 1 alone", "twin": "twin", "twin_equal_time": "twin, as long"}
    for i, (name, label) in enumerate(names.items()):
        right.plot(figures[f"seconds_{name}"], figures[f"psnr_db_{name}"], "o", color=f"C{i}", label=label)
    right.axhline(figures["psnr_db_input"], color="0.6", label="input")
    right.set(xlabel="processor seconds of training", ylabel="PSNR (dB)", xlim=(0, None))
    right.legend(loc="center left")
    picture.savefig(path, dpi=120)
    plt.close(picture)
