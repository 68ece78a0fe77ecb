"""Cleaner: a blind denoiser and JPEG cleaner for a CPU. Ours, from known parts.

    picture (B,3,h,w) -- unshuffle 2 -- conv -- blocks, w -- half -- blocks, 2w -- half -- blocks, 2w --.
                                                   |                   |                             |
    picture (+) -- shuffle 2 -- conv -- blocks, w -(+)- double -- blocks (+) ---------- double ------'

Everything is computed at half the picture's size and below, as in FFDNet (Zhang et al., "FFDNet: Toward a Fast and
Flexible Solution for CNN based Image Denoising", arXiv:1710.04026): a pixel that the convolutions see costs a quarter,
and what they see reaches twice as far. The U shape is that of Ronneberger et al., arXiv:1505.04597, with the residual
blocks, 2x2 strided convolutions and sums instead of concatenations of DRUNet (Zhang et al., arXiv:2008.13751). There is
no norm, so an output pixel depends on its surroundings alone and tiles are exact. It is told neither the strength of
the noise nor the quality of the JPEG.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import UsageError
from saccade.nn.pictures import check_picture
from saccade.registry import register

__all__ = ["Cleaner"]


class Block(nn.Module):
    """x + conv(ReLU(conv(x))): (B, c, h, w) -> the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        with torch.no_grad():
            self.conv2.weight.mul_(0.1)  # nearly the identity at first

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(x)))


def _blocks(width: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(Block(width) for _ in range(count)))


class Cleaner(nn.Module):
    """U-shaped residual network at half size (see the module).

    Args:
        widths: channels of the three levels.
        down, bottom, up: residual blocks a level on the way down, at the bottom, on the way up.

    Shape: (B, 3, H, W) RGB in [0, 1], any size -> the same, not clamped. Sides that are no multiples of 8 are continued
        by their last pixels and cut again.

    Raises:
        UsageError: no channels or a negative number of blocks.
        InputError: in evaluation mode, what is no RGB picture in [0, 1] (values are looked at on the CPU).
    """

    multiple = 8  # pixels of the grid that tiles have to keep to

    def __init__(
        self,
        widths: Sequence[int] = (32, 64, 64),
        down: Sequence[int] = (1, 1),
        bottom: int = 2,
        up: Sequence[int] = (2, 1),
    ) -> None:
        super().__init__()
        if min(widths) < 1 or min(*down, bottom, *up) < 0:
            raise UsageError(f"a cleaner needs channels and no negative depth, not {widths}, {down}, {bottom}, {up}")
        first, second, third = widths
        self.head = nn.Conv2d(12, first, 3, padding=1)
        self.down1, self.down2 = _blocks(first, down[0]), _blocks(second, down[1])
        self.half1 = nn.Conv2d(first, second, 2, stride=2)
        self.half2 = nn.Conv2d(second, third, 2, stride=2)
        self.bottom = _blocks(third, bottom)
        self.double2 = nn.ConvTranspose2d(third, second, 2, stride=2)
        self.double1 = nn.ConvTranspose2d(second, first, 2, stride=2)
        self.up1, self.up2 = _blocks(first, up[0]), _blocks(second, up[1])
        self.tail = nn.Conv2d(first, 12, 3, padding=1)
        nn.init.zeros_(self.tail.weight)
        at8, at4 = 2 * bottom, 2 * (down[1] + up[1])
        at2 = 2 * (down[0] + up[0]) + 2
        self.halo = 8 * at8 + 4 * at4 + 2 * at2 + 8  # 3x3 convolutions by the step of their grid, and the grid

    def forward(self, picture: Tensor) -> Tensor:
        if not self.training:
            check_picture(picture, 3, "the cleaner")
        height, width = picture.shape[-2:]
        whole = F.pad(picture, (0, -width % 8, 0, -height % 8), mode="replicate")
        one = self.down1(self.head(F.pixel_unshuffle(whole, 2)))  # (B, w, h/2, w/2)
        two = self.down2(self.half1(one))  # (B, 2w, h/4, w/4)
        x = self.bottom(self.half2(two))  # (B, 2w, h/8, w/8)
        x = self.up2(self.double2(x) + two)
        x = self.up1(self.double1(x) + one)
        made = whole + F.pixel_shuffle(self.tail(x), 2)
        return made[..., :height, :width]


@register("cleaner", system="", task="restoration", removes=("noise", "jpeg"), halo=72, grid=8, macs=28_608)
def cleaner() -> Cleaner:
    """407,244 parameters, 28.6 k MACs a pixel."""
    return Cleaner()


@register("cleaner_small", system="", task="restoration", removes=("noise", "jpeg"), halo=72, grid=8, macs=7_584)
def cleaner_small() -> Cleaner:
    """Half as wide: a quarter of the cost."""
    return Cleaner(widths=(16, 32, 32))
