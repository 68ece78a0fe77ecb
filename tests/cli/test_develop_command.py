"""``saccade develop`` and ``unprocess``: there and back, and for every bad input one line and nothing written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from saccade import create, save
from saccade.cli import main
from saccade.errors import UsageError
from saccade.io.raw import read_raw, write_dng
from saccade.restoration import develop as developing
from saccade.restoration.develop import Developer, develop, grey_world, parse_white_balance
from saccade.restoration.unprocess import Unprocessor, unprocess

pytest.importorskip("rawpy", reason="the extra raw is not installed")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main([str(a) for a in arguments])
        said = capsys.readouterr()
        return int(stopped.value.code or 0), said.out, said.err

    return call


def photo(path: str, height: int = 64, width: int = 80, **options: object) -> Path:
    """Smooth colours, which a mosaic hardly harms."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    pixels = np.stack((0.3 + 0.4 * x, 0.35 + 0.3 * y, 0.6 - 0.3 * x), -1)
    Image.fromarray((pixels * 255).astype(np.uint8)).save(path, **options)  # type: ignore[arg-type]
    return Path(path)


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(float)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.square(a - b).mean()))


def test_a_picture_goes_to_dng_and_comes_back(run: Run) -> None:
    photo("a.png")
    code, out, err = run("unprocess", "a.png")
    assert (code, err) == (0, "")
    assert out.startswith("a.dng  80 x 64  fixed ISP, smooth tone, average gains 2.15, 1.00, 1.70")
    code, out, err = run("develop", "a.dng", "-o", "b.png")
    assert (code, err) == (0, "")
    assert out.startswith("b.png  80 x 64  fixed ISP, smooth tone, camera gains 2.15, 1.00, 1.70  8 bits")
    assert psnr(pixels("a.png"), pixels("b.png")) > 45


@pytest.mark.parametrize("pattern", ["bggr", "grbg", "gbrg"])
def test_every_pattern_and_a_random_camera_come_back(run: Run, pattern: str) -> None:
    photo("a.png")
    assert run("unprocess", "a.png", "--pattern", pattern, "--seed", "5", "--json")[0] == 0
    assert read_raw("a.dng").pattern == pattern
    assert run("develop", "a.dng", "--format", "png", "-o", "out")[0] == 0
    assert psnr(pixels("a.png"), pixels("out/a.png")) > 45


def test_names_formats_and_bits(run: Run) -> None:
    photo("a.png")
    run("unprocess", "a.png")
    assert run("develop", "a.dng")[0] == 0
    assert pixels("a.jpg").shape == (64, 80, 3)
    assert run("develop", "a.dng", "--bits", "16", "-o", "deep.png")[0] == 0
    from saccade.io import read_picture

    colour, _, _ = read_picture("deep.png")
    assert colour.dtype == np.uint16
    assert psnr(colour / 257, pixels("a.png")) > 45
    assert run("develop", "a.dng", "--bits", "16", "--format", "tiff", "-o", "t")[0] == 0
    assert Path("t/a.tiff").exists()


def test_json_folders_and_overwrite(run: Run) -> None:
    Path("in").mkdir()
    for name in ("a", "b"):
        photo(f"in/{name}.png")
    assert run("unprocess", "in", "-o", "raw", "--json")[0] == 0
    Path("raw/c.dng").write_text("this is no RAW file, it only has its name")
    code, out, err = run("develop", "raw", "-o", "out", "--json")
    told = json.loads(out)
    assert (code, told["failed"], len(told["results"])) == (1, 1, 3)
    assert "it holds text" in err
    assert {p.name for p in Path("out").iterdir()} == {"a.jpg", "b.jpg"}
    assert told["results"][0]["gains"] == pytest.approx([2.15, 1.0, 1.7], rel=1e-3)
    before = Path("out/a.jpg").read_bytes()
    assert run("develop", "raw/a.dng", "-o", "out/a.jpg", "--tone", "linear")[0] == 1
    assert Path("out/a.jpg").read_bytes() == before
    assert run("develop", "raw/a.dng", "-o", "out/a.jpg", "--tone", "linear", "--overwrite")[0] == 0
    assert Path("out/a.jpg").read_bytes() != before


def test_tones_and_white_balances_do_what_they_say(run: Run) -> None:
    photo("a.png")
    run("unprocess", "a.png")
    made = {}
    for name, options in {
        "camera": [],
        "warm": ["--white-balance", "3,1,1.7"],
        "auto": ["--white-balance", "auto"],
        "linear": ["--tone", "linear"],
        "srgb": ["--tone", "srgb"],
        "bright": ["--exposure", "1"],
        "bilinear": ["--demosaic", "bilinear"],
    }.items():
        assert run("develop", "a.dng", "-o", f"{name}.png", *options)[0] == 0
        made[name] = pixels(f"{name}.png").mean((0, 1))
    assert made["warm"][0] > made["camera"][0] + 10
    # grey world: means are alike in linear light
    linear = np.asarray(develop("a.dng", white_balance="auto", tone="linear")).mean((0, 1))
    assert linear.max() - linear.min() < 2
    assert made["linear"].mean() < made["camera"].mean()
    assert made["bright"].mean() > made["camera"].mean() + 20
    assert made["bilinear"] == pytest.approx(made["camera"], abs=1)


def test_large_raws_are_developed_in_strips_without_seams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = photo(str(tmp_path / "a.png"), 90, 70)
    unprocess(source, tmp_path / "a.dng")
    whole = Developer().array(read_raw(tmp_path / "a.dng"))
    monkeypatch.setattr(developing, "STRIP", 70 * 8)
    np.testing.assert_array_equal(Developer().array(read_raw(tmp_path / "a.dng")), whole)


@pytest.mark.parametrize(("flip", "turns"), [(3, 2), (5, 1), (6, 3)])
def test_turned_pictures_come_out_upright(tmp_path: Path, flip: int, turns: int) -> None:
    source = photo(str(tmp_path / "a.png"))
    unprocess(source, tmp_path / "a.dng")
    data = bytearray((tmp_path / "a.dng").read_bytes())
    at = data.index((274).to_bytes(2, "little") + (3).to_bytes(2, "little")) + 8
    data[at] = {3: 3, 5: 8, 6: 6}[flip]  # EXIF's orientations
    (tmp_path / "b.dng").write_bytes(data)
    assert read_raw(tmp_path / "b.dng").flip == flip
    develop(tmp_path / "b.dng", tmp_path / "b.png")
    upright = np.rot90(np.asarray(develop(tmp_path / "a.dng")), turns)
    np.testing.assert_array_equal(pixels(tmp_path / "b.png"), upright)


def test_a_learnt_isp_serves_both_ways(run: Run) -> None:
    photo("a.png", 48, 50)
    torch.manual_seed(0)
    save(create("model_isp_tiny", weights=None), Path("isp.safetensors"))
    code, out, err = run("unprocess", "a.png", "--model", "isp.safetensors", "--budget", "0.05")
    assert code == 0, err
    assert "model_isp_tiny ISP, learnt tone" in out
    assert "not noted in the file" in err
    code, out, err = run("develop", "a.dng", "--model", "isp.safetensors", "--budget", "0.05", "-o", "b.png")
    assert (code, err) == (0, "")
    assert psnr(pixels("a.png"), pixels("b.png")) > 40
    code, out, err = run("develop", "a.dng", "--model", "isp.safetensors", "--white-balance", "4,1,1.7", "-o", "c.png")
    assert code == 0
    assert pixels("c.png")[..., 0].mean() > pixels("b.png")[..., 0].mean()


def test_npz_and_tiff_hold_the_same_samples(run: Run) -> None:
    photo("a.png")
    for suffix in ("dng", "npz", "tiff"):
        assert run("unprocess", "a.png", "-o", f"a.{suffix}")[0] == 0
    plane = read_raw("a.dng").plane
    with np.load("a.npz") as held:
        np.testing.assert_array_equal(held["packed"][2], plane[1::2, 0::2])
        assert str(held["pattern"]) == "rggb"
        assert held["gains"] == pytest.approx([2.15, 1, 1.7])
    with Image.open("a.tiff") as image:
        np.testing.assert_array_equal(np.asarray(image).astype(np.uint16), plane)


def test_odd_sides_alpha_and_grey_are_told_of(run: Run) -> None:
    photo("odd.png", 31, 45)
    with Image.open("odd.png") as image:
        image.convert("RGBA").save("alpha.png")
        image.convert("L").save("grey.png")
    for name, words in (("odd", "left out"), ("alpha", "a RAW has none"), ("grey", "left out")):
        code, _, err = run("unprocess", f"{name}.png")
        assert code == 0
        assert words in err
        assert read_raw(f"{name}.dng").plane.shape == (30, 44)


def test_a_raw_without_white_balance_is_estimated(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    cells = np.tile(np.array([[1000, 2000], [2000, 1500]], np.uint16), (20, 30))
    plane = (cells * rng.uniform(0.8, 1.0, cells.shape)).astype(np.uint16)
    write_dng(tmp_path / "a.dng", plane, white=4095, xyz_to_camera=np.eye(3), neutral=(0.5, 1, 0.6))
    found = grey_world(read_raw(tmp_path / "a.dng"))
    assert found == pytest.approx((2.0, 1.0, 4 / 3), rel=0.05)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("develop", "none.dng"), 1, "no such file"),
        (("develop", "text.dng"), 1, "it holds text"),
        (("develop", "photo.png"), 1, "holds a PNG, developed already"),
        (("develop", "."), 1, "no RAW files|it holds text"),
        (("develop", "ok.dng", "--bits", "12"), 2, "8 or 16 bits"),
        (("develop", "ok.dng", "--bits", "16", "--format", "jpeg"), 2, "keeps 8 bits"),
        (("develop", "ok.dng", "--tone", "filmic"), 2, "no tone named"),
        (("develop", "ok.dng", "--white-balance", "sunny"), 2, "white balance is camera, auto"),
        (("develop", "ok.dng", "--white-balance", "1,0,1"), 2, "three positive factors"),
        (("develop", "ok.dng", "--demosaic", "vng"), 2, "malvar and bilinear"),
        (("develop", "ok.dng", "--exposure", "99"), 2, "-10 to 10 stops"),
        (("develop", "ok.dng", "--budget", "0.5"), 2, "goes with a learnt ISP"),
        (("develop", "ok.dng", "--quality", "200"), 2, "--quality"),
        (("develop", "ok.dng", "--threads", "-1"), 2, "threads"),
        (("develop", "ok.dng", "--model", "none.safetensors"), 1, "no file of weights"),
        (("develop", "ok.dng", "--model", "sesr.safetensors"), 1, "no learnt ISP"),
        (("develop", "ok.dng", "--model", "isp.safetensors", "--tone", "srgb"), 2, "its own tone"),
        (("develop", "ok.dng", "-o", "x.gif"), 2, "format"),
        (("unprocess", "photo.png", "-o", "x.jpg"), 2, "dng, npz, tiff"),
        (("unprocess", "photo.png", "--pattern", "xtrans"), 2, "no Bayer pattern"),
        (("unprocess", "photo.png", "--seed", "1", "--model", "isp.safetensors"), 2, "seed draws a camera"),
        (("unprocess", "photo.png", "--seed", str(1 << 70)), 2, "a seed lies between"),
        (("unprocess", "clip.mp4"), 1, "clip.mp4 is a clip"),
        (("develop", "clip.mp4"), 1, "clip.mp4 is a clip"),
        (("unprocess", "notes.txt"), 1, "holds text"),
        (("unprocess", "dot.png"), 1, "no Bayer cell"),
    ],
)
def test_bad_input_is_one_line_and_nothing_written(run: Run, arguments: tuple[str, ...], code: int, words: str) -> None:
    photo("photo.png")
    photo("ok.png", 32, 32)
    unprocess("ok.png", "ok.dng")
    Image.new("RGB", (1, 1)).save("dot.png")
    for name in ("text.dng", "notes.txt", "clip.mp4"):
        Path(name).write_text("only words\n")
    save(create("model_isp_tiny", weights=None), Path("isp.safetensors"))
    save(create("sesr_m3", scale=2, weights=None), Path("sesr.safetensors"))
    before = {p.name for p in Path().iterdir()}
    if arguments[1] == ".":
        for name in ("ok.dng", "text.dng"):
            Path(name).unlink()
        before -= {"ok.dng", "text.dng"}
    found, out, err = run(*arguments)
    assert found == code, err
    assert len(err.splitlines()) == 1
    assert re.search(words, err), err
    assert out == ""
    assert {p.name for p in Path().iterdir()} == before


def test_a_white_balance_is_parsed() -> None:
    assert parse_white_balance("2, 1,1.5") == (2.0, 1.0, 1.5)
    with pytest.raises(UsageError):
        parse_white_balance("nan,1,1")
    with pytest.raises(UsageError, match="seed"):
        Unprocessor(create("model_isp_tiny", weights=None), seed=0)  # type: ignore[arg-type]


@pytest.mark.parametrize("factors", [(1, 0, 1), (1.0, -1.0, 1.0), (1.0, float("nan"), 1.0), (1.0, 2.0), (1, "a", 2)])
def test_factors_that_are_no_white_balance_are_refused(factors: Any) -> None:
    with pytest.raises(UsageError, match="white balance is camera, auto, or three positive factors"):
        Developer(white_balance=factors)
