"""Output pixels in blocks of rows: where each one's first layer comes from, and where its answer goes.

A grid holds the features of a batch and cuts the output pixels into blocks of bounded size. `Fast` is a sampler made
ready for one grid: the feature part of its first layer is evaluated once per input pixel of a block, the position part
is looked up. Both are exact; `Sampler.forward` on `queries` is the slow truth.

    PhaseGrid   whole scales: the position part of a first layer is one of scale^2 constants
    FreeGrid    any output size: the position part is a row's plus a column's term
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

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
    """Rows of one picture.

    Attributes:
        features: (D, P), of the input pixels that the rows lie on.
        picture: place in the batch.
        rows: first and last + 1, of the input in a `PhaseGrid`, of the output in a `FreeGrid`.
        outputs: output pixels, in the grid's own order.
    """

    features: Tensor
    picture: int
    rows: tuple[int, int]
    outputs: int


class PhaseGrid:
    """All output pixels of a whole scale; those of a block are in the order (phase, input pixel).

    Args:
        lr: (B, 3, h, w), the picture.
        features: (B, D, h, w), of the encoder.
        scale: whole enlargement s.
        block: output pixels to hold at once; at least those of one input row are.
    """

    def __init__(self, lr: Tensor, features: Tensor, scale: int, block: int) -> None:
        self.features, self.scale = features, scale
        self.padded = F.pad(lr, (1, 1, 1, 1), "replicate")
        self.h, self.w = features.shape[2:]
        self.step = min(self.h, max(1, block // (self.w * scale * scale)))
        inputs = torch.arange(self.step * self.w, device=features.device)
        self.pixel = inputs.repeat(scale * scale)  # of each output of a full block: its input pixel

    def blocks(self) -> Iterator[Block]:
        """Cut the grid into blocks of input rows."""
        for b, features in enumerate(self.features):
            for top in range(0, self.h, self.step):
                end = min(top + self.step, self.h)
                part = features[:, top:end].flatten(1)
                yield Block(part, b, (top, end), part.shape[1] * self.scale**2)

    def positions(self, sampler: Sampler) -> tuple[Tensor, ...]:
        """The position part of a sampler's first layer, bias included: (o, s^2)."""
        _, by_position, bias = sampler.split()
        return (torch.addmm(bias[:, None], by_position, phase_positions(self.scale).to(self.features)),)

    def all(self, by_feature: Tensor, positions: tuple[Tensor, ...], block: Block) -> Tensor:
        """First layer of all pixels of a block: (o, P) and `positions` -> (o, outputs)."""
        return (by_feature[:, None] + positions[0][:, :, None]).flatten(1)

    def some(self, rows: Tensor, positions: tuple[Tensor, ...], block: Block, chosen: Tensor) -> Tensor:
        """First layer of the chosen pixels: (P, o), `positions` and (K,) ascending int64 -> (K, o)."""
        inputs, phases = rows.shape[0], self.scale**2
        pixel = self.pixel if inputs == self.step * self.w else self.pixel[:inputs].repeat(phases)
        first = rows.index_select(0, pixel.index_select(0, chosen))
        ends = torch.searchsorted(chosen, torch.arange(1, phases + 1, device=chosen.device) * inputs).tolist()
        for phase, (a, b) in enumerate(zip([0, *ends], ends, strict=False)):
            first[a:b] += positions[0][:, phase]
        return first

    def bilinear(self, block: Block) -> Tensor:
        """The bilinear enlargement of a block, (3, outputs): by phases, s mixtures of rows, then s of columns."""
        s, w, (top, end) = self.scale, self.w, block.rows
        source = self.padded[block.picture, :, top : end + 2]
        rows = source.new_empty((3, s, end - top, w + 2))
        out = source.new_empty((3, s, s, end - top, w))
        for phase in range(s):
            shift = (2 * phase + 1 - s) / (2 * s)  # of the phase from the input pixel's centre
            first, weight = (0, 1 + shift) if shift < 0 else (1, shift)
            upper, lower = source[:, first : first + end - top], source[:, first + 1 : first + 1 + end - top]
            torch.lerp(upper, lower, weight, out=rows[:, phase])
        for phase in range(s):
            shift = (2 * phase + 1 - s) / (2 * s)
            first, weight = (0, 1 + shift) if shift < 0 else (1, shift)
            torch.lerp(rows[..., first : first + w], rows[..., first + 1 : first + 1 + w], weight, out=out[:, :, phase])
        return out.view(3, -1)

    def view(self, picture: Tensor, block: Block) -> Tensor:
        """A block's part of (B, C, H, W), as (C, s, s, rows, w): the block's own order."""
        top, end = block.rows
        part = picture[block.picture, :, top * self.scale : end * self.scale]
        return part.view(-1, end - top, self.scale, self.w, self.scale).permute(0, 2, 4, 1, 3)


class FreeGrid:
    """All output pixels of any output size, row by row.

    Args:
        lr: (B, 3, h, w), the picture.
        features: (B, D, h, w), of the encoder.
        size: (H, W) of the output.
        block: output pixels to hold at once; at least one row is.
    """

    def __init__(self, lr: Tensor, features: Tensor, size: tuple[int, int], block: int) -> None:
        self.features, self.size = features, size
        self.base = F.interpolate(lr, size=size, mode="bilinear", align_corners=False)
        self.y, self.rel_y = axis_positions(features.shape[2], size[0])
        self.x, self.rel_x = axis_positions(features.shape[3], size[1])
        self.columns = self.x.to(features.device)
        self.step = max(1, block // size[1])

    def blocks(self) -> Iterator[Block]:
        """Cut the grid into blocks of output rows."""
        for b, features in enumerate(self.features):
            for top in range(0, self.size[0], self.step):
                end = min(top + self.step, self.size[0])
                part = features[:, int(self.y[top]) : int(self.y[end - 1]) + 1]
                yield Block(part.flatten(1), b, (top, end), (end - top) * self.size[1])

    def positions(self, sampler: Sampler) -> tuple[Tensor, ...]:
        """The position part of a sampler's first layer: rows (o, H), cell and bias included, and columns (o, W)."""
        _, by_position, bias = sampler.split()
        cell = torch.tensor([2 * n / m for n, m in zip(self.features.shape[2:], self.size, strict=True)])
        constant = bias + by_position[:, 2:] @ cell.to(by_position)
        rows = by_position[:, :1] * self.rel_y.to(by_position) + constant[:, None]
        return rows, by_position[:, 1:2] * self.rel_x.to(by_position)

    def _rows(self, block: Block) -> Tensor:
        """Input row, within the block's features, of each output row of the block."""
        top, end = block.rows
        return (self.y[top:end] - self.y[top]).to(self.features.device)

    def all(self, by_feature: Tensor, positions: tuple[Tensor, ...], block: Block) -> Tensor:
        """First layer of all pixels of a block: (o, P) and `positions` -> (o, outputs)."""
        top, end = block.rows
        nearest = by_feature.unflatten(1, (-1, self.features.shape[3]))[:, self._rows(block)][:, :, self.columns]
        return (nearest + positions[0][:, top:end, None] + positions[1][:, None]).flatten(1)

    def some(self, rows: Tensor, positions: tuple[Tensor, ...], block: Block, chosen: Tensor) -> Tensor:
        """First layer of the chosen pixels: (P, o), `positions` and (K,) ascending int64 -> (K, o)."""
        top, end = block.rows
        y = torch.div(chosen, self.size[1], rounding_mode="floor")
        x = chosen - y * self.size[1]
        first = rows.index_select(0, self._rows(block)[y] * self.features.shape[3] + self.columns[x])
        first += positions[0][:, top:end].t().index_select(0, y)
        return first.add_(positions[1].t().index_select(0, x))

    def bilinear(self, block: Block) -> Tensor:
        """The bilinear enlargement of a block, (3, outputs)."""
        return self.view(self.base, block).flatten(1)

    def view(self, picture: Tensor, block: Block) -> Tensor:
        """A block's part of (B, C, H, W): (C, rows, W)."""
        top, end = block.rows
        return picture[block.picture, :, top:end]


class Fast:
    """A sampler made ready for a grid; counts the multiply-accumulates that it executes.

    Between hidden layers the bias is folded into the rectification: relu(y + b) = max(y, -b) + b, and the last term
    goes through the next layer's weights into its bias. So a hidden layer costs one product and one pass.
    """

    def __init__(self, sampler: Sampler, grid: PhaseGrid | FreeGrid) -> None:
        self.grid = grid
        self.by_feature, _, _ = sampler.split()
        self.positions = grid.positions(sampler)
        self.weights = [layer.weight for layer in sampler.tail_layers]
        self.offsets: list[Tensor] = []
        for layer in sampler.tail_layers:
            offset = layer.bias[:, None]  # (o, 1)
            self.offsets.append(torch.addmm(offset, layer.weight, self.offsets[-1]) if self.offsets else offset)
        self.floors = [-offset for offset in self.offsets]
        self.tail_macs = sampler.tail_macs
        self.macs = 0

    def _tail(self, x: Tensor) -> Tensor:
        if not self.weights:
            return x
        x = x.relu_()
        for weight, floor in zip(self.weights[:-1], self.floors[:-1], strict=True):
            y = weight @ x
            x = torch.maximum(y, floor, out=y)
        return (self.weights[-1] @ x).add_(self.offsets[-1])

    def answer(self, block: Block, chosen: Tensor | None = None) -> Tensor:
        """Answers (outputs, K) for the chosen pixels (K,) of a block, or for all of them."""
        self.macs += self.by_feature.numel() * block.features.shape[1]
        if chosen is None:
            self.macs += self.tail_macs * block.outputs
            return self._tail(self.grid.all(self.by_feature @ block.features, self.positions, block))
        self.macs += self.tail_macs * chosen.numel()
        rows = block.features.t() @ self.by_feature.t()
        return self._tail(self.grid.some(rows, self.positions, block, chosen).t())
