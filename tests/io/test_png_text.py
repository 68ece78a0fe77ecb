import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from saccade.errors import InputError
from saccade.io.png import add_text, read_text


def png(path: Path) -> Path:
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(path)
    return path


def test_notes_are_read_back_here_and_by_others_and_pixels_stay(tmp_path: Path) -> None:
    path = png(tmp_path / "a.png")
    add_text(path, {"one": '{"a":1}', "two": "zwei \xfc"})
    assert read_text(path) == {"one": '{"a":1}', "two": "zwei \xfc"}
    with Image.open(path) as opened:
        assert opened.info["one"] == '{"a":1}'
        assert np.array_equal(np.asarray(opened), np.arange(48).reshape(4, 4, 3))
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"], "no temporary file stays"


def test_the_first_of_two_notes_with_one_name_counts(tmp_path: Path) -> None:
    path = png(tmp_path / "a.png")
    add_text(path, {"k": "old"})
    add_text(path, {"k": "new"})
    assert read_text(path) == {"k": "new"}


def test_other_files_have_no_notes_and_take_none(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"hello, no picture here")
    assert read_text(path) == {}
    with pytest.raises(InputError, match="no PNG"):
        add_text(path, {"k": "v"})
    with pytest.raises(InputError, match="no such file"):
        read_text(tmp_path / "none.png")


@pytest.mark.parametrize("keyword", ["", "x" * 80, " k", "k\0"])
def test_keywords_that_png_does_not_allow_are_refused(keyword: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keyword"):
        add_text(png(tmp_path / "a.png"), {keyword: "v"})


def test_notes_with_a_wrong_checksum_or_too_long_are_passed_over(tmp_path: Path) -> None:
    path = png(tmp_path / "a.png")
    add_text(path, {"k": "v"})
    data = bytearray(path.read_bytes())
    data[data.index(b"tEXt") + 6] ^= 1
    path.write_bytes(data)
    assert read_text(path) == {}
    long = b"tEXt" + b"k\0" + b"v" * (1 << 17)
    chunk = struct.pack(">I", len(long) - 4) + long + struct.pack(">I", zlib.crc32(long))
    whole = png(path).read_bytes()
    path.write_bytes(whole[:33] + chunk + whole[33:])
    assert read_text(path) == {}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 200), place=st.integers(8, 199), value=st.integers(0, 255), tail=st.binary(max_size=40))
def test_damaged_files_give_notes_or_a_clear_error(
    tmp_path: Path, cut: int, place: int, value: int, tail: bytes
) -> None:
    path = png(tmp_path / "a.png")
    add_text(path, {"k": "some text"})
    data = bytearray(path.read_bytes())
    if place < len(data):
        data[place] = value
    path.write_bytes(bytes(data[:cut]) + tail)
    if path.stat().st_size == 0:
        with pytest.raises(InputError, match="0 bytes"):
            read_text(path)
    else:
        assert all(isinstance(k, str) and isinstance(v, str) for k, v in read_text(path).items())
