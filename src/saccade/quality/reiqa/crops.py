"""What pre-training sees: pairs of crops of distorted copies, at two sizes, alike on one process and on many.

    photograph -- region -- 1 + n copies, n kinds of distortion -- half size too -- two overlapping crops of each

For the first half of the copies the two crops change sides, at half size for the second half, so that place does not
tell the sides apart (section 3.2 of the paper). Step t holds the same stacks however many processes there are; each
process has the rows of its share.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from saccade.data.distortions import distorted_stack
from saccade.errors import InputError, UsageError
from saccade.quality.reiqa.encoder import DEVIATION, MEAN
from saccade.quality.reiqa.recipe import Halving, Recipe

__all__ = ["Crops", "FreshCrops", "crops_of", "half_swap", "halved_stack", "overlapping_crops", "shifts"]

OVERLAP = (0.10, 0.30)  # of the area of a crop that its pair shares
Pair = tuple[np.ndarray, np.ndarray]


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


def overlapping_crops(stack: np.ndarray, side: int, chance: np.random.Generator) -> Pair:
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


def half_swap(first: np.ndarray, second: np.ndarray, *, later: bool = False) -> Pair:
    """Exchange the crops of the first half of the copies, or of the other half."""
    middle = len(first) // 2
    swapped = slice(middle, None) if later else slice(0, middle)
    a, b = first.copy(), second.copy()
    a[swapped], b[swapped] = second[swapped], first[swapped]
    return a, b


def halved_stack(stack: np.ndarray, side: int, halving: Halving) -> np.ndarray:
    """Copies at the smaller size, (N, h, h, 3) uint8 -> (N, side, side, 3) uint8; see `Recipe.halving`.

    The published code keeps fractions of a level at half size; here they are rounded, as in a file.
    """
    if halving == "pillow":
        return np.stack([np.asarray(Image.fromarray(copy).resize((side, side))) for copy in stack])
    x = torch.from_numpy(stack).permute(0, 3, 1, 2).float()
    x = F.interpolate(x, (side, side), mode="bicubic", align_corners=True)
    made: np.ndarray = x.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    return made


def pairs_of(stacks: Pair, side: int, chance: np.random.Generator) -> Pair:
    """The two sides of all copies of one picture, full size before half, crops drawn anew for each size."""
    made = [half_swap(*overlapping_crops(stack, side, chance), later=bool(later)) for later, stack in enumerate(stacks)]
    return np.concatenate([a for a, _ in made]), np.concatenate([b for _, b in made])


def as_tensors(sides: Pair, normalise: bool) -> tuple[Tensor, Tensor]:
    """(N, side, side, 3) uint8 -> (N, 3, side, side) float in [0, 1], channels last as the arrays are."""
    a, b = (torch.from_numpy(s).permute(0, 3, 1, 2).float().div_(255) for s in sides)
    if normalise:
        a, b = ((v - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(DEVIATION).view(3, 1, 1) for v in (a, b))
    return a, b


def region_of(picture: np.ndarray, side: int, chance: np.random.Generator) -> np.ndarray:
    """A square piece at a random place."""
    top, left = (int(chance.integers(n - side + 1)) for n in picture.shape[:2])
    return np.ascontiguousarray(picture[top : top + side, left : left + side])


class Crops:
    """Pairs of crops from a folder of photographs: a pool of distorted regions, renewed step by step.

    Every process holds the whole pool and draws the whole step, of which it takes its share: few stacks are new.

    Args:
        pictures: files, or (H, W, 3) uint8 arrays; all are kept in memory.
        recipe: see `Recipe`.

    Raises:
        InputError: a picture smaller than a region, or unreadable.
    """

    def __init__(self, pictures: Sequence[Path | np.ndarray], recipe: Recipe) -> None:
        self.recipe = recipe
        self.region = 4 * recipe.side  # half of it still holds two crops that hardly overlap
        self.pictures = [pixels_of(p) for p in pictures]
        for p in self.pictures:
            if min(p.shape[:2]) < self.region:
                raise InputError(f"pre-training takes pictures of at least {self.region} pixels, not {p.shape[:2]}")
        self.pool: list[Pair] = []
        self.drawn = 0

    def _region(self, chance: np.random.Generator) -> np.ndarray:
        """A piece of any picture, mirrored at random: there are few pictures."""
        region = region_of(self.pictures[int(chance.integers(len(self.pictures)))], self.region, chance)
        return np.ascontiguousarray(region[:, ::-1]) if chance.integers(2) else region

    def _stack(self, chance: np.random.Generator) -> Pair:
        """Copies at full and at half size, uint8."""
        if self.recipe.distortions:
            full = distorted_stack(self._region(chance), self.recipe.copies, chance)[0]
        else:
            full = np.stack([self._region(chance) for _ in range(1 + self.recipe.copies)])
        return full, halved_stack(full, self.region // 2, self.recipe.halving)

    def batch(self, rank: int = 0, processes: int = 1) -> tuple[Tensor, Tensor]:
        """The two sides of the next step, (2 * pictures / processes * (1 + copies), 3, side, side) float in [0, 1]."""
        r = self.recipe
        chance = np.random.default_rng((r.seed, self.drawn))
        self.drawn += 1
        new = int(self.drawn * r.fresh) - int((self.drawn - 1) * r.fresh)
        for _ in range(new if len(self.pool) >= 2 * r.pictures else 2 * r.pictures):
            if len(self.pool) < r.pool:
                self.pool.append(self._stack(chance))
            else:
                self.pool[int(chance.integers(r.pool))] = self._stack(chance)
        chosen = chance.choice(len(self.pool), r.pictures, replace=False)
        made = [pairs_of(self.pool[which], r.side, chance) for which in chosen]
        share = r.pictures // processes
        own = made[rank * share : (rank + 1) * share]
        return as_tensors((np.concatenate([a for a, _ in own]), np.concatenate([b for _, b in own])), r.normalise)

    def batches(self, rank: int, processes: int) -> Iterator[tuple[Tensor, Tensor]]:
        """One step after another, from where it stands."""
        while True:
            yield self.batch(rank, processes)

    def state(self) -> dict[str, Any]:
        """What a resumed training needs so that it goes on with the same stacks."""
        return {"drawn": self.drawn, "pool": [[torch.from_numpy(s) for s in stacks] for stacks in self.pool]}

    def restore(self, state: dict[str, Any]) -> None:
        """Take what `state` gave."""
        self.drawn = int(state["drawn"])
        self.pool = [(full.numpy(), half.numpy()) for full, half in state["pool"]]


class FreshCrops(Dataset[Pair | InputError]):
    """Pairs of crops whose stacks are all new: each photograph once in every pass, in an order drawn anew.

    Files are read when their turn comes, by ``workers`` processes ahead of the training. What picture number n of the
    whole training holds depends on (seed, n) alone.

    A photograph below ``4 * side`` pixels is taken whole on its shorter side, and reduced by less than two for the
    smaller size, so that two crops fit. (The published code pads with black.)

    Args:
        pictures: files, or (H, W, 3) uint8 arrays.
        recipe: see `Recipe`.
        workers: processes that read and distort ahead, 0 for none.
    """

    def __init__(self, pictures: Sequence[Path | np.ndarray], recipe: Recipe, workers: int = 0) -> None:
        self.pictures, self.recipe, self.workers, self.drawn = pictures, recipe, workers, 0
        self.smaller = 2 * recipe.side

    def __len__(self) -> int:
        return self.recipe.steps * self.recipe.pictures

    def __getitem__(self, number: int) -> Pair | InputError:
        """As `pairs`; what is wrong with a file is handed over, not raised: workers would bury it in a traceback."""
        try:
            return self.pairs(number)
        except InputError as error:
            return error

    def pairs(self, number: int) -> Pair:
        """Both sides of one picture of the training, uint8.

        Raises:
            InputError: the file is unreadable, or smaller than ``2 * side`` pixels.
        """
        r = self.recipe
        chance = np.random.default_rng((r.seed, 1, number))
        epoch, place = divmod(number, len(self.pictures))
        first = int(_order(len(self.pictures), r.seed, epoch)[place])
        picture = pixels_of(self.pictures[first])
        side = self._side(picture, first)
        region = region_of(picture, side, chance)
        if r.distortions:
            full = distorted_stack(region, r.copies, chance)[0]
        else:
            full = np.stack([region, *(self._elsewhere(side, chance) for _ in range(r.copies))])
        return pairs_of((full, halved_stack(full, self.smaller, r.halving)), r.side, chance)

    def _side(self, picture: np.ndarray, number: int) -> int:
        """Side of the region to be taken of a picture."""
        if min(picture.shape[:2]) < self.smaller:
            given = self.pictures[number]
            name = f"{given} is" if isinstance(given, Path) else "one is"
            raise InputError(
                f"crops of {self.recipe.side} pixels take pictures of at least {self.smaller} pixels a side; "
                f"{name} {picture.shape[1]} x {picture.shape[0]}"
            )
        return min(2 * self.smaller, *picture.shape[:2])

    def _elsewhere(self, side: int, chance: np.random.Generator) -> np.ndarray:
        """A region of any photograph, as large as the others of its stack."""
        number = int(chance.integers(len(self.pictures)))
        picture = pixels_of(self.pictures[number])
        own = region_of(picture, min(side, self._side(picture, number)), chance)
        return own if len(own) == side else np.asarray(Image.fromarray(own).resize((side, side)))

    def batches(self, rank: int, processes: int) -> Iterator[tuple[Tensor, Tensor]]:
        """One step after another, from where it stands.

        Raises:
            InputError: see `pairs`.
        """
        share = self.recipe.pictures // processes
        starts = [s * self.recipe.pictures + rank * share for s in range(self.drawn, self.recipe.steps)]
        numbers = [list(range(start, start + share)) for start in starts]
        loader = DataLoader(
            self,
            batch_sampler=numbers,
            num_workers=self.workers,
            collate_fn=_joined,
            generator=torch.Generator(),  # else the caller's random numbers would move on
        )
        for sides in loader:
            if isinstance(sides, InputError):
                raise sides
            self.drawn += 1
            yield as_tensors(sides, self.recipe.normalise)

    def state(self) -> dict[str, Any]:
        """What a resumed training needs so that it goes on with the same stacks."""
        return {"drawn": self.drawn}

    def restore(self, state: dict[str, Any]) -> None:
        """Take what `state` gave."""
        self.drawn = int(state["drawn"])


def crops_of(pictures: Sequence[Path | np.ndarray], recipe: Recipe, workers: int = 0) -> Crops | FreshCrops:
    """What the recipe asks for: a pool, or fresh stacks alone.

    Raises:
        InputError: a picture smaller than a region, or unreadable.
    """
    return Crops(pictures, recipe) if recipe.pool else FreshCrops(pictures, recipe, workers)


def pixels_of(picture: Path | np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 of a file; an array is taken as it is.

    Raises:
        InputError: the file is unreadable.
    """
    if isinstance(picture, np.ndarray):
        return picture
    from saccade.io import read_picture

    pixels = read_picture(picture)[0]
    if pixels.dtype != np.uint8:
        pixels = (pixels >> 8).astype(np.uint8)
    return np.repeat(pixels, 3, 2) if pixels.shape[2] == 1 else pixels[..., :3]


def _joined(made: Sequence[Pair | InputError]) -> Pair | InputError:
    """All pictures of a step, or what is wrong with one of them."""
    good: list[Pair] = []
    for one in made:
        if isinstance(one, InputError):
            return one
        good.append(one)
    return np.concatenate([a for a, _ in good]), np.concatenate([b for _, b in good])


@lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    """The order in which a pass takes the photographs."""
    return np.random.default_rng((seed, 2, epoch)).permutation(count)
