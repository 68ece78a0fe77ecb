"""``saccade search``, as a user calls it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import saccade
from saccade.backbones.elasticvit.architecture import Architecture
from saccade.backbones.elasticvit.catalogue import SMALL
from saccade.backbones.elasticvit.code import from_code
from saccade.backbones.elasticvit.counting import cost_macs
from saccade.backbones.elasticvit.latency import Platform
from saccade.backbones.elasticvit.network import ElasticViT, SubNetwork
from saccade.cli import main
from saccade.cli.search import milliseconds, text
from saccade.errors import UsageError

QUICK = ("--population", "8", "--generations", "1")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command with an empty cache and small searches in PyTorch: its exit code, and what it said."""
    monkeypatch.setenv("SACCADE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as done:
            main(["search", "--backend", "torch", *QUICK, *arguments])
        said = capsys.readouterr()
        return int(done.value.code or 0), said.out, said.err

    return call


@pytest.fixture(scope="module")
def supernet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of a small supernet for three classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = saccade.create("elasticvit", weights=None, space="elasticvit-small", num_classes=3)
    path = tmp_path_factory.mktemp("weights") / "supernet.safetensors"
    saccade.save(model, path)
    return path


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of a plain colour each, with noise."""
    folder, chance = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for i, name in enumerate(("blue", "green", "red")):
        (folder / name).mkdir()
        for j in range(32):
            pixels = chance.integers(0, 90, (40, 48, 3))
            pixels[..., 2 - i] += 120
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{j}.png")
    return folder


def test_a_search_by_cost_alone_tells_the_network_its_cost_and_that_nothing_was_seen(run: Run) -> None:
    code, out, err = run("--space", "elasticvit-small", "--macs", "9M", "--classes", "5", "--json")
    assert code == 0, err
    told = json.loads(out)
    found = from_code(told["code"], SMALL)
    assert found == Architecture.from_dict(told["architecture"])
    assert told["cost_model_macs"] == round(1e6 * float(cost_macs(found, SMALL, 5)[0])) <= 9_000_000
    assert told["cost_model_macs"] >= 0.9 * 9_000_000
    assert told["accuracy_percent"] is None
    assert told["predicted_ms"] is None
    assert told["measured_ms"] > 0
    assert told["chosen_by"] == "width rather than depth"
    assert "accuracy takes --weights and --data" in run("--space", "elasticvit-small", "--macs", "9M")[1]


def test_a_latency_is_predicted_measured_and_kept_to(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def on_a_quiet_machine(model: SubNetwork, side: int, platform: Platform) -> float:
        return 1 + float(cost_macs(model.architecture, model.space, platform.classes)[0])

    monkeypatch.setattr("saccade.backbones.elasticvit.latency.milliseconds", on_a_quiet_machine)
    arguments = ("--space", "elasticvit-small", "--networks", "8", "--json")
    code, out, err = run(*arguments, "--latency", "1000s")
    assert code == 2
    assert "no network of this space takes 1e+06 ms here: the smallest takes" in err
    low, high = (float(part.split(" ms")[0]) for part in err.split("takes ")[2:3] + err.split("largest ")[1:2])
    (kept,) = (tmp_path / "cache" / "latency").iterdir()
    before = kept.read_bytes()
    limit = (low + high) / 2
    code, out, err = run(*arguments, "--latency", f"{limit}ms")
    assert code == 0, err
    told = json.loads(out)
    assert told["predicted_ms"] <= limit
    assert told["met"] == (told["measured_ms"] <= limit)
    assert told["met"] or told["rounds"] == 4
    assert told["predictor"]["networks"] == 2
    assert told["predictor"]["measured"] == 8
    assert kept.read_bytes() == before  # not measured again
    assert "measuring" not in err
    kept.write_text("damaged")
    code, out, err = run(*arguments, "--latency", "0.0001ms")
    assert "measuring 8 networks" in err


def test_accuracy_is_measured_with_data_and_the_network_is_written(
    run: Run, supernet: Path, photographs: Path, tmp_path: Path
) -> None:
    target = tmp_path / "found.safetensors"
    arguments = ("--weights", str(supernet), "--macs", "6M", "--data", str(photographs), "--held", "99")
    code, out, err = run(*arguments, "--batches", "1", "--out", str(target), "--json")
    assert code == 0, err
    told = json.loads(out)
    assert told["chosen_by"] == "accuracy"
    assert 0 <= told["accuracy_percent"] <= 100
    assert told["held_out_pictures"] == 6
    made = saccade.load(target)
    assert isinstance(made, SubNetwork)
    assert made.architecture == Architecture.from_dict(told["architecture"])
    source: Any = saccade.load(supernet)
    assert isinstance(source, ElasticViT)
    x = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    source.architecture = made.architecture
    with torch.inference_mode():
        assert not torch.allclose(made(x), source.eval()(x))  # the supernet's own statistics are of no network
    code, out, err = run(*arguments, "--out", str(target))
    assert code == 1
    assert "overwrite it (--overwrite)" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["found.safetensors"]


def test_the_graph_written_computes_the_network(run: Run, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    arguments = ("--space", "elasticvit-small", "--macs", "3M", "--classes", "4", "--seed", "3")
    for name in ("found.onnx", "found.safetensors"):
        code, _, err = run(*arguments, "--out", str(tmp_path / name))
        assert code == 0, err
    network: Any = saccade.load(tmp_path / "found.safetensors")
    side = network.architecture.resolution
    x = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1))
    session = onnxruntime.InferenceSession(str(tmp_path / "found.onnx"), providers=["CPUExecutionProvider"])
    made = session.run(None, {"pictures": x.numpy()})[0]
    with torch.inference_mode():
        torch.testing.assert_close(torch.from_numpy(made), network(x), atol=1e-4, rtol=1e-4)


def test_the_architecture_alone_is_written_as_json(run: Run, supernet: Path, tmp_path: Path) -> None:
    target = tmp_path / "found.json"
    code, out, _ = run("--weights", str(supernet), "--macs", "6M", "--out", str(target), "--json")
    assert code == 0
    assert json.loads(target.read_text()) == json.loads(out)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give one of --latency and --macs, not none"),
        (("--macs", "3M", "--latency", "1ms"), "not both"),
        (("--latency", "soon"), "takes a time such as 8ms"),
        (("--macs", "1M"), "this space has 37.4 to 3191.5 M"),
        (("--macs", "9G"), "this space has 37.4 to 3191.5 M"),
        (("--macs", "3M", "--space", "elastic"), "no space 'elastic'; there are elasticvit, elasticvit-small"),
        (("--macs", "3M", "--out", "found.pth"), "end its name with .safetensors, .onnx, .json"),
        (("--macs", "3M", "--data", "."), "give --weights too"),
        (("--macs", "3M", "--threads", "0"), "--threads, --batches and --held are at least 1"),
        (("--macs", "3M", "--population", "0"), "population of at least 1"),
        (("--macs", "3M", "--backend", "abacus"), "no backend named 'abacus'; there are auto, openvino, torch"),
        (("--macs", "3M", "--seed", "-1"), "--seed lies between 0 and"),
        (("--macs", "3M", "--device", "quantum"), "no device named 'quantum'"),
    ],
)
def test_what_cannot_be_meant_is_refused(run: Run, arguments: tuple[str, ...], said: str) -> None:
    code, out, err = run(*arguments)
    assert code == 2
    assert said in err
    assert not out


def test_a_supernet_without_data_gives_no_network_and_other_files_are_refused(
    run: Run, supernet: Path, photographs: Path, tmp_path: Path
) -> None:
    code, _, err = run("--weights", str(supernet), "--macs", "6M", "--out", "found.safetensors")
    assert code == 2
    assert "give --data, so that they can be calibrated" in err
    assert not (tmp_path / "found.safetensors").exists()
    code, _, err = run("--weights", str(supernet), "--macs", "6M", "--space", "elasticvit")
    assert "another space than elasticvit" in err
    code, _, err = run("--weights", str(supernet), "--macs", "6M", "--classes", "4")
    assert "has 3 classes, not 4" in err
    other = tmp_path / "other"
    for name in ("a", "b"):
        os.makedirs(other / name)
        Image.new("RGB", (40, 40)).save(other / name / "1.png")
    code, _, err = run("--weights", str(supernet), "--macs", "6M", "--data", str(other))
    assert code == 1
    assert "has 2 classes, the supernet 3" in err
    alone = tmp_path / "alone.safetensors"
    saccade.save(saccade.create("elasticvit_subnet", weights=None, space="elasticvit-small", architecture=CODE), alone)
    code, _, err = run("--weights", str(alone), "--macs", "6M")
    assert "holds elasticvit_subnet, not a supernet" in err


CODE = [64, [16, 16, 16, 16, 24], [1, 1, 1, 1, 1], [1, 2, 2], [3, 3, 3], [2, 2], [2, 3], [1, 1], [1, 1], [2, 1]]


def test_a_limit_that_is_not_met_is_said_to_be_none() -> None:
    told = {"limit": "8 ms", "met": False, "resolution": 128, "cost_model_macs": 3e7, "macs": 3e7, "measured_ms": 9.0}
    rest = {"predicted_ms": 7.9, "threads": 1, "device": "cpu", "predictor": None, "accuracy_percent": None}
    lines = text({**told, **rest, "rounds": 4, "chosen_by": "MACs", "evaluated": 1, "code": []})
    assert "the limit is NOT met, after 4 searches" in lines
    assert "measured 9.00 ms, predicted 7.90 ms" in lines


def test_times_are_read_with_their_units() -> None:
    assert [milliseconds(given) for given in ("8ms", "0.5 s", "12", ".5MS")] == [8.0, 500.0, 12.0, 0.5]
    for wrong in ("", "ms", "8m", "-3ms", "0", "1e3"):
        with pytest.raises(UsageError, match="such as 8ms"):
            milliseconds(wrong)
