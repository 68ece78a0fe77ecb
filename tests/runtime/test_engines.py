"""Engines: they agree with the plain numpy truth, the truth agrees with BT.601, and a failing tile is an error."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from saccade import registry
from saccade.ops.resize import resize
from saccade.restoration.upscale import Upscaler
from saccade.runtime import engines
from saccade.runtime.colour import bicubic, bicubic_phases, enlarge_with_luma, mirrored
from saccade.runtime.stream import Picture

SCALES = (2, 3, 4)
# differing samples that another order of summation may cause: at most by one, and few
FEW = {"uint8": 2e-3, "uint16": 0.2}


@functools.cache
def engine(backend: str, channels: int, dtype: str) -> engines.Engine:
    if backend not in engines.available_backends():
        pytest.skip(f"{backend} is not installed")
    return Upscaler("sesr_m5", 2, backend=backend, threads=2).engine(channels, dtype)


def run(which: engines.Engine, tile: np.ndarray) -> np.ndarray:
    made: list[np.ndarray] = []
    which.submit(tile, lambda window: made.append(window.copy()))
    which.drain()
    return made[0]


@functools.cache
def network() -> torch.nn.Module:
    return registry.create("sesr_m5", scale=2).double()


def exact(luma: np.ndarray) -> np.ndarray:
    """The shipped network in double precision."""
    with torch.inference_mode():
        return network()(torch.from_numpy(luma).double()).numpy()


def tile(height: int, width: int, channels: int, dtype: str, seed: int = 0) -> np.ndarray:
    chance, full = np.random.default_rng(seed), np.iinfo(dtype).max
    smooth = np.sin(np.arange(height)[:, None, None] / 3) + np.cos(np.arange(width)[:, None] / 4 + np.arange(channels))
    noise = chance.normal(0, 0.3, (height, width, channels))
    return ((smooth + noise) * full / 3 + full / 2).clip(0, full).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("backend", ["openvino", "onnxruntime", "torch"])
@settings(max_examples=8, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 9))
@example(1, 1, 0)
@example(1, 60, 0)
@example(60, 1, 0)
@example(60, 60, 0)
def test_every_engine_agrees_with_the_truth_in_double_precision(
    backend: str, channels: int, dtype: str, height: int, width: int, seed: int
) -> None:
    pixels = tile(height, width, channels, dtype, seed)
    made, truth = run(engine(backend, channels, dtype), pixels), enlarge_with_luma(pixels, 2, exact)
    assert made.shape == truth.shape
    assert made.dtype == pixels.dtype
    difference = np.abs(made.astype(int) - truth.astype(int))
    assert difference.max() <= 1
    assert (difference > 0).sum() <= max(3, FEW[dtype] * difference.size)


def ycbcr(rgb: np.ndarray) -> np.ndarray:
    """BT.601, studio swing, of RGB in [0, 255]: the standard's matrix in double precision."""
    matrix = np.array([[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]]) / 255
    return rgb @ matrix.T + [16, 128, 128]


def from_ycbcr(x: np.ndarray) -> np.ndarray:
    matrix = np.array([[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]]) / 255
    return (x - [16, 128, 128]) @ np.linalg.inv(matrix).T


def smoothed(luma: np.ndarray, scale: int) -> np.ndarray:
    """Some enlargement that is not bicubic: pixels repeated, contrast raised."""
    return ((luma.repeat(scale, 2).repeat(scale, 3) - 0.5) * 1.1 + 0.5).astype(np.float32)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.sampled_from(SCALES), st.integers(0, 99))
@example(1, 1, 2, 0)
@example(1, 2, 3, 0)
def test_the_truth_is_luma_by_the_network_and_chroma_by_bicubic(height: int, width: int, scale: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    low = ycbcr(pixels.astype(np.float64))
    high = resize(torch.from_numpy(low).permute(2, 0, 1), scale).permute(1, 2, 0).numpy().copy()
    luma = smoothed((low[None, None, :, :, 0] / 255).astype(np.float32), scale)[0, 0]
    high[:, :, 0] = luma.clip(0, 1) * 255
    expected = np.rint(from_ycbcr(high).clip(0, 255)).astype(np.uint8)
    made = enlarge_with_luma(pixels, scale, lambda y: smoothed(y, scale))
    difference = np.abs(made.astype(int) - expected.astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-2


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from(SCALES), st.integers(0, 99))
def test_bicubic_equals_the_fields_resize(height: int, width: int, scale: int, seed: int) -> None:
    x = np.random.default_rng(seed).random((height, width, 2), dtype=np.float32)
    expected = resize(torch.from_numpy(x).double().permute(2, 0, 1), scale).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(bicubic(x, scale), expected, atol=2e-6)


def test_bicubic_keeps_flat_pictures_and_mirrors_edges() -> None:
    for scale in SCALES:
        np.testing.assert_allclose(bicubic_phases(scale).sum(1), 1, atol=1e-6)
    assert mirrored(1).tolist() == [0, 0, 0, 0, 0]
    assert mirrored(2).tolist() == [1, 0, 0, 1, 1, 0]
    assert mirrored(4).tolist() == [1, 0, 0, 1, 2, 3, 3, 2]


def test_grey_and_equal_channels_give_the_same_picture() -> None:
    grey = tile(30, 40, 1, "uint8")
    one, three = (run(engine("torch", c, "uint8"), grey.repeat(c, 2)) for c in (1, 3))
    assert np.abs(three.astype(int) - one.astype(int)).max() <= 1


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime", "torch"])
@pytest.mark.timeout(60)
def test_an_error_in_a_tile_comes_out_and_the_engine_goes_on(backend: str) -> None:
    worker = Upscaler("sesr_m5", 2, backend=backend, threads=2) if engine(backend, 3, "uint8") else None
    assert worker is not None
    which, pixels = worker.engine(), tile(30, 50, 3, "uint8")
    expected = worker.array(pixels)[0]

    def fail(window: np.ndarray) -> None:
        raise ZeroDivisionError("no place for this tile")

    def submit_many() -> None:
        for _ in range(9):
            which.submit(pixels, fail)
        which.drain()

    with pytest.raises(ZeroDivisionError, match="no place"):
        submit_many()
    np.testing.assert_array_equal(worker.array(pixels)[0], expected)


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime", "torch"])
@pytest.mark.timeout(60)
def test_an_error_while_writing_ends_the_picture(backend: str) -> None:
    engine(backend, 3, "uint8")
    worker = Upscaler("sesr_m5", 2, backend=backend, threads=2)
    worker.engine().tile = (8, 16)
    pixels = tile(64, 64, 3, "uint8")

    def write(colour: np.ndarray, alpha: np.ndarray | None) -> None:
        raise OSError("disc full")

    with pytest.raises(OSError, match="disc full"):
        worker._stream(Picture(64, 64, 3, "uint8"), lambda top, rows: (pixels[top : top + rows], None), write)


def test_threads_follow_the_argument_then_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert engines.cores() == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "100000")
    many = engines.cores()
    monkeypatch.setenv("OMP_NUM_THREADS", "none")
    assert engines.cores() == many >= 1
    assert engine("openvino", 3, "uint8").threads == 2


def test_a_missing_backend_names_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from saccade.errors import UnavailableError

    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(UnavailableError, match=r"pip install 'saccade\[onnx\]'"):
        engines.ONNXRuntimeEngine(Path("none.onnx"), 2, 3, "uint8")


def test_what_a_routed_network_spent_is_summed_until_it_is_taken() -> None:
    spent = engines.Spent(pixels=10, heavy=4, macs=30, full_macs=60) + engines.Spent(
        pixels=30, heavy=6, macs=20, full_macs=40
    )
    taken = spent.take()
    assert (taken.heavy_share, taken.fraction) == (0.25, 0.5)
    assert spent == engines.Spent()
    assert spent.fraction == 1.0
