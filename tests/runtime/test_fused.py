"""The fused OpenVINO graph against the plain truth in `runtime.colour`, and its int8 form against float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saccade import registry
from saccade.restoration.upscale import Upscaler
from saccade.runtime.colour import enlarge_with_luma, mirrored
from saccade.runtime.fused import fill_lanes, pixels_to_pixels
from saccade.runtime.int8 import quantise
from saccade.runtime.scene import scene

ov = pytest.importorskip("openvino")
torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

OPTIONS = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
NETWORKS = [("sesr_m3", 2), ("sesr_m3", 3), ("sesr_m3", 4), ("espcn_small", 2), ("espcn_small", 3)]


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Path]:
    """Exported networks with fresh weights."""
    from saccade.runtime.graphs import export

    folder, made = tmp_path_factory.mktemp("graphs"), {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, scale in NETWORKS:
            made[name, scale] = folder / f"{name}_x{scale}.onnx"
            export(registry.create(name, weights=None, scale=scale), made[name, scale])
    return made


def read(graph: Path) -> Any:
    return ov.Core().read_model(str(graph))


def compiled(model: Any) -> Any:
    return ov.Core().compile_model(model, "CPU", OPTIONS)


def noise(shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: f"{n[0]}_x{n[1]}")
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("dtype", "tolerance"), [("uint8", 1), ("uint16", 4)])
def test_the_fused_graph_equals_the_plain_truth(
    graphs: dict[tuple[str, int], Path], network: tuple[str, int], channels: int, dtype: str, tolerance: int
) -> None:
    alone, scale = compiled(read(graphs[network])), network[1]
    fused = compiled(pixels_to_pixels(ov, read(graphs[network]), scale, channels, np.dtype(dtype)))
    for height, width in ((20, 26), (19, 25), (1, 1), (2, 3), (20, 25)):
        pixels = noise((height, width, channels), dtype)
        inputs = {"pixels": pixels[None]}
        if channels == 3:
            inputs |= {"rows": mirrored(height), "columns": mirrored(width)}
        made = fused(inputs)[0][0].astype(int)
        true = enlarge_with_luma(pixels, scale, lambda y: alone(np.ascontiguousarray(y))[0]).astype(int)
        assert made.shape == true.shape
        assert np.abs(made - true).max() <= tolerance


@pytest.mark.parametrize("size", [(12, 16), (13, 17), (1, 1), (1, 5)])
def test_filling_the_lanes_changes_no_bit(graphs: dict[tuple[str, int], Path], size: tuple[int, int]) -> None:
    plain, wide = read(graphs["sesr_m3", 2]), read(graphs["sesr_m3", 2])
    fill_lanes(ov, wide)
    strides = [
        node.get_attributes()["strides"] for node in wide.get_ordered_ops() if "strides" in node.get_attributes()
    ]
    assert [2, 2] in [list(s) for s in strides]
    y = np.random.default_rng(0).random((1, 1, *size), dtype=np.float32)
    np.testing.assert_allclose(compiled(wide)(y)[0], compiled(plain)(y)[0], rtol=0, atol=2e-7)


def test_a_full_last_convolution_is_left_alone(graphs: dict[tuple[str, int], Path]) -> None:
    network = read(graphs["sesr_m3", 4])
    before = [node.get_type_name() for node in network.get_ordered_ops()]
    fill_lanes(ov, network)
    assert [node.get_type_name() for node in network.get_ordered_ops()] == before


def test_a_clamp_that_bites_inside_the_unit_range_is_kept() -> None:
    """A network that clamps to [0.4, 0.6] must not lose that when its shuffle is taken out."""
    op = ov.opset13
    low = op.parameter([1, 1, -1, -1], ov.Type.f32, name="low")
    kernel = op.constant(np.full((4, 1, 1, 1), 2, np.float32))
    four = op.convolution(low, kernel, [1, 1], [0, 0], [0, 0], [1, 1])
    high = op.clamp(op.depth_to_space(four, "depth_first", 2), 0.4, 0.6)
    fused = compiled(pixels_to_pixels(ov, ov.Model([high.output(0)], [low], "clamped"), 2, 1, np.dtype("uint8")))
    pixels = np.array([[[0], [255]]], np.uint8)
    true = enlarge_with_luma(pixels, 2, lambda y: (2 * y).repeat(2, 2).repeat(2, 3).clip(0.4, 0.6))
    assert np.array_equal(fused({"pixels": pixels[None]})[0][0], true)


def test_int8_stays_close_to_float32() -> None:
    if registry.default_weights("sesr_m5", scale=2) is None:
        pytest.skip("no weights ship for sesr_m5 x2")
    picture = scene(96, 128, seed=9)
    exact, made = (
        Upscaler("sesr_m5", 2, backend="openvino", threads=1, precision=p).array(picture)[0].astype(float)
        for p in ("float32", "int8")
    )
    error = np.mean((exact - made) ** 2)
    assert 10 * np.log10(255**2 / error) > 45  # dB: below 0.1 dB of loss for results of 38 dB and less
    assert error > 0


def test_int8_tiles_equal_the_whole_picture() -> None:
    if registry.default_weights("sesr_m5", scale=2) is None:
        pytest.skip("no weights ship for sesr_m5 x2")
    picture, worker = scene(75, 91), Upscaler("sesr_m5", 2, backend="openvino", threads=1, precision="int8")
    whole = worker.array(picture)[0]
    worker.engine().tile = (33, 28)
    assert np.array_equal(worker.array(picture)[0], whole)


def test_int8_is_given_to_inner_convolutions_only(graphs: dict[tuple[str, int], Path]) -> None:
    network = read(graphs["sesr_m3", 2])
    quantise(ov, network)
    convolutions = [node for node in network.get_ordered_ops() if node.get_type_name() == "Convolution"]
    fed_by = [node.input_value(0).get_node().get_type_name() for node in convolutions]
    assert [kind == "FakeQuantize" for kind in fed_by] == [False, True, True, True, False]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (70, 33), (300, 200)])
def test_a_scene_has_its_size_and_depends_on_its_seed(height: int, width: int) -> None:
    made = scene(height, width, 1)
    assert made.shape == (height, width, 3)
    assert made.dtype == np.uint8
    assert np.array_equal(made, scene(height, width, 1))
    assert not np.array_equal(made, scene(height, width, 2))
