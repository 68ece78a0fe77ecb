"""How large tiles are: as large as the engine likes, unless that would leave its workers without work."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from saccade.runtime.tiles import SMALLEST, fitted, spans

sides = st.integers(1, 6000)


@given(sides, sides, st.integers(16, 600), st.integers(16, 600), st.integers(1, 64))
def test_tiles_never_exceed_what_was_allowed(width: int, height: int, rows: int, columns: int, workers: int) -> None:
    made = fitted(width, height, (rows, columns), workers)
    assert 1 <= made[0] <= min(rows, height)
    assert 1 <= made[1] <= min(columns, width)


@given(sides, sides, st.integers(1, 64))
def test_every_worker_has_a_tile_or_tiles_are_small(width: int, height: int, workers: int) -> None:
    rows, columns = fitted(width, height, (270, 480), workers)
    under_way = len(list(spans(width, columns, 0))) * min(2, len(list(spans(height, rows, 0))))
    assert under_way >= workers or columns <= SMALLEST


@given(sides, sides)
def test_one_worker_gets_the_largest_tiles(width: int, height: int) -> None:
    assert fitted(width, height, (270, 480), 1) == (min(270, height), min(480, width))


def test_a_small_picture_is_shared_among_cores() -> None:
    assert fitted(480, 270, (270, 480), 4) == (135, 240)
    assert fitted(1920, 1080, (270, 480), 4) == (270, 480)
