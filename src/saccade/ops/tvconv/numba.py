"""Compiled by Numba: the nine products of a place are added up in registers, a sum is written once.

3 x 3 kernels in single precision, in either layout. Planes (channels first) are set into a frame of zeros, one at a
time; pixels (channels last) need none, their taps are vectors of all channels.
"""

from __future__ import annotations

from typing import Any

import numba  # noqa: F401  named here: without it this file is not to be had
import numpy as np
import torch
from torch import Tensor

from saccade.ops.compiled import SUMMED, compiled, on_all_threads

__all__ = ["takes", "tvconv3"]

ALONE = 1 << 18  # products below which a second thread takes longer to start than it saves


def takes(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether `tvconv3` runs these: 3 x 3 in single precision on the processor, dense in one of the two layouts."""
    told = (x, weight) if bias is None else (x, weight, bias)
    plain = all(t.dtype == torch.float32 and t.device.type == "cpu" for t in told)
    return plain and len(weight) == 9 and (x.is_contiguous() or _last(x)) and x.numel() > 0


def _last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


def tvconv3(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """`tvconv` of what `takes` takes; the result lies as x does."""
    batch, (channels, height, width) = x.shape[0], weight.shape[1:]
    most = batch * weight.numel() // ALONE
    x, weight = x.detach(), weight.detach()
    offset = x.new_empty(0, 0, 0) if bias is None else bias.detach().expand(1, channels, height, width)[0]
    if x.is_contiguous():
        out = x.new_empty(batch, channels, height, width)
        told = (x, weight.contiguous(), offset.contiguous(), out)
        kernel = _planes if stride == 1 else _planes_apart
        on_all_threads(kernel, min(most, channels), *(t.numpy() for t in told), stride)
        return out
    out = x.new_empty(batch, height, width, channels)
    last = (x.permute(0, 2, 3, 1), weight.permute(0, 2, 3, 1).contiguous(), offset.permute(1, 2, 0).contiguous(), out)
    on_all_threads(_pixels, min(most, height), *(t.numpy() for t in last), stride)
    return out.permute(0, 3, 1, 2)


# The innermost loops stand in their functions: in one of its own, called a row at a time, a loop takes twice as long.


@compiled(SUMMED)
def _planes(part: int, parts: int, x: Any, weight: Any, bias: Any, out: Any, _: int) -> None:
    """Channels first, stride 1: x and out (B, C, H, W), weight (9, C, H, W), bias (C, H, W) or empty."""
    batch, channels, height, width = out.shape
    frame = np.zeros((height + 2, width + 2), np.float32)  # a plane, and zeros around it
    for c in range(part, channels, parts):
        for b in range(batch):
            for i in range(height):
                frame[i + 1, 1 : width + 1] = x[b, c, i]
            for i in range(height):
                x0, x1, x2, row = frame[i], frame[i + 1], frame[i + 2], out[b, c, i]
                w0, w1, w2 = weight[0, c, i], weight[1, c, i], weight[2, c, i]
                w3, w4, w5 = weight[3, c, i], weight[4, c, i], weight[5, c, i]
                w6, w7, w8 = weight[6, c, i], weight[7, c, i], weight[8, c, i]
                for j in range(width):
                    upper = w0[j] * x0[j] + w1[j] * x0[j + 1] + w2[j] * x0[j + 2]
                    middle = w3[j] * x1[j] + w4[j] * x1[j + 1] + w5[j] * x1[j + 2]
                    row[j] = upper + middle + w6[j] * x2[j] + w7[j] * x2[j + 1] + w8[j] * x2[j + 2]
                if bias.size:
                    offset = bias[c, i]
                    for j in range(width):
                        row[j] += offset[j]


@compiled(SUMMED)
def _planes_apart(part: int, parts: int, x: Any, weight: Any, bias: Any, out: Any, stride: int) -> None:
    """Channels first, stride 2 or more: columns of a row are sorted by remainder, so that taps read neighbours."""
    batch, channels, rows, columns = out.shape
    height, width = x.shape[2:]
    pitch = -(-(width + 2) // stride) + 2  # columns of one remainder
    line = np.zeros(pitch * stride, np.float32)
    for c in range(part, channels, parts):
        for b in range(batch):
            for i in range(rows):
                row = out[b, c, i]
                for j in range(columns):
                    row[j] = bias[c, i, j] if bias.size else np.float32(0)
                for u in range(max(0, 1 - stride * i), min(3, height + 1 - stride * i)):
                    seen = x[b, c, stride * i + u - 1]
                    for remainder in range(stride):  # of the column behind one of zeros
                        first = (remainder - 1) % stride
                        start = remainder * pitch + (first + 1) // stride
                        for k in range((width - first + stride - 1) // stride):
                            line[start + k] = seen[first + k * stride]
                    x1 = line[1 % stride * pitch + 1 // stride :]
                    x2 = line[2 % stride * pitch + 2 // stride :]
                    w0, w1, w2 = weight[3 * u, c, i], weight[3 * u + 1, c, i], weight[3 * u + 2, c, i]
                    for j in range(columns):
                        row[j] += w0[j] * line[j] + w1[j] * x1[j] + w2[j] * x2[j]


@compiled(SUMMED)
def _pixels(part: int, parts: int, x: Any, weight: Any, bias: Any, out: Any, stride: int) -> None:
    """Channels last: x (B, H, W, C), weight (9, h, w, C), bias (h, w, C) or empty, out (B, h, w, C)."""
    batch, rows, columns, channels = out.shape
    height, width = x.shape[1:3]
    for i in range(part, rows, parts):
        for b in range(batch):
            for j in range(columns):
                top, left, to = stride * i - 1, stride * j - 1, out[b, i, j]
                if top >= 0 and left >= 0 and top + 3 <= height and left + 3 <= width:
                    a0, a1, a2 = x[b, top, left], x[b, top, left + 1], x[b, top, left + 2]
                    b0, b1, b2 = x[b, top + 1, left], x[b, top + 1, left + 1], x[b, top + 1, left + 2]
                    c0, c1, c2 = x[b, top + 2, left], x[b, top + 2, left + 1], x[b, top + 2, left + 2]
                    w0, w1, w2 = weight[0, i, j], weight[1, i, j], weight[2, i, j]
                    w3, w4, w5 = weight[3, i, j], weight[4, i, j], weight[5, i, j]
                    w6, w7, w8 = weight[6, i, j], weight[7, i, j], weight[8, i, j]
                    for c in range(channels):
                        upper = w0[c] * a0[c] + w1[c] * a1[c] + w2[c] * a2[c]
                        middle = w3[c] * b0[c] + w4[c] * b1[c] + w5[c] * b2[c]
                        to[c] = upper + middle + w6[c] * c0[c] + w7[c] * c1[c] + w8[c] * c2[c]
                else:
                    _border(x, weight, to, b, i, j, top, left)
                if bias.size:
                    offset = bias[i, j]
                    for c in range(channels):
                        to[c] += offset[c]


@compiled(SUMMED)
def _border(x: Any, weight: Any, to: Any, b: int, i: int, j: int, top: int, left: int) -> None:
    """A place at the border: the taps that lie in the picture, the first of all nine at (top, left)."""
    to[:] = 0
    for u in range(max(0, -top), min(3, x.shape[1] - top)):
        for v in range(max(0, -left), min(3, x.shape[2] - left)):
            near, tap = x[b, top + u, left + v], weight[3 * u + v, i, j]
            for c in range(len(to)):
                to[c] += tap[c] * near[c]
