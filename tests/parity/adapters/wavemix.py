"""WaveMix against the official code: the transform, a block of each level, and the three networks, plain and fused."""

from __future__ import annotations

import json
import re
from typing import Any

import torch
from torch import Tensor

from saccade.backbones.wavemix import WaveBlock, WaveMix, from_classifier, from_dense
from saccade.checkpoint import Recipe, fit
from saccade.nn.fuse import fuse
from saccade.ops.haar import pyramid, reconstruct

from . import built, under

CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}


def as_told(recipe: Recipe | None, told: dict[str, Any]) -> torch.nn.Module:
    """The network, whose options must be those of the file's configuration."""
    model = built(recipe, torch.nn.Module)
    told_ours = {"width": told["final_dim"], "ff_width": told["ff_channel"]}
    told_ours |= {k: told[k] for k in ("depth", "mult", "level", "num_classes") if k in told}
    assert {k: recipe.options[k] for k in told_ours} == told_ours
    return model


@torch.no_grad()
def check(vectors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    told = json.loads(metadata["config"])
    transform(under(vectors, "dwt."))
    for name in sorted({k.split(".")[0] for k in vectors if re.match(r"level\d\.", k)}):
        block(int(name[-1]), under(vectors, f"{name}."), told["block"])
    classifier(vectors, told["classification"])
    for name, about in (("sisr", told["sisr"]), ("seg", told["segmentation"])):
        model = as_told(from_dense(under(vectors, f"{name}.state.")), about)
        x, want = vectors[f"{name}.input.x"], vectors[f"{name}.output.y"]
        if name == "sisr":  # the vectors' picture is no picture: normal noise
            model.train().requires_grad_(False)
            for module in model.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.eval()
        torch.testing.assert_close(model(x), want, **CLOSE)
        fused = fuse(model.eval())
        if name == "sisr":
            fused.training = True
        torch.testing.assert_close(fused(x), want, **CLOSE)


def transform(vectors: dict[str, Tensor]) -> None:
    levels = max(int(m[1]) for k in vectors if (m := re.match(r"output\.J(\d+)\.low", k)))
    bands = pyramid(vectors["input.x"], levels)
    for j, (low, high) in enumerate(bands, 1):
        torch.testing.assert_close(low, vectors[f"output.J{j}.low"], **CLOSE)
        torch.testing.assert_close(high, vectors[f"output.J{levels}.high{j}"], **CLOSE)
    back = reconstruct(bands[-1][0], [high for _, high in bands])
    torch.testing.assert_close(back, vectors["input.x"], rtol=0, atol=1e-5)


def block(level: int, vectors: dict[str, Tensor], told: dict[str, Any]) -> None:
    made = WaveBlock(told["final_dim"], level, told["mult"], told["ff_channel"], 0.0).eval()
    state = {
        re.sub(r"^feedforward(\d?)\.", lambda m: f"mix.{int(m[1] or 1) - 1}.", k): v
        for k, v in under(vectors, "state.").items()
    }
    fit(made, state, "golden")
    x, want = vectors["input.x"], vectors["output.y"]
    torch.testing.assert_close(made.branch(x), want, **CLOSE)
    torch.testing.assert_close(made.fuse()(x) - x, want, **CLOSE)


def classifier(vectors: dict[str, Tensor], told: dict[str, Any]) -> None:
    model = as_told(from_classifier(under(vectors, "state.")), told)
    assert isinstance(model, WaveMix)
    if told["initial_conv"] == "pachify":
        assert model.feature_info[0]["reduction"] == told["patch_size"]
    x = vectors["input.x"]
    stem = model.stem(x)
    torch.testing.assert_close(stem, vectors["mid.conv"], **CLOSE)
    first = model.stages[0][0]
    torch.testing.assert_close(first.branch(stem), vectors["mid.layers.0"], **CLOSE)
    torch.testing.assert_close(model(x), vectors["output.logits"], **CLOSE)
    torch.testing.assert_close(fuse(model)(x), vectors["output.logits"], **CLOSE)
