from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from saccade.errors import InputError, UsageError
from saccade.ops.ssim import blockwise, gaussian, similarity

CONSTANTS = {"c1": 1e-4, "c2": 9e-4, "level": 0.5}


pytestmark = pytest.mark.usefixtures("one_thread")


def planes(*shape: int, dtype: torch.dtype = torch.float32, noise: float = 0.2) -> tuple[Tensor, Tensor]:
    chance = torch.Generator().manual_seed(sum(shape))
    a = torch.rand(shape, generator=chance, dtype=dtype)
    return a, a + noise * torch.randn(shape, generator=chance, dtype=dtype)


def both(a: Tensor, b: Tensor, window: tuple[float, ...], luminance: bool, fast: bool) -> list[Tensor]:
    """Score and gradients, every plane's score with a weight of its own."""
    a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
    score = similarity(a, b, window, luminance=luminance, fast=fast, **CONSTANTS)
    share = torch.linspace(-1, 2, score.numel(), dtype=a.dtype).view(score.shape)
    return [score.detach(), *torch.autograd.grad((score * share).sum(), (a, b))]


SHAPES = [(1, 11, 11), (2, 13, 40), (3, 43, 12), (1, 75, 150), (130, 23, 22), (2, 3, 64, 67), (30, 34)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_blocks_are_the_truth_forward_and_backward(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    a, b = planes(*shape, dtype=dtype)
    tolerance = 2e-5 if dtype == torch.float32 else 1e-12
    for size, luminance in itertools.product((3, 11), (True, False)):
        window = gaussian(size, 1.5)
        for fast, true in zip(both(a, b, window, luminance, True), both(a, b, window, luminance, False), strict=True):
            assert fast.shape == true.shape
            torch.testing.assert_close(fast, true, rtol=0, atol=tolerance * float(true.abs().max().clamp_min(1e-3)))


@pytest.mark.parametrize("shape", [(1, 701, 400), (5, 300, 310)], ids=str)
def test_several_threads_give_what_one_gives_and_leave_their_number_as_it_was(shape: tuple[int, ...]) -> None:
    a, b = planes(*shape)
    one = both(a, b, gaussian(11, 1.5), True, True)
    torch.set_num_threads(3)
    many = both(a, b, gaussian(11, 1.5), True, True)
    assert torch.get_num_threads() == 3
    for found, wanted in zip(many, one, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


def test_only_the_gradient_that_is_wanted_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    run = blockwise._run
    monkeypatch.setattr(blockwise, "_run", lambda *given: asked.append(given[3]) or run(*given))
    a, b = planes(1, 20, 20)
    similarity(a, b, gaussian(5, 1.5), **CONSTANTS)
    similarity(a, b.requires_grad_(), gaussian(5, 1.5), **CONSTANTS).sum().backward()
    with torch.no_grad():
        similarity(a, b, gaussian(5, 1.5), **CONSTANTS)
    assert asked == [(False, False), (False, True), (False, False)]


def test_gradients_hold_in_double_precision() -> None:
    a, b = (x.requires_grad_() for x in planes(2, 14, 9, dtype=torch.float64))
    for luminance in (True, False):
        assert torch.autograd.gradcheck(
            lambda p, q, lit=luminance: similarity(p, q, gaussian(7, 1.5), luminance=lit, **CONSTANTS), (a, b)
        )


def test_low_precision_of_matrix_products_does_not_enter() -> None:
    a, b = planes(2, 100, 90, noise=0.01)
    true = similarity(a.double(), b.double(), gaussian(11, 1.5), **CONSTANTS)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        found = similarity(a, b, gaussian(11, 1.5), **CONSTANTS)
    finally:
        torch.set_float32_matmul_precision(before)
    torch.testing.assert_close(found.double(), true, rtol=0, atol=1e-6)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_automatic_mixed_precision_does_not_enter(half: torch.dtype, fast: bool) -> None:
    a, b = planes(2, 40, 44, noise=0.01)
    with torch.autocast("cpu", half):
        found = both(a, b, gaussian(11, 1.5), True, fast)
    for x, y in zip(found, both(a, b, gaussian(11, 1.5), True, fast), strict=True):
        assert torch.equal(x, y)


def test_views_and_strides_do_not_matter() -> None:
    a, b = planes(2, 3, 40, 44)
    wanted = similarity(a, b, gaussian(11, 1.5), **CONSTANTS)
    last = similarity(
        a.contiguous(memory_format=torch.channels_last), b.mT.contiguous().mT, gaussian(11, 1.5), **CONSTANTS
    )
    torch.testing.assert_close(last, wanted, rtol=0, atol=1e-6)


def test_numbers_that_are_none_stay_visible() -> None:
    a, b = planes(2, 20, 20)
    b[0, 3, 3] = float("nan")
    score = similarity(a, b.requires_grad_(), gaussian(5, 1.5), **CONSTANTS)
    assert score.isnan().tolist() == [True, False]


@pytest.mark.parametrize(
    ("a", "b", "window", "error", "says"),
    [
        (torch.zeros(1, 9, 9), torch.zeros(1, 9, 8), (1.0,), InputError, "differ"),
        (torch.zeros(1, 9, 9).half(), torch.zeros(1, 9, 9).half(), (1.0,), InputError, "float16"),
        (torch.zeros(9), torch.zeros(9), (1.0,), InputError, "planes"),
        (torch.zeros(1, 9, 9), torch.zeros(1, 9, 9), (0.5, 0.5), UsageError, "odd number of taps, not 2"),
        (torch.zeros(1, 9, 10), torch.zeros(1, 9, 10), gaussian(11, 1.5), InputError, "does not fit into 10x9"),
        (torch.zeros(0, 9, 9), torch.zeros(0, 9, 9), (1.0,), InputError, "does not fit"),
    ],
)
def test_what_has_no_similarity_is_refused(a, b, window, error: type[Exception], says: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=says):
        similarity(a, b, window, **CONSTANTS)


def test_a_window_is_normalised_symmetric_and_odd() -> None:
    taps = gaussian(11, 1.5)
    assert sum(taps) == pytest.approx(1, abs=1e-15)
    assert taps == taps[::-1]
    for size, sigma in ((4, 1.5), (0, 1.5), (11, 0.0), (11, float("nan"))):
        with pytest.raises(UsageError):
            gaussian(size, sigma)
