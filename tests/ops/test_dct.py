"""The cosine transform: every form equals the definition and scipy, gradients too, in corners and whole."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.errors import InputError, UsageError
from saccade.ops.dct import dct2, idct2

FAST = ("matrix", "fourier", "auto")


def drawn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("form", FAST)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 2), (7, 12), (8, 8), (14, 14), (33, 6), (70, 3)])
@pytest.mark.parametrize("share", [1.0, 0.4])
def test_forms_equal_the_definition_with_their_gradients(
    form: str, dtype: torch.dtype, size: tuple[int, int], share: float
) -> None:
    kept = math.ceil(share * size[0]), math.ceil(share * size[1])
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    found = []
    for one in ("naive", form):
        x, c = drawn(2, 3, *size, dtype=dtype).requires_grad_(), drawn(2, *kept, dtype=dtype, seed=1).requires_grad_()
        y, z = dct2(x, kept, form=one), idct2(c, size, form=one)
        assert (y.shape[-2:], z.shape[-2:]) == (kept, size)
        gradients = torch.autograd.grad((y * drawn(*y.shape, dtype=dtype, seed=2)).sum(), x)
        gradients += torch.autograd.grad((z * drawn(*z.shape, dtype=dtype, seed=3)).sum(), c)
        found.append((y, z, *gradients))
    for naive, fast in zip(*found, strict=True):
        torch.testing.assert_close(fast, naive, rtol=tolerance, atol=tolerance)


@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40), form=st.sampled_from(["naive", *FAST]))
def test_the_inverse_is_the_transpose_and_energy_is_kept(height: int, width: int, form: str) -> None:
    x = drawn(2, height, width, dtype=torch.float64)
    y = dct2(x, form=form)
    torch.testing.assert_close(idct2(y, form=form), x)
    torch.testing.assert_close(y.square().sum(), x.square().sum())


@pytest.mark.parametrize("form", FAST)
def test_it_is_scipys(form: str) -> None:
    fft = pytest.importorskip("scipy.fft")
    for size in ((5, 8), (112, 9)):
        x = drawn(2, *size)
        want = torch.from_numpy(fft.dctn(x.numpy(), type=2, norm="ortho", axes=(1, 2)))
        torch.testing.assert_close(dct2(x, form=form), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["naive", *FAST])
def test_channels_last_is_the_same_transform(form: str) -> None:
    x = drawn(2, 6, 9, 5)
    want = dct2(x.permute(0, 3, 1, 2), (4, 3), form=form)
    found = dct2(x, (4, 3), form=form, channels_last=True)
    torch.testing.assert_close(found.permute(0, 3, 1, 2), want, rtol=1e-5, atol=1e-5)
    back = idct2(found, (6, 9), form=form, channels_last=True)
    torch.testing.assert_close(back.permute(0, 3, 1, 2), idct2(want, (6, 9), form=form), rtol=1e-5, atol=1e-5)


def test_forms_agree_at_112() -> None:
    x = drawn(4, 112, 112)
    torch.testing.assert_close(dct2(x, form="matrix"), dct2(x, form="fourier"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FAST)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_goes_through_every_form(form: str, dtype: torch.dtype) -> None:
    x = drawn(2, 7, 12)
    y = dct2(x.to(dtype), form=form)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), dct2(x), rtol=3e-2, atol=6e-2)


def test_bases_made_in_inference_serve_training() -> None:
    with torch.inference_mode():
        dct2(drawn(19, 23))
        dct2(drawn(71, 3))
    for size in ((19, 23), (71, 3)):
        x = drawn(*size).requires_grad_()
        dct2(x).sum().backward()
        assert x.grad is not None


def test_a_compiled_transform_is_the_same() -> None:
    x = drawn(2, 9, 70)
    torch.testing.assert_close(
        torch.compile(dct2, backend="aot_eager", fullgraph=True)(x), dct2(x), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    "wrong",
    [torch.zeros(3), torch.zeros(2, 0, 3), torch.zeros(3, 3, dtype=torch.int32), torch.zeros(3, 3, dtype=torch.cfloat)],
)
def test_what_has_no_transform_is_refused(wrong: torch.Tensor) -> None:
    for transform in (dct2, idct2):
        with pytest.raises(InputError, match="real floats"):
            transform(wrong)


def test_corners_that_do_not_fit_are_refused() -> None:
    x = torch.zeros(4, 5)
    for kept in ((5, 5), (0, 3)):
        with pytest.raises(UsageError, match="cannot be kept"):
            dct2(x, kept)
    with pytest.raises(UsageError, match="too many"):
        idct2(x, (3, 9))
    with pytest.raises(UsageError, match="matrix, fourier, naive"):
        dct2(x, form="fft")
