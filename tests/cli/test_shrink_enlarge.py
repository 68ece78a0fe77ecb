"""``saccade shrink`` and ``saccade enlarge``: there and back, and for every bad input one line and nothing written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from saccade import create, save
from saccade.cli import main
from saccade.cli.shrink import parse_scale, parse_size
from saccade.errors import UsageError

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command line in this process, in a folder with weights alone: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    model = create("iarn", weights=None, opening=[4, 1], hider=[4, 1], teller=[4, 1])
    with torch.no_grad():
        model.blocks[0].F.linear.bias.fill_(0.02)
    save(model, tmp_path / "w.safetensors")

    def call(verb: str, *arguments: str | Path) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main([verb, "--threads", "1", "--model", "w.safetensors", *map(str, arguments)])
        said = capsys.readouterr()
        return int(stopped.value.code or 0), said.out, said.err

    return call


def picture(path: str, width: int = 30, height: int = 22, mode: str = "RGB") -> Path:
    noise = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise).convert(mode).save(path)
    return Path(path)


def size(path: str) -> tuple[int, int]:
    with Image.open(path) as opened:
        return opened.size


def test_enlarge_needs_no_arguments(run: Run) -> None:
    picture("photo.jpg", 41, 33)
    code, out, err = run("shrink", "photo.jpg", "--scale", "2.5")
    assert (code, err) == (0, "")
    assert "41 x 33 -> 16 x 13" in out
    assert size("photo_small.png") == (16, 13)
    code, out, err = run("enlarge", "photo_small.png")
    assert (code, err) == (0, "")
    assert size("photo_small_large.png") == (41, 33)


def test_sizes_folders_and_json(run: Run) -> None:
    picture("in/a.png")
    picture("in/b.png", 44, 30, "RGBA")
    code, out, _ = run("shrink", "in", "--size", "20x11", "-o", "out", "--json")
    told = json.loads(out)
    assert code == 0
    assert [r["made"] for r in told["results"]] == [[20, 11]] * 2
    assert told["results"][0]["factor"] == [1.5, 2.0]
    assert {p.name for p in Path("out").iterdir()} == {"a_small.png", "b_small.png"}
    code, out, _ = run("enlarge", "out", "-o", "back", "--format", "tiff")
    assert code == 0
    assert size("back/b_small_large.tiff") == (44, 30)


@pytest.mark.parametrize(
    ("arguments", "what", "code"),
    [
        (("p.png",), "--size", 2),
        (("p.png", "--scale", "1"), "above 1", 2),
        (("p.png", "--scale", "two"), "--scale is a number", 2),
        (("p.png", "--size", "20"), "width x height", 2),
        (("p.png", "--size", "0x5"), "width x height", 2),
        (("p.png", "--size", "31x5"), "not smaller", 1),
        (("p.png", "--scale", "2", "-o", "s.jpg"), "lossy", 2),
        (("p.png", "--scale", "2", "--max-memory", "1MB"), "MB are needed", 2),
        (("p.png", "--scale", "2", "-o", "there.png"), "--overwrite", 1),
        (("text.png", "--scale", "2"), "holds text", 1),
        (("none.png", "--scale", "2"), "no such file", 1),
        (("p.png", "--scale", "2", "--device", "abacus"), "abacus", 2),
    ],
)
def test_bad_calls_of_shrink_end_in_one_line_and_leave_nothing(
    run: Run, arguments: tuple[str, ...], what: str, code: int
) -> None:
    picture("p.png")
    picture("there.png")
    Path("text.png").write_text("this is text, and no picture at all, whatever its name says")
    before = {p.name for p in Path().iterdir()}
    found, out, err = run("shrink", *arguments)
    assert (found, out) == (code, "")
    assert err.startswith("saccade: ")
    assert what in err
    assert err.count("\n") == 1
    assert {p.name for p in Path().iterdir()} == before


def test_foreign_pictures_need_a_size_and_are_warned_of(run: Run) -> None:
    picture("p.jpg")
    code, _, err = run("enlarge", "p.jpg")
    assert code == 1
    assert "--size" in err
    code, _, err = run("enlarge", "p.jpg", "--size", "60x44", "-o", "l.png")
    assert code == 0
    assert "foreign pictures" in err
    assert "JPEG" in err
    assert size("l.png") == (60, 44)


def test_other_weights_than_the_notes_are_refused(run: Run) -> None:
    picture("p.png")
    assert run("shrink", "p.png", "--scale", "2")[0] == 0
    save(create("iarn", weights=None, opening=[4, 1], hider=[4, 1], teller=[4, 1]), Path("other.safetensors"))
    code, _, err = run("enlarge", "p_small.png", "--model", "other.safetensors")
    assert code == 1
    assert "was shrunk by iarn with weights" in err


@pytest.mark.parametrize(("text", "size"), [("1237x820", (1237, 820)), (" 5 X 6 ", (5, 6)), (None, None)])
def test_sizes_are_read(text: str | None, size: tuple[int, int] | None) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "5", "5x", "x5", "-1x5", "5x5x5", "5.5x5"])
def test_other_texts_are_no_sizes(text: str) -> None:
    with pytest.raises(UsageError):
        parse_size(text)


def test_scales_are_read() -> None:
    assert parse_scale("2.5") == (2.5, 2.5)
    assert parse_scale("1.6x2.9") == (1.6, 2.9)
    for text in ("", "x", "1x2x3", "2,5"):
        with pytest.raises(UsageError):
            parse_scale(text)


@pytest.mark.slow
def test_memory_stays_within_its_bound_for_a_large_picture(tmp_path: Path) -> None:
    row = np.random.default_rng(0).integers(0, 256, (1, 3000, 3), dtype=np.uint8)
    Image.fromarray(np.repeat(row, 2000, 0)).save(tmp_path / "p.png")
    save(create("iarn", weights=None), tmp_path / "w.safetensors")
    script = (
        "import re\n"
        "from saccade.restoration.rescale import Enlarger, Shrinker\n"
        "limit = 1 << 30\n"
        "Shrinker('w.safetensors', scale=2.5, max_memory=limit, threads=1).picture('p.png', 's.png')\n"
        "Enlarger('w.safetensors', max_memory=limit, threads=1).picture('s.png', 'l.png')\n"
        # not ru_maxrss, which also counts the process that this one was forked from
        "print(int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) * 1024)\n"
    )
    made = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert int(made.stdout) < 1 << 30
    assert size(str(tmp_path / "l.png")) == (3000, 2000)
