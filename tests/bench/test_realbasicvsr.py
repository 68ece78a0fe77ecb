from __future__ import annotations

import pytest

from saccade.bench.restoration import realbasicvsr as suite


@pytest.mark.parametrize("size", [(40, 32), (1032, 512)])
def test_both_contenders_are_the_same_network_on_the_same_frames(size, monkeypatch):
    monkeypatch.setattr(suite, "FRAMES", 2)
    if size[0] > 1000:
        contests = suite.contests(size, 1)  # making it is enough: the published way takes long at this size
        contest = next(iter(contests))
        assert "tiny" in contest.what
        return
    (contest,) = suite.contests(size, 1)
    assert contest.official.run().shape == (1, 2, 3, 4 * size[1], 4 * size[0])
    assert contest.ours.run() is None
    assert contest.ours.threads == contest.official.threads == 1
    assert contest.notes


def test_half_the_frames_are_loaded_and_degraded(monkeypatch):
    monkeypatch.setattr(suite, "LENGTH", 4)
    monkeypatch.setattr(suite, "SIDE", 64)
    timings, notes = suite._degradation(1, 1)
    assert list(timings) == ["half the frames, mirrored", "every frame"]
    assert all(len(t.seconds) == 9 for t in timings.values())
    assert notes
