"""The opponent: its losses are the plain formulae, and each side's gradient stays on its side."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.training.adversarial import Opponent

lightning = pytest.importorskip("lightning_fabric")


@pytest.fixture(scope="module")
def fabric() -> Any:
    return lightning.Fabric(accelerator="cpu", devices=1)


def opponent(fabric: Any, **options: Any) -> Opponent:
    return Opponent(fabric, **{"width": 4, "rate": 0.05, **options})


def pictures(count: int, seed: int) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


class Distance(nn.Module):
    def forward(self, made: Tensor, wanted: Tensor) -> Tensor:
        return 3 * (made - wanted).abs().mean()


def test_losses_are_the_plain_formulae(fabric: Any) -> None:
    one, twin = opponent(fabric, perceptual=Distance()), opponent(fabric)
    made, wanted, real = pictures(2, 0).requires_grad_(), pictures(2, 1), pictures(2, 2)
    told = one.losses(made, wanted, real)
    logits = twin.discriminator(made)
    torch.testing.assert_close(told["adversarial"], 0.05 * F.softplus(-logits).mean())
    torch.testing.assert_close(told["perceptual"], 3 * (made - wanted).abs().mean())
    learnt = one.learn()
    expected = F.softplus(-twin.discriminator(real)).mean(), F.softplus(twin.discriminator(made.detach())).mean()
    assert learnt["judged_real"] == pytest.approx(float(expected[0].detach()), rel=1e-5)
    assert learnt["judged_made"] == pytest.approx(float(expected[1].detach()), rel=1e-5)


def test_each_gradient_stays_on_its_side(fabric: Any) -> None:
    judge, made = opponent(fabric), pictures(1, 0).requires_grad_()
    sum(judge.losses(made, made, pictures(1, 1)).values()).backward()
    assert made.grad is not None
    before = made.grad.clone()
    assert float(before.abs().sum()) > 0
    assert all(p.grad is None for p in judge.discriminator.parameters())
    judge.learn()
    assert torch.equal(made.grad, before)
    assert all(p.requires_grad for p in judge.discriminator.parameters())


def test_it_learns_to_tell_dark_from_bright(fabric: Any) -> None:
    judge, course = opponent(fabric), []
    for step in range(30):
        judge.losses(0.3 * pictures(2, step), pictures(2, step), 0.7 + 0.3 * pictures(2, 100 + step))
        course.append(sum(judge.learn().values()))
    assert course[-1] < 0.5 * course[0]


def test_it_goes_on_from_its_state_and_the_seed_decides_where_it_begins(fabric: Any) -> None:
    first = opponent(fabric, seed=1)
    for step in range(2):
        first.losses(pictures(1, step), pictures(1, step), pictures(1, 9))
        first.learn()
    again = opponent(fabric, seed=2, kept=first.state())
    for judge in (first, again):
        judge.losses(pictures(1, 5), pictures(1, 5), pictures(1, 9))
    assert first.learn() == again.learn()
    same, other = opponent(fabric, seed=1).state(), opponent(fabric, seed=2).state()
    assert torch.equal(
        same["discriminator"]["first.weight"], opponent(fabric, seed=1).state()["discriminator"]["first.weight"]
    )
    assert not torch.equal(same["discriminator"]["first.weight"], other["discriminator"]["first.weight"])
