"""PBaSR against the official code: branches, mixture, exchange, padded inference, masked adversarial losses."""

from __future__ import annotations

import json

import torch
from torch import Tensor

from saccade.quality.adversarial import adversarial_loss
from saccade.restoration.pbasr import BRANCHES, RRDBNet, from_official, from_rrdbnet, mirrored
from saccade.training.dual_branch import exchange

from . import built, under


def check(vectors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    config, tolerance = json.loads(metadata["config"]), float(metadata["tolerance"].split()[0])
    state = under(vectors, "state.")
    x = vectors["input.x"]
    told = config["branch"]

    def same(found: Tensor, name: str) -> None:
        torch.testing.assert_close(found, vectors[name], atol=tolerance, rtol=0)

    def branch(which: str) -> RRDBNet:
        return built(from_rrdbnet(under(state, BRANCHES[which])), RRDBNet, f"golden {which}")

    with torch.no_grad():
        general, blur = branch("general"), branch("blur")
        found = (general.scale, len(general.body), general.conv_body.out_channels)
        assert found == (told["scale"], told["num_block"], told["num_feat"]), "everything is read from the shapes"
        same(general(x), "output.general")
        same(blur(x), "output.defocus")
        combined = built(from_official(state), RRDBNet, "golden mixture")
        same(combined.conv_first.weight, "mid.combined.conv_first.weight")
        same(combined(x), "output.combined")
        same(mirrored(combined, x), "output.combined_padded")
        for decay in config["cross_decays"]:
            general, blur = branch("general"), branch("blur")
            exchange(general, blur, decay)
            same(general.conv_first.weight, f"output.cross_{decay}.general.conv_first.weight")
            same(blur.conv_first.weight, f"output.cross_{decay}.defocus.conv_first.weight")
            same(general(x), f"output.cross_{decay}.general.out")
    for name in (k for k in vectors if k.startswith("output.gan_")):
        kind, target, role = name.removeprefix("output.gan_").split("_")
        loss = adversarial_loss(
            vectors["input.logits"],
            target == "real",
            kind=kind,
            mask=vectors["input.mask"],
            generator=role == "gen",
            weight=0.1,
        )
        same(loss.reshape(1), name)
