"""RAW files: what `write_dng` writes LibRaw reads back to the bit; what is no sound RAW is refused in one line."""

from __future__ import annotations

import contextlib
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saccade.errors import InputError, SaccadeError, UnavailableError, UsageError
from saccade.io.raw import RAW_SUFFIXES, find_raws, read_raw, write_dng

rawpy = pytest.importorskip("rawpy", reason="the extra raw is not installed")

MATRIX = np.array([[0.62, -0.1, -0.05], [-0.5, 1.3, 0.2], [-0.1, 0.2, 0.6]])


def plane(height: int = 40, width: int = 60, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(64, 4000, (height, width)).astype(np.uint16)


def dng(path: Path, pixels: np.ndarray | None = None, **options: object) -> Path:
    given = {"black": 64, "white": 4095, "xyz_to_camera": MATRIX, "neutral": (0.5, 1.0, 0.625), **options}
    write_dng(path, plane() if pixels is None else pixels, **given)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("pattern", ["rggb", "bggr", "grbg", "gbrg"])
@pytest.mark.parametrize("shape", [(40, 60), (22, 24), (302, 206)])
def test_libraw_reads_back_what_was_written(tmp_path: Path, pattern: str, shape: tuple[int, int]) -> None:
    pixels = plane(*shape)
    raw = read_raw(dng(tmp_path / "a.dng", pixels, pattern=pattern))
    np.testing.assert_array_equal(raw.plane, pixels)
    assert (raw.pattern, raw.black, raw.white, raw.flip) == (pattern, (64.0,) * 4, 4095.0, 0)
    assert raw.gains == pytest.approx((2.0, 1.0, 1.6), rel=1e-5)
    assert raw.camera_to_rgb is not None
    np.testing.assert_allclose(raw.camera_to_rgb.sum(1), 1, atol=1e-5)


def test_the_colour_matrix_arrives_as_the_inverse_of_the_one_written(tmp_path: Path) -> None:
    """XYZ to camera and sRGB to XYZ, rows normalised, inverted: what DNG readers make of ColorMatrix1."""
    srgb_to_xyz = np.array([[0.4125, 0.3576, 0.1804], [0.2127, 0.7152, 0.0722], [0.0193, 0.1192, 0.9503]])
    raw = read_raw(dng(tmp_path / "a.dng"))
    to_camera = MATRIX @ srgb_to_xyz
    expected = np.linalg.inv(to_camera / to_camera.sum(1, keepdims=True))
    assert raw.camera_to_rgb is not None
    np.testing.assert_allclose(raw.camera_to_rgb, expected, atol=2e-3)


def test_cells_are_packed_and_normalised(tmp_path: Path) -> None:
    raw = read_raw(dng(tmp_path / "a.dng"))
    cells, pixels = raw.packed(), raw.plane
    assert cells.shape == (4, 20, 30)
    assert cells.dtype == np.float32
    np.testing.assert_allclose(cells[1], (pixels[0::2, 1::2] - 64) / np.float32(4031), atol=1e-6)
    np.testing.assert_array_equal(raw.packed(3, 2), cells[:, 3:5])


def test_values_below_black_are_negative_and_those_above_white_are_one(tmp_path: Path) -> None:
    pixels = plane()
    pixels[0, 0], pixels[1, 1] = 10, 4095
    raw = read_raw(dng(tmp_path / "a.dng", pixels, white=3000))
    assert raw.packed()[0, 0, 0] < 0
    assert raw.packed()[3, 0, 0] == 1


def test_a_dng_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = dng(tmp_path / "a.dng")
    before = path.read_bytes()
    with pytest.raises(InputError, match="it exists"):
        dng(path)
    assert path.read_bytes() == before
    dng(path, plane(24, 24), overwrite=True)
    assert path.stat().st_size < len(before)
    assert [p.name for p in tmp_path.iterdir()] == ["a.dng"]
    with pytest.raises(InputError, match="no folder"):
        dng(tmp_path / "none" / "a.dng")


@pytest.mark.parametrize(
    "wrong",
    [
        {"pixels": plane(41, 60)},
        {"pixels": plane().astype(np.int32)},
        {"pixels": plane()[None]},
        {"pattern": "rgb?"},
        {"black": 5000},
        {"white": 70000},
        {"neutral": (0, 1, 1)},
        {"xyz_to_camera": np.eye(4)},
        {"xyz_to_camera": np.full((3, 3), np.nan)},
    ],
)
def test_what_no_dng_can_hold_is_refused(tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(UsageError):
        dng(tmp_path / "a.dng", **wrong)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"Dear diary, today I took a photograph.\n", "it holds text"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(90), "holds a JPEG"),
        (b"\x89PNG\r\n\x1a\n" + bytes(90), "holds a PNG"),
        (bytes(range(128, 256)), "no RAW file|ends early"),
        (b"II*\0\x08\0\0\0\0\0" + bytes(400), "no RAW file|ends early|damaged"),
    ],
)
def test_what_is_no_raw_is_refused_in_one_line(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "a.nef"
    path.write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        read_raw(path)
    assert "\n" not in str(caught.value)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_raw(tmp_path / "none.dng")
    with pytest.raises(InputError, match="directory"):
        read_raw(tmp_path)


@pytest.mark.parametrize("keep", [0.001, 0.05, 0.3, 0.9, 0.999])
def test_truncated_files_are_refused(tmp_path: Path, keep: float) -> None:
    path = dng(tmp_path / "a.dng", plane(200, 300))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(InputError):
        read_raw(path)


def test_more_pixels_than_allowed_or_than_the_file_can_hold_are_refused(tmp_path: Path) -> None:
    path = dng(tmp_path / "a.dng")
    with pytest.raises(InputError, match="more than the limit"):
        read_raw(path, max_pixels=1000)
    data = bytearray(path.read_bytes())
    for tag in (256, 257):  # width and height of 50,000 each
        at = data.index(struct.pack("<HHI", tag, 4, 1)) + 8
        data[at : at + 4] = struct.pack("<I", 50_000)
    path.write_bytes(data)
    with pytest.raises(InputError):
        read_raw(path, max_pixels=10**10)


def test_a_colour_filter_array_without_a_name_is_refused(tmp_path: Path) -> None:
    path = dng(tmp_path / "a.dng")
    data = bytearray(path.read_bytes())
    at = data.index(struct.pack("<HHI", 33422, 1, 4))
    for place, value, said in (
        (at + 1, 98, "not known"),
        (at + 9, 98, "its cells are rrgb"),
    ):  # its tag, its second cell
        path.write_bytes(data[:place] + bytes([value]) + data[place + 1 :])
        with pytest.raises(InputError, match=said) as caught:
            read_raw(path)
        assert str(caught.value).count("cannot read") == 1


@given(at=st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), min_size=1, max_size=6))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_files_end_in_an_error_or_in_pixels_never_in_a_crash(tmp_path: Path, at: list[tuple[int, int]]) -> None:
    path = dng(tmp_path / "a.dng", overwrite=True)
    data = bytearray(path.read_bytes())
    for place, value in at:
        data[place] = value
    path.write_bytes(data)
    raw = None
    with contextlib.suppress(SaccadeError):
        raw = read_raw(path, max_pixels=10_000_000)
    assert raw is None or (raw.plane.ndim == 2 and np.isfinite(raw.packed()).all())


def test_folders_give_their_raw_files(tmp_path: Path) -> None:
    dng(tmp_path / "b.dng")
    dng(tmp_path / "a.DNG")
    (tmp_path / "c.txt").write_text("no")
    assert [p.name for p in find_raws([tmp_path])] == ["a.DNG", "b.dng"]
    assert [p.name for p in find_raws([tmp_path / "*.dng", tmp_path / "b.dng"])] == ["b.dng"]
    (tmp_path / "empty").mkdir()
    for wrong in ("empty", "none", "*.nef"):
        with pytest.raises(InputError):
            find_raws([tmp_path / wrong])
    assert {".dng", ".nef", ".cr2", ".arw"} <= RAW_SUFFIXES


def test_without_the_extra_the_install_line_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = dng(tmp_path / "a.dng")
    monkeypatch.setitem(sys.modules, "rawpy", None)
    with pytest.raises(UnavailableError, match=r"saccade\[raw\]"):
        read_raw(path)
