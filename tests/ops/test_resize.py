from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saccade.errors import InputError, UsageError
from saccade.ops.resize import RowResizer, resize, resize_array
from saccade.ops.resize.naive import resize_naive, weight_matrix
from saccade.ops.resize.torch import resize_gather

SHAPES = [(1, 1), (2, 3), (3, 5, 4), (2, 3, 17, 33), (1, 40, 150), (3, 150, 131)]
SCALES: list[float | tuple[float, float]] = [0.5, 1 / 3, 0.25, 2.0, 3.0, 1.5, 0.6, 0.0371, 1.0, (0.5, 3.0), (2.0, 0.3)]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def picture(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("method", ["bicubic", "bilinear", "box"])
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("scale", SCALES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_path_equals_the_naive_one(
    shape: tuple[int, ...], scale: float | tuple[float, float], antialias: bool, method: str
) -> None:
    x = picture(*shape)
    truth = resize_naive(x, scale, antialias=antialias, method=method)
    for dtype in (torch.float64, torch.float32):
        close = {"atol": TOLERANCE[dtype], "rtol": 0.0, "check_dtype": False}
        fast = resize(x.to(dtype), scale, antialias=antialias, method=method)
        assert fast.dtype == dtype
        assert fast.is_contiguous()
        torch.testing.assert_close(fast, truth, **close)  # type: ignore[arg-type]
        torch.testing.assert_close(resize_gather(x.to(dtype), scale, None, method, antialias), truth, **close)  # type: ignore[arg-type]
    if len(shape) <= 3:
        channels_last = x.movedim(0, -1).numpy() if len(shape) == 3 else x.numpy()
        strip = torch.from_numpy(resize_array(channels_last, scale, antialias=antialias, method=method))
        torch.testing.assert_close(strip.movedim(-1, 0) if len(shape) == 3 else strip, truth, atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [40, 200])
@pytest.mark.parametrize("scale", [0.5, 1.7])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, size: int, scale: float) -> None:
    x = picture(2, size, 30).to(dtype)
    got = resize(x, scale)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), resize_naive(x.double(), scale), atol=TOLERANCE[dtype], rtol=0)


@pytest.mark.parametrize("size", [40, 200])
@pytest.mark.parametrize("scale", [0.5, 0.6, 3.0])
def test_eight_bit_pictures_are_rounded_and_clamped(size: int, scale: float) -> None:
    x = (picture(3, size, 50) > 0.5).to(torch.uint8) * 255  # black and white: the cubic overshoots both ways
    exact = resize_naive(x.double(), scale)
    assert exact.min() < 0
    assert exact.max() > 255
    for got in (resize(x, scale), torch.from_numpy(resize_array(x.movedim(0, -1).numpy(), scale)).movedim(-1, 0)):
        assert got.dtype == torch.uint8
        assert (got.double() - exact.clamp(0, 255)).abs().max() < 0.5001


def test_sixteen_bit_arrays_are_rounded_and_clamped() -> None:
    x = (picture(60, 70).numpy() > 0.5).astype(np.uint16) * np.uint16(65535)
    exact = resize_naive(torch.from_numpy(x.astype(np.float64)), 2).numpy()
    got = resize_array(x, 2)
    assert got.dtype == np.uint16
    assert np.abs(got - exact.clip(0, 65535)).max() < 0.52


@pytest.mark.parametrize("shape", [(2, 40, 50), (1, 2, 150, 140), (3, 5)])
@pytest.mark.parametrize("scale", [0.5, 1 / 3, 2.0, 0.6, 1.3, (0.4, 2.5)], ids=str)
@pytest.mark.parametrize("antialias", [True, False])
def test_gradients_equal_those_of_the_naive_path(
    shape: tuple[int, ...], scale: float | tuple[float, float], antialias: bool
) -> None:
    x = picture(*shape).requires_grad_()
    truth = resize_naive(x, scale, antialias=antialias)
    weight = picture(*truth.shape, seed=1)
    (wanted,) = torch.autograd.grad(truth, x, weight)
    for got in (resize(x, scale, antialias=antialias), resize_gather(x, scale, None, "bicubic", antialias)):
        torch.testing.assert_close(torch.autograd.grad(got, x, weight)[0], wanted, atol=1e-12, rtol=0)


@pytest.mark.parametrize("width", [9, 140])
def test_second_derivatives_pass(width: int) -> None:
    x = picture(1, 2, width).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: resize(x, 0.5) ** 2, (x,), atol=1e-6)


def test_samples_that_nothing_reads_have_gradient_zero() -> None:
    x = picture(1, 150, 150).requires_grad_()
    resize(x, 0.02, antialias=False).sum().backward()
    assert x.grad is not None
    assert (x.grad == 0).all(-1).any()
    torch.testing.assert_close(x.grad.sum(), torch.tensor(9.0, dtype=torch.float64))


@pytest.mark.parametrize("method", ["bicubic", "bilinear", "box"])
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize(("n", "m", "scale"), [(1, 5, 5.0), (3, 1, 0.01), (17, 11, 0.6), (10, 20, 2.0)])
def test_weights_of_an_output_sample_sum_to_one(n: int, m: int, scale: float, antialias: bool, method: str) -> None:
    rows = weight_matrix(n, m, scale, method, antialias).sum(1)
    torch.testing.assert_close(rows, torch.ones(m, dtype=torch.float64))
    flat = torch.full((1, n, n), 0.37)
    assert (resize(flat, scale, method=method, antialias=antialias) - 0.37).abs().max() < 1e-6


def test_a_ramp_is_met_exactly_away_from_the_edges() -> None:
    ramp = torch.arange(200, dtype=torch.float64).expand(4, 200)
    for scale in (2.0, 0.5, 3.7):
        row = resize(ramp, (1.0, scale))[0]
        place = (torch.arange(len(row), dtype=torch.float64) + 0.5) / scale - 0.5
        inner = (place > 5) & (place < 194)
        torch.testing.assert_close(row[inner], place[inner], atol=1e-9, rtol=0)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_tiny_pictures_are_mirrored_again_and_again(n: int) -> None:
    x = picture(n, n)
    tiled = torch.cat([x, x.flip(0)] * 40 + [x])  # period 2n, mirrored with the edge sample
    tiled = torch.cat([tiled, tiled.flip(1)] * 40 + [tiled], 1)
    small = resize_naive(x, 0.1)
    assert small.shape == (1, 1)
    start = 40 * n  # a multiple of the period, far from the edges of the tiling
    centre = 0.5 / 0.1 - 0.5
    places = torch.arange(tiled.shape[0], dtype=torch.float64) - start
    weights = resize_weights((centre - places) * 0.1)
    columns = torch.arange(tiled.shape[1], dtype=torch.float64) - start
    across = resize_weights((centre - columns) * 0.1)
    torch.testing.assert_close(weights @ tiled @ across, small[0, 0])


def resize_weights(x: Tensor) -> Tensor:
    x = x.abs()
    w = torch.where(x <= 1, 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2) * (x < 2)
    return w / w.sum()


@pytest.mark.parametrize(
    ("n", "scale", "m"),
    [(10, 1.1, 11), (100, 0.07, 7), (5, 0.6, 3), (30, 1 / 3, 10), (31, 1 / 3, 11), (48, 0.6, 29), (3, 0.01, 1)],
)
def test_the_size_is_rounded_up_but_not_by_rounding_noise(n: int, scale: float, m: int) -> None:
    assert resize(torch.zeros(n, n), scale).shape == (m, m)
    assert resize_array(np.zeros((n, n), np.float32), scale).shape == (m, m)
    assert resize(torch.zeros(n, n, device="meta"), scale).shape == (m, m)


def test_a_size_alone_sets_the_scale_and_with_a_scale_the_extent() -> None:
    x = picture(3, 30, 40)
    torch.testing.assert_close(resize(x, size=(45, 20)), resize_naive(x, (1.5, 0.5)))
    torch.testing.assert_close(resize(x, 0.5, size=(14, 20)), resize_naive(x, 0.5)[:, :14])


def test_memory_formats_and_strides_do_not_matter() -> None:
    for size in (40, 150):
        x = picture(2, 3, size, size + 1, dtype=torch.float32)
        wanted = resize(x, 0.6)
        assert torch.equal(resize(x.to(memory_format=torch.channels_last), 0.6), wanted)
        assert torch.equal(resize(torch.stack([x, x], -1)[..., 0], 0.6), wanted)
        assert torch.equal(resize(x.transpose(-1, -2).contiguous().transpose(-1, -2), 0.6), wanted)
        assert torch.equal(resize(x[:1].expand(4, -1, -1, -1), 0.6)[3], wanted[0])
        before = x.clone()
        resize(x, 2)
        assert torch.equal(x, before)


def test_an_empty_batch_stays_empty() -> None:
    assert resize(torch.zeros(0, 3, 8, 8), 2).shape == (0, 3, 16, 16)
    assert resize(torch.zeros(0, 3, 200, 200), 2).shape == (0, 3, 400, 400)


@pytest.mark.parametrize("size", [32, 200])
def test_autocast_does_not_lower_the_precision(size: int) -> None:
    x = picture(1, size, size, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(resize(x, 0.5), resize(x, 0.5))
        torch.testing.assert_close(resize(x, 0.5).double(), resize_naive(x.double(), 0.5), atol=1e-6, rtol=0)


class Resizing(torch.nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return resize(x, self.scale)


@pytest.mark.parametrize("scale", [2, 0.5, 1.5, 1 / 3])
def test_it_exports_with_free_height_and_width(scale: float) -> None:
    sides = {2: torch.export.Dim("h", min=4, max=4000), 3: torch.export.Dim("w", min=4, max=4000)}
    program = torch.export.export(Resizing(scale), (torch.rand(1, 3, 40, 52),), dynamic_shapes={"x": sides})
    other = picture(1, 3, 33, 71, dtype=torch.float32)
    torch.testing.assert_close(program.module()(other), resize(other, scale), atol=1e-6, rtol=0)


def test_fake_and_meta_tensors_give_the_shape() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        assert resize(torch.empty(1, 3, 300, 200), 0.6).shape == (1, 3, 180, 120)
    assert resize(torch.empty(1, 3, 4320, 7680, device="meta"), 2).shape == (1, 3, 8640, 15360)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 150),
    width=st.integers(1, 60),
    channels=st.sampled_from([0, 1, 3]),
    scale=st.sampled_from([2.0, 3.0, 4.0, 0.5, 1 / 3, 0.6, 1.37]),
    dtype=st.sampled_from(["uint8", "uint16", "float32"]),
    cuts=st.lists(st.integers(1, 600), max_size=5),
)
def test_strips_equal_the_whole_picture_bit_for_bit(
    height: int, width: int, channels: int, scale: float, dtype: str, cuts: list[int]
) -> None:
    shape = (height, width, channels) if channels else (height, width)
    x = np.random.default_rng(0).random(shape)
    x = (x * np.iinfo(dtype).max if dtype.startswith("uint") else x).astype(dtype)
    whole = resize_array(x, scale)
    resizer = RowResizer(height, width, scale)
    assert whole.shape[:2] == resizer.size
    borders = sorted({0, resizer.size[0], *(cut for cut in cuts if cut < resizer.size[0])})
    for start, stop in itertools.pairwise(borders):
        first, last = resizer.source(start, stop)
        assert 0 <= first < last <= height
        strip = resizer.rows(x[first:last].copy(), start, stop)
        assert strip.dtype == x.dtype
        assert np.array_equal(strip, whole[start:stop])
        assert np.array_equal(resizer.rows(x, start, stop, first=0), strip)


def test_aligned_strips_need_few_rows_more_than_their_own() -> None:
    resizer = RowResizer(1000, 100, 2)
    assert resizer.source(320, 640) == (158, 322)
    assert resizer.source(0, 320) == (0, 162)


def test_a_window_that_lacks_rows_is_refused() -> None:
    resizer = RowResizer(100, 10, 2)
    with pytest.raises(InputError, match=r"need input rows 14 to 26.*holds 15 to 26"):
        resizer.rows(np.zeros((11, 10), np.float32), 32, 48, first=15)
    with pytest.raises(InputError, match="10 pixels"):
        resizer.rows(np.zeros((100, 11), np.float32), 0, 200, first=0)
    with pytest.raises(InputError, match="int32"):
        resizer.rows(np.zeros((100, 10), np.int32), 0, 200, first=0)
    with pytest.raises(UsageError, match="200 rows"):
        resizer.source(10, 201)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: resize(torch.zeros(4, 4)), UsageError, "a scale or a size"),
        (lambda: resize(torch.zeros(4, 4), 0), UsageError, "positive"),
        (lambda: resize(torch.zeros(4, 4), -1.0), UsageError, "positive"),
        (lambda: resize(torch.zeros(4, 4), float("nan")), UsageError, "positive"),
        (lambda: resize(torch.zeros(4, 4), float("inf")), UsageError, "positive"),
        (lambda: resize(torch.zeros(4, 4, device="meta"), -1.0), UsageError, "positive"),
        (lambda: resize(torch.zeros(4, 4), size=(0, 4)), UsageError, "at least 1x1"),
        (lambda: resize(torch.zeros(4, 4), size=(2.5, 4)), UsageError, "whole pixels"),  # type: ignore[arg-type]
        (lambda: resize(torch.zeros(4, 4), 2, method="bicubical"), UsageError, "bicubic, bilinear, box"),
        (lambda: resize(torch.zeros(4), 2), InputError, r"\(4,\)"),
        (lambda: resize(torch.zeros(3, 0, 4), 2), InputError, "4x0"),
        (lambda: resize(torch.zeros(4, 4, dtype=torch.int64), 2), InputError, "int64"),
        (lambda: resize_array(np.zeros(4, np.float32), 2), InputError, "shape"),
    ],
)
def test_bad_input_is_refused_with_a_reason(call, error: type[Exception], says: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=says):
        call()


def test_arrays_are_resized_without_torch() -> None:
    code = (
        "import sys, numpy as np; from saccade.ops.resize import resize_array;"
        "assert resize_array(np.ones((4, 6), np.uint8), 2).shape == (8, 12); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
