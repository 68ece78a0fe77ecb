"""Blur that belongs into a picture: soft regions out of focus or in motion, with the mask of where they are.

A stand-in for photographs with bokeh and motion blur and their masks, made from sharp ones.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.data.degrade.kernels import filter_each
from saccade.errors import InputError

__all__ = ["disc_kernel", "intended_blur", "line_kernel", "soft_masks"]


def disc_kernel(radius: float, size: int) -> Tensor:
    """A lens out of focus: a disc with soft edges, (size, size), sum 1."""
    place = torch.arange(size) - size // 2
    distance = (place[:, None] ** 2 + place[None, :] ** 2).float().sqrt()
    kernel = (radius + 0.5 - distance).clamp(0, 1)
    return kernel / kernel.sum()


def line_kernel(length: float, angle: float, size: int) -> Tensor:
    """A camera in motion: a line of ``length`` pixels at ``angle`` radians, (size, size), sum 1."""
    kernel = torch.zeros(size, size)
    for t in np.linspace(-0.5, 0.5, 8 * size):
        y, x = size // 2 + t * length * math.sin(angle), size // 2 + t * length * math.cos(angle)
        top, left = math.floor(y), math.floor(x)
        for row, part in ((top, 1 - y + top), (top + 1, y - top)):
            for column, share in ((left, 1 - x + left), (left + 1, x - left)):
                if 0 <= row < size and 0 <= column < size:
                    kernel[row, column] += part * share
    return kernel / kernel.sum()


def soft_masks(count: int, height: int, width: int, chance: np.random.Generator) -> Tensor:
    """Smooth random masks in [0, 1], (count, 1, height, width); about half of each is inside."""
    coarse = torch.from_numpy(chance.standard_normal((count, 1, 4, 4)).astype(np.float32))
    fine = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)
    fine = fine - fine.flatten(1).median(1).values[:, None, None, None]
    return (0.5 + 4 * fine).clamp(0, 1)


def intended_blur(sharp: Tensor, chance: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Blur soft regions of pictures, each by a disc of radius 2 to 5 or a line of 5 to 13 pixels.

    Args:
        sharp: (B, C, h, w).
        chance: where all randomness comes from.

    Returns:
        The pictures, and masks (B, 1, h, w): 1 where they are blurred.

    Raises:
        InputError: another shape.
    """
    if sharp.ndim != 4 or 0 in sharp.shape:
        raise InputError(f"blur is put on pictures (B, C, h, w), not {tuple(sharp.shape)}")
    kernels = []
    for _ in range(len(sharp)):
        if chance.random() < 0.5:
            kernels.append(disc_kernel(float(chance.uniform(2, 5)), 13))
        else:
            kernels.append(line_kernel(float(chance.uniform(5, 13)), float(chance.uniform(0, math.pi)), 13))
    mask = soft_masks(len(sharp), sharp.shape[2], sharp.shape[3], chance).to(sharp)
    return torch.lerp(sharp, filter_each(sharp, torch.stack(kernels).to(sharp)), mask), mask
