"""Deformable attention: the sampled path is the loop, forward and backward; what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from saccade.errors import InputError, UsageError
from saccade.ops.deform_attention import centres, deform_attention


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def inputs(
    batch: int, queries: int, heads: int, dim: int, points: int, shapes: list[tuple[int, int]], dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    value = draw(batch, sum(h * w for h, w in shapes), heads, dim, seed=1, dtype=dtype)
    locations = 0.5 + 0.4 * draw(batch, queries, heads, len(shapes), points, 2, seed=2, dtype=dtype)  # some outside
    weights = draw(batch, queries, heads, len(shapes), points, seed=3, dtype=dtype)
    return value, locations, weights.flatten(3).softmax(-1).view(weights.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("batch", "queries", "heads", "dim", "points", "shapes"),
    [
        (1, 1, 1, 1, 1, [(1, 1)]),
        (2, 15, 4, 2, 4, [(7, 4)]),
        (1, 6, 2, 3, 3, [(5, 3), (2, 7)]),
        (2, 4, 1, 4, 2, [(1, 6), (3, 1), (4, 4)]),
    ],
)
def test_sampling_is_the_loop(
    batch: int, queries: int, heads: int, dim: int, points: int, shapes: list[tuple[int, int]], dtype: torch.dtype
) -> None:
    given = inputs(batch, queries, heads, dim, points, shapes, dtype)
    found = []
    for fast in (True, False):
        value, locations, weights = (t.clone().requires_grad_() for t in given)
        out = deform_attention(value, shapes, locations, weights, fast=fast)
        assert out.shape == (batch, queries, heads * dim)
        (out * draw(*out.shape, seed=5, dtype=dtype)).sum().backward()
        found.append([out.detach(), value.grad, locations.grad, weights.grad])
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    for fast, truth in zip(*found, strict=True):
        assert fast is not None
        assert truth is not None
        torch.testing.assert_close(fast, truth, rtol=tolerance, atol=tolerance * max(1.0, float(truth.abs().max())))


def test_at_a_centre_it_reads_the_pixel_and_far_outside_nothing() -> None:
    value = draw(1, 12, 1, 5)
    places = centres(3, 4, value).view(1, 12, 1, 1, 1, 2)
    ones = torch.ones(1, 12, 1, 1, 1)
    for fast in (True, False):
        torch.testing.assert_close(deform_attention(value, [(3, 4)], places, ones, fast=fast), value[:, :, 0])
        assert not deform_attention(value, [(3, 4)], places + 2, ones, fast=fast).any()


def test_centres_go_row_by_row_with_x_first() -> None:
    assert centres(2, 4, torch.zeros(1)).tolist() == [[x / 8, y / 4] for y in (1, 3) for x in (1, 3, 5, 7)]


def test_over_an_edge_half_a_pixel_is_left() -> None:
    value = torch.ones(1, 4, 1, 1)
    edge = torch.tensor([0.0, 0.25]).view(1, 1, 1, 1, 1, 2)  # x at the left edge, y at a centre
    for fast in (True, False):
        found = deform_attention(value, [(2, 2)], edge, torch.ones(1, 1, 1, 1, 1), fast=fast)
        torch.testing.assert_close(found, torch.full((1, 1, 1), 0.5))


def test_what_does_not_go_together_is_refused() -> None:
    value, locations, weights = inputs(1, 3, 2, 4, 2, [(3, 4)], torch.float32)
    with pytest.raises(InputError, match="4 x 4 hold 16, not 12"):
        deform_attention(value, [(4, 4)], locations, weights)
    with pytest.raises(InputError, match="locations are to be"):
        deform_attention(value, [(3, 4)], locations[:, :, :1], weights)
    with pytest.raises(InputError, match="locations are to be"):
        deform_attention(value, [(3, 2), (3, 2)], locations, weights)
    with pytest.raises(InputError, match="takes values"):
        deform_attention(value[0], [(3, 4)], locations, weights)
    with pytest.raises(UsageError, match="one level"):
        deform_attention(value, [], locations, weights)
