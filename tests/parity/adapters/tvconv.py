"""TVConv against the official code: the operator (kernels too), a MobileNetV2, and the AM-softmax on its embedding."""

from __future__ import annotations

import json
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.backbones.tvconv import AMSoftmax, TVConv, TVMobileNetV2, from_official_mobilenet
from saccade.nn.fuse import fuse

from . import built, under


def near(found: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)


def check(vectors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    told = json.loads(metadata["config"])
    with torch.no_grad():
        for case in [c for c in told if c.startswith("op")]:
            operator(vectors, case, told[case])
        if "mbv2" in told:
            network(vectors, told["mbv2"])


def operator(vectors: dict[str, Tensor], case: str, config: dict[str, Any]) -> None:
    names = {"TVConv_posi_chans": "posi_chans", "TVConv_inter_chans": "inter_chans"}
    names |= {"TVConv_inter_layers": "inter_layers", "TVConv_Bias": "bias", "TVConv_k": "kernel", "stride": "stride"}
    options = {ours: config[theirs] for theirs, ours in names.items()}
    layer = TVConv(config["channels"], (config["h"], config["w"]), **options).eval()
    state = under(vectors, f"state.{case}.")
    assert int(state["TVConv_k"]) == config["TVConv_k"]
    layer.load_state_dict({k: v for k, v in state.items() if "layers" in k or k == "posi_map"})
    x, want = vectors[f"input.{case}.x"], vectors[f"output.{case}.y"]
    near(layer(x), want)
    near(layer.fuse()(x), want)
    if f"mid.{case}.weight_map" in vectors:
        weight, _ = layer.kernels()
        near(weight.transpose(0, 1).flatten(0, 1)[None], vectors[f"mid.{case}.weight_map"])


def network(vectors: dict[str, Tensor], config: dict[str, Any]) -> None:
    recipe = from_official_mobilenet(under(vectors, "state.mbv2."))
    model = built(recipe, TVMobileNetV2)
    assert recipe.options["num_classes"] == config["embedding_size"]
    assert recipe.options["inter_layers"] == config["TVConv_inter_layers"]
    assert model.img_size == vectors["input.mbv2.x"].shape[-1]
    x = vectors["input.mbv2.x"]
    last = list(model.maps(x))[-1]
    near(last.mean((2, 3)), vectors["mid.mbv2.features_mean_hw"])
    embedding = model(x)
    near(embedding, vectors["output.mbv2.embedding"])
    near(fuse(model)(x), vectors["output.mbv2.embedding"])
    weight, labels = vectors["state.amsoftmax.weight"], vectors["input.amsoftmax.labels"]
    head = AMSoftmax(*weight.shape)
    head.load_state_dict({"weight": weight})
    near(head(embedding, labels), vectors["output.amsoftmax.logits"])
    near(head.loss(embedding, labels), vectors["output.amsoftmax.ce_loss"])
    near(F.cross_entropy(head(embedding, labels), labels), vectors["output.amsoftmax.ce_loss"])
