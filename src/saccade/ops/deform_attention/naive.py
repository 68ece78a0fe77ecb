"""The truth: a loop over levels, points and the four pixels around each place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def looped(value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """`deform_attention`, one place at a time."""
    batch, _, heads, dim = value.shape
    queries = locations.shape[1]
    out: list[Tensor] = []
    for b in range(batch):
        for q in range(queries):
            for h in range(heads):
                total, start = value.new_zeros(dim), 0
                for level, size in enumerate(shapes):
                    stop = start + size[0] * size[1]
                    plane = value[b, start:stop, h]  # (height * width, D)
                    for place, weight in zip(locations[b, q, h, level], weights[b, q, h, level], strict=True):
                        total = total + weight * _read(plane, size, place)
                    start = stop
                out.append(total)
    return torch.stack(out).view(batch, queries, heads * dim)


def _read(plane: Tensor, size: tuple[int, int], place: Tensor) -> Tensor:
    """Bilinear value at (x, y): pixel (i, j) has its centre at ((j + 1/2) / width, (i + 1/2) / height)."""
    height, width = size
    x, y = place[0] * width - 0.5, place[1] * height - 0.5
    left, top = int(torch.floor(x.detach())), int(torch.floor(y.detach()))
    found = plane.new_zeros(plane.shape[1])
    for i in (top, top + 1):
        for j in (left, left + 1):
            if 0 <= i < height and 0 <= j < width:
                found = found + (1 - (x - j).abs()) * (1 - (y - i).abs()) * plane[i * width + j]
    return found
