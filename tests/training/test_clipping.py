"""Clipping: what adaptive clipping leaves of each unit's gradient, and whose gradients it spares."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import saccade
from saccade.backbones.elasticvit import training as supernet
from saccade.training import classification
from saccade.training.clipping import clip

BOUND = 0.1


@pytest.fixture
def fabric() -> Any:
    return pytest.importorskip("lightning_fabric").Fabric(accelerator="cpu", devices=1)


def network(gain: float) -> nn.Sequential:
    """Two convolutions and a norm whose gain starts at zero; gradients of every scale."""
    chance = torch.Generator().manual_seed(0)
    made = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1, bias=False))
    nn.init.zeros_(made.get_parameter("1.weight"))
    for p in made.parameters():
        p.grad = (
            gain * torch.randn(p.shape, generator=chance) * torch.logspace(-4, 1, len(p)).view(-1, *[1] * (p.ndim - 1))
        )
    return made


def held(weight: Tensor, gradient: Tensor) -> Tensor:
    """Equation 3, unit by unit."""
    if weight.ndim < 2:
        most = BOUND * max(float(weight.norm()), 1e-3)
        return gradient * min(1.0, most / float(gradient.norm()))
    return torch.stack(
        [
            g * min(1.0, BOUND * max(float(w.norm()), 1e-3) / float(g.norm()))
            for w, g in zip(weight, gradient, strict=True)
        ]
    )


def test_each_unit_is_held_to_a_share_of_its_weights(fabric: Any) -> None:
    model = network(1.0)
    expected = [held(p.detach(), p.grad) for p in model.parameters() if p.grad is not None]
    before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    given, optimiser = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=1.0))
    clip("agc", BOUND, fabric, given, optimiser, model.parameters())
    for p, was, wanted in zip(model.parameters(), before, expected, strict=True):
        torch.testing.assert_close(p.grad, wanted)
        assert p.ndim < 2 or not torch.equal(was, wanted)
    rows = [(was - wanted).flatten(1).any(1) for was, wanted in zip(before, expected, strict=True) if was.ndim > 1]
    assert all(row.any() and not row.all() for row in rows)  # small ones are left alone


def test_the_norm_of_all_is_held_by_default(fabric: Any) -> None:
    model = network(1.0)
    given, optimiser = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=1.0))
    before = [copy.deepcopy(p.grad) for p in model.parameters()]
    clip("norm", BOUND, fabric, given, optimiser)
    after = [p.grad for p in model.parameters()]
    assert float(torch.cat([g.flatten() for g in after if g is not None]).norm()) == pytest.approx(BOUND, rel=1e-4)
    ratio = [float((a / b).flatten()[0]) for a, b in zip(after, before, strict=True) if a is not None and b is not None]
    assert ratio == pytest.approx([ratio[0]] * len(ratio))


def test_a_classifiers_last_layer_is_spared_a_supernets_is_not() -> None:
    told = {"data": "", "out": ""}
    shvit = saccade.create("shvit_s1", weights=None)
    names = {id(p): name for name, p in shvit.named_parameters()}
    clipped = {names[id(p)] for p in classification.Options(model="shvit_s1", **told).clipped(shvit)}
    assert set(names.values()) - clipped == {
        f"head.{name}" for name, _ in shvit.get_submodule("head").named_parameters()
    }
    elastic = saccade.create("elasticvit", weights=None, space="elasticvit-small")
    options = supernet.Options(model="elasticvit", **told)
    assert (options.clip, options.clip_mode) == (0.1, "agc")  # as published
    assert len(options.clipped(elastic)) == len([*elastic.parameters()])
