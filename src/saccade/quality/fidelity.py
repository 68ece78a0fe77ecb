"""PSNR, SSIM and MS-SSIM: how far a picture is from the one it should be.

All give one figure per picture: (..., C, H, W) -> (...), differentiable in both pictures. ``luma=True`` compares BT.601
luma in studio swing, as super-resolution figures do; ``border`` pixels on each side are left out.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.errors import InputError, UsageError
from saccade.quality import colour

__all__ = ["ms_ssim", "psnr", "quantise8", "ssim"]

WINDOW, SIGMA = 11, 1.5  # Gaussian window of SSIM
K1, K2 = 0.01, 0.03
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the five scales of MS-SSIM, finest first


def quantise8(x: Tensor) -> Tensor:
    """What an 8-bit file would hold: clamped to [0, 1] and rounded to multiples of 1/255. Not differentiable."""
    return x.clamp(0, 1).mul(255).round().div(255)


def psnr(a: Tensor, b: Tensor, *, border: int = 0, luma: bool = False, data_range: float = 1.0) -> Tensor:
    """Peak signal-to-noise ratio in dB, 10 log10(data_range^2 / mean squared error); infinite for equal pictures.

    Args:
        a, b: pictures (..., C, H, W) of one shape, floating point, or uint8 (then in 0..255 whatever ``data_range``).
        border: pixels left out on each side.
        luma: compare Y of BT.601; pictures of one channel are taken to be Y.
        data_range: the value of full scale.

    Returns:
        (...): one figure per picture.

    Raises:
        InputError: shapes or dtypes that do not fit, or nothing left inside the border.
    """
    a, b = _prepared(a, b, border, luma, data_range)
    error = (a - b).square().mean((-3, -2, -1))
    return -10 * torch.log10(error)


def ssim(a: Tensor, b: Tensor, *, border: int = 0, luma: bool = False, data_range: float = 1.0) -> Tensor:
    """Structural similarity (Wang et al. 2004), mean over pixels and channels.

    The super-resolution protocol's: an 11x11 Gaussian window of sigma 1.5, only where it lies wholly inside,
    C1 = (0.01 L)^2 and C2 = (0.03 L)^2, population variances. (torchmetrics also counts windows over reflected
    borders.) Arguments, shapes and errors as in `psnr`.

    Raises:
        InputError: also pictures smaller than the window.
    """
    a, b = _prepared(a, b, border, luma, data_range)
    _at_least(a, WINDOW, "SSIM")
    similarity, _ = _similarity(a, b)
    return similarity.mean(-1)


def ms_ssim(a: Tensor, b: Tensor, *, border: int = 0, luma: bool = False, data_range: float = 1.0) -> Tensor:
    """Multi-scale structural similarity (Wang, Simoncelli and Bovik 2003), five scales, mean over channels.

    Each scale halves the picture by 2x2 means, an odd last row or column left out. The scales of one channel are
    multiplied (negative contrast counts as zero), then channels averaged; windows lie wholly inside at every scale.
    (torchmetrics averages over channels first, and over reflected borders at the last scale.) Arguments, shapes and
    errors as in `psnr`.

    Raises:
        InputError: also pictures smaller than 176 pixels on a side (five scales of the window).
    """
    a, b = _prepared(a, b, border, luma, data_range)
    _at_least(a, WINDOW * 2 ** (len(WEIGHTS) - 1), "MS-SSIM")
    total = torch.ones((), dtype=a.dtype, device=a.device)
    for scale, weight in enumerate(WEIGHTS):
        similarity, contrast = _similarity(a, b)  # (..., C)
        last = scale == len(WEIGHTS) - 1
        total = total * (similarity if last else contrast).clamp(min=0) ** weight
        if not last:
            a, b = _halved(a), _halved(b)
    return total.mean(-1)


def _prepared(a: Tensor, b: Tensor, border: int, luma: bool, data_range: float) -> tuple[Tensor, Tensor]:
    """Both in [0, 1], the wanted channels, without the border."""
    if a.shape != b.shape or a.dtype != b.dtype:
        raise InputError(f"pictures differ in kind: {a.dtype} {tuple(a.shape)} and {b.dtype} {tuple(b.shape)}")
    if a.dim() < 3:
        raise InputError(f"expected pictures (..., C, H, W), got {tuple(a.shape)}")
    if not (a.is_floating_point() or a.dtype == torch.uint8):
        raise InputError(f"expected floating-point or uint8 pictures, got {a.dtype}")
    if border < 0 or not data_range > 0:
        raise UsageError(f"border must not be negative and data_range positive, got {border} and {data_range}")
    full = 255.0 if a.dtype == torch.uint8 else data_range
    pair = []
    for x in (a, b):
        x = x[..., border : x.shape[-2] - border, border : x.shape[-1] - border]
        if x.shape[-2] < 1 or x.shape[-1] < 1 or min(a.shape[-2:]) <= 2 * border:
            raise InputError(f"nothing is left of {a.shape[-1]}x{a.shape[-2]} pixels inside a border of {border}")
        x = x if x.dtype in (torch.float32, torch.float64) else x.float()
        x = x / full if full != 1 else x
        pair.append(colour.luma(x) if luma and x.shape[-3] != 1 else x)
    return pair[0], pair[1]


def _at_least(x: Tensor, side: int, what: str) -> None:
    if min(x.shape[-2:]) < side:
        raise InputError(f"{what} needs at least {side}x{side} pixels, got {x.shape[-1]}x{x.shape[-2]}")


def _similarity(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Mean SSIM and mean contrast-structure term of each channel: (..., C, H, W) -> (..., C) twice.

    With s = a + b and d = a - b four maps are blurred instead of five: var(a) + var(b) = (var s + var d) / 2 and
    cov(a, b) = (var s - var d) / 4. Values are taken around mid-grey, where squares lose fewest digits.
    """
    s, d = a + b - 1, a - b
    mean_s, mean_d = _blur(s), _blur(d)
    var_s, var_d = _blur(s * s) - mean_s**2, _blur(d * d) - mean_d**2
    mean_s = mean_s + 1
    brightness, difference = (mean_s**2 + mean_d**2) / 2, (mean_s**2 - mean_d**2) / 2  # a^2 + b^2, 2ab
    contrast = ((var_s - var_d) / 2 + K2**2) / ((var_s + var_d) / 2 + K2**2)
    similarity = contrast * (difference + K1**2) / (brightness + K1**2)
    return similarity.mean((-2, -1)), contrast.mean((-2, -1))


def _blur(x: Tensor) -> Tensor:
    """Gaussian window, valid region, one axis after the other; taps of equal weight are added first."""
    half = WINDOW // 2
    for axis in (-2, -1):
        n = x.shape[axis] - 2 * half
        y = x.narrow(axis, half, n) * _window()[half]
        for tap in range(half):
            pair = x.narrow(axis, tap, n) + x.narrow(axis, 2 * half - tap, n)
            y = torch.add(y, pair, alpha=_window()[tap])
        x = y
    return x


@functools.lru_cache(maxsize=1)
def _window() -> tuple[float, ...]:
    taps = [math.exp(-((i - WINDOW // 2) ** 2) / (2 * SIGMA**2)) for i in range(WINDOW)]
    return tuple(tap / sum(taps) for tap in taps)


def _halved(x: Tensor) -> Tensor:
    return F.avg_pool2d(x.reshape(-1, 1, *x.shape[-2:]), 2).unflatten(0, x.shape[:-2]).squeeze(-3)
