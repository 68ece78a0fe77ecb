"""VAN against the official code: logits, pooled features, what blocks, attentions, gates and norms give."""

from __future__ import annotations

import json

import torch
from torch import Tensor, nn

from saccade.backbones.van import VAN, Block, _our_name, from_official
from saccade.nn.fuse import fuse

from . import built, under


def check(vectors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    told = json.loads(metadata["config"])
    model = built(from_official(under(vectors, "state.")), VAN)
    assert (list(model.widths), list(model.ratios), list(model.depths), model.num_classes) == (
        told["embed_dims"],
        told["mlp_ratios"],
        told["depths"],
        told["num_classes"],
    )
    assert model.stages[0][-1].eps == told["norm_eps"]
    seen: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda _, given, found, name=name: seen.__setitem__(name, found))
    x = vectors["input.x"]
    with torch.no_grad():
        logits = model(x)
        torch.testing.assert_close(logits, vectors["output.logits"], rtol=1e-4, atol=1e-4)
        pooled = model.forward_head(model.forward_features(x), pre_logits=True)
        torch.testing.assert_close(pooled, vectors["output.features"], rtol=1e-4, atol=1e-4)
        for name, want in vectors.items():
            if name.startswith("mid."):
                found = _found(model, seen, name.removeprefix("mid."))
                torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
        fused = fuse(model)
        assert not [m for m in fused.modules() if isinstance(m, nn.BatchNorm2d)]
        torch.testing.assert_close(fused(x), vectors["output.logits"], rtol=1e-4, atol=1e-4)


def _found(model: VAN, seen: dict[str, Tensor], official: str) -> Tensor:
    """What the part of that official name gave; theirs adds the attention's shortcut inside it, ours around it."""
    name = _our_name(f"{official}.", model.depths).rstrip(".").replace("spatial_gating_unit", "gate")
    made = seen[name]
    block = model.get_submodule(name.rpartition(".")[0])
    if isinstance(block, Block) and name.endswith(".attn"):
        made = made + seen[f"{name.removesuffix('.attn')}.norm1"]
    return made.flatten(2).mT if official.startswith("norm") else made
