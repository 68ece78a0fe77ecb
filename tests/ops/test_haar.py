"""The Haar transform: sums of strided views are the convolutions, the inverse is one, gradients are the inverse."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saccade.errors import InputError, UsageError
from saccade.ops.haar import dwt, idwt, naive, pyramid, reconstruct, strided

SHAPES = [(2, 2), (4, 6), (1, 1, 2, 8), (2, 3, 6, 4), (1, 5, 16, 10), (3, 2, 4, 2, 2)]


def random(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def near(fast: Tensor, true: Tensor) -> None:
    close = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 3e-2}[fast.dtype]
    torch.testing.assert_close(fast, true, rtol=close, atol=2 * close)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("way", ["grad", "no_grad", "compiled"])
def test_values_and_gradients_are_those_of_the_convolutions(
    shape: tuple[int, ...], dtype: torch.dtype, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "compiled":
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    found = []
    for path in (strided, naive):
        x = random(shape, dtype).requires_grad_(way != "no_grad")
        low, high = path.analysis(x)
        bands = [
            random(tuple(t.shape), dtype, i + 1).requires_grad_(way != "no_grad") for i, t in enumerate((low, high))
        ]
        made = path.synthesis(*bands)
        row = [low, high, made]
        if way != "no_grad":
            row += torch.autograd.grad((low, high), x, [b.detach() for b in bands])
            row += torch.autograd.grad(made, bands, random(tuple(made.shape), dtype, 5))
        found.append([t.detach() for t in row])
    for fast, true in zip(*found, strict=True):
        assert fast.shape == true.shape
        near(fast, true)


def test_gradients_of_gradients() -> None:
    x = random((1, 2, 4, 6), torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(dwt, (x,))
    assert torch.autograd.gradgradcheck(dwt, (x,))
    bands = (
        random((1, 2, 2, 3), torch.float64).requires_grad_(),
        random((1, 2, 3, 2, 3), torch.float64).requires_grad_(),
    )
    assert torch.autograd.gradcheck(idwt, bands)
    assert torch.autograd.gradgradcheck(idwt, bands)


def test_the_bands_of_a_block_of_four_pixels() -> None:
    low, high = dwt(torch.tensor([[1.0, 2.0], [4.0, 8.0]]))
    assert low.tolist() == [[7.5]]
    assert high.flatten().tolist() == [-4.5, -2.5, 1.5]


@given(st.integers(1, 33), st.integers(1, 33), st.integers(1, 4))
@settings(deadline=None, max_examples=60)
def test_what_was_taken_apart_comes_together(height: int, width: int, levels: int) -> None:
    x = random((2, 3, height, width), torch.float32, height * 40 + width)
    bands = pyramid(x, levels)
    assert [tuple(b[0].shape[-2:]) for b in bands] == [
        tuple(-(-n // 2**j) for n in (height, width)) for j in range(1, levels + 1)
    ]
    back = reconstruct(bands[-1][0], [high for _, high in bands], (height, width))
    torch.testing.assert_close(back, x, rtol=0, atol=1e-6 * max(1.0, float(x.abs().max())))
    energy = bands[-1][0].square().sum() + sum(high.square().sum() for _, high in bands)
    torch.testing.assert_close(energy, x.square().sum(), rtol=1e-5, atol=1e-5)


def test_one_pass_gives_what_repeated_transforms_give() -> None:
    x = random((1, 3, 32, 48), torch.float32)
    for levels in range(1, 5):
        low = x
        for _ in range(levels):
            low, high = naive.analysis(low)
        for found, want in zip(pyramid(x, 4)[levels - 1], (low, high), strict=True):
            torch.testing.assert_close(found, want, rtol=0, atol=1e-6 * float(want.abs().max()))


def test_the_layout_of_memory_does_not_matter() -> None:
    x = random((2, 3, 8, 12), torch.float32)
    turned = x.contiguous(memory_format=torch.channels_last)
    for a, b in zip(dwt(turned), dwt(x), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    torch.testing.assert_close(dwt(x.mT.contiguous().mT)[1], dwt(x)[1], rtol=0, atol=0)


def test_pywavelets_finds_the_same() -> None:
    pywt = pytest.importorskip("pywt")
    x = random((3, 13, 22), torch.float64)
    low, *details = pywt.wavedec2(x.numpy(), "db1", mode="zero", level=3)
    bands = pyramid(x, 3)
    torch.testing.assert_close(bands[-1][0], torch.from_numpy(low))
    for (_, high), (horizontal, vertical, diagonal) in zip(bands, reversed(details), strict=True):
        want = torch.from_numpy(pywt_stack(horizontal, vertical, diagonal))
        torch.testing.assert_close(high, want)


def pywt_stack(*details: object) -> object:
    import numpy as np

    return np.stack(details, -3)


@pytest.mark.parametrize("x", [torch.zeros(4), torch.zeros(2, 2, dtype=torch.int64), torch.zeros(1, 0, 4)])
def test_what_is_no_plane_is_refused(x: Tensor) -> None:
    with pytest.raises(InputError, match=r"float planes"):
        dwt(x)


def test_bands_that_do_not_go_together_are_refused() -> None:
    low, high = torch.zeros(1, 2, 3), torch.zeros(1, 3, 2, 3)
    with pytest.raises(InputError, match="bands are"):
        idwt(low, high[:, :2])
    with pytest.raises(InputError, match="bands are"):
        idwt(low, high.double())
    with pytest.raises(InputError, match="floating-point"):
        idwt(low.long(), high.long())
    with pytest.raises(InputError, match=r"do not come from planes of \(5, 6\)"):
        idwt(low, high, (5, 6))
    with pytest.raises(UsageError, match="at least one level"):
        pyramid(torch.zeros(2, 2), 0)
