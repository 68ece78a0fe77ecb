from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import saccade
from saccade import registry
from saccade.errors import CheckpointError, UsageError
from saccade.restoration.cleaner import Cleaner
from saccade.restoration.metalens_former import lens_psfs
from saccade.restoration.metalens_former.deblur import deblur
from saccade.restoration.restore import Restorer, restore


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cleaner with drawn weights: the shipped one does little to random pixels."""
    model: Any = saccade.create("cleaner_small", weights=None)
    chance = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=chance) * 0.08)
    path = tmp_path_factory.mktemp("weights") / "drawn.safetensors"
    saccade.save(model, path)
    return path


def pixels(height: int, width: int, channels: int = 3, dtype: Any = np.uint8) -> np.ndarray:
    top = np.iinfo(dtype).max + 1
    return np.random.default_rng(0).integers(0, top, (height, width, channels)).astype(dtype)


@pytest.mark.parametrize("name", ["cleaner", "cleaner_small"])
def test_what_is_registered_of_a_cleaner_is_what_it_is(name: str) -> None:
    model: Any = saccade.create(name, weights=None)
    facts = registry.entry(name).facts
    assert (model.halo, model.multiple) == (facts["halo"], facts["grid"])
    assert saccade.cost(model, torch.zeros(1, 3, 64, 64)).macs == facts["macs"] * 64 * 64


def test_an_output_pixel_sees_no_further_than_the_halo() -> None:
    model, side = Cleaner((4, 4, 4)), 176
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    for place in (88, 91, 95):
        x = torch.rand(1, 3, side, side, requires_grad=True)
        model(x)[0, :, place, place].sum().backward()
        assert x.grad is not None
        seen = (x.grad.abs().sum((0, 1)) > 0).nonzero() - place
        assert int(seen.abs().max()) <= model.halo


@given(st.integers(1, 20), st.integers(1, 20))
@settings(max_examples=20, deadline=None)
def test_a_cleaner_takes_any_size(height: int, width: int) -> None:
    assert Cleaner((4, 4, 4)).eval()(torch.rand(1, 3, height, width)).shape == (1, 3, height, width)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
def test_openvino_and_torch_agree(weights: Path, dtype: Any, channels: int) -> None:
    given = pixels(53, 70, channels, dtype)
    made = [Restorer(model=weights, backend=b, max_memory=4 << 30).array(given)[0] for b in ("openvino", "torch")]
    assert made[0].shape == given.shape
    assert made[0].dtype == dtype
    assert int(np.abs(made[0].astype(np.int64) - made[1]).max()) <= (1 if dtype == np.uint8 else 24)
    assert not np.array_equal(made[0], given)


@pytest.mark.parametrize("backend", ["openvino", "torch"])
def test_tiles_equal_the_whole_picture(weights: Path, backend: str) -> None:
    given = pixels(211, 247)
    whole = Restorer(model=weights, backend=backend, max_memory=4 << 30)
    tiled = Restorer(model=weights, backend=backend, max_memory=4 << 30)
    tiled.engine().tile = (40, 56)
    assert int(np.abs(whole.array(given)[0].astype(int) - tiled.array(given)[0]).max()) <= 1


def test_alpha_is_kept_and_every_kind_of_picture_comes_back_as_it_came(weights: Path, tmp_path: Path) -> None:
    rgba = pixels(20, 30, 4)
    made = restore(rgba, model=weights)
    assert made.shape == rgba.shape
    np.testing.assert_array_equal(made[..., 3], rgba[..., 3])
    assert restore(Image.fromarray(rgba), model=weights).mode == "RGBA"
    tensor = torch.rand(2, 3, 9, 8)
    assert restore(tensor, model=weights).shape == tensor.shape
    Image.fromarray(rgba).save(tmp_path / "a.png")
    report = restore(tmp_path / "a.png", model=weights, output=tmp_path / "b.png")
    assert (report.size, report.made, report.scale) == ((30, 20), (30, 20), 1)
    assert report.macs == 7584 * 600
    with Image.open(tmp_path / "b.png") as opened:
        np.testing.assert_array_equal(np.array(opened)[..., 3], rgba[..., 3])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"task": "paint"}, "no task named"),
        ({"backend": "onnxruntime"}, "no backend named"),
        ({"threads": -1}, "threads"),
        ({"perception": 2.0}, "perception lies between"),
        ({"model": "sesr_m5"}, "is for super-resolution"),
        ({"model": "serpent_base"}, "no weights ship for serpent_base"),
        ({"task": "deblur"}, "--psf"),
        ({"task": "weather", "psf": np.ones((3, 3))}, "point spread function goes with"),
        ({"task": "deblur", "psf": np.ones((3, 3)), "noise_level": 0.0}, "positive"),
        ({"task": "deblur", "psf": np.ones((3, 3)), "noise_level": 0.1, "model": "acformer"}, "filter alone"),
        ({"noise_level": 0.1}, "known blur"),
        ({"linear": True}, "known blur"),
        ({"model": "cleaner", "budget": 0.5}, "cleaner has no dial"),
        ({"budget": 1.5}, "budget"),
        ({"task": "weather", "budget": 0.5}, "several ship"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Restorer(**options)


def test_files_of_other_networks_are_refused(tmp_path: Path) -> None:
    saccade.save(saccade.create("sesr_m3", weights=None, scale=2), tmp_path / "sesr.safetensors")
    with pytest.raises(CheckpointError, match="restores no pictures"):
        Restorer(model=tmp_path / "sesr.safetensors")
    with pytest.raises(CheckpointError, match="no file of weights"):
        Restorer(model=tmp_path / "nothing.safetensors")


def test_the_budget_chooses_among_what_ships() -> None:
    cheap, full = Restorer(budget=0.3), Restorer(budget=1.0)
    assert (cheap.choice.name, full.choice.name) == ("cleaner_small", "cleaner")
    assert Restorer().choice.name == "cleaner_small"
    assert Restorer("weather", budget=1.0).choice.name == "histoformer_tiny"


def test_a_known_blur_is_taken_off_and_the_picture_stays_in_place() -> None:
    chance = np.random.default_rng(0)
    coarse = chance.integers(0, 256, (12, 12, 3), dtype=np.uint8)
    sharp = np.asarray(Image.fromarray(coarse).resize((96, 96), Image.Resampling.BICUBIC))
    place = np.arange(9) - 4
    psf = np.exp(-(place[:, None] ** 2 + place[None, :] ** 2) / 4.5)
    spectrum = np.zeros((96, 96))
    spectrum[:9, :9] = psf / psf.sum()
    spectrum = np.fft.fft2(np.roll(spectrum, (-4, -4), (0, 1)))
    linear = (sharp / 255.0) ** 2.2
    blurred = np.stack([np.fft.ifft2(np.fft.fft2(linear[..., i]) * spectrum).real for i in range(3)], 2)
    given = np.rint(255 * blurred.clip(0, 1) ** (1 / 2.2)).astype(np.uint8)
    made = restore(given, "deblur", psf=psf)
    inner = (slice(12, -12), slice(12, -12))
    before, after = (float(np.square(x[inner].astype(float) - sharp[inner]).mean()) for x in (given, made))
    assert after < before / 2
    grey = restore(given[..., :1], "deblur", psf=psf)
    assert grey.shape == (96, 96, 1)


def test_the_noise_level_and_linear_light_reach_the_filter() -> None:
    given, psf = pixels(40, 44), lens_psfs(2, 7).unflatten(0, (2, 2)).numpy()
    for options in ({"noise_level": 0.2}, {"noise_level": 0.2, "linear": True}):
        wanted = deblur(given, psf, noise_levels=0.2, linear="linear" in options)
        np.testing.assert_array_equal(restore(given, "deblur", psf=psf, **options), wanted)
    assert not np.array_equal(restore(given, "deblur", psf=psf, noise_level=0.2), restore(given, "deblur", psf=psf))


def test_a_global_network_on_tiles_says_so(tmp_path: Path) -> None:
    model = saccade.create("histoformer_tiny", weights=None)
    saccade.save(model, tmp_path / "h.safetensors")
    Image.fromarray(pixels(300, 300)).save(tmp_path / "a.png")
    worker = Restorer(model=tmp_path / "h.safetensors", max_memory=4 << 30)
    whole = worker.picture(tmp_path / "a.png", tmp_path / "b.png")
    assert (whole.tiles, whole.notices) == (1, [])
    worker.engine().tile = (160, 160)
    tiled = worker.picture(tmp_path / "a.png", tmp_path / "c.png")
    assert tiled.tiles > 1
    assert "approximation" in tiled.notices[0]


def test_every_file_of_weights_is_its_own_network(weights: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    saccade.save(saccade.create("cleaner", weights=None), other)
    worker = Restorer(model=weights, backend="torch")
    first, second = worker._loaded(weights), worker._loaded(other)
    assert (first.saccade_name, second.saccade_name) == ("cleaner_small", "cleaner")
    assert worker._loaded(weights) is first
