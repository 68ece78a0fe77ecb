"""Statistics of segments: one reduction gives what a loop gives, forward and backward; what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from saccade.errors import InputError, UsageError
from saccade.ops.segment_stats import segment_sizes, segment_stats


def drawn(cells: int, count: int, pairs: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs that may overlap, at least two for every segment."""
    chance = torch.Generator().manual_seed(seed)
    segments = torch.cat([torch.arange(count).repeat(2), torch.randint(count, (pairs,), generator=chance)])
    return torch.randint(cells, segments.shape, generator=chance), segments, segment_sizes(segments, count)


@pytest.mark.parametrize("path", ["added", "multiplied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("batch", "cells", "channels", "count", "pairs"),
    [(1, 2, 1, 1, 0), (2, 9, 3, 4, 7), (1, 64, 5, 11, 90), (3, 5, 8, 2, 40)],
)
def test_one_reduction_is_the_loop(
    batch: int, cells: int, channels: int, count: int, pairs: int, dtype: torch.dtype, path: Any
) -> None:
    own = drawn(cells, count, pairs)
    chance = torch.Generator().manual_seed(1)
    x = torch.randn(batch, cells, channels, generator=chance, dtype=dtype) + 3
    weights = torch.randn(2, batch, count, channels, generator=chance, dtype=dtype)
    found = []
    for way in (path, "naive"):
        leaf = x.clone().requires_grad_()
        mean, var = segment_stats(leaf, *own, path=way)
        (weights[0] * mean + weights[1] * var).sum().backward()
        assert leaf.grad is not None
        kept = x.clone()
        for plain, graded in zip(segment_stats(kept, *own, path=way), (mean, var), strict=True):
            torch.testing.assert_close(plain, graded)
        assert torch.equal(kept, x), "what is given stays"
        found.append((mean.detach(), var.detach(), leaf.grad))
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    for fast, truth in zip(*found, strict=True):
        torch.testing.assert_close(fast, truth, rtol=tolerance, atol=tolerance * max(1.0, float(truth.abs().max())))


def test_a_large_mean_does_not_swallow_the_variance() -> None:
    own = drawn(64, 5, 100)
    x = torch.randn(1, 64, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 1000
    _, truth = segment_stats(x, *own)
    _, found = segment_stats(x.float(), *own)
    torch.testing.assert_close(found.double(), truth, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_added_up_in_float32(dtype: torch.dtype) -> None:
    own = drawn(32, 3, 200)
    x = torch.randn(2, 32, 4, generator=torch.Generator().manual_seed(1)).to(dtype)
    for found, wide in zip(segment_stats(x, *own), segment_stats(x.float(), *own), strict=True):
        assert found.dtype == dtype
        assert torch.equal(found, wide.to(dtype))


def test_graphs_multiply_and_give_the_same() -> None:
    own = drawn(16, 3, 20)
    x = torch.randn(2, 16, 4, generator=torch.Generator().manual_seed(1))
    compiled = torch.compile(lambda y: segment_stats(y, *own), backend="aot_eager", fullgraph=True)
    for found, want in zip(compiled(x), segment_stats(x, *own), strict=True):
        torch.testing.assert_close(found, want)


def test_what_has_no_variance_is_refused() -> None:
    with pytest.raises(InputError, match=r"segment 1 has 1 cell.*merge"):
        segment_sizes(torch.tensor([0, 0, 1]), 2)
    with pytest.raises(InputError, match=r"segment 2 has 0 cell"):
        segment_sizes(torch.tensor([0, 0, 1, 1]), 3)
    with pytest.raises(InputError, match="from 0 to 1"):
        segment_sizes(torch.tensor([0, 2, 2, 0]), 2)


def test_shapes_that_do_not_go_together_are_refused() -> None:
    cells, segments, sizes = drawn(8, 2, 4)
    with pytest.raises(InputError, match="B, N, C"):
        segment_stats(torch.zeros(8, 3), cells, segments, sizes)
    with pytest.raises(InputError, match="int64"):
        segment_stats(torch.zeros(1, 8, 3, dtype=torch.int64), cells, segments, sizes)
    with pytest.raises(InputError, match="pairs"):
        segment_stats(torch.zeros(1, 8, 3), cells[1:], segments, sizes)
    wrong: Any = "sorted"
    with pytest.raises(UsageError, match="sorted"):
        segment_stats(torch.zeros(1, 8, 3), cells, segments, sizes, path=wrong)
