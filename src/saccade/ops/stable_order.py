"""Sorting along the last axis with the order kept, and moving other tensors by that order.

    order = stable_order(x)         x.gather(-1, order) ascends, equal values stay in their places
    take(y, order)                  y in that order
    put(take(y, order), order)      y again: each is the other's gradient, so neither ever adds

On the CPU a float32 is sorted together with its place as one 64-bit integer, which NumPy sorts several times faster
than PyTorch sorts a pair. The truth beside it is `stable_order_naive`.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["packed_order", "put", "stable_order", "stable_order_naive", "take"]

_REST = np.int32(0x7FFFFFFF)  # all bits but the sign


def stable_order_naive(x: Tensor) -> Tensor:
    """The order that sorts the last axis ascending, ties by place: (..., n) -> (..., n) int64. NaN comes last."""
    return x.sort(dim=-1, stable=True).indices


def stable_order(x: Tensor) -> Tensor:
    """As `stable_order_naive`, without a gradient, on the fast path where there is one.

    Half precision and bfloat16 are sorted as float32, which orders them the same.

    Shape: (..., n) -> (..., n) int64. No NaN.
    """
    x = x.detach()
    if torch.compiler.is_compiling() or type(x) is not Tensor or x.device.type != "cpu" or x.dtype == torch.float64:
        return stable_order_naive(x)
    rows = x.float().reshape(-1, x.shape[-1]).contiguous().numpy()
    return torch.from_numpy(packed_order(rows)).view(x.shape).long()


def packed_order(rows: NDArray[np.float32], values: bool = False) -> Any:
    """Orders of the rows of a matrix (m, n), as int32; on as many threads as PyTorch uses.

    The bits of a float, as an integer, ascend with the float once those of negative numbers are turned over; beside
    its place in the low half they make keys that all differ, so that any sort is stable.

    Args:
        rows: float32, no NaN.
        values: give also the sorted rows, float32.
    """
    m, n = rows.shape
    orders, ascending = np.empty((m, n), np.int32), np.empty((m, n), np.int32) if values else None
    block = max(1, 2**17 // max(1, n))  # rows at a time: keys of a megabyte
    parts = [slice(top, min(m, top + block)) for top in range(0, m, block)]
    threads = min(torch.get_num_threads(), len(parts))
    shares = [parts[i::threads] for i in range(threads)]
    if threads == 1:
        _order_parts(rows, orders, ascending, parts)
    elif threads:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda share: _order_parts(rows, orders, ascending, share), shares))
    if ascending is None:
        return orders
    ascending ^= np.right_shift(ascending, 31) & _REST
    return orders, ascending.view(np.float32)


def _order_parts(
    rows: NDArray[np.float32], orders: NDArray[np.int32], ascending: NDArray[np.int32] | None, parts: list[slice]
) -> None:
    """Fill in the orders, and the sorted keys, of some of the rows."""
    n = rows.shape[1]
    tallest = max(part.stop - part.start for part in parts)
    keys, turned = np.empty((tallest, n), np.int64), np.empty((tallest, n), np.int32)
    low, high = (0, 1) if sys.byteorder == "little" else (1, 0)
    for part in parts:
        bits = np.add(rows[part], np.float32(0)).view(np.int32)  # -0 counts as 0
        key, t = keys[: len(bits)], turned[: len(bits)]
        halves = key.view(np.int32).reshape(len(bits), n, 2)
        np.bitwise_and(np.right_shift(bits, 31, out=t), _REST, out=t)
        np.bitwise_xor(bits, t, out=halves[..., high])
        halves[..., low] = np.arange(n, dtype=np.int32)
        key.sort(axis=-1)
        orders[part] = halves[..., low]
        if ascending is not None:
            ascending[part] = halves[..., high]


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        return x.gather(-1, order)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return put(grad, *ctx.saved_tensors), None


class _Put(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        return torch.empty_like(x, memory_format=torch.contiguous_format).scatter_(-1, order, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return take(grad, *ctx.saved_tensors), None


def take(x: Tensor, order: Tensor) -> Tensor:
    """x in the order of a permutation of its last axis: y[i] = x[order[i]]. Shapes (..., n), int64 (..., n)."""
    made: Tensor = _Take.apply(x, order)
    return made


def put(x: Tensor, order: Tensor) -> Tensor:
    """Undo `take`: y[order[i]] = x[i]."""
    made: Tensor = _Put.apply(x, order)
    return made
