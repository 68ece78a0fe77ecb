"""WaveMix: published counts, the three networks, what the fused block computes, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from torch import Tensor, nn

import saccade
from saccade.backbones.wavemix import (
    PatchStem,
    WaveBlock,
    WaveMix,
    WaveMixSegmentation,
    WaveMixSuperResolution,
    from_classifier,
    from_dense,
    reach,
)
from saccade.bench.backbones.wavemix import plain
from saccade.checkpoint import fit
from saccade.cost import cost, count_parameters
from saccade.errors import CheckpointError, InputError, UsageError
from saccade.nn.fuse import fuse
from saccade.ops.haar import naive
from saccade.registry import create

SMALL = zoo.SMALL["wavemix"]
DENSE: dict[str, Any] = {"width": 16, "depth": 2, "level": 3, "ff_width": 12}


def made(name: str, **options: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return zoo.randomised(create(name, weights=None, **options))


def picture(*size: int, seed: int = 4) -> Tensor:
    return torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("name", "options", "side", "millions", "giga", "digits"),
    [
        ("wavemix_192_16", {}, 224, 27.858, 15.13, 2),
        ("wavemix_192_16", {}, 256, 27.858, 19.76, 2),
        ("wavemix_cifar_320_8", {"num_classes": 10}, 32, 17.074, 4.88, 2),
        ("wavemix_cifar_144_7", {"num_classes": 10}, 32, 3.043, 0.88, 2),
        ("wavemix_segmentation", {}, 256, 63.165, 33.9, 1),
        ("wavemix_x2", {}, 128, 1.945, 11.4, 1),
    ],
)
def test_published_counts(
    name: str, options: dict[str, int], side: int, millions: float, giga: float, digits: int
) -> None:
    with torch.device("meta"):
        model = create(name, weights=None, **options)
    assert round(count_parameters(model) / 1e6, 3) == millions
    x = torch.empty(1, 3, side, side, device="meta")
    published = plain(model)  # the published counts hold the transforms, which are convolutions there
    assert isinstance(published, nn.Module)
    assert round(cost(published, x).macs / 1e9, digits) == giga
    ours = cost(model, x).macs
    assert 0.995 < ours / cost(published, x).macs < 1, "ours has no convolutions for the transform"


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_a_block_is_what_its_equations_say(level: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(level)
        block = zoo.randomised(WaveBlock(8, level, 2, 6, 0.5).eval())
        x = torch.randn(2, 8, 32, 16)
    assert isinstance(block, WaveBlock)
    with torch.no_grad():
        low, bands = block.reduction(x), []
        for _ in range(level):
            low, high = naive.analysis(low)
            bands.append(torch.cat([low, *(high[:, c, i, None] for c in range(2) for i in range(3))], 1))
        u = block.mix[-1](bands[-1])
        for j in reversed(range(level - 1)):
            u = block.mix[j](torch.cat([bands[j], u], 1))
        torch.testing.assert_close(block.branch(x), u, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(block(x), x + u, rtol=1e-5, atol=1e-5)
        fused = block.fuse()
        torch.testing.assert_close(fused(x), x + u, rtol=1e-5, atol=1e-5)
    assert not [m for m in fused.modules() if isinstance(m, nn.BatchNorm2d)]


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_the_stem_without_its_widest_map_is_the_same_function_at_the_borders_too(patch: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(patch)
        stem = zoo.randomised(PatchStem(3, 16, patch).eval().double())
        x = torch.randn(2, 3, 3 * patch, 2 * patch, dtype=torch.float64)
    assert isinstance(stem, PatchStem)
    with torch.no_grad():
        fused = stem.fuse()
        torch.testing.assert_close(fused(x), stem(x), rtol=1e-10, atol=1e-10)
    widths = [m.out_channels for m in fused.modules() if isinstance(m, nn.Conv2d)]
    assert widths == [4, 16], "no map of width / 2"


def test_what_is_learnt_reaches_as_far_as_the_halo_says_and_no_farther() -> None:
    for level in (1, 2, 3):
        block = zoo.randomised(WaveBlock(8, level, 2, 6, 0.0).eval()).double()
        x = torch.randn(1, 8, 64, 16, dtype=torch.float64, requires_grad=True)
        farthest = 0
        for row in range(32, 32 + (1 << level)):
            (gradient,) = torch.autograd.grad(block.branch(x)[0, :, row].sum(), x)
            seen = gradient.abs().sum((0, 1, 3)).nonzero().flatten()
            farthest = max(farthest, row - int(seen.min()), int(seen.max()) - row)
        assert farthest == reach(level)
    assert reach(1) == 2


@pytest.mark.parametrize(("name", "size"), [("wavemix_segmentation", (32, 64)), ("wavemix_x2", (16, 24))])
def test_dense_networks_keep_or_double_the_size_fused_too(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    model, x = made(name, **DENSE), picture(*size)
    factor = 2 if name == "wavemix_x2" else 1
    with torch.no_grad():
        want = model(x)
        assert want.shape[2:] == (factor * size[0], factor * size[1])
        torch.testing.assert_close(fuse(model)(x), want, rtol=2e-5, atol=2e-5)
        saccade.save(model, tmp_path / "net.safetensors")
        torch.testing.assert_close(saccade.load(tmp_path / "net.safetensors")(x), want, rtol=0, atol=0)
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)(x)
        torch.testing.assert_close(compiled, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [pytest.param("wavemix_segmentation", marks=pytest.mark.slow), "wavemix_x2"])
def test_dense_networks_run_in_onnx_runtime_at_any_fitting_size(name: str, tmp_path: Path) -> None:
    import onnxruntime

    model = fuse(made(name, **{**DENSE, "level": 2}, pad=True))
    free = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    program = torch.onnx.export(model, (picture(32, 48),), dynamo=True, dynamic_shapes=(free,), verbose=False)
    assert program is not None
    program.save(str(tmp_path / "net.onnx"))
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    for size in ((32, 48), (48, 64), (37, 41)):
        x = picture(*size)
        with torch.no_grad():
            want = model(x)
        found = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4)


def test_tiles_that_begin_at_even_pixels_equal_the_whole_picture() -> None:
    model = made("wavemix_x2", width=8, depth=2)
    assert isinstance(model, WaveMixSuperResolution)
    x, halo = picture(48, 40), model.halo
    assert halo == 2 + 2 * 2 + 1
    start, stop = 16, 28
    low, high = (start - halo) // 2 * 2, stop + halo
    with torch.no_grad():
        whole, part = model(x), model(x[:, :, low:high])
    torch.testing.assert_close(part[:, :, 2 * (start - low) : 2 * (stop - low)], whole[:, :, 2 * start : 2 * stop])
    assert model.kernels * 48 * 40 == cost(model, x, timed=False).macs


def test_upscaling_by_tiles_equals_the_whole_picture(tmp_path: Path) -> None:
    model = made("wavemix_x2", width=8, depth=1)
    saccade.save(model, tmp_path / "x2.safetensors")
    pixels = (
        (255 * picture(301, 499)[0]).byte().permute(1, 2, 0).numpy()
    )  # two columns, the second from an odd pixel on
    with torch.no_grad():
        whole = model(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255).clamp(0, 1)
    found = saccade.upscale(pixels, model=tmp_path / "x2.safetensors", backend="torch")
    want = (255 * whole[0].permute(1, 2, 0)).round().byte().numpy()
    assert abs(found.astype(int) - want).max() <= 1
    assert (found != want).mean() < 1e-4


def test_padding_continues_the_last_pixels_and_cuts_again() -> None:
    model, x = made("wavemix_x2", width=8, depth=1), picture(7, 9)
    longer = torch.nn.functional.pad(x, (0, 1, 0, 1), mode="replicate")
    with torch.no_grad():
        torch.testing.assert_close(model(x), model(longer)[..., :14, :18])
        padded, fitting = SMALL.make(pad=True), SMALL.make()
        torch.testing.assert_close(padded(SMALL.picture()), fitting(SMALL.picture()))
        assert padded(picture(9, 3)).isfinite().all()
        segmenter = made("wavemix_segmentation", **DENSE, pad=True)
        assert segmenter(picture(33, 40)).shape == (1, 20, 33, 40)


def official_names(model: nn.Module) -> dict[str, Tensor]:
    state = {}
    single = sum(".mix." in n and n.endswith(".5.weight") for n in model.state_dict() if re.search(r"\.0\.mix", n)) == 1
    for name, value in model.state_dict().items():
        name = re.sub(r"^stem\.", "conv.", re.sub(r"^(stages\.0|blocks)\.", "layers.", name))
        name = re.sub(r"\.mix\.(\d)\.", lambda m: f".feedforward{'' if single else int(m[1]) + 1}.", name)
        state[re.sub(r"^head\.", "pool.2.", name)] = value
    return state


@pytest.mark.parametrize(
    ("options", "registered", "reduction"),
    [
        ({"width": 16, "depth": 2, "level": 4, "patch": 8, "num_classes": 5}, "wavemix", 8),
        # as published, a stem of two 3x3 has stride 2 in front of four levels, and 1 in front of one
        ({"width": 16, "depth": 1, "level": 4, "stem": "strided", "mult": 3}, "wavemix", 4),
        ({"width": 256, "depth": 2, "level": 1, "stem": "strided", "stride": 1, "num_classes": 100}, "wavemix", 1),
        ({"width": 144, "depth": 7, "level": 1, "stem": "strided", "stride": 1}, "wavemix_cifar_144_7", 1),
    ],
)
def test_published_classifiers_come_back(options: dict[str, Any], registered: str, reduction: int) -> None:
    model = made("wavemix", **options)
    recipe = from_classifier(official_names(model))
    assert recipe is not None
    assert recipe.model == registered
    again = create(recipe.model, weights=None, **recipe.options)
    fit(again, recipe.state, "published")
    assert isinstance(again, WaveMix)
    assert again.feature_info[0]["reduction"] == reduction
    x = picture(again.multiple, 2 * again.multiple)
    with torch.no_grad():
        torch.testing.assert_close(again(x), model(x))


@pytest.mark.parametrize("name", ["wavemix_segmentation", "wavemix_x2"])
def test_published_dense_networks_come_back(name: str) -> None:
    model, x = made(name, **DENSE), picture(32, 32)
    recipe = from_dense(official_names(model))
    assert recipe is not None
    assert recipe.model == name
    again = create(recipe.model, weights=None, **recipe.options)
    fit(again, recipe.state, "published")
    with torch.no_grad():
        torch.testing.assert_close(again(x), model(x))


def test_weights_that_describe_no_network_are_refused() -> None:
    state = official_names(made("wavemix", width=16, depth=1, level=2))
    with pytest.raises(CheckpointError, match="no multiple of its width"):
        from_classifier({**state, "layers.0.feedforward1.0.weight": torch.zeros(20, 24, 1, 1)})
    with pytest.raises(CheckpointError, match="describe none"):
        from_classifier({k: v for k, v in state.items() if not k.endswith("feedforward1.3.weight")})


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("wavemix", {"width": 18}, "divide by 4"),
        ("wavemix", {"level": 0}, "1 to 4 levels"),
        ("wavemix", {"level": 5}, "1 to 4 levels"),
        ("wavemix_segmentation", {"width": 10}, "divide by 4"),
        ("wavemix_segmentation", {"stride": 4}, "no option"),
        ("wavemix_segmentation", {"num_classes": 0}, "num_classes is 0"),
        ("wavemix_x2", {"level": 7}, "1 to 4 levels"),
        ("wavemix_x2", {"scale": 3}, "x3"),
        ("wavemix", {"stem": "pachify"}, "'patch' or 'strided'"),
        ("wavemix", {"depth": 0}, "at least 1"),
        ("wavemix", {"level": 2.0}, "1 to 4 levels"),
        ("wavemix", {"dropout": 1.5}, r"dropout lies in \[0, 1\]"),
        ("wavemix", {"wavelet": "db2"}, "no option"),
    ],
)
def test_impossible_networks_are_refused(name: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        create(name, weights=None, **options)


def test_sizes_that_the_transform_does_not_divide_are_refused_with_the_multiple() -> None:
    with pytest.raises(InputError, match=r"multiples of 16 px .* not 40 x 64; the next larger size is 48 x 64"):
        SMALL.make()(torch.zeros(1, 3, 64, 40))
    with pytest.raises(InputError, match="multiples of 32 px"):
        made("wavemix_segmentation", **DENSE)(picture(48, 32))
    with pytest.raises(InputError, match="multiples of 2 px"):
        made("wavemix_x2", width=8, depth=1, pad=False)(picture(3, 4))
    with pytest.raises(InputError, match="float pictures"):
        made("wavemix_segmentation", **DENSE)(torch.zeros(1, 1, 32, 32))
    with pytest.raises(InputError, match=r"in \[0, 1\]"):
        made("wavemix_x2", width=8, depth=1)(9 * picture(4, 4))


def test_a_segmenter_learns_a_gradient_for_every_parameter() -> None:
    model = made("wavemix_segmentation", **DENSE).train()
    assert isinstance(model, WaveMixSegmentation)
    model(picture(32, 32)).square().mean().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]


def test_the_published_steps_run_plainly_are_the_same_function() -> None:
    model = made("wavemix_segmentation", **DENSE)
    with torch.no_grad():
        torch.testing.assert_close(plain(model)(picture(32, 64)), model(picture(32, 64)), rtol=1e-5, atol=1e-5)
