"""Pooling windows that grow with eccentricity, and the regions that they make on a grid of features.

Freeman and Simoncelli, "Metamers of the ventral stream", Nature Neuroscience 2011, equations 9 to 11; the sizes are
those of Deza and Konkle, arXiv:2006.07991. Around the fixation a picture is laid out in log-polar coordinates

    ring   rho = (log2 r - log2 r0) / w - 1     w = 2 log2((s + sqrt(s^2 + 4)) / 2)     r0 = 0.0125 sqrt(H W)
    spoke  phi = theta N / (2 pi)               N = round(2 pi aspect / (2^(w/2) - 2^(-w/2))) = round(2 pi aspect / s)

and window (k, j) weighs a pixel by b(rho - k) b(phi - j): b is 1 in the middle, falls as a squared cosine over the
overlap ``o`` and is 0 beyond (1 + o) / 2, so that neighbours add up to 1. At half height a window is s times as wide as
its eccentricity. What lies inside the first ring is the fovea, window 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from saccade.errors import InputError, UsageError
from saccade.ops.segment_stats import segment_sizes

__all__ = ["ASPECT", "DEGREES", "Painting", "Regions", "Windows", "blending", "painted_regions", "pooling_regions"]

Floats = NDArray[np.float64]
Painting = Literal["strongest", "order"]

OVERLAP = 0.5  # of neighbouring windows, as a part of their distance
ASPECT = 2.0  # radial over angular extent
FOVEA = 0.025  # radius around the fixation without windows, as a part of half the picture's side
DEGREES = 26.0  # of the visual field that a picture fills
BLEND = 1.281  # fitted to what people could not tell apart, per degree
PAINTED = 0.001  # weight from which a cell belongs to an overlapping window
LEAST = 2  # cells of a region: the variance of one is not defined


def bump(x: Floats) -> Floats:
    """b: 1 near 0, 1/2 at 1/2, 0 from (1 + o) / 2 on."""
    ramp = np.clip((np.abs(x) - (1 - OVERLAP) / 2) / OVERLAP, 0, 1)
    return np.asarray(np.cos(np.pi / 2 * ramp) ** 2)


@dataclass(frozen=True)
class Windows:
    """The windows of one size of picture.

    Args:
        size: (height, width) of the picture in pixels.
        scale: s, diameter over eccentricity; 0.4 in the paper, 0.25 to 0.7 were published.
        fixation: (x, y) as parts of width and height, (0.5, 0.5) in the middle.

    Raises:
        UsageError: an empty picture, a scale outside [0.05, 2], or a fixation outside the picture.
    """

    size: tuple[int, int]
    scale: float = 0.4
    fixation: tuple[float, float] = (0.5, 0.5)

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 1:
            raise UsageError(f"a picture has a height and a width, not {self.size}")
        if not 0.05 <= self.scale <= 2:
            raise UsageError(f"windows grow by 0.05 to 2 times their eccentricity, not by {self.scale}")
        if len(self.fixation) != 2 or not all(0 <= part <= 1 for part in self.fixation):
            raise UsageError(
                f"the fixation {tuple(self.fixation)} lies outside the picture: it is (x, y) as parts of width and "
                "height, from 0 to 1"
            )

    @property
    def foveal_radius(self) -> float:
        """r0 in pixels."""
        return FOVEA * math.sqrt(self.size[0] * self.size[1]) / 2

    @property
    def octaves(self) -> float:
        """w, from ring to ring."""
        return 2 * math.log2((self.scale + math.sqrt(self.scale**2 + 4)) / 2)

    @property
    def spokes(self) -> int:
        """N, windows of a ring."""
        return round(2 * math.pi * ASPECT / (2 ** (self.octaves / 2) - 2 ** (-self.octaves / 2)))

    @property
    def rings(self) -> int:
        """So many that the farthest corner lies within."""
        far = math.hypot(
            *(max(part, 1 - part) * side for part, side in zip(self.fixation, self.size[::-1], strict=True))
        )
        return max(1, math.ceil(math.log2(far / self.foveal_radius) / self.octaves))

    def radius(self, ring: int) -> float:
        """Eccentricity of a ring's middle in pixels, rings from 0."""
        return float(self.foveal_radius * 2 ** (self.octaves * (ring + 1)))

    def rho(self) -> NDArray[np.float32]:
        """rho at the middles of pixels in single precision, (H, W), made a row at a time."""
        height, width = self.size
        across = (np.arange(width) + 0.5 - self.fixation[0] * width) ** 2
        out = np.empty((height, width), np.float32)
        for row in range(height):
            squares = np.maximum(across + (row + 0.5 - self.fixation[1] * height) ** 2, 1e-12)
            out[row] = np.log2(squares / self.foveal_radius**2) / (2 * self.octaves) - 1
        return out

    def coordinates(self, stride: int = 1) -> tuple[Floats, Floats]:
        """rho and phi at the middles of cells of ``stride`` pixels, (h, w) each."""
        height, width = (side // stride for side in self.size)
        y = (np.arange(height) + 0.5) * stride - self.fixation[1] * self.size[0]
        x = (np.arange(width) + 0.5) * stride - self.fixation[0] * self.size[1]
        radii = np.maximum(np.hypot(y[:, None], x), 1e-6)  # a pixel's middle may be the fixation itself
        rho = np.log2(radii / self.foveal_radius) / self.octaves - 1
        return rho, np.mod(np.arctan2(y[:, None], x[None]) / (2 * np.pi), 1.0) * self.spokes

    def ring_weights(self) -> Floats:
        """The rings without their spokes, the fovea first: (1 + rings, H, W), adding up to 1 in every pixel."""
        rho, _ = self.coordinates()
        rings = [bump(rho - k) for k in range(self.rings)]
        return np.stack([np.clip(1 - np.sum(rings, 0), 0, 1), *rings])

    def weights(self) -> Iterator[tuple[tuple[int, int], Floats]]:
        """Each window that weighs a pixel, with its (ring, spoke); the fovea, (-1, 0), first."""
        rings = self.ring_weights()
        _, phi = self.coordinates()
        around = [bump(np.mod(phi - j + self.spokes / 2, self.spokes) - self.spokes / 2) for j in range(self.spokes)]
        yield (-1, 0), rings[0]
        for k, ring in enumerate(rings[1:]):
            for j, spoke in enumerate(around):
                window = ring * spoke
                if window.any():
                    yield (k, j), window

    def strongest(self, stride: int = 1) -> NDArray[np.int64]:
        """The window that weighs each cell's middle most, (h, w): 0 for the fovea, else 1 + ring * spokes + spoke."""
        rho, phi = self.coordinates(stride)
        ring = np.floor(rho + 0.5).astype(np.int64)
        spoke = np.mod(np.floor(phi + 0.5), self.spokes).astype(np.int64)
        return np.where(ring < 0, 0, 1 + ring * self.spokes + spoke)

    def areas(self) -> NDArray[np.int64]:
        """Pixels that each window weighs by more than one half, (1 + rings * spokes,)."""
        rho, phi = self.coordinates()
        off = phi - np.floor(phi + 0.5)
        strong = (bump(rho - np.floor(rho + 0.5)) * bump(off) > 0.5) | (rho < -0.5)
        return np.bincount(self.strongest()[strong], minlength=1 + self.rings * self.spokes)


def blending(pixels: Tensor, degrees_per_pixel: float = DEGREES / 512) -> Tensor:
    """alpha, how much texture a region of so many pixels gets: -1 + 2 / (1 + exp(-1.281 sqrt(area / 3.14) degrees)).

    Args:
        pixels: (R,), those that the region's window weighs by more than one half, fovea first.

    Returns:
        (R,) in [0, 1): 0 for the first.
    """
    rho = (pixels.float() / 3.14).sqrt() * degrees_per_pixel  # 3.14, as published
    alpha = -1 + 2 / (1 + torch.exp(-BLEND * rho))
    return torch.cat([alpha[:1] * 0, alpha[1:]])


@dataclass(frozen=True)
class Regions:
    """Regions of cells on a grid, as `saccade.ops.segment_stats` takes them.

    Attributes:
        grid: (h, w).
        cells, segments: (P,) int64 pairs: this cell (row by row) counts for that region.
        sizes: (R,) int64, cells of each region.
        owner: (h * w,) int64, the region that each cell is painted by; -1 for none (``compat="official"``).
        alpha: (R,) float32 in [0, 1], 0 for the first, the fovea.
    """

    grid: tuple[int, int]
    cells: Tensor
    segments: Tensor
    sizes: Tensor
    owner: Tensor
    alpha: Tensor

    def __len__(self) -> int:
        return len(self.sizes)


def checked_alpha(alpha: Tensor, count: int) -> Tensor:
    """Blends of ``count`` regions.

    Raises:
        InputError: another number of them, or values outside [0, 1].
    """
    if alpha.shape != (count,):
        raise InputError(f"{count} regions need as many values of alpha, not {tuple(alpha.shape)}")
    if not bool(((alpha >= 0) & (alpha <= 1)).all()):
        raise InputError(f"alpha lies in [0, 1], not in [{float(alpha.min()):.3g}, {float(alpha.max()):.3g}]")
    return alpha.float()


def painted_regions(masks: Tensor, alpha: Tensor, *, compat: str | None = None) -> Regions:
    """Overlapping regions, painted in their order: each on all its cells, later ones over earlier ones (published).

    A region's statistics are those of all its cells, those that are painted over later too.

    Args:
        masks: (R, h, w), weights on the grid; a cell belongs where its weight exceeds 0.001. Fovea first.
        alpha: (R,) in [0, 1].
        compat: ``"official"`` leaves cells that no region covers at 0, as the published code does.

    Raises:
        InputError: a region with fewer than two cells, a cell in no region, alpha outside [0, 1].
        UsageError: an unknown ``compat``.
    """
    if compat not in (None, "official"):
        raise UsageError(f"compat is None or 'official', not {compat!r}")
    if masks.ndim != 3 or not len(masks):
        raise InputError(f"masks are (R, h, w), not {tuple(masks.shape)}")
    inside = (masks > PAINTED).flatten(1)  # (R, N)
    segments, cells = inside.nonzero(as_tuple=True)
    order = torch.arange(1, len(masks) + 1)[:, None]
    owner = (inside * order).amax(0) - 1
    bare = int((owner < 0).sum())
    if bare and compat is None:
        raise InputError(f"{bare} of {owner.numel()} cells are in no region; they would stay 0, which is no picture")
    return Regions(
        (masks.shape[1], masks.shape[2]),
        cells,
        segments,
        segment_sizes(segments, len(masks)),
        owner,
        checked_alpha(alpha, len(masks)),
    )


def pooling_regions(windows: Windows, stride: int = 8, *, painting: Painting = "strongest") -> Regions:
    """The regions that windows make on a grid of features.

    Args:
        windows: of the picture.
        stride: pixels of a cell's side.
        painting: ``"strongest"`` gives each cell to the window that weighs it most, so that regions do not overlap and
            keep their statistics exactly; rings whose windows would have fewer than two cells belong to the fovea,
            single cells at the border to their neighbour towards it. ``"order"`` is the published way
            (`painted_regions`), with all windows that the grid resolves.

    Raises:
        InputError: the picture's sides do not divide by the stride.
        UsageError: nothing but the fovea is left at this stride, or an unknown painting.
    """
    if painting not in ("strongest", "order"):
        raise UsageError(f"painting is 'strongest' or 'order', not {painting!r}")
    height, width = windows.size
    if height % stride or width % stride:
        raise InputError(f"sides are multiples of {stride} px, not {width} x {height}")
    degrees = DEGREES / math.sqrt(height * width)
    if painting == "order":
        return _ordered(windows, stride, degrees)
    owner, areas = _merged(windows, stride)
    kept, numbered = np.unique(owner, return_inverse=True)
    if len(kept) < 2 or kept[0] != 0:
        raise UsageError(
            f"at {width} x {height} px, scale {windows.scale:g} and cells of {stride} px nothing but "
            f"{'periphery' if kept[0] else 'the fovea'} is left: take smaller cells, a larger scale or another fixation"
        )
    segments = torch.from_numpy(numbered.reshape(-1).astype(np.int64))
    return Regions(
        (height // stride, width // stride),
        torch.arange(segments.numel(), device="cpu"),
        segments,
        segment_sizes(segments, len(kept)),
        segments,
        blending(torch.from_numpy(areas[kept]), degrees),
    )


def _merged(windows: Windows, stride: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The window of each cell after merging, and the areas of the windows in pixels."""
    owner, areas = windows.strongest(stride), windows.areas()
    spokes = windows.spokes
    for ring in range(windows.rings):  # a window's area at half height is scale r by 2 pi r / N
        if windows.scale * 2 * math.pi * windows.radius(ring) ** 2 / spokes >= LEAST * stride**2:
            break
        owner[(owner > ring * spokes) & (owner <= (ring + 1) * spokes)] = 0
    while True:
        counts = np.bincount(owner.reshape(-1), minlength=len(areas))
        single = np.flatnonzero((counts > 0) & (counts < LEAST))
        single = single[single > 0]
        if not len(single):
            return owner, areas
        window = int(single[-1])
        nearer = max(window - spokes, 0)
        nearer = nearer if counts[nearer] else 0
        owner[owner == window] = nearer
        areas[nearer] += areas[window]


def _ordered(windows: Windows, stride: int, degrees: float) -> Regions:
    masks, areas = list[Tensor](), list[int]()
    grid = (windows.size[0] // stride, windows.size[1] // stride)
    for _, window in windows.weights():
        pixels = torch.from_numpy(window)[None, None]
        small = F.interpolate(pixels, size=grid, mode="bilinear", antialias=True)[0, 0].float()
        area = int((window > 0.5).sum())
        if not masks and (not area or int((small > PAINTED).sum()) < LEAST):
            raise UsageError(f"the fovea is smaller than a pixel at {windows.size[1]} x {windows.size[0]} px")
        if area and int((small > PAINTED).sum()) >= LEAST:
            masks.append(small)
            areas.append(area)
    return painted_regions(torch.stack(masks), blending(torch.tensor(areas, device="cpu"), degrees))
