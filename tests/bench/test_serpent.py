"""What the bench compares Serpent with does the same job: the published steps, and other ways to scan."""

from __future__ import annotations

import pytest
import torch

from saccade.bench.restoration import serpent as bench
from saccade.ops.selective_scan import selective_scan


@pytest.mark.parametrize("slice_", [1024, 7])
def test_the_published_steps_and_ours_are_one_function(slice_: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "SLICE", slice_)
    (contest,) = bench.contests((20, 12), 1)
    assert contest.ours.threads == contest.official.threads == 1
    with torch.no_grad():
        ours, plain = contest.ours.run(), contest.official.run()
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-5)


def test_the_peers_of_the_scan_are_the_same_scan() -> None:
    x = bench._operands(37, 2, 3, 4)
    truth = selective_scan(**x, path="naive")
    for peer in (bench.hillis_steele, bench.torch_associative):
        torch.testing.assert_close(peer(**x), truth, rtol=0, atol=1e-5)


def test_blocks_of_other_kinds_have_as_many_parameters_and_all_run() -> None:
    sizes = [bench.count_parameters(block) for block, _ in bench._blocks().values()]
    assert max(sizes) / min(sizes) < 1.15
    found, notes = bench._block_rows(1, 1, (16, 32))
    assert len(found) == 4
    assert all(row.system == "serpent" and row.ours_ms > 0 and row.peer_ms > 0 for row in found)
    assert sum("to the power of" in note for note in notes) == 3


def test_blocks_that_the_memory_does_not_hold_are_named_with_what_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "available", lambda: 12 << 30)  # as the machine of a small user
    kept, notes = bench._fitting(bench._blocks(), 2048)
    assert list(kept) == ["Serpent block by saccade", "Restormer-class block"]
    (said,) = notes
    assert said.startswith("without SwinIR-class block, windows of 8 at 2048x2048: it needs 17.")
    assert said.endswith("GiB (counted), 12.0 were there.")
    monkeypatch.setattr(bench, "available", lambda: 1)
    assert bench._block_rows(1, 1, (16, 32))[0] == []
    monkeypatch.setattr(bench, "available", lambda: 0)  # a system that does not tell
    assert len(bench._fitting(bench._blocks(), 1024)[0]) == 3


def test_growth_tells_pixels_seconds_and_bytes() -> None:
    (small, large) = bench.growth(((32, 16), (64, 48)))
    assert (small[0], large[0]) == (512, 3072)
    assert 0 < small[1] < large[1]
    assert 0 < small[2] < large[2]
