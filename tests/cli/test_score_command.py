"""``saccade score`` and ``saccade train iqa``, as a user calls them."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from saccade.checkpoint import load, save
from saccade.cli import main
from saccade.registry import create


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of a tiny model; its regressors are zeros, so every score is 0 until one is fitted."""
    import torch

    made = create("reiqa_small", weights=None, width=0.125, layers=[1, 1])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in made.state_dict().items():
            if value.is_floating_point() and value.dim() == 4:
                value.copy_(torch.randn(value.shape, generator=generator) / value[0].numel() ** 0.5)
            elif name.startswith(("coefficients", "intercept")):
                value.copy_(torch.randn(value.shape, generator=generator))
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save(made, path)
    return str(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six contents, sharp and blurred."""
    made = tmp_path / "in"
    made.mkdir()
    for i in range(6):
        small = np.random.default_rng(i).integers(0, 256, (20, 24, 3)).astype(np.uint8)
        sharp = Image.fromarray(small).resize((96, 80), Image.Resampling.NEAREST)
        sharp.save(made / f"c{i}_sharp.png")
        sharp.filter(ImageFilter.GaussianBlur(3)).save(made / f"c{i}_soft.png")
    return made


def run(*words: object, code: int = 0) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    assert stopped.value.code == code


def rated(folder: Path, **columns: list[str]) -> Path:
    names = sorted(p.name for p in folder.glob("*.png"))
    rows = [["name", "score", "content", *columns]]
    for i, name in enumerate(names):
        rows.append([name, "90" if "sharp" in name else "20", name.split("_")[0], *(v[i] for v in columns.values())])
    path = folder.parent / "scores.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def test_a_folder_gets_a_table(folder: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    run("score", folder, "--model", model, "--csv", folder.parent / "t.csv", "--sort", "--threads", 1)
    out = capsys.readouterr().out
    assert "12 pictures in" in out
    with (folder.parent / "t.csv").open() as file:
        rows = list(csv.DictReader(file))
    values = [float(row["score"]) for row in rows]
    assert values == sorted(values, reverse=True)
    assert {row["width"] for row in rows} == {"96"}
    run("score", folder, "--model", model, "--csv", folder.parent / "t.csv", code=1)
    assert "exists" in capsys.readouterr().err


def test_a_table_that_could_not_be_written_is_refused_before_anything_is_scored(
    folder: Path, model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from saccade.quality.reiqa.scoring import Scorer

    monkeypatch.setattr(Scorer, "scores", lambda *_: pytest.fail("scored"))
    run("score", folder, "--model", model, "--csv", folder.parent / "none" / "t.csv", code=1)
    assert "there is no folder" in capsys.readouterr().err


def test_bad_files_are_named_and_make_the_exit_code_1(
    folder: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "text.png").write_text("no picture")
    run("score", folder, "--model", model, "--json", "--threads", 1, code=1)
    caught = capsys.readouterr()
    told = json.loads(caught.out)
    assert told["failed"] == 1
    assert sum(row["score"] is not None for row in told["results"]) == 12
    assert "text.png" in caught.err
    run("score", folder, "--model", model, "--threads", 1, code=1)
    assert "; 1 could not be scored\n" in capsys.readouterr().out


def test_the_best_are_copied_and_the_worst_moved(folder: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    best, worst = folder.parent / "best", folder.parent / "worst"
    run("score", folder, "--model", model, "--best", 3, "--copy", best, "--json", "--threads", 1)
    told = json.loads(capsys.readouterr().out)
    assert sorted(p.name for p in best.iterdir()) == sorted(Path(row["path"]).name for row in told["results"])
    assert len(list(folder.iterdir())) == 12
    run("score", folder, "--model", model, "--worst", 2, "--move", worst, "--threads", 1)
    assert len(list(worst.iterdir())) == 2
    assert len(list(folder.iterdir())) == 10
    run("score", folder, "--model", model, "--best", 3, "--copy", best, "--threads", 1, code=1)
    assert "exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--best", "2", "--worst", "2"], "one of --best and --worst"),
        (["--copy", "a", "--move", "b"], "one of --copy and --move"),
        (["--move", "b"], "--best N or --worst N"),
        (["--best", "-1"], "1 or more"),
        (["--side", "10"], "at least 256"),
        (["--threads", "-1"], "threads must not be negative"),
        (["--budget", "0"], "budget"),
        (["--model", "sesr_m5"], "gives no scores"),
        (["--model", "reiqa_smal"], "reiqa_small"),
    ],
)
def test_misuse_is_one_line_and_exit_code_2(
    words: list[str], said: str, folder: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run("score", folder, *([] if "--model" in words else ["--model", model]), *words, code=2)
    caught = capsys.readouterr()
    assert said in caught.err
    assert caught.err.count("\n") == 1


def test_a_fitted_regressor_scores(folder: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder.parent / "mine.safetensors"
    run(
        "train",
        "iqa",
        "--scores",
        rated(folder),
        "--data",
        folder,
        "-o",
        out,
        "--model",
        model,
        "--json",
        "--threads",
        1,
    )
    told = json.loads(capsys.readouterr().out)
    assert told["pictures"] == 12
    assert told["contents"] == 6
    assert told["srcc"] > 0.6
    run("score", folder, "--model", model, "--regressor", out, "--sort", "--json", "--threads", 1)
    rows = json.loads(capsys.readouterr().out)["results"]
    assert all("sharp" in row["path"] for row in rows[:6])


def test_an_elastic_net_leaves_features_out_and_scores(
    folder: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder.parent / "net.safetensors"
    words = ["--scores", rated(folder), "--data", folder, "-o", out, "--model", model, "--threads", 1]
    run("train", "iqa", *words, "--penalty", "elastic-net", "--l1-share", 1, "--json")
    told = json.loads(capsys.readouterr().out)
    assert (told["penalty"], told["l1_share"]) == ("elastic-net", 1.0)
    assert 0 < told["features_used"] < 64
    assert told["srcc"] > 0.6
    run("score", folder, "--model", model, "--regressor", out, "--sort", "--json", "--threads", 1)
    rows = json.loads(capsys.readouterr().out)["results"]
    assert all("sharp" in row["path"] for row in rows[:6])
    for wrong, said in ((["--penalty", "lasso"], "ridge or elastic-net"), (["--l1-share", 0], "lies in (0, 1]")):
        run("train", "iqa", *words, "--overwrite", *wrong, code=2)
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("what", ["iqa", "reiqa"])
def test_a_file_that_could_not_be_written_is_refused_before_the_work(
    what: str, folder: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder.parent / "none" / "r.safetensors"
    words = ["--scores", folder / "nothing.csv"] if what == "iqa" else ["--data", folder / "nothing"]
    run("train", what, *words, "-o", out, code=1)
    assert "there is no folder" in capsys.readouterr().err


def test_a_given_split_is_used_and_leakage_refused(
    folder: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder.parent / "mine.safetensors"
    words = ["--data", folder, "-o", out, "--model", model, "--threads", 1]
    split = ["train"] * 8 + ["test"] * 4
    run("train", "iqa", "--scores", rated(folder, split=split), *words)
    assert "the table's own split" in capsys.readouterr().out
    run("train", "iqa", "--scores", rated(folder, split=["train", "test"] * 6), *words, "--overwrite", code=1)
    assert "both in the training and in the test part" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name,mos\nc0_sharp.png,1\n", "needs the columns name and score"),
        ("", "needs the columns name and score"),
        ("name,score\n", "has no rows"),
        ("name,score\nc0_sharp.png,nan\n", "must be finite"),
        ("name,score\nc0_sharp.png,good\n", "is no score"),
        ("name,score\nnone.png,3\n", "there is no picture"),
        ("name,score\nc0_sharp.png,3\nc0_sharp.png,4\n", "twice, in lines 2 and 3"),
        ("name,score,split\nc0_sharp.png,3,dev\n", "train or test"),
        ("name,score,split\nc0_sharp.png,3,train\nc0_soft.png,3,\n", "for some rows only"),
        ("name,score,content\nc0_sharp.png,3,a\nc0_soft.png,2,a\nc1_soft.png,2,b\n", "four in all; here are 2"),
    ],
)
def test_tables_that_cannot_be_used_say_why(
    text: str, said: str, folder: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table = folder.parent / "scores.csv"
    table.write_text(text)
    out = folder.parent / "r.safetensors"
    run("train", "iqa", "--scores", table, "--data", folder, "-o", out, "--model", model, "--threads", 1, code=1)
    assert said in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.slow
def test_encoders_of_ones_own_are_trained_and_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from saccade.data.generated import write_pictures

    photographs = tmp_path / "photographs"
    photographs.mkdir()
    write_pictures(photographs, 3, 288, 0)
    out = tmp_path / "mine.safetensors"
    words = ["--steps", 2, "--content-steps", 1, "--copies", 3, "--threads", 1]
    run("train", "reiqa", "--data", photographs, "-o", out, *words)
    assert "left-out error" in capsys.readouterr().out
    assert out.stat().st_size < 3_000_000
    run("score", photographs, "--model", out, "--json", "--threads", 1)
    assert json.loads(capsys.readouterr().out)["failed"] == 0
    run("train", "reiqa", "--data", photographs, "-o", out, *words, code=1)
    assert "exists" in capsys.readouterr().err
    again = tmp_path / "again.safetensors"
    run("train", "reiqa", "--data", photographs, "-o", again, "--start", out, "--threads", 1)
    first, second = load(out).state_dict(), load(again).state_dict()
    assert all((first[name] == second[name]).all() for name in first), "encoders kept, regressors fitted alike"
    save(create("sesr_m3", scale=2, weights=None), tmp_path / "sesr.safetensors")
    words = ["-o", tmp_path / "x.safetensors", "--start", tmp_path / "sesr.safetensors"]
    run("train", "reiqa", "--data", photographs, *words, code=2)
    assert "holds no regressors" in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="names of files are Unicode there")
def test_names_that_are_no_utf8_stand_in_the_table_as_on_the_disc(
    folder: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = os.fsencode(folder) + b"/\xff.png"
    os.rename(os.fsencode(folder / "c0_sharp.png"), odd)
    table = folder.parent / "table.csv"
    run("score", folder, "--model", model, "--csv", table, "--threads", 1)
    assert "\\udcff.png" in capsys.readouterr().out
    assert odd in table.read_bytes()
