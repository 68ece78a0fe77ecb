"""PIIP against the official code: separate heads, the merged head without projections, one injector on odd grids."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from saccade.backbones.piip import Injector
from saccade.backbones.piip.published import _ours, from_official
from saccade.checkpoint import fit
from saccade.nn.fuse import fuse
from saccade.registry import create


def near(found: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(found, want, rtol=1e-3, atol=2e-5)


def pyramid(state: dict[str, Tensor], told: dict[str, Any], x: Tensor, want: Tensor) -> None:
    recipe = from_official(state)
    assert recipe is not None
    branches = [told[k] for k in sorted(told) if k.startswith("branch")]
    options = {  # what leaves no trace in the weights
        "heads": [b["num_heads"] for b in branches],
        "ranges": [b["interaction_indexes"] for b in branches],
        "deform_heads": told["deform_num_heads"],
        "points": told["n_points"],
    }
    model = create(recipe.model, weights=None, **{**recipe.options, **options})
    fit(model, recipe.state, "golden")
    assert recipe.options["sides"] == tuple(b["img_size"] for b in branches)
    assert recipe.options.get("ratio", 0.5) == told["deform_ratio"]
    assert recipe.options.get("cffn_ratio", 0.25) == told["cffn_ratio"]
    assert recipe.options.get("project", True) == told.get("interaction_proj", True)
    near(model(x), want)
    near(fuse(model)(x), want)


@torch.no_grad()
def check(vectors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    config = json.loads(metadata["config"])
    for case, told in config.items():
        start = f"state.{case}."
        state = {k.removeprefix(start): v for k, v in vectors.items() if k.startswith(start)}
        if case != "injector":
            pyramid(state, told, vectors[f"input.{case}.x"], vectors[f"output.{case}.logits"])
            continue
        layer = Injector(
            told["dim"],
            told["dim_feat"],
            heads=told["heads"],
            points=told["points"],
            ratio=told["ratio"],
            cffn_ratio=told["cffn_ratio"],
        ).eval()
        fit(layer, {k.replace("dwconv.dwconv", "dwconv"): v for k, v in state.items()}, "golden")
        query, feat = vectors["input.injector.query"], vectors["input.injector.feat"]
        grids = tuple(told["query_hw"]), tuple(told["feat_hw"])
        near(layer(query, feat, *grids), vectors["output.injector.y"])
        near(layer.fuse()(query, feat, *grids), vectors["output.injector.y"])
    assert not _ours({})
