"""ShiftAddViT: PVTv2's counts and numbers, the steps from it, codes, mixtures, the dial, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import zoo
from torch import Tensor, nn

from saccade.backbones.shiftaddvit import (
    AdditiveShiftLinear,
    BinaryAttention,
    HashAttention,
    KernelHash,
    MoELinear,
    PackedShift,
    ShiftAddViT,
    ShiftLinear,
    convert,
    convert_linears,
    fit_hashes,
    from_official,
    from_timm,
    operations,
    packed_weights,
)
from saccade.backbones.shiftaddvit.attention import binarise
from saccade.budget import has_budget
from saccade.checkpoint import fit
from saccade.cost import cost, count_parameters
from saccade.errors import InputError, UsageError
from saccade.nn.fuse import fuse
from saccade.registry import create

DENSE = {"attention": "reduced", "attention_linears": "dense", "mlp": "dense"}
SMALL = zoo.SMALL["shiftaddvit"]


@pytest.mark.parametrize(("size", "millions", "gigamacs"), [("b0", 3.67, 0.6), ("b1", 14.01, 2.1), ("b2", 25.36, 4.0)])
def test_unconverted_it_has_the_counts_of_pvt_v2(size: str, millions: float, gigamacs: float) -> None:
    with torch.device("meta"):
        model = create(f"shiftaddvit_{size}", weights=None, **DENSE)
        peer = timm.create_model(f"pvt_v2_{size}")
    assert count_parameters(model) == count_parameters(peer)
    assert round(count_parameters(model) / 1e6, 2) == millions
    assert cost(model, torch.empty(1, 3, 224, 224, device="meta")).macs / 1e9 == pytest.approx(gigamacs, abs=0.06)


def test_timm_computes_the_same_before_conversion() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        peer = zoo.randomised(timm.create_model("pvt_v2_b0", num_classes=7).eval())
        x = torch.randn(2, 3, 96, 128)
    recipe = from_timm(peer.state_dict())
    assert recipe is not None
    assert recipe.model == "shiftaddvit_b0"
    ours = create(recipe.model, weights=None, **recipe.options)
    fit(ours, recipe.state, "timm")
    with torch.no_grad():
        want = peer(x)
        torch.testing.assert_close(ours(x), want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))


def official_names(model: ShiftAddViT) -> dict[str, Tensor]:
    """The state in the layout that the published code documents."""
    made = {}
    for key, value in model.state_dict().items():
        parts = key.split(".")
        if parts[0] == "stages":
            stage, at = int(parts[1]), int(parts[2]) - (int(parts[1]) > 0)
            rest = ".".join(parts[3:]).replace("hash.", "qk_quant.ksh.").replace("dwconv.", "dwconv.dwconv.")
            ours = f"block{stage + 1}.{at}.{rest}" if at < model.told["depths"][stage] else f"norm{stage + 1}.{rest}"
            key = f"patch_embed{stage + 1}.{rest}" if at < 0 else ours
        made[key.replace("stem.", "patch_embed1.")] = value
    made["block1.0.attn.qk_quant.projection_matrix"] = torch.zeros(5, 4)
    return made


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"attention": "binary", "attention_linears": "shift", "mlp": "dense"},
        {"attention": "softmax", "attention_linears": "dense", "mlp": "moe", "gate": "naive", "heads": (1, 2, 5, 8)},
        {"attention": "reduced", "attention_linears": "dense", "mlp": "shift", "heads": (1, 2, 5, 8)},
        {"gate": "noisy", "kernel": 5},
        {"attention": "binary", "attention_linears": "additive", "mlp": "additive"},
    ],
)
def test_the_published_layout_is_read_and_tells_the_configuration(options: dict[str, Any]) -> None:
    widths = {"widths": (16, 32, 80, 64)} if "heads" in options else {"heads": (1, 2, 3, 8)}
    model = SMALL.make(**{"depths": (1, 2, 1, 1), **widths, **options})
    recipe = from_official(official_names(model))
    assert recipe is not None
    again = create(recipe.model, weights=None, **recipe.options)
    fit(again, recipe.state, "official")
    x = SMALL.picture()
    with torch.no_grad():
        torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)


def test_each_step_keeps_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    def first(t: Tensor) -> tuple[Tensor, Tensor]:
        return t.new_tensor([1.0, 0.0]).expand(len(t), 2), torch.ones(len(t), 2)

    start = SMALL.make(**DENSE)
    x = SMALL.picture()
    with pytest.raises(UsageError, match="while its linear layers are dense"):
        convert(convert(convert(start, attention="softmax"), attention_linears="moe"), attention="hash")
    soft = convert(start, attention="softmax")
    mixed = convert(soft, mlp="moe", attention_linears="moe")
    for layer in mixed.mixtures:  # all tokens to the first expert, at full weight: the network before
        with torch.no_grad():
            layer.gate.w_gate.copy_(torch.zeros_like(layer.gate.w_gate))
            layer.experts[1].load_state_dict(layer.experts[1].state_dict())
    chosen = []
    with torch.no_grad():
        for layer in mixed.mixtures:
            monkeypatch.setattr(layer.gate, "forward", first)
        torch.testing.assert_close(mixed(x), soft(x), rtol=1e-4, atol=1e-4)
        chosen = [m.share for m in mixed.mixtures]
    assert chosen == [0.0] * len(mixed.mixtures)
    hashed = convert(soft, attention="hash")
    theirs, ours = soft.stages[0][0].attn, hashed.stages[0][0].attn
    assert torch.equal(ours.to_qk.weight, theirs.q.weight)
    assert torch.equal(ours.to_v.weight, theirs.kv.weight[len(theirs.q.weight) :])
    binary = convert(soft, attention="binary")
    assert torch.equal(binary.stages[0][0].attn.qkv.weight, torch.cat([theirs.q.weight, theirs.kv.weight]))
    assert type(hashed.stages[3][1].attn) is type(theirs), "the last stage keeps softmax"


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ({"mlp": "shift"}, "mlp is converted already"),
        ({"attention": "softmax"}, "attention is 'hash'"),
        ({"attention": "binary"}, "attention is 'hash'"),
        ({"attention": "linear"}, "not converted to 'linear'"),
        ({"widths": (8, 8, 8, 8)}, "keeps widths"),
    ],
)
def test_steps_that_were_taken_or_lead_elsewhere_are_refused(steps: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        convert(SMALL.make(), **steps)


def test_any_network_is_converted_by_the_names_of_its_layers() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        deit = timm.create_model("deit_tiny_patch16_224", depth=1, embed_dim=48, img_size=32).eval()
    made = convert_linears(deit, ("blocks.*.mlp.fc?", "blocks.*.attn.proj"), to="moe")
    assert sum(isinstance(m, MoELinear) for m in made.modules()) == 3
    assert made(torch.randn(1, 3, 32, 32)).shape == (1, 1000)
    shifted = convert_linears(deit, "blocks.0.mlp.fc1", to="shift")
    layer = shifted.blocks[0].mlp.fc1
    dense = deit.blocks[0].mlp.fc1
    torch.testing.assert_close(
        layer.weight(), dense.weight.sign() * torch.exp2(dense.weight.abs().log2().round().clamp(-14, 0))
    )
    for again, names in (
        (made, "blocks.0.mlp.fc1"),
        (made, "blocks.0.mlp.fc1.experts.0"),
        (shifted, "blocks.0.mlp.fc?"),
    ):
        with pytest.raises(UsageError, match="converted already"):
            convert_linears(again, names)
    with pytest.raises(UsageError, match="no linear layer"):
        convert_linears(deit, "layers.*")
    with pytest.raises(UsageError, match="'additive' or 'moe'"):
        convert_linears(deit, "head", to="dense")


def test_a_weight_of_zero_stays_zero() -> None:
    layer = ShiftLinear(3, 1).take(torch.tensor([[0.0, 0.3, -5.0]]), None)
    assert layer.weight().tolist() == [[0.0, 0.25, -1.0]]
    assert bool(layer.shift.isfinite().all())


def test_shifts_are_put_back_into_range_in_training_alone() -> None:
    layer = ShiftLinear(2, 2)
    with torch.no_grad():
        layer.shift.fill_(3.0)
    layer.eval()(torch.ones(1, 2))
    assert float(layer.shift.detach().max()) == 3
    layer.train()(torch.ones(1, 2))
    assert float(layer.shift.detach().max()) == 0


def test_packed_and_fused_networks_are_the_same_function() -> None:
    model = SMALL.make(attention="softmax", mlp="shift")
    x = SMALL.picture()
    packed = packed_weights(model)
    assert sum(isinstance(m, PackedShift) for m in packed.modules()) == 4 * 2 + 4 * 3
    with torch.no_grad():
        torch.testing.assert_close(packed(x), model(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(fuse(model)(x), model(x), rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="no shift layers"):
        packed_weights(SMALL.make(**DENSE))


@pytest.mark.parametrize("kind", [BinaryAttention, HashAttention])
def test_attention_is_the_formula(kind: type) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = kind(8, 2, kernel=3)
        x = torch.randn(1, 6, 8)
    with torch.no_grad():
        if isinstance(layer, HashAttention):
            q = k = layer.hash(F.normalize(layer.split(layer.to_qk(x)), dim=-1))
            v = layer.split(layer.to_v(x))
        else:
            q, k, v = (layer.split(t) for t in layer.qkv(x).chunk(3, 2))
            q, k = (binarise(F.normalize(t, dim=-1)) for t in (q, k))
        assert set(q.unique().tolist()) <= {0.0, 1.0}
        rows = torch.stack(
            [
                v[:, :, i] / 2
                + sum((q[:, :, i] * k[:, :, j]).sum(-1, keepdim=True) * v[:, :, j] for j in range(6)) / math.pi
                for i in range(6)
            ],
            2,
        )
        mixed = rows / rows.norm(dim=-1, keepdim=True) + layer.dconv(v)
        torch.testing.assert_close(layer(x, (2, 3)), layer.proj(mixed.transpose(1, 2).flatten(2)))


@pytest.mark.parametrize("kind", [BinaryAttention, HashAttention])
def test_strong_entries_of_softmax_attention_are_added_in_training_alone(kind: type) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = kind(8, 2, kernel=3, sparse=True)
        x = 3 * torch.randn(1, 60, 8)
    plain = kind(8, 2, kernel=3).eval()
    plain.load_state_dict(layer.state_dict())
    with torch.no_grad():
        assert torch.equal(layer.eval()(x, (6, 10)), plain(x, (6, 10)))
        if isinstance(layer, HashAttention):
            q = k = layer.split(layer.to_qk(x))
            v = layer.split(layer.to_v(x))
            codes = (layer.hash(F.normalize(q, dim=-1)),) * 2
        else:
            q, k, v = (layer.split(t) for t in layer.qkv(x).chunk(3, 2))
            codes = tuple(binarise(F.normalize(t, dim=-1)) for t in (q, k))
        attention = (q @ k.mT / 2).softmax(-1)  # heads of 4 channels
        assert 0.1 < float((attention > 0.02).float().mean()) < 0.9
        rows = (attention * (attention > 0.02)) @ v + v / 2 + codes[0] @ (codes[1].mT @ v) / math.pi
        mixed = rows / rows.norm(dim=-1, keepdim=True) + layer.dconv(v)
        torch.testing.assert_close(layer.train()(x, (6, 10)), layer.proj(mixed.transpose(1, 2).flatten(2)))


@pytest.mark.parametrize("kind", [BinaryAttention, HashAttention])
def test_tokens_that_make_no_map_are_refused(kind: type) -> None:
    with pytest.raises(InputError, match="7 tokens are not those of a map of 3 x 2"):
        kind(8, 2)(torch.zeros(1, 7, 8), (2, 3))


def test_sums_of_two_powers_are_nearest_to_a_dense_layer_and_fuse() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dense = nn.Linear(40, 30)
    with torch.no_grad():
        dense.weight.mul_(4)
        dense.weight[0, 0] = 0
    layer = AdditiveShiftLinear(40, 30).take(dense.weight, dense.bias).eval()
    sizes = [(a + b / 2) * 2 / 3 for a in (0, 1 / 16, 1 / 4, 1) for b in (0, 1 / 16, 1 / 4, 1)]
    levels = torch.tensor([sign * size for size in sizes for sign in (-1, 1)])
    nearest = levels[(dense.weight.detach()[..., None] - levels).abs().argmin(-1)]
    torch.testing.assert_close(layer.weight(), nearest, rtol=1e-6, atol=0)
    assert float(layer.weight()[0, 0]) == 0
    x = torch.randn(3, 40, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(layer(x), F.linear(x, nearest, dense.bias), rtol=1e-3, atol=1e-3)  # fixed point
        torch.testing.assert_close(fuse(layer)(x), layer(x))
    found = operations(layer, x)
    assert (found.multiplications, found.shifts, found.integer_additions) == (0, 2 * 3 * 40 * 30, 2 * 3 * 40 * 30)
    assert operations(fuse(layer), x) == found


def test_shifts_and_signs_of_sums_are_put_back_into_range_in_training_alone() -> None:
    layer = AdditiveShiftLinear(2, 2)
    with torch.no_grad():
        layer.get_parameter("shift_1").fill_(3.0)
        layer.get_parameter("sign_2").fill_(-2.0)
    layer.eval()(torch.ones(1, 2))
    assert float(layer.get_parameter("shift_1").detach().max()) == 3
    layer.train()(torch.ones(1, 2))
    assert float(layer.get_parameter("shift_1").detach().max()) == 0
    assert float(layer.get_parameter("sign_2").detach().min()) == 0


def test_vanilla_codes_do_not_depend_on_the_company_unless_the_official_ones_are_asked_for() -> None:
    x = torch.randn(2, 2, 5, 4) + torch.tensor([0.0, 2.0]).view(2, 1, 1, 1)
    assert torch.equal(binarise(x)[:1], binarise(x[:1]))
    assert not torch.equal(binarise(x, "official")[:1], binarise(x[:1], "official"))


def test_a_token_of_zeros_gives_no_nan() -> None:
    for layer in (BinaryAttention(8, 2), HashAttention(8, 2)):
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)
        x = torch.zeros(1, 6, 8, requires_grad=True)
        y = layer(x, (2, 3))
        assert bool(y.isfinite().all())
        y.sum().backward()
        assert x.grad is not None
        assert bool(x.grad.isfinite().all())


def test_fitted_hashes_agree_more_with_the_neighbours_and_are_saved() -> None:
    model = SMALL.make(anchors=8)
    assert fit_hashes(model, torch.randn(2, 3, 128, 128), steps=5) == 3
    saved = model.state_dict()
    other = SMALL.make(seed=1, anchors=8)
    other.load_state_dict(saved)
    x = SMALL.picture()
    with torch.no_grad():
        torch.testing.assert_close(other(x), model(x), rtol=0, atol=0)
    layer = KernelHash(1, 6, 8, 10)
    tokens = F.normalize(torch.randn(1, 1, 40, 6, generator=torch.Generator().manual_seed(3)), dim=-1)

    def agreement() -> float:
        from saccade.backbones.shiftaddvit.attention import similarity

        code = 2 * layer(tokens) - 1
        return float((code @ code.mT * similarity(tokens, 10)).mean())

    layer.fit(tokens, steps=0)
    before = agreement()
    layer.fit(tokens, steps=60, rate=0.05)
    assert agreement() > before


def test_hashes_are_not_fitted_to_what_cannot_teach_them() -> None:
    layer = KernelHash(1, 4, 8, 10)
    with pytest.raises(InputError, match="9 tokens"):
        layer.fit(torch.randn(1, 1, 9, 4))
    with pytest.raises(InputError, match="12 tokens do not give 13 neighbours"):
        layer.fit(torch.randn(1, 1, 12, 4), neighbours=13)
    with pytest.raises(InputError, match="not finite"):
        layer.fit(torch.full((1, 1, 20, 4), math.nan))
    with pytest.raises(UsageError, match="no hashing attention"):
        fit_hashes(SMALL.make(**DENSE), torch.randn(1, 3, 64, 64))


def test_the_dial_caps_the_tokens_that_multiply() -> None:
    model = SMALL.make()
    x = SMALL.picture()
    assert has_budget(model)
    found = []
    for budget in (0.1, 0.3, 1.0):
        model.budget = budget
        with torch.no_grad():
            logits = model(x)
        found.append(operations(model, x).multiplications)
        assert model.shift_share() >= 1 - budget - 0.3  # a cap on few tokens rounds up
        one = model(x[:1])
        torch.testing.assert_close(one, logits[:1], rtol=1e-4, atol=1e-4)
    assert found[0] < found[1] < found[2]
    with pytest.raises(UsageError, match="budget"):
        model.budget = 0
    dense = SMALL.make(**DENSE)
    with pytest.raises(UsageError, match="no mixtures"):
        dense.budget = 0.5
    assert math.isnan(dense.shift_share())


def test_operations_are_counted_and_priced() -> None:
    found = operations(nn.Linear(4, 3), torch.zeros(2, 4))
    assert (found.multiplications, found.float_additions, found.shifts) == (24, 24, 0)
    assert found.joules == pytest.approx(24 * 4.6e-12)
    found = operations(ShiftLinear(4, 3), torch.zeros(2, 4))
    assert (found.multiplications, found.shifts, found.integer_additions) == (0, 24, 24)
    assert found.joules == pytest.approx(24 * 0.23e-12)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"attention": "linear"}, "attention is"),
        ({"mlp": "none"}, "'dense', 'shift', 'additive' or 'moe'"),
        ({"gate": "hard"}, "no gate named 'hard'"),
        ({"bits": 1}, "2 to 8 bits"),
        ({"latencies": (1, 2, 3)}, "pair"),
        ({"heads": (3, 2, 3, 4)}, "3 heads must divide 16"),
        ({"heads": (1, 2, 3, 5)}, "5 heads must divide 64"),
        ({"kernel": 4}, "odd number"),
        ({"depths": (1, 1, 1)}, "depths are four"),
        ({"hash_bits": 0}, "at least 1 bit"),
        ({"compat": "new"}, "compat"),
    ],
)
def test_impossible_networks_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        create("shiftaddvit", weights=None, **{**SMALL.options, **options})
