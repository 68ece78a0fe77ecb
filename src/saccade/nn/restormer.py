"""What U-Nets of the Restormer family share: norm over channels, sizes, transposed attention, gated feed-forward.

Zamir et al., "Restormer: Efficient Transformer for High-Resolution Image Restoration", CVPR 2022, arXiv:2111.09881.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.nn.channel_norm import ChannelNorm

__all__ = ["EPSILON", "GDFN", "MDTA", "Downsample", "Upsample", "channel_norm"]

EPSILON = 1e-5
STRIP = 4 << 20  # bytes of the widest map of a strip of rows
LEAST_ROWS = 8


def channel_norm(x: Tensor, centred: bool = True) -> Tensor:
    """Layer normalisation over the channels of each pixel, biased variance, nothing learnt.

    Args:
        x: (B, C, h, w).
        centred: subtract the mean; without, x is divided by the deviation around its mean and keeps the mean
            ("BiasFree" in the official code).
    """
    middle = x - x.mean(1, keepdim=True)
    deviation = (middle.square().mean(1, keepdim=True) + EPSILON).sqrt()
    return (middle if centred else x) / deviation


class Downsample(nn.Module):
    """Half the size, twice the channels: 3x3 convolution to half the channels, then four pixels into channels.

    Shape: (B, C, h, w), h and w even -> (B, 2C, h/2, w/2).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, channels // 2, 3, padding=1, bias=False), nn.PixelUnshuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return y


class Upsample(nn.Module):
    """Twice the size, half the channels: 3x3 convolution to twice the channels, then channels into four pixels.

    Shape: (B, C, h, w) -> (B, C/2, 2h, 2w).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, 2 * channels, 3, padding=1, bias=False), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return y


class MDTA(nn.Module):
    """Multi-Dconv head transposed attention: channels attend to channels, at a cost linear in the pixels (eq. 1).

    Args:
        channels: C, a multiple of ``heads``.
        heads: groups of channels that attend among themselves.
        bias: whether the convolutions have biases.
        query_size: side of the window whose mean is taken off the query (not Restormer's; see `highpass`); 0 for none.

    Shape: (B, C, h, w) -> the same; without the residual.
    """

    def __init__(self, channels: int, heads: int, bias: bool = False, query_size: int = 0) -> None:
        super().__init__()
        self.heads, self.query_size = heads, query_size
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Conv2d(channels, channels * 3, 1, bias=bias)
        self.qkv_dwconv = nn.Conv2d(channels * 3, channels * 3, 3, padding=1, groups=channels * 3, bias=bias)
        self.project_out = nn.Conv2d(channels, channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv_dwconv(self.qkv(x)).chunk(3, 1)
        q = highpass(q, self.query_size)
        q, k, v = (t.flatten(2).unflatten(1, (self.heads, -1)) for t in (q, k, v))  # (B, heads, C / heads, h w)
        attention = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.temperature
        y = (attention.softmax(-1) @ v).flatten(1, 2).unflatten(2, x.shape[-2:])
        made: Tensor = self.project_out(y)
        return made

    def add_to(self, x: Tensor, norm: ChannelNorm) -> Tensor:
        """x + MDTA(norm(x)) in strips, without gradients: (B, h, w, C) -> the same, new memory.

        q and k never exist for the whole picture: their products and norms are added up strip by strip. The softmaxed
        attention and the last convolution are one (C, C) matrix.
        """
        batch, height, width, channels = x.shape
        values = torch.empty_like(x)
        each = channels // self.heads
        gram = x.new_zeros(batch, self.heads, each, each)
        squares = x.new_zeros(2, batch, self.heads, each)
        reach = self.query_size // 2
        for rows in row_strips(height, batch * width * 3 * channels * x.element_size(), 1 + reach):
            q, k, v = self._strip(norm_last(x[:, rows.low : rows.high], norm), rows, height)
            values[:, rows.top : rows.bottom] = v
            q, k = (t.flatten(1, 2).unflatten(2, (self.heads, -1)).transpose(1, 2) for t in (q, k))
            squares[0] += q.square().sum(2)
            squares[1] += k.square().sum(2)
            gram += q.transpose(-2, -1) @ k
        lengths = squares.sqrt_().clamp_min_(1e-12)  # as F.normalize
        attention = gram / lengths[0, ..., None] / lengths[1, :, :, None] * self.temperature
        project = self.project_out.weight[:, :, 0, 0].unflatten(1, (self.heads, -1))  # (C, heads, C / heads)
        whole = torch.einsum("ohc,bhcd->bohd", project, attention.softmax(-1)).flatten(2)  # (B, C, C)
        made = torch.baddbmm(x.flatten(1, 2), values.flatten(1, 2), whole.transpose(1, 2)).view_as(x)
        return made if self.project_out.bias is None else made.add_(self.project_out.bias)

    def _strip(self, x: Tensor, rows: Rows, height: int) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value of one strip, each (B, rows, w, C), from the rows that it must see."""
        reach = self.query_size // 2
        hidden = F.linear(x, self.qkv.weight[:, :, 0, 0], self.qkv.bias).permute(0, 3, 1, 2)
        first, last = max(0, rows.top - reach), min(height, rows.bottom + reach)  # of which the query is needed
        q, k, v = depthwise_rows(hidden, self.qkv_dwconv, (first, last), rows, height).chunk(3, 1)
        inner = slice(rows.top - first, rows.bottom - first)
        k, v, middle = k[:, :, inner], v[:, :, inner], q[:, :, inner]
        if self.query_size:
            around = F.pad(q, (0, 0, reach - (rows.top - first), reach - (last - rows.bottom)))
            middle = middle - F.avg_pool2d(around, self.query_size, 1, (0, reach))
        return middle.permute(0, 2, 3, 1), k.permute(0, 2, 3, 1), v.permute(0, 2, 3, 1)


class GDFN(nn.Module):
    """Gated-Dconv feed-forward network (eq. 3).

    Args:
        channels: C.
        expansion: hidden channels over channels.
        bias: whether the convolutions have biases.

    Shape: (B, C, h, w) -> the same; without the residual.
    """

    def __init__(self, channels: int, expansion: float, bias: bool = False) -> None:
        super().__init__()
        self.hidden = int(channels * expansion)
        self.project_in = nn.Conv2d(channels, self.hidden * 2, 1, bias=bias)
        self.dwconv = nn.Conv2d(self.hidden * 2, self.hidden * 2, 3, padding=1, groups=self.hidden * 2, bias=bias)
        self.project_out = nn.Conv2d(self.hidden, channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.dwconv(self.project_in(x)).chunk(2, 1)
        made: Tensor = self.project_out(F.gelu(a) * b)
        return made

    def add_to(self, x: Tensor, norm: ChannelNorm) -> Tensor:
        """x + GDFN(norm(x)) in strips, without gradients: (B, h, w, C) -> the same, new memory."""
        batch, height, width, _ = x.shape
        made = torch.empty_like(x)
        into, out = self.project_in.weight[:, :, 0, 0], self.project_out.weight[:, :, 0, 0]
        for rows in row_strips(height, batch * width * 2 * self.hidden * x.element_size(), 1):
            hidden = F.linear(norm_last(x[:, rows.low : rows.high], norm), into, self.project_in.bias)
            hidden = depthwise_rows(
                hidden.permute(0, 3, 1, 2), self.dwconv, (rows.top, rows.bottom), rows, height
            ).permute(0, 2, 3, 1)
            a, b = hidden.chunk(2, -1)
            y = F.linear(F.gelu(a).mul_(b), out, self.project_out.bias)
            made[:, rows.top : rows.bottom] = y.add_(x[:, rows.top : rows.bottom])
        return made


# -- in strips of rows: what takes the place of maps that are several times as wide as the picture


class Rows(NamedTuple):
    """A strip [top, bottom) of the rows of a picture, and the rows [low, high) that it must see."""

    top: int
    bottom: int
    low: int
    high: int


def row_strips(height: int, row_bytes: int, halo: int = 0) -> Iterator[Rows]:
    """Cut the rows of a picture so that the widest map of a strip stays in the processor's cache.

    Args:
        height: rows in all.
        row_bytes: what one row takes in the widest map.
        halo: rows seen beyond the strip on each side.
    """
    rows = max(LEAST_ROWS, STRIP // max(1, row_bytes))
    for top in range(0, height, rows):
        bottom = min(height, top + rows)
        yield Rows(top, bottom, max(0, top - halo), min(height, bottom + halo))


def norm_last(x: Tensor, norm: ChannelNorm) -> Tensor:
    """`ChannelNorm` of a picture that has its channels last: (B, h, w, C) -> the same."""
    return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, EPSILON)


def highpass(x: Tensor, size: int) -> Tensor:
    """x minus its mean over ``size`` x ``size`` pixels, zeros outside of the picture counted; 0 changes nothing."""
    return x - F.avg_pool2d(x, size, 1, size // 2) if size else x


def depthwise_rows(hidden: Tensor, conv: nn.Conv2d, wanted: tuple[int, int], given: Rows, height: int) -> Tensor:
    """A 3x3 depthwise convolution of some rows: zeros stand beyond the picture, not beyond the strip.

    Args:
        hidden: (B, C, given.high - given.low, w).
        conv: 3x3, padding 1.
        wanted: first and last row, exclusive.
        given: ``low`` and ``high`` are the rows that ``hidden`` holds: the wanted ones and one more on each side where
            the picture goes on.
        height: of the picture.
    """
    above, below = int(wanted[0] == 0), int(wanted[1] == height)
    hidden = hidden[:, :, wanted[0] - 1 + above - given.low : wanted[1] + 1 - below - given.low]
    if above or below:
        hidden = F.pad(hidden, (0, 0, above, below))
    return F.conv2d(hidden, conv.weight, conv.bias, padding=(0, 1), groups=conv.groups)
