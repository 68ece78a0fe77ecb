from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from saccade.errors import InputError, UnavailableError, UsageError
from saccade.io import (
    create_picture,
    find_pictures,
    is_video,
    open_picture,
    read_picture,
    save_picture,
)
from saccade.io.feed import BrokenFeedError, RowFeed
from saccade.io.spool import Spool


def smooth(height: int, width: int, bands: int = 3, dtype: str = "uint8") -> np.ndarray:
    """A picture of slow waves, (height, width, bands): lossy formats keep it closely."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    waves = [0.5 + 0.25 * np.sin(x / (11 + b)) + 0.2 * np.cos(y / (17 - b)) for b in range(bands)]
    return np.rint(np.stack(waves, -1) * np.iinfo(dtype).max).astype(dtype)


def noise(height: int, width: int, bands: int = 3, dtype: str = "uint8", seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, np.iinfo(dtype).max, (height, width, bands), dtype, endpoint=True)


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# --- what goes in comes out


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("has_alpha", [False, True])
def test_lossless_formats_keep_every_sample(
    tmp_path: Path, suffix: str, bands: int, dtype: str, has_alpha: bool
) -> None:
    colour = noise(67, 45, bands, dtype)
    alpha = noise(67, 45, 1, dtype, seed=1)[..., 0] if has_alpha else None
    save_picture(tmp_path / f"p{suffix}", colour, alpha)
    got, got_alpha, info = read_picture(tmp_path / f"p{suffix}")
    assert (info.width, info.height, info.bands, info.has_alpha, info.dtype) == (45, 67, bands, has_alpha, dtype)
    np.testing.assert_array_equal(got, colour)
    if alpha is None:
        assert got_alpha is None
    else:  # colour under transparent pixels is kept too: nothing was multiplied
        np.testing.assert_array_equal(got_alpha, alpha)


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".avif"])
def test_lossy_formats_come_close(tmp_path: Path, suffix: str) -> None:
    colour = smooth(80, 120)
    save_picture(tmp_path / f"p{suffix}", colour, quality=95)
    got, alpha, info = read_picture(tmp_path / f"p{suffix}")
    assert alpha is None
    assert info.notices == []
    assert np.abs(got.astype(int) - colour).mean() < 1.5


@pytest.mark.parametrize("suffix", [".webp", ".avif"])
def test_lossless_compression_of_webp_and_avif_keeps_alpha(tmp_path: Path, suffix: str) -> None:
    colour, alpha = smooth(40, 56), noise(40, 56, 1)[..., 0] | 1
    save_picture(tmp_path / f"p{suffix}", colour, alpha, compression="lossless")
    got, got_alpha, _ = read_picture(tmp_path / f"p{suffix}")
    np.testing.assert_array_equal(got_alpha, alpha)
    assert np.abs(got.astype(int) - colour).max() <= (0 if suffix == ".webp" else 3)  # AVIF passes through YCbCr


def test_grey_jpeg_stays_grey(tmp_path: Path) -> None:
    save_picture(tmp_path / "grey.jpg", smooth(40, 60, 1))
    with Image.open(tmp_path / "grey.jpg") as pil:
        assert pil.mode == "L"
    assert read_picture(tmp_path / "grey.jpg")[0].shape == (40, 60, 1)


def test_two_dimensions_are_grey(tmp_path: Path) -> None:
    save_picture(tmp_path / "grey.png", noise(9, 7, 1)[..., 0])
    assert read_picture(tmp_path / "grey.png")[2].bands == 1


@pytest.mark.parametrize(("quality", "sampling"), [(92, 0), (80, 2)])
def test_jpeg_drops_chroma_only_at_lower_quality(tmp_path: Path, quality: int, sampling: int) -> None:
    from PIL import JpegImagePlugin

    save_picture(tmp_path / "p.jpg", smooth(64, 64), quality=quality)
    with Image.open(tmp_path / "p.jpg") as pil:
        assert JpegImagePlugin.get_sampling(pil) == sampling


def test_16_bits_into_jpeg_round_to_the_nearest_8_with_a_notice(tmp_path: Path) -> None:
    colour = np.full((16, 16, 3), 40_000, np.uint16)
    with create_picture(tmp_path / "p.jpg", 16, 16, dtype="uint16") as writer:
        writer.write_rows(colour)
    assert "8 of the 16 bits" in writer.notices[0]
    assert np.abs(read_picture(tmp_path / "p.jpg")[0].astype(int) - round(40_000 / 257)).max() <= 1


def test_jpeg_refuses_alpha_or_blends_it_onto_white(tmp_path: Path) -> None:
    colour, alpha = np.zeros((16, 16, 3), np.uint8), np.full((16, 16), 51, np.uint8)
    with pytest.raises(InputError, match="no alpha; use png"):
        save_picture(tmp_path / "p.jpg", colour, alpha)
    save_picture(tmp_path / "p.jpg", colour, alpha, flatten=True)
    assert np.abs(read_picture(tmp_path / "p.jpg")[0].astype(int) - 204).max() <= 1
    assert leftovers(tmp_path) == ["p.jpg"]


def test_one_pixel_makes_the_round_trip(tmp_path: Path) -> None:
    for suffix in (".png", ".jpg", ".tif", ".webp", ".avif"):
        save_picture(tmp_path / f"one{suffix}", np.full((1, 1, 3), 99, np.uint8))
        assert np.abs(read_picture(tmp_path / f"one{suffix}")[0].astype(int) - 99).max() <= 3


@settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.sampled_from([".png", ".tif"]),
    st.integers(1, 320),
    st.integers(1, 320),
)
def test_any_size_survives_any_cut_into_strips(
    height: int, width: int, suffix: str, rows_in: int, rows_out: int
) -> None:
    import tempfile

    colour = noise(height, width)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"p{suffix}"
        with create_picture(path, width, height) as writer:
            for top in range(0, height, rows_in):
                writer.write_rows(colour[top : top + rows_in])
        with open_picture(path) as reader:
            np.testing.assert_array_equal(np.concatenate([c for c, _ in reader.strips(rows_out)]), colour)


def test_rows_wider_than_the_queue_still_pass() -> None:
    feed = RowFeed(width=1000, height=64, channels=3, depth=8, limit=4000)
    pixels = noise(64, 1000)
    got = []

    def pull() -> None:
        got.append(np.frombuffer(feed.image().write_to_memory(), np.uint8).reshape(64, 1000, 3))

    thread = threading.Thread(target=pull)
    thread.start()
    feed.push(pixels)
    thread.join()
    np.testing.assert_array_equal(got[0], pixels)


def test_a_broken_feed_wakes_a_waiting_push() -> None:
    feed = RowFeed(width=10, height=100, channels=3, depth=8, limit=60)
    timer = threading.Timer(0.1, feed.break_off)
    timer.start()
    with pytest.raises(BrokenFeedError):
        feed.push(noise(100, 10))
    timer.join()


# --- reading in strips, regions, turned


def turned(stored: np.ndarray, orientation: int) -> np.ndarray:
    """EXIF 2.32, tag 274, by its own words: where row 0 and column 0 of the stored picture lie when seen upright."""
    return {
        1: stored,
        2: np.fliplr(stored),
        3: np.rot90(stored, 2),
        4: np.flipud(stored),
        5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1),
        7: np.rot90(stored, 2).transpose(1, 0, 2),
        8: np.rot90(stored, 1),
    }[orientation]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_to_strips_and_regions(tmp_path: Path, orientation: int) -> None:
    stored = noise(150, 290)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "p.png", exif=exif)
    upright = turned(stored, orientation)
    with open_picture(tmp_path / "p.png") as reader:
        assert (reader.height, reader.width) == upright.shape[:2]
        strips = np.concatenate([colour for colour, _ in reader.strips(64)])
        np.testing.assert_array_equal(strips, upright)
        for left, top, width, height in [(0, 0, 5, 7), (100, 20, 49, 129), (reader.width - 3, 11, 3, 100)]:
            region, _ = reader.read_region(left, top, width, height)
            np.testing.assert_array_equal(region, upright[top : top + height, left : left + width])
        save_picture(tmp_path / "out.jpg", upright, like=reader)
    with Image.open(tmp_path / "out.jpg") as out:
        assert out.getexif().get(0x0112, 1) == 1
        assert out.size == (upright.shape[1], upright.shape[0])


def test_pillow_agrees_on_every_orientation(tmp_path: Path) -> None:
    from PIL import ImageOps

    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(noise(13, 29)).save(tmp_path / "p.png", exif=exif)
        with Image.open(tmp_path / "p.png") as pil:
            np.testing.assert_array_equal(read_picture(tmp_path / "p.png")[0], np.asarray(ImageOps.exif_transpose(pil)))


def test_stepping_back_and_skipping_read_the_same_rows(tmp_path: Path) -> None:
    colour, alpha = noise(300, 50), noise(300, 50, 1)[..., 0]
    save_picture(tmp_path / "p.png", colour, alpha)
    with open_picture(tmp_path / "p.png") as reader:
        for top, height in [(0, 10), (100, 50), (150, 50), (120, 90), (0, 300), (299, 1)]:
            got, got_alpha = reader.read_rows(top, height)
            np.testing.assert_array_equal(got, colour[top : top + height])
            np.testing.assert_array_equal(got_alpha, alpha[top : top + height])


@pytest.mark.parametrize("box", [(-1, 0, 5, 5), (0, 0, 0, 5), (46, 0, 5, 5), (0, 46, 5, 5)])
def test_a_region_outside_is_refused(tmp_path: Path, box: tuple[int, int, int, int]) -> None:
    save_picture(tmp_path / "p.png", noise(50, 50))
    with open_picture(tmp_path / "p.png") as reader, pytest.raises(UsageError, match="50 x 50"):
        reader.read_region(*box)


def test_a_closed_reader_says_so_and_keeps_its_facts(tmp_path: Path) -> None:
    save_picture(tmp_path / "p.png", noise(50, 50))
    reader = open_picture(tmp_path / "p.png")
    reader.close()
    assert reader.width == 50
    with pytest.raises(UsageError, match="closed"):
        reader.read_rows(0, 1)


def test_reading_from_another_thread_than_the_opening_one(tmp_path: Path) -> None:
    colour = noise(300, 200)
    save_picture(tmp_path / "p.png", colour)
    strips: list[np.ndarray] = []
    with open_picture(tmp_path / "p.png") as reader:
        strips.append(reader.read_rows(0, 100)[0])
        thread = threading.Thread(target=lambda: strips.append(reader.read_rows(100, 200)[0]))
        thread.start()
        thread.join()
    np.testing.assert_array_equal(np.concatenate(strips), colour)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 300), st.integers(1, 300), st.data())
def test_a_spool_gives_back_any_rectangle(height: int, width: int, data: st.DataObject) -> None:
    pixels = noise(height, width, 2, "uint16")
    spool = Spool(height, width, 2, pixels.dtype, (pixels[y : y + 128] for y in range(0, height, 128)))
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    w, h = data.draw(st.integers(1, width - left)), data.draw(st.integers(1, height - top))
    np.testing.assert_array_equal(spool.read(left, top, w, h), pixels[top : top + h, left : left + w])
    spool.close()


def test_a_file_replaced_between_two_openings_is_read_anew(tmp_path: Path) -> None:
    for value in (10, 200):
        save_picture(tmp_path / "p.png", np.full((8, 8, 3), value, np.uint8), overwrite=True)
        assert read_picture(tmp_path / "p.png")[0].max() == value


# --- kinds of picture


@pytest.mark.parametrize(
    ("mode", "suffix", "bands"), [("1", "png", 1), ("1", "tif", 1), ("P", "png", 3), ("P", "tif", 3)]
)
def test_palettes_and_single_bits_are_expanded(tmp_path: Path, mode: str, suffix: str, bands: int) -> None:
    pil = Image.fromarray(smooth(33, 41)).convert(mode)
    pil.save(tmp_path / f"p.{suffix}")
    colour, alpha, info = read_picture(tmp_path / f"p.{suffix}")
    assert (info.bands, info.dtype, alpha) == (bands, "uint8", None)
    np.testing.assert_array_equal(colour, np.asarray(pil.convert("L" if bands == 1 else "RGB")).reshape(33, 41, bands))


def test_a_palette_with_transparency_has_alpha(tmp_path: Path) -> None:
    pil = Image.fromarray(np.eye(8, dtype=np.uint8), "P")
    pil.putpalette([255, 0, 0, 0, 255, 0])
    pil.save(tmp_path / "p.png", transparency=0)
    _, alpha, info = read_picture(tmp_path / "p.png")
    assert info.bands == 3
    np.testing.assert_array_equal(alpha, np.eye(8, dtype=np.uint8) * 255)


def test_cmyk_becomes_srgb_with_a_notice(tmp_path: Path) -> None:
    Image.new("CMYK", (20, 10), (0, 255, 255, 0)).save(tmp_path / "p.jpg", quality=95)
    colour, _, info = read_picture(tmp_path / "p.jpg")
    assert info.bands == 3
    assert "CMYK: converted to sRGB" in info.notices[0]
    assert colour[..., 0].min() > 180  # red
    assert colour[..., 1:].max() < 80
    assert info.icc is not None
    assert info.icc[16:20] == b"RGB "


def test_float_samples_become_16_bits_with_a_notice(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0.0, 0.5], [1.0, 7.0]], np.float32)).save(tmp_path / "p.tif")
    colour, _, info = read_picture(tmp_path / "p.tif")
    assert info.dtype == "uint16"
    assert "floating-point" in info.notices[0]
    np.testing.assert_array_equal(colour[..., 0], [[0, 32768], [65535, 65535]])


def test_the_first_frame_of_an_animation_is_read_with_a_notice(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (20, 10), c) for c in ("red", "green", "blue")]
    for name in ("p.gif", "p.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
        colour, _, info = read_picture(tmp_path / name)
        assert info.pages == 3
        assert "3 frames" in info.notices[0]
        assert colour.shape == (10, 20, 3)
        np.testing.assert_array_equal(colour[0, 0], [255, 0, 0])


@pytest.mark.parametrize("compression", [None, "deflate", "lzw", "none"])
def test_tiff_compressions_are_read_by_pillow(tmp_path: Path, compression: str | None) -> None:
    colour = noise(300, 300)
    save_picture(tmp_path / "p.tif", colour, compression=compression)
    with Image.open(tmp_path / "p.tif") as pil:
        np.testing.assert_array_equal(np.asarray(pil), colour)


# --- tags


@pytest.fixture
def tagged(tmp_path: Path) -> Path:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "ACME"
    details = exif.get_ifd(0x8769)
    details[0xA002], details[0xA003] = 80, 60
    details[0x9286] = b"ASCII\0\0\0hello"
    place = exif.get_ifd(0x8825)
    place[1], place[2] = "N", (51.0, 30.0, 0.0)
    Image.fromarray(smooth(60, 80)).save(
        tmp_path / "tagged.jpg",
        exif=exif,
        dpi=(300, 300),
        icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        xmp=b'<x:xmpmeta xmlns:x="adobe:ns:meta/"></x:xmpmeta>',
    )
    return tmp_path / "tagged.jpg"


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".avif"])
def test_profile_exif_and_xmp_reach_the_output(tmp_path: Path, tagged: Path, suffix: str) -> None:
    colour, _, info = read_picture(tagged)
    assert (info.width, info.height) == (60, 80)
    big = np.repeat(np.repeat(colour, 2, 0), 2, 1)
    save_picture(tmp_path / f"out{suffix}", big, like=info)
    with Image.open(tmp_path / f"out{suffix}") as out:
        exif = out.getexif()
        assert exif[0x010F] == "ACME"
        assert exif.get(0x0112, 1) == 1
        details = exif.get_ifd(0x8769)
        assert details[0x9286] == b"ASCII\0\0\0hello"
        assert (details.get(0xA002, 120), details.get(0xA003, 160)) == (120, 160)
        assert exif.get_ifd(0x8825)[2] == (51.0, 30.0, 0.0)
        assert out.info["icc_profile"] == info.icc
        assert b"xmpmeta" in bytes(out.info.get("xmp") or out.info["XML:com.adobe.xmp"].encode())
    if suffix in (".jpg", ".png"):
        again = read_picture(tmp_path / f"out{suffix}")[2]
        assert again.resolution[0] == pytest.approx(300 / 25.4, rel=0.01)


def test_tiff_carries_profile_and_xmp_and_says_that_exif_stays(tmp_path: Path, tagged: Path) -> None:
    colour, _, info = read_picture(tagged)
    with create_picture(tmp_path / "out.tif", 60, 80, like=info) as writer:
        writer.write_rows(colour)
    assert "EXIF is not carried to TIFF" in writer.notices[0]
    with Image.open(tmp_path / "out.tif") as out:
        assert out.info["icc_profile"] == info.icc
        assert b"xmpmeta" in out.tag_v2[700]


def test_an_rgb_profile_is_not_put_on_grey(tmp_path: Path, tagged: Path) -> None:
    info = open_picture(tagged)
    save_picture(tmp_path / "grey.png", noise(20, 20, 1), like=info)
    info.close()
    assert read_picture(tmp_path / "grey.png")[2].icc is None


# --- bad input


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_picture(path)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message or str(path) in message
    return message


def test_missing_folder_empty_and_text_are_each_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("dear diary\n")
    (tmp_path / "zip.png").write_bytes(b"PK\3\4" + bytes(range(200)))
    assert "no such file" in refusal(tmp_path / "missing.jpg")
    assert "is a directory" in refusal(tmp_path)
    assert "empty (0 bytes)" in refusal(tmp_path / "empty.jpg")
    assert "it holds text" in refusal(tmp_path / "text.jpg")
    assert "no picture format known" in refusal(tmp_path / "zip.png")


def test_svg_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "p.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>')
    assert "holds text" in refusal(tmp_path / "p.svg")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".gif", ".avif"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.97])
def test_truncated_files_tell_how_many_bytes_there_are(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"p{suffix}"
    if suffix == ".gif":
        Image.fromarray(noise(200, 300)).save(path)
    else:
        save_picture(path, noise(200, 300))
    data = path.read_bytes()[: int(path.stat().st_size * share)]
    path.write_bytes(data)
    message = refusal(path)
    assert "truncated" in message
    assert f"ends after {len(data):,}".replace(",", " ") in message or f"ends after {len(data)}" in message


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize(("share", "says"), [(0.5, "truncated"), (1, "damaged")])
def test_truncation_shows_even_where_another_thread_took_the_reason(
    tmp_path: Path, suffix: str, share: float, says: str
) -> None:
    path = tmp_path / f"p{suffix}"
    save_picture(path, noise(200, 300))
    with open_picture(path) as reader:
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
        reader._size = path.stat().st_size
        assert says in str(reader._failure(Exception("unable to fetch from region"), 16, 16))


def test_truncation_shows_while_streaming_and_estimates_the_whole(tmp_path: Path) -> None:
    path = tmp_path / "p.jpg"
    save_picture(path, noise(1000, 800))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    strips: list[np.ndarray] = []
    with open_picture(path) as reader, pytest.raises(InputError, match=r"of about (\d+) (\d+)") as caught:
        strips.extend(colour for colour, _ in reader.strips(50))
    assert 400 <= len(strips) * 50 < 550
    about = int(str(caught.value).split("of about ")[1].split(" bytes")[0].replace(" ", ""))
    assert about == pytest.approx(len(whole), rel=0.1)


def test_a_cut_progressive_jpeg_is_refused(tmp_path: Path) -> None:
    Image.fromarray(noise(100, 100)).save(tmp_path / "p.jpg", progressive=True)
    data = (tmp_path / "p.jpg").read_bytes()
    (tmp_path / "p.jpg").write_bytes(data[: len(data) // 2])
    assert "truncated JPEG" in refusal(tmp_path / "p.jpg")


def test_damage_inside_a_whole_png_is_called_damage(tmp_path: Path) -> None:
    save_picture(tmp_path / "p.png", noise(100, 100))
    data = bytearray((tmp_path / "p.png").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "p.png").write_bytes(data)
    assert "damaged" in refusal(tmp_path / "p.png")


def png_declaring(width: int, height: int) -> bytes:
    import struct
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + pixels + chunk(b"IEND", b"")


def test_absurd_sizes_are_refused_before_any_pixel(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png_declaring(90_000, 90_000))
    with pytest.raises(InputError, match="90000 x 90000 px, more than the limit of 4000 megapixels"):
        open_picture(tmp_path / "bomb.png")
    (tmp_path / "bomb.png").write_bytes(png_declaring(20_000, 20_000))
    with pytest.raises(InputError, match="cannot fit in its"):
        open_picture(tmp_path / "bomb.png")
    save_picture(tmp_path / "p.png", noise(10, 11))
    with pytest.raises(InputError, match="max_pixels"):
        open_picture(tmp_path / "p.png", max_pixels=100)


def test_nothing_is_printed_or_logged_to_the_terminal_by_bad_files(tmp_path: Path) -> None:
    save_picture(tmp_path / "p.jpg", noise(64, 64))
    data = (tmp_path / "p.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[:2000])
    (tmp_path / "junk.jpg").write_bytes(data[:700] + b"\xff\xd9\x00\x12" + data[700:])
    save_picture(tmp_path / "p.tif", noise(64, 64))
    (tmp_path / "odd.tif").write_bytes(
        (tmp_path / "p.tif").read_bytes().replace(b"\x01\x01\x03\x00", b"\x01\x01\xff\x00")
    )
    code = (
        "import sys\nfrom saccade.errors import SaccadeError\nfrom saccade.io import read_picture\n"
        "for name in sys.argv[1:]:\n    try: read_picture(name)\n    except SaccadeError: pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, tmp_path.iterdir())], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert logging.getLogger("pyvips").handlers  # what libvips warns of can still be listened to


# --- bad output


def test_an_existing_file_is_kept_unless_told(tmp_path: Path) -> None:
    save_picture(tmp_path / "p.png", np.zeros((4, 4, 3), np.uint8))
    before = (tmp_path / "p.png").read_bytes()
    with pytest.raises(InputError, match="it exists"):
        save_picture(tmp_path / "p.png", np.ones((4, 4, 3), np.uint8))
    assert (tmp_path / "p.png").read_bytes() == before
    save_picture(tmp_path / "p.png", np.ones((4, 4, 3), np.uint8), overwrite=True)
    assert (tmp_path / "p.png").read_bytes() != before
    assert leftovers(tmp_path) == ["p.png"]


def test_a_picture_can_replace_itself(tmp_path: Path) -> None:
    colour = noise(200, 100)
    save_picture(tmp_path / "p.png", colour)
    with (
        open_picture(tmp_path / "p.png") as reader,
        create_picture(tmp_path / "p.png", 100, 200, like=reader, overwrite=True) as writer,
    ):
        for strip, _ in reader.strips(30):
            writer.write_rows(255 - strip)
    np.testing.assert_array_equal(read_picture(tmp_path / "p.png")[0], 255 - colour)


def test_an_exception_leaves_nothing_behind(tmp_path: Path) -> None:
    def begin(name: str) -> None:
        with create_picture(tmp_path / name, 64, 64) as writer:
            writer.write_rows(noise(32, 64))
            raise RuntimeError("half way")

    for name in ("p.png", "p.jpg", "p.tif", "p.webp", "p.avif"):
        with pytest.raises(RuntimeError, match="half way"):
            begin(name)
        assert leftovers(tmp_path) == []


def test_a_forgotten_writer_cleans_up(tmp_path: Path) -> None:
    writer = create_picture(tmp_path / "p.png", 64, 64)
    writer.write_rows(noise(32, 64))
    assert len(leftovers(tmp_path)) == 1
    del writer
    assert leftovers(tmp_path) == []


def test_a_writer_left_open_at_exit_neither_hangs_nor_leaves_a_file(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np\nfrom saccade.io import create_picture\n"
        "w = create_picture(sys.argv[1], 500, 5000)\nw.write_rows(np.zeros((100, 500, 3), np.uint8))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "p.jpg")], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert leftovers(tmp_path) == []


def test_missing_rows_are_an_error_and_leave_nothing(tmp_path: Path) -> None:
    writer = create_picture(tmp_path / "p.png", 10, 10)
    writer.write_rows(noise(9, 10))
    with pytest.raises(UsageError, match="9 of 10 rows"):
        writer.close()
    writer.close()  # a second time does nothing
    with pytest.raises(UsageError, match="closed"):
        writer.write_rows(noise(1, 10))
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    "rows",
    [noise(2, 9), noise(2, 10, 1), noise(11, 10), noise(2, 10, 3, "uint16"), np.zeros((2, 10, 3), np.float32)],
)
def test_rows_of_another_kind_are_refused(tmp_path: Path, rows: np.ndarray) -> None:
    with (
        pytest.raises(UsageError, match=r"takes rows of \(h, 10, 3\) uint8"),
        create_picture(tmp_path / "p.png", 10, 10) as writer,
    ):
        writer.write_rows(rows)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "width", "height"), [("p.jpg", 65501, 10), ("p.webp", 10, 16384), ("p.avif", 16385, 10)]
)
def test_sides_beyond_the_format_are_refused_before_work(tmp_path: Path, name: str, width: int, height: int) -> None:
    with pytest.raises(InputError, match="px a side; use png or tiff"):
        create_picture(tmp_path / name, width, height)


@pytest.mark.parametrize(("name", "width"), [("p.jpg", 65500), ("p.webp", 16383), ("p.avif", 16384)])
def test_the_longest_side_of_a_format_works(tmp_path: Path, name: str, width: int) -> None:
    save_picture(tmp_path / name, smooth(16, width))
    assert read_picture(tmp_path / name)[2].width == width


def test_bad_places_and_names_are_refused(tmp_path: Path) -> None:
    for path, message in [
        (tmp_path / "none" / "p.png", "there is no folder"),
        (tmp_path, "is a directory"),
    ]:
        with pytest.raises(InputError, match=message):
            create_picture(path, 4, 4, format="png")
    for name in ("p", "p.xyz", "p.gif"):
        with pytest.raises(UsageError, match="cannot tell the format"):
            create_picture(tmp_path / name, 4, 4)
    with pytest.raises(UsageError, match="no output format named 'bmp'"):
        create_picture(tmp_path / "p.bmp", 4, 4, format="bmp")
    with pytest.raises(UsageError, match="outside 1 to 100"):
        create_picture(tmp_path / "p.jpg", 4, 4, quality=101)
    with pytest.raises(UsageError, match="PNG has no compression 'lzw'"):
        create_picture(tmp_path / "p.png", 4, 4, compression="lzw")
    assert leftovers(tmp_path) == []


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the superuser may write anywhere")
def test_an_unwritable_folder_is_refused_up_front(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(InputError, match="permission denied"):
            create_picture(tmp_path / "p.png", 4, 4)
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="needs a folder in which nothing can be made")
def test_a_folder_that_takes_no_files_is_refused_up_front() -> None:
    with pytest.raises(InputError, match=r"cannot write /proc/p\.png"):
        create_picture("/proc/p.png", 4, 4)


@pytest.mark.skipif(sys.platform != "linux", reason="file size limits as on Linux")
@pytest.mark.parametrize("name", ["p.png", "p.tif", "p.jpg"])
def test_a_full_disc_is_an_error_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    code = """if True:
        import resource, signal, sys
        import numpy as np
        from saccade.errors import InputError
        from saccade.io import create_picture
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        rows = np.random.default_rng(0).integers(0, 255, (100, 1000, 3), np.uint8)
        try:
            with create_picture(sys.argv[1], 1000, 3000) as writer:
                for _ in range(30):
                    writer.write_rows(rows)
        except InputError as error:
            print(error)
        """
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / name)], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("cannot write")
    assert leftovers(tmp_path) == []


def test_heic_is_written_or_its_lack_is_named(tmp_path: Path) -> None:
    refused: UnavailableError | None = None
    try:
        save_picture(tmp_path / "p.heic", smooth(32, 32))
    except UnavailableError as error:
        refused = error
    if refused is None:
        assert read_picture(tmp_path / "p.heic")[2].format == "heic"
    else:
        assert "no HEIC encoder" in str(refused)
        assert leftovers(tmp_path) == []


# --- memory


@pytest.mark.skipif(sys.platform == "win32", reason="needs the resource module")
@pytest.mark.parametrize(("orientation", "suffix"), [(1, ".jpg"), (1, ".tif"), (6, ".jpg")])
def test_memory_does_not_grow_with_the_picture(tmp_path: Path, orientation: int, suffix: str) -> None:
    """108 megapixels (324 MB decoded) in and out within 200 MB beyond what the imports take."""
    code = """if True:
        import resource, sys
        import numpy as np, pyvips
        from saccade.io import create_picture, open_picture
        source, target, orientation = sys.argv[1:]
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        start = peak()
        wave = np.arange(12000)
        with create_picture(source, 12000, 9000) as writer:
            for top in range(0, 9000, 100):
                y = np.arange(top, top + 100)[:, None]
                bands = (wave + y) % 256, (wave * 3 + y) // 64 % 256, (wave + 0 * y) // 50
                writer.write_rows(np.stack(bands, -1).astype(np.uint8))
        if orientation != "1":
            image = pyvips.Image.new_from_file(source, access="sequential").copy()
            image.set_type(pyvips.GValue.gint_type, "orientation", int(orientation))
            image.jpegsave(source + ".turned")
            source += ".turned"
        with open_picture(source) as reader:
            with create_picture(target, reader.width, reader.height, like=reader) as writer:
                for colour, alpha in reader.strips(128):
                    writer.write_rows(colour, alpha)
        print(reader.width, reader.height, peak() - start)
        """
    command = [
        sys.executable,
        "-c",
        code,
        str(tmp_path / f"in{suffix}"),
        str(tmp_path / f"out{suffix}"),
        str(orientation),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    width, height, megabytes = map(int, done.stdout.split())
    assert (width, height) == ((12000, 9000) if orientation == 1 else (9000, 12000))
    assert megabytes < 200


# --- finding


def test_folders_globs_and_files_in_natural_order(tmp_path: Path) -> None:
    for name in ("img10.png", "img2.PNG", "img1.jpg", "note.txt", ".hidden.png", "clip.mp4", "a[1].png"):
        (tmp_path / name).touch()
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "z.webp").touch()

    def names(*paths: Path, videos: bool = False) -> list[str]:
        return [p.name for p in find_pictures(paths, videos=videos)]

    assert names(tmp_path) == ["a[1].png", "img1.jpg", "img2.PNG", "img10.png"]
    assert names(tmp_path, videos=True) == ["a[1].png", "clip.mp4", "img1.jpg", "img2.PNG", "img10.png"]
    assert names(tmp_path / "img*") == ["img1.jpg", "img2.PNG", "img10.png"]
    assert names(tmp_path / "**" / "*.webp") == ["z.webp"]
    assert names(tmp_path / "a[1].png", tmp_path / "img10.png", tmp_path) == [
        "a[1].png", "img10.png", "img1.jpg", "img2.PNG",
    ]  # fmt: skip
    assert names(tmp_path / "note.txt") == ["note.txt"]  # named outright: opening it will tell
    assert is_video("CLIP.MP4")
    assert not is_video("p.png")
    for wrong, message in [
        (tmp_path / "none.png", "no such file or folder"),
        (tmp_path / "x*", "no pictures in what matches"),
        (tmp_path / "deep" / "..", None),
    ]:
        if message:
            with pytest.raises(InputError, match=message):
                find_pictures([wrong])
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError, match="no pictures in the folder"):
        find_pictures(tmp_path / "bare")


@pytest.mark.skipif(os.name != "posix", reason="names of files are Unicode there")
@pytest.mark.parametrize("stem", [b"\xff\xfe", "\U0001f441".encode() * 60], ids=["no UTF-8", "long in bytes"])
def test_any_name_that_the_disc_takes_is_read_and_written(tmp_path: Path, stem: bytes) -> None:
    path = tmp_path / os.fsdecode(stem + b".png")
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    save_picture(path, pixels)
    assert (read_picture(path)[0] == pixels).all()
    assert os.listdir(os.fsencode(tmp_path)) == [stem + b".png"]


def test_importing_io_loads_neither_torch_nor_av_nor_libvips() -> None:
    code = (
        "import sys, saccade.io\nassert not {'torch', 'av', 'pyvips', 'numpy'} & set(sys.modules)\n"
        "from saccade.io import open_picture\nassert not {'torch', 'av', 'pyvips'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
