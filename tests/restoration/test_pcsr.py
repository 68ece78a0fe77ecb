"""PCSR: counts, fast paths against slow truth, dials, routing, training, bad input."""

from __future__ import annotations

import copy
import itertools
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from saccade.checkpoint import load, save
from saccade.errors import InputError, UsageError
from saccade.registry import create
from saccade.restoration.pcsr import PCSR, blockwise, routing
from saccade.restoration.pcsr import network as network_module
from saccade.restoration.pcsr import training as training_module
from saccade.restoration.pcsr.grid import FreeGrid, PhaseGrid, queries

PUBLISHED = {"pcsr_fsrcnn": 24_502, "pcsr_carn": 168_970, "pcsr_srresnet": 1_078_390}


def shaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter and statistic random, so that no default hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("running_var"):
                value.copy_(0.5 + torch.rand(value.shape, generator=generator))
            elif value.is_floating_point():
                fan = max(1, value[0].numel()) if value.ndim > 1 else 4
                value.copy_(torch.randn(value.shape, generator=generator) / math.sqrt(fan))
    return model.eval()


def small(scale: float = 2, seed: int = 0, **options: object) -> PCSR:
    options = {"width": 8, "shrink": 4, "layers": 1, "heavy": (9, 7), "light": (5,), "classifier": (4,), **options}
    model = shaken(create("pcsr_fsrcnn", weights=None, **options), seed)
    assert isinstance(model, PCSR)
    model.scale, model.refine = scale, scale >= 4
    return model


def picture(h: int, w: int, batch: int = 1, seed: int = 0) -> Tensor:
    return torch.rand(batch, 3, h, w, generator=torch.Generator().manual_seed(seed))


def truth(model: PCSR, lr: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Light, heavy and margin everywhere by grid_sample and whole queries, as the paper writes it."""
    (h, w), (height, width) = lr.shape[-2:], size
    features = model.encoder(lr - model.mean)

    def centres(n: int) -> Tensor:
        return -1 + (2 * torch.arange(n, dtype=torch.float64) + 1) / n

    grid = torch.stack(torch.meshgrid(centres(height), centres(width), indexing="ij"), -1)[None]
    cells = torch.stack(torch.meshgrid(centres(h), centres(w), indexing="ij"))[None]
    flipped = grid.flip(-1).expand(len(lr), -1, -1, -1)
    sample = {"mode": "nearest", "align_corners": False}
    nearest = F.grid_sample(features.double(), flipped, **sample)
    own = F.grid_sample(cells.expand(len(lr), -1, -1, -1), flipped, **sample)
    rel = (grid.permute(0, 3, 1, 2) - own) * torch.tensor([h, w]).view(1, 2, 1, 1)
    cell = torch.tensor([2 * h / height, 2 * w / width], dtype=torch.float64).view(1, 2, 1, 1).expand_as(rel)
    asked = torch.cat([nearest, rel, cell], 1).permute(0, 2, 3, 1).float()
    base = F.grid_sample(lr.double(), flipped, mode="bilinear", padding_mode="border", align_corners=False).float()
    light, heavy, logits = (s(asked).permute(0, 3, 1, 2) for s in (model.light, model.heavy, model.classifier))
    return light + base, heavy + base, logits[:, 1:] - logits[:, :1]


@pytest.mark.parametrize(("name", "count"), PUBLISHED.items())
def test_parameter_counts_are_the_published_ones(name: str, count: int) -> None:
    assert sum(p.numel() for p in create(name, weights=None).parameters()) == count


@pytest.mark.parametrize(
    ("name", "figures"),
    [
        ("pcsr_fsrcnn", (20, 45, 456, 3.4)),
        ("pcsr_carn", (478, 543, 1_159, 22)),
        ("pcsr_srresnet", (1_987, 2_177, 5_190, 55)),
    ],
)
def test_flops_of_a_patch_are_the_published_ones(name: str, figures: tuple[float, ...]) -> None:
    model = create(name, weights=None, scale=4)
    assert isinstance(model, PCSR)
    encoder = model.flops(32, 32)
    got = (encoder, model.flops(32, 32, "light"), model.flops(32, 32, "heavy"))
    assert tuple(round(f / 1e6) for f in got) == figures[:3]
    classifier = (model.flops(32, 32, "classifier") - encoder) / 1e6
    assert round(classifier, 1 if classifier < 10 else None) == figures[3]


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_every_model_enlarges_by_its_scale(scale: int) -> None:
    for name in ("pcsr_fsrcnn", "pcsr_small", "pcsr_carn"):
        out = create(name, weights=None, scale=scale)(picture(9, 11))
        assert out.shape == (1, 3, 9 * scale, 11 * scale)
        assert 0 <= float(out.min()) <= float(out.max()) <= 1


@settings(deadline=None, max_examples=25)
@given(
    h=st.integers(1, 9),
    w=st.integers(1, 9),
    up=st.tuples(st.floats(1.0, 4.5), st.floats(1.0, 4.5)),
    whole=st.sampled_from([0, 2, 3, 4]),
    block=st.sampled_from([1, 30, 1 << 15]),
    dial=st.floats(-2, 2),
    gather=st.sampled_from([0, 1000, 10**9]),
)
def test_routed_pixels_equal_the_slow_truth(
    h: int, w: int, up: tuple[float, float], whole: int, block: int, dial: float, gather: int
) -> None:
    size = (h * whole, w * whole) if whole else (max(h, round(h * up[0])), max(w, round(w * up[1])))
    lr, model = picture(h, w, batch=2), small()
    model.pixel_batch_size, model.threshold, model.refine = block, dial, False
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(routing, "GATHER", gather)
        out, flags = model.route(lr, size)
        light, heavy, margin = truth(model, lr, size)
    # where a centre falls on the border of two cells either is nearest: leave those pixels out
    edges = [torch.tensor([((i + 0.5) * n / m) % 1 for i in range(m)]) for n, m in zip((h, w), size, strict=True)]
    inside = [((e > 1e-6) & (e < 1 - 1e-6)) for e in edges]
    sure = (inside[0][:, None] & inside[1][None]) & ((margin - dial).abs() > 1e-4)
    assert torch.equal(flags[sure], (margin > dial)[sure])
    wanted = torch.where(flags, heavy, light)
    assert float((out - wanted).abs()[sure.expand_as(out)].max() if sure.any() else 0) < 2e-5


def test_queries_are_those_of_grid_sample() -> None:
    model, lr = small(), picture(5, 6)
    with torch.no_grad():
        _, heavy, _ = truth(model, lr, (13, 14))
        asked = model.heavy(queries(model.encoder(lr), 13, 14)).transpose(1, 2).unflatten(2, (13, 14))
        again = model.forward_heavy(lr, (13, 14))
    assert torch.allclose(asked + F.interpolate(lr, size=(13, 14), mode="bilinear"), heavy, atol=1e-5)
    assert torch.allclose(again, heavy, atol=1e-5)


def test_strips_and_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, lr = small(), picture(90, 7, batch=2)
    model.k, model.refine = 0.3, True
    whole, flags = model.route(lr)
    monkeypatch.setattr(network_module, "STRIP", 8)
    model.pixel_batch_size = 50
    assert len(list(model._strips(90, 7))) > 1
    strips, same = model.route(lr)
    assert torch.equal(flags, same)
    assert torch.allclose(whole, strips, atol=1e-5)


def test_the_halo_is_the_receptive_field() -> None:
    for name in ("pcsr_fsrcnn", "pcsr_carn", "pcsr_srresnet"):
        model = shaken(create(name, weights=None, scale=4))
        assert isinstance(model, PCSR)
        halo, n = model.encoder.halo, 2 * model.encoder.halo + 5
        lr = torch.rand(1, 3, n, n, requires_grad=True)
        middle = n // 2
        model.encoder(lr)[0, :, middle, middle].sum().backward()
        touched = lr.grad.abs().sum((0, 1)).nonzero()
        assert int((touched - middle).abs().max()) <= halo
        assert model.halo == halo + 1  # refinement sees one output pixel more
    model.refine = False
    assert model.halo == halo


def test_tiles_with_the_halo_equal_the_whole() -> None:
    model, lr = small(4), picture(30, 21)
    model.threshold, model.refine = 0.2, True
    whole, flags = model.route(lr)
    halo, s = model.halo, 4
    for top in range(0, 30, 10):
        a, b = max(0, top - halo), min(30, top + 10 + halo)
        tile, near = model.route(lr[:, :, a:b])
        rows = slice((top - a) * s, (top - a + 10) * s)
        assert torch.equal(near[:, :, rows], flags[:, :, top * s : (top + 10) * s])
        assert torch.allclose(tile[:, :, rows], whole[:, :, top * s : (top + 10) * s], atol=1e-5)


# ---- dials


@settings(deadline=None, max_examples=40)
@given(k=st.floats(-3, 3), cost=st.floats(0.02, 0.98), seed=st.integers(0, 9))
def test_k_is_the_argmax_of_probability_over_cost(k: float, cost: float, seed: int) -> None:
    margins = torch.randn(200, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    prob = torch.stack([(-margins).sigmoid(), margins.sigmoid()], 1)
    ratio = torch.tensor([cost, 1 - cost])
    heavy = (prob / ratio.double() ** k).argmax(1) == 1
    assert torch.equal(margins > routing.k_threshold(k, ratio), heavy)


def test_heavy_share_falls_with_k_from_all_to_none() -> None:
    model, lr = small(4), picture(12, 12)
    shares = []
    for k in (-25, -1, -0.3, 0, 0.3, 1, 25):
        model.k = k
        model(lr)
        shares.append(model.last_report.heavy_share)
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == 1
    assert shares[-1] == 0


@settings(deadline=None, max_examples=20)
@given(budget=st.floats(0.01, 1), scale=st.sampled_from([2, 3, 4, 2.5]), batch=st.integers(1, 2))
def test_a_budget_is_met_in_executed_macs(budget: float, scale: float, batch: int) -> None:
    model, lr = small(scale, heavy=(40, 40, 40)), picture(16, 17, batch)
    model.budget = budget
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model(lr)
    report = model.last_report
    floor = model.cost(16, 17, 0.0) / model.cost(16, 17, 1.0)
    assert report.floored == (budget < floor) == any("budget" in str(w.message) for w in told)
    slack = 0.02 if scale == 2.5 else 1e-9  # rows that blocks share are counted
    assert report.fraction <= max(budget, floor) + slack
    if report.floored:
        assert report.heavy == 0
    model.budget = min(1.0, budget + 0.2)
    before = report.heavy
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model(lr)
    assert model.last_report.heavy >= before
    assert model.budget == min(1.0, budget + 0.2)


def test_the_heaviest_margins_are_chosen_under_a_budget() -> None:
    model, lr = small(heavy=(40, 40)), picture(20, 20)
    model.budget = 0.7
    _, flags = model.route(lr)
    margins = model.margins(lr)
    assert 0 < int(flags.sum()) < flags.numel()
    assert float(margins[flags].min()) > float(margins[~flags].max())


def test_budgets_ascend_to_one_and_can_be_met() -> None:
    for name in ("pcsr_fsrcnn", "pcsr_small", "pcsr_carn"):
        model = create(name, weights=None, scale=2)
        offered = model.budgets()
        assert list(offered) == sorted(offered)
        assert offered[-1] == 1
        model.budget = offered[0]
        model(picture(12, 12))
        assert not model.last_report.floored


@settings(deadline=None, max_examples=20)
@given(share=st.floats(0, 1), n=st.integers(1, 300))
def test_a_share_threshold_gives_exactly_that_many(share: float, n: int) -> None:
    margins = torch.randperm(n, generator=torch.Generator().manual_seed(n)).float()
    heavy = int((margins > routing.share_threshold(margins, share)).sum())
    assert heavy == math.floor(share * n + 1e-9)


def test_report_counts_the_macs_that_torch_counts() -> None:
    model, lr = small(heavy=(30, 30)), picture(40, 40)
    for share in (0.0, 0.3, 1.0):
        if share == 1:
            model.budget = 1.0
        else:
            model.threshold = routing.share_threshold(model.margins(lr), share)
        model(lr)
        with FlopCounterMode(display=False) as counter:
            model(lr)
        assert model.last_report.macs == pytest.approx(counter.get_total_flops() / 2, rel=0.01)
        assert model.last_report.heavy_share == pytest.approx(share, abs=1e-3)
        assert model.last_report.macs <= model.cost(40, 40, share)


def test_heavy_work_follows_the_heavy_share() -> None:
    model, lr = create("pcsr_fsrcnn", weights=None, scale=4), picture(24, 24)
    assert isinstance(model, PCSR)
    spent = []
    for share in (0.0, 0.25, 0.5, 0.75):
        model.threshold = routing.share_threshold(model.margins(lr), share)
        model(lr)
        spent.append(model.last_report.macs)
    assert spent[1] < 0.4 * model.cost(24, 24, 1.0)
    outputs = 96 * 96
    for low, high in itertools.pairwise(spent[1:]):
        assert high - low == pytest.approx(0.25 * outputs * model.heavy.tail_macs, rel=0.15)


def test_calibration_makes_tiles_meet_one_budget() -> None:
    model, lr = small(heavy=(40, 40, 40)), picture(32, 32)
    lr[:, :, :16] *= 0.1  # tiles that differ
    tiles = [lr[:, :, :16], lr[:, :, 16:]]
    threshold = model.calibrate(tiles, 0.6)
    assert model.threshold == threshold
    spent = full = 0
    for tile in tiles:
        model(tile)
        spent, full = spent + model.last_report.macs, full + model.last_report.full_macs
    assert 0.5 < spent / full <= 0.6 + 1e-6
    again = small(heavy=(40, 40, 40)).calibrate(tiles, 0.6, sample=200, seed=1)
    assert again == pytest.approx(threshold, abs=0.5)


def test_clusters_are_those_of_plain_two_means() -> None:
    generator = torch.Generator().manual_seed(3)
    for _ in range(10):
        margins = torch.cat([torch.randn(300, generator=generator) - 2, 1 + torch.randn(200, generator=generator)])
        value = margins.sigmoid()
        value = (value - value.min()) / (value.max() - value.min())
        centres = torch.stack([value.mean(), torch.zeros(())])
        for _ in range(19):
            labels = (value[:, None] - centres).abs().argmin(1)
            new = torch.stack([value[labels == i].mean() for i in (0, 1)])
            shift, centres = float((new - centres).square().sum()), new
            if shift <= 1e-4:
                break
        heavy = labels != labels[value.argmin()]
        assert torch.equal(margins > routing.cluster_threshold(margins), heavy)


def test_constant_probabilities_fall_back_to_k_zero() -> None:
    model = small()
    with torch.no_grad():
        for p in model.classifier.parameters():
            p.zero_()
    model.adaptive = True
    with pytest.warns(UserWarning, match="k = 0"):
        _, flags = model.route(picture(6, 6))
    assert not flags.any()  # a tie is light


def test_the_dials_exclude_each_other() -> None:
    model = small()
    assert model.k == 0
    model.budget = 0.5
    assert (model.k, model.budget, model.adaptive, model.threshold) == (None, 0.5, False, None)
    model.adaptive = True
    assert model.adaptive
    assert model.k is None
    model.adaptive = False
    assert model.k == 0
    model.threshold = 1.5
    assert (model.k, model.threshold) == (None, 1.5)


def test_refinement_smooths_light_neighbours_of_heavy_pixels_only() -> None:
    source, heavy = picture(8, 9), torch.zeros(1, 1, 8, 9, dtype=torch.bool)
    heavy[0, 0, 4, 4] = heavy[0, 0, 0, 8] = True
    out = routing.refine(source.clone(), heavy)
    near = F.max_pool2d(heavy.float(), 3, 1, 1).bool() & ~heavy
    near[..., 0, :] = near[..., -1, :] = near[..., :, 0] = near[..., :, -1] = False
    mean = F.avg_pool2d(F.pad(source, (1, 1, 1, 1), "replicate"), 3, 1)
    assert torch.allclose(out, torch.where(near, mean, source), atol=1e-6)
    assert int(near.sum()) == 9  # eight around the inner one, one that the corner reaches
    tiny = picture(2, 2)
    assert torch.equal(routing.refine(tiny.clone(), torch.ones(1, 1, 2, 2, dtype=torch.bool)), tiny)


def test_refinement_is_on_from_x4() -> None:
    assert create("pcsr_small", weights=None, scale=4).refine
    assert not create("pcsr_small", weights=None, scale=3).refine


# ---- training


@pytest.mark.parametrize("phase", [0, 1])
@pytest.mark.parametrize("scale", [2, 3])
def test_blockwise_loss_and_gradient_equal_the_plain_ones(
    phase: int, scale: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_module, "BLOCK", 100)
    assert blockwise.BLOCK != 100
    model, lr, hr = small(scale), picture(7, 8, 2), picture(7 * scale, 8 * scale, 2, seed=1)
    light, heavy, margin = truth(model, lr, (7 * scale, 8 * scale))
    if phase == 0:
        plain = F.l1_loss(heavy, hr)
    else:
        share = margin.sigmoid()
        half = share.numel() / 2
        mixed = (1 - share) * light + share * heavy
        plain = 1000 * F.l1_loss(mixed, hr) + 3 * (share.sum() - half).abs() / half
    parameters = model.phase_parameters(phase)
    wanted = torch.autograd.grad(plain, parameters)
    loss = model.training_loss(lr, hr, phase)
    got = torch.autograd.grad(loss, parameters)
    assert loss.item() == pytest.approx(plain.item(), rel=1e-5)
    for a, b in zip(got, wanted, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-5 * float(b.abs().max()) + 1e-7)


def test_phase_one_leaves_encoder_and_heavy_alone() -> None:
    model = shaken(create("pcsr_carn", weights=None, scale=2, width=8, groups=2, heavy=(6,), light=(4,))).train()
    assert isinstance(model, PCSR)
    before = copy.deepcopy(model.state_dict())
    model.training_loss(picture(6, 6, 2), picture(12, 12, 2), 1).backward()
    after = model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)  # no statistics moved either
    assert all(p.grad is None for p in model.phase_parameters(0))
    assert all(p.grad is not None for p in model.phase_parameters(1))
    assert not model.encoder.training
    model.train().training_loss(picture(6, 6, 2), picture(12, 12, 2), 0).backward()
    assert all(p.grad is not None for p in model.phase_parameters(0))
    assert not torch.equal(before["encoder.body.norm.0.running_mean"], model.encoder.body.norm[0].running_mean)


def test_training_mode_is_the_soft_mixture_and_has_gradients() -> None:
    model, lr = small(), picture(6, 5)
    light, heavy, margin = truth(model, lr, (12, 10))
    share = margin.sigmoid()
    out = model.train()(lr)
    assert torch.allclose(out, (1 - share) * light + share * heavy, atol=1e-5)
    out.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_both_phases_learn() -> None:
    torch_state = torch.random.get_rng_state()
    torch.manual_seed(0)
    model = create("pcsr_small", weights=None, scale=2)
    torch.random.set_rng_state(torch_state)
    assert isinstance(model, PCSR)
    hr = F.interpolate(picture(6, 6, 2), size=(24, 24), mode="nearest")
    lr = F.avg_pool2d(hr, 2)
    for phase in (0, 1):
        optimiser = torch.optim.Adam(model.phase_parameters(phase), lr=3e-3)
        losses = []
        for _ in range(60):
            optimiser.zero_grad()
            loss = model.training_loss(lr, hr, phase)
            loss.backward()
            optimiser.step()
            losses.append(float(loss))
        assert losses[-1] < 0.9 * losses[0]


# ---- contracts of the house


def test_one_sampler_equals_all_heavy_and_exports() -> None:
    model, lr = small(2), picture(9, 10)
    plain = model.one_sampler("heavy")
    model.budget = 1.0
    assert torch.allclose(plain(lr), model(lr), atol=1e-5)
    model.threshold = math.inf
    assert torch.allclose(model.one_sampler("light")(lr), model(lr), atol=1e-5)
    h, w = torch.export.Dim("h", min=8, max=512), torch.export.Dim("w", min=8, max=512)
    exported = torch.export.export(plain, (lr,), dynamic_shapes=({2: h, 3: w},)).module()
    other = picture(13, 21)
    assert torch.allclose(exported(other), plain(other), atol=1e-5)


def test_cost_is_told_without_computing() -> None:
    model = create("pcsr_fsrcnn", weights=None, scale=4).to("meta")
    with FlopCounterMode(display=False) as counter:
        out = model(torch.empty(1, 3, 540, 960, device="meta"))
    assert out.shape == (1, 3, 2160, 3840)
    assert model.last_report.heavy_share == 1
    assert model.last_report.macs == pytest.approx(counter.get_total_flops() / 2, rel=0.01)


def test_weights_survive_a_file(tmp_path) -> None:
    model = shaken(create("pcsr_carn", weights=None, scale=3, width=8, groups=2, heavy=[6, 5], light=[4]))
    save(model, tmp_path / "w.safetensors")
    again = load(tmp_path / "w.safetensors")
    lr = picture(6, 7)
    assert torch.equal(model(lr), again(lr))
    assert again.scale == 3


def test_a_batch_equals_its_pictures_under_k() -> None:
    model, lr = small(3), picture(7, 8, batch=3)
    model.k = 0.2
    together = model(lr)
    for i in range(3):
        assert torch.allclose(model(lr[i : i + 1]), together[i : i + 1], atol=1e-5)


@pytest.mark.parametrize("h", [1, 2])
@pytest.mark.parametrize("w", [1, 3])
@pytest.mark.parametrize("scale", [2, 4, 1.7])
def test_the_smallest_pictures_work(h: int, w: int, scale: float) -> None:
    out = small(scale)(picture(h, w))
    assert out.shape == (1, 3, round(h * scale), round(w * scale))
    assert bool(out.isfinite().all())


def test_half_precision_follows_the_input() -> None:
    model, lr = small().to(torch.bfloat16), picture(6, 6).to(torch.bfloat16)
    assert model(lr).dtype == torch.bfloat16


@pytest.mark.parametrize("scale", [1, 0.5, math.nan, math.inf, -2])
def test_a_scale_of_one_or_below_is_refused(scale: float) -> None:
    with pytest.raises(UsageError):
        PCSR(small().encoder, (4,), (4,), (), scale)


def test_bad_values_of_the_dials_are_refused() -> None:
    model = small()
    for k in (math.nan, math.inf, -math.inf):
        with pytest.raises(UsageError, match="finite"):
            model.k = k
    for budget in (0, -1, 1.01, math.nan, "half"):
        with pytest.raises(UsageError, match="budget"):
            model.budget = budget
    with pytest.raises(UsageError, match="pixel_batch_size"):
        model.pixel_batch_size = 0
    with pytest.raises(UsageError):
        model.threshold = math.nan


def test_bad_pictures_and_sizes_are_refused() -> None:
    model = small()
    with pytest.raises(InputError):
        model(torch.rand(1, 1, 4, 4))
    with pytest.raises(InputError):
        model(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))
    with pytest.raises(InputError, match="empty"):
        model(torch.rand(1, 3, 0, 4))
    with pytest.raises(UsageError, match="cannot make"):
        model(picture(4, 4), size=(3, 8))
    with pytest.raises(UsageError, match="belong"):
        model.training_loss(picture(4, 4), picture(9, 8), 0)
    with pytest.raises(UsageError, match="phase"):
        model.training_loss(picture(4, 4), picture(8, 8), 2)
    with pytest.raises(InputError, match="no pictures"):
        model.calibrate([], 0.5)


def test_grids_cover_every_pixel_once() -> None:
    features = torch.rand(2, 5, 7, 6)
    lr = torch.rand(2, 3, 7, 6)
    for grid, size in ((PhaseGrid(lr, features, 3, 40), (21, 18)), (FreeGrid(lr, features, (17, 15), 40), (17, 15))):
        seen = torch.zeros(2, 1, *size)
        for block in grid.blocks():
            view = grid.view(seen, block)
            assert view.numel() == block.outputs
            view.add_(1)
        assert bool((seen == 1).all())
        base = torch.empty(2, 3, *size)
        for block in grid.blocks():
            view = grid.view(base, block)
            view.copy_(grid.bilinear(block).view(view.shape))
        assert torch.allclose(base, F.interpolate(lr, size=size, mode="bilinear"), atol=1e-6)


def test_the_ledger_counts_it_on_meta_tensors_as_all_heavy() -> None:
    from saccade.cost import cost

    model = create("pcsr_small", weights=None, scale=2)
    counted = cost(model, torch.empty(1, 3, 24, 32, device="meta"))
    assert model.last_report is not None
    assert counted.macs > 0
    assert model.last_report.heavy_share == 1
