"""``saccade upscale``: what it makes and where, and for every bad input one line, an exit code, and nothing written."""

from __future__ import annotations

import json
import os
import resource
import struct
import subprocess
import sys
import textwrap
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saccade import create, save
from saccade.cli import main
from saccade.cli.batch import parse_bytes
from saccade.errors import UsageError

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run ``saccade upscale`` in this process, in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SACCADE_CACHE", str(tmp_path / ".cache"))

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main(["upscale", "--threads", "1", *map(str, arguments)])
        said = capsys.readouterr()
        return int(stopped.value.code or 0), said.out, said.err

    return call


def picture(path: str | Path, width: int = 20, height: int = 14, mode: str = "RGB", **options: object) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path, **options)  # type: ignore[arg-type]
    return path


def files(folder: Path = Path()) -> set[str]:
    """Everything below a folder but the cache."""
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if ".cache" not in p.parts}


def size(path: str | Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


# -- what it makes


def test_a_picture_is_written_beside_its_source(run: Run) -> None:
    picture("a.jpg")
    code, out, err = run("a.jpg")
    assert (code, err) == (0, "")
    assert size("a_x2.jpg") == (40, 28)
    assert out.startswith("a_x2.jpg  20 x 14 -> 40 x 28  sesr_m5 x2")
    assert len(out.splitlines()) == 1


def test_files_folders_and_globs_go_into_a_folder(run: Run) -> None:
    for name in ("in/a.png", "in/b.jpg", "c1.png", "c2.png", "in/notes/d.png"):
        picture(name)
    Path("in/readme.txt").write_text("not a picture")
    code, out, err = run("in", "c?.png", "c1.png", "-o", "out/put", "--format", "webp")
    assert (code, err) == (0, "")
    assert {p.name for p in Path("out/put").iterdir()} == {"a_x2.webp", "b_x2.webp", "c1_x2.webp", "c2_x2.webp"}
    assert len(out.splitlines()) == 4


def test_an_output_names_a_file_or_a_folder(run: Run) -> None:
    picture("a.png")
    for output, made in (
        ("b.jpg", "b.jpg"),
        ("new", "new/a_x2.png"),
        ("x.y/", "x.y/a_x2.png"),
        ("x.y", "x.y/a_x2.png"),
    ):
        code, out, err = run("a.png", "-o", output, "--overwrite")
        assert (code, err) == (0, ""), output
        assert out.startswith(f"{made}  ")
        assert size(made) == (40, 28)


def test_a_single_pixel_and_thin_pictures_work(run: Run) -> None:
    for width, height in ((1, 1), (1, 40), (40, 1), (2, 3)):
        picture("a.png", width, height)
        assert run("a.png", "-o", "b.png", "--overwrite")[0] == 0
        assert size("b.png") == (2 * width, 2 * height)


def test_the_kind_of_a_picture_is_kept(run: Run) -> None:
    Image.fromarray(np.arange(300, dtype=np.uint16).reshape(15, 20) * 200).save("grey16.png")
    picture("alpha.png", mode="RGBA")
    picture("grey.jpg", mode="L")
    assert run("grey16.png", "alpha.png", "grey.jpg", "-o", "out")[0] == 0
    for name, mode in (("grey16_x2.png", "I;16"), ("alpha_x2.png", "RGBA"), ("grey_x2.jpg", "L")):
        with Image.open(Path("out") / name) as image:
            assert image.mode == mode


def test_the_first_frame_of_an_animation_is_taken_with_a_notice(run: Run) -> None:
    frames = [Image.new("RGB", (9, 8), c) for c in ("red", "lime", "blue")]
    frames[0].save("a.gif", save_all=True, append_images=frames[1:])
    code, out, err = run("a.gif")
    assert code == 0
    assert out.startswith("a_x2.png")
    assert err == "saccade: note: a.gif holds 3 frames or pages: the first one is read\n"
    with Image.open("a_x2.png") as image:
        assert image.convert("RGB").getpixel((5, 5)) == (255, 0, 0)


def test_json_tells_all_of_every_picture(run: Run) -> None:
    picture("a.png")
    picture("b.png")
    code, out, err = run("a.png", "b.png", "-o", "out", "--json")
    told = json.loads(out)
    assert (code, err, told["failed"], set(told)) == (0, "", 0, {"results", "failed", "seconds"})
    first = told["results"][0]
    assert first["source"] == "a.png"
    assert first["target"] == "out/a_x2.png"
    assert (first["size"], first["made"], first["scale"]) == ([20, 14], [40, 28], 2)
    assert first["macs"] == 13_520 * 20 * 14
    assert {"model", "backend", "device", "threads", "tiles", "frames", "budget", "seconds", "notices"} <= set(first)
    assert told["seconds"] >= first["seconds"] > 0


def test_existing_files_are_replaced_only_when_told_to(run: Run) -> None:
    picture("a.png")
    Path("b.png").write_text("precious")
    assert run("a.png", "-o", "b.png")[0] == 1
    assert Path("b.png").read_text() == "precious"
    assert run("a.png", "-o", "b.png", "--overwrite")[0] == 0
    assert size("b.png") == (40, 28)
    assert run("a.png", "-o", "a.png", "--overwrite")[0] == 0  # onto itself
    assert size("a.png") == (40, 28)


def test_one_bad_file_among_several_does_not_stop_the_others(run: Run) -> None:
    picture("a.png")
    Path("b.png").write_bytes(picture("whole.png", 90, 90).read_bytes()[:9000])
    picture("c.png")
    code, out, err = run("a.png", "b.png", "c.png", "-o", "out", "--json")
    told = json.loads(out)
    assert code == 1
    assert told["failed"] == 1
    assert [set(r) == {"source", "error"} for r in told["results"]] == [False, True, False]
    assert "truncated PNG" in told["results"][1]["error"]
    assert len(err.splitlines()) == 1
    assert {p.name for p in Path("out").iterdir()} == {"a_x2.png", "c_x2.png"}


# -- what it refuses


def huge_png() -> bytes:
    """A PNG of 200 bytes that declares 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(50))) + chunk(b"IEND", b"")
    )


def prepare() -> None:
    """The files that the table below names."""
    picture("good.png")
    Path("empty").mkdir()
    Path("empty/notes.txt").write_text("no pictures here")
    Path("text.jpg").write_text("a shopping list: milk, bread\n" * 9)
    whole = picture("whole.jpg", 200, 200).read_bytes()
    Path("cut.jpg").write_bytes(whole[: len(whole) // 2])
    Path("cut.png").write_bytes(picture("whole.png", 200, 200).read_bytes()[:50_000])
    Path("zero.png").write_bytes(b"")
    Path("huge.png").write_bytes(huge_png())
    Path("exists.png").write_text("precious")
    Path("block").write_text("a file where a folder should be")
    picture("alpha.png", mode="RGBA")
    save(create("regnetx_200mf", weights=None), Path("classifier.safetensors"))
    Path("weights.safetensors").write_bytes(b"\xff" * 64)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ("none.jpg", 1, "cannot read none.jpg: no such file"),
        ("none*.jpg", 1, "no pictures or videos in what matches none*.jpg"),
        ("empty", 1, "no pictures or videos in the folder empty"),
        ("text.jpg", 1, "it holds text"),
        ("cut.jpg", 1, "truncated JPEG"),
        ("cut.png", 1, "truncated PNG"),
        ("zero.png", 1, "0 bytes"),
        ("huge.png", 1, "declares 60000 x 60000 px"),
        ("good.png -o exists.png", 1, "it exists"),
        ("good.png -o none/out.png", 1, "there is no folder none"),
        ("good.png -o block/out/", 1, "cannot create the folder block/out"),
        ("cut.png -o fresh/folder/", 1, "truncated PNG"),
        ("good.png -o out.xyz", 2, "cannot tell the format"),
        ("good.png --format bmp", 2, "no output format named 'bmp'"),
        ("alpha.png -o out.jpg", 1, "no alpha"),
        ("good.png --model sesr_m55", 2, "the nearest are sesr_m5"),
        ("good.png --model sesr_m5 --scale 7", 2, "sesr_m5 has no x7"),
        ("good.png --scale 9", 2, "2, 3 or 4, not 9"),
        ("good.png --scale two", 2, "--scale"),
        ("good.png --budget 0", 2, "(0, 1]"),
        ("good.png --budget 1.01", 2, "(0, 1]"),
        ("good.png --budget nan", 2, "(0, 1]"),
        ("good.png --model sesr_m5 --budget 0.5", 2, "no dial"),
        ("good.png --model classifier.safetensors", 1, "a network for classification: it cannot enlarge"),
        ("good.png --model weights.safetensors", 1, "weights.safetensors is not a safetensors file"),
        ("good.png --model none.pth", 1, "no file of weights at none.pth"),
        ("good.png --backend magic", 2, "no backend named 'magic'"),
        ("good.png --device nowhere", 2, "no device named 'nowhere'"),
        ("good.png --max-memory much", 2, "'much' is no amount of memory"),
        ("good.png --max-memory 1MB", 2, "needs --max-memory"),
        ("good.png --quality 101", 2, "--quality lies between"),
        ("good.png --threads -3", 2, "threads"),
        ("good.png whole.png -o out.png", 2, "2 pictures cannot go into the one file out.png"),
        ("whole.jpg whole.png --format png", 2, "would both be written to whole_x2.png"),
        ("good.png --colour", 2, "--colour"),
        ("", 2, "IN..."),
    ],
)
def test_bad_input_gives_one_line_and_writes_nothing(run: Run, arguments: str, code: int, says: str) -> None:
    prepare()
    before = files()
    got, out, err = run(*arguments.split())
    assert says in err
    assert (got, out) == (code, "")
    assert len(err.splitlines()) == 1
    assert err.startswith("saccade: ")
    assert "Traceback" not in err
    assert files() == before
    assert Path("exists.png").read_text() == "precious"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_said(run: Run) -> None:
    picture("a.png")
    Path("locked").mkdir(mode=0o500)
    code, _, err = run("a.png", "-o", "locked/out.png")
    assert code == 1
    assert "permission denied" in err


def test_names_with_odd_characters_stay_one_line(run: Run) -> None:
    code, _, err = run("two\nlines.jpg")
    assert (code, len(err.splitlines())) == (1, 1)
    picture("[x2,Q=5] né.png")
    assert run("[x2,Q=5] né.png")[0] == 0
    assert size("[x2,Q=5] né_x2.png") == (40, 28)


def test_what_nobody_foresaw_is_one_line_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("the moon is full")

    picture("a.png")
    monkeypatch.setattr("saccade.restoration.upscale.Upscaler", fail)
    code, _, err = run("a.png")
    assert code == 1
    assert err.startswith("saccade: unexpected RuntimeError: the moon is full")
    with pytest.raises(RuntimeError):
        main(["--debug", "upscale", "a.png"])


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 PB")])
def test_memory_that_ran_out_is_called_that(run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    picture("a.png")
    monkeypatch.setattr("saccade.restoration.upscale.Upscaler", fail)
    code, _, err = run("a.png")
    assert code == 1
    assert err.startswith("saccade: there is not the memory for that (")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "number"), [("1GB", 1 << 30), ("1.5 GiB", 3 << 29), ("800MB", 800 << 20), ("7k", 7168), ("12", 12)]
)
def test_amounts_of_memory_are_read(text: str, number: int) -> None:
    assert parse_bytes(text) == number
    for bad in (f"-{text}", f"{text}x", "", "GB", "0", "1e3", "nan"):
        with pytest.raises(UsageError):
            parse_bytes(bad)


# -- as a process

CHILD = """
    import resource, sys
    from pathlib import Path
    from saccade.cli import main
    try:
        main(sys.argv[1:])
    finally:
        # the child's own peak: what a parent had before the fork counts in ru_maxrss
        peak = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
        print(int(peak.split()[1]) << 10, "torch" in sys.modules, "PIL" in sys.modules, file=sys.stderr)
"""


def child(*arguments: str | Path, timeout: float = 280, **options: object) -> tuple[int, str, int, bool]:
    """Run the command in a process of its own: (exit code, stderr but its last line, peak bytes, torch imported)."""
    command = [sys.executable, "-c", textwrap.dedent(CHILD), "upscale", *map(str, arguments)]
    made = subprocess.run(command, capture_output=True, text=True, timeout=timeout, **options)  # type: ignore[call-overload]
    *said, last = made.stderr.splitlines()
    peak, torch, _ = last.split()
    return made.returncode, "\n".join(said), int(peak), torch == "True"


linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")


@linux
def test_torch_is_not_imported_where_openvino_serves(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    code, err, peak, torch = child(picture(tmp_path / "a.jpg", 300, 200), "--max-memory", "520MB")
    assert (code, err, torch) == (0, "", False)
    assert peak < 520 << 20


@linux
def test_an_absurd_size_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    (tmp_path / "huge.png").write_bytes(huge_png())
    code, err, peak, _ = child(tmp_path / "huge.png")
    assert code == 1
    assert "which cannot fit in its" in err
    assert peak < 300 << 20


def test_a_full_disc_leaves_nothing_behind(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 300, 300)

    def small_files() -> None:
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    code, err, *_ = child(tmp_path / "a.png", preexec_fn=small_files)
    assert code == 1
    assert "cannot write" in err
    assert files(tmp_path) == {"a.png"}


def generated(path: Path, width: int, height: int) -> Path:
    """A picture of any size, written a strip at a time: slopes, stripes and a little noise."""
    from saccade.io import create_picture

    noise = np.random.default_rng(0).integers(0, 24, (64, width, 3), dtype=np.uint8)
    across = (np.arange(width) * 200 // width).astype(np.uint8)[None, :, None]
    with create_picture(path, width, height, quality=90) as writer:
        for top in range(0, height, 64):
            rows = np.arange(top, min(top + 64, height))[:, None, None]
            writer.write_rows((across + (rows // 16 % 2 * 30).astype(np.uint8) + noise[: len(rows)]).astype(np.uint8))
    return path


@linux
def test_memory_stays_within_its_bound_and_does_not_grow_with_the_picture(tmp_path: Path) -> None:
    """4 and 16 megapixels: held whole, in and out would be 180 MB apart."""
    pytest.importorskip("openvino")
    peaks = []
    for height in (1000, 4000):
        source = generated(tmp_path / f"{height}.jpg", 4000, height)
        code, err, peak, _ = child(source, "-o", tmp_path / f"{height}x2.jpg", "--max-memory", "540MB")
        assert (code, err) == (0, "")
        assert size(tmp_path / f"{height}x2.jpg") == (8000, 2 * height)
        assert peak < 540 << 20
        peaks.append(peak)
    assert peaks[1] - peaks[0] < 60 << 20


@linux
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_300_megapixels_stay_under_one_and_a_half_gigabytes(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    source = generated(tmp_path / "a.jpg", 20_000, 15_000)
    code, err, peak, _ = child(source, "-o", tmp_path / "b.jpg", timeout=1700)
    assert (code, err) == (0, "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        assert size(tmp_path / "b.jpg") == (40_000, 30_000)
    print(f"peak {peak / 1e6:.0f} MB")
    assert peak < 1 << 30  # the default of --max-memory
