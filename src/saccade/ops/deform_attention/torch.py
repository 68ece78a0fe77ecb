"""The fast path: heads as batches of maps, all points of a level read by one ``grid_sample``."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def sampled(value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """`deform_attention` by reading whole levels."""
    batch, queries, heads, _, points, _ = locations.shape
    keys, dim = value.shape[1], value.shape[3]
    planes = value.permute(0, 2, 3, 1).reshape(batch * heads, dim, keys)  # (B heads, D, K)
    grids = 2 * locations.transpose(1, 2).flatten(0, 1) - 1  # (B heads, Q, levels, points, 2)
    shares = weights.transpose(1, 2).reshape(batch * heads, 1, queries, len(shapes), points)
    out: Tensor | None = None
    start = 0
    for level, (height, width) in enumerate(shapes):
        stop = start + height * width
        plane = planes[:, :, start:stop].unflatten(2, (height, width))
        read = F.grid_sample(plane, grids[:, :, level], mode="bilinear", padding_mode="zeros", align_corners=False)
        part = (read * shares[:, :, :, level]).sum(-1)  # (B heads, D, Q)
        out = part if out is None else out + part
        start = stop
    assert out is not None
    return out.view(batch, heads * dim, queries).mT
