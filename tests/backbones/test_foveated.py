"""Foveated systems: windows, the transform's invariants, published counts and files, probes, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from torch import Tensor, nn
from torchvision.models import resnet18

from saccade.backbones.foveated import (
    FoveatedNetwork,
    FoveatedTexture,
    InFront,
    Regions,
    Windows,
    foveate,
    painted_regions,
    pooling_regions,
    stage,
)
from saccade.backbones.foveated.adain import (
    Decoder,
    Encoder,
    adain,
    adain_losses,
    coral,
    from_decoder,
    from_encoder,
    moments,
    roots,
)
from saccade.backbones.foveated.blurs import BOUND, FoveatedBlur, gaussian_blur, gaussian_blur_plainly, matched
from saccade.backbones.foveated.lapped import Lapped, Unlapped
from saccade.backbones.foveated.network import from_official
from saccade.backbones.foveated.probes import GREY, area, cue_conflict, high_pass, low_pass, occlude, sweep
from saccade.backbones.foveated.stages import SCALES
from saccade.backbones.foveated.transform import painted, painted_in_turn
from saccade.backbones.foveated.windows import blending
from saccade.checkpoint import fit, load
from saccade.cost import cost, count_parameters
from saccade.data.generated import dead_leaves
from saccade.errors import InputError, UsageError
from saccade.ops.segment_stats import segment_stats
from saccade.quality.structure import ssim
from saccade.registry import create


def leaves(side: int = 128, seed: int = 0) -> Tensor:
    """A generated photograph, (1, 3, side, side)."""
    return torch.from_numpy(dead_leaves(side, side, seed).copy()).permute(2, 0, 1)[None] / 255


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -- windows


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("fixation", [(0.5, 0.5), (0.2, 0.9)])
def test_windows_add_up_to_one(scale: float, fixation: tuple[float, float]) -> None:
    windows = Windows((96, 128), scale, fixation)
    assert np.abs(windows.ring_weights().sum(0) - 1).max() < 1e-3
    total = np.sum([weights for _, weights in windows.weights()], 0)
    assert np.abs(total - 1).max() < 1e-3


@pytest.mark.parametrize("scale", SCALES)
def test_a_window_is_scale_times_as_wide_as_its_eccentricity(scale: float) -> None:
    windows = Windows((1024, 1024), scale)
    ring = max(k for k in range(windows.rings) if windows.radius(k) * 2 ** (windows.octaves / 2) < 512)
    profile = windows.ring_weights()[1 + ring][512, 512:]  # along a row from the fixation
    wide = int((profile > 0.5).sum())
    assert wide / windows.radius(ring) == pytest.approx(scale, rel=0.1)
    around = 2 * math.pi * windows.radius(ring) / windows.spokes
    assert around / windows.radius(ring) == pytest.approx(scale / 2, rel=0.1), "aspect 2: half as wide as long"


def test_the_closed_forms_are_those_of_the_windows() -> None:
    windows = Windows((64, 80), 0.5, (0.4, 0.6))
    masks = {place: weights for place, weights in windows.weights() if (weights > 0.5).any()}
    areas, strongest = windows.areas(), windows.strongest()
    best = np.max(np.stack(list(masks.values())), 0)
    for (ring, spoke), weights in masks.items():
        number = 0 if ring < 0 else 1 + ring * windows.spokes + spoke
        assert areas[number] == (weights > 0.5).sum()
        own = (strongest == number) & (best > 0.5)
        assert np.array_equal(own, weights > 0.5)


def test_regions_at_the_published_size() -> None:
    """187 were published at scale 0.4; the windows that shipped are not reproducible to the piece."""
    counts = {scale: len(pooling_regions(Windows((512, 512), scale))) for scale in SCALES}
    assert counts == {0.25: 313, 0.3: 235, 0.4: 172, 0.5: 119, 0.6: 93, 0.7: 85}
    strong = [(weights > 0.5).any() for _, weights in Windows((512, 512), 0.4).weights()]
    assert sum(strong) == 296, "windows with a pixel above one half"


def test_strongest_regions_are_a_partition_and_the_fovea_is_round() -> None:
    regions = pooling_regions(Windows((256, 256)))
    assert torch.equal(regions.sizes, torch.bincount(regions.owner))
    assert int(regions.sizes.sum()) == 32 * 32
    assert int(regions.sizes.min()) >= 2
    fovea = (regions.owner == 0).view(32, 32)
    assert torch.equal(fovea, fovea.flip(0))
    assert torch.equal(fovea, fovea.T)
    assert regions.alpha[0] == 0
    assert 0 < float(regions.alpha[1:].min()) < float(regions.alpha.max()) < 1


def test_order_paints_later_windows_over_earlier_ones() -> None:
    masks = torch.zeros(3, 4, 4)
    masks[0], masks[1, 1:3, 1:3], masks[2, 2:, 2:] = 0.002, 1, 1
    regions = painted_regions(masks, torch.tensor([0.0, 0.5, 1.0]))
    owner = regions.owner.view(4, 4)
    assert owner[0].tolist() == [0, 0, 0, 0]
    assert owner[1].tolist() == [0, 1, 1, 0]
    assert owner[2].tolist() == [0, 1, 2, 2]
    assert regions.sizes.tolist() == [16, 4, 4], "a region's statistics are of all its cells"


def test_an_uncovered_cell_is_an_error_and_zero_in_the_official_form() -> None:
    masks = torch.zeros(2, 3, 3)
    masks[0, :2], masks[1, 2, :2] = 1, 1
    alpha = torch.tensor([0.0, 0.5])
    with pytest.raises(InputError, match="1 of 9 cells are in no region"):
        painted_regions(masks, alpha)
    regions = painted_regions(masks, alpha, compat="official")
    x = torch.randn(1, 2, 3, 3, generator=seeded(0)) + 5
    out = painted(x, torch.randn(1, 2, 3, 3, generator=seeded(1)), regions)
    assert (out[:, :, 2, 2] == 0).all()
    assert torch.equal(out[:, :, :2], x[:, :, :2])
    with pytest.raises(UsageError, match="compat"):
        painted_regions(masks, alpha, compat="lua")


def test_blends() -> None:
    pixels = torch.tensor([1000.0, 5.0, 300.0, 9000.0])
    alpha = blending(pixels)
    assert alpha[0] == 0, "the fovea's"
    rho = math.sqrt(300 / 3.14) * 26 / 512
    assert float(alpha[2]) == pytest.approx(-1 + 2 / (1 + math.exp(-1.281 * rho)), abs=1e-6)


# -- the transform


@pytest.mark.parametrize("block", [2, 4, 8])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_lapped_transform_is_orthogonal(block: int, channels: int) -> None:
    x = torch.randn(2, channels, 4 * block, 6 * block, generator=seeded(0))
    features = Lapped(block, channels)(x)
    assert features.shape == (2, channels * block**2, 4, 6)
    torch.testing.assert_close(Unlapped(block, channels)(features), x, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(features.square().sum(), x.square().sum())
    flat = Lapped(block, 3)(torch.full((1, 3, 4 * block, 4 * block), 0.3))
    assert int((flat.abs() > 1e-5).sum()) == 16, "a constant lies in the lowest band of lightness"


@pytest.mark.parametrize("painting", ["strongest", "order"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_painting_at_once_is_painting_in_turn_with_its_gradients(painting: Any, dtype: torch.dtype) -> None:
    regions = pooling_regions(Windows((64, 80), 0.6, (0.4, 0.5)), 4, painting=painting)
    told = [torch.randn(2, 5, *regions.grid, generator=seeded(i), dtype=dtype) for i in (0, 1)]
    weight = torch.randn(told[0].shape, generator=seeded(2), dtype=dtype)
    found = []
    for paint in (painted, painted_in_turn):
        content, noise = (t.clone().requires_grad_() for t in told)
        out = paint(content, noise, regions)
        (out * weight).sum().backward()
        found.append([out.detach(), content.grad, noise.grad])
    tolerance = 2e-5 if dtype == torch.float32 else 1e-7  # alpha is float32
    for fast, truth in zip(*found, strict=True):
        assert fast is not None
        assert truth is not None
        torch.testing.assert_close(fast, truth, rtol=tolerance, atol=tolerance * max(1, float(truth.abs().max())))


@pytest.fixture(scope="module")
def full() -> tuple[FoveatedTexture, Tensor]:
    """A transform with alpha 1 in the whole periphery, and a picture."""
    size = (128, 128)
    own = pooling_regions(Windows(size), 4)
    alpha = torch.ones_like(own.alpha)
    alpha[0] = 0
    regions = Regions(own.grid, own.cells, own.segments, own.sizes, own.owner, alpha)
    return FoveatedTexture(size, regions=regions, block=4), leaves()


def _stats(transform: FoveatedTexture, picture: Tensor) -> tuple[Tensor, Tensor]:
    own = transform.regions
    rows = transform.encoder(picture).flatten(2).mT
    mean, var = segment_stats(rows, own.cells, own.segments, own.sizes)
    return mean, var.sqrt()


def test_every_region_keeps_its_means_and_deviations(full: tuple[FoveatedTexture, Tensor]) -> None:
    transform, picture = full
    made = [transform.decoder(transform.features(picture, seeded(i))) for i in (0, 1)]
    want = _stats(transform, picture)
    for one in made:
        for found, truth in zip(_stats(transform, one), want, strict=True):
            torch.testing.assert_close(found, truth, rtol=0.01, atol=1e-4)
    differ = (made[0] - made[1]).abs().mean()
    assert differ > 0.02, "two noises, two pictures"


def test_the_periphery_is_another_picture_and_the_fovea_the_same(full: tuple[FoveatedTexture, Tensor]) -> None:
    transform, picture = full
    made = transform(picture, seeded(0))
    fovea = (transform.owner == 0).view(1, 1, 32, 32).float()
    # a lapped band reaches half a block further: cells whose neighbours are foveal too
    deep = nn.functional.avg_pool2d(nn.functional.pad(fovea, (1,) * 4), 3, 1) > 0.999
    inside = deep.repeat_interleave(4, 2).repeat_interleave(4, 3).expand_as(picture)
    assert inside.float().mean() > 0.02
    torch.testing.assert_close(made[inside], transform.reference(picture)[inside], rtol=0, atol=1e-5)
    own, other = (transform.encoder(p).flatten(2).mT for p in (picture, made))
    mean, _ = _stats(transform, picture)
    rest = [(rows - mean.index_select(1, transform.owner))[:, transform.owner > 0].flatten() for rows in (own, other)]
    assert abs(float(torch.corrcoef(torch.stack(rest))[0, 1])) < 0.3


def test_the_noise_is_the_generators_or_the_seeds() -> None:
    transform, picture = FoveatedTexture((64, 64), 0.5), leaves(64)
    torch.manual_seed(3)
    first = transform(picture)
    torch.manual_seed(4)
    assert torch.equal(transform(picture), first), "not the global generator's"
    assert torch.equal(transform(picture, seeded(1)), transform(picture, seeded(1)))
    assert not torch.equal(transform(picture, seeded(1)), transform(picture, seeded(2)))
    pair = transform(picture.expand(2, -1, -1, -1), seeded(1))
    assert not torch.equal(pair[0], pair[1]), "every picture has noise of its own"
    other = FoveatedTexture((64, 64), 0.5, seed=1)
    assert not torch.equal(other(picture), first)


def test_the_transform_has_a_gradient() -> None:
    transform = FoveatedTexture((32, 32), 0.6, block=2)
    x = leaves(32).requires_grad_()
    transform(x).square().mean().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_a_constant_picture_stays(value: float) -> None:
    picture = torch.full((1, 3, 64, 64), value)
    torch.testing.assert_close(FoveatedTexture((64, 64), 0.5)(picture), picture, rtol=0, atol=2e-2)
    assert coral(torch.randn(1, 3, 8, 8, generator=seeded(0)), picture).isfinite().all()


def test_roots_are_those_of_the_eigenvectors() -> None:
    x = torch.randn(4, 3, 50, generator=seeded(0))
    x[1, 1] = x[1, 0]  # two channels alike, as in grey pictures
    x[2] = 100 * x[2, :1]
    matrix = x @ x.mT + torch.eye(3)
    values, vectors = torch.linalg.eigh(matrix.double())
    root, inverse = roots(matrix)
    want = vectors @ torch.diag_embed(values.sqrt()) @ vectors.mT
    torch.testing.assert_close(root.double(), want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))
    torch.testing.assert_close(inverse.double(), want.inverse(), rtol=1e-4, atol=1e-4)


def test_colours_of_a_single_pixel_are_refused() -> None:
    with pytest.raises(InputError, match="single pixel"):
        coral(torch.rand(2, 3, 4, 4), torch.rand(2, 3, 1, 1))
    with pytest.raises(InputError, match="single pixel"):
        coral(torch.rand(2, 3, 1, 1), torch.rand(2, 3, 4, 4))


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("size", [(5, 7), (8, 6), (1, 1)])
def test_squares_in_the_middle_cover_their_part_and_never_leave_the_picture(part: float, size: tuple[int, int]) -> None:
    centre, surround = torch.ones(1, 1, *size), torch.zeros(1, 1, *size)
    shown = cue_conflict(centre, surround, part, kind="square")[0, 0]
    area = float(shown.mean())
    assert area >= part - 1e-6
    for axis, side in ((1, size[0]), (0, size[1])):
        places = shown.any(axis).nonzero().flatten().tolist()
        assert places == list(range(places[0], places[-1] + 1)) if places else part == 0
        assert not places or abs((places[0] + places[-1] + 1) / 2 - side / 2) <= 0.5
    assert bool(shown.all()) == (part == 1.0) or size == (1, 1)


def test_coral_gives_the_target_its_colours() -> None:
    target = leaves(64)
    made = coral(torch.randn(1, 3, 64, 64, generator=seeded(0)), target)
    for statistic in (lambda t: t.flatten(2).mean(2), lambda t: t[0].flatten(1).cov()):
        torch.testing.assert_close(statistic(made), statistic(target), rtol=0.01, atol=1e-3)


def test_grey_pictures_and_other_sizes_go() -> None:
    for size, fixation in (((64, 96), (0.5, 0.5)), ((72, 64), (0.0, 1.0))):
        transform = FoveatedTexture(size, 0.5, fixation, channels=1)
        made = transform(torch.rand(1, 1, *size, generator=seeded(0)))
        assert made.shape == (1, 1, *size)
        assert made.isfinite().all()


@pytest.mark.parametrize("kind", ["texture", "blur", "uniform"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_are_rounding_away_from_single(kind: str, dtype: torch.dtype) -> None:
    x = leaves(128)
    want = stage(kind, (128, 128))(x)
    made = stage(kind, (128, 128)).to(dtype)(x.to(dtype))
    assert made.dtype == dtype
    assert (made.float() - want).abs().max() <= 3 * torch.finfo(dtype).eps, "of the picture, and of the result"
    with torch.autocast("cpu", dtype):
        found = stage(kind, (128, 128))(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_statistics_beyond_half_precision_stay_finite(dtype: torch.dtype) -> None:
    """Scatter matrices of more pixels than float16 counts, and squares beyond its range."""
    noise, target = (torch.randn(1, 3, 300, 300, generator=seeded(i)) for i in (0, 1))
    made = coral(noise.to(dtype), target.to(dtype))
    assert made.dtype == dtype
    torch.testing.assert_close(made.float(), coral(noise, target), rtol=0, atol=0.05)
    loud = (400 * noise[:, :, :20, :20]).to(dtype)
    mean, deviation = moments(loud)
    torch.testing.assert_close(deviation.float(), moments(loud.float())[1], rtol=0.01, atol=0)
    assert mean.dtype == deviation.dtype == adain(loud, loud).dtype == dtype
    torch.testing.assert_close(adain(loud, loud), loud, rtol=0.02, atol=2)
    regions = pooling_regions(Windows((64, 64), 0.6), 4)
    small = 1e-4 * torch.randn(2, 1, 5, 16, 16, generator=seeded(2))  # variances of 1e-8 are 0 in float16
    found = painted(small[0].to(dtype), small[1].to(dtype), regions, 1e-14)
    torch.testing.assert_close(found.float(), painted(small[0], small[1], regions, 1e-14), rtol=0.05, atol=5e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_given_networks_run_in_the_dtype_of_their_weights(dtype: torch.dtype) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transform = FoveatedTexture((64, 64), 1.0, encoder=Encoder(), decoder=Decoder())
    x = leaves(64)
    with torch.no_grad():
        want = transform(x)
        with torch.autocast("cpu", dtype):
            torch.testing.assert_close(transform(x), want, rtol=0, atol=0.02)
        made = transform.to(dtype)(x.to(dtype))
        assert made.dtype == dtype
        torch.testing.assert_close(made.float(), want, rtol=0, atol=0.02)
        assert transform.reference(x.to(dtype)).dtype == dtype


# -- the controls


def test_blurs_of_nothing_leave_the_picture_and_constants_stay() -> None:
    x = leaves(64)
    assert torch.equal(gaussian_blur(x, 0), x)
    flat = torch.full((1, 3, 64, 64), 0.3)
    torch.testing.assert_close(gaussian_blur(flat, 3), flat)
    torch.testing.assert_close(FoveatedBlur((64, 64), gain=0.2)(flat), flat)
    torch.testing.assert_close(FoveatedBlur((64, 64), gain=0)(x), x)


def test_foveated_blur_grows_with_eccentricity() -> None:
    x = torch.rand(1, 1, 128, 128, generator=seeded(0))
    made = FoveatedBlur((128, 128), gain=0.1)(x)
    y, x_ = torch.meshgrid(torch.arange(128) - 63.5, torch.arange(128) - 63.5, indexing="ij")
    radius = torch.hypot(y, x_)
    spread = [float(made[0, 0][(radius >= low) & (radius < low + 12)].std()) for low in (0, 12, 24, 40, 52)]
    assert spread == sorted(spread, reverse=True)
    assert spread[0] > 2 * spread[-1]
    middle = radius < Windows((128, 128)).foveal_radius
    torch.testing.assert_close(made[0, 0][middle], x[0, 0][middle])


def rings_in_turn(x: Tensor, scale: float, fixation: tuple[float, float], gain: float) -> Tensor:
    """`FoveatedBlur` as its equation reads: every ring over the whole picture, by convolutions."""
    windows = Windows((x.shape[2], x.shape[3]), scale, fixation)
    fovea, *rings = torch.from_numpy(windows.ring_weights()).to(x.dtype)
    blurred = [gaussian_blur_plainly(x, gain * windows.radius(k)) for k in range(windows.rings)]
    return fovea * x + sum(ring * one for ring, one in zip(rings, blurred, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("size", "sigma"), [((40, 300), 4.5), ((140, 260), 17.0), ((9, 131), 30.0), ((1, 1), 50.0)])
def test_wide_gaussians_are_the_convolutions_with_their_gradient(
    size: tuple[int, int], sigma: float, dtype: torch.dtype
) -> None:
    given, weight = (torch.rand(2, 2, *size, generator=seeded(i), dtype=dtype) for i in (0, 1))
    found = []
    for blur in (gaussian_blur_plainly, gaussian_blur, lambda x, s: gaussian_blur(x, s, exact=False)):
        x = given.clone().requires_grad_()
        y = blur(x, sigma)
        found.append((y.detach(), torch.autograd.grad((y * weight).sum(), x)[0]))
    truth, ours, coarse = found
    rounding = 3e-5 if dtype == torch.float32 else 1e-11  # one gradient sums 90,000 products
    for one, other in zip(ours, truth, strict=True):
        torch.testing.assert_close(one, other, rtol=rounding, atol=rounding / 10)
    assert (coarse[0] - truth[0]).abs().max() <= BOUND
    if sigma < 16:
        assert torch.equal(coarse[0], ours[0])


@pytest.mark.parametrize("sigma", [16.0, 16.3, 23.9, 24.0, 40.0])
def test_the_worst_picture_for_a_coarse_grid_is_within_the_bound(sigma: float) -> None:
    """Half the magnitudes of the kernels' difference: what a picture of 0 and 1 that is drawn for it reaches."""
    step, radius = int(sigma // 8), math.ceil(3 * sigma)
    length = 2 * radius + 6 * step
    point = torch.eye(length, dtype=torch.float64)[:, None, None]  # a picture a place, (length, 1, 1, length)
    middle = slice(radius + 2 * step, radius + 3 * step)  # one place of each kind

    def seen(exact: bool) -> Tensor:
        return gaussian_blur(point, sigma, exact=exact)[:, 0, 0, middle]

    off = 0.5 * float((seen(False) - seen(True)).abs().sum(0).max())
    assert 0 < off * (1 + 1.25) <= BOUND, "both axes; cubic interpolation enlarges by 1.25 at the most"


@pytest.mark.parametrize(
    ("fixation", "gain"), [((0.5, 0.5), 0.094), ((0.1, 0.8), 0.4), ((0.0, 1.0), 0.02), ((1, 0), 0)]
)
@pytest.mark.parametrize("size", [(150, 270), (33, 40)])
def test_rings_are_blurred_where_they_weigh_as_if_everywhere(
    size: tuple[int, int], fixation: tuple[float, float], gain: float
) -> None:
    x = torch.rand(2, 3, *size, generator=seeded(0))
    want = rings_in_turn(x, 0.5, fixation, gain) if gain else x
    found = FoveatedBlur(size, 0.5, fixation, gain=gain)(x)
    torch.testing.assert_close(found, want, rtol=0, atol=5e-6)
    coarse = FoveatedBlur(size, 0.5, fixation, gain=gain, exact=False)(x)
    assert (coarse - found).abs().max() <= BOUND


def test_a_graph_of_the_foveated_blur_gives_the_same() -> None:
    x, model = torch.rand(1, 3, 33, 40, generator=seeded(0)), FoveatedBlur((33, 40), 0.7, gain=0.3)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x), rtol=0, atol=5e-6)


def test_the_foveated_blur_has_the_gradient_of_its_equation() -> None:
    given = torch.rand(1, 2, 48, 40, generator=seeded(0), dtype=torch.float64)
    weight = torch.rand(given.shape, generator=seeded(1), dtype=torch.float64)
    found = []
    for blur in (FoveatedBlur((48, 40), 0.5, gain=0.3), lambda x: rings_in_turn(x, 0.5, (0.5, 0.5), 0.3)):
        x = given.clone().requires_grad_()
        found.append(torch.autograd.grad((blur(x) * weight).sum(), x)[0])
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)  # weights are of float32 coordinates


def test_blurs_are_matched_by_ssim() -> None:
    x = leaves(96)
    wanted = float(ssim(FoveatedTexture((96, 96))(x), x).mean())
    sigma = matched(lambda v: gaussian_blur(x, v), x, wanted, high=20)
    assert abs(float(ssim(gaussian_blur(x, sigma), x).mean()) - wanted) <= 0.005
    with pytest.raises(InputError, match="no strength gives an SSIM"):
        matched(lambda v: x, x, 0.5, high=1)


# -- networks and files


def test_published_counts() -> None:
    assert count_parameters(create("foveated_encoder", weights=None)) == 3_505_740
    assert count_parameters(create("foveated_decoder", weights=None)) == 3_505_219
    for kind in ("texture", "reference", "uniform", "blur"):
        assert count_parameters(create(f"foveated_{kind}_resnet18", weights=None)) == 11_689_512, "torchvision's"
    model = create("foveated_reference_resnet18", weights=None)
    counted = cost(model, torch.empty(1, 3, 224, 224, device="meta"))
    assert round(counted.macs / 1e6) == 1814


def test_the_network_is_torchvisions_and_reads_the_published_training() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        peer = zoo.randomised(resnet18(num_classes=20).eval())
        x = torch.randn(2, 3, 64, 96)
    recipe = from_official(peer.state_dict())
    assert recipe is not None
    ours = create(recipe.model, weights=None, **recipe.options)
    fit(ours, recipe.state, "official")
    with torch.no_grad():
        torch.testing.assert_close(ours(x), peer(x), rtol=1e-5, atol=1e-5)
    assert from_official(resnet18(num_classes=10).state_dict()) is None, "no file of these systems"


def test_published_files_are_recognised(tmp_path: Path) -> None:
    encoder, decoder = Encoder(), Decoder()
    later = {"51.weight": torch.zeros(512, 512, 3, 3), "51.bias": torch.zeros(512)}
    for network, read, more in ((encoder, from_encoder, later), (decoder, from_decoder, {})):
        state = {**network.state_dict(), **more}
        recipe = read(state)
        assert recipe is not None
        torch.save(state, tmp_path / "published.pth")
        back = load(tmp_path / "published.pth")
        assert type(back) is type(network)
        assert all(torch.equal(v, network.state_dict()[k]) for k, v in back.state_dict().items())
    assert from_decoder(encoder.state_dict()) is None
    assert from_encoder({**encoder.state_dict(), "0.weight": torch.zeros(3, 3, 3, 3)}) is None


def test_picture_and_noise_give_the_same_encoded_together_and_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    transform = FoveatedTexture((64, 64), 1.0, encoder=Encoder(), decoder=Decoder())
    picture = torch.rand(2, 3, 64, 64, generator=seeded(0))
    with torch.no_grad():
        together = transform.features(picture)
        monkeypatch.setattr("saccade.backbones.foveated.transform.TOGETHER", 0)
        torch.testing.assert_close(transform.features(picture), together)


def test_the_published_networks_take_the_place_of_the_lapped_transform() -> None:
    encoder, decoder = Encoder(), Decoder()
    transform = FoveatedTexture((64, 64), 1.0, encoder=encoder, decoder=decoder)
    assert transform.stride == 8
    assert not transform.pink
    x = leaves(64)
    with torch.no_grad():
        assert transform(x).shape == x.shape
        torch.testing.assert_close(transform.reference(x), decoder(encoder(x)).clamp(0, 1))
        assert encoder(x[:, :, :61, :58]).shape[2:] == (8, 8), "pools round up"


def test_losses_vanish_where_they_should() -> None:
    encoder = zoo.randomised(Encoder())
    assert isinstance(encoder, Encoder)
    x = leaves(32)

    class Given(nn.Module):
        def forward(self, _: Tensor) -> Tensor:
            return x

    content, style = (loss.detach() for loss in adain_losses(encoder, Given(), x, x))
    assert float(style) < 1e-8
    assert float(content) < 1e-6 * float(encoder(x).detach().square().mean()) + 1e-8
    with pytest.raises(UsageError, match="alpha"):
        adain_losses(encoder, Given(), x, x, alpha=1.5)


@pytest.mark.parametrize("kind", ["texture", "reference", "uniform", "blur"])
def test_each_system_is_its_stage_and_the_same_network(kind: str) -> None:
    small: dict[str, Any] = {"widths": (8, 12), "depths": (1, 1), "small": True, "img_size": 64, "num_classes": 3}
    model = create("foveated", weights=None, kind=kind, **small)
    bare = create("foveated", weights=None, **{**small, "kind": "none"})
    assert isinstance(model, FoveatedNetwork)
    bare.load_state_dict(model.state_dict())
    picture, centre, spread = leaves(64), model.centre, model.spread
    shown = stage(kind, (64, 64))(picture)

    def standardised(x: Tensor) -> Tensor:
        return (x - centre) / spread

    with torch.no_grad():
        torch.testing.assert_close(model(standardised(picture)), bare(standardised(shown)), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            InFront(stage(kind, (64, 64)), bare)(picture), bare(standardised(shown)), rtol=1e-4, atol=1e-4
        )


def test_the_dial_counts_regions() -> None:
    model = create("foveated_texture_resnet18", weights=None)
    assert isinstance(model, FoveatedNetwork)
    transform = model.stage
    assert isinstance(transform, FoveatedTexture)
    settings = model.budgets()
    assert settings[-1] == 1
    assert len(settings) == 6
    for setting, scale in zip(settings, SCALES, strict=True):
        model.budget = setting
        assert transform.scale == scale
        assert model.budget == pytest.approx(setting)
    model.budget = 0.01
    assert transform.scale == 0.7, "the fewest that there are"
    with pytest.raises(UsageError, match="budget"):
        model.budget = 0
    assert create("foveated_uniform_resnet18", weights=None).budget == 1


# -- one call


def test_foveate_gives_back_what_it_was_given(tmp_path: Path) -> None:
    from PIL import Image

    pixels = dead_leaves(64, 96, 1)
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "leaves.png")
    found = foveate(pixels)
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.uint8
    assert found.shape == pixels.shape
    assert not np.array_equal(found, pixels)
    for given in (picture, tmp_path / "leaves.png"):
        assert np.array_equal(np.asarray(foveate(given)), found)
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255
    made = foveate(tensor, generator=seeded(0))
    assert made.shape == tensor.shape
    assert foveate(tensor[None, :1]).shape == (1, 1, 64, 96)
    assert foveate(picture.convert("L")).mode == "L"
    torch.testing.assert_close(foveate(tensor, kind="reference"), tensor)


def test_sixteen_bits_are_read_as_such(tmp_path: Path) -> None:
    """A PIL picture of 16 bits went through 8 with all above 255 clipped to white."""
    from PIL import Image

    deep = dead_leaves(64, 96, 1).astype(np.uint16) * 257
    found = foveate(deep)
    assert found.dtype == np.uint16
    want = foveate(deep / np.float32(65535))
    assert np.abs(found / 65535 - want).max() <= 1 / 65535
    grey = Image.fromarray(deep[:, :, 0])
    assert grey.mode == "I;16"
    grey.save(tmp_path / "grey.png")
    for given in (grey, tmp_path / "grey.png"):
        made = foveate(given)
        assert made.mode == "I;16"
        assert np.array_equal(np.asarray(made), foveate(deep[:, :, 0]))

    import pyvips

    pyvips.Image.new_from_array(deep).copy(interpretation="rgb16").write_to_file(str(tmp_path / "colour.png"))
    made = foveate(tmp_path / "colour.png")
    assert made.mode == "RGB", "PIL has no colour of 16 bits"
    assert np.array_equal(np.asarray(made), np.rint(found / 257).astype(np.uint8))


def test_alpha_of_a_picture_stays() -> None:
    from PIL import Image

    pixels = dead_leaves(64, 96, 1)
    clear = Image.fromarray(np.dstack([pixels, pixels[:, :, 0]]))
    made = foveate(clear)
    assert made.mode == "RGBA"
    assert np.array_equal(np.asarray(made)[:, :, 3], pixels[:, :, 0])
    assert np.array_equal(np.asarray(made)[:, :, :3], foveate(pixels))


def test_the_fixation_is_where_the_picture_stays() -> None:
    x = leaves(128)
    made = foveate(x, (0.25, 0.75))
    off = (made - x).abs().mean((0, 1))
    assert float(off[91:101, 27:37].max()) < 0.02
    assert float(off[:40, 80:].mean()) > 0.02


@pytest.mark.parametrize(
    ("image", "options", "error", "says"),
    [
        (torch.rand(3, 61, 64), {}, InputError, "multiples"),
        (torch.rand(3, 64, 64) * 255, {}, InputError, "divide by 255"),
        ((torch.rand(3, 64, 64) * 255).byte(), {}, InputError, "divide whole numbers by 255"),
        (torch.rand(2, 64, 64), {}, InputError, "2 channels"),
        (np.zeros((64, 64, 3), np.int32), {}, InputError, "uint8"),
        (np.zeros((64, 64, 4), np.uint8), {}, InputError, "64, 64, 4"),
        ("photo", {}, InputError, "photo"),
        (3, {}, InputError, "int"),
        (torch.rand(3, 64, 64), {"fixation": (1.2, 0.5)}, UsageError, "outside the picture"),
        (torch.rand(3, 64, 64), {"fixation": (0.5, -0.1)}, UsageError, "outside the picture"),
        (torch.rand(3, 64, 64), {"scale": 0}, UsageError, "0.05 to 2"),
        (torch.rand(3, 64, 64), {"kind": "sharp"}, UsageError, "sharp"),
        (torch.rand(3, 64, 64), {"strength": 1.0}, UsageError, "strength"),
        (torch.rand(3, 64, 64), {"kind": "uniform", "strength": -1.0}, UsageError, "0 or more"),
        (torch.rand(3, 64, 64), {"block": 3}, UsageError, "2, 4, 6"),
        (torch.rand(3, 64, 64), {"block": 32}, UsageError, "nothing but the fovea"),
        (torch.rand(3, 64, 64), {"encoder": nn.Identity()}, UsageError, "both or none"),
        (torch.rand(1, 64, 64), {"encoder": nn.Identity(), "decoder": nn.Identity()}, InputError, "1 channels"),
    ],
)
def test_foveate_refuses(image: Any, options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        foveate(image, **options)


def test_alpha_and_single_cells_are_refused() -> None:
    masks = torch.ones(2, 3, 3)
    for alpha in ((0.0, 1.5), (0.0, -0.1), (0.0, math.nan)):
        with pytest.raises(InputError, match="alpha"):
            painted_regions(masks, torch.tensor(alpha))
    with pytest.raises(InputError, match="2 regions"):
        painted_regions(masks, torch.zeros(3))
    masks[1] = 0
    masks[1, 0, 0] = 1
    with pytest.raises(InputError, match="segment 1 has 1 cell"):
        painted_regions(masks, torch.zeros(2))
    with pytest.raises(InputError, match="single cell"):
        moments(torch.zeros(1, 2, 1, 1))
    with pytest.raises(InputError, match="channels"):
        adain(torch.zeros(1, 2, 3, 3), torch.zeros(1, 3, 3, 3))


def test_another_size_and_other_grids_are_refused() -> None:
    transform = FoveatedTexture((64, 64), 0.5)
    with pytest.raises(InputError, match="built for 64 x 64 px, not for 72 x 64"):
        transform(torch.rand(1, 3, 64, 72))
    with pytest.raises(InputError, match="grid"):
        painted(torch.zeros(1, 4, 5, 5), torch.zeros(1, 4, 5, 5), transform.regions)
    with pytest.raises(InputError, match="multiples of 8"):
        pooling_regions(Windows((100, 104)))
    with pytest.raises(InputError, match="built for"):
        FoveatedBlur((64, 64), gain=0.1)(torch.rand(1, 3, 32, 32))
    with pytest.raises(UsageError, match="smaller than a pixel"):
        pooling_regions(Windows((32, 40), 0.6, (0.4, 0.5)), 2, painting="order")
    with pytest.raises(UsageError, match="painting"):
        create("foveated", weights=None, img_size=64, painting="random")
    brown: Any = "brown"
    with pytest.raises(UsageError, match="noise"):
        FoveatedTexture((64, 64), noise=brown)


# -- probes


def test_occluders_cover_what_they_say() -> None:
    x = torch.zeros(1, 3, 256, 256)
    for level in range(17):
        part = level / 16
        for kind in ("scotoma", "glaucoma", "left_to_right", "top_to_bottom"):
            covered = (occlude(x, kind, level) == GREY).float().mean()
            assert float(covered) == pytest.approx(part, abs=0.016), (kind, level)
    assert torch.equal(occlude(x, "scotoma", 0), x)
    assert (occlude(x, "left_to_right", 4)[..., :64] == GREY).all()
    assert (occlude(x, "top_to_bottom", 4)[..., :64, :] == GREY).all()
    middle = occlude(x, "scotoma", 4)[0, 0]
    assert middle[64:192, 64:192].min() == GREY
    assert middle[63].max() == 0
    with pytest.raises(UsageError, match="goes from 0 to 16"):
        occlude(x, "scotoma", 17)
    with pytest.raises(UsageError, match="cataract"):
        occlude(x, "cataract", 1)


def test_low_and_high_pass_add_up() -> None:
    x, mean = leaves(64), torch.tensor([0.5, 0.4, 0.3])
    assert torch.equal(low_pass(x, 0), x)
    assert torch.equal(high_pass(x, math.inf, mean), x)
    high = high_pass(0.5 + 0.2 * x, 3.0, mean)
    torch.testing.assert_close(high.mean((0, 2, 3)), mean, rtol=0, atol=1e-3)
    rest = 0.2 * x - low_pass(0.5 + 0.2 * x, 3.0) + 0.5
    torch.testing.assert_close(high - high.mean((2, 3), keepdim=True), rest - rest.mean((2, 3), keepdim=True))
    grey = high_pass(x, 1.0, mean, grey=True)
    assert torch.equal(grey[:, 0], grey[:, 2])
    with pytest.raises(InputError, match="mean colour"):
        high_pass(x, 1.0, torch.tensor([0.5]))


@pytest.mark.parametrize("kind", ["window", "square"])
def test_cue_conflicts_show_both(kind: str) -> None:
    centre, surround = torch.ones(1, 3, 64, 64), torch.zeros(1, 3, 64, 64)
    for part in (0.0, 0.1, 0.4, 1.0):
        mixed = cue_conflict(centre, surround, part, kind=kind)
        assert float(mixed.mean()) == pytest.approx(part, abs=0.04)
    mixed = cue_conflict(centre, surround, 0.2, kind=kind)
    assert float(mixed[..., 32, 32].min()) == 1
    assert float(mixed[..., 0, 0].max()) < 1e-6
    with pytest.raises(UsageError, match="triangle"):
        cue_conflict(centre, surround, 0.2, kind="triangle")
    with pytest.raises(InputError, match="one shape"):
        cue_conflict(centre, surround[:, :, :32], 0.2)
    with pytest.raises(UsageError, match=r"\[0, 1\]"):
        cue_conflict(centre, surround, 1.2)


def test_sweeps_count_and_areas_are_means() -> None:
    class Bright(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            mean = x.mean((1, 2, 3))
            return torch.stack([0.5 - mean, mean - 0.5], 1)

    x = torch.cat([torch.zeros(3, 3, 8, 8), torch.ones(3, 3, 8, 8)])
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    found = sweep(Bright(), x, labels, lambda p, level: p * level, (1.0, 0.1), batch=4)
    assert found == [100.0, 50.0]
    assert area([100.0, 50.0, 0.0]) == 50
    with pytest.raises(InputError, match="0 pictures"):
        sweep(Bright(), x[:0], labels[:0], lambda p, level: p, (1.0,))
    with pytest.raises(InputError, match="two points"):
        area([1.0])
