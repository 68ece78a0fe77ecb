from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

from saccade.errors import InputError, UsageError
from saccade.ops.resize import resize
from saccade.quality import luma, ms_ssim, psnr, ssim, structure
from saccade.quality.structure import WEIGHTS, MSSSIMLoss, for_size

pytestmark = pytest.mark.usefixtures("one_thread")


def pair(*shape: int, noise: float = 0.1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A smooth picture and a noisy one, in [0, 1]."""
    chance = torch.Generator().manual_seed(seed)
    a = resize(torch.rand((*shape[:-2], 9, 9), generator=chance), size=(shape[-2], shape[-1])).clamp(0, 1)
    return a, (a + noise * torch.randn(shape, generator=chance)).clamp(0, 1)


# --- peers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 3, 176, 181), (1, 1, 161, 167)], ids=str)
def test_vainf_is_pytorch_msssim_gradients_too(shape: tuple[int, ...]) -> None:
    peer = pytest.importorskip("pytorch_msssim", reason="an oracle of the tests")
    a, b = pair(*shape)
    found, wanted = (b.clone().requires_grad_() for _ in range(2))
    mine = ms_ssim(found, a, protocol="vainf")
    its = peer.ms_ssim(wanted, a, data_range=1.0, size_average=False)
    torch.testing.assert_close(mine, its, rtol=0, atol=1e-5)
    mine.mean().backward()
    its.mean().backward()
    assert float((found.grad - wanted.grad).abs().max()) <= 1e-4 * float(wanted.grad.abs().max())
    torch.testing.assert_close(
        ssim(a, b, protocol="vainf"), peer.ssim(a, b, data_range=1.0, size_average=False), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("shape", [(2, 3, 176, 181), (1, 1, 187, 200)], ids=str)
def test_the_protocol_of_torchmetrics_is_torchmetrics_gradients_too(shape: tuple[int, ...]) -> None:
    peer = pytest.importorskip("torchmetrics.functional.image", reason="needs the extra 'quality'")
    a, b = pair(*shape)
    options = {"data_range": 1.0, "reduction": "none"}
    for mine, its in (
        (ssim, peer.structural_similarity_index_measure),
        (ms_ssim, peer.multiscale_structural_similarity_index_measure),
    ):
        ours, theirs = mine(b, a, protocol="torchmetrics"), its(b, a, **options)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
        # their squares are not taken around mid-grey, which costs digits: gradients are compared in double precision
        found, wanted = (b.double().requires_grad_() for _ in range(2))
        mine(found, a.double(), protocol="torchmetrics").mean().backward()
        its(wanted, a.double(), **options).mean().backward()
        assert float((found.grad - wanted.grad).abs().max()) <= 1e-6 * float(wanted.grad.abs().max())
    loss = MSSSIMLoss.preset("torchmetrics")
    torch.testing.assert_close(loss(b, a), 1 - ms_ssim(b, a, protocol="torchmetrics").mean())


@pytest.mark.parametrize("seed", [0, 1])
def test_ssim_is_scikit_images(seed: int) -> None:
    metrics = pytest.importorskip("skimage.metrics", reason="an oracle of the tests")
    a, b = pair(1, 60, 71, seed=seed)
    _, full = metrics.structural_similarity(
        a[0].numpy().astype(np.float64),
        b[0].numpy().astype(np.float64),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1.0,
        full=True,
    )
    assert float(ssim(a, b)) == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-4)


def test_protocols_differ_at_odd_sizes_alone() -> None:
    a, b = pair(1, 1, 192, 208)
    even = [float(ms_ssim(a, b, protocol=p)) for p in ("wang2003", "matlab", "vainf", "y_channel")]
    assert max(even) - min(even) < 1e-6
    c, d = pair(1, 1, 179, 191)
    odd = {p: round(float(ms_ssim(c, d, protocol=p)), 6) for p in ("wang2003", "matlab", "vainf")}
    assert len(set(odd.values())) == 3


def test_the_matlab_protocol_mirrors_an_odd_edge() -> None:
    a, b = pair(1, 1, 23, 25)
    options = {"win_size": 3, "weights": (0.4, 0.6)}
    mirrored = [torch.cat((x, x[..., -1:]), -1) for x in (a, b)]
    mirrored = [torch.cat((x, x[..., -1:, :]), -2) for x in mirrored]
    fine, coarse = (ssim_parts(*p) for p in ((a, b), [torch.nn.functional.avg_pool2d(x, 2) for x in mirrored]))
    assert float(ms_ssim(a, b, protocol="matlab", **options)) == pytest.approx(
        fine[1] ** 0.4 * coarse[0] ** 0.6, abs=1e-6
    )


def ssim_parts(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Mean SSIM and mean contrast-structure under a window of three, from the naive path."""
    from saccade.ops.ssim import gaussian, similarity

    found = (
        similarity(a, b, gaussian(3, 1.5), c1=1e-4, c2=9e-4, level=0.5, luminance=lit, fast=False)
        for lit in (True, False)
    )
    mean, contrast = (float(x.mean()) for x in found)
    return mean, contrast


def test_the_y_channel_protocol_is_luma() -> None:
    a, b = pair(1, 3, 40, 44)
    assert torch.equal(ssim(a, b, protocol="y_channel"), ssim(luma(a), luma(b)))


# --- scales ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["wang2003", "matlab", "vainf"])
@pytest.mark.parametrize("win_size", [3, 7, 11])
def test_as_many_scales_are_chosen_as_can_be_measured(protocol: str, win_size: int) -> None:
    for side in range(win_size, 190, 7):
        weights = for_size(side, 300, win_size=win_size, protocol=protocol)
        assert math.fsum(weights) == pytest.approx(1)
        if protocol != "wang2003":
            assert (win_size - 1) * 2 ** (len(weights) - 1) < side
            assert len(weights) == 5 or (win_size - 1) * 2 ** len(weights) >= side
        a, b = pair(1, 1, side, 300)
        options = {"win_size": win_size, "protocol": protocol}
        assert torch.isfinite(ms_ssim(a, b, weights=weights, **options)).all()
        if len(weights) < 5:
            with pytest.raises(InputError, match=f"the largest usable M there is {len(weights)}"):
                ms_ssim(a, b, weights=WEIGHTS[: len(weights) + 1], **options)


def test_fewer_scales_keep_the_papers_proportions() -> None:
    weights = for_size(64, 64)
    assert len(weights) == 3
    assert weights[1] / weights[0] == pytest.approx(WEIGHTS[1] / WEIGHTS[0])
    with pytest.raises(InputError, match=r"does not fit into 9x8 pixels; the largest that does is 7"):
        for_size(8, 9)


def test_figures_of_pictures_do_not_mix() -> None:
    a, b = pair(3, 1, 176, 176)
    b = torch.stack((b[0], a[1], 1 - a[2]))  # noisy, equal, inverted: negative contrast counts as zero
    found = ms_ssim(a, b)
    assert float(found[1]) == pytest.approx(1, abs=1e-6)
    assert 0.1 < float(found[0]) < 1
    assert float(found[2]) == 0


# --- the loss -------------------------------------------------------------------------------------------------------


def test_the_loss_is_one_minus_the_score_and_holds_no_state() -> None:
    a, b = pair(2, 3, 64, 70)
    loss = MSSSIMLoss.for_size(64, 70)
    score = ms_ssim(a, b, weights=for_size(64, 70))
    torch.testing.assert_close(loss(a, b), 1 - score.mean())
    torch.testing.assert_close(MSSSIMLoss.for_size(64, 70, scale=3.0)(a, b), 3 * (1 - score.mean()))
    assert not loss.state_dict()
    assert not list(loss.parameters())
    assert torch.equal(loss.half()(a, b), MSSSIMLoss.for_size(64, 70)(a, b))


def test_gradients_of_the_loss_hold() -> None:
    a, b = (x.double().requires_grad_() for x in pair(1, 1, 24, 24))
    for options in ({}, {"mix": 0.84}, {"protocol": "vainf"}):
        loss = MSSSIMLoss((0.4, 0.6), win_size=5, **options)
        assert torch.autograd.gradcheck(loss, (a, b), fast_mode=bool(options))


def test_the_mix_weighs_pixels_by_the_coarsest_window() -> None:
    from saccade.ops.ssim import gaussian

    a, b = pair(1, 1, 41, 37)
    loss = MSSSIMLoss((0.5, 0.5), win_size=5, mix=0.84)
    line = torch.tensor(gaussian(9, 3.0))
    blurred = torch.conv2d((a - b).abs(), torch.outer(line, line)[None, None])
    wanted = 0.84 * (1 - ms_ssim(a, b, weights=(0.5, 0.5), win_size=5)) + 0.16 * blurred.mean()
    torch.testing.assert_close(loss(a, b), wanted[0])
    assert MSSSIMLoss.preset("zhao2017").mix == 0.84
    assert float(MSSSIMLoss((1.0,), mix=0.0)(a / 2, a / 2 + 0.1)) == pytest.approx(0.1, abs=1e-6)


def test_the_mix_sees_a_shift_of_colour_that_the_score_hardly_sees() -> None:
    a, _ = pair(1, 3, 64, 64)
    a = 0.2 + 0.6 * a
    shifted = a + torch.tensor([0.05, 0.0, -0.05])[None, :, None, None]
    pure, mixed = MSSSIMLoss.for_size(64, 64), MSSSIMLoss.for_size(64, 64, mix=0.84)
    assert float(mixed(shifted, a)) > 3 * float(pure(shifted, a))


def test_the_guard_keeps_gradients_of_opposite_pictures_finite() -> None:
    a, _ = pair(1, 1, 64, 64)
    for guard in (0.0, 1e-4):
        made = (1 - a).requires_grad_()
        MSSSIMLoss.for_size(64, 64, guard=guard)(made, a).backward()
        assert torch.isfinite(made.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype: torch.dtype) -> None:
    a, b = (x.to(dtype) for x in pair(1, 3, 64, 64, noise=0.02))
    loss = MSSSIMLoss.for_size(64, 64)
    made = b.clone().requires_grad_()
    found = loss(made, a)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), loss(b.double(), a.double()), rtol=0, atol=1e-6)
    found.backward()
    assert made.grad.dtype == dtype


def test_automatic_mixed_precision_leaves_the_loss_alone() -> None:
    a, b = pair(1, 3, 64, 64, noise=0.02)
    for options in ({}, {"mix": 0.5}, {"protocol": "y_channel"}):
        loss = MSSSIMLoss.for_size(64, 64, **options)
        with torch.autocast("cpu", torch.bfloat16):
            found = loss(b, a)
        assert found.dtype == torch.float32
        assert torch.equal(found, loss(b, a))


@pytest.mark.parametrize("shape", [(0, 3, 64, 64), (1, 0, 64, 64), (0, 64, 64)], ids=str)
def test_no_pictures_at_all_are_refused(shape: tuple[int, ...]) -> None:
    empty = torch.zeros(shape)
    for measure in (ssim, ms_ssim, psnr, *([MSSSIMLoss.for_size(64, 64)] if len(shape) == 4 else [])):
        with pytest.raises(InputError, match="expected pictures"):
            measure(empty, empty)


def test_range_255_is_range_1() -> None:
    a, b = pair(1, 1, 64, 64)
    one, full = MSSSIMLoss.for_size(64, 64, mix=0.84), MSSSIMLoss.for_size(64, 64, mix=0.84, data_range=255.0)
    torch.testing.assert_close(full(255 * a, 255 * b), one(a, b))


def test_the_loss_works_under_compilation_paths() -> None:
    a, b = pair(1, 1, 64, 64)
    loss = MSSSIMLoss.for_size(64, 64)
    traced = torch.export.export(loss, (a, b)).module()
    torch.testing.assert_close(traced(a, b), loss(a, b), rtol=0, atol=1e-5)


# --- bad input ------------------------------------------------------------------------------------------------------


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: MSSSIMLoss.for_size(64, 64)(zeros(1, 1, 64, 64), zeros(1, 1, 64, 65)), InputError, r"\(B, C, H, W\)"),
        (lambda: MSSSIMLoss.for_size(64, 64)(zeros(1, 64, 64), zeros(1, 64, 64)), InputError, r"\(B, C, H, W\)"),
        (lambda: MSSSIMLoss()(zeros(1, 1, 64, 64), zeros(1, 1, 64, 64)), InputError, "largest usable M there is 3"),
        (lambda: MSSSIMLoss()(zeros(1, 1, 8, 64), zeros(1, 1, 8, 64)), InputError, "a window of at most 7"),
        (lambda: MSSSIMLoss()(zeros(1, 1, 9, 9).long(), zeros(1, 1, 9, 9).long()), InputError, "data_range=255"),
        (lambda: MSSSIMLoss(win_size=10), UsageError, "odd number of taps, not 10"),
        (lambda: MSSSIMLoss(data_range=0.0), UsageError, "data range"),
        (lambda: MSSSIMLoss(()), UsageError, "positive weights"),
        (lambda: MSSSIMLoss((0.5, -0.5)), UsageError, "positive weights"),
        (lambda: MSSSIMLoss(mix=1.5), UsageError, "mix"),
        (lambda: MSSSIMLoss(scale=float("inf")), UsageError, "scale"),
        (lambda: MSSSIMLoss(protocol="piq"), UsageError, "no protocol 'piq'"),
        (lambda: MSSSIMLoss.preset("msssim"), UsageError, "no preset 'msssim'; there are zhao2017, wang2003"),
        (lambda: ssim(zeros(1, 20, 20), zeros(1, 20, 20), win_size=4), UsageError, "odd"),
        (lambda: ssim(zeros(1, 20, 20), zeros(1, 20, 20), protocol="x"), UsageError, "no protocol"),
        (lambda: ssim(zeros(1, 20, 20).long(), zeros(1, 20, 20).long()), InputError, "int64.*data_range=255"),
    ],
)
def test_bad_input_is_refused_with_a_reason(call, error: type[Exception], says: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=says):
        call()


def test_what_is_no_number_ends_measuring_but_not_training() -> None:
    a, b = pair(1, 1, 64, 64)
    b[..., 3, 3] = float("nan")
    loss = MSSSIMLoss.for_size(64, 64)
    assert loss(b.requires_grad_(), a).isnan()
    with pytest.raises(InputError, match="not numbers"):
        loss.eval()(b, a)
    for measure in (ssim, lambda x, y: ms_ssim(x, y, weights=(0.5, 0.5))):
        with pytest.raises(InputError, match="not numbers"):
            measure(a, b.detach())


def test_values_beyond_the_range_are_warned_of_once() -> None:
    a, b = pair(1, 1, 64, 64)
    structure._warned.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ssim(a, b)
    with pytest.warns(UserWarning, match=r"\[.*255\] times data_range"):
        ssim(torch.cat((a, torch.full_like(a, 255)), 0), torch.cat((b, b), 0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ssim(2 * a - 1, b)
    structure._warned.cache_clear()
