"""Bi-level routing attention: regions choose regions, then tokens attend to the tokens of the chosen ones.

    map (B, H, W, C) -- to_regions -- (B, R, T, C)      R regions of T tokens, row-major
    route            descriptors (B, R, D) -> indices of the best ``topk`` regions of each, by affinity
    routed_attention naive.py is the truth, a masked (R T)^2 matrix; gathered.py reads the routed regions alone;
                     triton.py is the path of a GPU, which does not even copy them

Zhu et al., "BiFormer: Vision Transformer with Bi-Level Routing Attention", CVPR 2023, arXiv:2303.08810, section 3.
Scores and time are topk / R of full attention's.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from saccade.cost import register_macs
from saccade.errors import InputError, UsageError
from saccade.ops.bi_level_routing import gathered, naive
from saccade.ops.triton_launch import runs_on_triton

__all__ = ["bi_level_routing_attention", "from_regions", "route", "routed_attention", "to_regions"]


def to_regions(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Cut a map into regions: (B, H, W, C) -> (B, rows * columns, tokens, C), both in row-major order.

    Args:
        grid: (rows, columns) of regions; they divide H and W.
    """
    batch, height, width, channels = x.shape
    rows, columns = grid
    cut = x.reshape(batch, rows, height // rows, columns, width // columns, channels)
    return cut.transpose(2, 3).reshape(batch, rows * columns, (height // rows) * (width // columns), channels)


def from_regions(x: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The inverse of `to_regions`: (B, R, T, C) -> (B, H, W, C) for ``size`` = (H, W)."""
    batch, channels = x.shape[0], x.shape[-1]
    rows, columns = grid
    cut = x.reshape(batch, rows, columns, size[0] // rows, size[1] // columns, channels)
    return cut.transpose(2, 3).reshape(batch, size[0], size[1], channels)


def route(query: Tensor, key: Tensor, topk: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """The best regions of each region (equations 3 and 4), by affinity A = scale * query key^T.

    Args:
        query, key: descriptors (B, R, D); detach them where no gradient is to pass.
        topk: how many, 1 to R.
        scale: of the affinities; the order does not depend on it.

    Returns:
        indices (B, R, topk) int64 in descending affinity, and the affinities (B, R, topk).

    Raises:
        UsageError: topk out of range.
    """
    if not torch.compiler.is_compiling() and not 1 <= topk <= key.shape[1]:
        raise UsageError(f"topk is {topk}, but there are {key.shape[1]} regions: 1 to {key.shape[1]}")
    affinity, indices = torch.topk((query * scale) @ key.mT, topk, dim=-1)
    return indices, affinity


def routed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    indices: Tensor,
    *,
    heads: int,
    scale: float,
    weights: Tensor | None = None,
    fast: bool | None = None,
) -> Tensor:
    """Attention of each region's tokens to the tokens of its routed regions (equations 5 and 6).

        out_i = softmax_j(scale * q_i (w k_j)^T) (w v_j)      j over the tokens of regions indices[region of i]

    Args:
        query: (B, R, Tq, D).
        key, value: (B, R, Tk, D) and (B, R, Tk, C); Tk may differ from Tq where keys are pooled.
        indices: (B, R, topk) int64, regions in [0, R), each once; heads share them.
        heads: they divide D and C.
        scale: of the scores.
        weights: (B, R, topk), w above, one number for each routed region (soft routing); None for 1.
        fast: gather, or, outside graphs and double precision, go by Triton on a GPU that has it; None decides as
            true. False takes the masked matrix.

    Returns:
        (B, R, Tq, C). Differentiable, by Triton once.

    Raises:
        InputError: shapes that do not go together.
        UsageError: heads that do not divide the channels.
    """
    if not torch.compiler.is_compiling():
        _check(query, key, value, indices, heads, weights)
    path = _path(fast, query, key, value, indices, weights)
    mixed: Tensor = path(query, key, value, indices, heads=heads, scale=scale, weights=weights)
    return mixed


def _path(fast: bool | None, query: Tensor, *rest: Tensor | None) -> Callable[..., Any]:
    if fast is False:
        return naive.masked_attention
    if runs_on_triton(query, *rest) and query.dtype != torch.float64:
        attended: Callable[..., Any] = importlib.import_module("saccade.ops.bi_level_routing.triton").attended
        return attended
    return gathered.gathered_attention


def bi_level_routing_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    grid: tuple[int, int],
    topk: int,
    *,
    heads: int = 1,
    scale: float | None = None,
    fast: bool | None = None,
) -> Tensor:
    """All of it on maps: cut into regions, route by their means (without gradient), attend, put together.

    Args:
        query, key: (B, H, W, D).
        value: (B, H, W, C).
        grid: (rows, columns) of regions; they divide H and W.
        topk: regions that each region attends to.
        heads: they share the routing.
        scale: of the scores, D^-0.5 by default (of all channels, as published).
        fast: as `routed_attention`.

    Returns:
        (B, H, W, C).

    Raises:
        InputError: a map that does not divide into the regions, or shapes that do not go together.
        UsageError: topk or heads out of range.
    """
    if not torch.compiler.is_compiling():
        fits = query.ndim == value.ndim == 4 and query.shape == key.shape and query.shape[:3] == value.shape[:3]
        if not fits:
            shapes = ", ".join(str(tuple(t.shape)) for t in (query, key, value))
            raise InputError(f"query and key are (B, H, W, D), value is (B, H, W, C); not {shapes}")
    height, width = query.shape[1:3]
    if not torch.compiler.is_compiling() and (min(grid) < 1 or height % grid[0] or width % grid[1]):
        raise InputError(f"a map of {width} x {height} does not divide into {grid[1]} x {grid[0]} regions")
    scale = query.shape[3] ** -0.5 if scale is None else scale
    q, k, v = (to_regions(x, grid) for x in (query, key, value))
    indices, _ = route(q.mean(2).detach(), k.mean(2).detach(), topk, scale)
    mixed = routed_attention(q, k, v, indices, heads=heads, scale=scale, fast=fast)
    return from_regions(mixed, grid, (height, width))


def _check(query: Tensor, key: Tensor, value: Tensor, indices: Tensor, heads: int, weights: Tensor | None) -> None:
    if query.ndim != 4 or key.ndim != 4 or value.ndim != 4 or indices.ndim != 3:
        raise InputError("query, key and value are (B, R, T, C) and indices (B, R, topk)")
    fits = query.shape[:2] == key.shape[:2] == value.shape[:2] == indices.shape[:2]
    if not fits or query.shape[3] != key.shape[3] or key.shape[2] != value.shape[2]:
        shapes = ", ".join(str(tuple(t.shape)) for t in (query, key, value, indices))
        raise InputError(f"query, key, value and indices do not go together: {shapes}")
    if weights is not None and weights.shape != indices.shape:
        raise InputError(f"weights are {tuple(weights.shape)}, but indices {tuple(indices.shape)}")
    if heads < 1 or query.shape[3] % heads or value.shape[3] % heads:
        raise UsageError(f"{heads} heads do not divide {query.shape[3]} and {value.shape[3]} channels")


# -- Triton's forward pass as an operator, for the ledger of costs to see

_LIBRARY = torch.library.Library("saccade", "FRAGMENT")
_LIBRARY.define(
    "routed_attention(Tensor query, Tensor key, Tensor value, Tensor indices, Tensor? weights, int heads, float scale) "
    "-> (Tensor, Tensor)"
)


def _by_triton(*given: Any) -> tuple[Tensor, Tensor]:
    made: tuple[Tensor, Tensor] = importlib.import_module("saccade.ops.bi_level_routing.triton").forward(*given)
    return made


for _key in ("CPU", "CUDA"):
    _LIBRARY.impl("routed_attention", _by_triton, _key)


@register_macs(torch.ops.saccade.routed_attention)
def _macs(query: Any, key: Any, value: Any, indices: Any, *_: Any, **__: Any) -> int:
    """Two products: queries with the routed keys, and what attention makes of the values."""
    batch, regions, tokens, dim = query
    return int(batch * regions * tokens * indices[2] * key[2] * (dim + value[3]))
