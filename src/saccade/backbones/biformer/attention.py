"""What mixes tokens: attention to routed regions, attention to everything, or convolutions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import InputError, UsageError
from saccade.ops.bi_level_routing import from_regions, route, routed_attention, to_regions

__all__ = ["BiLevelRoutingAttention", "ConvolutionMixer", "FullAttention", "depthwise"]

#: queries, keys, values, descriptors of queries and keys, local context
Parts = tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor], Tensor | None]
FULL, PLAIN, CONVOLUTION = -2, -1, 0  # values of topk that stand for other mixers
LAST_HEADS = 8  # of stages that attend to everything, whatever their width


def depthwise(conv: nn.Module, x: Tensor) -> Tensor:
    """A convolution on a map with channels last, (B, H, W, C)."""
    out: Tensor = conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return out


class Router(nn.Module):
    """Which regions each region attends to (equations 3 and 4), and how much with soft routing.

    Shape: descriptors (B, R, D) of queries and keys -> indices (B, R, topk) and weights, a softmax over the kept.

    Args:
        learned: a linear layer on the descriptors.
        differentiable: let gradients pass into the descriptors.
    """

    def __init__(self, dim: int, topk: int, *, learned: bool = False, differentiable: bool = False) -> None:
        super().__init__()
        self.topk, self.scale, self.differentiable = topk, dim**-0.5, differentiable
        self.emb = nn.Linear(dim, dim) if learned else nn.Identity()

    def forward(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        if not self.differentiable:
            query, key = query.detach(), key.detach()
        indices, affinity = route(self.emb(query), self.emb(key), min(self.topk, key.shape[1]), self.scale)
        return indices, affinity.softmax(-1)


class BiLevelRoutingAttention(nn.Module):
    """Bi-level routing attention on a map with channels last (section 3.2, algorithm 1).

    Shape: (B, H, W, C) -> (B, H, W, C).

    Args:
        width: channels C.
        heads: they share the routing; the scale of the scores is qk_dim^-0.5 all the same, not the head's.
        topk: regions that each region attends to.
        regions: of each side of the map.
        qk_dim: channels of queries and keys, C by default.
        side: kernel of the depthwise convolution of values (local context enhancement); 0 for none.
        soft: multiply gathered keys and values by the routing weights.
        differentiable: gradients pass through the routing; needs ``soft``.
        learned: a linear layer on the descriptors; needs ``differentiable``.
        pool: (mode, size), how keys and values of each region are pooled: ``"ada_avgpool"`` or ``"ada_maxpool"`` to
            size x size, ``"avgpool"`` or ``"maxpool"`` by it; None keeps them all.
        auto_pad: fill maps that do not divide into regions with zeros at the right and bottom; the filled tokens take
            part as in the published code.
        refactored: the published NCHW form. Queries, keys and values are padded instead of the input, regions have
            H // regions rows (so there may be more than regions^2), and descriptors leave padding out.
        place: what errors call this layer.

    Raises:
        UsageError: numbers that describe no such layer.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        topk: int,
        regions: int = 7,
        *,
        qk_dim: int | None = None,
        side: int = 5,
        soft: bool = False,
        differentiable: bool = False,
        learned: bool = False,
        pool: tuple[str, int] | None = None,
        auto_pad: bool = True,
        refactored: bool = False,
        place: str = "this layer",
    ) -> None:
        super().__init__()
        dim = qk_dim or width
        if not 1 <= topk <= regions**2:
            raise UsageError(f"topk of {place} is {topk}; with {regions} x {regions} regions it is 1 to {regions**2}")
        if heads < 1 or width % heads or dim % heads:
            raise UsageError(f"the {width} channels of {place} do not divide into {heads} heads")
        if learned and not differentiable:
            raise UsageError("learned routing needs gradients: it goes with differentiable routing")
        if differentiable and not soft:
            raise UsageError("differentiable routing without soft weights ('hard') was never defined: add soft routing")
        self.width, self.heads, self.regions, self.dim = width, heads, regions, dim
        self.soft, self.auto_pad, self.refactored, self.place = soft, auto_pad, refactored, place
        self.trained, self.scale = topk, dim**-0.5
        self.router = Router(dim, topk, learned=learned, differentiable=differentiable)
        self.qkv = nn.Linear(width, 2 * dim + width)
        self.lepe = nn.Conv2d(width, width, side, padding=side // 2, groups=width) if side else None
        self.wo = nn.Linear(width, width)
        self.pool = _pooling(*pool) if pool is not None else None

    @property
    def topk(self) -> int:
        """Regions that each region attends to now."""
        return self.router.topk

    @topk.setter
    def topk(self, value: int) -> None:
        if not 1 <= value <= self.regions**2:
            raise UsageError(f"topk of {self.place} is 1 to {self.regions**2}, not {value}")
        self.router.topk = value

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        rows, columns, cell = self._grid(height, width)
        grid, size = (rows, columns), (rows * cell[0], columns * cell[1])
        q, k, v, means, local = (self._padded if self.refactored else self._cut)(x, grid, size, cell)
        indices, weights = self.router(*means)
        if self.pool is not None:
            k, v = (_pooled(self.pool, part, cell) for part in (k, v))
        mixed = routed_attention(
            q, k, v, indices, heads=self.heads, scale=self.scale, weights=weights if self.soft else None
        )
        out = from_regions(mixed, grid, size)
        out = out if local is None else out + _filled(local, size)
        projected: Tensor = self.wo(out[:, :height, :width])
        return projected

    def _cut(self, x: Tensor, grid: tuple[int, int], size: tuple[int, int], cell: tuple[int, int]) -> Parts:
        """Queries, keys, values by regions, descriptors, and the local context: regions are cut before projecting."""
        x = to_regions(_filled(x, size), grid)
        # three products instead of one: each comes out contiguous, as gathering wants it
        parts = (self.dim, self.dim, self.width)
        rows = zip(self.qkv.weight.split(parts), self.qkv.bias.split(parts), strict=True)
        q, k, v = (F.linear(x, weight, bias) for weight, bias in rows)  # (B, R, T, .)
        local = None if self.lepe is None else depthwise(self.lepe, from_regions(v, grid, size))
        return q, k, v, (q.mean(2), k.mean(2)), local

    def _padded(self, x: Tensor, grid: tuple[int, int], size: tuple[int, int], cell: tuple[int, int]) -> Parts:
        """The same in the refactored form: projected, then padded and cut."""
        parts = self.qkv(x).split((self.dim, self.dim, self.width), 3)
        local = None if self.lepe is None else depthwise(self.lepe, parts[2])
        q, k, v = (to_regions(_filled(part, size), grid) for part in parts)
        return q, k, v, (_region_means(parts[0], cell), _region_means(parts[1], cell)), local

    def _grid(self, height: int, width: int) -> tuple[int, int, tuple[int, int]]:
        """Rows and columns of regions, and the size of one."""
        n = self.regions
        if self.refactored:
            cell = (max(1, height // n), max(1, width // n))
            return (height + cell[0] - 1) // cell[0], (width + cell[1] - 1) // cell[1], cell
        if not self.auto_pad and not torch.compiler.is_compiling() and (height % n or width % n):
            raise InputError(
                f"{self.place} has a map of {width} x {height}, which does not divide by {n} into regions; "
                "take another size of picture or auto_pad=True"
            )
        return n, n, ((height + n - 1) // n, (width + n - 1) // n)  # in ONNX graphs, -9 // 2 is -4


def _pooling(mode: str, size: int) -> nn.Module:
    kinds: dict[str, Any] = {
        "ada_avgpool": nn.AdaptiveAvgPool2d,
        "ada_maxpool": nn.AdaptiveMaxPool2d,
        "avgpool": nn.AvgPool2d,
        "maxpool": nn.MaxPool2d,
    }
    if mode not in kinds or size < 1:
        raise UsageError(f"pool is one of {', '.join(kinds)} and a size of at least 1, not {mode!r}, {size}")
    made: nn.Module = kinds[mode](size)
    return made


def _pooled(pool: nn.Module, x: Tensor, cell: tuple[int, int]) -> Tensor:
    """Tokens of every region pooled: (B, R, T, C) -> (B, R, T', C)."""
    found = pool(x.flatten(0, 1).mT.unflatten(2, cell))  # (B R, C, h', w')
    return found.flatten(2).mT.unflatten(0, x.shape[:2])


def _region_means(x: Tensor, cell: tuple[int, int]) -> Tensor:
    """Means over regions, those at the edge over what they have: (B, H, W, C) -> (B, R, C)."""
    means = F.avg_pool2d(x.permute(0, 3, 1, 2), cell, ceil_mode=True, count_include_pad=False)
    return means.flatten(2).mT


def _filled(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Zeros at the right and bottom up to ``size``; (B, H, W, C)."""
    below, right = size[0] - x.shape[1], size[1] - x.shape[2]
    if not torch.compiler.is_compiling() and below == right == 0:
        return x
    return F.pad(x, (0, 0, 0, right, 0, below))


class FullAttention(nn.Module):
    """Attention of all tokens to all, 8 heads of scale head_dim^-0.5, with channels last: (B, H, W, C), same.

    Args:
        context: what the depthwise 5x5 convolution is of: ``"input"`` (the published networks), ``"value"`` (their
            NCHW form), or ``""`` for no convolution.
    """

    def __init__(self, width: int, context: str = "input", place: str = "this layer") -> None:
        super().__init__()
        if width % LAST_HEADS:
            raise UsageError(f"the {width} channels of {place} do not divide into {LAST_HEADS} heads")
        self.context = context
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)
        self.lepe = nn.Conv2d(width, width, 5, padding=2, groups=width) if context else None

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape
        qkv = self.qkv(x)
        q, k, v = (t.flatten(1, 2).unflatten(2, (LAST_HEADS, -1)).transpose(1, 2) for t in qkv.chunk(3, 3))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(size)
        if self.lepe is not None:
            mixed = mixed + depthwise(self.lepe, x if self.context == "input" else qkv[..., 2 * size[3] :])
        out: Tensor = self.proj(mixed)
        return out


class ConvolutionMixer(nn.Sequential):
    """Convolutions in the place of attention (``topk`` 0), with channels last: 1x1, depthwise 5x5, 1x1."""

    def __init__(self, width: int) -> None:
        super().__init__(
            nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 5, padding=2, groups=width), nn.Conv2d(width, width, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return out
