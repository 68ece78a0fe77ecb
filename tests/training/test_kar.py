"""Kar: one step by hand, the order of its averages, resuming, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from saccade.errors import UsageError
from saccade.training.kar import Kar


def test_averages_are_used_before_they_are_brought_up_to_date() -> None:
    p = nn.Parameter(torch.tensor([1.0, 1.0]))
    optimiser = Kar([p], lr=0.1, betas=(0.5, 0.9))
    p.grad = torch.tensor([2.0, -3.0])
    optimiser.step()
    torch.testing.assert_close(p.detach(), torch.tensor([0.9, 1.1]))  # the averages are still zero, whose sign is 0
    p.grad = torch.tensor([-1.0, -1.0])  # the slow average of the first entry is still positive, and so is the fast one
    optimiser.step()
    torch.testing.assert_close(p.detach(), torch.tensor([0.9 + 0.1 - 0.2, 1.1 + 0.3]))
    for average, want in zip(optimiser.state[p]["averages"], ([0.0, -1.25], [0.08, -0.37]), strict=True):
        torch.testing.assert_close(average, torch.tensor(want))


def test_it_goes_on_from_its_state() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimiser = Kar(model.parameters(), lr=0.01)

    def step(net: nn.Module, by: torch.optim.Optimizer, seed: int) -> None:
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))
        by.zero_grad()
        net(x).square().sum().backward()
        by.step()

    step(model, optimiser, 0)
    twin = copy.deepcopy(model)
    other = Kar(twin.parameters(), lr=0.01)
    other.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    for seed in (1, 2):
        step(model, optimiser, seed)
        step(twin, other, seed)
    assert torch.equal(model.weight, twin.weight)


@pytest.mark.parametrize("options", [{"lr": 0.0}, {"betas": ()}, {"betas": (1.0,)}, {"betas": (-0.1,)}])
def test_impossible_settings_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="Kar takes"):
        Kar([nn.Parameter(torch.zeros(1))], **options)
