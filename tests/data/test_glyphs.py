"""Small digits: the same ones for the same seed, at their places, in their numbers, and nothing else that tells."""

from __future__ import annotations

import pytest
import torch

from saccade.data.glyphs import GLYPH, _placed, glyphs
from saccade.errors import UsageError


def test_the_same_seed_draws_the_same_pictures() -> None:
    first, again, other = glyphs(9, seed=3), glyphs(9, seed=3), glyphs(9, seed=4)
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.images, other.images)
    assert first.images.shape == (9, 3, 96, 96)
    assert len(first) == 9


def test_strokes_lie_where_they_are_placed() -> None:
    strokes = torch.ones(2, GLYPH[0] * GLYPH[1])
    drawn = _placed(strokes, torch.tensor([0, 9]), torch.tensor([3, 11]), 16)
    assert drawn.sum((1, 2)).tolist() == [35, 35]
    assert drawn[0, :7, 3:8].all()
    assert drawn[1, 9:16, 11:16].all()


def test_a_digit_can_be_read_from_its_pixels() -> None:
    """With one copy and no scraps the bright pixels are the digit's own, whatever its colour."""
    made = glyphs(200, side=8, copies=1, scraps=0, step=8, seed=0)
    bright = (made.images.norm(dim=1) > 1.4)[:, :7, :5].flatten(1).float()
    means = torch.stack([bright[made.labels == digit].mean(0) for digit in range(10)])
    found = (bright[:, None] - means).abs().sum(2).argmin(1)
    assert float((found == made.labels).float().mean()) == 1


def test_scraps_are_as_bright_as_digits() -> None:
    """Digits alone and scraps alone have the same mean number of bright pixels."""
    scraps = glyphs(400, copies=1, scraps=5, seed=0).images.norm(dim=1).gt(1.6).float().sum((1, 2)).mean()
    digits = glyphs(400, copies=6, scraps=0, seed=0).images.norm(dim=1).gt(1.6).float().sum((1, 2)).mean()
    assert float(scraps) == pytest.approx(float(digits), rel=0.05)


def test_places_are_multiples_of_the_step() -> None:
    made = glyphs(64, side=24, copies=1, scraps=0, step=8, seed=0).images.norm(dim=1) > 1.6
    rows = torch.stack([made[:, 7::8].float().mean(), made[:, 0::8].float().mean()])
    assert float(rows[0]) < 0.2 * float(rows[1])  # the eighth row between two places stays empty


def test_no_pictures_are_a_set_too() -> None:
    assert glyphs(0).images.shape == (0, 3, 96, 96)


@pytest.mark.parametrize("wrong", [{"count": -1}, {"copies": 0}, {"scraps": -1}, {"step": 0}, {"side": 7}])
def test_impossible_sets_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="a set has 0 or more pictures"):
        glyphs(**{"count": 2, **wrong})
