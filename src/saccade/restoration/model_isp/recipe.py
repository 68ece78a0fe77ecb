"""Training the ISP from pairs of RAW and picture, in minutes on one core.

    packed RAW, RGB -- 32x32 look of each, random pixels --> weights -- stages both ways --> losses

Every stage works pixel by pixel, so a few thousand random pixels of a pair teach as much as its crops would, and gain
maps, which need whole pictures, come with them. The RAW is known in one colour a pixel: forward starts from its
demosaicked pixels, inverse is compared where the sensor has a sample.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from saccade.errors import InputError, UsageError
from saccade.ops.demosaic import check_pattern, demosaic
from saccade.progress import bar
from saccade.restoration.model_isp.network import LEARNT, ModelISP, check_raw, spread
from saccade.restoration.model_isp.stages import pixel_grid, regularity

__all__ = ["Pairs", "fit", "losses"]


@dataclass
class Pairs:
    """Pairs of RAW and picture, reduced to what training looks at.

    Attributes:
        raw_look, rgb_look: (n, 3, h, w) evenly spread pixels of both, demosaicked and RGB.
        look_grid: (n, h, w, 2), their places.
        raw, rgb: (n, 3, P) random pixels of both.
        known: (n, 3, P) booleans: the colour that the sensor has there.
        grid: (n, P, 2), their places.
    """

    raw_look: Tensor
    rgb_look: Tensor
    look_grid: Tensor
    raw: Tensor
    rgb: Tensor
    known: Tensor
    grid: Tensor

    def __len__(self) -> int:
        return len(self.raw)

    def first(self, count: int) -> Pairs:
        """The first ``count`` pairs."""
        return Pairs(*(getattr(self, name)[:count] for name in self.__dataclass_fields__))

    @staticmethod
    def of(
        pairs: Iterable[tuple[Tensor, Tensor]], pattern: str = "rggb", pixels: int = 1 << 15, seed: int = 0
    ) -> Pairs:
        """Sample pairs.

        Args:
            pairs: (packed RAW (4, H/2, W/2), RGB (3, H, W)) of pictures of any pixels, aligned.
            pixels: how many random ones of each pair are kept, 40 bytes each.

        Raises:
            InputError: no pairs, sides that do not agree, or no normalised RAW.
        """
        colours, generator = check_pattern(pattern), torch.Generator().manual_seed(seed)
        rows = [_sampled(packed, rgb, pattern, colours, pixels, generator) for packed, rgb in pairs]
        if not rows:
            raise InputError("there are no pairs of RAW and picture to learn from")
        return Pairs(*(torch.stack(column) for column in zip(*rows, strict=True)))


def _sampled(
    packed: Tensor, rgb: Tensor, pattern: str, colours: tuple[int, ...], pixels: int, generator: torch.Generator
) -> tuple[Tensor, ...]:
    check_raw(packed[None], channels=4)
    height, width = rgb.shape[-2:]
    if rgb.shape[0] != 3 or (2 * packed.shape[-2], 2 * packed.shape[-1]) != (height, width):
        raise InputError(f"a packed RAW {tuple(packed.shape)} and a picture {tuple(rgb.shape)} are no pair")
    raw = demosaic(packed[None], pattern)[0]
    rows, columns = spread(height, rgb.device), spread(width, rgb.device)
    y = torch.randint(height, (pixels,), generator=generator)
    x = torch.randint(width, (pixels,), generator=generator)
    places = torch.stack(((x + 0.5) * (2 / width) - 1, (y + 0.5) * (2 / height) - 1), -1)
    known = torch.tensor(colours)[2 * (y % 2) + x % 2] == torch.arange(3)[:, None]
    looks = (p[:, rows][:, :, columns] for p in (raw, rgb))
    grid = pixel_grid(rows.float(), columns.float(), height, width)[0]
    return (*looks, grid, raw[:, y, x], rgb[:, y, x], known, places)


def _weights(model: ModelISP, batch: Pairs) -> dict[str, dict[str, Tensor]]:
    return {
        "forward": model.weights(batch.raw_look, batch.look_grid, "forward"),
        "inverse": model.weights(batch.rgb_look, batch.look_grid, "inverse"),
    }


def losses(model: ModelISP, batch: Pairs) -> dict[str, Tensor]:
    """What training sums up, before weighting.

    Returns:
        ``rgb``, ``raw``: L1 of both directions; ``stages``: L1 between the intermediate pictures of the two directions
        at the same stage, mean over stages; ``condition``, ``entropy``: see `stages.regularity`.
    """
    weights = _weights(model, batch)
    grid = batch.grid[:, None]  # (n, 1, P, 2)
    there = model.trace(batch.raw[:, :, None], model.mix(weights["forward"]), grid, "forward")
    back = model.trace(batch.rgb[:, :, None], model.mix(weights["inverse"]), grid, "inverse")
    inner = [(a - b).abs().mean() for a, b in zip(there[1:-1], reversed(back[1:-1]), strict=True)]
    made: dict[str, Tensor] = {
        "rgb": (there[-1][:, :, 0] - batch.rgb).abs().mean(),
        "raw": (back[-1][:, :, 0] - batch.raw)[batch.known].abs().mean(),
        "stages": torch.stack(inner).mean() if inner else batch.rgb.new_zeros(()),  # one stage has nothing between
    }
    settings = [model.mix(w) for w in weights.values()]
    matrices = torch.cat([s.ccm for s in settings if s.ccm is not None] or [torch.eye(3)[None]])
    both = {f"{d}.{k}": w for d, chosen in weights.items() for k, w in chosen.items()}
    made["condition"], made["entropy"] = regularity(matrices, both)
    return made


#: of the losses (the first three: 1, 1 and 0.5; the rest small, ours)
WEIGHTS = {"rgb": 1.0, "raw": 2.0, "stages": 0.5, "condition": 0.01, "entropy": 0.01}


#: of the learning rate. Gains and curve can stand in for each other nearly; the curve is to be found first.
SHARES = {"wb": 0.5, "lsc": 1.0, "ccm": 1.0, "tone": 3.0, "encoders": 0.3}


def fit(
    model: ModelISP,
    pairs: Pairs,
    *,
    steps: int = 2000,
    batch: int = 8,
    pixels: int = 2048,
    rate: float = 2e-3,
    seed: int = 0,
    seconds: float | None = None,
    observe: Callable[[int, dict[str, Tensor]], None] | None = None,
) -> ModelISP:
    """Train in place by Adam with half a cosine, then store the average weights of atoms for the dial.

    Args:
        pairs: what it learns from.
        steps: of the optimiser.
        batch, pixels: pairs a step, and pixels of each.
        rate: peak learning rate; `SHARES` tells which part takes how much of it.
        seconds: end earlier when this much wall time has passed; the cosine follows the clock then.
        observe: called with (step, losses) after every step.

    Returns:
        The model in evaluation mode.

    Raises:
        UsageError: no steps or time, an empty batch, or no stage that learns.
    """
    if min(steps, batch, pixels) < 1:
        raise UsageError(f"training takes at least one step, pair and pixel, not {steps}, {batch}, {pixels}")
    if seconds is not None and not seconds > 0:
        raise UsageError(f"training takes more than 0 seconds, not {seconds}")
    if set(LEARNT) <= set(model.disabled):
        raise UsageError("there is nothing to learn: every stage with a dictionary is disabled")
    model.train()
    groups = [{"params": list(_part(model, name)), "share": share} for name, share in SHARES.items()]
    optimiser = torch.optim.Adam(groups, lr=rate, betas=(0.9, 0.99))
    generator, began = torch.Generator().manual_seed(seed), time.monotonic()
    with bar("training the ISP", steps) as advance:
        for step in range(steps):
            done = step / steps if seconds is None else max(step / steps, (time.monotonic() - began) / seconds)
            if done >= 1:
                break
            for group in optimiser.param_groups:
                group["lr"] = rate * group["share"] * min(1.0, (step + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * done))
            found = losses(model, _drawn(pairs, batch, pixels, generator))
            total = sum((WEIGHTS[name] * value for name, value in found.items()), start=torch.zeros(()))
            optimiser.zero_grad()
            total.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            advance(1)
            if observe:
                observe(step, found)
    store_averages(model, pairs)
    return model.eval()


def _part(model: ModelISP, name: str) -> Iterator[Tensor]:
    """Parameters of a stage's dictionary, or of the encoders."""
    if name in model.stages:
        yield from model.stages[name].parameters()
    else:
        yield from model.encoder_fwd.parameters()
        yield from model.encoder_inv.parameters()


def _drawn(pairs: Pairs, batch: int, pixels: int, generator: torch.Generator) -> Pairs:
    """A random batch of pairs with some of their pixels, the same places of the store for all of them."""
    which = torch.randint(len(pairs), (batch,), generator=generator)
    start = int(torch.randint(max(1, pairs.raw.shape[2] - pixels + 1), (), generator=generator))
    part = slice(start, start + pixels)  # the store is in random order
    return Pairs(
        pairs.raw_look[which],
        pairs.rgb_look[which],
        pairs.look_grid[which],
        pairs.raw[which, :, part],
        pairs.rgb[which, :, part],
        pairs.known[which, :, part],
        pairs.grid[which, part],
    )


@torch.no_grad()
def store_averages(model: ModelISP, pairs: Pairs) -> None:
    """Let the dial's settings without encoders be the mean of what encoders say of these pairs."""
    budget, model.budget = model.budget, 1.0
    for direction, chosen in _weights(model, pairs).items():
        encoder = model.encoder_fwd if direction == "forward" else model.encoder_inv
        for name in LEARNT:
            if name in chosen:
                encoder.average(name).copy_(chosen[name].mean(0))
    model.budget = budget


def effective_atoms(weights: Tensor) -> float:
    """How many atoms a dictionary really uses: the exponential of the entropy of the mean weights; (B, N) -> 1 to N."""
    mean = weights.mean(0)
    return float((-(mean * mean.clamp_min(1e-12).log()).sum()).exp())
