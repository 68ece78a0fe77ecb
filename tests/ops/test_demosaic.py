"""Mosaics: samples are where the sensor's colours are, demosaicking equals its slow truth, gradient too."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.errors import InputError, UsageError
from saccade.ops.demosaic import PATTERNS, check_pattern, demosaic, mosaic, naive, pack, unpack


def picture(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_mosaic_keeps_the_colour_that_the_letters_name(pattern: str) -> None:
    rgb = picture(2, 3, 6, 8)
    packed = mosaic(rgb, pattern)
    for y in range(6):
        for x in range(8):
            colour = "rgb".index(pattern[2 * (y % 2) + x % 2])
            assert torch.equal(packed[:, 2 * (y % 2) + x % 2, y // 2, x // 2], rgb[:, colour, y, x])


def test_packing_and_unpacking_undo_each_other() -> None:
    plane = picture(2, 6, 8)
    assert torch.equal(unpack(pack(plane)), plane)
    assert torch.equal(pack(plane)[:, 1], plane[:, 0::2, 1::2])


@given(
    pattern=st.sampled_from(PATTERNS),
    method=st.sampled_from(["bilinear", "malvar"]),
    batch=st.integers(1, 2),
    height=st.integers(1, 4),
    width=st.integers(1, 4),
)
@settings(max_examples=30, deadline=None)
def test_one_convolution_over_cells_equals_pixel_by_pixel(
    pattern: str, method: str, batch: int, height: int, width: int
) -> None:
    packed = picture(batch, 4, height, width)
    made = demosaic(packed, pattern, method)  # type: ignore[arg-type]
    assert made.shape == (batch, 3, 2 * height, 2 * width)
    torch.testing.assert_close(made, naive.demosaic(packed, check_pattern(pattern), method), rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", ["bilinear", "malvar"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_equal_those_of_the_truth(method: str, dtype: torch.dtype) -> None:
    packed = picture(1, 4, 3, 2, dtype=dtype).requires_grad_()
    weight = picture(1, 3, 6, 4, seed=1, dtype=dtype)
    grads = [
        torch.autograd.grad((made * weight).sum(), packed)[0]
        for made in (demosaic(packed, "grbg", method), naive.demosaic(packed, check_pattern("grbg"), method))  # type: ignore[arg-type]
    ]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("method", ["bilinear", "malvar"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_samples_stay_and_constant_colours_are_exact(pattern: str, method: str) -> None:
    packed = picture(1, 4, 5, 6)
    torch.testing.assert_close(mosaic(demosaic(packed, pattern, method), pattern), packed)  # type: ignore[arg-type]
    flat = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)[None, :, None, None].expand(1, 3, 8, 10)
    if method == "bilinear":
        torch.testing.assert_close(demosaic(mosaic(flat, pattern), pattern, "bilinear"), flat)
    grey = torch.full((1, 3, 8, 10), 0.4, dtype=torch.float64)
    torch.testing.assert_close(demosaic(mosaic(grey, pattern), pattern, method), grey)  # type: ignore[arg-type]


def test_malvar_is_nearer_than_bilinear_on_a_smooth_picture_with_edges() -> None:
    y, x = torch.meshgrid(torch.linspace(0, 3, 64), torch.linspace(0, 3, 64), indexing="ij")
    grey = (0.5 + 0.4 * torch.sin(4 * x + 3 * y))[None, None]
    rgb = grey * torch.tensor([1.0, 0.8, 0.6])[None, :, None, None]
    errors = [(demosaic(mosaic(rgb), "rggb", m) - rgb).square().mean() for m in ("malvar", "bilinear")]  # type: ignore[arg-type]
    assert errors[0] < 0.7 * errors[1]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: mosaic(picture(1, 3, 5, 6)), InputError, "even sides"),
        (lambda: mosaic(picture(1, 3, 6, 5)), InputError, "even sides"),
        (lambda: mosaic(picture(1, 4, 6, 6)), InputError, "made of RGB"),
        (lambda: mosaic(picture(1, 3, 6, 6), "rgbg"), UsageError, "no Bayer pattern 'rgbg'"),
        (lambda: pack(picture(5, 6)), InputError, "even sides"),
        (lambda: demosaic(picture(1, 3, 6, 6)), InputError, "mosaic an RGB picture first"),
        (lambda: demosaic(picture(1, 1, 6, 6)), InputError, "pack a plane first"),
        (lambda: demosaic(torch.zeros(1, 4, 2, 2, dtype=torch.int32)), InputError, "black level"),
        (lambda: demosaic(picture(4, 6, 6)), InputError, "packed RAW"),
        (lambda: demosaic(picture(1, 4, 2, 2), "xtrans"), UsageError, "no Bayer pattern"),
        (lambda: demosaic(picture(1, 4, 2, 2), method="vng"), UsageError, "bilinear and malvar"),  # type: ignore[arg-type]
    ],
)
def test_bad_input_is_refused(call: object, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()  # type: ignore[operator]


def test_what_inference_mode_left_behind_serves_training() -> None:
    with torch.inference_mode():
        demosaic(picture(1, 4, 2, 2), "bggr")
    packed = picture(1, 4, 2, 2).requires_grad_()
    demosaic(packed, "bggr").sum().backward()
    assert packed.grad is not None
