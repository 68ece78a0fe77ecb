"""The order of values: the packed sort is the stable sort, and moving by an order is undone by its gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saccade.ops.stable_order import packed_order, put, stable_order, stable_order_naive, take


def drawn(shape: tuple[int, ...], kind: str, seed: int) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    if kind == "ties":
        return (2 * x).round() / 2 * torch.tensor([1.0, -0.0])[torch.arange(shape[-1]) % 2]
    if kind == "extremes":
        return x * torch.tensor([1e-44, 1e38, 0.0, float("inf")])[torch.arange(shape[-1]) % 4].nan_to_num(posinf=3e38)
    return x


@given(
    rows=st.integers(1, 5),
    length=st.integers(1, 70),
    kind=st.sampled_from(["plain", "ties", "extremes"]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 99),
)
@settings(max_examples=80, deadline=None)
def test_the_order_is_that_of_the_stable_sort(rows: int, length: int, kind: str, dtype: torch.dtype, seed: int) -> None:
    x = drawn((2, rows, length), kind, seed).to(dtype)
    assert stable_order(x).equal(stable_order_naive(x))


def test_rows_longer_than_a_block_and_more_threads_than_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    x = drawn((3, 2**17 + 5), "ties", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    order, values = packed_order(x.numpy(), values=True)
    wanted = x.sort(dim=-1, stable=True)
    assert order.dtype == np.int32
    assert torch.from_numpy(order).long().equal(wanted.indices)
    assert torch.from_numpy(values).equal(wanted.values)


def test_an_empty_matrix_has_an_empty_order() -> None:
    assert packed_order(np.empty((0, 4), np.float32)).shape == (0, 4)
    order, values = packed_order(np.empty((2, 0), np.float32), values=True)
    assert order.shape == values.shape == (2, 0)


def test_a_transposed_view_is_ordered_along_its_own_last_axis() -> None:
    x = drawn((4, 6), "plain", 1).T
    assert stable_order(x).equal(stable_order_naive(x))


@pytest.mark.parametrize("move", [take, put])
def test_moving_has_exact_first_and_second_gradients(move: object) -> None:
    x = drawn((2, 3, 7), "plain", 2).double().requires_grad_()
    order = stable_order(x)
    assert torch.autograd.gradcheck(lambda x: move(x, order), x)  # type: ignore[operator]
    assert torch.autograd.gradgradcheck(lambda x: move(x, order), x)  # type: ignore[operator]


def test_put_undoes_take() -> None:
    x = drawn((2, 3, 9), "ties", 3)
    order = stable_order(x)
    assert put(take(x, order), order).equal(x)
    assert take(put(x, order), order).equal(x)
