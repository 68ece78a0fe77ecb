"""From a trained supernet to a network that is used: statistics of its own, then weights of its own."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import torch
from torch import Tensor, nn

from saccade.backbones.elasticvit.architecture import Architecture
from saccade.backbones.elasticvit.catalogue import PUBLISHED, PUBLISHED_ARCHITECTURES, SPACES
from saccade.backbones.elasticvit.counting import map_sides
from saccade.backbones.elasticvit.layers import (
    Attention,
    ElasticBatchNorm,
    ElasticConv,
    ElasticLinear,
    JointNorm,
)
from saccade.backbones.elasticvit.network import ElasticViT, SubNetwork
from saccade.checkpoint import fit
from saccade.errors import InputError, UsageError
from saccade.registry import create

__all__ = ["extract", "recalibrate"]


def recalibrate(model: nn.Module, batches: Iterable[Tensor | tuple[Tensor, ...]]) -> None:
    """Estimate the running statistics of all batch norms anew, for the architecture that runs.

    They are reset, then averaged over the batches with equal weights (momentum None), as published: 64 batches of
    training pictures, augmented as in training. Modes and momenta stay as they were.

    Args:
        model: a supernet, or a network that came out of one.
        batches: pictures (B, 3, H, W), or tuples that begin with them.

    Raises:
        InputError: there are no batches: statistics cannot be had from nothing.
        UsageError: the model has no batch norms; it is fused.
    """
    if not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        raise UsageError(f"{type(model).__name__} has no batch norms to recalibrate: it is fused")
    rest = iter(batches)
    first = next(rest, None)
    if first is None:
        raise InputError("recalibration needs batches of training pictures; none came")
    modes = [(m, m.training) for m in model.modules()]
    try:
        torch.optim.swa_utils.update_bn(chain([first], rest), model, device=next(model.parameters()).device)
    finally:
        for module, mode in modes:
            module.training = mode


def extract(model: ElasticViT) -> SubNetwork:
    """The architecture that runs, as a network of its own with copies of its weights and statistics.

    It runs, exports, saves and loads like any other model here, gives the same numbers, and is what is to be deployed:
    slicing has a price at each call.

    Raises:
        UsageError: the supernet has lost parts (it was made for maps alone, or fused).
    """
    options = {
        "architecture": model.architecture.to_dict(),
        "space": next((name for name, space in SPACES.items() if space == model.space), None) or model.space.to_dict(),
        "num_classes": model.num_classes,
        "in_chans": model.in_chans,
        "drop_rate": model.drop_rate,
        "resize": model.resize,
    }
    name = _published(model.architecture) if model.space == PUBLISHED else None
    if name is not None:
        options = {key: value for key, value in options.items() if key not in ("architecture", "space")}
    made = create(name or "elasticvit_subnet", weights=None, **options)
    assert isinstance(made, SubNetwork)
    made.reset_classifier(model.num_classes, model.global_pool)
    first = next(model.parameters())
    made.to(first.device, first.dtype)
    state, wanted = active_state(model), made.state_dict()
    missing = [key for key in wanted if key not in state]
    if missing:
        raise UsageError(f"this supernet has lost {missing[0]}; extract from one that has all its parts")
    fit(made, {key: value for key, value in state.items() if key in wanted}, "the supernet")
    return made.train(model.training)


def _published(found: Architecture) -> str | None:
    return next((f"elasticvit_{n}" for n, a in PUBLISHED_ARCHITECTURES.items() if a == found), None)


@torch.no_grad()
def active_state(model: ElasticViT) -> dict[str, Tensor]:
    """Tensors that the architecture reads, by the names that they have in `SubNetwork` (and some that it has not)."""
    state: dict[str, Tensor] = {}
    attentions: dict[str, Attention] = {}
    for name, module in model.named_modules():
        if isinstance(module, ElasticConv | ElasticBatchNorm | ElasticLinear | JointNorm):
            state.update({f"{name}.{key}": value for key, value in module.extracted().state_dict().items()})
        elif isinstance(module, Attention):
            attentions[name] = module
    sides = map_sides(model.architecture, model.space)[1:]
    for name, attention in attentions.items():
        state[f"{name}.bias_table"] = attention.active_table(sides[int(name.split(".")[1])])
    head = model.get_classifier().state_dict()
    return {**state, **{f"{model.classifier}.{key}": value for key, value in head.items()}}
