import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.data.degrade import (
    FIRST,
    SecondOrder,
    Stage,
    compress_video,
    filter_each,
    gaussian_blur,
    gaussian_kernels,
    generalised_kernels,
    jpeg,
    mirrored,
    noise_jpeg,
    plateau_kernels,
    poisson_noise,
    random_kernels,
    sinc_kernels,
    to_and_fro,
    walk,
)
from saccade.data.degrade.chain import KINDS
from saccade.data.generated import dead_leaves
from saccade.errors import InputError, UsageError


def pictures(count: int, size: int) -> torch.Tensor:
    made = [torch.from_numpy(dead_leaves(size, size, seed)).permute(2, 0, 1) for seed in range(count)]
    return torch.stack(made).float() / 255


def levels(x: torch.Tensor) -> bool:
    return bool(((x * 255 - (x * 255).round()).abs() < 1e-3).all() and x.min() >= 0 and x.max() <= 1)


def test_noise_has_the_strengths_it_was_asked_for_and_some_pictures_stay_clean():
    clean = torch.full((400, 3, 24, 24), 0.5)
    made = noise_jpeg(clean, np.random.default_rng(0), coded=0.0, rounded=False)
    sigmas = (made - clean).std((1, 2, 3)) * 255
    assert 0.08 < float((sigmas == 0).float().mean()) < 0.25
    noisy = sigmas[sigmas > 0]
    assert noisy.max() < 53
    assert abs(float(noisy.mean()) - 25) < 2.5


def test_noise_and_jpeg_follow_the_generator_alone_and_give_what_files_hold():
    clean = pictures(6, 48)
    first, second = (noise_jpeg(clean, np.random.default_rng(5)) for _ in range(2))
    assert torch.equal(first, second)
    assert levels(first)
    assert not torch.equal(first, noise_jpeg(clean, np.random.default_rng(6)))


def test_jpeg_is_that_of_pillow_and_worse_at_lower_quality():
    import io

    from PIL import Image

    clean = pictures(1, 64)
    coded = io.BytesIO()
    Image.fromarray((clean[0] * 255).round().byte().permute(1, 2, 0).numpy()).save(coded, "JPEG", quality=40)
    told = torch.from_numpy(np.array(Image.open(coded))).permute(2, 0, 1)
    assert torch.equal((jpeg(clean, 40)[0] * 255).round().byte(), told)
    errors = [float((jpeg(clean, q) - clean).pow(2).mean()) for q in (5, 30, 90)]
    assert errors == sorted(errors, reverse=True)
    assert jpeg(clean[:, :1], [50]).shape == (1, 1, 64, 64)


@pytest.mark.parametrize("bad", [0, 101, [50, 50]])
def test_jpeg_refuses_other_qualities(bad):
    with pytest.raises(UsageError):
        jpeg(torch.rand(1, 3, 8, 8), bad)


def test_other_shapes_are_refused():
    for call in (
        lambda: jpeg(torch.rand(3, 8, 8), 50),
        lambda: noise_jpeg(torch.rand(3, 8, 8), np.random.default_rng(0)),
        lambda: compress_video(torch.rand(1, 1, 16, 16), "libx264", 1e4),
        lambda: SecondOrder()(torch.rand(3, 16, 16), np.random.default_rng(0)),
        lambda: SecondOrder(4)(torch.rand(1, 3, 3, 16), np.random.default_rng(0)),
        lambda: filter_each(torch.rand(3, 1, 8, 8), gaussian_kernels(3, np.ones(2))),
    ):
        with pytest.raises(InputError):
            call()


@given(st.sampled_from([3, 7, 13, 21]), st.floats(0.2, 3), st.floats(0.2, 3), st.floats(-math.pi, math.pi))
@settings(max_examples=30, deadline=None)
def test_kernels_sum_to_one_are_symmetric_and_agree_where_one_is_the_other(size, a, b, angle):
    for kernels in (
        gaussian_kernels(size, a, b, angle),
        generalised_kernels(size, a, b, angle, 0.7),
        plateau_kernels(size, a, b, angle, 1.5),
        sinc_kernels(size, a),
    ):
        assert kernels.shape == (1, size, size)
        assert abs(float(kernels.sum()) - 1) < 1e-5
        torch.testing.assert_close(kernels, kernels.flip(1, 2))
    torch.testing.assert_close(generalised_kernels(size, a, b, angle, 1.0), gaussian_kernels(size, a, b, angle))


def test_the_sinc_kernel_passes_low_frequencies_and_stops_high_ones():
    response = torch.fft.rfft2(sinc_kernels(21, math.pi / 2)[0], s=(64, 64)).abs()
    assert response[0, :8].min() > 0.9
    assert response[0, 26:].max() < 0.15


def test_a_stretched_kernel_lies_along_its_angle():
    along = gaussian_kernels(21, 3.0, 0.5, math.pi / 2)[0]
    assert along[:, 10].sum() > 0.7, "turned by a right angle, the long axis runs down"


def test_the_separable_blur_is_the_square_one():
    x = pictures(3, 40)
    for sigma in (0.7, np.array([0.5, 1.0, 2.0])):
        whole = filter_each(x, gaussian_kernels(13, np.broadcast_to(sigma, 3)))
        torch.testing.assert_close(gaussian_blur(x, sigma, 13), whole, atol=1e-5, rtol=0)


def test_kinds_of_kernels_come_as_often_as_they_should():
    assert sum(KINDS.values()) == pytest.approx(1)
    chance = np.random.default_rng(0)
    made = [random_kernels(chance, FIRST.sigma, 2) for _ in range(200)]
    assert {k.shape[1] for k in made} == set(range(7, 22, 2))
    ringing = sum(bool((k < -1e-4).any()) for k in made) / len(made)
    assert 0.04 < ringing < 0.18, "a tenth are sinc kernels, and only those go below zero"


@given(st.integers(1, 40), st.floats(0, 1), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_a_walk_stays_inside_and_takes_small_steps(count, step, seed):
    path = walk(np.random.default_rng(seed), (2.0, 3.0), step, count)
    assert path.shape == (count,)
    assert path.min() >= 2
    assert path.max() <= 3
    assert np.abs(np.diff(path)).max(initial=0) <= step + 1e-12


def test_shot_noise_grows_with_the_signal():
    dark, bright = (torch.full((1, 3, 64, 64), v) for v in (0.1, 0.9))
    noise = [float((poisson_noise(x, np.ones(1), False, np.random.default_rng(0)) - x).std()) for x in (dark, bright)]
    assert 2 < noise[1] / noise[0] < 4, "as the square root"
    grey = poisson_noise(dark, np.ones(1), True, np.random.default_rng(0)) - dark
    torch.testing.assert_close(grey[:, 0], grey[:, 2], atol=1e-6, rtol=0)


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_video_keeps_size_and_frames_and_costs_quality(codec):
    pytest.importorskip("av")
    clip = pictures(1, 70)[..., :53, :].expand(5, 3, 53, 70)
    made, again = (compress_video(clip, codec, 2e4) for _ in range(2))
    assert made.shape == clip.shape
    assert torch.equal(made, again)
    assert 1e-3 < float((made - clip).abs().mean()) < 0.1
    with pytest.raises(UsageError):
        compress_video(clip, "libx265", 1e4)


@pytest.mark.parametrize(("scale", "frames", "size"), [(4, 5, 64), (1, 1, 33), (2, 3, 41)])
def test_the_whole_chain_gives_the_asked_size_from_the_seed_alone(scale, frames, size):
    pytest.importorskip("av")
    clip = pictures(1, size).expand(frames, 3, size, size)
    whole = SecondOrder(scale)
    made, again, other = (whole(clip, np.random.default_rng(s)) for s in (3, 3, 4))
    assert made.shape == (frames, 3, size // scale, size // scale)
    assert levels(made)
    assert torch.equal(made, again)
    assert not torch.equal(made, other)


def test_photographs_need_no_video_codec(monkeypatch):
    import saccade.data.degrade.chain as chain

    monkeypatch.setattr(chain, "compress_video", lambda *_: pytest.fail("a photograph is no video"))
    assert SecondOrder(4, video=False)(pictures(1, 64), np.random.default_rng(0)).shape == (1, 3, 16, 16)


@pytest.mark.parametrize(
    "clip", [torch.full((2, 3, 32, 32), 200, dtype=torch.uint8), torch.full((2, 3, 32, 32), 200.0)]
)
def test_bytes_and_pixels_of_0_to_255_are_refused(clip):
    with pytest.raises(InputError, match="float pictures"):
        SecondOrder(2, video=False)(clip, np.random.default_rng(0))


def test_neighbouring_frames_are_degraded_alike():
    clip = pictures(1, 64).expand(6, 3, 64, 64)
    quiet = Stage(gaussian=(0.0, 0.1), poisson=(0.0, 0.01), quality=(95, 95))
    whole = SecondOrder(2, (quiet, quiet), video=False)
    made = [whole(clip, np.random.default_rng(seed)) for seed in range(8)]
    near = [float((x[1] - x[0]).abs().mean()) for x in made]
    far = [float((x[0] - y[0]).abs().mean()) for x, y in pairwise(made)]
    assert np.median(near) < 0.4 * np.median(far)


def test_a_clip_runs_to_and_fro():
    clip = torch.arange(4)
    assert mirrored(clip).tolist() == [0, 1, 2, 3, 3, 2, 1, 0]
    for seed in range(20):
        order = to_and_fro(4, 30, np.random.default_rng(seed))
        assert set(order) == {0, 1, 2, 3}
        assert np.abs(np.diff(order)).max() == 1
        slow = to_and_fro(4, 200, np.random.default_rng(seed), stay=0.5)
        assert (np.diff(slow) == 0).mean() > 0.4
    assert to_and_fro(1, 3, np.random.default_rng(0)).tolist() == [0, 0, 0]
    with pytest.raises(InputError):
        to_and_fro(0, 3, np.random.default_rng(0))
    with pytest.raises(UsageError):
        to_and_fro(3, 3, np.random.default_rng(0), stay=1.0)
