"""Compiled by Numba: the nine products of a place are added up in registers, a sum is written once.

3 x 3 kernels in single precision, in either layout. Planes (channels first) are set into a small frame of zeros, whose
columns are sorted by their remainder modulo the stride, so that each tap reads neighbours; pixels (channels last) need
no frame, their taps are vectors of all channels.
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
        on_all_threads(_planes, min(most, channels), *(t.numpy() for t in told), stride)
        return out
    out = x.new_empty(batch, height, width, channels)
    last = (x.permute(0, 2, 3, 1), weight.permute(0, 2, 3, 1).contiguous(), offset.permute(1, 2, 0).contiguous(), out)
    on_all_threads(_pixels, min(most, height), *(t.numpy() for t in last), stride)
    return out.permute(0, 3, 1, 2)


@compiled(SUMMED)
def _framed(plane: Any, frame: Any, stride: int) -> None:
    """A plane behind a row and a column of zeros, its columns sorted: first those at multiples of the stride."""
    height, width = plane.shape
    pitch = frame.shape[1] // stride
    for i in range(height):
        to, row = frame[i + 1], plane[i]
        for remainder in range(stride):  # of the column in the frame, which is one further on than in the plane
            first = (remainder - 1) % stride
            for k in range((width - first + stride - 1) // stride):
                to[remainder * pitch + (first + 1) // stride + k] = row[first + k * stride]


@compiled(SUMMED)
def _planes(part: int, parts: int, x: Any, weight: Any, bias: Any, out: Any, stride: int) -> None:
    """Channels first: x (B, C, H, W), weight (9, C, h, w), bias (C, h, w) or empty, out (B, C, h, w)."""
    batch, channels, rows, columns = out.shape
    pitch = -(-(x.shape[3] + 2) // stride) + 2
    frame = np.zeros((max(x.shape[2] + 2, stride * (rows - 1) + 3), pitch * stride), np.float32)
    # where the second and the third tap of a row begin among the sorted columns
    one, two = (1 % stride) * pitch + 1 // stride, (2 % stride) * pitch + 2 // stride
    for c in range(part, channels, parts):
        for b in range(batch):
            _framed(x[b, c], frame, stride)
            for i in range(rows):
                a0, b0, c0 = frame[stride * i], frame[stride * i + 1], frame[stride * i + 2]
                a1, b1, c1, a2, b2, c2 = a0[one:], b0[one:], c0[one:], a0[two:], b0[two:], c0[two:]
                w0, w1, w2 = weight[0, c, i], weight[1, c, i], weight[2, c, i]
                w3, w4, w5 = weight[3, c, i], weight[4, c, i], weight[5, c, i]
                w6, w7, w8 = weight[6, c, i], weight[7, c, i], weight[8, c, i]
                row = out[b, c, i]
                for j in range(columns):
                    top = w0[j] * a0[j] + w1[j] * a1[j] + w2[j] * a2[j]
                    middle = w3[j] * b0[j] + w4[j] * b1[j] + w5[j] * b2[j]
                    row[j] = top + middle + w6[j] * c0[j] + w7[j] * c1[j] + w8[j] * c2[j]
                if bias.size:
                    offset = bias[c, i]
                    for j in range(columns):
                        row[j] += offset[j]


@compiled(SUMMED)
def _pixels(part: int, parts: int, x: Any, weight: Any, bias: Any, out: Any, stride: int) -> None:
    """Channels last: x (B, H, W, C), weight (9, h, w, C), bias (h, w, C) or empty, out (B, h, w, C)."""
    batch, rows, columns, _ = out.shape
    height, width = x.shape[1:3]
    for i in range(part, rows, parts):
        for b in range(batch):
            for j in range(columns):
                top, left = stride * i - 1, stride * j - 1
                if top >= 0 and left >= 0 and top + 3 <= height and left + 3 <= width:
                    _inside(x, weight, out, b, i, j, top, left)
                else:
                    _border(x, weight, out, b, i, j, top, left)
                if bias.size:
                    out[b, i, j] += bias[i, j]


@compiled(SUMMED)
def _inside(x: Any, weight: Any, out: Any, b: int, i: int, j: int, top: int, left: int) -> None:
    """A place all of whose taps lie in the picture, the first at (top, left)."""
    w0, w1, w2 = weight[0, i, j], weight[1, i, j], weight[2, i, j]
    w3, w4, w5 = weight[3, i, j], weight[4, i, j], weight[5, i, j]
    w6, w7, w8 = weight[6, i, j], weight[7, i, j], weight[8, i, j]
    a0, a1, a2 = x[b, top, left], x[b, top, left + 1], x[b, top, left + 2]
    b0, b1, b2 = x[b, top + 1, left], x[b, top + 1, left + 1], x[b, top + 1, left + 2]
    c0, c1, c2 = x[b, top + 2, left], x[b, top + 2, left + 1], x[b, top + 2, left + 2]
    to = out[b, i, j]
    for c in range(len(to)):
        upper = w0[c] * a0[c] + w1[c] * a1[c] + w2[c] * a2[c]
        middle = w3[c] * b0[c] + w4[c] * b1[c] + w5[c] * b2[c]
        to[c] = upper + middle + w6[c] * c0[c] + w7[c] * c1[c] + w8[c] * c2[c]


@compiled(SUMMED)
def _border(x: Any, weight: Any, out: Any, b: int, i: int, j: int, top: int, left: int) -> None:
    """A place at the border: the taps that lie in the picture."""
    to = out[b, i, j]
    to[:] = 0
    for u in range(max(0, -top), min(3, x.shape[1] - top)):
        for v in range(max(0, -left), min(3, x.shape[2] - left)):
            near, tap = x[b, top + u, left + v], weight[3 * u + v, i, j]
            for c in range(len(to)):
                to[c] += tap[c] * near[c]
