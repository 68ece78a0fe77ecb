from __future__ import annotations

import numpy as np
import pytest

from saccade.reproduce.examples import packed, unpacked


@pytest.mark.parametrize("shape", [(5, 7), (6, 4, 3)], ids=str)
def test_pictures_come_back_as_they_were(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert np.array_equal(unpacked(packed(pixels)), pixels)
