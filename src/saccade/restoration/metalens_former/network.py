"""ACFormer: many Wiener pictures in, one sharp picture out (sections 3.3 and 3.4).

    stack x (B,M,3,H,W) -- MAFG -- (B,3M,H,W) -- conv 3x3, C -- U-Net of STAF blocks -- conv 3x3, 3 -- + x[:, M // 2]

    MAFG   each picture: 1x1, E -- norm -- windows: its keys and values, the middle picture's queries -- 1x1, 3
    STAF   sa = x + OCA(norm x),  sa = sa + GDFN(norm sa)     within overlapping windows, over space
           ca = x + MDTA(norm x), ca = ca + GDFN(norm ca)     over channels, seeing the whole picture
           w sa + (1 - w) ca,  w = sigmoid(mean of 1x1 GELU 1x1 [sa, ca]), over space (encoder) or channels (decoder)

    levels C, 2C, 4C, 8C at 1, 1/2, 1/4, 1/8 of the size; blocks 2, 4, 4, 4 and 4 of refinement

With gradients every block is the few lines of the paper. Without, it runs in strips of rows (`saccade.nn.restormer`),
windows a few rows at a time, and the mean is taken before the last convolution of the fusion instead of after it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import InputError, UsageError
from saccade.nn.channel_norm import ChannelNorm
from saccade.nn.pictures import check_picture
from saccade.nn.restormer import EPSILON, GDFN, MDTA, Downsample, Upsample, highpass, norm_last, row_strips
from saccade.nn.windows import join_windows, split_windows
from saccade.restoration.metalens_former.optics import Compat

__all__ = ["MAFG", "STAF", "ACFormer", "OverlappingAttention"]

WINDOWS = 4 << 20  # bytes of attention logits that are under way at a time


def overlapping_windows(x: Tensor, size: int, seen: int) -> Tensor:
    """Windows of ``seen`` pixels every ``size`` pixels, of a map that has the border already.

    (B, h + seen - size, w + seen - size, C) -> (B, h / size, w / size, seen * seen, C)
    """
    y = x.unfold(1, seen, size).unfold(2, seen, size)  # (B, rows, columns, C, seen, seen)
    return y.permute(0, 1, 2, 4, 5, 3).flatten(3, 4)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attention of every window on its own; the scale is in the queries.

    Args:
        q: (..., n, heads * d).
        k: (..., m, heads * d).
        v: (..., m, heads * e).

    Returns:
        (..., n, heads * e).
    """
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(-3, -2) for t in (q, k, v))  # (..., heads, n or m, d)
    logits = q @ k.transpose(-2, -1)
    weights = logits.softmax(-1) if torch.is_grad_enabled() else torch.softmax(logits, -1, out=logits)
    return (weights @ v).transpose(-3, -2).flatten(-2)


def window_rows(rows: int, logits_bytes: int) -> Iterator[tuple[int, int]]:
    """Cut rows of windows so that their logits stay in the processor's cache; ``logits_bytes`` are those of one row."""
    step = max(1, WINDOWS // max(1, logits_bytes))
    for first in range(0, rows, step):
        yield first, min(rows, first + step)


class OverlappingAttention(nn.Module):
    """OCA: each window's pixels attend to a window half as wide again around them (section 3.4).

    The logit of the query at row y, column x of its window and the key at row i, column j of the wider one is
    q k + q rel_height[i - y + seen - 1] + q rel_width[j - x + seen - 1], the query scaled. It is computed as one
    product: the query is lengthened by its products with the two tables, the key by ones at its row and column. Keys
    beyond the picture are zeros that take part.

    Args:
        dim: channels.
        heads, head_dim: of the attention.
        window: side of a query window.
        overlap: how much wider the key window is, as a share.
        bias: whether the convolutions have biases.
        query_size: see `saccade.nn.restormer.highpass`.

    Shape: (B, dim, h, w), sides multiples of ``window`` -> the same; without the residual.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        head_dim: int = 16,
        window: int = 8,
        overlap: float = 0.5,
        bias: bool = False,
        query_size: int = 0,
    ) -> None:
        super().__init__()
        self.heads, self.head_dim, self.window, self.query_size = heads, head_dim, window, query_size
        self.seen = window + int(window * overlap)
        inner = heads * head_dim
        self.qkv = nn.Conv2d(dim, 3 * inner, 1, bias=bias)
        self.project_out = nn.Conv2d(inner, dim, 1, bias=bias)
        self.rel_height = nn.Parameter(torch.randn(2 * self.seen - 1, head_dim) * head_dim**-0.5)
        self.rel_width = nn.Parameter(torch.randn(2 * self.seen - 1, head_dim) * head_dim**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self._maps(x.permute(0, 2, 3, 1))
        y = join_windows(self._windows(q, k, v), self.window)
        made: Tensor = self.project_out(y.permute(0, 3, 1, 2))
        return made

    def add_to(self, x: Tensor, norm: ChannelNorm) -> Tensor:
        """x + OCA(norm(x)), a few rows of windows at a time, without gradients: (B, h, w, dim) -> the same."""
        batch, height, width, _ = x.shape
        q, k, v = self._maps(norm_last(x, norm))
        made, project = torch.empty_like(x), self.project_out.weight[:, :, 0, 0]
        size, border = self.window, self.seen - self.window
        logits = batch * width * size * self.seen**2 * self.heads * x.element_size() // size
        for first, last in window_rows(height // size, logits):
            rows, wider = slice(first * size, last * size), slice(first * size, last * size + border)
            y = join_windows(self._windows(q[:, rows], k[:, wider], v[:, wider]), size)
            made[:, rows] = F.linear(y, project, self.project_out.bias).add_(x[:, rows])
        return made

    def _maps(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled queries (B, h, w, inner), keys and values with the border of zeros, from (B, h, w, dim)."""
        qkv = F.linear(x, self.qkv.weight[:, :, 0, 0], self.qkv.bias)
        inner = self.heads * self.head_dim
        q = highpass(qkv[..., :inner].permute(0, 3, 1, 2), self.query_size).permute(0, 2, 3, 1)
        border = (self.seen - self.window) // 2
        k, v = F.pad(qkv[..., inner:], (0, 0, border, border, border, border)).chunk(2, -1)
        return q * self.head_dim**-0.5, k, v

    def _windows(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of some rows of windows: (B, rows, columns, window^2, inner)."""
        q = split_windows(q, self.window)
        k, v = (overlapping_windows(t, self.window, self.seen) for t in (k, v))
        return attend(self._with_places(q), self._with_marks(k), v, self.heads)

    def _with_places(self, q: Tensor) -> Tensor:
        """Each head's query, and its products with the tables at every row and column of keys: d -> d + 2 seen."""
        size, seen = self.window, self.seen
        start = torch.arange(size, device=q.device)[:, None]
        where = torch.arange(seen, device=q.device) - start + seen - 1  # (size, seen)
        each = q.unflatten(-1, (self.heads, -1)).unflatten(-3, (size, size))  # (..., y, x, heads, d)
        by_row = torch.einsum("...yxhd,yid->...yxhi", each, self.rel_height[where])
        by_column = torch.einsum("...yxhd,xjd->...yxhj", each, self.rel_width[where])
        return torch.cat([each, by_row, by_column], -1).flatten(-2).flatten(-3, -2)

    def _with_marks(self, k: Tensor) -> Tensor:
        """Each head's key, a one at its row and a one at its column: d -> d + 2 seen."""
        one = torch.eye(self.seen, dtype=k.dtype, device=k.device)
        marks = torch.cat([one.repeat_interleave(self.seen, 0), one.repeat(self.seen, 1)], -1)  # (seen^2, 2 seen)
        each = k.unflatten(-1, (self.heads, -1))
        return torch.cat([each, marks[:, None].expand(*each.shape[:-1], -1)], -1).flatten(-2)


class STAF(nn.Module):
    """Spatial and transposed attention side by side, fused by a learnt weight (section 3.4).

    Args:
        dim: channels.
        channel_heads: of MDTA.
        spatial_heads, head_dim, window: of OCA.
        expansion: of the feed-forward networks.
        bias: whether the convolutions have biases.
        per_pixel: one weight a pixel (decoder), else one a channel (encoder).
        query_size: high-pass of both queries, 0 for none.

    Shape: (B, dim, h, w), sides multiples of ``window`` -> the same.
    """

    def __init__(
        self,
        dim: int,
        channel_heads: int,
        spatial_heads: int,
        head_dim: int = 16,
        window: int = 8,
        expansion: float = 2.66,
        bias: bool = False,
        per_pixel: bool = False,
        query_size: int = 0,
    ) -> None:
        super().__init__()
        self.per_pixel = per_pixel
        self.spatial_attn = OverlappingAttention(dim, spatial_heads, head_dim, window, 0.5, bias, query_size)
        self.channel_attn = MDTA(dim, channel_heads, bias, query_size)
        self.norm1, self.norm2, self.norm3, self.norm4 = (ChannelNorm(dim, EPSILON) for _ in range(4))
        self.spatial_ffn, self.channel_ffn = GDFN(dim, expansion, bias), GDFN(dim, expansion, bias)
        self.fusion = nn.Sequential(nn.Conv2d(2 * dim, dim, 1, bias=bias), nn.GELU(), nn.Conv2d(dim, dim, 1, bias=bias))

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return self._lean(x.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2)
        sa = x + self.spatial_attn(self.norm1(x))
        sa = sa + self.spatial_ffn(self.norm2(sa))
        ca = x + self.channel_attn(self.norm3(x))
        ca = ca + self.channel_ffn(self.norm4(ca))
        weight = self.fusion(torch.cat([sa, ca], 1))
        weight = weight.mean(1, keepdim=True) if self.per_pixel else weight.mean((2, 3), keepdim=True)
        return torch.lerp(ca, sa, weight.sigmoid().expand_as(ca))

    def _lean(self, x: Tensor) -> Tensor:
        """The same in strips: (B, h, w, C) -> (B, h, w, C)."""
        sa = self.spatial_ffn.add_to(self.spatial_attn.add_to(x, self.norm1), self.norm2)
        ca = self.channel_ffn.add_to(self.channel_attn.add_to(x, self.norm3), self.norm4)
        first, last = cast(nn.Conv2d, self.fusion[0]), cast(nn.Conv2d, self.fusion[2])
        of_sa, of_ca = first.weight[:, :, 0, 0].chunk(2, 1)
        strips = list(row_strips(x.shape[1], x[:, 0].numel() * x.element_size() * 2))
        total = x.new_zeros(x.shape[0], x.shape[3])
        for rows in strips:
            here = slice(rows.top, rows.bottom)
            hidden = F.gelu(F.linear(sa[:, here], of_sa, first.bias).add_(F.linear(ca[:, here], of_ca)))
            if self.per_pixel:  # the mean over channels of a product is the product with the mean row
                logit = F.linear(hidden, last.weight[:, :, 0, 0].mean(0, keepdim=True))
                weight = (logit if last.bias is None else logit + last.bias.mean()).sigmoid_()
                ca[:, here] += (sa[:, here] - ca[:, here]).mul_(weight)
            else:
                total += hidden.sum((1, 2))
        if self.per_pixel:
            return ca
        mean = total / (x.shape[1] * x.shape[2])
        weight = F.linear(mean, last.weight[:, :, 0, 0], last.bias).sigmoid()[:, None, None]
        return sa.sub_(ca).mul_(weight).add_(ca)


class MAFG(nn.Module):
    """Multiple adaptive filters guidance: M filtered pictures, read under the queries of the middle one (section 3.3).

    Args:
        dim: width E of the attention.
        heads: of it.
        window: side of a query window; keys come from windows half as wide again.
        compat: ``"official"`` rounds queries, keys and values to 16 bit, as the published code does for its GPU kernel
            (moves the final picture by about 2e-3).

    Shape: (B, M, 3, h, w), sides multiples of ``window`` -> (B, 3 M, h, w).
    """

    def __init__(self, dim: int = 32, heads: int = 2, window: int = 8, compat: Compat = None) -> None:
        super().__init__()
        self.heads, self.window, self.compat = heads, window, compat
        self.seen = window + window // 2
        self.proj_high = nn.Conv2d(3, dim, 1)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj_out = nn.Linear(dim, dim, bias=False)
        self.proj_rgb = nn.Conv2d(dim, 3, 1)
        self.pos_emb_q = nn.Parameter(torch.empty(window**2, dim))
        self.pos_emb_k = nn.Parameter(torch.empty(self.seen**2, dim))
        nn.init.trunc_normal_(self.pos_emb_q, std=0.02)
        nn.init.trunc_normal_(self.pos_emb_k, std=0.02)

    def forward(self, stack: Tensor) -> Tensor:
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            lean = [self._picture(stack[:, m], self._queries(stack)) for m in range(stack.shape[1])]
            return torch.cat(lean, 1)
        queries = self._queries(stack)
        made = stack.new_empty(stack.shape[0], 3 * stack.shape[1], *stack.shape[3:])
        for m in range(stack.shape[1]):
            made[:, 3 * m : 3 * m + 3] = self._picture(stack[:, m], queries)
        return made

    def _project(self, picture: Tensor) -> Tensor:
        """(B, 3, h, w) -> (B, h, w, E), before the norm."""
        return F.linear(picture.permute(0, 2, 3, 1), self.proj_high.weight[:, :, 0, 0], self.proj_high.bias)

    def _queries(self, stack: Tensor) -> Tensor:
        """Scaled queries of the middle picture: (B, rows, columns, window^2, E)."""
        dim = self.qkv.in_features
        q = F.linear(self.norm(self._project(stack[:, stack.shape[1] // 2])), self.qkv.weight[:dim])
        return self._rounded(split_windows(q, self.window) + self.pos_emb_q) * (dim // self.heads) ** -0.5

    def _picture(self, picture: Tensor, queries: Tensor) -> Tensor:
        """One filtered picture under the middle one's queries: (B, 3, h, w) -> (B, 3, h, w)."""
        x = self._project(picture)
        dim, border, size = self.qkv.in_features, (self.seen - self.window) // 2, self.window
        kv = F.pad(F.linear(self.norm(x), self.qkv.weight[dim:]), (0, 0, border, border, border, border))
        logits = x[:, 0].numel() // dim * size * self.seen**2 * self.heads * x.element_size() // size
        parts = []
        whole = torch.is_grad_enabled() or torch.compiler.is_compiling()
        rows = queries.shape[1]
        for first, last in [(0, rows)] if whole else window_rows(rows, logits):
            k, v = kv[:, first * size : last * size + 2 * border].chunk(2, -1)
            k, v = (overlapping_windows(t, size, self.seen) for t in (k, v))
            y = attend(queries[:, first:last], self._rounded(k + self.pos_emb_k), self._rounded(v), self.heads)
            y = self.proj_out(join_windows(y, size)) + x[:, first * size : last * size]
            parts.append(F.linear(y, self.proj_rgb.weight[:, :, 0, 0], self.proj_rgb.bias))
        return torch.cat(parts, 1).permute(0, 3, 1, 2)

    def _rounded(self, x: Tensor) -> Tensor:
        return x.half().to(x.dtype) if self.compat == "official" else x


class ACFormer(nn.Module):
    """Aberration correcting transformer: a Restormer-like U-Net of STAF blocks over the Wiener bank (figure 3).

    Args:
        filters: M, pictures of the bank; the middle one, M // 2, is what the network adds to.
        dim: C, channels of the first level.
        blocks: STAF blocks of the four levels; the decoder has those of levels 3, 2, 1 again.
        refinement: blocks after the decoder.
        channel_heads, spatial_heads: of the four levels; refinement has those of the first.
        head_dim: of spatial attention.
        window: of spatial attention.
        expansion: of the feed-forward networks.
        bias: biases in the convolutions of the blocks, of the decoder's 1x1 reductions and of the last one.
        query_sizes: high-pass of every second block's queries: latent, decoder 3, 2, 1, refinement; odd.
        embed, embed_heads, embed_window: of MAFG.
        compat: see `MAFG`.

    Shape: (B, M, 3, H, W) or (B, 3 M, H, W) in [0, 1], any size -> (B, 3, H, W), not clamped. Sides that are no
    multiple of 8 windows are continued by reflection and cut again.

    It compiles (`torch.compile`) and exports (`torch.export`) at a fixed size: windows are counted from it.

    Raises:
        UsageError: options that do not go together.
        InputError: another number of pictures or colours, none; in evaluation mode, values outside [0, 1] or NaN.
    """

    #: transposed attention sees the whole picture
    halo = None
    removes = ("blur",)

    def __init__(
        self,
        filters: int = 13,
        dim: int = 48,
        blocks: tuple[int, ...] = (2, 4, 4, 4),
        refinement: int = 4,
        channel_heads: tuple[int, ...] = (1, 2, 4, 8),
        spatial_heads: tuple[int, ...] = (1, 2, 4, 8),
        head_dim: int = 16,
        window: int = 8,
        expansion: float = 2.66,
        bias: bool = False,
        query_sizes: tuple[int, ...] = (15, 11, 7, 3, 3),
        embed: int = 32,
        embed_heads: int = 2,
        embed_window: int = 8,
        compat: Compat = None,
    ) -> None:
        super().__init__()
        _check(filters, dim, blocks, channel_heads, spatial_heads, window, query_sizes, embed, embed_heads)
        self.filters, self.in_channels = filters, 3 * filters
        self.multiple = math.lcm(8 * window, embed_window)

        def level(count: int, i: int, width: int, per_pixel: bool, size: int) -> nn.Sequential:
            heads = channel_heads[i], spatial_heads[i]
            made = [
                STAF(width, *heads, head_dim, window, expansion, bias, per_pixel, size if j % 2 else 0)
                for j in range(count)
            ]
            return nn.Sequential(*made)

        self.ca = MAFG(embed, embed_heads, embed_window, compat)
        self.patch_embed = nn.Conv2d(3 * filters, dim, 3, padding=1, bias=False)
        self.encoder_level1 = level(blocks[0], 0, dim, False, 0)
        self.down1_2 = Downsample(dim)
        self.encoder_level2 = level(blocks[1], 1, 2 * dim, False, 0)
        self.down2_3 = Downsample(2 * dim)
        self.encoder_level3 = level(blocks[2], 2, 4 * dim, False, 0)
        self.down3_4 = Downsample(4 * dim)
        self.latent = level(blocks[3], 3, 8 * dim, False, query_sizes[0])
        self.up4_3 = Upsample(8 * dim)
        self.reduce_chan_level3 = nn.Conv2d(8 * dim, 4 * dim, 1, bias=bias)
        self.decoder_level3 = level(blocks[2], 2, 4 * dim, True, query_sizes[1])
        self.up3_2 = Upsample(4 * dim)
        self.reduce_chan_level2 = nn.Conv2d(4 * dim, 2 * dim, 1, bias=bias)
        self.decoder_level2 = level(blocks[1], 1, 2 * dim, True, query_sizes[2])
        self.up2_1 = Upsample(2 * dim)
        self.decoder_level1 = level(blocks[0], 0, 2 * dim, True, query_sizes[3])
        self.refinement = level(refinement, 0, 2 * dim, True, query_sizes[4])
        self.output = nn.Conv2d(2 * dim, 3, 3, padding=1, bias=bias)

    def forward(self, stack: Tensor) -> Tensor:
        stack = self._stack(stack)
        height, width = stack.shape[-2:]
        stack = continued(stack, -height % self.multiple, -width % self.multiple)
        made: Tensor = self._unet(stack) + stack[:, self.filters // 2]
        return made[..., :height, :width]

    def _unet(self, stack: Tensor) -> Tensor:
        x = self.patch_embed(self.ca(stack))
        one = self.encoder_level1(x)  # (B, C, H, W)
        two = self.encoder_level2(self.down1_2(one))  # (B, 2C, H/2, W/2)
        three = self.encoder_level3(self.down2_3(two))  # (B, 4C, H/4, W/4)
        x = self.latent(self.down3_4(three))  # (B, 8C, H/8, W/8)
        x = self.decoder_level3(self.reduce_chan_level3(torch.cat([self.up4_3(x), three], 1)))
        del three
        x = self.decoder_level2(self.reduce_chan_level2(torch.cat([self.up3_2(x), two], 1)))
        del two
        x = torch.cat([self.up2_1(x), one], 1)  # (B, 2C, H, W)
        del one
        made: Tensor = self.output(self.refinement(self.decoder_level1(x)))
        return made

    def _stack(self, stack: Tensor) -> Tensor:
        """As (B, M, 3, H, W)."""
        if stack.ndim == 4 and stack.shape[1] == self.in_channels:
            stack = stack.unflatten(1, (self.filters, 3))
        if stack.ndim != 5 or tuple(stack.shape[1:3]) != (self.filters, 3) or not stack.is_floating_point():
            raise InputError(
                f"ACFormer takes the {self.filters} pictures of its Wiener bank (B, {self.filters}, 3, H, W) in "
                f"[0, 1], not {stack.dtype} {tuple(stack.shape)}"
            )
        if stack.numel() == 0:
            raise InputError(f"ACFormer takes pictures, not empty ones {tuple(stack.shape)}")
        if not self.training:
            check_picture(stack.flatten(1, 2), self.in_channels, "ACFormer")
        return stack


def continued(x: Tensor, below: int, right: int) -> Tensor:
    """Continue a picture by reflection at its last row and column, as often as needed: (..., h, w)."""
    for axis, more in ((-2, below), (-1, right)):
        if more:
            n = x.shape[axis]
            i = torch.arange(n + more, device=x.device) % max(1, 2 * n - 2)
            x = x.index_select(axis, torch.where(i < n, i, 2 * n - 2 - i))
    return x


def _check(
    filters: int,
    dim: int,
    blocks: tuple[int, ...],
    channel_heads: tuple[int, ...],
    spatial_heads: tuple[int, ...],
    window: int,
    query_sizes: tuple[int, ...],
    embed: int,
    embed_heads: int,
) -> None:
    if filters < 1:
        raise UsageError(f"ACFormer reads at least one filtered picture, not {filters}")
    lengths = [len(blocks), len(channel_heads), len(spatial_heads)]
    if lengths != [4, 4, 4] or len(query_sizes) != 5:
        raise UsageError("ACFormer has four levels (blocks, heads) and five query sizes")
    if dim < 2 or dim % 2 or any(h < 1 or (dim << i) % h for i, h in enumerate(channel_heads)):
        raise UsageError(f"{dim} channels do not divide among the channel heads {tuple(channel_heads)}")
    if (2 * dim) % channel_heads[0] or embed % embed_heads:
        raise UsageError(f"{2 * dim} and {embed} channels do not divide among their heads")
    if window < 2 or window % 4:
        raise UsageError(f"windows of ACFormer are multiples of 4 pixels wide, not {window}")
    if any(k < 0 or (k and k % 2 == 0) for k in query_sizes):
        raise UsageError(f"query sizes are odd, or 0 for none, not {tuple(query_sizes)}")
