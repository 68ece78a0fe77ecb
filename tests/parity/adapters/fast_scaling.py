"""Golden vectors of the fast-scaling card: the scaler's integers, the complexity model, and three tiny networks."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from saccade.backbones.fast_scaling import (
    AnyNet,
    Architecture,
    adjust_block_compatibility,
    complexity,
    generate_regnet,
    regnet,
    scale,
    scaling_factors,
)
from saccade.backbones.fast_scaling.networks import our_name

RTOL = ATOL = 1e-4  # of network outputs; integers are exact, factors 1e-12


def check(vectors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Hold every part of one golden file; the parts that a file lacks are not asked for."""
    if "scaling_factors" in metadata:
        _factors(json.loads(metadata["scaling_factors"]), vectors.get("output.scaling_factors"))
    for case in json.loads(metadata.get("generate_regnet", "[]")):
        assert generate_regnet(case["wa"], case["w0"], case["wm"], case["d"], case["q"]) == (
            case["widths"],
            case["depths"],
        )
    for case in json.loads(metadata.get("adjust_block_compatibility", "[]")):
        got = adjust_block_compatibility(case["ws"], case["bs"], case["gs"])
        assert [list(column) for column in got] == case["out"]
    if "scaled" in metadata:
        _scaled(json.loads(metadata["scaled"]), json.loads(metadata.get("complexity_rows", "[]")), vectors)
    for name, config in json.loads(metadata.get("config", "{}")).items():
        prefix = "" if name == "regnet" and "input.x" in vectors else f"{name}."
        _network(_from_config(config), prefix, vectors)


def _factors(cases: list[dict[str, Any]], tensor: Tensor | None) -> None:
    for i, case in enumerate(cases):
        got = scaling_factors(case["type"], case["scale"])
        torch.testing.assert_close(torch.tensor(got).double(), torch.tensor(case["dwgr"]).double(), rtol=1e-6, atol=0)
        assert all(abs(a - b) <= 1e-12 * max(1, abs(b)) for a, b in zip(got, case["dwgr"], strict=True)), case
        if tensor is not None:
            want = torch.tensor(got, dtype=torch.float64)
            torch.testing.assert_close(tensor[i], want, rtol=1e-12, atol=1e-12)


def _base(name: str, row: dict[str, Any]) -> Architecture:
    """The base network from its row alone; what a row does not tell follows from the name of the family."""
    common = {"stem_width": row["stem_w"], "head_width": row["head_w"]}
    sizes = {"train_size": row["train_size"], "test_size": row["test_size"]}
    if "exp_ratios" in row:
        from saccade.backbones.fast_scaling import BASES

        b0 = BASES["efficientnet_b0"]
        assert len(b0.stages) == len(row["depths"])  # kernels and strides are not in the metadata: B0's
        return Architecture.from_lists(
            row["depths"],
            row["widths"],
            bottlenecks=row["exp_ratios"],
            strides=[s.stride for s in b0.stages],
            kernels=[s.kernel for s in b0.stages],
            block="mbconv",
            activation="silu",
            se_ratio=0.25,
            **common,
            **sizes,
        )
    linear = "RegNetZ" in name
    return Architecture.from_lists(
        row["depths"],
        row["widths"],
        bottlenecks=row["bot_muls"],
        group_widths=row["group_ws"],
        block="linear" if linear else "bottleneck",
        activation="silu" if linear else "relu",
        se_ratio=0.0 if "RegNetX" in name else 0.25,
        **common,
        **sizes,
    )


def _row(net: Architecture, like: dict[str, Any]) -> dict[str, Any]:
    cost = complexity(net)
    row: dict[str, Any] = {
        "depths": [s.depth for s in net.stages],
        "widths": [s.width for s in net.stages],
        "bot_muls": [s.bottleneck for s in net.stages],
        "exp_ratios": [s.bottleneck for s in net.stages],
        "group_ws": [s.group_width for s in net.stages],
        "stem_w": net.stem_width,
        "head_w": net.head_width,
        "train_size": net.train_size,
        "test_size": net.test_size,
        "flops": cost.macs,
        "params": cost.params,
        "acts": cost.acts,
    }
    return {key: row[key] for key in like}


def _scaled(families: dict[str, dict[str, Any]], names: list[str], vectors: dict[str, Tensor]) -> None:
    table = vectors.get("output.complexity")
    for name, rows in families.items():
        base = _base(name, rows["base"])
        for key, want in rows.items():
            strategy, _, s = key.partition("@")
            net = base if key == "base" else scale(base, strategy, float(s))
            assert _row(net, want) == want, f"{name}|{key}"
            if table is not None and f"{name}|{key}" in names:
                cost = complexity(net)
                millions = [net.train_size, cost.macs / 1e6, cost.params / 1e6, cost.acts / 1e6]
                got = torch.tensor(millions, dtype=torch.float64)
                torch.testing.assert_close(got, table[names.index(f"{name}|{key}")], rtol=1e-12, atol=0)


_ACTIVATION = {"relu": "relu", "silu": "silu", "swish": "silu"}
_BLOCK = {"res_bottleneck_block": "bottleneck", "res_bottleneck_linear_block": "linear"}
_STEM = {"simple_stem_in": "simple", "res_stem_in": "pool", "res_stem_cifar": "cifar"}


def _from_config(config: dict[str, Any]) -> Architecture:
    """An architecture from the official code's configuration keys, its defaults filled in."""
    activation = _ACTIVATION[config.get("MODEL.ACTIVATION_FUN", "relu")]
    classes = config.get("MODEL.NUM_CLASSES", 10)
    kind = config["MODEL.TYPE"]
    if kind == "effnet":
        return Architecture.from_lists(
            config["EN.DEPTHS"],
            config["EN.WIDTHS"],
            strides=config["EN.STRIDES"],
            bottlenecks=config["EN.EXP_RATIOS"],
            kernels=config["EN.KERNELS"],
            stem_width=config.get("EN.STEM_W", 32),
            head_width=config.get("EN.HEAD_W", 1280),
            block="mbconv",
            activation=activation,  # type: ignore[arg-type]
            se_ratio=config.get("EN.SE_R", 0.25),
            classes=classes,
        )
    key = kind.upper()
    se = config.get(f"{key}.SE_R", 0.25) if config.get(f"{key}.SE_ON", False) else 0.0
    block = _BLOCK[config.get(f"{key}.BLOCK_TYPE", "res_bottleneck_block")]
    if kind == "regnet":
        return regnet(
            config["REGNET.DEPTH"],
            config["REGNET.W0"],
            config["REGNET.WA"],
            config["REGNET.WM"],
            config.get("REGNET.GROUP_W", 16),
            bottleneck=config.get("REGNET.BOT_MUL", 1.0),
            block=block,  # type: ignore[arg-type]
            stem_width=config.get("REGNET.STEM_W", 32),
            head_width=config.get("REGNET.HEAD_W", 0),
            activation=activation,  # type: ignore[arg-type]
            se_ratio=se,
            classes=classes,
        )
    assert kind == "anynet", f"no model of type {kind}"
    return Architecture.from_lists(
        config["ANYNET.DEPTHS"],
        config["ANYNET.WIDTHS"],
        strides=config.get("ANYNET.STRIDES", 2),
        bottlenecks=config.get("ANYNET.BOT_MULS") or 1.0,
        group_widths=config.get("ANYNET.GROUP_WS") or 1,
        stem_width=config.get("ANYNET.STEM_W", 32),
        head_width=config.get("ANYNET.HEAD_W", 0),
        block=block,  # type: ignore[arg-type]
        stem=_STEM[config.get("ANYNET.STEM_TYPE", "simple_stem_in")],  # type: ignore[arg-type]
        activation=activation,  # type: ignore[arg-type]
        se_ratio=se,
        classes=classes,
    )


@torch.no_grad()
def _network(net: Architecture, prefix: str, vectors: dict[str, Tensor]) -> None:
    state = {
        our_name(name.removeprefix(f"{prefix}state.")): value
        for name, value in vectors.items()
        if name.startswith(f"{prefix}state.")
    }
    model = AnyNet(net).eval()
    model.load_state_dict(state)
    x = vectors[f"{prefix}input.x"]
    stages = dict(zip(("stem", *model.stage_names), model.features(x), strict=True))
    for name, got in stages.items():
        if f"{prefix}mid.{name}" in vectors:
            torch.testing.assert_close(got, vectors[f"{prefix}mid.{name}"], rtol=RTOL, atol=ATOL)
    torch.testing.assert_close(model(x), vectors[f"{prefix}output.logits"], rtol=RTOL, atol=ATOL)
