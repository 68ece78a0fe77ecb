"""Mixture of experts: copies by index are products with masks, capacity and order hold, gates learn what they can."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from saccade.cost import cost
from saccade.errors import InputError, UsageError
from saccade.nn.moe import (
    NaiveGate,
    NoisyGate,
    NoisyGateV2,
    balance_loss,
    combine,
    cv_squared,
    dispatch,
    one_hot_combine,
    one_hot_dispatch,
    probability_in_top,
    route,
    run_experts,
)


def scores(tokens: int, experts: int, seed: int = 0) -> Tensor:
    return torch.randn(tokens, experts, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(1)


@given(
    tokens=st.integers(1, 30),
    experts=st.integers(2, 6),
    k=st.integers(1, 2),
    factor=st.sampled_from([0.0, 0.5, 1.0, 1.25, -0.5, -2.0]),
    prioritised=st.booleans(),
    alignment=st.integers(1, 4),
)
@settings(deadline=None, max_examples=80)
def test_copies_by_index_are_products_with_masks_gradients_too(
    tokens: int, experts: int, k: int, factor: float, prioritised: bool, alignment: int
) -> None:
    found = []
    for send, fetch in ((dispatch, combine), (one_hot_dispatch, one_hot_combine)):
        given = scores(tokens, experts, tokens).requires_grad_()
        x = torch.randn(tokens, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
        r = route(given, k, capacity_factor=factor, normalise=True, prioritised=prioritised, alignment=alignment)
        assert r.capacity % alignment == 0
        buffer = send(x, r)
        assert buffer.shape == (experts, r.capacity, 3)
        y = fetch(buffer.square(), r)
        found.append([buffer.detach(), y.detach(), *torch.autograd.grad(y.sum() + y.square().sum(), (x, given))])
        taken = r.place[r.kept]
        assert len(taken.unique()) == len(taken), "no two tokens share a place"
        if factor == 0:
            assert bool(r.kept.all()), "as many places as are needed"
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_first_choices_come_before_second_ones_and_important_tokens_first_where_asked() -> None:
    given = torch.tensor([[0.6, 0.4], [0.3, 0.7], [0.9, 0.1]])
    both = route(given, 2, capacity_factor=0.5)
    assert both.capacity == 2
    assert both.kept.tolist() == [[True, True], [True, False], [True, False]]
    one = route(given, 1, capacity_factor=0.5)
    assert one.kept[:, 0].tolist() == [True, True, False]
    urgent = route(given, 1, capacity_factor=0.5, prioritised=True)
    assert urgent.kept[:, 0].tolist() == [False, True, True]


def test_each_token_sees_its_expert_alone_and_an_empty_expert_gets_a_gradient_of_nothing() -> None:
    experts = [nn.Linear(4, 2) for _ in range(3)]
    x, chosen = torch.randn(7, 4), torch.tensor([0, 2, 0, 2, 2, 0, 0])
    y = run_experts(x, experts, chosen, torch.full((7,), 0.5))
    torch.testing.assert_close(y, torch.stack([0.5 * experts[c](t) for t, c in zip(x, chosen, strict=True)]))
    y.sum().backward()
    assert experts[1].weight.grad is not None
    assert float(experts[1].weight.grad.abs().sum()) == 0


def test_by_shapes_alone_tokens_are_shared_equally_and_cost_the_same() -> None:
    experts = [nn.Linear(6, 4, bias=False) for _ in range(3)]
    chosen = torch.tensor([0, 0, 0, 0, 2])
    real = cost(lambda x: run_experts(x, experts, chosen), torch.zeros(5, 6), timed=False)
    absent = [nn.Linear(6, 4, bias=False, device="meta") for _ in range(3)]
    shapes = cost(lambda x: run_experts(x, absent, chosen.to("meta")), torch.empty(5, 6, device="meta"))
    assert shapes.macs == real.macs == 5 * 6 * 4


def test_in_a_graph_it_is_the_same() -> None:
    experts = [nn.Linear(4, 2) for _ in range(3)]
    x, chosen = torch.randn(9, 4), torch.randint(0, 3, (9,))
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, c: run_experts(x, experts, c), backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, chosen), run_experts(x, experts, chosen))


def test_chances_to_be_chosen_are_those_of_drawn_noise() -> None:
    chance = torch.Generator().manual_seed(0)
    clean, std = torch.randn(1, 2, generator=chance), torch.tensor([[0.5, 0.8]])
    noisy = clean + std * torch.randn(1, 2, generator=chance)
    found = probability_in_top(clean, noisy, std)
    for i in range(2):
        drawn = clean[0, i] + std[0, i] * torch.randn(200_000, generator=chance)
        assert float(found[0, i]) == pytest.approx(float((drawn > noisy[0, 1 - i]).float().mean()), abs=5e-3)


def test_what_teaches_each_gate() -> None:
    x = torch.randn(64, 8) + 1
    experts = [nn.Linear(8, 8), nn.Linear(8, 8)]
    for gate, by_task, by_balance in (
        (NaiveGate(8), False, False),
        (NoisyGate(8), False, True),
        (NoisyGateV2(8), True, True),
    ):
        gate.train()
        logits, values = gate(x)
        chosen = logits.argmax(1)
        y = run_experts(x, experts, chosen, values.gather(1, chosen[:, None])[:, 0])
        found = torch.autograd.grad(y.sum(), list(gate.parameters()), allow_unused=True, retain_graph=True)
        assert any(g is not None and float(g.abs().sum()) > 0 for g in found) == by_task
        if by_balance:
            found = torch.autograd.grad(balance_loss(gate), list(gate.parameters()), allow_unused=True)
            assert all(g is not None for g in found[:1])
        else:
            with pytest.raises(UsageError, match="no gate has a balance loss"):
                balance_loss(gate)


def test_at_rest_gates_draw_no_noise_unless_the_official_code_is_asked_for() -> None:
    x = torch.randn(5, 8)
    for gate in (NoisyGate(8).eval(), NoisyGateV2(8).eval()):
        assert torch.equal(gate(x)[0], gate(x)[0])
        assert gate.loss is None
    official = NoisyGate(8, compat="official").eval()
    assert not torch.equal(official(x)[0], official(x)[0])


def test_a_gate_is_copied_between_two_batches() -> None:
    gate = NoisyGateV2(8).train()
    gate(torch.randn(5, 8))
    other = copy.deepcopy(gate)
    assert gate.loss is not None
    assert other.loss is None
    assert torch.equal(other.w_gate, gate.w_gate)


def test_the_loss_is_least_where_tokens_are_split_inversely_to_latency() -> None:
    gate = NoisyGateV2(4, 2, (6, 4))
    at = [float(gate.weighted(*[torch.tensor([1 - s, s])] * 2)) for s in (0.4, 0.5, 0.6, 0.7)]
    assert min(at) == at[2]
    assert at[2] < 1e-9
    assert float(cv_squared(torch.tensor([3.0]))) == 0


def test_what_cannot_be_routed_is_refused() -> None:
    with pytest.raises(UsageError, match="1 to 3"):
        route(scores(4, 3), 4)
    with pytest.raises(InputError, match="not all finite"):
        route(torch.tensor([[0.5, float("nan")]]))
    with pytest.raises(InputError, match=r"scores are float \(N, E\)"):
        route(torch.zeros(3))
    for latencies in ((6.0,), (6.0, 0.0), (1.0, 2.0, 3.0)):
        with pytest.raises(UsageError, match="positive latency"):
            NaiveGate(4, 2, latencies)
    gate = NoisyGateV2(4).train()
    gate(torch.full((3, 4), float("nan")))
    with pytest.raises(InputError, match="not finite"):
        balance_loss(gate)
