"""Training of classifiers: any backbone, pictures with classes, the modern recipe or those of two papers.

    picture -- crop, flip, RandAugment, erasing -- mixed with another (mixup or cutmix) -- network -- soft cross entropy

A network may define ``with_auxiliary_loss(pictures)``: its logits, and a loss of its own that is added.

The course of a run, its checkpoint and its devices are the trainer's. Pictures are decoded and augmented in worker
processes; what each of them becomes depends on (seed, step, rank, place) alone.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from saccade import registry
from saccade.data.labelled import Labelled, labelled
from saccade.errors import InputError, UsageError
from saccade.training import trainer

__all__ = ["RECIPES", "Mixed", "Options", "prepared_batches", "top1", "train"]

_PLAIN = {"operations": 0, "erasing": 0.0, "mixup": 0.0, "cutmix": 0.0}
#: what a recipe changes of `Options`; the user's own values win. Rates are for batches of 64: scale them with yours
RECIPES: dict[str, dict[str, Any]] = {
    "modern": {},
    "plain": {**_PLAIN, "smoothing": 0.0},  # for small sets and for comparisons
    # Bello et al., arXiv:2103.07579, section 4: SGD at 0.1 per 256 pictures, no mixing, small decay, long average of
    # weights and of the norms' statistics, which are those of the last batch alone
    "resnet_rs": {
        **_PLAIN,
        "optimiser": "sgd",
        "rate": 0.025,
        "weight_decay": 4e-5,
        "ema": 0.9999,
        "operations": 2,
        "magnitude": 10,
        "drop": 0.25,
        "norm_momentum": 1.0,
    },
    # Dollar et al., arXiv:2103.06877: SGD at 0.1 per 128 pictures, half a cosine, nothing else
    "fast_scaling": {
        **_PLAIN,
        "optimiser": "sgd",
        "rate": 0.05,
        "weight_decay": 5e-5,
        "ema": 0.0,
        "smoothing": 0.0,
    },
    # Zhang, arXiv:2401.17948: Kar3 without decay, smoothed labels; the network brings two losses of its own
    "hyperzzw": {**_PLAIN, "optimiser": "kar", "rate": 1.215e-3, "weight_decay": 0.0, "ema": 0.0},
}


@dataclass
class Options(trainer.Options):
    """What a run is.

    Args:
        data, validate: what `data.labelled` reads; without ``validate`` every 16th picture is held out.
        patch: side of the pictures, pixels.
        operations, magnitude: of RandAugment (0 operations: none; magnitudes from 0 to 30).
        erasing: probability of erasing a rectangle.
        mixup, cutmix: parameters of their Beta distributions; 0 for none, with both one is drawn at each step.
        smoothing: of the labels.
        drop, drop_path: dropout before the classifier, stochastic depth.
        norm_momentum: share of the present batch in the batch norms' statistics; 0 leaves the network's own.
        workers: processes that decode; 0 decodes in the training process.
    """

    TASK: ClassVar[str] = "classification"
    FIGURE: ClassVar[str] = "top1_percent"
    SPELT: ClassVar[Mapping[str, str]] = {"patch": "size"}
    FORWARDS: ClassVar[tuple[str, ...]] = ("with_auxiliary_loss",)

    patch: int = 224
    batch: int = 64
    steps: int = 20_000
    validate_every: int = 1_000
    optimiser: str = "adamw"
    weight_decay: float = 0.05
    operations: int = 2
    magnitude: int = 9
    erasing: float = 0.25
    mixup: float = 0.8
    cutmix: float = 1.0
    smoothing: float = 0.1
    drop: float = 0.0
    drop_path: float = 0.0
    norm_momentum: float = 0.0
    workers: int = 2

    @classmethod
    def of_recipe(cls, recipe: str, **given: Any) -> Options:
        """A recipe with the user's own values; what is None is the network's own (its size), or the recipe's.

        A network's registration may hold what a recipe changes for it alone (``recipes={name: {...}}``), as the
        larger ResNet-RS take stronger augmentation.

        Raises:
            UsageError: no such recipe or network.
        """
        if recipe not in RECIPES:
            raise UsageError(f"no recipe named {recipe!r}; there are {', '.join(RECIPES)}")
        facts = registry.entry(given["model"]).facts
        own = {"patch": facts["size"]} if "size" in facts else {}
        own |= facts.get("recipes", {}).get(recipe, {})
        return cls(**{**RECIPES[recipe], **own, **{k: v for k, v in given.items() if v is not None}})

    def check_values(self) -> None:
        super().check_values()
        for name in ("erasing", "smoothing", "drop", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} must lie in [0, 1), not {getattr(self, name)}")
        for name in ("mixup", "cutmix"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise UsageError(f"--{name} must not be negative, not {getattr(self, name)}")
        if self.warmup > self.steps and self.warmup != type(self).warmup:  # the default one may be cut short in trials
            raise UsageError(f"--warmup {self.warmup} does not end within --steps {self.steps}")
        if not 0 <= self.norm_momentum <= 1:
            raise UsageError(f"norm_momentum lies in [0, 1], not {self.norm_momentum}")
        if not 0 <= self.magnitude <= 30 or self.operations < 0 or self.workers < 0:
            raise UsageError("--magnitude lies between 0 and 30, --operations and --workers are not negative")

    def split(self) -> tuple[Sequence[Any], Sequence[Any]]:
        """(set, number) of each picture for training, and of those that are held out."""
        training = _read(self.data)
        numbers = [(training, i) for i in range(len(training.labels))]
        if self.validate is None:
            held = numbers[::16]
            return [pair for i, pair in enumerate(numbers) if i % 16] or numbers, held
        held_out = _read(self.validate)
        if held_out.classes != training.classes:
            other = sorted(set(held_out.classes) ^ set(training.classes))
            raise InputError(f"{self.validate} has other classes than {self.data}: {', '.join(other[:3])}")
        return numbers, [(held_out, i) for i in range(len(held_out.labels))]

    def created(self) -> dict[str, Any]:
        dropped = {"drop_rate": self.drop, "drop_path_rate": self.drop_path}
        side = registry.entry(self.model).facts.get("side_option")  # of networks that are built for one size
        own = {side: self.patch} if side else {}
        return {"num_classes": len(_read(self.data).classes)} | own | {k: v for k, v in dropped.items() if v}

    def prepare(self, model: nn.Module) -> None:
        for module in model.modules() if self.norm_momentum else ():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = self.norm_momentum

    def examples(self, pictures: Sequence[Any], model: nn.Module) -> Mixed:
        return Mixed(pictures, self, model)

    def measurer(self, pictures: Sequence[Any], model: nn.Module) -> Callable[[nn.Module], float]:
        loader = DataLoader(_Prepared(pictures, self.patch, model), batch_size=64, num_workers=self.workers)
        return lambda final: top1(final, loader)

    def loss_function(self, model: Any) -> Callable[[Tensor, Tensor], Tensor]:
        own = getattr(model, "with_auxiliary_loss", None)

        def loss(pictures: Tensor, wanted: Tensor) -> Tensor:
            out, more = (model(pictures), None) if own is None else own(pictures)
            logits = out if isinstance(out, tuple | list) else (out,)  # networks with a second classifier give a pair
            found = torch.stack([F.cross_entropy(one, wanted) for one in logits]).mean()
            return found if more is None else found + more

        return loss

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Vectors (gains, offsets, norms) and what the network names are not decayed."""
        told: Any = getattr(model, "no_weight_decay", set)
        spared = told()
        decayed: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for name, p in model.named_parameters():
            if p.requires_grad:
                decayed[p.dim() > 1 and name not in spared].append(p)
        return [{"params": decayed[True]}, {"params": decayed[False], "weight_decay": 0.0}]

    def clipped(self, model: Any) -> list[nn.Parameter]:
        """All but the last layer, which Brock et al. leave as it is."""
        spared = {id(p) for p in model.get_classifier().parameters()}
        return [p for p in super().clipped(model) if id(p) not in spared]

    def metadata(self) -> dict[str, str]:
        """The names of the classes."""
        return {"classes": json.dumps(_read(self.data).classes)}


@functools.lru_cache(maxsize=4)
def _read(place: str) -> Labelled:
    return labelled(place)


def _normalise(model: nn.Module) -> Any:
    from torchvision.transforms import v2

    mean, std = getattr(model, "mean", (0.5,) * 3), getattr(model, "std", (0.5,) * 3)
    return v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))])


class _Prepared(Dataset[Any]):
    """Held-out pictures: the shorter side to size / 0.9, the middle of it, standardised; and labels."""

    def __init__(self, pictures: Sequence[tuple[Labelled, int]], side: int, model: nn.Module) -> None:
        from torchvision.transforms import v2

        self.pictures, self.side = pictures, side
        resize = v2.Resize(round(side / 0.9), interpolation=v2.InterpolationMode.BICUBIC, antialias=True)
        self.transform = v2.Compose([resize, v2.CenterCrop(side), _normalise(model)])

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        source, number = self.pictures[i]
        return self.transform(source.read(number, 2 * self.side)), source.labels[number]


def prepared_batches(
    pictures: Sequence[tuple[Labelled, int]], side: int, model: nn.Module, size: int = 64
) -> list[tuple[Tensor, Tensor]]:
    """Pictures as networks are measured on them, (size, 3, side, side) standardised, with labels; kept in memory."""
    return list(DataLoader(_Prepared(pictures, side, model), batch_size=size))


class _Augmented(Dataset[Any]):
    """Pictures for training by (number, seed): what chance does to one is decided by its seed."""

    def __init__(self, pictures: Sequence[tuple[Labelled, int]], options: Options, model: nn.Module) -> None:
        from torchvision.transforms import v2

        self.pictures, self.side = pictures, options.patch
        steps: list[Any] = [
            v2.RandomResizedCrop(options.patch, interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
            v2.RandomHorizontalFlip(),
        ]
        if options.operations:
            steps.append(v2.RandAugment(options.operations, options.magnitude))
        steps.append(_normalise(model))
        if options.erasing:
            steps.append(v2.RandomErasing(options.erasing))
        self.transform = v2.Compose(steps)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, asked: tuple[int, int]) -> tuple[Tensor, int]:
        i, seed = asked
        source, number = self.pictures[i]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.transform(source.read(number, 2 * self.side)), source.labels[number]


class Mixed:
    """Batches of augmented pictures, mixed in pairs, with soft labels.

    Each rank goes through all pictures in an order of its own that is drawn anew for each pass.
    """

    def __init__(self, pictures: Sequence[tuple[Labelled, int]], options: Options, model: nn.Module) -> None:
        self.data, self.options = _Augmented(pictures, options, model), options
        self.classes = len(pictures[0][0].classes)
        self._coming: Iterator[Any] | None = None
        self._next: tuple[int, int, int, int] | None = None

    def batch(self, size: int, seed: int, step: int, rank: int = 0) -> tuple[Tensor, Tensor]:
        """Pictures (size, 3, side, side), standardised, and probabilities of the classes (size, classes)."""
        if self._coming is None or self._next != (size, seed, step, rank):
            order = self._order(size, seed, step, rank)
            workers = self.options.workers
            loader = DataLoader(self.data, batch_sampler=order, num_workers=workers, persistent_workers=workers > 0)
            self._coming = iter(loader)
        self._next = (size, seed, step + 1, rank)
        pictures, labels = next(self._coming)
        chance = torch.Generator().manual_seed(_mixed(seed, step, rank))
        return mix(pictures, labels, self.classes, self.options, chance)

    def _order(self, size: int, seed: int, step: int, rank: int) -> _Order:
        return _Order(len(self.data), size, seed, step, rank, self.options.steps)


@dataclass(frozen=True)
class _Order:
    """Which pictures each step sees, from a step on: lists of (number, seed)."""

    count: int
    size: int
    seed: int
    first: int
    rank: int
    steps: int

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.first, self.steps):
            places = range(step * self.size, (step + 1) * self.size)
            yield [(self._picture(k), _mixed(self.seed, k, self.rank + 1)) for k in places]

    def __len__(self) -> int:
        return self.steps - self.first

    def _picture(self, place: int) -> int:
        epoch, within = divmod(place, self.count)
        return int(_permutation(self.count, _mixed(self.seed, epoch, -1 - self.rank))[within])


@functools.lru_cache(maxsize=2)
def _permutation(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def _mixed(*numbers: int) -> int:
    """One seed of several numbers."""
    found = 0
    for number in numbers:
        found = (found * 6364136223846793005 + number + 1442695040888963407) % (1 << 63)
    return found


def mix(
    pictures: Tensor, labels: Tensor, classes: int, options: Options, chance: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mixup (Zhang et al., arXiv:1710.09412) or cutmix (Yun et al., arXiv:1905.04899) of a batch with itself reversed.

    Args:
        pictures: (B, 3, H, W).
        labels: (B,).
        chance: what decides.

    Returns:
        Pictures, and probabilities (B, classes) with smoothed labels.
    """
    wanted = F.one_hot(labels, classes).float() * (1 - options.smoothing) + options.smoothing / classes
    kinds = [kind for kind in ("mixup", "cutmix") if getattr(options, kind) > 0]
    if not kinds:
        return pictures, wanted
    kind = kinds[int(torch.randint(len(kinds), (), generator=chance))]
    kept = _beta(getattr(options, kind), chance)
    if kind == "mixup":
        pictures = kept * pictures + (1 - kept) * pictures.flip(0)
    else:
        pictures, kept = _cut(pictures, kept, chance)
    return pictures, kept * wanted + (1 - kept) * wanted.flip(0)


def _beta(parameter: float, chance: torch.Generator) -> float:
    """A draw of Beta(parameter, parameter): the share of two Gamma variables, from the generator's own stream."""
    import numpy as np

    numbers = np.random.default_rng(int(torch.randint(1 << 62, (), generator=chance)))
    return float(numbers.beta(parameter, parameter))


def _cut(pictures: Tensor, kept: float, chance: torch.Generator) -> tuple[Tensor, float]:
    """Paste a rectangle of 1 - kept of the area; what it really covers is given back."""
    height, width = pictures.shape[2:]
    tall, wide = (round(n * math.sqrt(1 - kept)) for n in (height, width))
    y, x = (int(torch.randint(n, (), generator=chance)) for n in (height, width))
    rows, columns = slice(max(0, y - tall // 2), y + (tall + 1) // 2), slice(max(0, x - wide // 2), x + (wide + 1) // 2)
    made = pictures.clone()
    made[:, :, rows, columns] = pictures.flip(0)[:, :, rows, columns]
    area = made[0, 0, rows, columns].numel()
    return made, 1 - area / (height * width)


@torch.inference_mode()
def top1(model: nn.Module, loader: Any) -> float:
    """Percent of the pictures whose class is named."""
    was = model.training
    model.eval()
    device = next(model.parameters()).device
    right = count = 0
    for pictures, labels in loader:
        right += int((model(pictures.to(device)).argmax(1).cpu() == labels).sum())
        count += len(labels)
    model.train(was)
    return 100 * right / max(count, 1)


def train(options: Options, *, say: Callable[[str], None] = print) -> Path:
    """Train a network; see `trainer.train`."""
    return trainer.train(options, say=say)
