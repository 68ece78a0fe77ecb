from __future__ import annotations

import pytest
import torch

from saccade.bench.restoration import dot, msssim_learning


def test_both_contenders_of_transport_give_the_same_picture() -> None:
    (contest,) = dot.contests((288, 272), 1)
    ours, official = contest.ours.run(), contest.official.run()
    assert ours.shape == (1, 3, 272, 288)
    torch.testing.assert_close(ours, official, rtol=0, atol=2e-4)


def test_rows_of_structural_similarity_say_how_far_the_numbers_are_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pytorch_msssim", reason="a peer of the benchmarks")
    pytest.importorskip("torchmetrics", reason="a peer of the benchmarks")
    monkeypatch.setattr(msssim_learning, "SIZE", (176, 192))
    rows, notes = msssim_learning.rows(1, 1)
    assert [(row.what, row.peer) for row in rows] == [
        ("MS-SSIM forward", "pytorch-msssim"),
        ("MS-SSIM forward", "torchmetrics"),
        ("MS-SSIM forward and backward", "pytorch-msssim"),
        ("MS-SSIM forward and backward", "torchmetrics"),
    ]
    assert all(row.system == "msssim_learning" and row.ratio > 0 for row in rows)
    assert len(notes) == 2
    assert "scores differ by" in notes[0]
    assert all(float(note.split("differ by ")[1].split(",")[0]) < 1e-5 for note in notes)
