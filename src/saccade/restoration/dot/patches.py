"""Overlapping patches: taken apart, mapped, averaged together - and all of it as one small convolution.

    latent (B,c,h,w) -- pad p//2 -- unfold -- (B, c p^2, h w) -- T (x - m_s) + m_t -- weigh, fold, divide -- (B,c,h,w)

The map is affine and folding is linear, so away from the borders the whole is one convolution of (2p-1) x (2p-1) taps
and a bias: an output sees, through each of the p^2 patches that it lies in, p^2 inputs. Patches are centred inside the
picture, so within p//2 of the border fewer take part; these strips go through patches.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Map", "fold_weights", "patchify"]

CHUNK = 1 << 22  # numbers of patches held at a time, about: 32 MiB in float64
LANES = 16  # channels that the convolution should have: as many pixels of a block as fit are taken as channels


def patchify(latent: Tensor, patch: int) -> Tensor:
    """All whole patches: (B, c, h, w) -> (B (h-p+1) (w-p+1), c p^2), a patch in the order (c, y, x)."""
    return F.unfold(latent, patch).mT.flatten(0, 1)


def fold_weights(patch: int, size: int, sigma: float | None) -> Tensor:
    """(p, p) float64: weights of a patch's pixels, a Gaussian (None: even) of ``size`` taps, zero around it."""
    place = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    line = torch.ones_like(place) if sigma is None else torch.exp(-0.5 * (place / sigma) ** 2)
    line = F.pad(line / line.sum(), ((patch - size) // 2,) * 2)
    return line[:, None] * line


class Map:
    """An affine map of patches, applied to all patches of a latent.

    Args:
        operator: T (d, d) float64, d = c p^2.
        mean_source, mean_target: (d,) float64.
        weights: (p, p) of `fold_weights`.
        noise: covariance (d, d) of noise that every patch gets, or None.
    """

    def __init__(
        self, operator: Tensor, mean_source: Tensor, mean_target: Tensor, weights: Tensor, noise: Tensor | None = None
    ) -> None:
        self.operator, self.mean_source, self.mean_target, self.weights = operator, mean_source, mean_target, weights
        self.patch = len(weights)
        self.channels = len(operator) // self.patch**2
        self.noise = noise
        self._kernels: dict[tuple[torch.dtype, torch.device, int], tuple[Tensor, Tensor]] = {}

    def slow(self, latent: Tensor, chance: torch.Generator | None = None, *, one_noise: bool = False) -> Tensor:
        """Patch by patch, in float64: (B, c, h, w) -> the same. The truth of `fast`.

        Args:
            chance: decides the noise; needed where there is some.
            one_noise: the same noise for every patch, as the official code adds it.
        """
        p, (count, _, height, width) = self.patch, latent.shape
        half = p // 2
        padded = F.pad(latent.double(), (half,) * 4, mode="replicate")
        drawn = self._drawn(chance)
        shared = drawn(1, 1) if one_noise else None
        total = padded.new_zeros(padded.shape)
        weight = self.weights.to(total.device).repeat(self.channels, 1, 1).view(1, -1, 1)
        rows = max(1, CHUNK // (len(self.operator) * width * count))
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            band = padded[:, :, top : bottom + 2 * half]
            patches = F.unfold(band, p)  # (B, d, n)
            made = self.operator @ (patches - self.mean_source[:, None]) + self.mean_target[:, None]
            made += drawn(count, made.shape[2]) if shared is None else shared
            total[:, :, top : bottom + 2 * half] += F.fold(made * weight, band.shape[2:], p)
        inside = total[:, :, half : half + height, half : half + width]
        return (inside / self._coverage(height, width)).to(latent.dtype)

    def _drawn(self, chance: torch.Generator | None) -> Callable[[int, int], Tensor]:
        """A function (B, n) -> noise (B, d, n), zero where there is none."""
        if self.noise is None:
            return lambda count, n: self.operator.new_zeros(())
        from saccade.restoration.dot.gaussian import root

        spread = root(self.noise)
        size = len(spread)
        return lambda count, n: spread @ torch.randn(count, size, n, generator=chance, dtype=spread.dtype).to(spread)

    def _coverage(self, height: int, width: int) -> Tensor:
        """(h, w): the weights that fall on every pixel, from patches centred inside."""
        weights, half = self.weights, self.patch // 2
        lines = []
        for line, length in ((weights.sum(1), height), (weights.sum(0), width)):
            covered = weights.new_zeros(length + 2 * half)
            for i, value in enumerate(line.tolist()):
                covered[i : i + length] += value
            lines.append(covered[half : half + length])
        return lines[0][:, None] * lines[1] / weights.sum()

    def kernel(self) -> tuple[Tensor, Tensor]:
        """The whole as a convolution: (c, c, 2p-1, 2p-1) and a bias (c,), float64."""
        p, c = self.patch, self.channels
        weights = self.weights / self.weights.sum()
        operator = self.operator.view(c, p, p, c, p, p)
        kernel = operator.new_zeros(c, c, 2 * p - 1, 2 * p - 1)
        for y in range(p):  # the output's place in the patch; tap k of the patch is then k - (y, x) away
            for x in range(p):
                kernel[:, :, p - 1 - y : 2 * p - 1 - y, p - 1 - x : 2 * p - 1 - x] += weights[y, x] * operator[:, y, x]
        shift = (self.mean_target - self.operator @ self.mean_source).view(c, p, p)
        return kernel, (shift * weights).sum((1, 2))

    def fast(self, latent: Tensor, chance: torch.Generator | None = None) -> Tensor:
        """As `slow`, noise apart, in the latent's own precision: one convolution, and patches along the borders."""
        p, (height, width) = self.patch, latent.shape[2:]
        half = p // 2
        if self.noise is not None or min(height, width) < 6 * half + 1:
            return self.slow(latent, chance)
        made = self._convolved(latent)
        for turned, out in ((latent, made), (latent.mT, made.mT)):
            for flip in (False, True):
                self._edge(turned, out, half, flip, out is made)
        return made

    def _edge(self, latent: Tensor, made: Tensor, half: int, last: bool, rows: bool) -> None:
        """Write the first or last p//2 rows of (B, c, h, w), seen as they lie or transposed, from patches."""
        if half == 0:
            return
        tall = 3 * half
        strip = latent[:, :, -tall:] if last else latent[:, :, :tall]
        exact = self.slow(strip if rows else strip.mT)
        exact = exact if rows else exact.mT
        place = slice(-half, None) if last else slice(None, half)
        made[:, :, place] = exact[:, :, place]

    def _convolved(self, latent: Tensor) -> Tensor:
        """The convolution, over blocks of pixels as channels."""
        height, width = latent.shape[2:]
        side = next((s for s in (4, 2) if self.channels * s * s <= LANES), 1)
        kernel, bias = self._blocked(side, latent.dtype, latent.device)
        around = -(-(self.patch - 1) // side) * side  # whole blocks
        below, beside = -height % side, -width % side
        padded = F.pad(latent, (around, around + beside, around, around + below), mode="replicate")
        made = F.conv2d(F.pixel_unshuffle(padded, side), kernel, bias)
        return F.pixel_shuffle(made, side)[:, :, :height, :width].contiguous()

    def _blocked(self, side: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """`kernel` between blocks of side x side pixels: (c s^2, c s^2, n, n) and (c s^2,)."""
        key = (dtype, device, side)
        if key not in self._kernels:
            kernel, bias = self.kernel()
            p, c = self.patch, self.channels
            before = -(-(p - 1) // side) * side
            count = 2 * before // side + 1
            blocks = kernel.new_zeros(c, side, side, c, count * side, count * side)
            for y in range(side):  # the output's place in its block
                for x in range(side):
                    top, left = y + before - (p - 1), x + before - (p - 1)
                    blocks[:, y, x, :, top : top + 2 * p - 1, left : left + 2 * p - 1] = kernel
            blocks = blocks.view(c * side**2, c, count, side, count, side).permute(0, 1, 3, 5, 2, 4)
            blocks = blocks.reshape(c * side**2, c * side**2, count, count).to(device, dtype)
            self._kernels[key] = blocks, bias.repeat_interleave(side**2).to(device, dtype)
        return self._kernels[key]
