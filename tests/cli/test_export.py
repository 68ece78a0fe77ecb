"""``saccade export``: ONNX files that compute what the network computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import saccade
from saccade.cli import main
from saccade.cli.export import largest_difference
from saccade.errors import InputError

pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as done:
        main(["export", *arguments])
    said = capsys.readouterr()
    return int(done.value.code or 0), said.out, said.err


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small SESR x3 with every parameter random, expanded, as after training."""
    model = saccade.create("sesr_m3", weights=None, scale=3, expansion=20)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.08)
    path = tmp_path_factory.mktemp("weights") / "mine.safetensors"
    saccade.save(model, path)
    return path


def test_the_exported_graph_computes_the_network_at_any_size(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "mine.onnx"
    code, out, err = run(capsys, str(weights), "-o", str(target), "--json")
    assert code == 0, err
    told = json.loads(out)
    assert told["model"] == "sesr_m3"
    assert told["scale"] == 3
    assert told["difference"] < 1e-5
    assert told["bytes"] == target.stat().st_size
    session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    model: Any = saccade.load(weights)
    for height, width in ((1, 1), (9, 40), (31, 8)):
        x = torch.rand(1, 1, height, width, generator=torch.Generator().manual_seed(height))
        made = session.run(None, {"low": x.numpy()})[0]
        with torch.inference_mode():
            torch.testing.assert_close(torch.from_numpy(made), model(x), atol=1e-5, rtol=0)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.onnx"]


def test_a_graph_of_another_network_is_told(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "mine.onnx"
    assert run(capsys, str(weights), "-o", str(target))[0] == 0
    model: Any = saccade.load(weights)
    same = largest_difference(target, model)
    assert same is not None
    assert same < 1e-5
    with torch.no_grad():
        model.last.project.mul_(1.1)
    changed = largest_difference(target, model)
    assert changed is not None
    assert changed > 1e-3
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    with pytest.raises(InputError, match="ONNX Runtime cannot run"):
        largest_difference(tmp_path / "bad.onnx", model)


def test_an_existing_file_is_replaced_only_when_asked(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "mine.onnx"
    target.write_bytes(b"mine")
    code, _, err = run(capsys, str(weights), "-o", str(target))
    assert (code, target.read_bytes()) == (1, b"mine")
    assert "--overwrite" in err
    assert run(capsys, str(weights), "-o", str(target), "--overwrite")[0] == 0
    assert target.stat().st_size > 10_000


def test_another_scale_than_the_file_is_refused(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, str(weights), "--scale", "2", "-o", str(tmp_path / "o.onnx"))
    assert code == 2
    assert "x3" in err
    assert "x2" in err


def test_of_a_routed_network_one_sampler_is_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = saccade.create("pcsr_small", weights=None, scale=2)
    path = tmp_path / "pcsr.safetensors"
    saccade.save(model, path)
    code, _, err = run(capsys, str(path), "-o", str(tmp_path / "o.onnx"))
    assert code == 2
    assert "--sampler" in err
    code, out, err = run(capsys, str(path), "--sampler", "light", "-o", str(tmp_path / "o.onnx"), "--json")
    assert code == 0, err
    assert json.loads(out)["difference"] < 1e-4


def test_networks_that_do_not_enlarge_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = saccade.create("regnetx_200mf", weights=None)
    path = tmp_path / "regnet.safetensors"
    saccade.save(model, path)
    code, _, err = run(capsys, str(path), "-o", str(tmp_path / "o.onnx"))
    assert code == 2
    assert "classification" in err
    assert not (tmp_path / "o.onnx").exists()
