"""``saccade demo``: the bundled photograph, enlarged."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed")


def demo(cwd: Path, *arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    code = f"{before}\nfrom saccade.cli import main\nmain({['demo', *arguments]!r})"
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, env=one_thread)


def test_the_demo_says_where_the_result_is_and_what_it_cost_and_may_run_again(tmp_path: Path) -> None:
    for _ in range(2):
        made = demo(tmp_path)
        assert made.returncode == 0, made.stderr
        target = tmp_path / "demo-output" / "osprey_x2.jpg"
        with Image.open(target) as picture:
            assert picture.size == (1920, 1080)
        for part in (str(target), "1920 x 1080", "sesr_m5 x2", "7.01 GMACs", "next:"):
            assert part in made.stdout


def test_a_folder_of_ones_own_is_not_written_over(tmp_path: Path) -> None:
    target = tmp_path / "mine" / "osprey_x2.jpg"
    target.parent.mkdir()
    target.write_bytes(b"mine")
    made = demo(tmp_path, "-o", "mine")
    assert made.returncode == 1
    assert "osprey_x2.jpg" in made.stderr
    assert target.read_bytes() == b"mine"
    report = json.loads(demo(tmp_path, "-o", "mine", "--overwrite", "--json").stdout)
    assert report["made"] == [1920, 1080]
    assert target.stat().st_size > 100_000


@openvino
def test_the_demo_needs_no_torch_where_openvino_serves(tmp_path: Path) -> None:
    made = demo(tmp_path, "--json", before="import sys\nsys.modules['torch'] = None")
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["backend"] == "openvino"
