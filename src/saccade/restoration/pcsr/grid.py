"""Output pixels in blocks: where each one's first layer comes from, and where its answer goes.

A grid holds the features of a batch and cuts the output pixels into blocks of bounded size. `Fast` is a sampler made
ready for one grid: the feature part of its first layer is evaluated once per input pixel of a block, the position part
is looked up. Both are exact; `Sampler.forward` on `queries` is the slow truth.

    PhaseGrid   whole scales: pixels in the order (scale^2, B*h*w), the position part is one of scale^2 constants
    FreeGrid    any output size: pixels in the order (B, H, W), the position part is a row's plus a column's term
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from saccade.restoration.pcsr.sampler import Sampler, axis_positions, phase_positions

__all__ = ["Block", "Fast", "FreeGrid", "PhaseGrid", "queries"]


def queries(features: Tensor, height: int, width: int) -> Tensor:
    """The inputs of every query, (B, height*width, D + 4), row by row: the slow truth that needs all the memory."""
    _, _, h, w = features.shape
    y, rel_y = axis_positions(h, height)
    x, rel_x = axis_positions(w, width)
    nearest = features[:, :, y][:, :, :, x].flatten(2).transpose(1, 2)
    rel = torch.cartesian_prod(rel_y, rel_x).view(-1, 2)
    cell = torch.tensor([2 * h / height, 2 * w / width], dtype=rel.dtype).expand_as(rel)
    place = torch.cat([rel, cell], 1).to(features)
    return torch.cat([nearest, place.expand(len(features), -1, -1)], 2)


@dataclass(frozen=True)
class Block:
    """Some output pixels: ``outputs`` of them, over the input pixels whose features (D, P) are ``features``."""

    features: Tensor
    place: tuple[int, int, int]  # where it lies in the grid, for the grid's own use
    outputs: int


class PhaseGrid:
    """All output pixels of a whole scale, by phase.

    Args:
        features: (B, D, h, w).
        scale: whole enlargement s.
        block: output pixels to hold at once.
    """

    def __init__(self, features: Tensor, scale: int, block: int) -> None:
        self.batch, _, self.h, self.w = features.shape
        self.scale = scale
        self.size = (self.h * scale, self.w * scale)
        self.features = features.transpose(0, 1).flatten(1)  # (D, B*h*w)
        self.step = max(1, block // (scale * scale))

    def blocks(self) -> Iterator[Block]:
        """Cut the grid; every block has all phases of some input pixels."""
        for a in range(0, self.features.shape[1], self.step):
            part = self.features[:, a : a + self.step]
            yield Block(part, (a, a + part.shape[1], 0), part.shape[1] * self.scale**2)

    def positions(self, sampler: Sampler) -> tuple[Tensor, ...]:
        """The position part of a sampler's first layer, bias included: (o, s^2)."""
        _, by_position, bias = sampler.split()
        return (torch.addmm(bias[:, None], by_position, phase_positions(self.scale).to(self.features)),)

    def all(self, by_feature: Tensor, positions: tuple[Tensor, ...], block: Block) -> Tensor:
        """First layer of all pixels of a block: (o, P) and `positions` -> (o, outputs)."""
        return (by_feature[:, None] + positions[0][:, :, None]).flatten(1)

    def some(self, rows: Tensor, positions: tuple[Tensor, ...], block: Block, chosen: Tensor) -> Tensor:
        """First layer of the chosen pixels: (P, o), `positions` and (K,) int64 -> (K, o)."""
        inputs = rows.shape[0]
        phase = torch.div(chosen, inputs, rounding_mode="floor")
        first = rows.index_select(0, chosen - phase * inputs)
        return first.add_(positions[0].t().contiguous().index_select(0, phase))

    def empty(self, channels: int, dtype: torch.dtype) -> Tensor:
        """A canvas for answers, (channels, s^2, B*h*w)."""
        return self.features.new_empty((channels, self.scale**2, self.features.shape[1]), dtype=dtype)

    def view(self, canvas: Tensor, block: Block) -> Tensor:
        """The part of a canvas that belongs to a block."""
        a, b, _ = block.place
        return canvas[:, :, a:b]

    def picture(self, canvas: Tensor) -> Tensor:
        """A canvas as pictures (B, channels, H, W)."""
        s = self.scale
        parts = canvas.view(-1, s, s, self.batch, self.h, self.w)
        return parts.permute(3, 0, 4, 1, 5, 2).reshape(self.batch, -1, *self.size)


class FreeGrid:
    """All output pixels of any output size, row by row.

    Args:
        features: (B, D, h, w).
        size: (H, W) of the output.
        block: output pixels to hold at once; at least one row is.
    """

    def __init__(self, features: Tensor, size: tuple[int, int], block: int) -> None:
        self.features, self.size = features, size
        self.y, self.rel_y = axis_positions(features.shape[2], size[0])
        self.x, self.rel_x = axis_positions(features.shape[3], size[1])
        self.columns = self.x.to(features.device)
        self.step = max(1, block // size[1])

    def blocks(self) -> Iterator[Block]:
        """Cut the grid; every block has whole output rows of one picture."""
        for b in range(len(self.features)):
            for top in range(0, self.size[0], self.step):
                end = min(top + self.step, self.size[0])
                part = self.features[b, :, int(self.y[top]) : int(self.y[end - 1]) + 1]
                yield Block(part.flatten(1), (b, top, end), (end - top) * self.size[1])

    def positions(self, sampler: Sampler) -> tuple[Tensor, ...]:
        """The position part of a sampler's first layer: rows (o, H), cell and bias included, and columns (o, W)."""
        _, by_position, bias = sampler.split()
        cell = torch.tensor([2 * n / m for n, m in zip(self.features.shape[2:], self.size, strict=True)])
        constant = bias + by_position[:, 2:] @ cell.to(by_position)
        rows = by_position[:, :1] * self.rel_y.to(by_position) + constant[:, None]
        return rows, by_position[:, 1:2] * self.rel_x.to(by_position)

    def _rows(self, block: Block) -> Tensor:
        """Input row, within the block's features, of each output row of the block."""
        _, top, end = block.place
        return (self.y[top:end] - self.y[top]).to(self.features.device)

    def all(self, by_feature: Tensor, positions: tuple[Tensor, ...], block: Block) -> Tensor:
        """First layer of all pixels of a block: (o, P) and `positions` -> (o, outputs)."""
        _, top, end = block.place
        nearest = by_feature.unflatten(1, (-1, self.features.shape[3]))[:, self._rows(block)][:, :, self.columns]
        return (nearest + positions[0][:, top:end, None] + positions[1][:, None]).flatten(1)

    def some(self, rows: Tensor, positions: tuple[Tensor, ...], block: Block, chosen: Tensor) -> Tensor:
        """First layer of the chosen pixels: (P, o), `positions` and (K,) int64 -> (K, o)."""
        _, top, end = block.place
        y = torch.div(chosen, self.size[1], rounding_mode="floor")
        x = chosen - y * self.size[1]
        first = rows.index_select(0, self._rows(block)[y] * self.features.shape[3] + self.columns[x])
        first += positions[0][:, top:end].t().index_select(0, y)
        return first.add_(positions[1].t().index_select(0, x))

    def empty(self, channels: int, dtype: torch.dtype) -> Tensor:
        """A canvas for answers, (channels, B, H, W)."""
        return self.features.new_empty((channels, len(self.features), *self.size), dtype=dtype)

    def view(self, canvas: Tensor, block: Block) -> Tensor:
        """The part of a canvas that belongs to a block."""
        b, top, end = block.place
        return canvas[:, b, top:end]

    def picture(self, canvas: Tensor) -> Tensor:
        """A canvas as pictures (B, channels, H, W)."""
        return canvas.transpose(0, 1)


class Fast:
    """A sampler made ready for a grid; counts the multiply-accumulates that it executes.

    Between hidden layers the bias is folded into the rectification: relu(y + b) = max(y, -b) + b, and the last term
    goes through the next layer's weights into its bias. So a hidden layer costs one product and one pass.
    """

    def __init__(self, sampler: Sampler, grid: PhaseGrid | FreeGrid) -> None:
        self.grid = grid
        self.by_feature, self.by_position, _ = sampler.split()
        self.positions = grid.positions(sampler)
        tail: list[nn.Linear] = list(sampler.layers[1:])  # type: ignore[arg-type]
        self.weights = [layer.weight for layer in tail]
        self.offsets: list[Tensor] = []
        for layer in tail:
            offset = layer.bias[:, None]  # (o, 1)
            self.offsets.append(torch.addmm(offset, layer.weight, self.offsets[-1]) if self.offsets else offset)
        self.tail_macs = sum(weight.numel() for weight in self.weights)
        self.macs = 0

    def _tail(self, x: Tensor) -> Tensor:
        if not self.weights:
            return x
        x = x.relu_()
        for weight, offset in zip(self.weights[:-1], self.offsets[:-1], strict=True):
            y = weight @ x
            x = torch.maximum(y, -offset, out=y)
        return (self.weights[-1] @ x).add_(self.offsets[-1])

    def answer(self, block: Block, chosen: Tensor | None = None) -> Tensor:
        """Answers (outputs, K) for the chosen pixels (K,) of a block, or for all of them."""
        inputs = block.features.shape[1]
        self.macs += self.by_feature.numel() * inputs
        if chosen is None:
            self.macs += self.tail_macs * block.outputs
            return self._tail(self.grid.all(self.by_feature @ block.features, self.positions, block))
        self.macs += self.tail_macs * chosen.numel()
        rows = block.features.t() @ self.by_feature.t()
        return self._tail(self.grid.some(rows, self.positions, block, chosen).t())


def whole(scale: float) -> bool:
    """Whether an enlargement is a whole number."""
    return math.isclose(scale, round(scale))
