"""IARN's backbone, IRN, against the official code: both directions, the log determinant, the losses, the rounding."""

from __future__ import annotations

import json

import torch
from torch import Tensor

from saccade.restoration.iarn import IRN, Coupling, Haar, charbonnier, from_official
from saccade.restoration.iarn.irn import round_straight

from . import built, under


def close(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    """Within ``tolerance`` of the largest value."""
    assert found.shape == wanted.shape
    limit = tolerance * max(float(wanted.abs().max()), 1e-12)
    torch.testing.assert_close(found, wanted, atol=limit, rtol=0)


@torch.no_grad()
def check(vectors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    config = json.loads(metadata["config"])
    tolerance = float(metadata["tolerance"].split()[0])
    recipe = from_official(under(vectors, "state."))
    model = built(recipe, IRN)
    found = (list(model.blocks), model.growth, model.scale)
    assert found == (config["block_num"], config["gc"], 2 ** config["down_num"]), "everything is read from the names"

    x = vectors["input.x"]
    y, logdet = model.with_logdet(x)
    close(y, vectors["output.forward"], tolerance)
    close(logdet.reshape(1), vectors["output.jacobian_forward"], tolerance)
    haar, block = model.operations[0], model.operations[1]
    assert isinstance(haar, Haar)
    assert isinstance(block, Coupling)
    close(haar(x), vectors["output.haar"], tolerance)
    close(block(haar(x)), vectors["output.block1"], tolerance)

    small = round_straight(vectors["output.forward"][:, :3])
    close(small, vectors["output.lr_quantised"], tolerance)
    small = vectors["output.lr_quantised"]
    close(model.enlarge(small), vectors["output.reverse_zero_latent"], tolerance)
    close(model.enlarge(small, vectors["input.latent"]), vectors["output.reverse_latent"], tolerance)
    close(model.inverse(vectors["output.forward"]), x, 2e-4)

    a, b = vectors["input.loss_a"], vectors["input.loss_b"]
    close(charbonnier(a, b).reshape(1), vectors["output.loss_l1"], tolerance)
    close((a - b).square().sum((1, 2, 3)).mean().reshape(1), vectors["output.loss_l2"], tolerance)
