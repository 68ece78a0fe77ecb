"""``saccade foveate``: the fovea stays, the periphery goes, and for every bad input one line and nothing written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saccade.backbones.foveated.files import Foveator, Point, parse_point
from saccade.cli import main
from saccade.errors import UsageError

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command line in this process, in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main(["foveate", "--threads", "1", *map(str, arguments)])
        said = capsys.readouterr()
        return int(stopped.value.code or 0), said.out, said.err

    return call


def noise(width: int = 131, height: int = 97, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(width).integers(0, 256, (height, width, channels), dtype=np.uint8)


def picture(path: str, mode: str = "RGB", **size: int) -> np.ndarray:
    """A file of noise, and the pixels that it holds."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    made = Image.fromarray(noise(**size)).convert(mode)
    if mode == "RGBA":
        made.putalpha(Image.fromarray(noise(**size)[:, :, 0]))
    made.save(path)
    return np.asarray(made)


def read(path: str) -> np.ndarray:
    with Image.open(path) as opened:
        return np.asarray(opened)


@pytest.mark.parametrize(("at", "to"), [("0.25,0.75", "texture"), ("33px,73px", "texture"), ("33px,73px", "blur")])
def test_the_picture_stays_where_the_eye_rests_and_changes_elsewhere(run: Run, at: str, to: str) -> None:
    before = picture("p.png")
    code, out, err = run("p.png", "--at", at, "--to", to)
    assert (code, err) == (0, "")
    assert f"p_foveated.png  131 x 97  {to} around 33, 73 px, scale 0.4" in out
    off = np.abs(read("p_foveated.png").astype(int) - before)
    assert off[72:75, 32:35].max() <= 1
    assert off[:40, 90:].mean() > 20


def test_one_blur_for_all_needs_no_place(run: Run) -> None:
    before = picture("p.png")
    assert run("p.png", "--to", "uniform", "--strength", "3", "-o", "u.png")[0] == 0
    assert read("u.png").std() < before.std() / 4


def test_folders_alpha_grey_and_json(run: Run) -> None:
    clear = picture("in/a.png", "RGBA")
    picture("in/g.png", "L", width=96, height=104)
    code, out, _ = run("in", "-o", "out", "--at", "0.5,0.5", "--json")
    told = json.loads(out)
    assert code == 0
    assert told["failed"] == 0
    first = told["results"][0]
    assert (first["size"], first["kind"], first["at"]) == ([131, 97], "texture", [65.5, 48.5])
    assert first["regions"] > 10
    assert np.array_equal(read("out/a_foveated.png")[:, :, 3], clear[:, :, 3])
    assert read("out/g_foveated.png").shape == (104, 96)


def test_the_seed_decides_the_texture_and_the_scale_how_much_is_kept(run: Run) -> None:
    picture("p.png")
    for name, *options in (("a", "--seed", "1"), ("b", "--seed", "1"), ("c", "--seed", "2")):
        assert run("p.png", "-o", f"{name}.png", *options)[0] == 0
    assert np.array_equal(read("a.png"), read("b.png"))
    assert not np.array_equal(read("a.png"), read("c.png"))
    regions = []
    for scale in ("0.3", "0.7"):
        code, out, _ = run("p.png", "--scale", scale, "--overwrite", "--json")
        assert code == 0
        regions.append(json.loads(out)["results"][0]["regions"])
    assert regions[0] > regions[1]


def test_sixteen_bits_stay_and_sides_need_not_be_multiples() -> None:
    for colour in (noise().astype(np.uint16) * 257, noise(channels=1)):
        made, alpha = Foveator(Point(0.5, 0.5), threads=1).array(colour)
        assert (made.dtype, made.shape, alpha) == (colour.dtype, colour.shape, None)
        assert np.abs(made.astype(int) - colour)[47:50, 64:67].max() <= (257 if colour.dtype == np.uint16 else 1)


def test_files_of_sixteen_bits_stay_so(run: Run) -> None:
    import pyvips

    pyvips.Image.new_from_array(noise().astype(np.uint16) * 257).copy(interpretation="rgb16").write_to_file("p.tif")
    assert run("p.tif")[0] == 0
    assert pyvips.Image.new_from_file("p_foveated.tif").format == "ushort"


@pytest.mark.parametrize(
    ("arguments", "what", "code"),
    [
        (("p.png", "--at", "0.5"), "0.3,0.6", 2),
        (("p.png", "--at", "a,b"), "0.3,0.6", 2),
        (("p.png", "--at", "0.5,nan"), "0.3,0.6", 2),
        (("p.png", "--at", "640,480"), "640px,480px", 2),
        (("p.png", "--at", "200px,3px"), "outside the picture of 131 x 97 px", 2),
        (("p.png", "--to", "sketch"), "texture, blur, uniform", 2),
        (("p.png", "--scale", "0"), "0.05 to 2", 2),
        (("p.png", "--strength", "1"), "only blurs", 2),
        (("p.png", "--to", "blur", "--strength", "-1"), "0 or more", 2),
        (("p.png", "--to", "uniform", "--strength", "-1"), "0 or more", 2),
        (("p.png", "--max-memory", "700MB"), "--max-memory", 2),
        (("p.png", "-o", "there.png"), "--overwrite", 1),
        (("tiny.png",), "nothing but the fovea", 2),
        (("text.png",), "holds text", 1),
        (("none.png",), "no such file", 1),
        (("p.png", "--device", "abacus"), "abacus", 2),
        (("p.png", "--quality", "101"), "--quality", 2),
        (("p.png", "--threads", "-1"), "threads", 2),
        (("p.png", "--threads", "100000"), "threads are 1024 at the most", 2),
        (("p.png", "--seed", "99999999999999999999999"), "--seed lies between", 2),
        (("p.png", "--to", "blur", "--strength", "1e9"), "--strength of a blur is 2 at the most", 2),
        (("p.png", "--to", "uniform", "--strength", "1e9"), "wider than the picture of 131 x 97 px", 2),
    ],
)
def test_bad_calls_end_in_one_line_and_leave_nothing(
    run: Run, arguments: tuple[str, ...], what: str, code: int
) -> None:
    picture("p.png")
    picture("there.png")
    picture("tiny.png", width=6, height=5)
    Path("text.png").write_text("this is text, and no picture at all, whatever its name says")
    before = {p.name for p in Path().iterdir()}
    found, out, err = run(*arguments)
    assert (found, out) == (code, "")
    assert err.startswith("saccade: ")
    assert what in err
    assert err.count("\n") == 1
    assert {p.name for p in Path().iterdir()} == before


def test_points_are_read() -> None:
    assert parse_point(" 0.3, 0.6 ") == Point(0.3, 0.6)
    assert parse_point("640PX,480px") == Point(640, 480, pixels=True)
    assert parse_point("640px,480px").within(1280, 960) == (0.5, 0.5)
    for text in ("", "1", "1,2,3", "5px,0.5", "1.5,0.5", "-0.1,0.5", "inf,0"):
        with pytest.raises(UsageError):
            parse_point(text)


def test_among_several_the_one_that_fails_is_named_in_one_line(run: Run) -> None:
    picture("in/good.png")
    picture("in/two\nlines.png", width=6, height=5)
    code, out, err = run("in", "-o", "out", "--json")
    assert code == 1
    assert [set(r) >= {"error"} for r in json.loads(out)["results"]] == [False, True]
    assert err.startswith("saccade: in/two lines.png: at 6 x 6 px")
    assert err.count("\n") == 1


@pytest.mark.skipif(os.name != "posix", reason="names of files are Unicode there")
def test_a_name_that_is_no_utf8_is_read_written_and_printed(run: Run) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    picture("plain.png")
    os.rename("plain.png", name)
    code, out, err = run(name)
    assert (code, err) == (0, "")
    assert out.startswith("caf\\udce9_foveated.png")
    assert sorted(os.listdir(b".")) == [b"caf\xe9.png", b"caf\xe9_foveated.png"]


def test_showing_a_picture_does_not_wait_for_torchvision() -> None:
    code = "import sys, saccade.backbones.foveated.files; sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
