"""Sorting pixels by value and attending between the bins of the sorted sequence: the pure functions of the paper."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.ops.stable_order import stable_order

__all__ = ["attend", "bins", "dynamic_range_order", "softmax_1", "unbins"]


def softmax_1(x: Tensor) -> Tensor:
    """exp(x) / (1 + sum exp(x)) over the last axis: attention may also choose nothing.

    The largest value is not subtracted: here x is at most the temperature.
    """
    e = x.exp()
    return e / (e.sum(-1, keepdim=True) + 1)


def dynamic_range_order(x: Tensor) -> Tensor:
    """Where each value goes when every column is sorted, then every row (dynamic-range convolution).

    Shape: (B, C, h, w) -> (B, C, h*w) int64: y = take(x.flatten(2), order) is x sorted along height, then along width.
    """
    x, width = x.detach(), x.shape[-1]
    rows = stable_order(x.transpose(-1, -2)).transpose(-1, -2)  # (B, C, h, w): of each column
    columns = stable_order(x.gather(-2, rows))  # (B, C, h, w): of each row
    return (rows.gather(-1, columns) * width + columns).flatten(2)


def bins(x: Tensor, heads: int, count: int, spread: bool) -> Tensor:
    """A sorted sequence cut into a histogram: (B, C, n) -> (B, heads, C/heads * count, ceil(n / count)).

    Args:
        heads, count: attention heads, and pieces for each channel. A sequence that does not divide gets zeros behind.
        spread: False: contiguous pieces, i.e. bins of similar brightness; True: every ``count``-th value, i.e. pieces
            that each span the whole range of brightness.
    """
    b, c, n = x.shape
    if n % count:
        x = F.pad(x, (0, count - n % count))
    if spread:
        x = x.view(b, c, -1, count).transpose(-1, -2)
    return x.reshape(b, heads, c // heads * count, -1)


def unbins(x: Tensor, n: int, count: int, spread: bool) -> Tensor:
    """The inverse of `bins`: (B, heads, C/heads * count, m) -> (B, C, n)."""
    b, heads, rows, m = x.shape
    x = x.reshape(b, heads * rows // count, count, m)
    if spread:
        x = x.transpose(-1, -2)
    return x.reshape(b, -1, count * m)[..., :n]


def attend(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor, spread: bool) -> Tensor:
    """Attention between the bins of sorted sequences (B, C, n); as many bins for each channel as heads.

    Queries and keys are normalised along their bin; instead of the bins their products are divided by the two norms.
    In 16 bits the products of a long bin overflow, and the norm of an empty one is lost: computed in float32.
    """
    if v.dtype in (torch.float16, torch.bfloat16):
        return attend(q.float(), k.float(), v.float(), temperature.float(), spread).to(v.dtype)
    heads, n = len(temperature), v.shape[-1]
    q, k, v = (bins(x, heads, heads, spread) for x in (q, k, v))
    norms = [torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=1e-12) for x in (q, k)]
    scores = q @ k.mT / norms[0] / norms[1].mT
    return unbins(softmax_1(scores * temperature) @ v, n, heads, spread)
