"""What adapters share: tensors under a prefix, and the network that published weights make."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from saccade import checkpoint
from saccade.nn.fuse import fuse
from saccade.registry import create

M = TypeVar("M", bound=nn.Module)


def under(vectors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, by the rest of their names."""
    return {k.removeprefix(prefix): v for k, v in vectors.items() if k.startswith(prefix)}


def built(recipe: checkpoint.Recipe | None, kind: type[M], what: str = "golden") -> M:
    """The network that a recipe tells, of the class that it must be, filled with its weights."""
    assert recipe is not None, "the names of the published weights are not recognised"
    model = create(recipe.model, weights=None, **recipe.options)
    assert isinstance(model, kind)
    checkpoint.fit(model, recipe.state, what)  # a bare `fit` would be the adapter of that name once it is loaded
    return model


@torch.no_grad()
def stages_agree(model: Any, vectors: Mapping[str, Tensor]) -> None:
    """Logits, the stem's output, the maps of all stages, and the logits of the fused form, which has no batch norms."""
    x = vectors["input.x"]
    torch.testing.assert_close(model(x), vectors["output.logits"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.stem(x), vectors["mid.patch_embed"], rtol=1e-4, atol=1e-4)
    for i, found in enumerate(model.maps(x), 1):
        torch.testing.assert_close(found, vectors[f"mid.blocks{i}"], rtol=1e-4, atol=1e-4)
    fused = fuse(model)
    assert not [m for m in fused.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    torch.testing.assert_close(fused(x), vectors["output.logits_fused"], rtol=0, atol=5e-4)
