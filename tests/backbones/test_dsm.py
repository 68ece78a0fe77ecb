"""DSM, a reconstruction: its own counts, the spectrum's cells, weights from the picture, the dial, what is refused."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import zoo
from torch import Tensor, nn

from saccade.backbones.dsm import DSM, Block, SpectrumMixer, cells
from saccade.budget import has_budget
from saccade.cost import cost, count_parameters
from saccade.errors import InputError, UsageError
from saccade.ops.dct import dct2, idct2
from saccade.registry import create


@pytest.mark.parametrize(
    ("name", "side", "parameters", "gigamacs"),
    [
        ("dsm_t", 224, 30_315_448, 4.03),
        ("dsm_s", 224, 43_354_920, 6.58),
        ("dsm_b", 224, 86_398_920, 13.28),
        ("dsm_nano", 32, 206_730, None),
    ],
)
def test_counts_of_the_definition(name: str, side: int, parameters: int, gigamacs: float | None) -> None:
    with torch.device("meta"):
        model = create(name, weights=None)
    assert count_parameters(model) == parameters
    if gigamacs is None:
        return
    total = 0

    def count(layer: nn.Module, _: Any, out: Tensor) -> None:
        nonlocal total
        if isinstance(layer, SpectrumMixer):  # its P2 runs as a function
            total += out.numel() * layer.p2.in_features
        else:
            total += out.numel() * layer.weight[0].numel()

    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | SpectrumMixer):
            module.register_forward_hook(count)
    cost(model, torch.empty(1, 3, side, side, device="meta"))
    assert round(total / 1e9, 2) == gigamacs


def by_hand(height: int, width: int) -> list[list[int]]:
    out = []
    for k in range(height):
        row = []
        for m in range(width):
            radius = math.hypot(k / height, m / width) / math.sqrt(2)
            angle = math.degrees(math.atan2(k * width, m * height))
            ring = sum(radius > b - 1e-12 for b in (1 / 8, 1 / 4, 1 / 2))
            row.append(0 if k == m == 0 else 4 * ring + sum(angle > a - 1e-9 for a in (22.5, 45, 67.5)))
        out.append(row)
    return out


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (7, 7), (8, 8), (14, 14), (12, 20), (56, 56)])
def test_cells_are_rings_of_angles(size: tuple[int, int]) -> None:
    found = cells(*size)
    assert found.tolist() == by_hand(*size)
    empty = 16 - len(found.unique())
    assert empty == {(7, 7): 2, (8, 8): 2}.get(size, 0) or min(size) < 7


def mixer(width: int = 8, grid: tuple[int, int] = (6, 10), **options: Any) -> SpectrumMixer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = SpectrumMixer(width, grid, **{"groups": 4, **options})
        nn.init.normal_(made.phi)
        for p in made.parameters():
            if p.dim() < 2:
                nn.init.normal_(p, std=0.3)
    return made


def tokens(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def plainly(m: SpectrumMixer, x: Tensor) -> Tensor:
    """The mixer as its definition reads, channel by channel and cell by cell."""
    u = F.gelu(m.p1(x)).permute(0, 3, 1, 2)
    f = dct2(u, form="naive")
    batch, inner, height, width = f.shape
    size, where = inner // m.groups, cells(height, width)
    phi = m.phi
    if m.gen is None:
        gains = phi[0].repeat_interleave(size, 0)[None]
    else:
        bands = torch.zeros(batch, m.groups * 16)
        for q in range(m.groups):
            for c in range(16):
                inside = f[:, q * size : (q + 1) * size][:, :, where == c]
                mean = inside.square().mean((1, 2)) if inside.numel() else torch.zeros(batch)
                bands[:, q * 16 + c] = torch.log(1 + torch.sqrt(1e-6 + mean))
        drawn = m.gen(torch.cat([bands, u.mean((2, 3))], 1)).view(batch, m.bases, inner).softmax(1)
        shares = [drawn[:, k, :, None, None] * phi[k].repeat_interleave(size, 0)[None] for k in range(m.bases)]
        gains = functools.reduce(torch.add, shares)
    return m.p2(idct2(f * (1 + gains), form="naive").permute(0, 2, 3, 1))


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("grid", [(6, 10), (1, 5), (1, 1), (7, 7)])
def test_the_mixer_is_its_definition(dynamic: bool, grid: tuple[int, int]) -> None:
    m = mixer(grid=grid, dynamic=dynamic)
    found = []
    for run in (m, lambda x: plainly(m, x)):
        x = tokens(2, *grid, 8).requires_grad_()
        y = run(x)
        gradients = torch.autograd.grad((y * tokens(*y.shape, seed=3)).sum(), [x, *m.parameters()])
        found.append((y, *gradients))
    for fast, plain in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-4 * max(1.0, float(plain.detach().abs().max())))


def test_weights_differ_by_picture_and_by_frequency() -> None:
    found = {}
    for dynamic in (True, False):
        m, x = mixer(dynamic=dynamic), tokens(2, 6, 10, 8) * torch.tensor([1.0, 9.0])[:, None, None, None]
        with torch.no_grad():
            u = F.gelu(m.p1(x))
            found[dynamic] = m.weights(u, dct2(u, channels_last=True))
    assert (found[True][0] - found[True][1]).abs().max() > 0.1
    assert found[False].shape[0] == 1, "the static form has one for all pictures"
    for gains in found.values():
        assert gains.std(1).min() > 0.1, "weights vary over frequency"


def test_shares_are_a_softmax_over_the_spectra() -> None:
    m, x = mixer(), tokens(2, 6, 10, 8)
    nn.init.ones_(m.phi)
    with torch.no_grad():
        u = F.gelu(m.p1(x))
        torch.testing.assert_close(m.weights(u, dct2(u, channels_last=True)), torch.ones(2, 60, 4, 4))


def test_one_spectrum_is_shared_inside_a_group() -> None:
    m, x = mixer(dynamic=False), tokens(1, 6, 10, 8)
    with torch.no_grad():
        u = F.gelu(m.p1(x))
        gains = m.weights(u, dct2(u, channels_last=True))
    assert gains.shape == (1, 60, 4, 1)
    torch.testing.assert_close(gains[0, :, 2, 0], m.phi[0, 2].flatten())


def test_the_constant_term_stays_where_it_is_on_other_grids() -> None:
    m = mixer(grid=(5, 5))
    nn.init.zeros_(m.phi)
    with torch.no_grad():
        m.phi[:, :, 0, 0] = 1
        resized = m.spectra((9, 11))
    assert (resized[:, :, 0, 0] == 1).all()
    assert (resized[:, :, 2:, 3:] == 0).all()


def test_other_grids_are_refused_where_spectra_may_not_be_resized() -> None:
    m = mixer(resize_bases=False)
    with pytest.raises(InputError, match="6 x 10 tokens, not 7 x 10"):
        m(tokens(1, 7, 10, 8))
    assert m(tokens(1, 6, 10, 8)).shape == (1, 6, 10, 8)


def test_what_are_no_tokens_for_a_mixer_is_refused() -> None:
    m = mixer()
    for wrong in (tokens(6, 10, 8), tokens(1, 6, 10, 7), tokens(1, 0, 10, 8), tokens(1, 6, 0, 8)):
        with pytest.raises(InputError, match=r"float tokens \(B, H, W, 8\)"):
            m(wrong)
    for dtype in (torch.int64, torch.complex64):
        with pytest.raises(InputError, match=str(dtype)):
            m(tokens(1, 6, 10, 8).to(dtype))
    assert m(tokens(0, 6, 10, 8)).shape == (0, 6, 10, 8)


def test_it_is_named_a_reconstruction_wherever_it_is_told_of() -> None:
    from saccade import systems
    from saccade.registry import entry, variants
    from saccade.reproduce.dsm import CLAIM

    told = [entry(name).about for name in variants("dsm") if entry(name).variant]
    assert all("reconstruction" in line or "(ours)" in line for line in told)
    assert "reconstruction" in systems.system("dsm").name
    assert "reconstruction" in CLAIM.says.lower()


def test_the_full_budget_is_the_full_mixer_bit_for_bit() -> None:
    small = zoo.SMALL["dsm"]
    model, x = small.make(), small.picture()
    assert isinstance(model, DSM)
    assert has_budget(model)
    with torch.no_grad():
        want = model(x)
        model.budget = 0.5
        assert not torch.equal(model(x), want)
        model.budget = 1
        assert torch.equal(model(x), want)


@pytest.mark.parametrize("keep", [0.1, 0.3, 0.7])
def test_a_smaller_budget_is_the_full_mixer_with_coefficients_cut_off(keep: float) -> None:
    m, x = mixer(grid=(10, 10)), tokens(2, 10, 10, 8)
    rows = {0.1: 1, 0.3: 3, 0.7: 7}[keep]
    with torch.no_grad():
        u = F.gelu(m.p1(x))
        f = dct2(u, channels_last=True)
        kept = torch.zeros_like(f)
        kept[:, :rows, :rows] = f[:, :rows, :rows]
        gains = m.weights(u, kept).reshape(2, 10, 10, 16)
        want = m.p2(idct2(kept * (1 + gains), channels_last=True))
        m.keep = keep
        assert m.corner((10, 10)) == (rows, rows)
        torch.testing.assert_close(m(x), want, rtol=1e-4, atol=1e-5)


def test_the_budget_saves_macs() -> None:
    small = zoo.SMALL["dsm"]
    model = small.make()
    spent = []
    for budget in model.budgets():
        model.budget = budget
        spent.append(cost(model, small.picture(1), timed=False).macs)
    assert spent == sorted(spent)
    assert spent[0] < spent[-1]
    with pytest.raises(UsageError, match=r"\(0, 1\]"):
        model.budget = 0


def test_bases_are_no_part_of_the_state() -> None:
    model = zoo.SMALL["dsm"].make()
    before = set(model.state_dict())
    with torch.no_grad():
        model(zoo.SMALL["dsm"].picture())
    assert set(model.state_dict()) == before == {n for n, _ in model.named_parameters()}
    assert model.no_weight_decay() == {n for n in before if n.endswith("mixer.phi")}


def test_names_of_parameters_are_those_of_the_reconstruction() -> None:
    names = set(create("dsm_nano", weights=None).state_dict())
    block = ("norm1.weight", "mixer.p1.weight", "mixer.p2.bias", "mixer.phi", "mixer.gen.0.weight", "mixer.gen.2.bias")
    block += ("ls1", "ls2", "norm2.bias", "mlp.fc1.weight", "mlp.fc2.bias")
    assert {f"stages.1.blocks.1.{n}" for n in block} <= names
    assert {"stem.weight", "stages.1.down.weight", "norm.weight", "head.bias"} <= names
    assert "stages.0.down.weight" not in names


def test_it_starts_as_written() -> None:
    model = create("dsm_t", weights=None)
    block = model.stages[2].blocks[3]
    assert isinstance(block, Block)
    assert float(block.mlp.fc1.weight.detach().std()) == pytest.approx(320**-0.5, rel=0.02)
    assert float(block.mixer.phi.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert (block.ls1 == 1).all()
    assert (create("dsm_s", weights=None).stages[0].blocks[0].ls2 == 1e-6).all()
    rates = [b.drop_path.drop_prob if hasattr(b.drop_path, "drop_prob") else 0 for s in model.stages for b in s.blocks]
    assert rates == pytest.approx([0.1 * i / 18 for i in range(19)])


def test_the_head_normalises_before_it_pools() -> None:
    model, x = zoo.SMALL["dsm"].make(), zoo.SMALL["dsm"].picture()
    with torch.no_grad():
        last = model.forward_intermediates(x, [-1], intermediates_only=True)[0]
        normal = F.layer_norm(last.permute(0, 2, 3, 1), (20,), model.norm.weight, model.norm.bias, 1e-6)
        torch.testing.assert_close(model(x), model.head(normal.mean((1, 2))))


def test_bfloat16_runs_and_stays_near() -> None:
    small = zoo.SMALL["dsm"]
    model, x = small.make(), small.picture()
    with torch.no_grad():
        want = model(x)
        found = model.bfloat16()(x.bfloat16()).float()
    assert (found - want).abs().max() < 0.1 * want.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_energies_beyond_half_precision_stay_finite_under_autocast(dtype: torch.dtype) -> None:
    """The constant term of 56 x 56 tokens of about 6 has an energy of 100,000, beyond float16."""
    m, x = mixer(grid=(56, 56)), tokens(2, 56, 56, 8)
    with torch.no_grad():
        m.p1.bias.fill_(6.0)
        want = m(x)
        with torch.autocast("cpu", dtype=dtype):
            found = m(x).float()
    assert (found - want).abs().max() < 0.1 * want.abs().max()


def test_doubles_are_weighed_in_doubles() -> None:
    m, x = mixer(grid=(3, 4)).double(), tokens(1, 3, 4, 8).double().requires_grad_()
    assert torch.autograd.gradcheck(m, (x,))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"depths": (1, 1)}, "depths has 2 entries for 4 stages"),
        ({"stem_stride": 3}, "stem_stride"),
        ({"drop_path_rate": 1.0}, "drop_path_rate"),
        ({"groups": 7}, "do not split into 7"),
        ({"bases": 0}, "0 spectra"),
        ({"img_size": 16}, "img_size is at least 32"),
    ],
)
def test_impossible_networks_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        create("dsm", weights=None, **{**zoo.SMALL["dsm"].options, **options})


def test_the_smallest_picture_has_one_token_at_the_end() -> None:
    model = zoo.SMALL["dsm"].make()
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 32, 32)).isfinite().all()
    with pytest.raises(InputError, match="at least 32 px"):
        model(torch.zeros(1, 3, 31, 64))
