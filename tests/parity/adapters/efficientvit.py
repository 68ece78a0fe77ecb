"""EfficientViT against the official code: logits, maps of every stage, and the fused form."""

from __future__ import annotations

import json

from torch import Tensor

from saccade.backbones.efficientvit import EfficientViT, from_official, sides

from . import built, stages_agree, under


def check(vectors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    told = json.loads(metadata["config"])
    model = built(from_official(under(vectors, "state.")), EfficientViT)
    assert [i["num_chs"] for i in model.feature_info] == told["embed_dim"]
    assert (model.num_classes, model.distillation) == (told["num_classes"], told["distillation"])
    assert list(model.heads) == told["num_heads"]
    assert list(model.kernels) == told["kernels"][: max(told["num_heads"])]
    # a file does not tell its size alone; the one that is deduced has the same windows, and no table changes
    assert sides(model.img_size, model.windows) == sides(told["img_size"], told["window_size"])
    model.set_input_size(told["img_size"])
    stages_agree(model, vectors)
