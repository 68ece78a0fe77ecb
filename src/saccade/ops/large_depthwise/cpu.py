"""Which way a depthwise convolution and its gradients go fastest on a processor, in float32.

Torch's own (oneDNN's) kernels are uneven. Measured on one core with AVX-512, 128 channels of 64 x 64, milliseconds
(``saccade bench backbones --system unireplknet`` prints their like):

    K                                    7      13      15      17      31
    forward, planes (NCHW)             1.2     2.5    66.9    71.4     261      no kernel of its own from 15 taps on
    forward, channels last             0.8     6.5     2.9     3.5     9.8      13 taps cost more than 15
    forward, FFT                       4.8     5.4     5.4     5.6     7.5
    forward and gradients, planes       24     100     161     206     717      the kernels' gradient is summed naively
    forward and gradients, FFT          16      20      16      16      20

and dilated kernels have none where they span 15 pixels or more: 7 taps with dilation 3 take twenty times what dense
ones take. So:

    dilation     direct up to a span of 13; on large maps the d*d phases of the map as pictures of a batch, with the
                 dense kernel: the same sums; on small ones the kernel with zeros between its taps
    forward      planes up to 13 taps; else channels last, kernels of 13 widened to 15; FFT where its count is smaller
    gradients    of the input: the same convolution with the kernel turned; of the kernel: by FFT from a span of 9 on
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Gains", "forward", "gains", "grad_weight"]

PLANES = 13  # pixels that a kernel spans up to which torch's kernel for planes is its fast one
UNEVEN = 13  # taps a side that are slower than ``EVEN``, channels last
EVEN = 15
PHASES = 24  # pixels a side of the map from which its phases are large enough to be convolved one by one
LAYOUT = 5  # taps a side from which the kernel's gradient is worth a change of layout, on
ENOUGH = 1 << 15  # numbers of the map; below, the change costs as much as it saves
FEW = 1 << 12  # numbers of the map up to which torch's own is taken, as nothing else pays
SPECTRUM = 9  # pixels that a kernel spans from which the kernel's gradient is worth an FFT
FFT_COST = 30.0  # a point of an FFT, times the logarithm of their number, over a multiplication of a convolution
LAST = torch.channels_last


class Gains(NamedTuple):
    """Where something is to be gained over torch's own, as it is."""

    forward: bool
    gradient: bool


def gains(x: Tensor, kernel: int, dilation: int) -> Gains:
    """In the forward pass, and in the gradient of the kernel."""
    return _gains(x.shape, _is_last(x), kernel, dilation)


@functools.lru_cache(4096)
def _gains(shape: torch.Size, last: bool, kernel: int, dilation: int) -> Gains:
    count, span = shape.numel(), _span(kernel, dilation)
    learns = kernel >= LAYOUT and span >= SPECTRUM
    if not learns:
        learns = (kernel >= LAYOUT or dilation > 1) and count >= ENOUGH and not last
    if count < FEW:
        return Gains(kernel > PLANES and dilation == 1, kernel > PLANES)
    if dilation > 1:
        return Gains(span > PLANES, learns)
    uneven = kernel == UNEVEN if last else kernel > PLANES
    return Gains(uneven or _fft_wins(shape, kernel), learns)


def forward(x: Tensor, weight: Tensor, dilation: int = 1) -> Tensor:
    """The convolution, (B, C, H, W) -> the same, in the input's layout."""
    idle = _idle(x, weight.shape[-1], dilation)
    weight = weight[..., idle : weight.shape[2] - idle, idle : weight.shape[3] - idle]
    kernel = weight.shape[-1]
    if dilation > 1:
        return _dilated(x, weight, dilation)
    if _fft_wins(x.shape, kernel):
        return _by_fft(x, weight)
    if _is_last(x):
        return _conv(x, F.pad(weight, [(EVEN - kernel) // 2] * 4) if kernel == UNEVEN else weight)
    if kernel <= PLANES:
        return _conv(x, weight)
    return _conv(x.contiguous(memory_format=LAST), weight).contiguous()


def _dilated(x: Tensor, weight: Tensor, dilation: int) -> Tensor:
    kernel = weight.shape[-1]
    span = _span(kernel, dilation)
    if span <= PLANES:
        return _conv(x, weight, dilation)
    if min(x.shape[2:]) >= PHASES:
        return _joined(forward(_phases(x, dilation), weight), x, dilation)
    dense = weight.new_zeros(*weight.shape[:2], span, span)
    dense[..., ::dilation, ::dilation] = weight
    return forward(x, dense)


def grad_weight(gy: Tensor, x: Tensor, kernel: int, dilation: int = 1) -> Tensor:
    """Of the kernel, (C, 1, K, K)."""
    if idle := _idle(x, kernel, dilation):
        return F.pad(grad_weight(gy, x, kernel - 2 * idle, dilation), [idle] * 4)
    if kernel >= LAYOUT and _span(kernel, dilation) >= SPECTRUM:
        return _correlated(gy, x, kernel, dilation)
    if kernel >= LAYOUT or dilation > 1:
        gy, x = gy.contiguous(memory_format=LAST), x.contiguous(memory_format=LAST)
    channels, pad = x.shape[1], [kernel // 2 * dilation] * 2
    like = x.new_empty(channels, 1, kernel, kernel)
    found: Tensor = torch.ops.aten.convolution_backward(
        gy, x, like, None, [1, 1], pad, [dilation] * 2, False, [0, 0], channels, [False, True, False]
    )[1]
    return found


def _idle(x: Tensor, kernel: int, dilation: int) -> int:
    """Rings of taps around the kernel that never meet the map, as it is small."""
    return max(0, kernel // 2 - (max(x.shape[2:]) - 1) // dilation)


def _span(kernel: int, dilation: int) -> int:
    """Pixels a side from the first tap to the last."""
    return dilation * (kernel - 1) + 1


def _is_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=LAST) and not x.is_contiguous()


def _conv(x: Tensor, weight: Tensor, dilation: int = 1) -> Tensor:
    return F.conv2d(x, weight, padding=weight.shape[-1] // 2 * dilation, dilation=dilation, groups=x.shape[1])


# -- dilation: what lies d apart never meets anything else


def _phases(x: Tensor, dilation: int) -> Tensor:
    """(B, C, H, W) -> (d*d*B, C, H/d, W/d): every d-th row and column, filled up with zeros; in x's layout."""
    last = _is_last(x)
    height, width = x.shape[2:]
    x = F.pad(x, (0, -width % dilation, 0, -height % dilation))
    parts = x.unflatten(3, (-1, dilation)).unflatten(2, (-1, dilation)).permute(3, 5, 0, 2, 4, 1)  # (d, d, B, h, w, C)
    if last:
        return parts.reshape(-1, *parts.shape[3:]).permute(0, 3, 1, 2)
    parts = parts.permute(0, 1, 2, 5, 3, 4)
    return parts.reshape(-1, *parts.shape[3:])


def _joined(parts: Tensor, x: Tensor, dilation: int) -> Tensor:
    """The inverse: phases back in their places, of the size and in the layout of ``x``."""
    batch, channels, height, width = x.shape
    rows, columns = parts.shape[2:]
    y = parts.view(dilation, dilation, batch, channels, rows, columns)
    if _is_last(x):
        y = (
            y.permute(2, 4, 0, 5, 1, 3)
            .reshape(batch, rows * dilation, columns * dilation, channels)
            .permute(0, 3, 1, 2)
        )
    else:
        y = y.permute(2, 3, 4, 0, 5, 1).reshape(batch, channels, rows * dilation, columns * dilation)
    return y[:, :, :height, :width].contiguous(memory_format=LAST if _is_last(x) else torch.contiguous_format)


# -- Fourier


def fft_size(least: int) -> int:
    """The smallest number from ``least`` on with no prime factor above 5."""
    while True:
        rest = least
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return least
        least += 1


def _fft_sizes(shape: torch.Size, kernel: int) -> tuple[int, int]:
    """Beyond H + K//2 points nothing that wraps around comes back to a lag within the kernel, which has K of them."""
    height, width = (fft_size(max(side + kernel // 2, kernel)) for side in shape[2:])
    return height, width


@functools.lru_cache(4096)
def _fft_wins(shape: torch.Size, kernel: int) -> bool:
    if kernel <= EVEN:
        return False
    points = math.prod(_fft_sizes(shape, kernel))
    taps = math.prod(_taps(side, kernel) for side in shape[2:])
    return taps > FFT_COST * points * math.log2(points)


def _taps(side: int, kernel: int) -> int:
    """Multiplications along a line of ``side`` pixels, those with the zeros outside left out."""
    reach = kernel // 2
    if side <= reach:
        return side * side
    return side * kernel - reach * (reach + 1)


def _by_fft(x: Tensor, weight: Tensor) -> Tensor:
    kernel = weight.shape[-1]
    size, reach = _fft_sizes(x.shape, kernel), kernel // 2
    (height, width), last = x.shape[2:], _is_last(x)
    product = torch.fft.rfft2(x.contiguous(), s=size) * torch.fft.rfft2(weight[:, 0].flip(-1, -2), s=size)
    y = torch.fft.irfft2(product, s=size)[..., reach : reach + height, reach : reach + width]
    return y.contiguous(memory_format=LAST if last else torch.contiguous_format)


def _correlated(gy: Tensor, x: Tensor, kernel: int, dilation: int) -> Tensor:
    """sum over pictures and places of gy[h, w] x[h + d i, w + d j], for lags i, j within the kernel."""
    span = _span(kernel, dilation)
    size, reach = _fft_sizes(x.shape, span), span // 2
    spectrum = torch.fft.rfft2(x.contiguous(), s=size) * torch.fft.rfft2(gy.contiguous(), s=size).conj()
    lags = torch.roll(torch.fft.irfft2(spectrum.sum(0), s=size), (reach, reach), (-2, -1))
    return lags[:, None, :span:dilation, :span:dilation].contiguous()
