"""The contests of Histoformer do the same job on both sides."""

from __future__ import annotations

import pytest
import torch

from saccade.bench.restoration import histoformer


def test_both_sides_of_a_contest_give_a_picture_of_the_same_quality() -> None:
    (contest,) = [c for c in histoformer.contests((40, 24), 1) if "tiny" in c.what]
    assert contest.ours.inside is not None
    with contest.ours.inside():
        ours, official = contest.ours.run(), contest.official.run()
    assert ours.shape == official.shape == (1, 3, 24, 40)
    # not pixel by pixel: with other rounding near-ties change places
    assert float((ours - official).square().mean().sqrt() / official.std()) < 0.1


def test_the_published_size_takes_part_up_to_512_pixels_a_side() -> None:
    assert [c.what for c in histoformer.contests((64, 64), 1)] == ["histoformer_tiny, RGB", "histoformer, RGB"]
    (large,) = histoformer.contests((1024, 1024), 1)
    assert "minutes" in large.notes[0]


@pytest.mark.slow
@pytest.mark.timing
def test_the_fast_path_is_half_as_long_again_as_fast() -> None:
    from saccade.bench.harness import measure

    contest = next(histoformer.contests((512, 512), 1))
    with torch.inference_mode():
        timings = measure([contest.ours, contest.official], 3)
    ours, official = (timings[c.name].median for c in (contest.ours, contest.official))
    assert official >= 1.5 * ours
