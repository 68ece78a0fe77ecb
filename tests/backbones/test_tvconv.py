"""TVConv: counts, the generator, kept kernels, the deployed form with its bias, layouts of weights, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import zoo
from torch import Tensor, nn

from saccade.backbones.tvconv import (
    AMSoftmax,
    BakedTVConv,
    TVConv,
    from_official_mobilenet,
    from_official_shufflenet,
    load_state,
)
from saccade.checkpoint import fit
from saccade.cost import cost, count_parameters
from saccade.errors import CheckpointError, InputError, UsageError
from saccade.nn.fuse import fuse
from saccade.registry import create


@pytest.mark.parametrize(
    ("name", "options", "millions", "digits"),
    [
        ("tvconv_mobilenetv2_x0_1", {"layer": "depthwise"}, 0.325, 3),
        ("tvconv_mobilenetv2_x0_1", {}, 16.37, 2),
        ("tvconv_mobilenetv2_x1_0", {"layer": "depthwise"}, 2.24, 2),
    ],
)
def test_published_counts(name: str, options: dict[str, Any], millions: float, digits: int) -> None:
    with torch.device("meta"):
        model = create(name, weights=None, **options)
    assert round(count_parameters(model) / 1e6, digits) == millions


def layer(seed: int = 0, **options: Any) -> TVConv:
    told = {"channels": 4, "size": (6, 7), "inter_chans": 5, "inter_layers": 1, **options}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = TVConv(**told)
        with torch.no_grad():
            for value in made.parameters():
                value.add_(0.3 * torch.randn_like(value))
    return made.eval()


def picture(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_kernels_come_from_the_affinity_maps_with_channels_outermost() -> None:
    conv = layer(inter_layers=2)
    with torch.no_grad():
        x = conv.posi_map
        for i in range(3):
            c, norm = conv.weight_layers[i][0], conv.weight_layers[i][1]
            x = F.conv2d(x, c.weight, padding=1)
            x = (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt() * norm.weight + norm.bias  # over (c, h, w) jointly
            x = x.relu()
        drawn = F.conv2d(x, conv.weight_layers[3].weight, padding=1)[0]
        weight, bias = conv.kernels()
    assert bias is None
    for channel in range(4):
        for tap in range(9):
            torch.testing.assert_close(weight[tap, channel], drawn[channel * 9 + tap], rtol=1e-4, atol=1e-4)


def test_affinity_maps_begin_as_ones_and_kernels_differ_all_the_same() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        conv = TVConv(4, (6, 7))
    assert torch.equal(conv.posi_map, torch.ones(1, 4, 6, 7))
    assert len(conv.weight_layers) == 5, "one block, three more, and the last convolution"
    weight, _ = conv.kernels()
    assert float((weight[:, :, 0, 0] - weight[:, :, 3, 3]).detach().abs().max()) > 1e-3, (
        "the border breaks the symmetry"
    )


def test_all_of_the_generator_learns() -> None:
    conv = layer(bias=True).train()
    conv(picture(2, 4, 6, 7)).square().sum().backward()
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in conv.parameters())


def test_kernels_are_kept_until_a_parameter_changes() -> None:
    conv, x = layer(bias=True), picture(1, 4, 6, 7)
    calls: list[int] = []
    conv.weight_layers.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        first = conv(x)
        conv(x)
        assert len(calls) == 1
        conv.posi_map[0, :, 2, 3] += 1
        assert float((conv(x) - first).abs().max()) > 1e-4
        conv.load_state_dict(layer(1, bias=True).state_dict())
        torch.testing.assert_close(conv(x), layer(1, bias=True)(x))
        assert len(calls) == 3
        conv.train()(x)
        conv.eval()
        conv(x)
    assert len(calls) == 5
    conv(x).sum().backward()
    assert conv.posi_map.grad is not None, "with gradients nothing is kept"


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5])
def test_baked_it_keeps_its_bias(stride: int, kernel: int) -> None:
    conv = layer(stride=stride, kernel=kernel, bias=True)
    x = picture(2, 4, 6 * stride, 7 * stride)
    with torch.no_grad():
        torch.testing.assert_close(conv.fuse()(x), conv(x), rtol=1e-5, atol=1e-5)
    with pytest.raises(UsageError, match="eval"):
        conv.train().fuse()


@pytest.mark.parametrize("name", ["tvconv_mobilenetv2", "tvconv_shufflenetv2"])
def test_fused_networks_have_neither_norms_nor_generators(name: str) -> None:
    told = dict(zoo.SMALL["tvconv"].options) if "mobile" in name else {"img_size": 32, "inter_chans": 8}
    told |= {} if "mobile" in name else {"widths": (8, 16, 32, 24), "depths": (2, 2)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = zoo.randomised(create(name, weights=None, bias=True, **told))
    fused, x = fuse(model), picture(2, 3, 32, 32)
    norms = [m for m in fused.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm | TVConv | nn.LayerNorm)]
    assert norms == [fused.norm]
    with torch.no_grad():
        want = model(x)
        torch.testing.assert_close(fused(x), want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))


def test_only_depthwise_convolutions_are_replaced() -> None:
    told = zoo.SMALL["tvconv"].options
    ours, plain = (create("tvconv_mobilenetv2", weights=None, layer=kind, **told) for kind in ("tvconv", "depthwise"))
    kinds = [[type(m) for n, m in net.named_modules() if ".conv.conv" in n] for net in (plain, ours)]
    assert sum(isinstance(m, TVConv) for m in ours.modules()) == 4
    assert not [m for m in plain.modules() if isinstance(m, TVConv)]
    assert kinds
    depthwise = [m for m in plain.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert [m.in_channels for m in depthwise] == [m.channels for m in ours.modules() if isinstance(m, TVConv)]
    dense = [
        [m.weight.shape for m in net.modules() if isinstance(m, nn.Conv2d) and m.groups == 1] for net in (plain, ours)
    ]
    generator = [
        m.weight.shape
        for net in ours.modules()
        if isinstance(net, TVConv)
        for m in net.modules()
        if isinstance(m, nn.Conv2d)
    ]
    assert sorted(dense[1]) == sorted([*dense[0], *generator])


def test_depthwise_networks_take_other_sizes() -> None:
    model = create("tvconv_mobilenetv2_x0_1", weights=None, layer="depthwise")
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 64, 80)).shape == (1, 512)
    assert cost(model, torch.zeros(1, 3, 64, 64), timed=False).macs > 0


def official(model: nn.Module, deployed: bool = False) -> dict[str, Tensor]:
    """The state of a small MobileNetV2 in the published layout, from our own."""
    made: dict[str, Tensor] = {}
    numbers = {(0, 0): 1, (1, 0): 2, (1, 1): 3, (2, 0): 4, (2, 1): 5}
    for name, value in model.state_dict().items():
        parts = name.split(".")
        kind = {"conv": "0", "bn": "1"}
        if parts[0] == "stem":
            parts = ["features", "0", kind[parts[1]], *parts[2:]]
        elif parts[0] == "stages":
            number = numbers[int(parts[1]), int(parts[2])]
            if parts[3] != "conv" or number == 5:
                parts = ["features", str(number), kind[parts[3]], *parts[4:]]
            else:
                last = 1 if number == 1 else 2
                place = int(parts[4])
                inner = [str(place), kind[parts[5]]] if place < last else [str(place + int(kind[parts[5]]))]
                parts = ["features", str(number), "conv", *inner, *parts[6:]]
        elif parts[0] == "norm":
            parts = ["output_layer", "layer1", *parts[1:]]
        else:
            parts = ["output_layer", "layer2", {"linear": "0", "bn": "1"}[parts[1]], *parts[2:]]
        made[".".join(parts)] = value
    for name, module in model.named_modules():
        if not isinstance(module, TVConv):
            continue
        stage, number = (int(p) for p in name.split(".")[1:3])
        at = f"features.{numbers[stage, number]}.conv.{0 if numbers[stage, number] == 1 else 1}.0"
        told = {"stride": module.stride, "TVConv_k": module.kernel, "TVConv_k_square": module.kernel**2}
        if deployed:
            made = {k: v for k, v in made.items() if not k.startswith(f"{at}.")}
            weight = module.kernels()[0].detach()
            made[f"{at}.weight_maps"] = weight.transpose(0, 1).unflatten(1, (3, 3))[None]
            told = {"c": module.channels, "h": module.size[0], "w": module.size[1]}
        made |= {f"{at}.{k}": torch.tensor(v) for k, v in told.items()}
    return made


@pytest.mark.parametrize("deployed", [False, True])
def test_both_published_forms_are_read(deployed: bool) -> None:
    small = zoo.SMALL["tvconv"]
    model, x = small.make(num_classes=9), small.picture()
    recipe = from_official_mobilenet(official(model, deployed))
    assert recipe is not None
    assert recipe.options["blocks"] == small.options["blocks"]
    assert (recipe.options["img_size"], recipe.options["num_classes"]) == (32, 9)
    again = create(recipe.model, weights=None, **recipe.options)
    fit(again, recipe.state, "official")
    assert any(isinstance(m, BakedTVConv) for m in again.modules()) == deployed
    with torch.no_grad():
        torch.testing.assert_close(again(x), model(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(fuse(again)(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layer", ["tvconv", "depthwise"])
def test_shufflenet_s_published_names_are_read(layer: str) -> None:
    told = {"widths": (8, 16, 32, 24), "depths": (2, 2), "img_size": 32, "inter_chans": 8, "inter_layers": 0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = zoo.randomised(create("tvconv_shufflenetv2", weights=None, layer=layer, **told))
    state = {}
    parts = {"1": {"0.conv": "0", "0.bn": "1", "1.conv": "2", "1.bn": "3"}}
    parts["2"] = {"0.conv": "0", "0.bn": "1", "1.conv": "3", "1.bn": "4", "2.conv": "5", "2.bn": "6"}
    for name, value in model.state_dict().items():
        p = name.split(".")
        kind = {"conv": "0", "bn": "1"}
        if p[0] == "stem":
            p = ["conv1", kind[p[2]], *p[3:]]
        elif p[0] == "stages" and p[3] in kind:
            p = ["conv5", kind[p[3]], *p[4:]]
        elif p[0] == "stages":
            branch = p[3][-1]
            p = [f"stage{int(p[1]) + 2}", p[2], p[3], parts[branch][f"{p[4]}.{p[5]}"], *p[6:]]
        elif p[0] == "norm":
            p = ["output_layer", "layer1", *p[1:]]
        else:
            p = ["output_layer", "layer2", {"linear": "0", "bn": "1"}[p[1]], *p[2:]]
        state[".".join(p)] = value
    recipe = from_official_shufflenet(state)
    assert recipe is not None
    again = create(recipe.model, weights=None, **recipe.options)
    fit(again, recipe.state, "official")
    with torch.no_grad():
        torch.testing.assert_close(again(picture(2, 3, 32, 32)), model(picture(2, 3, 32, 32)), rtol=0, atol=0)


def test_weights_for_another_size_are_refused_unless_resized() -> None:
    small = zoo.SMALL["tvconv"]
    state = small.make().state_dict()
    model = small.make(img_size=48)
    with pytest.raises(CheckpointError, match=r"maps of 32x32, the network has 48x48.*resize=True"):
        load_state(model, state)
    with pytest.warns(UserWarning, match="resized"):
        load_state(model, state, resize=True)
    found = model.stages[0][0].conv[0].conv.posi_map
    want = F.interpolate(state["stages.0.0.conv.0.conv.posi_map"], (48, 48), mode="bilinear", align_corners=False)
    torch.testing.assert_close(found, want)
    load_state(small.make(seed=5), state)


def test_am_softmax_takes_the_margin_off_the_label_s_cosine() -> None:
    head, x = AMSoftmax(6, 4), picture(5, 6)
    labels = torch.tensor([0, 3, 1, 1, 2])
    with torch.no_grad():
        logits = head(x, labels)
        for i, label in enumerate(labels):
            cosine = F.cosine_similarity(x[i : i + 1], head.weight.T)
            cosine[label] -= 0.35
            torch.testing.assert_close(logits[i], 32 * cosine, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(head.loss(x, labels), F.cross_entropy(logits, labels))


@pytest.mark.parametrize(
    ("x", "labels", "says"),
    [
        (torch.zeros(2, 5), torch.tensor([0, 1]), r"embeddings \(B, 4\)"),
        (torch.zeros(2, 4), torch.tensor([0]), "a class number each"),
        (torch.zeros(2, 4), torch.tensor([0.0, 1.0]), "float32"),
        (torch.zeros(2, 4), torch.tensor([0, 3]), "from 0 to 2, not from 0 to 3"),
        (torch.zeros(2, 4), torch.tensor([-1, 1]), "not from -1 to 1"),
    ],
)
def test_am_softmax_refuses_what_is_no_embedding_with_a_label(x: Tensor, labels: Tensor, says: str) -> None:
    with pytest.raises(InputError, match=says):
        AMSoftmax(4, 3)(x, labels)
    with pytest.raises(UsageError, match="at least one feature"):
        AMSoftmax(4, 0)


def test_pictures_of_another_size_are_refused_before_anything_is_computed() -> None:
    conv = TVConv(3, (24, 24), stride=2)
    with pytest.raises(InputError, match="built for output 24x24, input 50x50 gives 25x25"):
        conv(torch.zeros(1, 3, 50, 50))
    with pytest.raises(InputError, match="3 channels"):
        conv(torch.zeros(1, 4, 48, 48))
    with pytest.raises(InputError, match="96"):
        create("tvconv_mobilenetv2_x0_1", weights=None, inter_chans=4)(torch.zeros(1, 3, 112, 112))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"kernel": 4}, "odd, not 4"),
        ({"layer": "conv"}, "layer is"),
        ({"blocks": ()}, "blocks"),
        ({"blocks": ((8, 8),)}, "blocks"),
        ({"posi_chans": 0}, "at least 1"),
        ({"inter_layers": -1}, "at least 0"),
    ],
)
def test_impossible_networks_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        create("tvconv_mobilenetv2", weights=None, **{**zoo.SMALL["tvconv"].options, **options})


@pytest.mark.parametrize("options", [{"widths": (8, 16, 24)}, {"widths": (8, 15, 32, 24), "depths": (1, 1)}])
def test_impossible_shufflenets_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="widths"):
        create("tvconv_shufflenetv2", weights=None, img_size=32, **options)
