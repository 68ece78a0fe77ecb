"""EfficientViT against the official code: logits, maps of every stage, and the fused form."""

from __future__ import annotations

import json

import torch
from torch import Tensor

from saccade.backbones.efficientvit import EfficientViT, from_official, sides
from saccade.checkpoint import fit
from saccade.nn.fuse import fuse
from saccade.registry import create


def check(vectors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    told = json.loads(metadata["config"])
    state = {k.removeprefix("state."): v for k, v in vectors.items() if k.startswith("state.")}
    recipe = from_official(state)
    assert recipe is not None
    model = create(recipe.model, weights=None, **recipe.options)
    fit(model, recipe.state, "golden")
    assert isinstance(model, EfficientViT)
    assert [i["num_chs"] for i in model.feature_info] == told["embed_dim"]
    assert (model.num_classes, model.distillation) == (told["num_classes"], told["distillation"])
    assert list(model.heads) == told["num_heads"]
    assert list(model.kernels) == told["kernels"][: max(told["num_heads"])]
    # a file does not tell its size alone; the one that is deduced has the same windows, and no table changes
    assert sides(model.img_size, model.windows) == sides(told["img_size"], told["window_size"])
    model.set_input_size(told["img_size"])
    x = vectors["input.x"]
    with torch.no_grad():
        torch.testing.assert_close(model(x), vectors["output.logits"], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model.stem(x), vectors["mid.patch_embed"], rtol=1e-4, atol=1e-4)
        for i, found in enumerate(model.maps(x), 1):
            torch.testing.assert_close(found, vectors[f"mid.blocks{i}"], rtol=1e-4, atol=1e-4)
        fused = fuse(model)
        assert not [m for m in fused.modules() if isinstance(m, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d)]
        torch.testing.assert_close(fused(x), vectors["output.logits_fused"], rtol=0, atol=5e-4)
