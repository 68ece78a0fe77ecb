"""The 26 distortions: sizes kept, seeds obeyed, levels ordered, the ones with a truth elsewhere equal to it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.data.distortions import DISTORTIONS, LEVELS, _warp, disk_kernel, distort, distorted_stack
from saccade.data.lab import lab_to_rgb, rgb_to_lab
from saccade.errors import InputError, UsageError


def scene(height: int = 64, width: int = 72, seed: int = 0) -> np.ndarray:
    """Smooth ground, edges and some texture."""
    chance = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    ground = np.stack([96 + 60 * np.sin(x / 9 + i) * np.cos(y / 13 - i) for i in range(3)], -1)
    ground[height // 3 : height // 2, width // 4 : width // 2] += 60
    return np.clip(ground + chance.normal(0, 4, ground.shape), 0, 255).astype(np.uint8)


@given(
    kind=st.sampled_from(list(DISTORTIONS)),
    level=st.integers(0, LEVELS - 1),
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    compat=st.sampled_from([None, "official"]),
)
@settings(max_examples=120, deadline=None)
def test_every_kind_takes_pictures_of_any_size_and_keeps_them(
    kind: str, level: int, height: int, width: int, compat: str | None
) -> None:
    if min(height, width) < 2:
        height = width = max(height, width, 2)
    picture = scene(height, width)
    before = picture.copy()
    made = distort(picture, kind, level, 3, compat=compat)  # type: ignore[arg-type]
    assert made.shape == picture.shape
    assert made.dtype == np.uint8
    np.testing.assert_array_equal(picture, before)
    np.testing.assert_array_equal(made, distort(picture, kind, level, np.random.default_rng(3), compat=compat))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [k for k, d in DISTORTIONS.items() if d.rising and k != "color_shift"])
def test_higher_levels_are_further_from_the_picture(kind: str) -> None:
    picture = scene(128, 128)
    off = [np.abs(distort(picture, kind, level, 0).astype(float) - picture).mean() for level in range(LEVELS)]
    assert off[4] > off[0]
    assert np.corrcoef(off, range(LEVELS))[0, 1] > 0.5


def test_numbers_are_the_published_ones() -> None:
    assert sorted(d.number for d in DISTORTIONS.values()) == list(range(1, 27))
    assert all(len(d.amounts) == LEVELS for d in DISTORTIONS.values())


@pytest.mark.parametrize("kind", DISTORTIONS)
def test_only_kinds_with_chance_depend_on_the_seed(kind: str) -> None:
    picture = scene(96, 96)
    drawn = {distort(picture, kind, 4, seed).tobytes() for seed in range(6)}
    assert (len(drawn) > 1) == DISTORTIONS[kind].random


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.5])
def test_warps_are_those_of_scipy(sigma: float) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    chance = np.random.default_rng(0)
    picture = (255 * chance.random((30, 41, 3))).astype(np.float32)
    shift = (sigma * chance.standard_normal((30, 41, 2))).astype(np.float32)
    y, x = np.mgrid[:30, :41]
    places = [(y - shift[..., 0]).ravel(), (x - shift[..., 1]).ravel()]
    wanted = np.stack(
        [
            ndimage.map_coordinates(picture[..., i].astype(float), places, order=3, mode="reflect").reshape(30, 41)
            for i in range(3)
        ],
        -1,
    )
    np.testing.assert_allclose(_warp(picture, shift), wanted, atol=0.02)


def test_lab_is_that_of_scikit_image() -> None:
    color = pytest.importorskip("skimage.color")
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    lab = rgb_to_lab(picture)
    np.testing.assert_allclose(lab, color.rgb2lab(picture), atol=2e-3)
    np.testing.assert_allclose(255 * lab_to_rgb(lab), picture, atol=0.01)
    strong = lab * np.array([1, 5, 5], np.float32)
    np.testing.assert_allclose(lab_to_rgb(strong), color.lab2rgb(strong), atol=1e-4)


@pytest.mark.parametrize("radius", [1, 2, 4, 6, 8])
def test_the_lens_is_a_disk_of_its_area(radius: int) -> None:
    kernel = disk_kernel(radius)
    assert kernel.sum() == pytest.approx(1)
    np.testing.assert_allclose(kernel, kernel.T, atol=1e-4)
    np.testing.assert_allclose(kernel, kernel[::-1], atol=1e-9)
    assert kernel.max() == pytest.approx(1 / (np.pi * radius**2), rel=0.01)


def test_official_results_are_cut_off_and_ours_rounded() -> None:
    picture = np.full((8, 8, 3), 100, np.uint8)
    amount = 0.08 * 255  # 20.4
    assert (distort(picture, "mean_shift", 1) == round(100 + amount)).all()
    assert (distort(picture, "mean_shift", 3, compat="official") == int(100 - amount)).all()
    assert (distort(picture, "mean_shift", 3) == round(100 - amount)).all()


def test_official_sharpening_saturates_and_ours_keeps_flat_ground() -> None:
    flat = np.full((16, 16, 3), 90, np.uint8)
    assert np.abs(distort(flat, "sharpen", 2).astype(int) - 90).max() <= 1
    assert (distort(flat, "sharpen", 2, compat="official") > 200).all()


def test_motion_blur_is_a_box_along_one_axis() -> None:
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[32, 32] = 240
    for seed in range(4):
        made = distort(picture, "motion_blur", 0, seed)[..., 0]
        assert sorted(made[made > 0].tolist()) == [20] * 12
        assert 1 in ((made > 0).any(1).sum(), (made > 0).any(0).sum())


def test_a_stack_holds_the_picture_and_distinct_kinds() -> None:
    picture = scene()
    stack, drawn = distorted_stack(picture, 26, np.random.default_rng(0))
    assert stack.shape == (27, *picture.shape)
    np.testing.assert_array_equal(stack[0], picture)
    assert {kind for kind, _ in drawn} == set(DISTORTIONS)


def test_wrong_names_levels_and_pictures_are_refused() -> None:
    picture = scene()
    with pytest.raises(UsageError, match="no distortion named 'blurr'"):
        distort(picture, "blurr", 0)
    with pytest.raises(UsageError, match="levels of distortions"):
        distort(picture, "jpeg", 5)
    with pytest.raises(UsageError, match="compat"):
        distort(picture, "jpeg", 0, compat="wrong")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="26 distortions"):
        distorted_stack(picture, 27, np.random.default_rng(0))
    for bad in (picture.astype(np.float32), picture[..., 0], picture[:0]):
        with pytest.raises(InputError, match="uint8"):
            distort(bad, "jpeg", 0)
