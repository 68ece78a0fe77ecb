"""Deep optimal transport against the official code: operators, distances, statistics and pictures."""

from __future__ import annotations

import json
import re

import torch
from torch import Tensor

from saccade.restoration.dot import DeepOptimalTransport
from saccade.restoration.dot.gaussian import transport_operators, w2
from saccade.restoration.dot.patches import patchify

OPERATORS, PICTURES = 1e-3, 2e-4  # relative to the largest; absolute


def near(found: Tensor, wanted: Tensor, tolerance: float = OPERATORS) -> None:
    wanted = wanted.double()
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=tolerance * float(wanted.abs().max()))


def check(vectors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    config = json.loads(metadata["config"])
    given = {k.removeprefix("input."): v.double() for k, v in vectors.items() if k.startswith("input.")}
    told = {k.partition(".")[2]: v for k, v in vectors.items() if not k.startswith("input.")}
    if "spd.cov_source" in given:
        regular(given, told, float(config["eps_spd"]))
    if "degenerate.cov_source" in given:
        degenerate(given, told, float(config["eps_degenerate"]))
    if "image.x" in given:
        pictures(given, told, config)


def regular(given: dict[str, Tensor], told: dict[str, Tensor], eps: float) -> None:
    source, target = given["spd.cov_source"], given["spd.cov_target"]
    operator, noise = transport_operators(source, target, eps)
    assert noise is None
    near(operator, told["spd.T"])
    means = given["spd.mean_source"], given["spd.mean_target"]
    near(w2(*means, source, target, eps), told["spd.w2"][0])
    for name in (n for n in told if n.startswith("spd.y_alpha")):
        alpha = float(name.removeprefix("spd.y_alpha"))
        mixed = (1 - alpha) * operator + alpha * torch.eye(len(operator), dtype=torch.float64)
        near((given["spd.x"] - means[0]) @ mixed.mT + means[1], told[name])


def degenerate(given: dict[str, Tensor], told: dict[str, Tensor], eps: float) -> None:
    target = given.get("degenerate.cov_target", given.get("spd.cov_target"))
    assert target is not None
    operator, noise = transport_operators(given["degenerate.cov_source"], target, eps)
    assert noise is not None
    near(operator, told["degenerate.T"])
    near(noise, told["degenerate.noise_covariance"])


def pictures(given: dict[str, Tensor], told: dict[str, Tensor], config: dict) -> None:
    sigma = float(config["folding_kernel_sigma"])
    model = DeepOptimalTransport(
        config["block_size"],
        eps=float(config["eps_image"]),
        fold_size=config["folding_kernel_size"],
        fold_sigma=None if sigma == float("inf") else sigma,
        compat="official",
    )
    for name in sorted(given):
        side = re.fullmatch(r"image\.(source|target)\d+", name)
        if side:
            model.update(given[name].float(), side[1])  # type: ignore[arg-type]
    near(torch.tensor(model.compute()), told["image.w2"][0])
    for name in ("mean_source", "mean_target", "cov_source", "cov_target"):
        near(getattr(model, name), told[f"image.{name}"])
    near(model.transport_operator, told["image.T"])
    near(model.weights.flatten().repeat(model.channels), told["image.fold_weights"], 1e-6)
    x = given["image.x"].float()
    padded = torch.nn.functional.pad(2 * x - 1, (model.patch // 2,) * 4, mode="replicate")
    wanted = told["image.patches_of_x"]
    torch.testing.assert_close(patchify(padded, model.patch)[: len(wanted)], wanted, rtol=0, atol=1e-6)
    for name in (n for n in told if n == "image.y" or n.startswith("image.y_latent_alpha")):
        alpha = float(name.removeprefix("image.y").removeprefix("_latent_alpha") or 0)
        for slow in (True, False):
            made = model.transport(x, latent_alpha=alpha, slow=slow)
            torch.testing.assert_close(made, told[name], rtol=0, atol=PICTURES)
