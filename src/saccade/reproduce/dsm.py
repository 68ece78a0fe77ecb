"""What the abstract says of DSM, held on our reconstruction: it adapts to the picture, keeps high frequencies, is fast.

Adaptivity: pictures are a + b + tag, a smooth, b fine, and the tag tells which of them is wanted; a static spectrum
cannot choose. High frequencies and the dial: DSM-nano on CIFAR-10 (10,000 training pictures, 250 steps) beside a
PoolFormer of as many linear MACs; this part needs ``--data`` with ``cifar10/``. Speed: the transform's forms on 64
channels, one thread, in processor time. The thresholds are those measured with an independent program. The paper's
accuracies are not claimed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.backbones.dsm import DSM, Block
from saccade.data.cifar10 import read_sheet
from saccade.ops.dct import dct2, idct2
from saccade.progress import bar
from saccade.registry import create
from saccade.reproduce import Claim, Data, Figures
from saccade.reproduce.training import medians, on_threads, seeded

CLAIM = Claim(
    system="dsm",
    says="(A reconstruction.) Weights made from the picture explain at least 93 % of the variance where static ones "
    "stay below 65 %; DSM-nano reaches at least 32 % on CIFAR-10 in 250 steps, no less than a PoolFormer of as many "
    "linear MACs, whose last block keeps less of the high frequencies (by at least 1 in ln); half the spectrum costs "
    "at most 3 points; the matrix form of the transform is the faster one up to 56 a side, the Fourier form is "
    "log-linear.",
    source="abstract; learning at small scale",
    baseline="static spectra; PoolFormer; the other form of the transform",
)

STEPS, CIFAR_STEPS, TEST = 400, 250, 2_000
SIDES = (7, 14, 28, 56, 112)
RESIZED = (24, 40, 48, 64)  # px that the networks, trained at 32, are tried at
Batch = Callable[[torch.Generator], tuple[Tensor, Tensor]]
Loss = Callable[[Tensor, Tensor], Tensor]


def run(data: Data, seed: int) -> Figures:
    """Toy, transform and CIFAR-10; about six minutes on two cores."""
    figures = speeds()
    for name, dynamic in (("dynamic", True), ("static", False)):
        figures[f"explained_{name}"] = explained(dynamic, seed)
    sheets = None if data.folder is None else data.folder / "cifar10"
    if sheets is not None and (sheets / "test.webp").is_file():
        figures |= on_cifar(sheets, seed)
    learnt_on = "generated fields" + ", CIFAR-10" * ("accuracy_dsm" in figures)
    return figures | {"steps": STEPS, "threads": 1, "data": learnt_on}


def trained(
    model: nn.Module, batch: Batch, loss: Loss, steps: int, rate: float, decay: float, warmup: int, seed: int, what: str
) -> nn.Module:
    """AdamW on a warmed-up cosine, gradients clipped at 1; in evaluation mode."""
    chance = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), rate, weight_decay=decay, fused=True)
    model.train()
    with bar(what, steps) as advance:
        for step in range(steps):
            now = rate * min(1, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / steps))
            for group in optimiser.param_groups:
                group["lr"] = now
            x, wanted = batch(chance)
            loss(model(x), wanted).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
            advance(1)
    return model.eval()


# Adaptivity


def tagged(count: int, chance: torch.Generator) -> tuple[Tensor, Tensor]:
    """x = a + b + tag and what the tag asks for, both (count, 16, 16, 1)."""
    low, high = torch.zeros(2, count, 16, 16)
    low[:, :3, :3] = torch.randn(count, 3, 3, generator=chance) * 16 / 3
    high[:, 8:, 8:] = torch.randn(count, 8, 8, generator=chance) * 2
    a, b = idct2(low), idct2(high)
    smooth = torch.rand(count, generator=chance) < 0.5
    f = torch.randint(4, 7, (count,), generator=chance)
    wave = torch.cos(math.pi * f[:, None] * (torch.arange(16) + 0.5) / 16)
    tag = torch.where(smooth[:, None, None], wave[:, :, None], wave[:, None, :])
    return (a + b + tag)[..., None], torch.where(smooth[:, None, None], a, b)[..., None]


def explained(dynamic: bool, seed: int) -> float:
    """Share of the variance of what was asked for that one block explains after a short training."""

    def make() -> nn.Module:
        model = nn.Sequential(nn.Linear(1, 16), Block(16, (16, 16), dynamic=dynamic), nn.Linear(16, 1))
        for m in model.modules():
            if isinstance(m, nn.Linear):
                nn.init.trunc_normal_(m.weight, std=m.in_features**-0.5)
                nn.init.zeros_(m.bias)
        return model

    what = "dynamic weights" if dynamic else "static weights"
    model = trained(seeded(make, seed), lambda g: tagged(32, g), F.mse_loss, STEPS, 5e-3, 0.0, 30, seed, what)
    x, wanted = tagged(256, torch.Generator().manual_seed(seed + 1000))
    with torch.inference_mode():
        return 1 - float(F.mse_loss(model(x), wanted) / wanted.var(correction=0))


# CIFAR-10


class Pool(nn.Module):
    """PoolFormer's mixer: the mean of 3 x 3 neighbours less the token itself, (B, H, W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.avg_pool2d(x.permute(0, 3, 1, 2), 3, 1, 1, count_include_pad=False)
        return pooled.permute(0, 2, 3, 1) - x


class GlobalFilter(nn.Module):
    """GFNet's mixer, (B, H, W, C) -> the same: a learnt complex number for every frequency of every channel.

    Rao et al., "Global Filter Networks for Image Classification", NeurIPS 2021, arXiv:2107.00645. For other grids the
    filter is resized as it lies, bilinearly with its corners kept.
    """

    def __init__(self, width: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.filter = nn.Parameter(0.02 * torch.randn(2 * width, grid[0], grid[1] // 2 + 1))

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        own: Tensor = self.filter
        if own.shape[1:] != (height, width // 2 + 1):
            own = F.interpolate(own[None], (height, width // 2 + 1), mode="bilinear", align_corners=True)[0]
        gains = torch.complex(*own.permute(1, 2, 0).chunk(2, -1))
        spectrum = torch.fft.rfft2(x, dim=(1, 2), norm="ortho")
        return torch.fft.irfft2(spectrum * gains, s=(height, width), dim=(1, 2), norm="ortho")


def shell(mixer: Callable[[Block], nn.Module]) -> nn.Module:
    """DSM-nano with other mixers and one block more a stage: as many linear MACs."""
    model = create("dsm_nano", weights=None, depths=(3, 3))
    for module in list(model.modules()):
        if isinstance(module, Block):
            module.add_module("mixer", mixer(module))
    return model


def poolformer() -> nn.Module:
    """The shell with pooling."""
    return shell(lambda _: Pool())


def gfnet() -> nn.Module:
    """The shell with global filters of each stage's grid."""
    return shell(lambda block: GlobalFilter(block.mixer.p1.in_features, block.mixer.grid))


def on_cifar(folder: Path, seed: int) -> Figures:
    """Accuracies, high frequencies behind the blocks, and the dial."""
    pictures, classes = read_sheet(folder / "train_part0.webp")
    test = tuple(part[:TEST] for part in read_sheet(folder / "test.webp"))

    def batch(chance: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(pictures), (64,), generator=chance)
        x = pictures[chosen]
        flipped = torch.rand(64, generator=chance) < 0.5
        x[flipped] = x[flipped].flip(-1)
        return x, classes[chosen]

    figures: dict[str, Any] = {"cifar10_steps": CIFAR_STEPS, "cifar10_training_pictures": len(pictures)}
    makers = {"dsm": lambda: create("dsm_nano", weights=None), "poolformer": poolformer, "gfnet": gfnet}
    for name, make in makers.items():
        start = seeded(make, seed)
        model = trained(start, batch, F.cross_entropy, CIFAR_STEPS, 2e-3, 0.05, 50, seed, name)
        figures[f"accuracy_{name}"] = accuracy(model, *test)
        figures[f"high_{name}"] = high_frequencies(model, test[0][:200])
        figures[f"parameters_{name}"] = sum(p.numel() for p in model.parameters())
        if name != "poolformer":
            figures |= {f"accuracy_{name}_{side}px": accuracy(model, at(side, test[0]), test[1]) for side in RESIZED}
        if isinstance(model, DSM) and name == "dsm":
            for keep in model.budgets():
                model.budget = keep
                figures[f"accuracy_keep_{keep:g}"] = accuracy(model, *test)
    return figures


def at(side: int, pictures: Tensor) -> Tensor:
    """The same pictures at another size, bilinearly without aliases."""
    return F.interpolate(pictures, (side, side), mode="bilinear", antialias=True, align_corners=False)


@torch.inference_mode()
def accuracy(model: nn.Module, pictures: Tensor, classes: Tensor) -> float:
    """Percent that the model names."""
    right = [model(x).argmax(1) == y for x, y in zip(pictures.split(250), classes.split(250), strict=True)]
    return 100 * float(torch.cat(right).float().mean())


@torch.inference_mode()
def high_frequencies(model: nn.Module, pictures: Tensor) -> list[float]:
    """Behind each block: ln of the mean amplitude from a quarter of a cycle a token on, less ln of that of the mean."""
    found: list[float] = []

    def look(_: nn.Module, __: Any, out: Tensor) -> None:
        amplitude = torch.fft.fft2(out, dim=(1, 2)).abs().mean((0, 3))
        f = torch.fft.fftfreq(out.shape[1]).abs()
        high = torch.maximum(f[:, None], f[None]) >= 0.25
        found.append(math.log(float(amplitude[high].mean())) - math.log(float(amplitude[0, 0])))

    hooks = [m.register_forward_hook(look) for m in model.modules() if isinstance(m, Block)]
    model(pictures)
    for hook in hooks:
        hook.remove()
    return found


# The transform


def speeds() -> Figures:
    """Milliseconds of processor time of each form on 64 channels; the Fourier form's exponent in tokens, 28 to 112."""
    calls: dict[str, Callable[[], object]] = {}
    for side in SIDES:
        x = torch.randn(1, 64, side, side, generator=torch.Generator().manual_seed(side))
        for form in ("matrix", "fourier"):
            calls[f"{form}_{side}"] = torch.inference_mode()(lambda x=x, form=form: dct2(x, form=form))
    with on_threads(1):
        seconds = medians(calls, 41, time.thread_time)
    exponent = math.log(seconds["fourier_112"] / seconds["fourier_28"]) / math.log(16)
    return {f"ms_{name}": 1e3 * s for name, s in seconds.items()} | {"exponent_fourier": exponent}


def met(f: Figures) -> bool:
    """The inequalities of the claim; those on CIFAR-10 where it was there."""
    held = f["explained_dynamic"] >= 0.93 and f["explained_static"] <= 0.65 and f["exponent_fourier"] <= 1.2
    held = held and all(f[f"ms_matrix_{side}"] <= f[f"ms_fourier_{side}"] for side in SIDES if side <= 56)
    if "accuracy_dsm" not in f:
        return bool(held)
    dial = [f[f"accuracy_keep_{keep}"] for keep in ("0.1", "0.25", "0.5", "0.75", "1")]
    monotone = all(more >= less - 1 for i, less in enumerate(dial) for more in dial[i + 1 :])
    better = f["accuracy_dsm"] >= max(32, f["accuracy_poolformer"])
    return bool(held and better and monotone and dial[-1] - dial[2] <= 3 and _margin(f) >= 1)


def _margin(f: Figures) -> float:
    """How much more of the high frequencies is there behind DSM's last block than behind PoolFormer's, in ln."""
    return float(f["high_dsm"][-1] - f["high_poolformer"][-1])


def plot(figures: Figures, path: Path) -> None:
    """Variance explained, the dial, and the transform's two forms."""
    import matplotlib.pyplot as plt

    picture, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 2.8), layout="constrained")
    left.barh(["dynamic", "static"], [100 * figures["explained_dynamic"], 100 * figures["explained_static"]])
    left.set_xlabel("variance explained, %")
    keeps = [k.removeprefix("accuracy_keep_") for k in figures if k.startswith("accuracy_keep_")]
    middle.plot([float(k) for k in keeps], [figures[f"accuracy_keep_{k}"] for k in keeps], marker="o")
    middle.set_xlabel("budget")
    middle.set_ylabel("CIFAR-10, %")
    for form in ("matrix", "fourier"):
        right.loglog(SIDES, [figures[f"ms_{form}_{side}"] for side in SIDES], marker="o", label=form)
    right.set_xlabel("side, tokens")
    right.set_ylabel("ms, 64 channels")
    right.legend()
    picture.savefig(path, dpi=120)
    plt.close(picture)
