"""The step of a supernet: whose gradients add up, what the least network learns from, what teachers change."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import UsageError
from saccade.training.distillation import adaptive_alpha_divergence
from saccade.training.supernet import Draw, gradients


class Slices(nn.Module):
    """A linear layer of which the first ``architecture`` inputs are used."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 6, generator=torch.Generator().manual_seed(0)))
        self.architecture: int = 6

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x[:, : self.architecture], self.weight[:, : self.architecture])


def batch() -> tuple[Tensor, Tensor]:
    chance = torch.Generator().manual_seed(1)
    return torch.randn(4, 6, generator=chance), torch.tensor([0, 1, 2, 1])


@pytest.mark.parametrize("taught", [False, True])
def test_gradients_are_the_sum_over_all_networks_of_the_step(taught: bool) -> None:
    model, (x, labels) = Slices(), batch()
    teacher = torch.randn(4, 3, generator=torch.Generator().manual_seed(2)).softmax(1) if taught else None
    told = gradients(model, Draw((6, 4, 5), least=2), x, labels, teacher=teacher)

    weight = model.weight.detach().clone().requires_grad_()
    logits = [F.linear(x[:, :n], weight[:, :n]) for n in (6, 4, 5, 2)]
    wanted = labels if teacher is None else teacher
    losses = [F.cross_entropy(one, wanted) for one in logits[:3]]
    mean = torch.stack([one.detach().softmax(1) for one in logits[:3]]).mean(0)
    losses.append(adaptive_alpha_divergence(logits[3], mean))
    (expected,) = torch.autograd.grad(sum(losses[1:], losses[0]), weight)
    assert model.weight.grad is not None
    torch.testing.assert_close(model.weight.grad, expected)
    assert [*told.drawn, told.least] == pytest.approx([float(loss.detach()) for loss in losses])


def test_without_a_least_network_nothing_is_distilled() -> None:
    model, (x, labels) = Slices(), batch()
    told = gradients(model, Draw((3,)), x, labels)
    assert math.isnan(told.least)
    assert len(told.drawn) == 1
    assert model.weight.grad is not None
    assert not model.weight.grad[:, 3:].any()


def test_a_step_without_networks_is_refused() -> None:
    model, (x, labels) = Slices(), batch()
    with pytest.raises(UsageError, match="none was drawn"):
        gradients(model, Draw((), least=2), x, labels)


def test_the_callers_own_backward_is_used_for_each_loss() -> None:
    model, (x, labels) = Slices(), batch()
    seen = list[float]()
    gradients(model, Draw((6, 4), least=2), x, labels, backward=lambda loss: seen.append(float(loss.detach())))
    assert len(seen) == 3
    assert model.weight.grad is None
