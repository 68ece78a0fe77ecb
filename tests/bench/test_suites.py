"""Every suite of `saccade bench`, on a few pixels: that it runs, and what it says of itself."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest

from saccade import registry
from saccade.bench.floor import measure_floor
from saccade.cli import main
from saccade.cli.bench import parse_sides
from saccade.errors import UsageError

torch = pytest.importorskip("torch")


def bench(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    with pytest.raises(SystemExit) as ended:
        main(["bench", *arguments, "--threads", "1", "--repeats", "1", "--json"])
    assert ended.value.code == 0
    return json.loads(capsys.readouterr().out)


def check(result: dict, system: str) -> None:
    assert result["rows"]
    for row in result["rows"]:
        assert row["system"] == system
        assert row["ours_ms"] > 0
        assert row["peer_ms"] > 0
        assert row["ratio"] == pytest.approx(row["peer_ms"] / row["ours_ms"], rel=0.01, abs=2e-3)
        assert row["threads"] == 1
        assert row["command"].startswith("saccade bench ")
    assert {"machine", "versions", "rounds", "date"} <= result.keys()


def test_upscale_names_engines_resizers_and_the_floor(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("onnxruntime")
    if registry.default_weights("sesr_m5", scale=2) is None:
        pytest.skip("no weights ship for sesr_m5 x2")
    small = functools.partial(measure_floor, side=128, megabytes=4, repeats=1)
    monkeypatch.setattr("saccade.bench.upscale.measure_floor", small)
    result = bench(capsys, "upscale", "--size", "40x30")
    check(result, "sesr")
    peers = {row["peer"] for row in result["rows"]}
    assert {"PyTorch, eager", "ONNX Runtime", "OpenVINO", "Pillow, bicubic"} <= peers
    assert "the machine's peak" in peers or any("too busy" in note for note in result["notes"])


def test_pcsr_reports_the_share_that_it_forced(capsys: pytest.CaptureFixture[str]) -> None:
    result = bench(capsys, "pcsr", "--size", "32x24", "--model", "pcsr_small")
    check(result, "pcsr")
    assert "% of the pixels heavy" in result["notes"][0]


def test_espcn_is_set_beside_the_same_layers_at_high_resolution(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openvino")
    result = bench(capsys, "espcn", "--size", "32x24")
    check(result, "espcn")
    assert "the same layers on the enlarged picture, PyTorch" in {row["peer"] for row in result["rows"]}


def test_fast_scaling_compares_networks_of_equal_cost(capsys: pytest.CaptureFixture[str]) -> None:
    result = bench(capsys, "fast_scaling", "--batch", "1", "--macs", "4e8")
    check(result, "fast_scaling")
    assert all("M activations" in note for note in result["notes"])


@pytest.mark.slow
def test_process_measures_from_the_shell(capsys: pytest.CaptureFixture[str]) -> None:
    check(bench(capsys, "process", "--size", "40x30"), "sesr")


def test_a_result_that_exists_is_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "upscale.json"
    out.write_text("kept")
    with pytest.raises(SystemExit) as ended:
        main(["bench", "upscale", "--out", str(out)])
    assert ended.value.code == 1
    assert "--overwrite" in capsys.readouterr().err
    assert out.read_text() == "kept"


@pytest.mark.parametrize("size", ["", "1920", "0x10", "10x", "-3x4", "1920x1080x3", "axb"])
def test_a_size_is_width_times_height(size: str) -> None:
    with pytest.raises(UsageError, match="WIDTHxHEIGHT"):
        parse_sides(size)
    assert parse_sides("1920x1080") == (1920, 1080)
