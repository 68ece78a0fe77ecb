"""Pre-training of the quality-aware encoder: momentum contrast on pairs that share their distortion, not their place.

    picture -- region -- 1 + n copies, n kinds of distortion -- half size too -- two overlapping crops of each
        crop a --> encoder, head ----------> q ---+
        crop b --> momentum encoder, head -> k ---+--> [q.k, q.(other keys of the step), q.queue] / T --> cross entropy

Positive is the other crop of the same copy: same damage, other place. Negatives are all other keys, among them the same
content with other damage, which is what makes the features see quality (section 3.2). For the first half of the copies
the two crops change sides, so place does not tell the sides apart. He et al., MoCo v2, arXiv:2003.04297; Saha et al.,
arXiv:2304.00451; Lin et al. for the distortions.

``distortions=False`` is the content-aware sibling: plain momentum contrast on clean crops.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from saccade.data.distortions import distorted_stack
from saccade.errors import InputError, UsageError
from saccade.progress import bar
from saccade.quality.reiqa.encoder import DEVIATION, MEAN, Encoder, Head
from saccade.training.muon import Muon

__all__ = ["Crops", "Queue", "Recipe", "contrast_logits", "half_swap", "overlapping_crops", "pretrain", "shifts"]

OVERLAP = (0.10, 0.30)  # of the area of a crop that its pair shares


def contrast_logits(q: Tensor, k: Tensor, queue: Tensor, temperature: float = 0.2, *, within: bool = False) -> Tensor:
    """Similarities of queries to their own key (column 0) and to all negatives, over the temperature.

    Args:
        q, k: (B, D), unit length.
        queue: (K, D) earlier keys.
        within: the other keys of the step are negatives as well (section 3.2 of the paper; the published code compares
            with the queue alone).

    Returns:
        (B, 1 + K), or (B, 1 + (B - 1) + K) with ``within``; the right answer is column 0.
    """
    parts = [(q * k).sum(1, keepdim=True)]
    if within:
        others = q @ k.T
        parts.append(others[~torch.eye(len(q), dtype=torch.bool, device=q.device)].view(len(q), len(q) - 1))
    parts.append(q @ queue.T)
    return torch.cat(parts, 1) / temperature


class Queue:
    """The latest keys, at most ``size`` (0 for none), overwritten in a ring.

    It starts empty. (The published code starts with random directions: in a short training the network then learns
    first of all to be far from those, which a constant does best, and it takes thousands of steps to come back.)

    Raises:
        UsageError: no room for a key.
    """

    def __init__(self, size: int, dims: int) -> None:
        if size < 0 or dims < 1:
            raise UsageError(f"a queue has room for some keys or for none, not {size} x {dims}")
        self._keys, self._next, self._filled = torch.zeros(size, dims), 0, 0

    @property
    def keys(self) -> Tensor:
        """(number so far, dims), a copy: what is put later does not change it."""
        return self._keys[: self._filled].clone()

    @torch.no_grad()
    def put(self, keys: Tensor) -> None:
        """Overwrite the oldest keys with (B, dims); of more than fit the last ones stay."""
        size = len(self._keys)
        if not size:
            return
        at = (self._next + torch.arange(len(keys))) % size
        self._keys[at[-size:]] = keys.detach()[-size:].to(self._keys)
        self._next = (self._next + len(keys)) % size
        self._filled = min(size, self._filled + len(keys))


def shifts(side: int, chance: np.random.Generator) -> tuple[int, int]:
    """How far (down, right) the second crop of ``side`` pixels lies so that they share 10 to 30 % of their area.

    Down is drawn first, in [0.7, 0.9) of the side; right then solves (side - down) * (side - right) = share * side^2.

    Raises:
        UsageError: a side too small to draw from.
    """
    if side < 8:
        raise UsageError(f"crops need a side of at least 8 pixels, not {side}")
    least, most = OVERLAP
    down = int(chance.integers(math.ceil((1 - most) * side), math.ceil((1 - least) * side)))
    bounds = [max(0.0, ((1 - share) * side**2 - side * down) / (side - down)) for share in (most, least)]
    low, high = math.ceil(bounds[0]), math.floor(bounds[1])
    return down, int(chance.integers(low, max(high, low) + 1))


def overlapping_crops(stack: np.ndarray, side: int, chance: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two crops of every copy, the same two places for all.

    Shape: (N, H, W, 3) -> two of (N, side, side, 3).

    Raises:
        InputError: the pictures are smaller than the pair of crops. (The published code pads with black, which the
            encoder then learns to see.)
    """
    down, right = shifts(side, chance)
    need = side + max(down, right)
    room = [n - need for n in stack.shape[1:3]]
    if min(room) < 0:
        raise InputError(f"two crops of {side} pixels need pictures of {need} x {need}, not {stack.shape[1:3]}")
    top, left = (int(chance.integers(r + 1)) for r in room)
    first = stack[:, top : top + side, left : left + side]
    second = stack[:, top + down : top + down + side, left + right : left + right + side]
    return first, second


def half_swap(first: np.ndarray, second: np.ndarray, *, later: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Exchange the crops of the first half of the copies, or of the other half."""
    middle = len(first) // 2
    swapped = slice(middle, None) if later else slice(0, middle)
    a, b = first.copy(), second.copy()
    a[swapped], b[swapped] = second[swapped], first[swapped]
    return a, b


@dataclass(frozen=True)
class Recipe:
    """How to pre-train; the defaults are small.

    Attributes:
        steps: optimiser steps.
        pictures: stacks in a step; each gives 2 * (1 + copies) pairs, from both scales.
        copies: distorted copies of a picture, of different kinds (11 in the paper).
        side: of a crop in pixels (160 in the paper).
        queue: keys kept (65,536 in the paper). Without one all negatives are of the same few contents, so that nothing
            but damage tells them apart: in short trainings features then become useful soonest.
        temperature: of the softmax (0.2 in the paper).
        momentum: of the key encoder (0.999 in the paper, for 100 times the steps). A key encoder that follows too
            fast collapses: all keys run away from the queue's old ones together.
        rate: peak learning rate of Muon; warmed up over a 20th of the steps, then half a cosine. (The paper takes LARS
            for batches of 630 pictures. AdamW needs several times the steps of Muon here.)
        decay: weight decay.
        within: the other keys of a step are negatives too.
        distortions: False leaves the copies clean, each from a place of its own: plain momentum contrast.
        normalise: by ImageNet's mean and deviation, as the content branch takes its pixels.
        fresh: new stacks a step, on average; the others come from a pool of earlier ones, at new places.
        pool: stacks kept.
        shuffles: parts in which the keys' batch norms are taken, in random order (shuffle-BN on one device).
        head: (hidden, out) of the projection.
        seed: of crops, distortions and queue.
        bfloat16: convolve in bfloat16 where the processor does it faster.
    """

    steps: int = 2000
    pictures: int = 4
    copies: int = 12
    side: int = 64
    queue: int = 0
    temperature: float = 0.1
    momentum: float = 0.95
    rate: float = 4e-3
    decay: float = 1e-2
    within: bool = True
    distortions: bool = True
    normalise: bool = False
    fresh: float = 0.1
    pool: int = 48
    shuffles: int = 2
    head: tuple[int, int] = (256, 64)
    seed: int = 0
    bfloat16: bool = False


class Crops:
    """Pairs of crops from a folder of photographs: a pool of distorted regions, renewed step by step.

    Args:
        pictures: files, or (H, W, 3) uint8 arrays.
        recipe: see `Recipe`.

    Raises:
        InputError: a picture smaller than a region, or unreadable.
    """

    def __init__(self, pictures: Sequence[Path | np.ndarray], recipe: Recipe) -> None:
        self.recipe = recipe
        self.region = 4 * recipe.side  # half of it still holds two crops that hardly overlap
        self.pictures = [p if isinstance(p, np.ndarray) else _read(p) for p in pictures]
        for p in self.pictures:
            if min(p.shape[:2]) < self.region:
                raise InputError(f"pre-training takes pictures of at least {self.region} pixels, not {p.shape[:2]}")
        self.pool: list[tuple[np.ndarray, np.ndarray]] = []
        self.drawn = 0

    def _region(self, chance: np.random.Generator) -> np.ndarray:
        picture = self.pictures[int(chance.integers(len(self.pictures)))]
        top, left = (int(chance.integers(n - self.region + 1)) for n in picture.shape[:2])
        region = picture[top : top + self.region, left : left + self.region]
        return np.ascontiguousarray(region[:, ::-1] if chance.integers(2) else region)

    def _stack(self, chance: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Copies at full and at half size, uint8."""
        if self.recipe.distortions:
            full = distorted_stack(self._region(chance), self.recipe.copies, chance)[0]
        else:
            full = np.stack([self._region(chance) for _ in range(1 + self.recipe.copies)])
        side = (self.region // 2, self.region // 2)
        return full, np.stack([np.asarray(Image.fromarray(copy).resize(side)) for copy in full])

    def batch(self) -> tuple[Tensor, Tensor]:
        """The two sides of one step, each (2 * pictures * (1 + copies), 3, side, side) float in [0, 1]."""
        r = self.recipe
        chance = np.random.default_rng((r.seed, self.drawn))
        self.drawn += 1
        new = int(self.drawn * r.fresh) - int((self.drawn - 1) * r.fresh)
        for _ in range(new if len(self.pool) >= 2 * r.pictures else 2 * r.pictures):
            if len(self.pool) < r.pool:
                self.pool.append(self._stack(chance))
            else:
                self.pool[int(chance.integers(r.pool))] = self._stack(chance)
        sides: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        for which in chance.choice(len(self.pool), r.pictures, replace=False):
            for later, stack in enumerate(self.pool[which]):
                for kept, crops in zip(
                    sides, half_swap(*overlapping_crops(stack, r.side, chance), later=bool(later)), strict=True
                ):
                    kept.append(crops)
        a, b = (torch.from_numpy(np.concatenate(s)).permute(0, 3, 1, 2).float().div_(255) for s in sides)
        if r.normalise:
            a, b = ((v - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(DEVIATION).view(3, 1, 1) for v in (a, b))
        return a, b  # channels last already: the arrays are


def _read(path: Path) -> np.ndarray:
    from saccade.io import read_picture

    pixels = read_picture(path)[0]
    if pixels.dtype != np.uint8:
        pixels = (pixels >> 8).astype(np.uint8)
    return np.repeat(pixels, 3, 2) if pixels.shape[2] == 1 else pixels[..., :3]


@torch.no_grad()
def _follow(key: nn.Module, query: nn.Module, momentum: float) -> None:
    """The key network moves towards the query network (MoCo, eq. 2)."""
    own, other = tuple(p.detach() for p in key.parameters()), tuple(p.detach() for p in query.parameters())
    torch._foreach_lerp_(own, other, 1 - momentum)


@torch.no_grad()
def _keys(network: nn.Module, x: Tensor, parts: int, generator: torch.Generator) -> Tensor:
    """Keys with batch norms taken over random parts of the step, so that they do not tell which query is theirs."""
    order = torch.randperm(len(x), generator=generator)
    made = torch.cat([network(x[part].contiguous(memory_format=torch.channels_last)) for part in order.chunk(parts)])
    return made[order.argsort()]


def _rate(step: int, recipe: Recipe) -> float:
    warm = max(1, recipe.steps // 20)
    if step < warm:
        return recipe.rate * (step + 1) / warm
    return recipe.rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, recipe.steps - warm)))


def pretrain(
    encoder: Encoder,
    pictures: Sequence[Path | np.ndarray],
    recipe: Recipe,
    say: Callable[[int, float, float], None] | None = None,
) -> Encoder:
    """Train an encoder by momentum contrast, in place.

    Args:
        encoder: from `seeded` weights.
        pictures: files or (H, W, 3) uint8 arrays.
        recipe: see `Recipe`.
        say: called with (step, loss, share of queries whose own key is the nearest) every 50 steps.

    Returns:
        The encoder, in evaluation mode.

    Raises:
        InputError: unusable pictures.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    crops = Crops(pictures, recipe)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = nn.Sequential(encoder, Head(encoder.features, *recipe.head))
    network = network.train().to(memory_format=torch.channels_last)
    keys = copy.deepcopy(network).requires_grad_(False)
    queue = Queue(recipe.queue, recipe.head[1])
    optimiser = Muon(network.parameters(), recipe.rate, weight_decay=recipe.decay)
    with bar("pre-training", recipe.steps) as advance:
        for step in range(recipe.steps):
            for group in optimiser.param_groups:
                group["lr"] = _rate(step, recipe)
            loss, right = _step(network, keys, queue, crops.batch(), recipe, generator)
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            _follow(keys, network, recipe.momentum)
            if say and step % 50 == 0:
                say(step, float(loss.detach()), right)
            advance(1)
    return encoder.eval()


def _step(
    network: nn.Module,
    keys: nn.Module,
    queue: Queue,
    batch: tuple[Tensor, Tensor],
    recipe: Recipe,
    generator: torch.Generator,
) -> tuple[Tensor, float]:
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bfloat16):
        q = network(batch[0])
        k = _keys(keys, batch[1], recipe.shuffles, generator)
    logits = contrast_logits(q.float(), k.float(), queue.keys, recipe.temperature, within=recipe.within)
    queue.put(k)
    right = float((logits.detach().argmax(1) == 0).float().mean())
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long)), right
