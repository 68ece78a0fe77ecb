"""The two halves of a Histoformer block: attention between pixels of similar brightness, and a gated feed-forward."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import UsageError
from saccade.nn.restormer import channel_norm
from saccade.ops.stable_order import put, stable_order, take
from saccade.restoration.histoformer import lean
from saccade.restoration.histoformer.histogram import attend, bins, dynamic_range_order, softmax_1, unbins

__all__ = ["Block", "FeedForward", "HistogramAttention"]


class HistogramAttention(nn.Module):
    """Dynamic-range histogram self-attention (section 3.2).

        half of x (B,C/2,h,w) sorted by column, by row -- 1x1, depthwise 3x3 -- q1, k1, q2, k2, v (B,C,h,w) each
        v sorted whole, q and k moved along -- attention in bins (q1, k1) * attention across bins (q2, k2)
        -- back to their places -- 1x1 -- half of it back to its places

    Args:
        channels: C; divisible by ``heads``.
        heads: also the number of bins.
        bias: of the convolutions.

    Shape: (B, C, h, w) -> the same. Discontinuous: values closer than rounding may change places.
    """

    def __init__(self, channels: int, heads: int, bias: bool = False) -> None:
        super().__init__()
        if channels % heads:
            raise UsageError(f"{channels} channels do not divide among {heads} attention heads")
        self.heads, self.ranged = heads, channels // 2
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Conv2d(channels, 5 * channels, 1, bias=bias)
        self.qkv_dwconv = nn.Conv2d(5 * channels, 5 * channels, 3, padding=1, groups=5 * channels, bias=bias)
        self.project_out = nn.Conv2d(channels, channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        places = dynamic_range_order(x[:, : self.ranged])
        x = torch.cat((take(x[:, : self.ranged].flatten(2), places).unflatten(2, size), x[:, self.ranged :]), 1)
        q1, k1, q2, k2, v = self.qkv_dwconv(self.qkv(x)).flatten(2).chunk(5, 1)  # (B, C, hw) each
        order = stable_order(v)
        q1, k1, q2, k2, v = (take(part, order) for part in (q1, k1, q2, k2, v))
        y = attend(q1, k1, v, self.temperature, False) * attend(q2, k2, v, self.temperature, True)
        y = self.project_out(put(y, order).unflatten(2, size))
        return torch.cat((put(y[:, : self.ranged].flatten(2), places).unflatten(2, size), y[:, self.ranged :]), 1)

    def forward_naive(self, x: Tensor) -> Tensor:
        """The same step by step as published: the truth beside `forward`, and what it is timed against."""
        b, c, h, w = x.shape
        part, rows = x[:, : self.ranged].sort(dim=-2, stable=True)
        part, columns = part.sort(dim=-1, stable=True)
        x = torch.cat((part, x[:, self.ranged :]), 1)
        q1, k1, q2, k2, v = self.qkv_dwconv(self.qkv(x)).chunk(5, 1)
        v, order = v.reshape(b, c, -1).sort(dim=-1, stable=True)
        q1, k1, q2, k2 = (part.reshape(b, c, -1).gather(-1, order) for part in (q1, k1, q2, k2))
        made = []
        for q, k, spread in ((q1, k1, False), (q2, k2, True)):
            q, k, values = (bins(part, self.heads, self.heads, spread) for part in (q, k, v))
            scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
            y = unbins(softmax_1(scores * self.temperature) @ values, h * w, self.heads, spread)
            made.append(torch.zeros_like(y).scatter(-1, order, y).view(b, c, h, w))
        y = self.project_out(made[0] * made[1])
        part = torch.zeros_like(part).scatter(-1, columns, y[:, : self.ranged])
        part = torch.zeros_like(part).scatter(-2, rows, part)
        return torch.cat((part, y[:, self.ranged :]), 1)


class FeedForward(nn.Module):
    """Dual-scale gated feed-forward (section 3.3).

        1x1 to 2H channels -- shuffled to twice the size, H/2 channels -- depthwise 5x5 of one half
        x mish(depthwise 3x3, dilated by 2, of the other half) -- back to H channels -- 1x1

    Args:
        channels: in and out.
        expansion: H = int(channels * expansion), to be divisible by 4.
        bias: of the convolutions.

    Shape: (B, C, h, w) -> the same.
    """

    def __init__(self, channels: int, expansion: float, bias: bool = False) -> None:
        super().__init__()
        hidden = int(channels * expansion)
        if hidden < 4 or hidden % 4:
            raise UsageError(
                f"the feed-forward of {channels} channels would be {hidden} wide (expansion {expansion:g}), "
                "which does not divide by 4"
            )
        self.hidden = hidden
        quarter = hidden // 4
        self.project_in = nn.Conv2d(channels, 2 * hidden, 1, bias=bias)
        self.dwconv_5 = nn.Conv2d(quarter, quarter, 5, padding=2, groups=quarter, bias=bias)
        self.dwconv_dilated2_1 = nn.Conv2d(quarter, quarter, 3, padding=2, groups=quarter, bias=bias, dilation=2)
        self.project_out = nn.Conv2d(hidden, channels, 1, bias=bias)

    def gate(self, x: Tensor) -> Tensor:
        """The dilated convolution without the shuffle: pixels two apart at twice the size are neighbours here.

        Shape: (B, H, h, w) -> the same; equals unshuffle(dilated 3x3(shuffle(x))).
        """
        bias = self.dwconv_dilated2_1.bias
        return F.conv2d(
            x,
            self.dwconv_dilated2_1.weight.repeat_interleave(4, 0),
            None if bias is None else bias.repeat_interleave(4, 0),
            padding=1,
            groups=self.hidden,
        )

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.project_in(x).chunk(2, 1)  # (B, H, h, w) each
        a = F.pixel_unshuffle(self.dwconv_5(F.pixel_shuffle(a, 2)), 2)
        y: Tensor = self.project_out(F.mish(self.gate(b)) * a)
        return y

    def forward_naive(self, x: Tensor) -> Tensor:
        """The same step by step as published."""
        a, b = F.pixel_shuffle(self.project_in(x), 2).chunk(2, 1)  # (B, H/4, 2h, 2w) each
        y: Tensor = self.project_out(F.pixel_unshuffle(F.mish(self.dwconv_dilated2_1(b)) * self.dwconv_5(a), 2))
        return y


class Block(nn.Module):
    """Attention and feed-forward, each behind a normalisation without weights and beside a short cut.

    Shape: (B, C, h, w) -> the same.
    """

    def __init__(self, channels: int, heads: int, expansion: float, bias: bool, centred: bool) -> None:
        super().__init__()
        self.centred = centred
        self.attn_g = HistogramAttention(channels, heads, bias)
        self.ffn = FeedForward(channels, expansion, bias)

    def norm(self, x: Tensor) -> Tensor:
        """`channel_norm`: what stands before both halves."""
        return channel_norm(x, self.centred)

    def forward(self, x: Tensor) -> Tensor:
        if type(self.attn_g) is HistogramAttention and lean.applies(x):
            return lean.block(self, x)
        x = x + self.attn_g(self.norm(x))
        y: Tensor = x + self.ffn(self.norm(x))
        return y

    def forward_naive(self, x: Tensor) -> Tensor:
        """The same out of the truths of its parts."""
        x = x + self.attn_g.forward_naive(self.norm(x))
        return x + self.ffn.forward_naive(self.norm(x))
