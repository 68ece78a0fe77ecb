"""The rows of BiFormer's dial: one network at four budgets, each beside the least."""

from __future__ import annotations

from saccade.bench.backbones import biformer


def test_the_dial_is_timed_at_all_budgets_beside_the_least() -> None:
    small = {"widths": (16, 16, 16, 16), "depths": (1, 1, 1, 1), "head_dim": 8, "num_classes": 2}
    rows = biformer.dial_rows(1, 1, 64, "the command", name="biformer", **small)
    assert {row.ours for row in rows} == {"biformer, budget 0.25"}
    assert [row.peer for row in rows] == ["biformer, budget 0.5", "biformer, budget 0.75", "biformer, budget 1"]
    assert all(row.size == "64x64" and row.ratio > 0 for row in rows)
