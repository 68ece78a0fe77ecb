"""The two controls that lose as much, without texture: one Gaussian for all, or wider ones farther out.

Gaussians are cut off at a number of deviations, and the picture's border goes on outwards. The plain way is two
convolutions (`gaussian_blur_plainly`, the truth). Ours multiplies wide ones as banded matrices, block by block: the
same numbers to rounding. Where ``exact`` is off, a Gaussian of 16 pixels and more is evaluated at every d-th row and
column alone, d = floor(sigma / 8), and goes between them by cubic interpolation (Lagrange's four points): in pictures
of [0, 1] no value is farther than `BOUND` from the exact one.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.backbones.foveated.windows import OVERLAP, Windows
from saccade.errors import InputError, UsageError
from saccade.nn.precision import WideBuffers, widened, without_autocast
from saccade.ops.ssim import gaussian
from saccade.quality.structure import ssim

__all__ = ["BOUND", "FoveatedBlur", "UniformBlur", "gaussian_blur", "gaussian_blur_plainly", "matched"]

NARROW = 0.2  # pixels; a narrower Gaussian changes less than one part in 10^5
REACH = 3.0  # deviations at which a Gaussian is cut off
SHORT = 12  # pixels of a kernel's radius up to which a convolution takes no longer than products
STRIP = 128  # rows and columns that are made at once
WIDE = 16.0  # pixels of deviation from which a Gaussian may be evaluated on a coarse grid
FINENESS = 8  # points of that grid in a deviation, at least
#: how far a Gaussian on a coarse grid is from the exact one at the most, in pictures of [0, 1]: half the sum of
#: magnitudes of the difference of their kernels, both axes together, is 0.00079 for wide ones. A fifth of 1/255.
BOUND = 8e-4


def checked_sigma(sigma: float) -> float:
    """A deviation in pixels.

    Raises:
        UsageError: a negative one, or one that is not finite.
    """
    if not (sigma >= 0 and math.isfinite(sigma)):
        raise UsageError(f"the deviation of a Gaussian is 0 or more pixels, not {sigma}")
    return sigma


def gaussian_blur(x: Tensor, sigma: float, *, reach: float = REACH, exact: bool = True) -> Tensor:
    """Convolve with a Gaussian; the border is repeated outwards. Half precision is added up in float32.

    Args:
        x: (B, C, H, W).
        sigma: deviation in pixels; 0 leaves the picture as it is.
        reach: deviations to which the taps go on either side, rounded up to pixels.
        exact: to rounding; False: within `BOUND`, in a time that hardly depends on sigma. Compiled and exported graphs
            always are exact.

    Raises:
        UsageError: a sigma that is negative or not finite.
    """
    if checked_sigma(sigma) < NARROW:
        return x
    wide = widened(x)
    with without_autocast(x):
        if torch.compiler.is_compiling() or math.ceil(reach * sigma) <= SHORT:
            return gaussian_blur_plainly(wide, sigma, reach=reach).to(x.dtype)
        blurred = Blurred(wide, sigma, reach, exact=exact)
        height, width = x.shape[2:]
        return torch.cat([blurred.window(rows, (0, width)) for rows in strips(0, height)], 2).to(x.dtype)


def gaussian_blur_plainly(x: Tensor, sigma: float, *, reach: float = REACH) -> Tensor:
    """`gaussian_blur` as two convolutions, the truth."""
    radius = math.ceil(reach * sigma)
    kernel = torch.tensor(gaussian(2 * radius + 1, sigma), dtype=x.dtype, device=x.device)
    channels = x.shape[1]
    wide = F.pad(x, (radius,) * 4, mode="replicate")
    rows = F.conv2d(wide, kernel.expand(channels, 1, 1, -1), groups=channels)
    return F.conv2d(rows, kernel[:, None].expand(channels, 1, -1, 1), groups=channels)


def strips(start: int, stop: int) -> list[tuple[int, int]]:
    """``start`` to ``stop`` in pieces of `STRIP`."""
    return [(at, min(at + STRIP, stop)) for at in range(start, stop, STRIP)]


class Blurred:
    """A picture behind one Gaussian, to be read window by window.

    Args:
        x: (B, C, H, W), float32 or float64.
        sigma, reach: as `gaussian_blur`.
        exact: False allows a coarse grid where sigma is wide.
        box: (first row, behind the last, first column, behind the last) of all that will be read; None for everything.
    """

    def __init__(
        self,
        x: Tensor,
        sigma: float,
        reach: float = REACH,
        *,
        exact: bool = True,
        box: tuple[int, int, int, int] | None = None,
    ) -> None:
        self.x, self.radius = x, math.ceil(reach * sigma)
        self.taps = torch.tensor(gaussian(2 * self.radius + 1, sigma), dtype=x.dtype, device=x.device)
        self.step = 1 if exact or sigma < WIDE else int(sigma // FINENESS)
        if self.step > 1:
            top, bottom, left, right = (0, x.shape[2], 0, x.shape[3]) if box is None else box
            self.rows, self.columns = (
                (first, self._points(last - first)) for first, last in ((top, bottom), (left, right))
            )
            down = self._along(x, 2, *self.rows)
            self.coarse = self._along(down, 3, *self.columns)

    def _points(self, length: int) -> int:
        """Points of the grid that interpolate ``length`` pixels: one before, two behind."""
        return (length - 1) // self.step + 4

    def _along(self, x: Tensor, axis: int, first: int, count: int) -> Tensor:
        """The blur along an axis at every step-th place: (B, C, ...) with ``count`` places on that axis."""
        places = first - self.step + self.step * torch.arange(count, device=x.device)
        made = []
        for some in places.split(STRIP):
            low, matrix = self._matrix(some, x.shape[axis])
            seen = x.narrow(axis, low, matrix.shape[1])
            made.append(matrix @ seen if axis == 2 else seen @ matrix.mT)
        return torch.cat(made, axis)

    def _matrix(self, places: Tensor, length: int) -> tuple[int, Tensor]:
        """The first pixel that places see, and what they multiply it and those behind it with: (places, pixels)."""
        offsets = torch.arange(-self.radius, self.radius + 1, device=places.device)
        seen = (places[:, None] + offsets).clamp(0, length - 1)  # the border goes on outwards
        low, high = int(seen[0, 0]), int(seen[-1, -1])
        matrix = self.taps.new_zeros(len(places), high - low + 1)
        return low, matrix.scatter_add_(1, seen - low, self.taps.expand(len(places), -1))

    def window(self, rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
        """(B, C, rows, columns), each given as first and behind the last."""
        if self.step > 1:
            down = self._between(*rows, *self.rows)
            across = self._between(*columns, *self.columns)
            return down @ self.coarse @ across.mT
        height, width = self.x.shape[2:]
        low, matrix = self._matrix(torch.arange(*rows, device=self.x.device), height)
        left, right = max(columns[0] - self.radius, 0), min(columns[1] + self.radius, width)
        down = matrix @ self.x[:, :, low : low + matrix.shape[1], left:right]
        made = []
        for piece in strips(*columns):
            # places count from the window's own first column; its ends are the picture's, or out of reach
            low, matrix = self._matrix(torch.arange(*piece, device=self.x.device) - left, right - left)
            made.append(down[..., low : low + matrix.shape[1]] @ matrix.mT)
        return torch.cat(made, 3)

    def _between(self, first: int, last: int, origin: int, count: int) -> Tensor:
        """Lagrange's cubic interpolation from the grid to pixels, (pixels, points)."""
        pixels = torch.arange(first - origin, last - origin, device=self.x.device)
        t = (pixels % self.step).to(self.x.dtype) / self.step
        weights = (
            -t * (t - 1) * (t - 2) / 6,
            (t + 1) * (t - 1) * (t - 2) / 2,
            -(t + 1) * t * (t - 2) / 2,
            (t + 1) * t * (t - 1) / 6,
        )
        matrix = self.x.new_zeros(len(pixels), count)
        points = (pixels // self.step)[:, None] + torch.arange(4, device=self.x.device)
        return matrix.scatter_(1, points, torch.stack(weights, 1))


class UniformBlur(nn.Module):
    """One Gaussian everywhere: (B, C, H, W) -> the same.

    Args:
        sigma: deviation in pixels.
        exact: as `gaussian_blur`.

    Raises:
        UsageError: a sigma that is negative or not finite.
    """

    def __init__(self, sigma: float, *, exact: bool = True) -> None:
        super().__init__()
        self.sigma, self.exact = checked_sigma(sigma), exact

    def forward(self, picture: Tensor) -> Tensor:
        return gaussian_blur(picture, self.sigma, exact=self.exact)


class FoveatedBlur(WideBuffers):
    """A Gaussian whose deviation grows with eccentricity, ring of pooling windows by ring.

        out = sum over rings k of weight_k(pixel) (G_{gain r_k} * x)(pixel)

    All windows of a ring have the same eccentricity r_k, so a ring is blurred at once, and only where it weighs
    anything; the windows' ramps join the rings. The fovea, inside the first ring, stays. Beside the picture and the
    result, 4 bytes a pixel are held, and strips of `STRIP` rows.

    Args:
        size: (height, width).
        scale, fixation: of the windows, as `Windows`.
        gain: deviation over eccentricity.
        exact: as `gaussian_blur`.

    Shape: (B, C, H, W) -> the same.

    Raises:
        UsageError: a negative gain.
        InputError: pictures of another size.
    """

    rho: Tensor

    def __init__(
        self,
        size: tuple[int, int],
        scale: float = 0.4,
        fixation: tuple[float, float] = (0.5, 0.5),
        *,
        gain: float,
        exact: bool = True,
    ) -> None:
        super().__init__()
        if not (gain >= 0 and math.isfinite(gain)):
            raise UsageError(f"the gain of the blur is 0 or more, not {gain}")
        self.windows = Windows(size, scale, fixation)
        self.size, self.gain, self.exact = size, gain, exact
        self.sigmas = [gain * self.windows.radius(k) for k in range(self.windows.rings)]
        self.register_buffer("rho", torch.from_numpy(self.windows.rho()), persistent=False)

    def forward(self, picture: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return self._whole(picture)
        if tuple(picture.shape[2:]) != tuple(self.size):
            raise InputError(
                f"these windows were built for {self.size[1]} x {self.size[0]} px, not for {tuple(picture.shape)}"
            )
        x = widened(picture)
        with without_autocast(picture):
            out = torch.zeros_like(x)
            for ring, sigma in enumerate(self.sigmas):
                self._add_ring(out, x, ring, sigma)
            for top, bottom in strips(0, self.size[0]):
                rows = slice(top, bottom)
                out[:, :, rows] += foveal(self.rho[rows]).to(x.dtype) * x[:, :, rows]
        return out.to(picture.dtype)

    def _add_ring(self, out: Tensor, x: Tensor, ring: int, sigma: float) -> None:
        """One ring's share of the result, in place, strip by strip."""
        outer = self.windows.foveal_radius * 2 ** (self.windows.octaves * (ring + 1 + (1 + OVERLAP) / 2))
        height, width = self.size
        middle, across = self.windows.fixation[1] * height, self.windows.fixation[0] * width
        top, bottom = max(0, math.floor(middle - outer)), min(height, math.ceil(middle + outer))
        left, right = max(0, math.floor(across - outer)), min(width, math.ceil(across + outer))
        if top >= bottom or left >= right:
            return
        blurred = None
        if sigma >= NARROW:
            blurred = Blurred(x, sigma, exact=self.exact, box=(top, bottom, left, right))
        for rows in strips(top, bottom):
            weight = ringed(self.rho[rows[0] : rows[1], left:right], ring)
            used = weight.any(0).nonzero().flatten()
            if not len(used):
                continue
            first, last = left + int(used[0]), left + int(used[-1]) + 1
            place = (..., slice(*rows), slice(first, last))
            part = x[place] if blurred is None else blurred.window(rows, (first, last))
            out[place] += weight[:, first - left : last - left].to(x.dtype) * part

    def _whole(self, picture: Tensor) -> Tensor:
        """Every ring over the whole picture by convolutions: what a graph holds, and the truth."""
        x = widened(picture)
        with without_autocast(picture):
            out = foveal(self.rho).to(x.dtype) * x
            for ring, sigma in enumerate(self.sigmas):
                blurred = gaussian_blur_plainly(x, sigma) if sigma >= NARROW else x
                out = out + ringed(self.rho, ring).to(x.dtype) * blurred
        return out.to(picture.dtype)


def ringed(rho: Tensor, ring: int) -> Tensor:
    """b(rho - k), the weight of ring k at these coordinates (`windows.bump`)."""
    ramp = ((rho - ring).abs() - (1 - OVERLAP) / 2) / OVERLAP
    weight: Tensor = torch.cos(math.pi / 2 * ramp.clamp(0, 1)).square()
    return torch.where(ramp < 1, weight, 0)


def foveal(rho: Tensor) -> Tensor:
    """What the first ring leaves inside it."""
    return 1 - ringed(rho.clamp(max=0), 0)


def matched(
    degrade: Callable[[float], Tensor],
    reference: Tensor,
    similarity: float,
    *,
    high: float,
    tolerance: float = 0.005,
) -> float:
    """The strength at which degraded pictures are as similar to the reference as asked for, by bisection on mean SSIM.

    Args:
        degrade: of a strength, 0 for none, gives pictures (B, C, H, W) in [0, 1]; similarity falls with strength.
        reference: (B, C, H, W) in [0, 1].
        similarity: mean SSIM to meet, e.g. that of the texture pictures to the reference.
        high: a strength that is more than enough.
        tolerance: of the SSIM.

    Raises:
        InputError: not even the strongest degrades that much.
    """
    low, found = 0.0, math.nan
    for _ in range(60):
        middle = (low + high) / 2
        found = float(ssim(degrade(middle).clamp(0, 1), reference).mean())
        if abs(found - similarity) <= tolerance:
            return middle
        low, high = (middle, high) if found > similarity else (low, middle)
    raise InputError(f"no strength gives an SSIM of {similarity:.3f} within {tolerance:g}; the last gave {found:.3f}")
