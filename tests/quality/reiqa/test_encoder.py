"""The encoders are timm's ResNets, whatever their size; published counts; published files; bad input refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from saccade.budget import has_budget
from saccade.checkpoint import load, save
from saccade.cost import cost, count_parameters
from saccade.errors import CheckpointError, InputError, UsageError
from saccade.quality.reiqa.encoder import Block, Encoder, Head, local_contrast, window_mean
from saccade.quality.reiqa.network import LAYOUTS, ReIQA, from_official, with_content
from saccade.registry import create, list_models


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Every parameter and statistic away from its start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if not value.is_floating_point():
                continue
            drawn = torch.randn(value.shape, generator=generator)
            if name.endswith("running_var"):
                value.copy_(0.5 + drawn.abs())
            elif value.dim() > 1:
                value.copy_(drawn / value[0].numel() ** 0.5)
            else:
                value.copy_((name.endswith("weight")) + 0.2 * drawn)


def picture(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def tiny(content: bool = True) -> ReIQA:
    made = create("reiqa_small", weights=None, width=0.0625, layers=[1, 1], content=content)
    assert isinstance(made, ReIQA)
    randomise(made)
    return made


@pytest.mark.parametrize(("block", "name"), [("bottleneck", "resnet50"), ("basic", "resnet18")])
@torch.no_grad()
def test_the_encoder_is_timms_resnet(block: Block, name: str) -> None:
    timm = pytest.importorskip("timm")
    widths = {"layers": (1, 1, 2, 1)} if block == "bottleneck" else {}
    layers = widths.get("layers", (2, 2, 2, 2))
    theirs = timm.create_model(name, num_classes=0, **widths).eval()
    ours = Encoder(block, layers, (64, 128, 256, 512)).eval()
    randomise(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = picture(1, 3, 70, 53)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    block=st.sampled_from(["basic", "bottleneck"]),
    contrast=st.booleans(),
)
@settings(max_examples=25, deadline=None)
@torch.no_grad()
def test_folding_the_norms_keeps_the_function_at_any_size(
    height: int, width: int, block: Block, contrast: bool
) -> None:
    encoder = Encoder(block, (1, 2), (4, 6), 5, contrast).eval().double()
    randomise(encoder)
    x = picture(2, 3, height, width).double()
    before = encoder(x)
    torch.testing.assert_close(encoder.fuse()(x), before, rtol=1e-9, atol=1e-9)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in encoder.modules())
    torch.testing.assert_close(encoder.fuse()(x), before, rtol=1e-9, atol=1e-9)


@given(height=st.integers(1, 20), width=st.integers(1, 20))
@settings(max_examples=25, deadline=None)
def test_a_window_mean_is_the_pooled_mean_with_the_border_repeated(height: int, width: int) -> None:
    x = picture(2, 3, height, width).double()
    torch.testing.assert_close(window_mean(x), F.avg_pool2d(F.pad(x, (3,) * 4, mode="replicate"), 7, 1))


def test_local_contrast_knows_no_brightness_and_hardly_a_gain() -> None:
    x = picture(1, 3, 40, 50).double() * 0.5
    local = local_contrast(x)
    assert local.shape == (1, 6, 40, 50)
    torch.testing.assert_close(local_contrast(x + 0.3), local)
    louder = local_contrast(2 * x)
    torch.testing.assert_close(louder[:, :3], local[:, :3], rtol=0.02, atol=0.02)
    torch.testing.assert_close(
        louder[:, 3:] - local[:, 3:], torch.full_like(local[:, 3:], 0.5 * np.log(2)), atol=1e-3, rtol=0
    )
    flat = local_contrast(torch.full((1, 3, 9, 9), 0.7))
    assert flat[:, :3].abs().max() < 1e-3, "no noise is made where there is none"
    assert flat.isfinite().all()


def test_published_counts() -> None:
    """23.5 M parameters an encoder, 4.1 GMAC at 224 pixels, a quarter more for the half size."""
    with torch.device("meta"):
        model = create("reiqa", weights=None, content=False)
        both = create("reiqa", weights=None)
    assert isinstance(model, ReIQA)
    assert isinstance(both, ReIQA)
    assert count_parameters(model) == 23_508_032
    assert count_parameters(both) == 2 * 23_508_032
    assert (model.dimensions(), both.dimensions()) == (4096, 8192)
    with torch.device("meta"):
        encoder = Encoder("bottleneck", (3, 4, 6, 3), (64, 128, 256, 512)).eval()
    macs = cost(encoder, torch.empty(1, 3, 224, 224, device="meta"), timed=False).macs
    assert macs / 1e9 == pytest.approx(4.1, abs=0.05)


def test_the_small_model_has_its_counts() -> None:
    model = create("reiqa_small", weights=None)
    assert isinstance(model, ReIQA)
    assert model.dimensions() == 512
    assert count_parameters(model) == 2 * count_parameters(model.quality)
    assert "reiqa_small" in list_models(task="image quality")


# -- the dial


def test_the_dial_clicks_through_the_layouts() -> None:
    model = tiny()
    assert has_budget(model)
    x = picture(1, 3, 64, 80)
    seen = []
    for budget in model.budgets():
        model.budget = budget
        assert model.budget == pytest.approx(budget)
        seen.append(model(x).shape[1])
        assert seen[-1] == model.dimensions()
    assert seen == [8, 8, 16, 32]
    model.budget = 0.45
    assert model.setting == "quality_full"
    model.budget = 0.01
    assert model.setting == "quality_half"
    with pytest.raises(UsageError):
        model.budget = 0
    with pytest.raises(UsageError, match="layouts are"):
        model.use("content")


def test_macs_follow_the_dial() -> None:
    model = tiny()
    x = picture(1, 3, 128, 128)
    macs = []
    for budget in model.budgets():
        model.budget = budget
        macs.append(cost(model, x, timed=False).macs)
    assert [m / macs[-1] for m in macs] == pytest.approx(model.budgets(), rel=0.02)


@torch.no_grad()
def test_features_are_branch_by_branch_full_size_first() -> None:
    model = tiny()
    x, half = picture(1, 3, 64, 80), picture(1, 3, 32, 40, seed=1)
    whole = model(x, half)
    normal = [(v - model.mean) / model.deviation for v in (x, half)]
    parts = [model.quality(x), model.quality(half), *(model.content(v) for v in normal)]
    torch.testing.assert_close(whole, torch.cat(parts, 1))


@torch.no_grad()
def test_the_half_size_is_pillows() -> None:
    from PIL import Image

    from saccade.quality.reiqa.network import halved

    pixels = np.random.default_rng(0).integers(80, 170, (71, 90, 3)).astype(np.uint8)
    pixels[:40] //= 2  # an edge; what overshoots 0..255, Pillow cuts off between its passes
    wanted = np.asarray(Image.fromarray(pixels).resize((45, 35)))
    made = halved(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255)[0].permute(1, 2, 0) * 255
    off = np.abs(made.numpy() - wanted)
    assert off.max() <= 1.001
    assert (off > 0.5).mean() < 0.25, "Pillow rounds between its two passes"


# -- published files


def official(layers: tuple[int, ...] = (1, 2), widths: tuple[int, ...] = (4, 6), seed: int = 0) -> dict[str, Tensor]:
    encoder = Encoder("bottleneck", layers, widths, 8)
    randomise(encoder, seed)
    head = Head(encoder.features, 10, 5)
    state = {f"module.encoder.{k}": v for k, v in encoder.state_dict().items()}
    return state | {f"module.head.{k}": v.detach() for k, v in head.state_dict().items()}


def test_published_files_load_and_join(tmp_path: Path) -> None:
    for i, name in enumerate(("quality", "content")):
        torch.save({"opt": {"lr": 12.0}, "model": official(seed=i), "epoch": 25}, tmp_path / f"{name}.pth")
    quality, content = load(tmp_path / "quality.pth"), load(tmp_path / "content.pth")
    assert isinstance(quality, ReIQA)
    assert isinstance(content, ReIQA)
    both = with_content(quality, content)
    assert both.dimensions() == 4 * 24
    save(both, tmp_path / "both.safetensors")
    again = load(tmp_path / "both.safetensors")
    x = picture(1, 3, 64, 64)
    torch.testing.assert_close(again(x), both(x))
    torch.testing.assert_close(both(x)[:, :48], quality(x))
    assert quality.quality.project(x).norm(dim=1).item() == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("missing", ["layer2.0.conv1.weight", "layer2.0", "bn1.running_mean"])
def test_incomplete_published_files_are_refused(missing: str, tmp_path: Path) -> None:
    state = {k: v for k, v in official().items() if missing not in k}
    torch.save({"model": state}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError):
        load(tmp_path / "x.pth")


def test_mistaken_ranks_are_refused() -> None:
    state = {k.removeprefix("module."): v for k, v in official().items()}
    state["encoder.conv1.weight"] = state["encoder.conv1.weight"].flatten()
    with pytest.raises(CheckpointError, match=r"encoder\.conv1\.weight with 4 dimensions"):
        from_official(state)


# -- bad input


def test_what_is_no_picture_is_refused() -> None:
    model = tiny()
    with pytest.raises(InputError, match="at least 64 pixels a side, not 80 x 63"):
        model(picture(1, 3, 63, 80))
    with pytest.raises(InputError, match="not normalised"):
        model(picture(1, 3, 64, 64) - 0.2)
    with pytest.raises(InputError, match="divide by 255"):
        model(255 * picture(1, 3, 64, 64))
    with pytest.raises(InputError, match="channels"):
        model(picture(1, 1, 64, 64))
    model.use("quality_full")
    assert model(picture(1, 3, 32, 32)).shape == (1, 8)
    with pytest.raises(InputError, match="at least 32"):
        model(picture(1, 3, 31, 40))


def test_models_without_regressor_or_head_say_so() -> None:
    model = ReIQA(tiny().quality)
    with pytest.raises(UsageError, match="fit a regressor"):
        model.score(picture(1, 3, 64, 64))
    with pytest.raises(UsageError, match="projection"):
        model.quality.project(picture(1, 3, 64, 64))
    with pytest.raises(UsageError, match="two Re-IQA models"):
        with_content(model, nn.Identity())  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="a width for each"):
        Encoder("basic", (1, 1), (4,))


def test_features_of_another_layout_are_refused() -> None:
    model = create("reiqa_small", weights=None, width=0.0625, layers=[1, 1])
    assert isinstance(model, ReIQA)
    with torch.inference_mode():
        features = model(torch.rand(1, 3, 64, 64))
    model.budget = 0.5
    with pytest.raises(InputError, match="layout quality has 16 features, not 32"):
        model.regress(features)


def test_layouts_have_the_shares_that_the_dial_tells() -> None:
    assert [layout.share for layout in LAYOUTS.values()] == [0.25, 1.0, 1.25, 2.5]
