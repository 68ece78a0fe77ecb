"""SHViT against the official code: logits, maps of every stage, and the fused form."""

from __future__ import annotations

import json

from torch import Tensor

from saccade.backbones.shvit import SHViT, from_official

from . import built, stages_agree, under


def check(vectors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    told = json.loads(metadata["config"])
    model = built(from_official(under(vectors, "state.")), SHViT)
    assert [i["num_chs"] for i in model.feature_info] == told["embed_dim"]
    assert (model.num_classes, model.distillation) == (told["num_classes"], told["distillation"])
    stages_agree(model, vectors)
