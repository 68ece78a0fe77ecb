"""Rain, snow, raindrops and the fog of heavy rain, put over clean pictures: what weather removal trains on.

    streaks = 1.5 * box(impulses * line)      rain:        clean + gain * streaks
    t = smooth field                          fog:         t * clean + (1 - t) * air
                                              heavy rain:  rain over fog
    flakes  = impulses * soft discs           snow:        (1 - a) * clean + a * 0.95
    lens    = ellipses on the glass           drops:       a * refracted(clean) + (1 - a) * clean

Rain and snow follow the usual synthetic sets (additive streaks as in Rain100, veils as in Outdoor-Rain, screened
flakes as in Snow100K); drops lie on the lens as in RainDrop: each shows the scene behind it turned over, wider and out
of focus. Sizes are in pixels, so a crop looks like a piece of a picture of any size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from saccade.errors import InputError, UsageError

__all__ = ["KINDS", "drops", "fog", "heavy_rain", "rain", "snow", "weather"]

Plane = NDArray[np.float32]

STREAK = (9, 22)  # pixels, length of a streak, upper end excluded
TILT = 0.6  # radians from vertical
FLAKE = 0.95  # brightness of snow


def rain(clean: Tensor, chance: np.random.Generator) -> Tensor:
    """Streaks: sparse impulses smeared along one direction, three pixels wide, added.

    Args:
        clean: (B, 3, h, w) float in [0, 1].
        chance: where density, length, direction and strength of each picture come from.

    Returns:
        (B, 3, h, w) in [0, 1].

    Raises:
        InputError: not a batch of float RGB pictures.
    """
    return _each(clean, chance, _rain)


def fog(clean: Tensor, chance: np.random.Generator) -> Tensor:
    """The veil of heavy rain: light scattered by what hangs in the air, unevenly thick. As `rain`."""
    return _each(clean, chance, _fog)


def heavy_rain(clean: Tensor, chance: np.random.Generator) -> Tensor:
    """Fog with streaks before it. As `rain`."""
    return _each(clean, chance, lambda picture, chance: _rain(_fog(picture, chance), chance))


def snow(clean: Tensor, chance: np.random.Generator) -> Tensor:
    """Soft flakes of one to four pixels' radius, more of the small ones. As `rain`."""
    return _each(clean, chance, _snow)


def drops(clean: Tensor, chance: np.random.Generator) -> Tensor:
    """Drops on the lens: each shows the scene upside down, wider and blurred, with a soft darker rim. As `rain`."""
    return _each(clean, chance, _drops)


#: what `weather` may put over a picture
KINDS: dict[str, Callable[[Tensor, np.random.Generator], Tensor]] = {
    "rain": rain,
    "heavy rain": heavy_rain,
    "snow": snow,
    "drops": drops,
}


def weather(clean: Tensor, chance: np.random.Generator, kinds: Sequence[str] = tuple(KINDS)) -> Tensor:
    """One kind of weather over each picture, drawn evenly.

    Args:
        clean: (B, 3, h, w) float in [0, 1].
        chance: what everything is drawn from.
        kinds: of `KINDS`.

    Returns:
        (B, 3, h, w) in [0, 1].

    Raises:
        InputError: not a batch of float RGB pictures.
        UsageError: a kind that there is none of.
    """
    unknown = [k for k in kinds if k not in KINDS]
    if unknown or not kinds:
        raise UsageError(f"no weather named {', '.join(unknown) or 'nothing'}; there is {', '.join(KINDS)}")
    _check(clean)
    drawn = chance.integers(len(kinds), size=len(clean))
    return torch.cat([KINDS[kinds[which]](clean[i : i + 1], chance) for i, which in enumerate(drawn)])


def _check(clean: Tensor) -> None:
    if clean.ndim != 4 or clean.shape[1] != 3 or not clean.is_floating_point() or clean.numel() == 0:
        raise InputError(f"weather is put over float pictures (B, 3, h, w), not {clean.dtype} {tuple(clean.shape)}")


def _each(clean: Tensor, chance: np.random.Generator, over: Callable[[Tensor, np.random.Generator], Tensor]) -> Tensor:
    """Picture by picture, on the CPU in float32, clamped to [0, 1]."""
    _check(clean)
    pictures = clean.detach().to("cpu", torch.float32)
    return torch.stack([over(p, chance).clamp_(0, 1) for p in pictures]).to(clean)


# -- rain


def line(length: int, tilt: float) -> Tensor:
    """(n, n), a line through the middle, antialiased, 1 along its core; ``tilt`` in radians from vertical."""
    half = length // 2 + 1
    y, x = torch.meshgrid(*[torch.arange(-half, half + 1, dtype=torch.float32)] * 2, indexing="ij")
    along = math.cos(tilt) * y + math.sin(tilt) * x
    across = math.cos(tilt) * x - math.sin(tilt) * y
    return (1 - across.abs()).clamp(0, 1) * (length / 2 + 0.5 - along.abs()).clamp(0, 1)


def _impulses(chance: np.random.Generator, h: int, w: int, density: float, low: float, high: float = 1.0) -> Tensor:
    """(1, 1, h, w): zero but for a share ``density`` of the pixels, which are even in [low, high]."""
    there = chance.random((h, w), np.float32) < density
    made = np.zeros((h, w), np.float32)
    made[there] = chance.uniform(low, high, int(there.sum()))
    return torch.from_numpy(made)[None, None]


def _rain(picture: Tensor, chance: np.random.Generator) -> Tensor:
    kernel = line(int(chance.integers(*STREAK)), chance.uniform(-TILT, TILT))[None, None]
    kernel = F.conv2d(kernel, torch.full((1, 1, 1, 3), 1.5 / 3), padding=(0, 2))  # three pixels across
    h, w = picture.shape[1:]
    margin = (kernel.shape[2] - 1, kernel.shape[3] - 1)  # streaks that begin outside of the picture
    seeds = _impulses(chance, h + margin[0], w + margin[1], chance.uniform(0.004, 0.012), 0.5)
    return picture + chance.uniform(0.2, 0.6) * F.conv2d(seeds, kernel)[0]


def _fog(picture: Tensor, chance: np.random.Generator) -> Tensor:
    coarse = torch.from_numpy(chance.standard_normal((1, 1, 4, 4), np.float32))
    uneven = F.interpolate(coarse, size=picture.shape[1:], mode="bicubic", align_corners=True)[0]
    through = (chance.uniform(0.45, 0.85) + 0.07 * uneven).clamp(0.3, 0.95)
    return through * picture + (1 - through) * chance.uniform(0.65, 0.95)


# -- snow


def _snow(picture: Tensor, chance: np.random.Generator) -> Tensor:
    h, w = picture.shape[1:]
    density = chance.uniform(0.003, 0.009)
    clear = torch.ones(1, h, w)
    for radius in (1, 2, 3, 4):
        reach = radius + 1
        r = torch.arange(-reach, reach + 1, dtype=torch.float32)
        disc = (radius + 0.5 - torch.hypot(r[:, None], r[None])).clamp(0, 1)  # soft over one pixel
        seeds = _impulses(chance, h + 2 * reach, w + 2 * reach, density / radius**1.7, 0.5)
        clear = clear * (1 - F.conv2d(seeds, disc[None, None])[0].clamp(max=1))
    return clear * picture + (1 - clear) * FLAKE


# -- drops


def _drops(picture: Tensor, chance: np.random.Generator) -> Tensor:
    h, w = picture.shape[1:]
    rows, columns = (np.broadcast_to(n, (h, w)).astype(np.float32) for n in np.ogrid[:h, :w])
    cover, light = np.zeros((h, w), np.float32), np.ones((h, w), np.float32)
    for _ in range(max(1, int(chance.poisson(h * w * chance.uniform(2e-4, 9e-4))))):
        _drop(chance, rows, columns, cover, light)
    y, x = torch.from_numpy(rows), torch.from_numpy(columns)
    grid = torch.stack((2 * (x + 0.5) / w - 1, 2 * (y + 0.5) / h - 1), -1)
    blurred = F.avg_pool2d(F.pad(picture[None], (2, 2, 2, 2), mode="replicate"), 5, 1)
    seen = F.grid_sample(blurred, grid[None], padding_mode="reflection", align_corners=False)[0]
    a = torch.from_numpy(cover)
    return a * torch.from_numpy(light) * seen + (1 - a) * picture


def _drop(chance: np.random.Generator, rows: Plane, columns: Plane, cover: Plane, light: Plane) -> None:
    """Lay one drop over the maps: where each pixel looks (rows, columns), how much of it is drop, how bright that is.

    A drop is an upright ellipse with a bulge, like two that ran together; it looks at the scene around its middle
    turned over and widened, as a thick lens does.
    """
    h, w = cover.shape
    cy, cx = chance.uniform(0, h), chance.uniform(0, w)
    radius = 3 * math.exp(chance.uniform(0, 1.5))  # 3 to 13 px, more of the small ones
    stretch, wide, shade = chance.uniform(1, 1.4), chance.uniform(1.5, 4), chance.uniform(0.75, 1.2)
    by, bx = chance.normal(0, 0.35 * radius, 2)
    reach = 2.2 * radius
    top, left = max(0, int(cy - reach)), max(0, int(cx - reach))
    window = np.s_[top : int(cy + reach) + 1, left : int(cx + reach) + 1]
    y = np.arange(h, dtype=np.float32)[window[0], None] - cy
    x = np.arange(w, dtype=np.float32)[None, window[1]] - cx
    body = np.hypot(y / stretch, x)
    bulge = np.hypot((y - by) / stretch, x - bx) / 0.8
    distance = np.minimum(body, bulge) / radius  # 1 at the edge
    a = np.clip((1 - distance) * radius / 2 + 0.5, 0, 1).astype(np.float32)  # soft over two pixels
    inside = a > 0
    rows[window][inside] = np.broadcast_to(cy - wide * y, a.shape)[inside]
    columns[window][inside] = np.broadcast_to(cx - wide * x, a.shape)[inside]
    light[window][inside] = (shade * (1 - 0.35 * np.clip(distance, 0, 1) ** 4))[inside]
    cover[window] = np.maximum(cover[window], a)
