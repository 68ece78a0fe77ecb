"""Generated pictures: from the seed alone, of any size, with the spectrum and the edges of photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.data.generated import dead_leaves, write_pictures
from saccade.data.pairs import CropPairs
from saccade.errors import UsageError


@given(height=st.integers(1, 70), width=st.integers(1, 70), seed=st.integers(0, 2**31))
@settings(max_examples=15, deadline=None)
def test_any_size_and_seed_give_a_picture(height: int, width: int, seed: int) -> None:
    made = dead_leaves(height, width, seed)
    assert made.shape == (height, width, 3)
    assert made.dtype == np.uint8


def test_the_seed_alone_decides() -> None:
    state = np.random.get_state()[1].copy()  # noqa: NPY002  the global generator is to be left alone
    first = dead_leaves(64, 48, 7)
    assert np.array_equal(first, dead_leaves(64, 48, 7))
    assert not np.array_equal(first, dead_leaves(64, 48, 8))
    assert np.array_equal(state, np.random.get_state()[1])  # noqa: NPY002


def test_the_spectrum_falls_as_in_photographs() -> None:
    """Power ~ 1/f^a with a near 2; photographs lie between 1.5 and 3."""
    side, slopes = 128, []
    for seed in range(4):
        grey = dead_leaves(side, side, seed).mean(2)
        window = np.hanning(side)[:, None] * np.hanning(side)
        power = np.abs(np.fft.fft2((grey - grey.mean()) * window)) ** 2
        radius = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side)))
        rings = [(r, power[(radius > r / 1.2) & (radius < r * 1.2)].mean()) for r in (0.03, 0.06, 0.12, 0.24)]
        slopes.append(-np.polyfit(*np.log(np.array(rings)).T, 1)[0])
    assert 1.5 < np.mean(slopes) < 3


def test_there_are_sharp_edges_and_flat_places() -> None:
    grey = dead_leaves(128, 128, 0).mean(2)
    steps = np.abs(np.diff(grey, axis=1))
    assert np.quantile(steps, 0.99) > 40
    assert np.quantile(steps, 0.5) < 6


@pytest.mark.parametrize("size", [(0, 4), (4, 0), (-1, 4)])
def test_a_picture_without_pixels_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="at least one pixel"):
        dead_leaves(*size, seed=0)


def test_written_pictures_can_be_trained_on(tmp_path: Path) -> None:
    files = write_pictures(tmp_path, 2, 64, seed=3)
    low, high = CropPairs(files, 2, 16, luma=True).batch(3, seed=0, step=0)
    assert low.shape == (3, 1, 16, 16)
    assert high.shape == (3, 1, 32, 32)
