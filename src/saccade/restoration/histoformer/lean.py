"""A Histoformer block as it runs on the CPU without gradients: same mathematics, less time, a fraction of the memory.

    features lie (h, w, C): normalisation, 1x1 and depthwise convolutions run along the channels
    queries, keys and values are made, sorted and dropped one after the other, as planes (C, h*w)
    sorted by one 64-bit key for value and place; orders are kept as int32 (`saccade.ops.stable_order.packed_order`)
    the feed-forward goes through the picture in strips of rows

Turning features (h*w, C) into planes is a product with the unit matrix: exact, and several times faster than a copy.
The published step-by-step form (``Block.forward_naive``) holds the five projections, four gathered copies and their
int64 orders at once. Rounding differs from it, so near-ties may be sorted otherwise (see the package's docstring).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from saccade.nn.restormer import EPSILON
from saccade.ops.stable_order import packed_order
from saccade.restoration.histoformer.histogram import attend

if TYPE_CHECKING:
    from saccade.restoration.histoformer.blocks import Block, FeedForward, HistogramAttention

__all__ = ["applies", "attention", "block", "feed_forward"]

CHANNELS = 16  # of a projection that are made at a time
STRIP = 1 << 21  # values of the widest feature map in a strip: what a processor's cache can hold


def applies(x: Tensor) -> bool:
    """Whether the lean path can run: float32 on the CPU, no gradient wanted, neither compiled, traced nor counted.

    `saccade.cost` and its like watch operators; they would take the products that only move values for work.
    """
    return (
        not torch.is_grad_enabled()
        and type(x) is Tensor
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined]
        and not torch.onnx.is_in_onnx_export()
        and _get_current_dispatch_mode() is None
    )


def block(of: Block, x: Tensor) -> Tensor:
    """`Block.forward`: (B, C, h, w) -> the same, in channels_last."""
    made = x.clone(memory_format=torch.channels_last)
    for picture in made.permute(0, 2, 3, 1):  # (h, w, C), changed in place
        attention(of.attn_g, normed(picture, of.centred), picture)
        feed_forward(of.ffn, normed(picture, of.centred), picture)
    return made


def normed(x: Tensor, centred: bool) -> Tensor:
    """`channel_norm` of features (h, w, C)."""
    if centred:
        return F.layer_norm(x, x.shape[-1:], eps=EPSILON)
    return x / (x.var(-1, keepdim=True, unbiased=False) + EPSILON).sqrt()


# -- attention


def attention(of: HistogramAttention, x: Tensor, out: Tensor) -> None:
    """Add `HistogramAttention.forward` of ``x`` to ``out``, both (h, w, C); ``x`` is used up."""
    h, w, c = x.shape
    unit = torch.eye(c)
    half, places = _sorted_by_range(unit[: of.ranged] @ x.view(-1, c).T, h, w)
    x[..., : of.ranged] = half.T.reshape(h, w, -1)
    del half
    order, v = _sorted(_projection(of, x, 4))
    y = _attended(of, x, 0, order, v, False)
    y *= _attended(of, x, 2, order, v, True)
    del v
    y = _put(y, order)
    del order
    bias = of.project_out.bias
    y = of.project_out.weight.flatten(1) @ y
    if bias is not None:
        y += bias[:, None]
    y[: of.ranged] = _put(y[: of.ranged], places)
    out.view(-1, c).addmm_(y.T, unit)


def _sorted_by_range(planes: Tensor, h: int, w: int) -> tuple[Tensor, Tensor]:
    """Planes (C, h*w) sorted by column, then by row; and where each value came from, int32 (C, h*w)."""
    c = len(planes)
    columns = planes.view(c, h, w).transpose(1, 2).reshape(-1, h)
    rows, values = (
        torch.from_numpy(n).view(c, w, h).transpose(1, 2).contiguous()
        for n in packed_order(columns.numpy(), values=True)
    )
    rows.mul_(w).add_(torch.arange(w, dtype=torch.int32))  # (C, h, w): place in the plane
    order, values = (torch.from_numpy(n) for n in packed_order(values.view(-1, w).numpy(), values=True))
    places = order.view(c, h, w).add_(torch.arange(0, h * w, w, dtype=torch.int32)[:, None]).view(c, -1)
    origins = torch.empty_like(places)
    _take(rows.view(c, -1), places, origins)
    return values.view(c, -1), origins


def _projection(of: HistogramAttention, x: Tensor, part: int, order: Tensor | None = None) -> Tensor:
    """One of q1, k1, q2, k2, v as planes (C, h*w), in the given order; some channels at a time."""
    h, w, c = x.shape
    made = x.new_empty(c, h * w)
    for first in range(0, c, CHANNELS):
        last = min(c, first + CHANNELS)
        rows = slice(part * c + first, part * c + last)
        y = _linear(x.view(-1, c), of.qkv, rows).view(h, w, -1)
        y = _depthwise(y, of.qkv_dwconv, rows, (1, 1)).view(h * w, -1)
        planes = made[first:last]
        if order is None:
            torch.mm(torch.eye(len(planes)), y.T, out=planes)
        else:
            _take(torch.eye(len(planes)) @ y.T, order[first:last], planes)
    return made


def _linear(x: Tensor, by: nn.Conv2d, rows: slice) -> Tensor:
    """A 1x1 convolution's output channels ``rows`` on features (n, C)."""
    weight = by.weight[rows].flatten(1).T
    return x @ weight if by.bias is None else torch.addmm(by.bias[rows], x, weight)


def _depthwise(x: Tensor, by: nn.Conv2d, rows: slice, padding: tuple[int, int]) -> Tensor:
    """A depthwise convolution's channels ``rows`` on features (h, w, C)."""
    bias = None if by.bias is None else by.bias[rows]
    return _convolved(x, by.weight[rows], bias, padding)


def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
    # view(1, ...): the strides tell PyTorch that this is channels_last; those of [None] do not
    y = F.conv2d(x.view(1, *x.shape).permute(0, 3, 1, 2), weight, bias, padding=padding, groups=len(weight))
    return y.permute(0, 2, 3, 1)[0].contiguous()


def _sorted(planes: Tensor) -> tuple[Tensor, Tensor]:
    """The order of each plane as int32, and the sorted planes."""
    order, values = packed_order(planes.numpy(), values=True)
    return torch.from_numpy(order), torch.from_numpy(values)


def _take(planes: Tensor, order: Tensor, made: Tensor) -> None:
    """made[i] = planes[i][order[i]]."""
    for plane, places, to in zip(planes, order, made, strict=True):
        torch.index_select(plane, 0, places, out=to)


def _put(planes: Tensor, order: Tensor) -> Tensor:
    """made[i][order[i]] = planes[i]."""
    made = torch.empty_like(planes)
    for plane, places, to in zip(planes.numpy(), order.numpy(), made.numpy(), strict=True):
        to[places] = plane
    return made


def _attended(of: HistogramAttention, x: Tensor, part: int, order: Tensor, v: Tensor, spread: bool) -> Tensor:
    """Attention of the query ``part`` and the key behind it on the sorted values: planes (C, h*w)."""
    q, k = (_projection(of, x, part + i, order)[None] for i in (0, 1))
    return attend(q, k, v[None], of.temperature, spread)[0]


# -- feed-forward


def feed_forward(of: FeedForward, x: Tensor, out: Tensor) -> None:
    """Add `FeedForward.forward` of ``x`` to ``out``, both (h, w, C), strip by strip.

    Hidden channels are put in the order (row, column, channel) of the doubled picture, so that shuffling exchanges
    rows of memory only.
    """
    h, w, c = x.shape
    quarter = of.hidden // 4
    places = torch.arange(of.hidden).view(quarter, 4).T.flatten()  # (dy, dx, channel) <- (channel, dy, dx)
    inner = of.project_in.weight.flatten(1)
    scaled, gate = inner[: of.hidden][places].T.contiguous(), inner[of.hidden :][places].T.contiguous()
    bias = of.project_in.bias
    offsets = (None, None) if bias is None else (bias[: of.hidden][places], bias[of.hidden :][places])
    kernel = of.dwconv_dilated2_1.weight.repeat(4, 1, 1, 1)
    kernel_bias = None if of.dwconv_dilated2_1.bias is None else of.dwconv_dilated2_1.bias.repeat(4)
    last = of.project_out.weight.flatten(1)[:, places].T.contiguous()
    rows = max(4, STRIP // (of.hidden * w))
    for top in range(0, h, rows):
        bottom = min(h, top + rows)
        strip = x[max(0, top - 1) : bottom + 1]  # a row more on either side
        edges = (0, 0, 0, 0, int(top == 0), int(bottom == h))  # rows of zeros beyond the picture
        n = bottom - top
        flat = strip.reshape(-1, c)
        made = (_affine(flat, matrix, offset) for matrix, offset in zip((scaled, gate), offsets, strict=True))
        a, b = (F.pad(y.view(-1, w, of.hidden), edges) for y in made)  # (n + 2, w, H) each
        a = a.view(n + 2, w, 2, 2 * quarter).transpose(1, 2).reshape(2 * (n + 2), 2 * w, quarter)
        a = _convolved(a, of.dwconv_5.weight, of.dwconv_5.bias, (0, 2))  # (2n, 2w, H/4)
        b = _mish(_convolved(b, kernel, kernel_bias, (0, 1)))  # (n, w, H)
        b.view(n, w, 2, 2 * quarter).mul_(a.view(n, 2, w, 2 * quarter).transpose(1, 2))
        to = out[top:bottom].view(-1, c)
        to.addmm_(b.view(-1, of.hidden), last)
        if of.project_out.bias is not None:
            to += of.project_out.bias


def _affine(x: Tensor, matrix: Tensor, offset: Tensor | None) -> Tensor:
    return x @ matrix if offset is None else torch.addmm(offset, x, matrix)


def _mish(x: Tensor) -> Tensor:
    """x tanh(log(1 + e^x)), in place: with n = e^x (e^x + 2) it is x n / (n + 2), one exponential instead of three."""
    e = x.clamp(max=20).exp_()  # beyond, the quotient is 1
    n = e.addcmul(e, e, value=0.5)  # n / 2
    return x.mul_(n.div_(n + 1))
