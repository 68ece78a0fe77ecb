"""Tiles: they cover a picture once, and what is computed in them is what the whole picture gives."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from saccade.io import open_picture
from saccade.restoration.upscale import Upscaler
from saccade.runtime.engines import available_backends
from saccade.runtime.stream import rolling
from saccade.runtime.tiles import bands, spans

BACKENDS = ("openvino", "onnxruntime", "torch")
KINDS = [("uint8", 3), ("uint8", 1), ("uint16", 3), ("uint16", 1)]
sizes = st.one_of(st.integers(1, 6), st.integers(1, 70))


@given(st.integers(1, 5000), st.integers(1, 600), st.integers(0, 40))
@example(1, 1, 0)
@example(180, 180, 9)
@example(181, 180, 9)
def test_cores_cover_an_axis_once_and_windows_hold_the_halo(length: int, core: int, halo: int) -> None:
    cut = list(spans(length, core, halo))
    assert cut[0].start == 0
    assert cut[-1].stop == length
    assert all(a.stop == b.start for a, b in pairwise(cut))
    for span in cut:
        assert 0 < span.length <= core
        assert span.low == max(0, span.start - halo)
        assert span.high == min(length, span.stop + halo)
        assert list(range(span.low, span.high))[span.inner] == list(range(span.start, span.stop))


def test_cores_are_nearly_equal() -> None:
    lengths = [span.length for span in spans(1081, 180, 9)]
    assert max(lengths) - min(lengths) <= 1


@functools.cache
def upscaler(backend: str) -> Upscaler:
    if backend not in available_backends():
        pytest.skip(f"{backend} is not installed")
    return Upscaler("sesr_m5", 2, backend=backend, threads=2)


@contextlib.contextmanager
def tiled(worker: Upscaler, dtype: str, channels: int, tile: tuple[int, int]) -> Iterator[None]:
    """With tiles of another size than the engine's own."""
    engine = worker.engine(channels, dtype)
    own = engine.tile
    engine.tile = tile
    try:
        yield
    finally:
        engine.tile = own


def picture(height: int, width: int, channels: int, dtype: str, seed: int) -> np.ndarray:
    """Half a smooth slope, half noise: flat parts, edges, extremes."""
    chance = np.random.default_rng(seed)
    full = np.iinfo(dtype).max
    slope = np.linspace(0, full, height * width * channels).reshape(height, width, channels)
    noise = chance.integers(0, full, (height, width, channels), endpoint=True)
    return np.where(chance.random((height, width, 1)) < 0.5, slope, noise).astype(dtype)


@pytest.mark.parametrize(("dtype", "channels"), KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=12, deadline=None)
@given(sizes, sizes, st.integers(1, 40), st.integers(1, 40), st.integers(0, 9))
@example(1, 1, 1, 1, 0)
@example(1, 33, 1, 8, 0)
@example(33, 1, 8, 1, 0)
@example(40, 41, 40, 41, 0)
@example(41, 42, 40, 41, 0)
@example(2, 3, 1, 1, 0)
def test_tiles_equal_the_whole_picture(
    backend: str, dtype: str, channels: int, height: int, width: int, rows: int, columns: int, seed: int
) -> None:
    worker = upscaler(backend)
    pixels = picture(height, width, channels, dtype, seed)
    with tiled(worker, dtype, channels, (4096, 4096)):
        whole, _ = worker.array(pixels)
    with tiled(worker, dtype, channels, (rows, columns)):
        parts, _ = worker.array(pixels)
    assert whole.shape == (2 * height, 2 * width, channels)
    assert whole.dtype == pixels.dtype
    np.testing.assert_array_equal(parts, whole)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_engines_own_tiles_equal_the_whole_picture(backend: str) -> None:
    worker = upscaler(backend)
    rows, columns = worker.engine().tile
    pixels = picture(rows + 1, columns + 1, 3, "uint8", 0)
    parts, _ = worker.array(pixels)
    with tiled(worker, "uint8", 3, (4096, 4096)):
        whole, _ = worker.array(pixels)
    np.testing.assert_array_equal(parts, whole)


@settings(max_examples=25, deadline=None)
@given(sizes, sizes, st.integers(1, 40), st.sampled_from(["uint8", "uint16"]))
def test_alpha_is_the_same_in_bands_and_whole(height: int, width: int, rows: int, dtype: str) -> None:
    worker = upscaler(available_backends()[0])
    pixels = picture(height, width, 3, dtype, 1)
    alpha = picture(height, width, 1, dtype, 2)[:, :, 0]
    with tiled(worker, dtype, 3, (4096, 4096)):
        colour, whole = worker.array(pixels, alpha)
    with tiled(worker, dtype, 3, (rows, 64)):
        _, parts = worker.array(pixels, alpha)
    assert whole is not None
    assert parts is not None
    assert whole.shape == colour.shape[:2]
    np.testing.assert_array_equal(parts, whole)
    opaque = np.full_like(alpha, np.iinfo(dtype).max)
    clear = worker.array(pixels, opaque)[1]
    assert clear is not None
    assert (clear == np.iinfo(dtype).max).all()


def test_windows_of_rows_may_lie_in_the_one_before(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (127, 5, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for core, halo, grid in ((64, 64, 4), (10, 40, 1), (127, 0, 1), (20, 3, 8)):
        with open_picture(tmp_path / "a.png") as reader:
            read = rolling(reader)
            for span in bands(127, core, halo, grid):
                colour, alpha = read(span.low, span.high - span.low)
                np.testing.assert_array_equal(colour, pixels[span.low : span.high, :, :3])
                assert alpha is not None
                np.testing.assert_array_equal(alpha, pixels[span.low : span.high, :, 3])
