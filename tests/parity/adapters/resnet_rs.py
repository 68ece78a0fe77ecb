"""ResNet-RS against timm's module: logits, maps of every group, the stem, the gates of the first block."""

from __future__ import annotations

import json

import torch
from torch import Tensor

from saccade.backbones.resnet_rs import ResNetRS, from_timm
from saccade.nn.fuse import fuse

from . import built, under


def check(vectors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    told = json.loads(metadata["config"])
    model = built(from_timm(under(vectors, "state.")), ResNetRS)
    assert [list(model.layers), list(model.channels)] == [told["layers"], told["channels"]]
    assert (model.stem_width, model.num_classes) == (told["stem_width"], told["num_classes"])
    assert model.se_ratio == told["se_rd_ratio"]
    x = vectors["input.x"]
    found: dict[str, Tensor] = {}
    names = [k.removeprefix("mid.") for k in vectors if k.startswith("mid.")]
    for name in names:
        model.get_submodule(name).register_forward_hook(
            lambda _m, _i, out, name=name: found.update({name: out.clone()})
        )
    with torch.no_grad():
        logits = model(x)
        torch.testing.assert_close(logits, vectors["output.logits"], rtol=1e-4, atol=1e-4)
        for name in names:
            torch.testing.assert_close(found[name], vectors[f"mid.{name}"], rtol=1e-4, atol=1e-4)
        for i, made in enumerate(model.maps(x), 1):
            torch.testing.assert_close(made, vectors[f"mid.layer{i}"], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(fuse(model)(x), vectors["output.logits"], rtol=1e-4, atol=1e-4)
