"""The network learns by its own recipe, its slow networks come together, and kept kernels change nothing.

CIFAR-10 averaged to 16 x 16, 4,000 training pictures, Kar3, 372 steps; thresholds from a run of an independent program
(42.7 % after 372 steps, slow-neural loss 0.0691 to 0.0106). A plain network of five convolutions with batch norm of as
many parameters learns faster at this scale (50.9 % there); that the operator is better than convolutions is not
claimed, nor tested here. This part needs ``--data`` with ``cifar10/``.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.backbones.hyperzzw import HyperZZW
from saccade.backbones.hyperzzw.network import PENALTY
from saccade.data.cifar10 import read_sheet
from saccade.errors import InputError
from saccade.nn.fuse import fuse
from saccade.progress import bar
from saccade.registry import create
from saccade.reproduce import Claim, Data, Figures
from saccade.reproduce.charts import panels
from saccade.reproduce.training import medians, on_threads, seeded
from saccade.training.kar import Kar
from saccade.training.trainer import learning_rate

CLAIM = Claim(
    system="hyperzzw",
    says="A small network reaches at least 36 % on CIFAR-10 at 16 px in 372 steps of Kar3, while its slow-neural loss "
    "falls at least 3 times; with the input-independent kernels kept, logits are identical and one picture is not "
    "slower.",
    source="sections 3 and 4; learning at small scale",
    baseline="the loss at the first step; the same network that makes its kernels at every call",
)

SMALL: dict[str, Any] = {"widths": (12, 24, 24, 24, 24), "omega": 10.0, "img_size": 16, "num_classes": 10}
STEPS, WARMUP, RATE, BATCH = 372, 60, 6e-4, 64
TRAIN, TEST, SMOOTHING = 4_000, 2_000, 0.1


def run(data: Data, seed: int) -> Figures:
    """One training and a timing; about five minutes on two cores.

    Raises:
        InputError: no ``cifar10/`` among the data.
    """
    folder = None if data.folder is None else data.folder / "cifar10"
    if folder is None or not (folder / "test.webp").is_file():
        raise InputError("this claim needs CIFAR-10: --data FOLDER with cifar10/train_part0.webp and cifar10/test.webp")
    images, labels = (part[:TRAIN] for part in halved(folder / "train_part0.webp"))
    test = tuple(part[:TEST] for part in halved(folder / "test.webp"))
    model = seeded(lambda: create("hyperzzw", weights=None, **SMALL), seed)
    assert isinstance(model, HyperZZW)
    figures = learn(model, images, labels, seed)
    figures |= {"accuracy": accuracy(model, *test), "parameters": sum(p.numel() for p in model.parameters())}
    with torch.inference_mode():
        for i, found in enumerate(model.maps(test[0][:100])):
            figures[f"mean_behind_block_{i}"] = float(found.mean())
        figures["difference_kept"] = float((fuse(model)(test[0][:100]) - model(test[0][:100])).abs().max())
    return figures | speeds() | {"steps": STEPS, "data": f"CIFAR-10 at 16 px, {TRAIN} training pictures"}


def halved(path: Path) -> tuple[Tensor, Tensor]:
    """Pictures of a sheet at half their size (means of 2 x 2), and their classes."""
    images, labels = read_sheet(path)
    return F.avg_pool2d(images, 2), labels


def learn(model: HyperZZW, images: Tensor, labels: Tensor, seed: int) -> Figures:
    """Label-smoothed cross entropy, slow-neural loss and penalty; epochs without repetition, flips, Kar3."""
    chance = torch.Generator().manual_seed(seed)
    optimiser = Kar(model.parameters(), RATE)
    model.train()
    losses, apart, order = list[float](), list[float](), torch.empty(0, dtype=torch.long)
    with torch.random.fork_rng(devices=[]), bar("hyperzzw", STEPS) as advance:
        torch.manual_seed(seed)  # of the dropout
        for step in range(STEPS):
            if len(order) < BATCH:
                order = torch.randperm(len(images), generator=chance)
            chosen, order = order[:BATCH], order[BATCH:]
            x = images[chosen]
            flipped = torch.rand(BATCH, generator=chance) < 0.5
            x[flipped] = x[flipped].flip(-1)
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(step, STEPS, RATE, WARMUP, 0.0)
            logits, slow = model.with_slow_neural_loss(x)
            told = F.cross_entropy(logits, labels[chosen], label_smoothing=SMOOTHING)
            (told + slow + PENALTY * model.penalty()).backward()
            optimiser.step()
            optimiser.zero_grad()
            losses.append(float(told.detach()))
            apart.append(float(slow.detach()))
            advance(1)
    last = losses[-20:]
    return {
        "loss_first": losses[0],
        "loss_last": sum(last) / len(last),
        "slow_neural_loss_first": apart[0],
        "slow_neural_loss_last": apart[-1],
    }


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Percent, in batches of 100 whose statistics are used; leaves the model in evaluation mode."""
    model.eval()
    pairs = zip(images.split(100), labels.split(100), strict=True)
    return 100 * sum(int((model(x).argmax(1) == y).sum()) for x, y in pairs) / len(labels)


def speeds() -> Figures:
    """Milliseconds of the full CIFAR network on one picture, one thread, kernels kept and made anew."""
    model = create("hyperzzw_cifar", weights=None, num_classes=10)
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    kept = fuse(model)
    with on_threads(1), torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # one picture alone, on purpose
        seconds = medians({"kept": lambda: kept(x), "made_anew": lambda: model(x)}, 15)
    return {f"ms_{name}": 1000 * value for name, value in seconds.items()} | {"threads": 1}


def met(f: Figures) -> bool:
    """The four inequalities of the claim."""
    return bool(
        f["accuracy"] >= 36
        and f["slow_neural_loss_first"] >= 3 * f["slow_neural_loss_last"]
        and f["difference_kept"] == 0
        and f["ms_kept"] <= f["ms_made_anew"]
    )


def plot(figures: Figures, path: Path) -> None:
    """Both losses, and the times."""
    units = {"slow_neural_loss_": "slow-neural loss", "mean_behind_": "mean", "ms_": "ms, one picture"}
    panels(figures, path, units, (9, 2.4))
