"""Blur kernels of the second-order degradation, and the filters that apply them.

Wang et al., "Real-ESRGAN", ICCVW 2021, arXiv:2107.10833, section 3.2: Gaussian, generalised Gaussian and
plateau-shaped kernels, round or stretched along any direction, and the circular low-pass (sinc) whose ringing is that
of sharpening cameras and of codecs. With u = (x, y) and S the covariance, q = u' S^-1 u:

    Gaussian exp(-q/2)      generalised exp(-q^b/2)      plateau 1/(1 + q^b)      sinc  w J1(w r) / (2 pi r)

All functions make one kernel for each entry of their parameters, so that a clip's kernels may drift.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.errors import InputError, UsageError

__all__ = ["filter_each", "gaussian_blur", "gaussian_kernels", "generalised_kernels", "plateau_kernels", "sinc_kernels"]

Values = np.ndarray | float


def _values(numbers: Values) -> Tensor:
    return torch.tensor(np.atleast_1d(numbers), dtype=torch.float64)


def _quadratic(size: int, sigma_x: Values, sigma_y: Values, angle: Values) -> Tensor:
    """u' S^-1 u on the grid: (n, size, size)."""
    if size < 1 or size % 2 == 0:
        raise UsageError(f"a blur kernel has an odd side, not {size}")
    sx, sy, turn = (_values(v) for v in (sigma_x, sigma_y, angle))
    sx, sy, turn = (v[:, None, None] for v in torch.broadcast_tensors(sx, sy, turn))
    if not bool((sx > 0).all() and (sy > 0).all()):
        raise UsageError("the widths of a blur kernel are positive")
    place = torch.arange(size, dtype=torch.float64) - size // 2
    x, y = place[None, None, :], place[None, :, None]
    along, across = turn.cos() * x + turn.sin() * y, turn.cos() * y - turn.sin() * x
    return (along / sx) ** 2 + (across / sy) ** 2


def _normalised(kernels: Tensor) -> Tensor:
    return (kernels / kernels.sum((1, 2), keepdim=True)).float()


def gaussian_kernels(size: int, sigma_x: Values, sigma_y: Values | None = None, angle: Values = 0.0) -> Tensor:
    """Gaussians, sampled and normalised to sum 1.

    Args:
        size: side in pixels, odd.
        sigma_x, sigma_y: widths in pixels along the two axes; equal when ``sigma_y`` is None.
        angle: radians by which the axes are turned.

    Returns:
        (n, size, size) float32.

    Raises:
        UsageError: an even side or a width that is not positive.
    """
    return _normalised((-0.5 * _quadratic(size, sigma_x, sigma_x if sigma_y is None else sigma_y, angle)).exp())


def generalised_kernels(size: int, sigma_x: Values, sigma_y: Values, angle: Values, beta: Values) -> Tensor:
    """Generalised Gaussians: below ``beta`` 1 peaked with long tails, above it flat with steep sides; else as above."""
    shape = _values(beta)[:, None, None]
    return _normalised((-0.5 * _quadratic(size, sigma_x, sigma_y, angle) ** shape).exp())


def plateau_kernels(size: int, sigma_x: Values, sigma_y: Values, angle: Values, beta: Values) -> Tensor:
    """Plateau-shaped kernels 1/(1 + q^beta); else as `gaussian_kernels`."""
    shape = _values(beta)[:, None, None]
    return _normalised(1 / (1 + _quadratic(size, sigma_x, sigma_y, angle) ** shape))


def sinc_kernels(size: int, cutoff: Values) -> Tensor:
    """Circular low-pass filters (equation 6 of Real-ESRGAN).

    Args:
        size: side in pixels, odd.
        cutoff: in radians a pixel, (0, pi].

    Returns:
        (n, size, size) float32, each summing to 1.
    """
    if size < 1 or size % 2 == 0:
        raise UsageError(f"a blur kernel has an odd side, not {size}")
    w = _values(cutoff)[:, None, None]
    if not bool(((w > 0) & (w <= math.pi)).all()):
        raise UsageError("the cutoff of a sinc kernel lies in (0, pi]")
    place = torch.arange(size, dtype=torch.float64) - size // 2
    radius = torch.hypot(place[None, :, None], place[None, None, :])
    ring = w * torch.special.bessel_j1(w * radius) / (2 * math.pi * radius.clamp_min(1e-9))
    return _normalised(torch.where(radius == 0, w**2 / (4 * math.pi), ring))


def _padded(pictures: Tensor, by: int) -> Tensor:
    # a mirror about the outermost pixel, as OpenCV's filters; it cannot reach further than the picture
    return F.pad(pictures, (by,) * 4, "reflect" if by < min(pictures.shape[-2:]) else "replicate")


def filter_each(pictures: Tensor, kernels: Tensor) -> Tensor:
    """Filter each picture with its own kernel, all channels alike; the border is mirrored.

    Args:
        pictures: (n, C, h, w).
        kernels: (n, k, k) or (1, k, k), k odd.

    Raises:
        InputError: numbers of pictures and kernels differ.
    """
    count, channels = pictures.shape[:2]
    if len(kernels) not in (1, count) or kernels.shape[1] % 2 == 0:
        raise InputError(f"{count} pictures cannot be filtered with kernels {tuple(kernels.shape)}")
    size = kernels.shape[1]
    padded = _padded(pictures, size // 2)
    weight = kernels.to(pictures)
    weight = weight.expand(count, size, size).repeat_interleave(channels, 0)[:, None]
    # as groups of one convolution; multiplying spectra took twice as long even for kernels of 21 x 21
    folded = padded.reshape(1, count * channels, *padded.shape[2:])
    return F.conv2d(folded, weight, groups=count * channels).view_as(pictures)


def gaussian_blur(pictures: Tensor, sigma: float | Tensor | np.ndarray, size: int | None = None) -> Tensor:
    """Blur with a round Gaussian, along rows and then along columns; the border is mirrored.

    Args:
        pictures: (n, C, h, w).
        sigma: width in pixels, one for all or one each.
        size: side of the kernel, odd; default reaches three widths.

    Raises:
        UsageError: an even side or a width that is not positive.
    """
    widths = np.atleast_1d(np.asarray(sigma, np.float64))
    size = size or 2 * max(1, math.ceil(3 * float(widths.max()))) + 1
    line = gaussian_kernels(size, widths)[:, size // 2]  # (1 or n, size)
    line = (line / line.sum(1, keepdim=True)).to(pictures)
    count, channels = pictures.shape[:2]
    line = line.expand(count, size).repeat_interleave(channels, 0)
    x = _padded(pictures, size // 2).reshape(1, count * channels, *(s + size - 1 for s in pictures.shape[2:]))
    x = F.conv2d(x, line[:, None, None, :], groups=count * channels)
    return F.conv2d(x, line[:, None, :, None], groups=count * channels).view_as(pictures)
