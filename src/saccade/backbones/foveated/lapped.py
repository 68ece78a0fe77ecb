"""Features with an exact inverse: a lapped orthogonal transform, in the place of a network that has to be trained.

Malvar, "Signal Processing with Lapped Transforms", 1992; in the form of Tran, Liang and Tu, "Lapped Transform via
Time-domain Pre- and Post-filtering", IEEE Transactions on Signal Processing 51(6), 2003. Along each axis

    samples -- orthogonal filter across the borders of blocks -- DCT-II of each block of M -- M bands, stride M

so that a band's wave reaches M/2 samples into the neighbours and fades there: noise put into the bands shows no blocks.
A constant lies in the lowest band alone. Colours go to one lightness and two opponent axes first. All of it is
orthogonal: D(E(x)) = x, and E(D(f)) = f, so that statistics written into the features are those of the picture.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from saccade.errors import InputError, UsageError
from saccade.nn.precision import WideBuffers, widened, without_autocast

__all__ = ["Lapped", "Unlapped"]


def dct_matrix(count: int, kind: int = 2) -> Tensor:
    """Orthonormal DCT-II or DCT-IV, (count, count) float64, a wave a row."""
    n = torch.arange(count, dtype=torch.float64, device="cpu") + 0.5
    k = torch.arange(count, dtype=torch.float64, device="cpu")[:, None] + (0.5 if kind == 4 else 0)
    waves = (2 / count) ** 0.5 * torch.cos(math.pi / count * n * k)
    if kind == 2:
        waves[0] *= 0.5**0.5
    return waves


def _border(block: int) -> Tensor:
    """The filter across a border between blocks, (M, M): what is odd about the border turns, what is even stays."""
    half = block // 2
    eye = torch.eye(half, dtype=torch.float64, device="cpu")
    turned = eye.flip(0)
    butterfly = torch.cat([torch.cat([eye, turned], 1), torch.cat([turned, -eye], 1)]) / 2**0.5
    turn = turned @ dct_matrix(half).mT @ dct_matrix(half, 4) @ turned
    return butterfly @ torch.block_diag(eye, turn) @ butterfly


def _opponent(channels: int) -> Tensor:
    """Orthonormal: lightness, red against blue, green against both; nothing for other numbers of channels."""
    if channels != 3:
        return torch.eye(channels, device="cpu")
    axes = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]], device="cpu")
    return axes / axes.norm(dim=1, keepdim=True)


class _Transform(WideBuffers):
    """The constants of both directions, and arithmetic in float32 at least."""

    waves: Tensor
    border: Tensor
    colours: Tensor

    def __init__(self, block: int, channels: int) -> None:
        super().__init__()
        if block < 2 or block % 2:
            raise UsageError(f"a lapped transform has blocks of 2, 4, 6, ... samples, not of {block}")
        self.stride, self.channels = block, channels
        self.register_buffer("waves", dct_matrix(block).float(), persistent=False)
        self.register_buffer("border", _border(block).float(), persistent=False)
        self.register_buffer("colours", _opponent(channels), persistent=False)

    def filtered(self, x: Tensor, border: Tensor) -> Tensor:
        """The last axis with the filter over every border between blocks; the ends stay as they are."""
        half = self.stride // 2
        inner = x[..., half:-half].unflatten(-1, (-1, self.stride)) @ border.mT
        return torch.cat([x[..., :half], inner.flatten(-2), x[..., -half:]], -1)


class Lapped(_Transform):
    """Analysis: (B, C, H, W) -> (B, C M^2, H/M, W/M).

    Args:
        block: M, even.
        channels: C; three are taken as RGB.

    Raises:
        UsageError: an odd block.
    """

    def __init__(self, block: int = 8, channels: int = 3) -> None:
        super().__init__(block, channels)

    def forward(self, picture: Tensor) -> Tensor:
        if not torch.compiler.is_compiling() and (
            picture.shape[1] != self.channels or any(side % self.stride or not side for side in picture.shape[2:])
        ):
            raise InputError(
                f"the lapped transform takes {self.channels} channels and sides that are multiples of "
                f"{self.stride} px, not {tuple(picture.shape)}"
            )
        with without_autocast(picture):
            return self._bands(widened(picture)).to(picture.dtype)

    def _bands(self, picture: Tensor) -> Tensor:
        batch, channels, height, width = picture.shape
        x = (self.colours @ picture.flatten(2)).view(batch, channels, height, width)
        x = self.filtered(self.filtered(x, self.border).mT, self.border).mT
        blocks = x.view(batch, channels, height // self.stride, self.stride, width // self.stride, self.stride)
        bands = self.waves @ blocks.transpose(3, 4) @ self.waves.mT  # (B, C, h, w, M, M)
        return bands.permute(0, 1, 4, 5, 2, 3).flatten(1, 3)


class Unlapped(_Transform):
    """Synthesis, the inverse of `Lapped`: (B, C M^2, h, w) -> (B, C, M h, M w)."""

    def __init__(self, block: int = 8, channels: int = 3) -> None:
        super().__init__(block, channels)

    def forward(self, features: Tensor) -> Tensor:
        with without_autocast(features):
            return self._picture(widened(features)).to(features.dtype)

    def _picture(self, features: Tensor) -> Tensor:
        batch, _, rows, columns = features.shape
        size, m = (rows * self.stride, columns * self.stride), self.stride
        bands = features.view(batch, self.channels, m, m, rows, columns).permute(0, 1, 4, 5, 2, 3)
        blocks = self.waves.mT @ bands @ self.waves
        x = blocks.transpose(3, 4).reshape(batch, self.channels, *size)
        x = self.filtered(self.filtered(x, self.border.mT).mT, self.border.mT).mT
        return (self.colours.mT @ x.flatten(2)).view(batch, self.channels, *size)
