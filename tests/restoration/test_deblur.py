"""Deblurring with a user's own PSFs: whole pictures, seams, kinds of numbers, the dial, files that are hostile."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.data.generated import dead_leaves
from saccade.errors import CheckpointError, InputError, SaccadeError, UsageError
from saccade.registry import create
from saccade.restoration.metalens_former import Deblurrer, blur, lens_psfs, psf2otf, wiener_field
from saccade.restoration.metalens_former.deblur import (
    _edges,
    _fast,
    _mirror,
    _share,
    _slice,
    deblur,
    psf_field,
    read_psf,
)


def light(picture: np.ndarray) -> np.ndarray:
    x = picture / 255
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def pixels(x: np.ndarray) -> np.ndarray:
    y = np.where(x <= 0.0031308, 12.92 * x, 1.055 * np.maximum(x, 1e-9) ** (1 / 2.4) - 0.055)
    return np.rint(255 * y.clip(0, 1)).astype(np.uint8)


def captured(scene: np.ndarray, psf: torch.Tensor, border: int = 32) -> np.ndarray:
    """What one PSF makes of a scene in sRGB bytes; the scene loses ``border`` pixels on each side."""
    x = torch.from_numpy(light(scene)).permute(2, 0, 1).float()
    y = blur(x, psf2otf(psf, *x.shape[-2:]))[:, border:-border, border:-border]
    return pixels(y.permute(1, 2, 0).numpy())


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * math.log10(255**2 / float(np.mean((a.astype(float) - b) ** 2)))


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    return dead_leaves(264, 296, 11)


@pytest.fixture(scope="module")
def capture(scene: np.ndarray) -> np.ndarray:
    return captured(scene, lens_psfs(1)[0])


# -- what it is for


def test_a_known_blur_is_taken_off(scene: np.ndarray, capture: np.ndarray) -> None:
    sharp = deblur(capture, lens_psfs(1)[0].numpy())
    inner = scene[32:-32, 32:-32]
    assert psnr(sharp, inner) > psnr(capture, inner) + 3


def test_each_cell_gets_its_own_psf() -> None:
    psfs = lens_psfs(3)
    x = torch.from_numpy(light(dead_leaves(352, 352, 5))).permute(2, 0, 1).float()
    blurred, x = blur(x[None], psf2otf(psfs, 352, 352))[..., 32:-32, 32:-32], x[:, 32:-32, 32:-32]
    whole = torch.zeros_like(x)
    for i in range(9):
        rows, columns = (slice(96 * j, 96 * j + 96) for j in divmod(i, 3))
        whole[:, rows, columns] = blurred[i, :, rows, columns]
    capture, truth = (pixels(t.permute(1, 2, 0).numpy()) for t in (whole, x))
    own, middle = (deblur(capture, p.numpy(), noise_levels=0.02) for p in (psfs, psfs[4]))
    corners = [psnr(t[:96, :96], truth[:96, :96]) for t in (own, middle, capture)]
    assert corners[0] > max(corners[1:]) + 1


def test_a_delta_psf_changes_nothing_but_rounding(capture: np.ndarray) -> None:
    for side in (1, 2, 5):
        delta = np.zeros((side, side))
        delta[side // 2, side // 2] = 3.0  # its sum does not matter
        made = deblur(capture, delta, noise_levels=1e-6)
        assert np.abs(made.astype(int) - capture).max() <= 1


def test_cells_with_one_psf_leave_no_seams(capture: np.ndarray) -> None:
    """A field of equal PSFs gives what the single one gives, up to what filters see beyond a window."""
    psf = lens_psfs(1, 15)[0].numpy()
    one = deblur(capture, psf, noise_levels=0.01).astype(float)
    many = deblur(capture, np.repeat(psf[None], 9, 0), noise_levels=0.01).astype(float)
    across = np.abs(many - one)[4:-4, 4:-4].mean((1, 2))  # the windows' contrasts differ, and what is mirrored
    assert across.max() < 2
    jumps = np.abs(np.diff(many - one, axis=0)).mean((1, 2))[4:-4]
    for edge in (200 // 3, 400 // 3):
        assert jumps[edge - 6 : edge + 2].max() < 4 * np.median(jumps), "no row stands out where cells meet"


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32, np.float64])
@pytest.mark.parametrize("linear", [False, True])
def test_kinds_of_numbers_agree(kind: type, linear: bool, capture: np.ndarray) -> None:
    small, psf = capture[:96, :96], lens_psfs(1, 9)[0].numpy()
    full = {np.uint8: 255, np.uint16: 65535}.get(kind, 1)
    given = (small / 255 * full).round().astype(kind) if full > 1 else (small / 255).astype(kind)
    made = deblur(given, psf, noise_levels=0.02, linear=linear)
    assert made.dtype == given.dtype
    assert made.shape == given.shape
    want = deblur(small, psf, noise_levels=0.02, linear=linear)
    np.testing.assert_allclose(made / full, want / 255, atol=0.6 / 255)


def test_linear_pictures_are_filtered_as_they_are() -> None:
    x = np.random.default_rng(0).random((64, 64, 3)).astype(np.float32)
    psf = lens_psfs(1, 9)[0]
    # one window that holds the whole picture: mirrored border, then the bank
    made = deblur(x, psf.numpy(), noise_levels=0.01, linear=True)
    rows = _mirror(-9, _fast(64 + 18), 64)
    window = torch.from_numpy(x[rows][:, rows]).permute(2, 0, 1)
    from saccade.restoration.metalens_former import wiener_bank

    want = wiener_bank(window, psf2otf(psf / psf.sum((0, 1)), *window.shape[-2:]), [0.01])[0]
    want = want * (1 + 0.01 * (1 - window.mean((1, 2))))[:, None, None]
    np.testing.assert_allclose(made, want[:, 9:73, 9:73].permute(1, 2, 0).clamp(0, 1).numpy(), atol=1e-5)


@given(
    height=st.integers(9, 90),
    width=st.integers(9, 90),
    rows=st.integers(1, 5),
    columns=st.integers(1, 5),
    side=st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
@settings(max_examples=30, deadline=None)
def test_any_size_grid_and_psf_that_fits_works(
    height: int, width: int, rows: int, columns: int, side: tuple[int, int]
) -> None:
    psf = np.random.default_rng(0).random((rows, columns, *side, 3))
    grey = np.full((height, width, 3), 0.5, np.float32)
    made = deblur(grey, psf, noise_levels=0.1)
    assert made.shape == grey.shape
    np.testing.assert_allclose(made, 0.5, atol=1e-4)  # flat stays flat, and as bright


def test_memory_does_not_grow_with_the_height() -> None:
    """The widest piece that is under way is a row of windows."""
    worker = Deblurrer(lens_psfs(1, 9)[0].numpy(), noise_levels=0.01)
    picture = np.zeros((4000, 64, 3), np.uint8)
    with torch.inference_mode():
        worker.level = 0.01
        layout = worker._layout(*picture.shape[:2])
        tops, heights = zip(*((top, rows.shape[1]) for top, rows in worker._bands(picture, layout)), strict=True)
    assert sum(heights) == 4000
    assert list(tops) == [sum(heights[:i]) for i in range(len(heights))]
    assert max(heights) <= 1024


# -- a network


def test_a_network_reads_the_bank_and_runs_window_by_window(capture: np.ndarray, tmp_path: Path) -> None:
    from saccade.checkpoint import save

    model = create("acformer_tiny", weights=None, filters=3)
    torch.nn.init.zeros_(model.output.weight)  # what is left is the middle picture
    psf = lens_psfs(1, 9)[0].numpy()
    small = capture[:80, :100]
    made = Deblurrer(psf, model, [0.1, 0.01, 0.001]).array(small)
    want = deblur(small, psf, noise_levels=0.01)
    # its windows are wider than those of the bank alone, so contrast and wrapping differ a little
    assert np.abs(made.astype(int) - want)[8:-8, 8:-8].mean() < 1.5
    save(model, tmp_path / "net.safetensors")
    np.testing.assert_array_equal(Deblurrer(psf, tmp_path / "net.safetensors", [0.1, 0.01, 0.001]).array(small), made)


def test_the_published_pipeline_is_the_field_of_cells() -> None:
    psfs = lens_psfs(3, 15)
    x = np.random.default_rng(0).random((48, 60, 3)).astype(np.float32)
    padded = F.pad(torch.from_numpy(x).permute(2, 0, 1)[None], (20, 20, 16, 16))
    stack = wiener_field(padded, psfs, [0.05, 0.01, 0.002], compat="official")
    made = deblur(x, psfs.numpy(), noise_levels=0.01, linear=True, compat="official")
    np.testing.assert_allclose(made, stack[0, 1].permute(1, 2, 0).numpy(), atol=1e-5)
    model = create("acformer_tiny", weights=None, filters=3)
    with torch.no_grad():
        want = model(stack)[0].clamp(0, 1).permute(1, 2, 0).numpy()
    made = deblur(x, psfs.numpy(), model, [0.05, 0.01, 0.002], linear=True, compat="official")
    np.testing.assert_allclose(made, want, atol=1e-4)


def test_a_network_from_a_file_rounds_as_published_where_that_is_asked(tmp_path: Path) -> None:
    from saccade.checkpoint import save

    model = create("acformer_tiny", weights=None, filters=3)
    save(model, tmp_path / "net.safetensors")
    psf, file = np.ones((3, 3)), tmp_path / "net.safetensors"
    for compat, one in ((None, file), ("official", file), ("official", model)):
        found = Deblurrer(psf, one, [0.1, 0.01, 0.001], compat=compat).model
        assert found is not None
        assert found.ca.compat == (compat if one is file else None)


def test_a_clip_keeps_its_filter_and_its_transfer_functions(capture: np.ndarray) -> None:
    worker = Deblurrer(lens_psfs(1, 9)[0].numpy())
    noisy = capture[:96, :96].astype(int) + np.random.default_rng(0).normal(0, 20, (96, 96, 3)).astype(int)
    frames = [capture[:96, :96], noisy.clip(0, 255).astype(np.uint8)]
    single = [worker.array(f) for f in frames]
    levels = []
    first, kept = worker.array(frames[0]), dict(worker._kept)
    for made in worker.frames(frames):
        levels.append(worker.level)
        assert made.shape == first.shape
    assert levels[0] == levels[1]
    assert all(worker._kept[k] is v for k, v in kept.items())
    worker.array(frames[1])
    assert worker.level > levels[0], "alone, the noisy one is filtered with more caution"
    assert len(single) == 2


# -- the dial


def test_a_coarser_grid_costs_less_and_one_psf_is_the_least() -> None:
    worker = Deblurrer(lens_psfs(5, 31).numpy(), noise_levels=0.01)
    costs = []
    for budget in (*worker.budgets(), 1.0):
        worker.budget = budget
        costs.append(worker._layout(400, 400).pixels)
    full = costs[-1]
    assert costs == sorted(costs)
    assert len(set(costs)) > 2
    assert all(c <= b * full or c == costs[0] for c, b in zip(costs, worker.budgets(), strict=False))
    with pytest.raises(UsageError, match="budget"):
        worker.budget = 0
    assert Deblurrer(np.ones((3, 3))).budgets() == (1.0,)


# -- pieces


@given(length=st.integers(1, 200), cells=st.integers(1, 12), core=st.integers(9, 64), fade=st.integers(0, 40))
@settings(max_examples=25, deadline=None)
def test_the_shares_of_all_cores_add_up_to_one(length: int, cells: int, core: int, fade: int) -> None:
    edges, which = _edges(length, cells, core)
    assert edges[0] == 0
    assert edges[-1] == length
    assert list(which) == sorted(which)
    total = sum(_share(edges, i, fade, 0, length) for i in range(len(which)))
    torch.testing.assert_close(total, torch.ones(length), rtol=0, atol=1e-5)
    for i in range(len(which)):
        share = _share(edges, i, fade, 0, length)
        assert float(share.min()) >= 0
        outside = torch.arange(length) + 0.5
        beyond = (outside < edges[i] - fade) | (outside > edges[i + 1] + fade)
        assert not share[beyond].any()


def test_what_is_cut_out_of_a_picture_is_the_same_with_and_without_a_copy() -> None:
    picture = np.arange(12)
    for start, size in ((0, 12), (3, 5), (-2, 6), (9, 8), (-20, 40), (11, 1), (3, 1)):
        place = _mirror(start, size, 12)
        np.testing.assert_array_equal(picture[_slice(place, 12)], picture[place])


def test_mirroring_repeats_no_edge_and_goes_on_for_ever() -> None:
    assert _mirror(-3, 10, 4).tolist() == [3, 2, 1, 0, 1, 2, 3, 2, 1, 0]
    assert _mirror(-2, 5, 1).tolist() == [0] * 5


def test_fast_lengths_have_small_factors() -> None:
    assert [_fast(n) for n in (1, 7, 49, 405, 574)] == [2, 8, 50, 432, 576]


# -- bad input


@pytest.mark.parametrize(
    ("psf", "says"),
    [
        (np.full((3, 3), -1.0), "negative"),
        (np.full((3, 3, 3), np.nan), "not finite"),
        (np.zeros((3, 3)), "sum 0"),
        (np.ones((3, 3, 2)), r"not \(3, 3, 2\)"),
        (np.ones((3, 5, 5, 3)), "no square field"),
        (np.ones(5), "not"),
        (np.ones((0, 3, 3)), "empty"),
        ("words", "no file|cannot read"),
        (object(), "real numbers"),
        (np.ones((65, 65, 1, 1, 3)), "too many"),
        (np.ones((2049, 1)), "too large"),
    ],
)
def test_bad_psfs_are_refused(psf: object, says: str) -> None:
    with pytest.raises(InputError, match=says):
        Deblurrer(psf)


@pytest.mark.parametrize(
    ("picture", "says"),
    [
        (np.zeros((64, 64), np.uint8), r"\(H, W, colours\)"),
        (np.zeros((64, 64, 1), np.uint8), "picture of 1"),
        (np.zeros((64, 64, 4), np.uint8), "picture of 4"),
        (np.zeros((64, 64, 3), np.int16), "uint8"),
        (np.zeros((64, 64, 3), np.uint32), "uint16 or float"),
        (np.zeros((8, 64, 3), np.uint8), "smaller than its PSF"),
        (np.zeros((0, 64, 3), np.uint8), "empty"),
        (np.zeros((64, 64, 0), np.uint8), "empty"),
        (np.full((64, 64, 3), np.nan, np.float32), "lie in"),
        (np.full((64, 64, 3), 200.0), "lie in"),
        ([[1]], "list"),
    ],
)
def test_bad_pictures_are_refused(picture: object, says: str) -> None:
    with pytest.raises(InputError, match=says):
        Deblurrer(lens_psfs(1, 9)[0].numpy()).array(picture)  # type: ignore[arg-type]


def test_tensors_are_psfs_too_also_those_with_gradients() -> None:
    psf = lens_psfs(1, 9)[0]
    found = Deblurrer(psf.clone().requires_grad_()).psfs
    torch.testing.assert_close(found, Deblurrer(psf.numpy()).psfs)
    assert not found.requires_grad


def test_a_grey_psf_takes_any_number_of_colours() -> None:
    for colours in (1, 2, 3, 4):
        assert deblur(np.zeros((16, 16, colours), np.uint8), np.ones((3, 3))).shape == (16, 16, colours)


def test_the_published_form_wants_whole_cells() -> None:
    worker = Deblurrer(lens_psfs(3, 9).numpy(), compat="official")
    with pytest.raises(InputError, match="no whole number of 3x3 cells"):
        worker.array(np.zeros((60, 61, 3), np.uint8))


@pytest.mark.parametrize("levels", [0, -1.0, [], [0.1, 0], math.nan])
def test_levels_that_are_not_positive_are_refused(levels: object) -> None:
    with pytest.raises(UsageError, match="positive"):
        Deblurrer(np.ones((3, 3)), noise_levels=levels)  # type: ignore[arg-type]


@pytest.mark.parametrize("level", [0.0, -1.0, math.nan])
def test_a_level_of_one_picture_is_positive_too(level: float) -> None:
    with pytest.raises(UsageError, match="positive"):
        Deblurrer(np.ones((3, 3))).array(np.zeros((16, 16, 3), np.uint8), level)


def test_models_that_read_no_bank_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="takes an ACFormer"):
        Deblurrer(np.ones((3, 3)), create("sesr_m5", weights=None))
    with pytest.raises(UsageError, match="no weights ship"):
        Deblurrer(np.ones((3, 3)), "acformer_tiny")
    with pytest.raises(UsageError, match="5 filtered pictures, got 2"):
        Deblurrer(np.ones((3, 3)), create("acformer_tiny", weights=None), [0.1, 0.01])
    with pytest.raises(CheckpointError, match="no file of weights"):
        Deblurrer(np.ones((3, 3)), tmp_path / "none.pth")


# -- files


def stored(array: np.ndarray, **options: bool) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", [np.float64, np.float16, np.uint16, ">f4"])
def test_a_file_of_psfs_is_read(kind: object, tmp_path: Path) -> None:
    psf = (lens_psfs(3, 9).numpy() * 1000).astype(kind)  # type: ignore[arg-type]
    (tmp_path / "psf.npy").write_bytes(stored(psf))
    np.testing.assert_array_equal(read_psf(tmp_path / "psf.npy"), psf)
    assert Deblurrer(tmp_path / "psf.npy").psfs.shape == (3, 3, 9, 9, 3)
    assert psf_field(psf).sum((2, 3)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no .npy file"),
        (b"PK\x03\x04 a zip archive", "no .npy file"),
        (stored(np.ones((5, 5)))[:-8], "damaged"),
        (stored(np.array([{}]), allow_pickle=True), "damaged|plain numbers"),
        (stored(np.ones((3, 3), complex)), "complex"),
        (stored(np.ones((3, 3), bool)), "bool"),
        (stored(np.ones(7)), "real numbers"),
        (stored(np.ones((3, 3), [("a", float)])), "plain numbers|real numbers"),
        (stored(np.ones((5, 5))).replace(b"(5, 5)", b"(9**9**9,)"[:6]), "damaged"),
        (stored(np.ones((5, 5))).replace(b"(5, 5), }", b"(9000000000, 9000000000), }"), "damaged"),
    ],
)
def test_files_that_hold_no_psfs_are_refused(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "psf.npy").write_bytes(content)
    with pytest.raises(InputError, match=says):
        read_psf(tmp_path / "psf.npy")


def test_missing_files_folders_and_large_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_psf(tmp_path / "none.npy")
    with pytest.raises(InputError, match="folder"):
        read_psf(tmp_path)
    monkeypatch.setattr("saccade.restoration.metalens_former.psfs.LARGEST_FILE", 100)
    (tmp_path / "psf.npy").write_bytes(stored(np.ones((5, 5))))
    with pytest.raises(InputError, match="more than 100"):
        read_psf(tmp_path / "psf.npy")


@given(place=st.integers(0, 250), values=st.binary(min_size=1, max_size=12), cut=st.integers(0, 80))
@settings(max_examples=150, deadline=None)
def test_a_damaged_file_is_refused_or_read_never_more(place: int, values: bytes, cut: int) -> None:
    import tempfile

    content = bytearray(stored(np.ones((3, 3, 3), np.float32)))
    content[place : place + len(values)] = values
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "psf.npy"
        path.write_bytes(bytes(content[: len(content) - cut]))
        try:
            found = psf_field(read_psf(path))
        except SaccadeError:
            return
    assert found.numel() <= 27
