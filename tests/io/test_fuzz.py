"""Mangled files: what comes out is a picture of the declared shape or a SaccadeError, and nothing half-written."""

from __future__ import annotations

import functools
import io
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from saccade.errors import SaccadeError
from saccade.io import create_picture, open_picture, read_picture

KINDS = ("jpeg", "progressive", "cmyk", "png", "palette", "grey16", "webp", "lossless", "tiff", "deflate", "gif")


@functools.cache
def sample(kind: str) -> bytes:
    """A small valid file of each kind, with EXIF where the format has it."""
    y, x = np.mgrid[:48, :64]
    picture = Image.fromarray(np.stack([x * 4 % 256, y * 5 % 256, (x * y) % 256], -1).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "ACME"
    out = io.BytesIO()
    match kind:
        case "jpeg":
            picture.save(out, "JPEG", exif=exif)
        case "progressive":
            picture.save(out, "JPEG", progressive=True, exif=exif)
        case "cmyk":
            picture.convert("CMYK").save(out, "JPEG")
        case "png":
            picture.convert("RGBA").save(out, "PNG", exif=exif)
        case "palette":
            picture.convert("P").save(out, "PNG", transparency=3)
        case "grey16":
            Image.fromarray((x * 997 % 65536).astype(np.uint16)).save(out, "PNG")
        case "webp":
            picture.save(out, "WEBP", exif=exif)
        case "lossless":
            picture.save(out, "WEBP", lossless=True)
        case "tiff":
            picture.save(out, "TIFF")
        case "deflate":
            picture.save(out, "TIFF", compression="tiff_adobe_deflate")
        case "gif":
            picture.save(out, "GIF", save_all=True, append_images=[picture.rotate(90)])
    return out.getvalue()


@st.composite
def mangled(draw: st.DrawFn) -> bytes:
    """A valid file with bytes changed (most often near the head, where the structure is), cut, spliced or grown."""
    data = bytearray(sample(draw(st.sampled_from(KINDS))))
    for _ in range(draw(st.integers(1, 4))):
        if not data:
            break
        last = min(len(data) - 1, draw(st.sampled_from([40, 400, 10**9])))
        place = draw(st.integers(0, last))
        match draw(st.sampled_from(["set", "set", "set", "cut", "drop", "splice", "grow", "word"])):
            case "set":
                data[place] = draw(st.integers(0, 255))
            case "cut":
                del data[place:]
            case "drop":
                del data[place : place + draw(st.integers(1, 64))]
            case "splice":
                other = sample(draw(st.sampled_from(KINDS)))
                start = draw(st.integers(0, len(other) - 1))
                data[place : place + 32] = other[start : start + 32]
            case "grow":
                data[place:place] = draw(st.binary(min_size=1, max_size=32))
            case "word":
                data[place : place + 4] = draw(st.sampled_from([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"]))
    return bytes(data)


def copy_picture(source: Path, target: Path) -> None:
    """Strip-wise through reader and writer, as the command line does it."""
    with (
        open_picture(source, max_pixels=4_000_000) as reader,
        create_picture(
            target,
            reader.width,
            reader.height,
            bands=reader.bands,
            has_alpha=reader.has_alpha,
            dtype=reader.dtype,
            like=reader,
        ) as writer,
    ):
        for colour, alpha in reader.strips(20):
            writer.write_rows(colour, alpha)


@pytest.mark.parametrize("kind", KINDS)
def test_the_samples_themselves_are_read(tmp_path: Path, kind: str) -> None:
    (tmp_path / "in").write_bytes(sample(kind))
    copy_picture(tmp_path / "in", tmp_path / "out.png")
    first, alpha, info = read_picture(tmp_path / "in")
    again, alpha_again, _ = read_picture(tmp_path / "out.png")
    assert {info.width, info.height} == {48, 64}
    np.testing.assert_array_equal(first, again)
    assert (alpha is None) == (alpha_again is None)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(mangled())
def test_mangled_files_give_a_whole_picture_or_a_clear_error(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.jpg", Path(folder) / "out.png"
        source.write_bytes(data)
        refusal = None
        try:
            copy_picture(source, target)
        except SaccadeError as error:
            refusal = str(error)
        if refusal is not None:
            assert "\n" not in refusal
            assert str(source) in refusal
            assert [p.name for p in Path(folder).iterdir()] == ["in.jpg"]
        else:
            colour, alpha, info = read_picture(target)
            assert colour.shape == (info.height, info.width, info.bands)
            assert (alpha is not None) == info.has_alpha
            assert sorted(p.name for p in Path(folder).iterdir()) == ["in.jpg", "out.png"]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([b"", *(sample(kind)[:12] for kind in KINDS)]), st.binary(max_size=300))
def test_any_bytes_behind_a_known_start_are_refused_or_read(start: bytes, rest: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in"
        source.write_bytes(start + rest)
        refusal = ""
        try:
            colour, _, info = read_picture(source, max_pixels=4_000_000)
            assert colour.shape == (info.height, info.width, info.bands)
        except SaccadeError as error:
            refusal = str(error)
        assert "\n" not in refusal
