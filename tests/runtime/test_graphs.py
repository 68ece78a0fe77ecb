"""Exported graphs: equal to the network, stored once, found again without torch, never trusted when damaged."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import saccade
from saccade import registry
from saccade.errors import CheckpointError, InputError, UnavailableError
from saccade.restoration.upscale import Upscaler
from saccade.runtime import graphs

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")


def network(name: str = "sesr_m3", scale: int = 3, **options: object) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return saccade.create(name, weights=None, scale=scale, **options)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A user's own file, whose graph has been exported to a cache of this module."""
    folder = tmp_path_factory.mktemp("graphs")
    path = folder / "own.safetensors"
    saccade.save(network(expansion=32), path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SACCADE_CACHE", str(folder / "cache"))
        graphs.graph_for(path)
        yield path


def test_the_exported_graph_equals_the_network_at_any_size(weights: Path) -> None:
    graph = graphs.graph_for(weights)
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    chance = np.random.default_rng(0)
    for height, width in ((1, 1), (5, 31), (40, 17)):
        luma = chance.random((1, 1, height, width), dtype=np.float32)
        with torch.inference_mode():
            expected = saccade.load(weights)(torch.from_numpy(luma)).numpy()
        np.testing.assert_allclose(session.run(None, {"low": luma})[0], expected, atol=3e-6)


def test_numbers_of_a_graph_stand_in_the_weights_alone(weights: Path) -> None:
    graph = graphs.graph_for(weights)
    kept = graph.with_suffix(".safetensors")
    assert graph.stat().st_size < 30_000 < kept.stat().st_size
    assert (registry.WEIGHTS / "sesr_m5_x2.onnx").stat().st_size < 30_000


def test_a_graph_is_exported_once(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: object) -> None:
        raise AssertionError("exported again")

    monkeypatch.setattr(graphs, "export", never)
    assert graphs.graph_for(weights) == graphs.cached_graph(weights)
    renamed = weights.with_name("renamed.safetensors")
    renamed.write_bytes(weights.read_bytes())
    assert graphs.graph_for(renamed) == graphs.graph_for(weights)


def test_a_file_seen_before_needs_no_torch(weights: Path) -> None:
    code = (
        "import sys, numpy as np\n"
        "from saccade.restoration.upscale import Upscaler\n"
        f"worker = Upscaler({str(weights)!r}, backend='onnxruntime')\n"
        "assert worker.array(np.zeros((4, 5, 3), np.uint8))[0].shape == (12, 15, 3)\n"
        "assert worker.choice.halo == 7, worker.choice\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_cost_of_a_wide_file_is_that_of_its_collapsed_network(weights: Path) -> None:
    known = Upscaler(weights, backend="onnxruntime").choice
    assert known.macs == network().kernels
    assert known.halo == network().halo


def test_a_damaged_cache_entry_is_made_anew(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SACCADE_CACHE", str(tmp_path))
    folder = graphs._cached(weights)
    folder.mkdir(parents=True)
    (folder / "graph.json").write_bytes(b"\xff\xfenonsense")
    assert graphs.told_by(weights) == ("sesr_m3", {"scale": 3, "expansion": 32})
    foreign = weights.with_name("other.pth")
    torch.save(network().state_dict(), foreign)
    (graphs._cached(foreign)).mkdir(parents=True)
    (graphs._cached(foreign) / "graph.json").write_text("{}")
    assert graphs.told_by(foreign) is None
    assert graphs.cached_graph(foreign) is None


def test_a_cache_that_cannot_be_written_says_where_to_put_it(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SACCADE_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="set SACCADE_CACHE"):
        graphs.graph_for(weights)


def test_values_that_are_no_numbers_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SACCADE_CACHE", str(tmp_path / "cache"))
    model = network()
    with torch.no_grad():
        model.blocks[1].kernel[0, 0, 0, 0] = torch.nan
    saccade.save(model, tmp_path / "diverged.safetensors")
    for backend in ("openvino", "torch"):
        with pytest.raises(CheckpointError, match=r"blocks\.1\.kernel that are not finite"):
            Upscaler(tmp_path / "diverged.safetensors", backend=backend)
    assert not (tmp_path / "cache").exists()


def test_a_network_that_routes_pixels_has_no_fixed_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SACCADE_CACHE", str(tmp_path / "cache"))
    saccade.save(network("pcsr_small", 2), tmp_path / "pcsr.safetensors")
    with pytest.raises(CheckpointError, match="no fixed graph"):
        graphs.graph_for(tmp_path / "pcsr.safetensors")


def test_export_without_its_extra_names_the_line_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UnavailableError, match=r"pip install 'saccade\[onnx\]'"):
        graphs.export(network(), tmp_path / "graph.onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_cache_stands_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SACCADE_CACHE", str(tmp_path))
    assert graphs.cache_folder() == tmp_path
    monkeypatch.delenv("SACCADE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert graphs.cache_folder() == tmp_path / "xdg" / "saccade"
