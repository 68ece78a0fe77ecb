"""LARS: steps are the paper's, layer by layer; norms and biases take plain momentum."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from saccade.training.lars import lars

RATE, DECAY, MOMENTUM, TRUST = 2.0, 1e-2, 0.9, 1e-2


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 5))
        for p in made.parameters():
            nn.init.normal_(p)
    return made


def by_the_paper(start: torch.Tensor, gradients: list[torch.Tensor]) -> torch.Tensor:
    """One layer after each of its gradients: equation 6, the rate after the momentum."""
    w, moved = start.clone(), torch.zeros_like(start)
    for g in gradients:
        if w.ndim > 1:
            trust = TRUST * w.norm() / (g.norm() + DECAY * w.norm())
            g = trust * (g + DECAY * w)
        moved = MOMENTUM * moved + g
        w = w - RATE * moved
    return w


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_steps_are_the_papers(scale: float) -> None:
    made = network()
    before = {name: p.detach().clone() for name, p in made.named_parameters()}
    optimiser = lars(made.parameters(), RATE, DECAY, MOMENTUM, TRUST)
    generator = torch.Generator().manual_seed(1)
    gradients = {
        name: [scale * torch.randn(p.shape, generator=generator) for _ in range(3)] for name, p in before.items()
    }
    for step in range(3):
        for name, p in made.named_parameters():
            p.grad = gradients[name][step].clone()
        optimiser.step()
    for name, p in made.named_parameters():
        torch.testing.assert_close(p.detach(), by_the_paper(before[name], gradients[name]), msg=name)


def test_the_first_step_of_a_layer_does_not_depend_on_the_size_of_its_gradient() -> None:
    moved = []
    for scale in (1.0, 1e4):
        made = nn.Linear(6, 6, bias=False)
        nn.init.eye_(made.weight)
        optimiser = lars(made.parameters(), 1.0, weight_decay=0.0)
        made.weight.grad = scale * torch.arange(36.0).view(6, 6)
        optimiser.step()
        moved.append(made.weight.detach() - torch.eye(6))
    torch.testing.assert_close(moved[0], moved[1])
    assert float(moved[0].norm()) == pytest.approx(1e-3 * 6**0.5, rel=1e-4), "a thousandth of the weights' norm"
