"""The fast path: one multiply-add for each tap, over a shifted view of the padded input.

Without gradients a few pictures are taken at a time, so that the sums stay in the cache through all taps; and where
several pictures share the cost of padding the kernels, rows are added up with their margins, as one long vector.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NUMBERS = 1 << 17  # of sums at a time on the processor, half a megabyte: they are passed over once for each tap

LARGE = 1 << 21  # numbers of a picture's input from which exported graphs take its channels in parts
PARTS = 2
MANY = 4  # pictures from which padded kernels pay


def shifted(x: Tensor, weight: Tensor, bias: Tensor | None, kernel: int, stride: int) -> Tensor:
    """`tvconv` over shifted views, without gradients."""
    channels, height, width = weight.shape[1:]
    dtype, wide = x.dtype, torch.promote_types(x.dtype, torch.float32)
    weight = weight.to(wide)
    one = max(1, channels * height * width)
    step = max(1, NUMBERS // one) if x.device.type == "cpu" else x.shape[0]
    if x.device.type == "cpu" and stride == 1 and x.shape[0] >= MANY and x.is_contiguous():
        return _in_long_rows(x, weight, bias, kernel, step, wide).to(dtype)
    if step >= x.shape[0]:
        return _accumulated(x, weight, bias, kernel, stride, wide).to(dtype)
    layout = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    out = x.new_empty(x.shape[0], channels, height, width).contiguous(memory_format=layout)
    for first in range(0, x.shape[0], step):
        some = slice(first, first + step)
        out[some] = _accumulated(x[some], weight, bias, kernel, stride, wide)
    return out


def _padded(x: Tensor, kernel: int) -> Tensor:
    edge = kernel // 2
    return F.pad(x, (edge, edge, edge, edge))


def _views(padded: Tensor, kernel: int, stride: int, height: int, width: int) -> list[Tensor]:
    """The padded input as each tap sees it, (B, C, h, w) each."""
    rows = [slice(u, u + stride * (height - 1) + 1, stride) for u in range(kernel)]
    columns = [slice(v, v + stride * (width - 1) + 1, stride) for v in range(kernel)]
    return [padded[:, :, r, c] for r in rows for c in columns]


def differentiable(x: Tensor, weight: Tensor, bias: Tensor | None, kernel: int, stride: int) -> Tensor:
    """`tvconv` in a graph: autograd keeps views of the padded input alone.

    In exported graphs views are copies, several at a time, beside an input that is larger where there is a stride: of
    a large one some channels follow the others.
    """
    dtype, wide = x.dtype, torch.promote_types(x.dtype, torch.float32)
    padded, weight = _padded(x.to(wide), kernel), weight.to(wide)
    if stride > 1 and torch.compiler.is_compiling() and padded.shape[1:].numel() > LARGE:
        parts = zip(padded.chunk(PARTS, 1), weight.chunk(PARTS, 1), strict=True)
        out = torch.cat([_sum(some, taps, kernel, stride) for some, taps in parts], 1)
    else:
        out = _sum(padded, weight, kernel, stride)
    return (out if bias is None else out + bias).to(dtype)


def _sum(padded: Tensor, weight: Tensor, kernel: int, stride: int) -> Tensor:
    views = _views(padded, kernel, stride, weight.shape[2], weight.shape[3])
    out = views[0] * weight[0]
    for view, tap in zip(views[1:], weight[1:], strict=True):
        out = torch.addcmul(out, view, tap)
    return out


def _accumulated(x: Tensor, weight: Tensor, bias: Tensor | None, kernel: int, stride: int, wide: torch.dtype) -> Tensor:
    """Into one tensor."""
    views = _views(_padded(x.to(wide), kernel), kernel, stride, weight.shape[2], weight.shape[3])
    out = views[0] * weight[0]
    for view, tap in zip(views[1:], weight[1:], strict=True):
        out.addcmul_(view, tap)
    return out if bias is None else out.add_(bias)


def _in_long_rows(x: Tensor, weight: Tensor, bias: Tensor | None, kernel: int, step: int, wide: torch.dtype) -> Tensor:
    """Stride 1 in padded rows: a tap is the same vector, shifted; what falls into the margins is cut off at the end.

    With rows of W + k - 1 numbers, the tap (u, v) lies u (W + k - 1) + v numbers further on.
    """
    channels, height, width = weight.shape[1:]
    edge, pitch = kernel // 2, width + kernel - 1
    length = height * pitch
    shifts = [u * pitch + v for u in range(kernel) for v in range(kernel)]
    taps = F.pad(weight, (0, kernel - 1)).flatten(2)  # (k^2, C, length)
    out = x.new_empty(x.shape[0], channels, height, width, dtype=wide)
    for first in range(0, x.shape[0], step):
        some = slice(first, first + step)
        rows = F.pad(x[some].to(wide), (edge, edge, edge, edge + 1)).flatten(2)  # one more row: the last tap's margin
        total = rows[:, :, :length] * taps[0]
        for shift, tap in zip(shifts[1:], taps[1:], strict=True):
            total.addcmul_(rows[:, :, shift : shift + length], tap)
        out[some] = total.unflatten(2, (height, pitch))[..., :width]
    return out if bias is None else out.add_(bias)
