from __future__ import annotations

import numpy as np
import pytest
import torch

from saccade.data.generated import write_pictures
from saccade.reproduce import Data
from saccade.reproduce import realbasicvsr as claim


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder, 2, 160, 0)
    return sorted(folder.iterdir())


def test_a_sliding_windows_clip_is_what_reducing_each_window_gives(pictures):
    clips = claim.SlidingClips(pictures, 16, 4).batch(3, 0, 0)
    assert clips.low.shape == (3, 4, 3, 16, 16)
    assert clips.high.shape == (3, 4, 3, 64, 64)
    again = claim.reduced(clips.high).float() / 255
    inner = (..., slice(3, -3), slice(3, -3))  # the window's own reduction has no more than the window at its border
    torch.testing.assert_close(clips.low[inner], again[inner], atol=1.01 / 255, rtol=0)


@pytest.mark.parametrize("seed", range(4))
def test_the_known_flow_is_the_motion(pictures, seed):
    clips = claim.SlidingClips(pictures, 24, 3).batch(2, seed, 0)
    inner = (..., slice(3, -3), slice(3, -3))
    for here, there, flow in ((0, 1, clips.flows[0]), (1, 0, clips.flows[1])):
        moved = claim.flow_warp(clips.low[:, there], flow[:, 0])
        error = (moved - clips.low[:, here])[inner].pow(2).mean()
        assert error < 0.2 * (clips.low[:, there] - clips.low[:, here])[inner].pow(2).mean() + 1e-6


def test_all_networks_see_the_same_clips(pictures):
    source = claim.SlidingClips(pictures, 8, 2)
    first, again, other = source.batch(2, 1, 5), source.batch(2, 1, 5), source.batch(2, 1, 6)
    assert torch.equal(first.low, again.low)
    assert not torch.equal(first.low, other.low)


def test_a_share_of_the_clips_stands_still(pictures):
    source = claim.SlidingClips(pictures, 8, 3)
    moving = source.batch(12, 0, 0)
    assert float(moving.flows[0].abs().amax((1, 2, 3, 4)).min()) > 0
    source.still = 0.5
    clips = source.batch(12, 0, 0)
    still = clips.flows[0].abs().amax((1, 2, 3, 4)) == 0
    assert 2 <= int(still.sum()) <= 10
    assert torch.equal(clips.low[still][:, 0], clips.low[still][:, 2])


def test_a_grown_network_starts_where_its_start_stood(pictures):
    start = claim.tiny(0).eval()
    clips = claim.held_out(pictures[:1], 3, 64)
    same, cleaned = claim.grown(start, 3, None, 1).eval(), claim.grown(start, 3, 2, 1).eval()
    low, _, flows = clips[0]
    with torch.no_grad():
        assert torch.equal(same(low, flows), start(low, flows))
        assert (cleaned(low, flows) - start(low, flows)).abs().mean() < 0.05


def test_propagation_and_single_frames_start_alike(pictures):
    start = claim.tiny(0).eval()
    clips = claim.held_out(pictures[:1], 3, 64)
    one, many = claim.score(start, clips, alone=True), claim.score(start, clips)
    np.testing.assert_allclose(one, many, atol=1e-3, err_msg="features of other frames are not yet seen")


@pytest.mark.slow
def test_the_claim_runs_on_generated_pictures(tmp_path, monkeypatch):
    for name in ("START", "STEPS", "CLEAN_STEPS"):
        monkeypatch.setattr(claim, name, 2)
    monkeypatch.setattr(Data, "training", lambda self, plain=Data.training: plain(self)[:2])
    with Data() as data:
        figures = claim.run(data, 0)
    assert figures["warping_ratio"] >= 5
    assert figures["parameters_without_flow"] == 55_187
    assert abs(figures["parameters_cleaning"] / figures["parameters_no_cleaning"] - 1) < 0.02
    assert figures["largest_change_by_frame_before"] > 0
    assert figures["streaming_by_context"]["8"]["worst_frame_difference"] <= 1e-4
    assert not claim.met(figures), "two steps prove nothing"
    claim.plot(figures, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000
