import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from saccade.checkpoint import save
from saccade.errors import CheckpointError, InputError, SaccadeError, UsageError
from saccade.io import open_picture, read_picture, save_picture
from saccade.io.png import add_text, read_text
from saccade.registry import create
from saccade.restoration.iarn import IARN
from saccade.restoration.rescale import KEYWORD, Enlarger, Note, Shrinker, enlarge, parse_note, shrink
from saccade.runtime.stream import QUEUED, RESIDENT


@pytest.fixture(scope="module")
def model() -> IARN:
    made = create("iarn", weights=None, opening=(4, 1), hider=(6, 1), teller=(6, 1))
    chance = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=chance) / max(1, p[0].numel()) ** 0.5)
    assert isinstance(made, IARN)
    return made


def scene(height: int, width: int, bands: int = 3, dtype: type = np.uint8) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / (3 + b)) * np.cos(columns / (5 - b)) for b in range(bands)]
    full = np.iinfo(dtype).max
    return np.rint((np.stack(waves, 2) * 0.4 + 0.5) * full).astype(dtype)


def stored(path: Path, *args: object, alpha: bool = False, **kwargs: object) -> Path:
    colour = scene(*args, **kwargs)  # type: ignore[arg-type]
    save_picture(path, colour, colour[..., 0] if alpha else None)
    return path


@pytest.mark.parametrize("size", [(40, 31), (79, 53), (20, 14), (33, 53)])
def test_a_file_comes_back_at_its_size_without_being_told(size: tuple[int, int], model: IARN, tmp_path: Path) -> None:
    source = stored(tmp_path / "photo.png", 53, 80)
    report = shrink(source, tmp_path / "small.png", size=size, model=model)
    assert (report.size, report.made) == ((80, 53), size)
    with open_picture(tmp_path / "small.png") as small:
        assert (small.width, small.height, small.bands, small.dtype) == (*size, 3, "uint8")
    back = enlarge(tmp_path / "small.png", tmp_path / "large.png", model=model)
    assert back.made == (80, 53)
    assert back.notices == []
    x = torch.from_numpy(scene(53, 80)).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        wanted = model.enlarge(model.shrink(x, size[::-1]), (53, 80))
    found = read_picture(tmp_path / "large.png")[0]
    assert np.abs(found - wanted[0].clamp(0, 1).permute(1, 2, 0).numpy() * 255).max() < 0.51


def test_scale_gives_the_nearest_size_and_may_differ_by_axis(model: IARN) -> None:
    assert Shrinker(model, scale=2.5).small_size(1000, 333) == (400, 133)
    assert Shrinker(model, scale=(1.6, 2.9)).small_size(100, 100) == (62, 34)
    assert Shrinker(model, scale=3.0).small_size(2, 9) == (1, 3)


@pytest.mark.parametrize("tile", [16, 21])
def test_tiles_equal_the_whole_picture(tile: int, model: IARN) -> None:
    colour, alpha = scene(150, 131), scene(150, 131, 1)[..., 0]
    whole, clear = Shrinker(model, scale=(1.7, 2.3)).array(colour, alpha)
    parts, part_clear = Shrinker(model, scale=(1.7, 2.3), tile=tile).array(colour, alpha)
    assert (whole != parts).mean() < 1e-3, "rounding to 8 bit may fall the other way, rarely"
    assert np.abs(whole.astype(int) - parts).max() <= 1
    assert np.array_equal(clear, part_clear)
    made = [Enlarger(model, size=(131, 150), tile=t).array(whole, clear) for t in (None, tile)]
    assert np.abs(made[0][0].astype(int) - made[1][0]).max() <= 1
    assert (made[0][0] != made[1][0]).mean() < 1e-3
    assert np.array_equal(made[0][1], made[1][1])


def test_grey_16_bit_and_alpha_come_back_as_they_were(model: IARN, tmp_path: Path) -> None:
    source = tmp_path / "grey.png"
    save_picture(source, scene(40, 50, 1, np.uint16), scene(40, 50, 1, np.uint16)[..., 0])
    report = shrink(source, tmp_path / "small.png", scale=1.7, model=model)
    assert any("grey" in n for n in report.notices)
    assert any("16 bits" in n for n in report.notices)
    with open_picture(tmp_path / "small.png") as small:
        assert (small.bands, small.dtype, small.has_alpha) == (3, "uint8", True)
    enlarge(tmp_path / "small.png", tmp_path / "large.png", model=model)
    colour, alpha, large = read_picture(tmp_path / "large.png")
    assert (large.bands, large.dtype, large.has_alpha) == (1, "uint16", True)
    assert alpha is not None
    assert colour.shape == (40, 50, 1)
    assert np.abs(alpha.astype(int) - scene(40, 50, 1, np.uint16)[..., 0]).mean() < 1500, "plain bicubic"


def test_odd_sizes_and_single_pixels_pass(model: IARN) -> None:
    for height, width in ((1, 2), (2, 1), (3, 7), (5, 5)):
        small, _ = Shrinker(model, size=(max(1, width // 2), max(1, height // 2))).array(scene(height, width))
        large, _ = Enlarger(model, size=(width, height)).array(small)
        assert large.shape == (height, width, 3)


@pytest.mark.parametrize("name", ["small.jpg", "small.webp", "small.avif", "small.tiff", "small"])
def test_shrink_refuses_what_would_destroy_the_detail(name: str, model: IARN, tmp_path: Path) -> None:
    source = stored(tmp_path / "photo.png", 20, 20)
    with pytest.raises(UsageError, match="PNG"):
        shrink(source, tmp_path / name, scale=2.0, model=model)
    with pytest.raises(UsageError, match="PNG"):
        Shrinker(model, scale=2.0).picture(source, tmp_path / "s.png", quality=90)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["photo.png"]


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({}, "--size"),
        ({"size": (3, 3), "scale": 2.0}, "--size"),
        ({"scale": 1.0}, "above 1"),
        ({"scale": 0.5}, "above 1"),
        ({"scale": float("nan")}, "above 1"),
        ({"scale": (2.0, 1.0)}, "above 1"),
        ({"size": (0, 3)}, "at least 1"),
        ({"size": (10.5, 3)}, "at least 1"),
        ({"size": "40x30"}, "at least 1"),
        ({"scale": "2"}, "above 1"),
    ],
)
def test_sizes_and_scales_that_do_not_shrink_are_refused(options: dict, what: str, model: IARN) -> None:
    with pytest.raises(UsageError, match=what):
        Shrinker(model, **options)


def test_a_target_that_is_not_smaller_is_refused_before_anything_is_written(model: IARN, tmp_path: Path) -> None:
    source = stored(tmp_path / "photo.png", 20, 30)
    for size in ((31, 10), (10, 21), (30, 20)):
        with pytest.raises(InputError, match="not smaller"):
            shrink(source, tmp_path / "s.png", size=size, model=model)
    assert not (tmp_path / "s.png").exists()


@pytest.mark.parametrize(
    ("colour", "alpha", "what"),
    [
        (scene(20, 24).astype(float), None, "uint8 or uint16"),
        (scene(20, 24)[..., 0], None, "1 or 3"),
        (scene(20, 24)[:0], None, "not empty"),
        (scene(20, 24), scene(5, 24)[..., 0], "does not go with"),
        (scene(20, 24), scene(20, 24)[..., 0].astype(float), "does not go with"),
    ],
)
def test_arrays_that_are_no_pictures_are_refused_both_ways(
    colour: np.ndarray, alpha: np.ndarray | None, what: str, model: IARN
) -> None:
    for call in (Shrinker(model, size=(9, 8)).array, Enlarger(model, size=(90, 80)).array):
        with pytest.raises(InputError, match=what):
            call(colour, alpha)


def test_other_depths_than_8_and_16_bits_are_refused(model: IARN) -> None:
    with pytest.raises(UsageError, match="8 or 16 bits"):
        Enlarger(model, size=(48, 40)).array(scene(20, 24), bits=12)


def test_factors_beyond_the_trained_ones_are_said(model: IARN, tmp_path: Path) -> None:
    report = shrink(stored(tmp_path / "p.png", 50, 50), tmp_path / "s.png", scale=5.0, model=model)
    assert any("trained up to 4" in n for n in report.notices)
    assert enlarge(tmp_path / "s.png", tmp_path / "l.png", model=model).made == (50, 50)


def test_nothing_is_overwritten_unasked(model: IARN, tmp_path: Path) -> None:
    source = stored(tmp_path / "p.png", 20, 20)
    shrink(source, tmp_path / "s.png", scale=2.0, model=model)
    before = (tmp_path / "s.png").read_bytes()
    with pytest.raises(InputError, match="overwrite"):
        shrink(source, tmp_path / "s.png", scale=3.0, model=model)
    assert (tmp_path / "s.png").read_bytes() == before
    shrink(source, tmp_path / "s.png", scale=3.0, model=model, overwrite=True)
    assert (tmp_path / "s.png").read_bytes() != before
    with pytest.raises(InputError, match="overwrite"):
        enlarge(tmp_path / "s.png", source, model=model)


def test_enlarge_says_when_the_small_picture_was_changed(model: IARN, tmp_path: Path) -> None:
    shrink(stored(tmp_path / "p.png", 40, 40), tmp_path / "s.png", scale=2.0, model=model)
    note = read_text(tmp_path / "s.png")[KEYWORD]
    colour = read_picture(tmp_path / "s.png")[0].copy()
    colour[3, 3] ^= 1
    save_picture(tmp_path / "t.png", colour)
    add_text(tmp_path / "t.png", {KEYWORD: note})
    notices = enlarge(tmp_path / "t.png", tmp_path / "l.png", model=model).notices
    assert any("not as shrink wrote it" in n for n in notices)


def test_enlarge_warns_of_lossy_files_and_needs_their_size(model: IARN, tmp_path: Path) -> None:
    save_picture(tmp_path / "s.jpg", scene(20, 24))
    with pytest.raises(InputError, match="--size"):
        enlarge(tmp_path / "s.jpg", tmp_path / "l.png", model=model)
    report = enlarge(tmp_path / "s.jpg", tmp_path / "l.png", size=(50, 41), model=model)
    assert any("JPEG" in n for n in report.notices)
    assert any("foreign" in n for n in report.notices)
    with pytest.raises(InputError, match="more than"):
        enlarge(tmp_path / "s.jpg", tmp_path / "m.png", size=(50, 19), model=model)


def test_another_size_than_the_notes_is_obeyed_and_said(model: IARN, tmp_path: Path) -> None:
    shrink(stored(tmp_path / "p.png", 40, 40), tmp_path / "s.png", scale=2.0, model=model)
    report = enlarge(tmp_path / "s.png", tmp_path / "l.png", size=(60, 50), model=model)
    assert report.made == (60, 50)
    assert any("was 40 x 40" in n for n in report.notices)


def test_other_weights_are_refused_by_name(model: IARN, tmp_path: Path) -> None:
    shrink(stored(tmp_path / "p.png", 40, 40), tmp_path / "s.png", scale=2.0, model=model)
    other = create("iarn", weights=None, opening=(4, 1), hider=(6, 1), teller=(6, 1))
    with pytest.raises(CheckpointError, match="with weights"):
        Enlarger(other).picture(tmp_path / "s.png", tmp_path / "l.png")
    save(model, tmp_path / "mine.safetensors")
    enlarge(tmp_path / "s.png", tmp_path / "l.png", model=tmp_path / "mine.safetensors")
    save(create("sesr_m3", weights=None), tmp_path / "sesr.safetensors")
    with pytest.raises(UsageError, match="arbitrary factors"):
        Enlarger(tmp_path / "sesr.safetensors")


def test_memory_is_kept_or_refused_with_what_is_needed(model: IARN, tmp_path: Path) -> None:
    source = stored(tmp_path / "p.png", 40, 40)
    with pytest.raises(UsageError, match="MB are needed"):
        Shrinker(model, scale=2.0, max_memory=64 << 20).picture(source, tmp_path / "s.png")
    assert not (tmp_path / "s.png").exists()
    tight = Shrinker(model, scale=2.0, max_memory=1 << 40)
    assert tight._tile((8000, 8000), (4000, 4000)) == 512
    need = tight._bytes(32, (8000, 8000), (4000, 4000))
    tight.max_memory = RESIDENT["torch"] + QUEUED + 3 * need // 2  # half as much again is kept free
    assert tight._tile((8000, 8000), (4000, 4000)) == 32


def test_profile_and_exif_travel_there_and_back(model: IARN, tmp_path: Path) -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(scene(40, 40)).save(tmp_path / "p.png", icc_profile=profile)
    shrink(tmp_path / "p.png", tmp_path / "s.png", scale=2.0, model=model)
    enlarge(tmp_path / "s.png", tmp_path / "l.png", model=model)
    for name in ("s.png", "l.png"):
        with open_picture(tmp_path / name) as made:
            assert made.icc == profile
    assert KEYWORD not in read_text(tmp_path / "l.png"), "the large picture is nobody's small one"


NOTE = Note("iarn", "0123456789ab", (80, 53), False, 8, 0xDEADBEEF)


def test_a_note_is_read_as_it_was_written() -> None:
    assert parse_note(NOTE.text()) == NOTE
    assert json.loads(NOTE.text())["format"] == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"size": [0, 5]},
        {"size": [5]},
        {"size": [5, 1 << 40]},
        {"size": "80x53"},
        {"size": [True, 5]},
        {"bits": 12},
        {"bits": True},
        {"grey": 1},
        {"model": "../../etc/passwd"},
        {"model": ["iarn"]},
        {"weights": "zz"},
        {"pixels": -1},
        {"pixels": "-1"},
        {"format": "1"},
        {"format": 0},
    ],
)
def test_damaged_notes_are_refused(changed: dict) -> None:
    with pytest.raises(InputError, match="damaged"):
        parse_note(json.dumps({**json.loads(NOTE.text()), **changed}))


def test_notes_of_a_later_format_say_so() -> None:
    with pytest.raises(InputError, match="later saccade"):
        parse_note(json.dumps({"format": 2}))


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(max_size=200), st.recursive(st.integers() | st.text() | st.none(), st.lists).map(json.dumps)))
def test_any_text_is_a_note_or_a_clear_error(text: str) -> None:
    with pytest.raises(SaccadeError):
        parse_note(text)


@settings(max_examples=200, deadline=None)
@given(place=st.integers(0, 130), value=st.characters(codec="latin-1"))
def test_a_note_with_one_wrong_character_is_sound_or_refused(place: int, value: str) -> None:
    text = NOTE.text()
    place %= len(text)
    try:
        note = parse_note(text[:place] + value + text[place + 1 :])
    except SaccadeError:
        return
    assert min(note.size) >= 1
    assert note.bits in (8, 16)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(codec="latin-1", exclude_characters="\0"), max_size=80))
def test_a_file_with_any_note_is_enlarged_or_refused(text: str, model: IARN, tmp_path: Path) -> None:
    save_picture(tmp_path / "s.png", scene(6, 6), overwrite=True)
    add_text(tmp_path / "s.png", {KEYWORD: text})
    with pytest.raises(InputError, match="note"):
        Enlarger(model).picture(tmp_path / "s.png", tmp_path / "l.png")
    assert not (tmp_path / "l.png").exists()
    report = Enlarger(model, size=(9, 8)).picture(tmp_path / "s.png", tmp_path / "l.png", overwrite=True)
    assert any("note" in n for n in report.notices)
    (tmp_path / "l.png").unlink()


def test_a_small_picture_without_its_note_is_not_left_behind(
    model: IARN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = stored(tmp_path / "photo.png", 53, 80)

    def full(path: Path, notes: dict[str, str]) -> None:
        raise InputError(f"cannot write {path}: no space left on device")

    monkeypatch.setattr("saccade.restoration.rescale.workers.add_text", full)
    with pytest.raises(InputError, match="no space left"):
        shrink(source, tmp_path / "small.png", scale=2.0, model=model)
    assert [p.name for p in tmp_path.iterdir()] == ["photo.png"]


def test_a_negative_number_of_threads_is_refused(model: IARN) -> None:
    with pytest.raises(UsageError, match="threads must not be negative, got -1"):
        Shrinker(model, scale=2.0, threads=-1)
