"""HyperZ.Z.W: its count, what its products and statistics do, its generators' gradients, and what is refused."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import zoo
from torch import Tensor, nn

from saccade.backbones.hyperzzw import ChannelKernel, GlobalKernel, HyperZZW, LocalKernel, slow_neural_loss
from saccade.backbones.hyperzzw.network import GroupedStandardise, HyperChannel, SlowFastBlock, tiled
from saccade.backbones.hyperzzw.slow_networks import ConstantKernel, pooling
from saccade.cost import count_parameters
from saccade.errors import InputError, UsageError
from saccade.nn.fuse import fuse
from saccade.registry import create

SMALL = zoo.SMALL["hyperzzw"]


def make(**options: object) -> HyperZZW:
    model = SMALL.make(**options)
    assert isinstance(model, HyperZZW)
    return model


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_published_count() -> None:
    assert count_parameters(create("hyperzzw_cifar", weights=None, num_classes=10)) == 1_336_855


def test_kept_kernels_give_the_same_logits() -> None:
    model, x = make(), SMALL.picture(3)
    kept = fuse(model)
    with torch.no_grad():
        assert torch.equal(kept(x), model(x))
    names = {type(m).__name__ for m in kept.modules()}
    assert "ConstantKernel" in names
    assert not names & {"GlobalKernel", "ChannelKernel"}
    assert "LocalKernel" in names, "they depend on the input"
    assert not any(isinstance(m, LocalKernel) for m in fuse(make(eval_stats="running")).modules())


def test_the_hyper_product_is_a_product_of_matrices_not_a_convolution() -> None:
    """Rows of (kernel x) meet columns of the activation: out[i, j] sums over k of (w x)[i, k] fast[k, j]."""
    model, x = make(), SMALL.picture()
    block = model.stages[0]
    assert isinstance(block, SlowFastBlock)
    seen: dict[str, Tensor] = {}
    block.bottleneck.register_forward_pre_hook(lambda _, inputs: seen.update(parts=inputs[0]))
    with torch.no_grad():
        block(x)
        product = x * block.slow_global()
        parts = seen["parts"].split(3, 1)
        out, second, fast, out_x, first, glu = parts[:6]
        assert len(parts) == 10
        torch.testing.assert_close(out, torch.einsum("bcik,bckj->bcij", product, fast), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(glu, torch.sigmoid(out) * out)
        torch.testing.assert_close(parts[9], block.interaction(out, x))
        gated = F.instance_norm(block.hyper_channel(x))
        torch.testing.assert_close(parts[7], product @ gated, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(first, block.local[0](x, gated), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(second, block.local[1](gated, x), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(out_x, product @ F.instance_norm(block.mlp(x)), rtol=1e-4, atol=1e-4)


def test_groups_are_standardised_by_turns_over_the_batch_and_alone() -> None:
    x = 3 + 2 * draw(4, 24, 5, 5)
    found = GroupedStandardise(24)(x)
    for group in range(12):
        part, made = x[:, 2 * group : 2 * group + 2], found[:, 2 * group : 2 * group + 2]
        want = F.batch_norm(part, None, None, training=True) if group % 2 == 0 else F.instance_norm(part)
        torch.testing.assert_close(made, want, rtol=1e-4, atol=1e-5)


def test_earlier_features_are_repeated_as_a_whole() -> None:
    x = torch.arange(3.0).view(1, 3, 1, 1)
    assert tiled(x, 6).flatten().tolist() == [0, 1, 2, 0, 1, 2]
    with pytest.raises(UsageError, match="3 channels cannot be repeated to 7"):
        tiled(x, 7)


def test_which_outputs_join_which_block() -> None:
    model: Any = create("hyperzzw_cifar", weights=None, num_classes=10)
    widths = [3, 12, 36, 72, 144]
    inputs = [s.bottleneck.in_channels // w for s, w in zip(model.stages, widths, strict=True)]
    assert inputs == [10, 10, 11, 11, 12]


def test_pooling_is_torchs() -> None:
    x = draw(2, 3, 16, 16)
    for kernel in (1, 3, 5, 7, 16, 19):
        matrix = pooling(16, kernel)
        torch.testing.assert_close(matrix @ x @ matrix.mT, F.adaptive_avg_pool2d(x, kernel), rtol=1e-5, atol=1e-6)


def test_a_tenth_of_the_gradient_reaches_the_generator() -> None:
    """What a layer of a local generator passes on as it is carries none: only its normalised part does."""
    torch.manual_seed(0)
    local = LocalKernel(3, 8, 4, 6, 2, 5.0)
    places = [p for n, p in local.named_parameters() if n.startswith("filters.0")]
    local(draw(2, 4, 8, 8)).square().sum().backward()
    through = [p.grad.clone() for p in places if p.grad is not None]
    assert len(through) == 2

    h = local.filtered(0)
    first = local.filtered(1).detach() * local.linears[0](h) + local.bias_map
    parts = torch.autograd.grad((0.1 * F.normalize(first, dim=0)).sum(), [places[0]])
    assert float(parts[0].abs().max()) > 0
    assert all(float(g.abs().max()) > 0 for g in through)


def test_kernels_of_one_place_stand_at_minus_one() -> None:
    assert GlobalKernel(1, 2, 4, 1, 1.0).places.tolist() == [[-1.0, -1.0]]
    assert ChannelKernel(3, 4, 2, 1.0)().shape == (1, 1, 3)


def test_scores_of_channels_are_squares_of_their_means() -> None:
    torch.manual_seed(0)
    layer, x = HyperChannel(4, 6, 3.0), draw(2, 4, 3, 3)
    with torch.no_grad():
        y = x.mean((2, 3))
        want = x * torch.sigmoid(layer.slow_channel()[0, 0] * y**2)[:, :, None, None]
        torch.testing.assert_close(layer(x), want)


def test_logits_depend_on_the_batch_unless_means_are_kept() -> None:
    x = SMALL.picture(4)
    order = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        model = make()
        whole = model(x)
        torch.testing.assert_close(model(x[order]), whole[order], rtol=1e-3, atol=1e-4)  # the order does not matter
        assert float((model(x[:2]) - whole[:2]).abs().max()) > 1e-3
        kept = make(eval_stats="running")
        kept.train()
        for seed in range(3):
            kept(SMALL.picture(8, seed=seed))
        kept.eval()
        torch.testing.assert_close(kept(x[:1]), kept(x)[:1], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(fuse(kept)(x), kept(x), rtol=1e-4, atol=1e-5)


def test_running_means_come_to_those_of_the_batch() -> None:
    x = SMALL.picture(8)
    model, kept = make(), make(eval_stats="running")
    kept.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        kept.train()
        for _ in range(120):  # 0.9^120 of the start is left
            kept(x)
        torch.testing.assert_close(kept.eval()(x), model(x), rtol=1e-2, atol=1e-3)


def test_one_picture_alone_gets_a_warning() -> None:
    with torch.no_grad():
        with pytest.warns(UserWarning, match="one picture"):
            make()(SMALL.picture(1))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            make()(SMALL.picture(2))
            make(eval_stats="running")(SMALL.picture(1))


def test_slow_neural_loss_by_hand() -> None:
    early, late = draw(1, 2, 3, 3), draw(1, 4, 3, 3, seed=1)
    want = ((torch.cat([early, early], 1) - late) ** 2).mean()
    torch.testing.assert_close(slow_neural_loss([early, late]), want)
    torch.testing.assert_close(slow_neural_loss([early, late], "sum"), ((early.sum(1) - late.sum(1)) ** 2).mean())
    with pytest.raises(UsageError, match="forms"):
        slow_neural_loss([early, late], "max")


def test_the_loss_comes_with_the_logits_and_reaches_the_kernels_alone() -> None:
    model, x = make(), SMALL.picture()
    logits, loss = model.with_slow_neural_loss(x)
    torch.testing.assert_close(logits, model(x))
    loss.backward()
    touched = {n for n, p in model.named_parameters() if p.grad is not None}
    assert touched == {n for n, _ in model.named_parameters() if ".slow_global." in n}


def test_the_penalty_is_norms_of_the_mixing_layers() -> None:
    model = make()
    mixing = [
        p
        for n, p in model.named_parameters()
        if any(f".{k}" in n for k in ("mlp.", "bottleneck.", "mix.")) or (".local." in n and n.endswith(".bias"))
    ]
    plain = sum(float(p.detach().norm()) for p in mixing)
    generators = sum(
        float(p.detach().norm()) for n, p in model.named_parameters() if ".slow." in n and p in set(mixing)
    )
    assert float(model.penalty().detach()) == pytest.approx(plain - generators, rel=1e-3)
    model.penalty().backward()
    assert model.get_parameter("stages.0.slow_global.output.weight").grad is not None


def test_the_start_is_part_of_the_weights() -> None:
    """Loading a state does not scale anything again (the published flag is not saved)."""
    model = make()
    again = make(seed=5)
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(again(SMALL.picture()), model(SMALL.picture()))


def test_the_classifier_starts_as_torch_has_it() -> None:
    """With deviations of 0.02 the network learns far more slowly."""
    head = create("hyperzzw_cifar", weights=None, num_classes=10).head
    assert float(head.weight.detach().std()) == pytest.approx((3 * 288) ** -0.5, rel=0.05)
    assert head.bias.detach().abs().max() > 0


def test_a_generators_output_shrinks_with_its_places() -> None:
    def spread(side: int) -> float:
        torch.manual_seed(0)
        return float(GlobalKernel(side, 64, 64, 1, 1.0).output.weight.std())

    assert spread(8) == pytest.approx(4 * spread(32), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"widths": (12, 20, 40)}, r"widths\[1\] is 20, it must divide by 12"),
        ({"widths": (24, 36, 36)}, r"widths\[1\] is 36, it must be a multiple of 24"),
        ({"in_chans": 5}, "multiple of 5"),
        ({"local": (3, 9, 4, 7)}, "four odd sides"),
        ({"local": (3, 9)}, "four odd sides"),
        ({"depths": (2, 1)}, "depths has 2"),
        ({"depths": (2, 0, 1)}, "at least one place, channel"),
        ({"omega": 0.0}, "positive"),
        ({"img_size": 0}, "img_size is 0"),
        ({"eval_stats": "none"}, "'batch' or 'running'"),
    ],
)
def test_impossible_networks_are_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        create("hyperzzw", weights=None, **{**SMALL.options, **options})


def test_other_maps_are_refused() -> None:
    with pytest.raises(InputError, match="built for 16 x 16 px, not 20 x 16"):
        make()(torch.zeros(2, 3, 16, 20))
    one = create("hyperzzw", weights=None, **{**SMALL.options, "img_size": 1})
    with pytest.raises(InputError, match="one pixel"):
        one(torch.zeros(1, 3, 1, 1))
    with torch.no_grad():
        assert one(draw(2, 3, 1, 1)).isfinite().all()


def test_a_kept_kernel_is_no_parameter() -> None:
    kept = fuse(make())
    assert all(not isinstance(m, ConstantKernel) or not list(m.parameters()) for m in kept.modules())
    assert isinstance(kept, nn.Module)
