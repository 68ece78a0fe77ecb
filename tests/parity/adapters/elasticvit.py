"""ElasticViT against the official code: several architectures from one supernet, costs, the joint norm, the losses."""

from __future__ import annotations

import json
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.backbones.elasticvit import Space, StageSpace, cost_macs, extract, from_code, largest, to_code
from saccade.backbones.elasticvit.layers import JointNorm
from saccade.backbones.elasticvit.network import ElasticViT
from saccade.backbones.elasticvit.published import from_official
from saccade.checkpoint import fit
from saccade.nn.fuse import fuse
from saccade.registry import create
from saccade.training.distillation import adaptive_alpha_divergence, alpha_divergence


def near(found: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(found, want, rtol=5e-5, atol=1e-5)


def space_of(told: dict[str, Any]) -> Space:
    """The search space of a published configuration."""
    convs = told["stage"].count("C")
    stages = []
    for i, kind in enumerate(told["stage"]):
        conv = kind == "C"
        step = 8 if conv else told["head_dims"]
        ratios = told["conv_ratio"] if conv else told["mlp_ratio"]
        extras = [3, 5] if conv else told["v_scale"][i - convs]
        stages.append(
            StageSpace(
                "conv" if conv else "attention",
                tuple(range(told["min_depth"][i], told["max_depth"][i] + 1)),
                tuple(range(told["min_channels"][i], told["max_channels"][i] + 1, step)),
                tuple(sorted(ratios)),
                tuple(sorted(extras)),
                stride=2 if told["downsampling"][i] else 1,
                se=conv and told["se"][i],
            )
        )
    return Space(
        resolutions=tuple(sorted(told["res"])),
        stages=tuple(stages),
        head_dim=told["head_dims"],
        head_ratio=told["classifier_mul"],
        head_width=max(told["classifer_head_dim"]),
    )


@torch.no_grad()
def networks(vectors: dict[str, Tensor], metadata: dict[str, str], told: dict[str, Any]) -> None:
    space, classes = space_of(told), told["num_classes"]
    recipe = from_official({k.removeprefix("state."): v for k, v in vectors.items() if k.startswith("state.")})
    assert recipe is not None
    guessed = create(recipe.model, weights=None, **recipe.options)
    assert isinstance(guessed, ElasticViT)
    assert largest(guessed.space) == largest(space)
    model = create(recipe.model, weights=None, **{**recipe.options, "space": space})
    fit(model, recipe.state, "golden")
    assert isinstance(model, ElasticViT)
    assert model.num_classes == classes
    costs = json.loads(metadata["mflops"])
    for name, code in json.loads(metadata["archs"]).items():
        found = from_code(code, space)
        assert to_code(found, space.head_dim) == code
        assert abs(float(cost_macs(found, space, classes)[0]) - costs[name]) < 1e-6
        model.architecture = code
        x, want = vectors["input.x"], vectors[f"output.{name}.logits"]
        near(model(x), want)
        alone = extract(model)
        near(alone(x), want)
        near(fuse(alone)(x), want)
        intermediates(model, x, name, vectors)
    given = JointNorm(len(vectors["ln.state.weight"]))
    fit(given, {k: vectors[f"ln.state.{k}"] for k in ("weight", "bias")}, "golden")
    near(given(vectors["ln.input.x"]), vectors["ln.output.y"])


def intermediates(model: ElasticViT, x: Tensor, name: str, vectors: dict[str, Tensor]) -> None:
    found = {"conv_stem": model.stem(model._resized(x))}
    found |= {f"feature_exactor.{i}": y for i, y in enumerate(model.maps(x))}
    for place, y in found.items():
        want = vectors.get(f"mid.{name}.{place}")
        if want is not None:
            near(y if want.dim() == 4 else y.flatten(2).mT, want)


def losses(vectors: dict[str, Tensor]) -> None:
    logits = vectors["loss.input.student_logits"].clone().requires_grad_()
    teacher = vectors["loss.input.teacher_probs"]
    loss = adaptive_alpha_divergence(logits, teacher)
    near(loss, vectors["loss.output.adaptive"].squeeze())
    near(torch.autograd.grad(loss, logits)[0], vectors["loss.output.adaptive_grad"])
    for alpha in (-1, 1):
        divergence, surrogate = alpha_divergence(logits, teacher, alpha)
        near(divergence, vectors[f"loss.output.f_div_alpha{alpha:+d}"])
        near(surrogate, vectors[f"loss.output.grad_loss_alpha{alpha:+d}"])
    near(F.cross_entropy(logits, teacher), vectors["loss.output.soft_ce"].squeeze())


def check(vectors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    networks(vectors, metadata, json.loads(metadata["config"]))
    losses(vectors)
