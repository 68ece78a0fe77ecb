from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saccade.cli import main


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["restore", *arguments])
    return int(ended.value.code or 0)


@pytest.fixture
def noisy(tmp_path: Path) -> Path:
    chance = np.random.default_rng(0)
    coarse = Image.fromarray(chance.integers(40, 216, (8, 10, 3), dtype=np.uint8))
    clean = np.asarray(coarse.resize((160, 128), Image.Resampling.BICUBIC), float)
    Image.fromarray((clean + chance.normal(0, 25, clean.shape)).clip(0, 255).astype(np.uint8)).save(tmp_path / "n.png")
    Image.fromarray(clean.astype(np.uint8)).save(tmp_path / "clean.bmp")
    return tmp_path / "n.png"


def read(path: Path) -> np.ndarray:
    with Image.open(path) as opened:
        return np.array(opened.convert("RGB"), float)


def test_noise_goes_and_the_result_stands_beside_the_input(noisy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(noisy), "--json") == 0
    told = json.loads(capsys.readouterr().out)["results"][0]
    assert told["model"] == "cleaner_small"
    made = noisy.with_name("n_restored.png")
    clean = read(noisy.with_name("clean.bmp"))
    before, after = (float(np.square(read(p) - clean).mean()) for p in (noisy, made))
    assert after < before / 6
    assert run(str(noisy)) == 1
    assert "exists" in capsys.readouterr().err


def test_bad_input_gives_one_line_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.png").write_text("words")
    for arguments, code in (
        ([str(tmp_path / "notes.png")], 1),
        ([str(tmp_path / "nothing.png")], 1),
        ([str(tmp_path / "notes.png"), "--task", "paint"], 2),
        ([str(tmp_path / "notes.png"), "--perception", "3"], 2),
        ([str(tmp_path / "notes.png"), "--task", "deblur", "--psf", str(tmp_path / "no.npy")], 1),
    ):
        assert run(*arguments) == code, arguments
        err = capsys.readouterr().err
        assert err.startswith("saccade: ")
        assert "Traceback" not in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.png"]
