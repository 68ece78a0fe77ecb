"""Shift layers: gradients are the definition's, packed weights are the floats, integers come out to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saccade.cost import cost
from saccade.errors import InputError, UsageError
from saccade.ops.shift_add import (
    decomposed,
    fixed_point,
    integer_linear,
    lowest_shift,
    naive,
    pack,
    packed_linear,
    power_of_two,
    shift_linear,
    traffic,
    unpack,
)

SHAPES = [((3,), 4, 5), ((2, 3), 8, 7), ((1,), 1, 1), ((2, 2, 3), 17, 9), ((0,), 6, 3)]


def weights(rows: int, columns: int, bits: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    chance = torch.Generator().manual_seed(seed)
    shift = torch.randint(lowest_shift(bits), 1, (rows, columns), generator=chance)
    return shift.float(), torch.randint(-1, 2, (rows, columns), generator=chance).float()


@pytest.mark.parametrize(("lead", "columns", "rows"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("biased", [True, False])
def test_values_and_gradients_are_those_of_the_definition(
    lead: tuple[int, ...], columns: int, rows: int, dtype: torch.dtype, biased: bool
) -> None:
    chance = torch.Generator().manual_seed(1)
    x, shift, sign = (
        torch.randn(shape, generator=chance).to(dtype) * size
        for shape, size in (((*lead, columns), 1), ((rows, columns), 9), ((rows, columns), 1))
    )
    bias = torch.randn(rows, generator=chance).to(dtype) if biased else None
    dy = torch.randn((*lead, rows), generator=chance).to(dtype)
    found = []
    paths: tuple[Callable[..., Tensor], ...] = (shift_linear, naive.shift_linear)
    for path in paths:
        given = [t.clone().requires_grad_() for t in (x, shift, sign, bias) if t is not None]
        told = given if biased else [*given, None]
        y = path(*told, bits=5)
        found.append([y.detach(), *torch.autograd.grad(y, given, dy)])
    close = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]
    for fast, true in zip(*found, strict=True):
        torch.testing.assert_close(
            fast, true, rtol=close, atol=close * max(1, float(true.abs().max() if true.numel() else 0))
        )


def test_the_sign_gets_the_gradient_that_the_chain_rule_would_scale() -> None:
    shift, sign = torch.tensor([[-3.2]], requires_grad=True), torch.tensor([[-0.9]], requires_grad=True)
    shift_linear(torch.tensor([[2.0]]), shift, sign).sum().backward()
    assert sign.grad is not None
    assert shift.grad is not None
    assert float(sign.grad) == 2.0
    assert float(shift.grad) == pytest.approx(2.0 * -(2**-3) * 0.6931472)


def test_sums_of_two_powers_and_their_gradients() -> None:
    """Straight through clamping and rounding; a sign gets what its product gets, not times the size (unsymmetric)."""
    given = {
        "shift_1": [-0.4, -5.0],
        "shift_2": [-1.2, -1.0],
        "sign_1": [0.9, 0.7],
        "sign_2": [1.4, 0.2],
        "sign": [-0.8, 0.6],
    }
    told = {name: torch.tensor([values], requires_grad=True) for name, values in given.items()}
    weight = naive.additive_weight_of(
        (told["shift_1"], told["shift_2"]), (told["sign_1"], told["sign_2"]), told["sign"]
    )
    assert weight[0].tolist() == pytest.approx([-(1 + 1 / 8) * 2 / 3, 1 / 16 * 2 / 3])
    weight.sum().backward()
    two_thirds, log4 = 2 / 3, 2 * 0.6931472
    wanted = {
        "sign": [1.0, 1.0],
        "sign_1": [-two_thirds, two_thirds],
        "sign_2": [-two_thirds, two_thirds],
        "shift_1": [-two_thirds * 1 * log4, two_thirds / 16 * log4],
        "shift_2": [-two_thirds / 8 * log4, 0.0],
    }
    for name, values in wanted.items():
        grad = told[name].grad
        assert grad is not None
        assert grad[0].tolist() == pytest.approx(values, rel=1e-5), name


def test_fixed_point_rounds_down_and_clips_and_lets_gradients_pass() -> None:
    x = torch.tensor([0.3, -0.3, 1e9, -1e9, 2**-17]).requires_grad_()
    y = fixed_point(x)
    assert y.tolist() == [0.29998779296875, -0.3000030517578125, 32767.0, -32768.0, 0.0]
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == [1.0] * 5


def test_powers_of_two_lose_a_fifth_of_gaussian_weights() -> None:
    weight = 0.02 * torch.randn(500_000, generator=torch.Generator().manual_seed(0))
    rounded = power_of_two(weight)
    assert float((rounded - weight).norm() / weight.norm()) == pytest.approx(0.206, abs=2e-3)
    assert float((rounded * weight).sum() / weight.square().sum()) == pytest.approx(1.02, abs=2e-3)


def test_zero_weights_have_no_sign_and_no_finite_shift() -> None:
    shift, sign = decomposed(torch.tensor([0.0, 0.75, -0.7]))
    assert shift.tolist() == [float("-inf"), 0.0, -1.0]
    assert sign.tolist() == [0.0, 1.0, -1.0]


@given(st.integers(1, 19), st.integers(1, 40), st.integers(2, 8), st.integers(0, 9))
@settings(deadline=None, max_examples=40)
def test_packed_weights_are_the_floats(rows: int, columns: int, bits: int, seed: int) -> None:
    shift, sign = weights(rows, columns, bits, seed)
    packed = pack(shift, sign, bits)
    assert torch.equal(unpack(packed), sign * torch.exp2(shift))
    if bits == 5 and columns % 8 == 0:
        assert packed.nbytes * 8 == 5 * rows * columns


@pytest.mark.parametrize("block", [1, 64, 1 << 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blocks_multiply_as_the_whole_does(block: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    from saccade.ops.shift_add import packed as module

    monkeypatch.setattr(module, "BLOCK", block)
    shift, sign = weights(13, 21, 5)
    packed, whole = pack(shift, sign), (sign * torch.exp2(shift)).to(dtype)
    x = torch.randn(2, 3, 21, generator=torch.Generator().manual_seed(2)).to(dtype).requires_grad_()
    bias = torch.randn(13, generator=torch.Generator().manual_seed(3)).to(dtype)
    y, want = packed_linear(x, packed, bias), F.linear(x, whole, bias)
    torch.testing.assert_close(y, want)
    dy = torch.randn(2, 3, 13, generator=torch.Generator().manual_seed(4)).to(dtype)
    torch.testing.assert_close(*(torch.autograd.grad(o, x, dy)[0] for o in (y, want)))


def test_the_float_matrix_is_never_whole_in_memory() -> None:
    packed = pack(*weights(1024, 512, 5))
    x = torch.randn(4, 512)
    blocked = cost(lambda x: packed_linear(x, packed), x, timed=False).peak_bytes
    whole = cost(lambda x: F.linear(x, unpack(packed)), x, timed=False).peak_bytes
    assert 4 * blocked < whole


def test_integers_are_shifted_and_added_to_the_last_bit() -> None:
    for bits in (2, 5, 6):
        shift, sign = weights(9, 33, bits)
        x = torch.randint(-(2**31), 2**31 - 1, (2, 4, 33), generator=torch.Generator().manual_seed(1)).int()
        want = naive.integer_linear(x.flatten(0, 1), shift.long(), sign.long())
        assert torch.equal(integer_linear(x, pack(shift, sign, bits)).flatten(0, 1), want)


def test_integers_say_what_floats_say_but_for_what_shifts_drop() -> None:
    shift, sign = weights(9, 32, 5)
    x = fixed_point(torch.randn(4, 32, generator=torch.Generator().manual_seed(1)))
    made = integer_linear((x * 2**16).int(), pack(shift, sign)) / 2**16
    torch.testing.assert_close(made.float(), packed_linear(x, pack(shift, sign)), rtol=0, atol=32 * 2**-16)


def test_bytes_and_operations_are_those_of_the_sizes() -> None:
    moved = traffic(49, 512, 2048)
    assert (moved.dense_bytes, moved.packed_bytes) == (4 * 2**20, 5 * 2**20 // 8)
    assert moved.dense_bytes / moved.packed_bytes == 6.4
    assert moved.dequantised_bytes == moved.packed_bytes + 8 * 2**20
    assert moved.shifts == moved.additions == moved.multiplications == 49 * 2**20
    assert moved.saved > 7


def test_what_describes_no_shift_weights_is_refused() -> None:
    shift, sign = weights(3, 4, 5)
    wrong_bits: tuple[Any, ...] = (1, 9, True, 5.0)
    for bits in wrong_bits:
        with pytest.raises(UsageError, match="2 to 8 bits"):
            shift_linear(torch.zeros(1, 4), shift, sign, bits=bits)
    with pytest.raises(InputError, match="shift layer takes"):
        shift_linear(torch.zeros(1, 5), shift, sign)
    for wrong in (
        (shift - 20, torch.ones(3, 4)),
        (shift + 0.5, torch.ones(3, 4)),
        (shift, sign + 0.5),
        (shift, sign[:2]),
    ):
        with pytest.raises(InputError):
            pack(*wrong)
    with pytest.raises(InputError, match=r"float \(..., 4\)"):
        packed_linear(torch.zeros(1, 5), pack(shift, sign))
    with pytest.raises(InputError, match="int32"):
        integer_linear(torch.zeros(1, 4), pack(shift, sign))
    with pytest.raises(InputError, match="up to 6 bits"):
        integer_linear(torch.zeros(1, 4).int(), pack(*weights(3, 4, 8), 8))
