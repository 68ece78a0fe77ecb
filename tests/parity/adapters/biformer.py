"""BiFormer against the official code: network, maps, routed regions, and both forms of the attention alone."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from saccade.backbones.biformer import BiFormer, BiLevelRoutingAttention, from_official
from saccade.checkpoint import fit
from saccade.nn.fuse import fuse
from saccade.registry import create

from . import under


def near(found: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4)


def check(vectors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    told = json.loads(metadata["config"])
    network(vectors, told)
    for i, config in enumerate(told.get("bra", ())):
        legacy(under(vectors, f"bra{i}."), config)
    for i, config in enumerate(told.get("bra_nchw", ())):
        refactored(under(vectors, f"bra_nchw{i}."), config)


def network(vectors: dict[str, Tensor], told: dict[str, Any]) -> None:
    recipe = from_official(under(vectors, "state."))
    assert recipe is not None
    assert told["kv_downsample_mode"] == "identity"
    assert told["qk_dims"] == told["embed_dim"]
    hidden = {
        "topk": told["topks"],
        "regions": told["n_win"],
        "head_dim": told["head_dim"],
    }  # not to be seen in weights
    routing = {
        f"{ours}_routing": told[f"{theirs}_routing"]
        for ours, theirs in (("soft", "soft"), ("differentiable", "diff"), ("learned", "param"))
    }
    options = {**recipe.options, **hidden, **routing, "auto_pad": told["auto_pad"]}
    model = create("biformer", weights=None, **options)
    fit(model, recipe.state, "golden")
    assert isinstance(model, BiFormer)
    assert [i["num_chs"] for i in model.feature_info] == told["embed_dim"]
    routes: dict[str, Tensor] = {}
    for i, layers in enumerate(model.routed):
        for j, layer in enumerate(layers):
            name = f"stages.{i}.{j}"
            layer.router.register_forward_hook(lambda _m, _x, out, name=name: routes.update({name: out[0]}))
    x = vectors["input.x"]
    with torch.no_grad():
        near(model(x), vectors["output.logits"])
        near(model.stem(x), vectors["mid.downsample_layers.0"])
        for i, found in enumerate(model.maps(x)):
            near(found, vectors[f"mid.stages.{i}"])
        for name, found in routes.items():
            assert torch.equal(found, vectors[f"mid.{name}.attn.router.indices"]), name
        near(fuse(model)(x), vectors["output.logits"])


def legacy(vectors: dict[str, Tensor], config: dict[str, Any]) -> None:
    state = {k.replace("qkv.qkv.", "qkv."): v for k, v in under(vectors, "state.").items()}
    names = {"soft_routing": "soft", "diff_routing": "differentiable", "param_routing": "learned", "qk_dim": "qk_dim"}
    layer = BiLevelRoutingAttention(
        config["dim"],
        config["num_heads"],
        config["topk"],
        config["n_win"],
        side=config["side_dwconv"],
        auto_pad=config.get("auto_pad", False),
        **{ours: config[theirs] for theirs, ours in names.items() if theirs in config},
    ).eval()
    layer.load_state_dict(state)
    seen: list[tuple[Tensor, Tensor]] = []
    layer.router.register_forward_hook(lambda _m, _x, out: seen.append(out))
    with torch.no_grad():
        near(layer(vectors["input.x_nhwc"]), vectors["output.y_nhwc"])
    indices, weights = seen[0]
    assert torch.equal(indices, vectors["output.route_indices"])
    near(weights, vectors["output.route_weights"])


def refactored(vectors: dict[str, Tensor], config: dict[str, Any]) -> None:
    names = {"qkv_linear": "qkv", "output_linear": "wo", "lepe": "lepe"}
    state = {}
    for key, value in under(vectors, "state.").items():
        module, kind = key.split(".")
        state[f"{names[module]}.{kind}"] = value.flatten(1) if module != "lepe" and value.dim() == 4 else value
    width, heads = config["dim"], config["num_heads"]
    layer = BiLevelRoutingAttention(
        width, heads, config["topk"], config["n_win"], side=config["side_dwconv"], refactored=True
    ).eval()
    layer.load_state_dict(state)
    x = vectors["input.x"].permute(0, 2, 3, 1)
    with torch.no_grad():
        near(layer(x).permute(0, 3, 1, 2), vectors["output.y"])
