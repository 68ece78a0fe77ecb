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


def test_a_backbone_of_any_size_becomes_a_graph_of_any_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model: Any = saccade.create("regnetx_200mf", weights=None, num_classes=7)
    with torch.no_grad():
        for p in model.get_classifier().parameters():
            p.normal_(generator=torch.Generator().manual_seed(0))
    saccade.save(model, tmp_path / "regnet.safetensors")
    code, out, err = run(capsys, str(tmp_path / "regnet.safetensors"), "-o", str(tmp_path / "o.onnx"), "--json")
    assert code == 0, err
    told = json.loads(out)
    assert told["input"] == [1, 3, "h", "w"]
    assert told["difference"] < 1e-5
    assert told["mean"] == [0.485, 0.456, 0.406]
    session = onnxruntime.InferenceSession(str(tmp_path / "o.onnx"), providers=["CPUExecutionProvider"])
    x = torch.rand(1, 3, 70, 133, generator=torch.Generator().manual_seed(1))
    made = session.run(["logits"], {"pictures": x.numpy()})[0]
    with torch.inference_mode():
        torch.testing.assert_close(torch.from_numpy(made), model(x), atol=1e-4, rtol=1e-4)


def test_what_is_built_for_one_size_is_built_for_the_size_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "o.onnx"
    words = ["elasticvit_t1", "--weights", "none", "--size", "64x64", "-o", str(target), "--json"]
    code, out, err = run(capsys, *words)
    assert code == 0, err
    assert json.loads(out)["input"] == [1, 3, 64, 64]
    session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [1, 3, 64, 64]


def test_a_cleaner_becomes_a_graph_of_any_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "cleaner_small", "-o", str(tmp_path / "o.onnx"), "--json")
    assert code == 0, err
    assert json.loads(out)["difference"] < 1e-5


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["van_b0"], 2, "--weights official"),
        (["van_b0", "--weights", "fresh"], 2, "default, official or none"),
        (["van_b0", "--weights", "none", "--size", "big"], 2, "HxW"),
        (["van_b0", "--weights", "none", "--size", "3x64x64"], 2, "HxW"),
        (["van_b0", "--weights", "none", "--size", "0x224"], 2, "HxW"),
        (["van_b0", "--weights", "none", "--size", "9000x224"], 2, "8,192"),
        (["van_b0", "--weights", "none", "--size", "8x8"], 1, "at least 32 px"),
        (["fit_classifier_s", "--weights", "none", "--size", "32x64"], 2, "square"),
        (["histoformer_tiny"], 2, "no fixed graph"),
        (["missing.safetensors", "--weights", "none"], 2, "itself"),
    ],
)
def test_what_cannot_be_exported_is_refused(
    arguments: list[str], code: int, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, _, err = run(capsys, *arguments, "-o", str(tmp_path / "o.onnx"))
    assert (found, list(tmp_path.iterdir())) == (code, [])
    assert says in err
    assert err.count("\n") == 1
