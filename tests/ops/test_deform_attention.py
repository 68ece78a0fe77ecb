"""Deformable attention: sampling and kernels are the loop, forward and backward; what is refused."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from saccade.errors import InputError, UsageError
from saccade.ops import deform_attention as module
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


# -- the kernels of a GPU

#: beside the loop in double precision, relative; the interpreter rounds bfloat16 towards zero
CLOSE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}
CASES = [
    (1, 1, 1, 1, 1, [(1, 1)]),
    (2, 5, 2, 3, 2, [(5, 3)]),
    (1, 6, 2, 3, 3, [(5, 3), (2, 7)]),
    (2, 4, 1, 4, 2, [(1, 6), (3, 1), (4, 4)]),
]


def agree(case: tuple, dtype: torch.dtype) -> None:
    """Forward and backward; places stay in single precision where the rest is half."""
    kernels = importlib.import_module("saccade.ops.deform_attention.triton")
    value, locations, weights = inputs(*case, dtype)
    if value.itemsize < 4:
        locations = inputs(*case, torch.float32)[1]
    found = []
    for run, wide in ((kernels.attended, None), (module.naive.looped, torch.float64)):
        leaves = [t.to(wide or t.dtype).requires_grad_() for t in (value, locations, weights)]
        out = run(leaves[0], case[-1], *leaves[1:])
        total = (out * draw(*out.shape, seed=5, dtype=dtype).to(out.dtype)).sum()
        found.append([out.detach(), *torch.autograd.grad(total, leaves)])
    for one, like, truth in zip(found[0], (value, value, locations, weights), found[1], strict=True):
        assert one.dtype == like.dtype
        scale = max(1.0, float(truth.abs().max()))
        torch.testing.assert_close(one.double(), truth, rtol=0, atol=CLOSE[dtype] * scale)


def kernels_agree_in_all_precisions() -> None:
    kernels = importlib.import_module("saccade.ops.deform_attention.triton")
    for dtype in CLOSE:
        agree(CASES[1], dtype)
    kernels.LANES = 8  # two queries of a head at a time
    agree(CASES[2], torch.float32)


def kernels_agree_on_many_levels_and_points() -> None:
    kernels = importlib.import_module("saccade.ops.deform_attention.triton")
    for kernels.LANES in (512, 8):
        for case in CASES:
            for dtype in CLOSE:
                agree(case, dtype)


def kernels_read_edges_as_grid_sample_does() -> None:
    """On the outermost places that still touch the map, just beyond, at centres, and far away."""
    module.runs_on_triton = lambda *given: True  # as if this were a GPU
    value = draw(1, 12, 1, 2)
    places = [(-1 / 8, 0.5), (9 / 8, 0.5), (0.5, 7 / 6), (1 / 8, 1 / 6), (0.0, 1.0), (1e30, -1e30), (-0.2, 0.5)]
    found = []
    for run in (deform_attention, module.sampled.sampled):
        leaves = [value.clone(), torch.tensor(places).view(1, -1, 1, 1, 1, 2), torch.ones(1, len(places), 1, 1, 1)]
        leaves = [t.requires_grad_() for t in leaves]
        out = run(leaves[0], [(3, 4)], leaves[1], leaves[2])
        found.append([out, *torch.autograd.grad(out.sum(), leaves)])
    assert type(found[0][0].grad_fn).__name__ == "_AttendedBackward"
    for one, truth in zip(*found, strict=True):
        torch.testing.assert_close(one, truth, rtol=1e-5, atol=1e-5)
    torch.use_deterministic_algorithms(True)
    assert module._path(None, value) is module.sampled.sampled
    torch.use_deterministic_algorithms(False)
    assert module._path(False, value) is module.naive.looped


def kernels_compile() -> None:
    kernels = importlib.import_module("saccade.ops.deform_attention.triton")
    for dtype in (torch.float32, torch.bfloat16):
        value, locations, weights = inputs(2, 100, 6, 32, 4, [(28, 28), (7, 7)], torch.float32)
        leaves = [t.requires_grad_() for t in (value.to(dtype), locations, weights.to(dtype))]
        kernels.attended(leaves[0], [(28, 28), (7, 7)], *leaves[1:]).sum().backward()


def test_in_tritons_interpreter(in_interpreter: Callable[..., None]) -> None:
    in_interpreter(kernels_agree_in_all_precisions, kernels_read_edges_as_grid_sample_does)


@pytest.mark.slow
def test_many_sizes_in_tritons_interpreter(in_interpreter: Callable[..., None]) -> None:
    in_interpreter(kernels_agree_on_many_levels_and_points)


def test_the_kernels_compile_for_a_gpu(for_absent_gpu: Callable[..., None]) -> None:
    for_absent_gpu(kernels_compile)


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
