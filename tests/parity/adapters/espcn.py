"""ESPCN against Lornatang's re-implementation: hidden features, output before and after clamping."""

from __future__ import annotations

import json

import torch
from torch import Tensor

from saccade.restoration.espcn import ESPCN, from_lornatang

from . import built, under


def check(vectors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    config = json.loads(metadata["config"])
    tolerance = float(metadata["tolerance"].split()[0])
    cases = config if all(isinstance(c, dict) for c in config.values()) else {"": config}
    for case, told in cases.items():
        at = f"{case}." if case else ""
        model = build(under(vectors, f"state.{at}"), told)
        x = vectors[f"input.{at}x"]
        with torch.no_grad():
            wanted = {
                f"output.{at}y": model.eval()(x),
                f"mid.{at}before_clamp": model.train()(x),
                f"mid.{at}feature_maps": torch.tanh(model.mapping(torch.tanh(model.features(x))))[:, :4],
            }
        for key, got in wanted.items():
            if key in vectors:
                torch.testing.assert_close(got, vectors[key], atol=tolerance, rtol=0)


def build(state: dict[str, Tensor], told: dict[str, int]) -> ESPCN:
    """The network from its state alone; what its configuration tells must have been read from the shapes."""
    recipe = from_lornatang(state)
    model = built(recipe, ESPCN, "golden vectors")
    found = (model.in_channels, model.out_channels, model.features.out_channels, model.scale)
    assert found == tuple(told[k] for k in ("in_channels", "out_channels", "channels", "upscale_factor"))
    return model
