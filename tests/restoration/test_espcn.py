"""ESPCN: published counts, layouts of published files, exact tiles, the same result from every engine, bad input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from saccade.checkpoint import load, save
from saccade.cost import cost, count_parameters
from saccade.errors import CheckpointError, InputError, UsageError
from saccade.registry import create, list_models
from saccade.restoration.espcn import ESPCN
from saccade.restoration.upscale import Upscaler
from saccade.runtime.engines import available_backends
from saccade.runtime.tiles import bands, columns


def randomise(model: nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / (p[0].numel() if p.dim() > 1 else 4) ** 0.5)


def picture(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("scale", "parameters", "macs"), [(2, 21_284, 21_184), (3, 22_729, 22_624), (4, 24_752, 24_640)]
)
def test_parameters_and_macs_are_those_of_the_card(scale: int, parameters: int, macs: int) -> None:
    model = create("espcn", weights=None, scale=scale)
    assert count_parameters(model) == parameters
    assert model.kernels == macs
    assert cost(model, torch.empty(1, 1, 24, 40, device="meta")).macs == macs * 24 * 40


def test_macs_to_720p_are_those_of_the_card() -> None:
    for scale, width, height, gigas in ((2, 640, 360, 4.88), (3, 427, 240, 2.32), (4, 320, 180, 1.42)):
        macs = cost(create("espcn", weights=None, scale=scale), torch.empty(1, 1, height, width, device="meta")).macs
        assert f"{macs / 1e9:.2f}" == f"{gigas:.2f}"


@pytest.mark.parametrize("name", list_models(system="espcn"))
@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@given(height=st.integers(1, 11), width=st.integers(1, 11))
@settings(max_examples=5, deadline=None)
def test_every_variant_enlarges_any_size(name: str, scale: int, height: int, width: int) -> None:
    model = create(name, weights=None, scale=scale)
    made = model(picture(1, model.in_channels, height, width))
    assert made.shape == (1, model.out_channels, scale * height, scale * width)


def test_one_colour_may_become_three() -> None:
    assert ESPCN(2, 1, 3)(picture(1, 1, 5, 4)).shape == (1, 3, 10, 8)


def test_the_shuffle_puts_the_colour_slowest() -> None:
    model = ESPCN(2, 3).train()
    for p in model.parameters():
        nn.init.zeros_(p)
    with torch.no_grad():
        model.subpixel.bias.copy_(torch.arange(12))  # type: ignore[union-attr]
    made = model(picture(1, 3, 1, 1))
    assert made[0].flatten(1).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_an_equal_start_has_no_checkerboard() -> None:
    x = picture(1, 3, 6, 5)
    for name in ("espcn_rgb", "espcn"):
        model = create(name, weights=None, scale=3, equal_start=True).train()
        made = model(x[:, : model.in_channels]).detach()
        blocks = made.unflatten(-1, (-1, 3)).unflatten(-3, (-1, 3))
        assert torch.equal(blocks, blocks[..., :1, :, :1].expand_as(blocks))
        assert len(made.unique()) > 1


def test_the_clamp_leaves_gradients_alone_in_training() -> None:
    model = ESPCN(2)
    nn.init.constant_(model.subpixel.bias, 2.0)  # type: ignore[arg-type]
    x = picture(1, 1, 6, 6)
    model.train()(x).sum().backward()
    assert float(model.subpixel.bias.grad.abs().min()) > 0  # type: ignore[union-attr]
    assert float(model.eval()(x).detach().max()) == 1


@given(height=st.integers(1, 40), width=st.integers(1, 40), core=st.integers(3, 20))
@settings(max_examples=20, deadline=None)
def test_tiles_with_the_halo_equal_the_whole_picture(height: int, width: int, core: int) -> None:
    model = create("espcn_small", weights=None, scale=2).double()
    randomise(model)
    x = picture(1, 1, height, width).double()
    with torch.no_grad():
        whole = model(x)
        made = torch.full_like(whole, torch.nan)
        for rows in bands(height, core, model.halo):
            for span in columns(width, core, model.halo):
                tile = model(x[:, :, rows.low : rows.high, span.low : span.high])
                inner = tile.unflatten(2, (-1, 2)).unflatten(4, (-1, 2))[:, :, rows.inner, :, span.inner]
                made[:, :, 2 * rows.start : 2 * rows.stop, 2 * span.start : 2 * span.stop] = inner.flatten(4).flatten(
                    2, 3
                )
    torch.testing.assert_close(made, whole, rtol=0, atol=1e-12)


# -- published files

LAYOUTS = {
    "lornatang": ("feature_maps.0", "feature_maps.2", "sub_pixel.0"),
    "yjn870": ("first_part.0", "first_part.2", "last_part.0"),
}


def published(layout: str, colours: int, scale: int, width: int) -> tuple[dict[str, Tensor], ESPCN]:
    model = ESPCN(scale, colours, colours, (width, width // 2)).eval()
    randomise(model, seed=scale)
    names = dict(zip(("features", "mapping", "subpixel"), LAYOUTS[layout], strict=True))
    state = {f"{names[k.split('.')[0]]}.{k.split('.')[1]}": v for k, v in model.state_dict().items()}
    return state, model


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("colours", "scale", "width"), [(1, 2, 64), (1, 3, 16), (3, 4, 64), (3, 8, 32), (1, 4, 64)])
def test_published_files_are_recognised_alone(
    layout: str, colours: int, scale: int, width: int, tmp_path: Path
) -> None:
    state, model = published(layout, colours, scale, width)
    wrapped = {"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3, "best_psnr": 36.6}
    torch.save(wrapped, tmp_path / "ESPCN.pth.tar")
    found = load(tmp_path / "ESPCN.pth.tar")
    assert isinstance(found, ESPCN)
    assert (found.scale, found.in_channels, found.features.out_channels) == (scale, colours, width)
    x = picture(1, colours, 7, 6)
    assert torch.equal(found(x), model(x))


def test_weights_of_another_scale_say_which(tmp_path: Path) -> None:
    torch.save(published("lornatang", 1, 2, 64)[0], tmp_path / "x2.pth")
    with pytest.raises(CheckpointError, match="x2, you asked for x3"):
        create("espcn", weights=tmp_path / "x2.pth", scale=3)
    save(create("espcn", weights=None, scale=4), tmp_path / "x4.safetensors")
    with pytest.raises(CheckpointError, match="x4, you asked for x3"):
        create("espcn", weights=tmp_path / "x4.safetensors", scale=3)


def test_weights_for_rgb_are_no_weights_for_luma(tmp_path: Path) -> None:
    torch.save(published("yjn870", 3, 3, 64)[0], tmp_path / "rgb.pth")
    with pytest.raises(CheckpointError, match="holds espcn_rgb, not espcn"):
        create("espcn", weights=tmp_path / "rgb.pth", scale=3)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sub_pixel.0.weight": (25, 32, 3, 3), "sub_pixel.0.bias": (25,)}, "ends in 25 channels for 1 colour"),
        ({"sub_pixel.0.weight": (7, 32, 3, 3), "sub_pixel.0.bias": (7,)}, "ends in 7 channels"),
        ({"feature_maps.0.weight": (64, 2, 5, 5)}, "takes 2 channels"),
        ({"feature_maps.2.weight": (30, 64, 3, 3)}, "widths 64 and 30"),
        ({"feature_maps.2.bias": (7,)}, r"mapping\.bias has shape \(7,\)"),
        ({"feature_maps.4.weight": (3,)}, r"not expected feature_maps\.4\.weight"),
        ({"feature_maps.0.weight": (64, 1, 3, 3)}, "no architecture known"),
    ],
)
def test_a_file_that_is_nearly_espcn_names_what_differs(
    change: dict[str, tuple[int, ...]], says: str, tmp_path: Path
) -> None:
    state = published("lornatang", 1, 3, 64)[0] | {k: torch.zeros(shape) for k, shape in change.items()}
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=says):
        load(tmp_path / "odd.pth")


# -- engines


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of an ESPCN that enlarges in earnest: nearest neighbour, and a little of everything on top."""
    model = create("espcn_small", weights=None, scale=3, equal_start=True)
    randomise(model)
    with torch.no_grad():
        model.subpixel.weight.mul_(0.1)  # type: ignore[union-attr,operator]
        model.subpixel.bias.fill_(0.5)  # type: ignore[union-attr,operator]
    path = tmp_path_factory.mktemp("weights") / "espcn.safetensors"
    save(model, path)
    return path


@pytest.mark.parametrize("shape", [(23, 31, 3), (9, 7, 1), (1, 1, 3)])
def test_every_engine_gives_the_same_picture(
    shape: tuple[int, ...], weights: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript")
    monkeypatch.setenv("SACCADE_CACHE", str(tmp_path))
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    made = {}
    for backend in available_backends():
        worker = Upscaler(weights, backend=backend, threads=1)
        assert (worker.backend, worker.choice.halo, worker.choice.macs) == (backend, ESPCN.halo, 2_200.0)
        made[backend] = worker.array(pixels)[0].astype(int)
    assert "torch" in made
    for backend, result in made.items():
        assert result.shape == (3 * shape[0], 3 * shape[1], shape[2])
        assert int(abs(result - made["torch"]).max()) <= 1, backend


def test_a_network_on_rgb_enlarges_pictures_too(tmp_path: Path) -> None:
    model = create("espcn_rgb", weights=None, scale=2, width=8)
    save(model, tmp_path / "rgb.safetensors")
    pixels = np.random.default_rng(0).integers(0, 256, (9, 8, 3), dtype=np.uint8)
    made, _ = Upscaler(tmp_path / "rgb.safetensors", backend="torch").array(pixels)
    with torch.no_grad():
        want = model(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255)[0].permute(1, 2, 0).mul(255).round()
    assert int((torch.from_numpy(made) - want).abs().max()) <= 1


@pytest.mark.parametrize("name", ["espcn_small", "espcn_rgb"])
def test_it_exports_and_compiles_with_free_sizes(name: str) -> None:
    model = create(name, weights=None, scale=2)
    randomise(model)
    c = model.in_channels
    free = {2: torch.export.Dim("h", min=1, max=4096), 3: torch.export.Dim("w", min=1, max=4096)}
    exported = torch.export.export(model, (picture(1, c, 12, 9),), dynamic_shapes=(free,)).module()
    for size in ((5, 7), (1, 3), (20, 6)):
        x = picture(1, c, *size)
        torch.testing.assert_close(exported(x), model(x), rtol=1e-5, atol=1e-6)


# -- bad input


@pytest.mark.parametrize("scale", [0, 1, 5, 2.5, 16])
def test_other_scales_are_refused_with_those_that_exist(scale: float) -> None:
    with pytest.raises(UsageError, match="2, 3, 4 or 8"):
        ESPCN(scale)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="it enlarges by x2, x3, x4, x8"):
        create("espcn", weights=None, scale=scale)


@pytest.mark.parametrize("options", [{"in_channels": 0}, {"out_channels": 0}, {"widths": (1, 0)}])
def test_a_network_without_channels_is_refused(options: dict) -> None:
    with pytest.raises(UsageError, match="a channel at every step"):
        ESPCN(2, **options)


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (torch.full((1, 1, 8, 8), 255.0), "divide by 255"),
        (torch.full((1, 1, 8, 8), -1.0), r"in \[-1, -1\]"),
        (torch.zeros(1, 3, 8, 8), "3 channels; give its luma"),
        (torch.zeros(1, 1, 0, 4), "empty"),
        (torch.zeros(1, 1, 4, 4, dtype=torch.int32), "int32"),
    ],
)
def test_what_is_no_luma_picture_is_refused(x: Tensor, says: str) -> None:
    with pytest.raises(InputError, match=says):
        create("espcn", weights=None)(x)


def test_a_resampled_picture_may_overshoot() -> None:
    create("espcn", weights=None)(torch.linspace(-0.1, 1.1, 64).view(1, 1, 8, 8))


def test_the_small_variant_has_the_size_that_its_docstring_says() -> None:
    assert count_parameters(create("espcn_small", weights=None, scale=2)) == 1_868
