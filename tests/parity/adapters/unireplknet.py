"""UniRepLKNet against the official code: logits in both forms, merged weights, every kernel's branches, GRN."""

from __future__ import annotations

import json

import torch
from torch import Tensor

from saccade.backbones.unireplknet import DilatedReparam, GlobalResponseNorm, UniRepLKNet, _renamed, from_official
from saccade.nn.fuse import fuse

from . import built, under


def check(vectors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    told = json.loads(metadata["config"])
    state, merged_state = (under(vectors, start) for start in ("state.", "deploy.state."))
    model = _made(state)
    assert [list(stage) for stage in model.kernels] == told["kernel_sizes"]
    assert (list(model.widths), list(model.depths), model.num_classes) == (
        told["dims"],
        told["depths"],
        told["num_classes"],
    )
    x = vectors["input.x"]
    with torch.no_grad():
        torch.testing.assert_close(model(x), vectors["output.logits"], rtol=1e-4, atol=1e-4)
        _check_parts(model, x, vectors)
        merged = fuse(model)
        _near(merged(x), vectors["output.logits_deploy"], 5e-4)
        theirs = _made(merged_state)
        assert theirs.deploy
        _near(theirs(x), vectors["output.logits_deploy"], 5e-4)
        ours = merged.state_dict()
        assert ours.keys() == theirs.state_dict().keys()
        for name, want in theirs.state_dict().items():
            _near(ours[name], want, 1e-4)
        for kernel in sorted({int(k.split(".")[0][3:]) for k in vectors if k.startswith("drb")}):
            _check_branches(kernel, under(vectors, f"drb{kernel}."))
        _check_norm(under(vectors, "grn."))


def _near(found: Tensor, want: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found, want, rtol=tolerance, atol=tolerance)


def _made(state: dict[str, Tensor]) -> UniRepLKNet:
    return built(from_official(state), UniRepLKNet)


def _check_parts(model: UniRepLKNet, x: Tensor, vectors: dict[str, Tensor]) -> None:
    """What the metadata calls mid.NAME: the outputs of submodules."""
    seen: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda _, given, found, name=name: seen.__setitem__(name, found))
    model(x)
    for name, want in under(vectors, "mid.").items():
        ours = next(iter(_renamed({f"{name}.": want}, False))).rstrip(".")
        ours = {"downsample_layers.0": "stem"}.get(name, ours)
        kind, *rest = name.split(".")
        if kind == "downsample_layers" and rest[0] != "0":
            ours = f"stages.{rest[0]}.1"
        ours = ours.replace(".dwconv", ".mixer")
        torch.testing.assert_close(seen[ours], want, rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def _check_branches(kernel: int, part: dict[str, Tensor]) -> None:
    official = {f"stages.0.0.dwconv.{k}": v for k, v in under(part, "state.").items()}
    own = {k.removeprefix("stages.0.0.mixer."): v for k, v in _renamed(official, False).items()}
    layer = DilatedReparam(part["input.x"].shape[1], kernel).eval()
    layer.load_state_dict(own)
    torch.testing.assert_close(layer(part["input.x"]), part["output.y"], rtol=1e-4, atol=1e-4)
    merged = layer.fuse()
    torch.testing.assert_close(merged(part["input.x"]), part["output.y_merged"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(merged.weight, part["output.merged_weight"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(merged.bias, part["output.merged_bias"], rtol=1e-4, atol=1e-4)


def _check_norm(part: dict[str, Tensor]) -> None:
    layer = GlobalResponseNorm(part["input.x"].shape[-1])
    layer.load_state_dict({k: v.flatten() for k, v in under(part, "state.").items()})
    torch.testing.assert_close(layer(part["input.x"]), part["output.y"], rtol=1e-4, atol=1e-4)
