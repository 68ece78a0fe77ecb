"""HyperZ.Z.W / Terminator: kernels as large as the picture, made from coordinates and multiplied by the activations.

Zhang, "HyperZ.Z.W Operator Connects Slow-Fast Networks for Full Context Interaction", 2024, arXiv:2401.17948.

slow_networks.py makes the kernels, network.py uses them. Nothing here descends from the published code, which has no
licence: it was written from a description of the method.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from saccade.backbones.hyperzzw.network import HyperZZW, slow_neural_loss
from saccade.backbones.hyperzzw.slow_networks import ChannelKernel, ConstantKernel, GlobalKernel, LocalKernel
from saccade.checkpoint import Recipe, StateDict
from saccade.errors import CheckpointError
from saccade.nn.backbone import made, named
from saccade.registry import recognise, register

__all__ = ["ChannelKernel", "ConstantKernel", "GlobalKernel", "HyperZZW", "LocalKernel", "slow_neural_loss"]

VARIANTS: dict[str, dict[str, Any]] = {
    "hyperzzw_cifar": {  # the published CIFAR runs, which are also the default of `HyperZZW`
        "widths": (12, 36, 72, 144, 288),
        "depths": (3, 2, 2, 2, 2),
        "hidden": 64,
        "local": (3, 9, 5, 7),
        "local_hidden": 32,
        "channel_hidden": 32,
        "interaction_hidden": 16,
        "spatial_hidden": 64,
        "img_size": 32,
    },
}


@register(
    "hyperzzw",
    system="hyperzzw",
    task="classification",
    size=32,
    fixed_size=True,
    side_option="img_size",
    variants={"hyperzzw_cifar": "the network of the CIFAR runs: 1.34 M parameters with 10 classes, 32 x 32 px"},
)
def hyperzzw(variant: str = "", /, **options: Any) -> nn.Module:
    """Any of them; options as `HyperZZW`."""
    return made(HyperZZW, options, VARIANTS, variant)


_SLOW = (
    (r"\.Kernel\.filters\.(\d+)\.linear\.", r".filters.\1."),
    (r"\.Kernel\.fast_reduce\.", ".reduce."),
    (r"\.Kernel\.fast_fc1\.", ".fc."),
    (r"\.Kernel\.fast_linears_x\.", ".gates."),
    (r"\.Kernel\.output_linear\.", ".output."),
    (r"\.Kernel\.bias_pk?$", ".bias_map"),
    (r"\.Kernel\.", "."),
)
_NAMES = (
    (r"^out_layer\.", "head."),
    (r"^blocks\.(\d+)\.fast_multi_branch\.", r"stages.\1."),
    (r"^blocks\.", "stages."),
    (r"\.slow_net_g\.", ".slow_global."),
    (r"\.Fast_Kernel_rgu_2\.", ".rgu_hyper."),
    (r"\.Fast_Kernel_rgu\.", ".rgu."),
    (r"\.fast_linear_([kvqy])\.", r".\1."),
    (r"(\.rgu(?:_hyper)?)\.(?:fast_)?bias_p$", r"\1.bias_map"),
    (r"\.channel_mixer_hci\.slow_net_gc\.", ".hyper_channel.slow_channel."),
    (r"\.hyper_interact\.slow_net_gc\.", ".interaction.slow_channel."),
    (r"\.hyper_interact\.slow_net_gs\.", ".interaction.slow_spatial."),
    (r"\.channel_mixer_mlp\.", ".mlp."),
    (r"\.bottleneck_layer\.", ".bottleneck."),
)
_BRANCHES = (
    (re.compile(r"\.slow_net_l(\d)\."), ".slow."),
    (re.compile(r"\.local_interact_conv_(\d)\.channel_mixer\."), ".mix."),
    (re.compile(r"\.bias([1-4])$"), ".bias"),
)


def _renamed(name: str) -> str:
    for pattern, ours in _NAMES:
        name = re.sub(pattern, ours, name)
    for branch, rest in _BRANCHES:  # numbered from 1 there
        if found := branch.search(name):
            name = name.replace(found[0], f".local.{int(found[1]) - 1}{rest}")
    for pattern, ours in _SLOW:
        name = re.sub(pattern, ours, name)
    return name


def _ours(state: StateDict) -> StateDict:
    """Our names; 1x1 convolutions over places become matrices, learnt maps of the generators columns."""
    made: StateDict = {}
    for name, value in state.items():
        if "train_length" in name:  # the published flag of the first call; it says nothing of the weights
            continue
        new = _renamed(name)
        if ".slow" in new and new.endswith("bias_map"):
            value = value.reshape(-1, 1)
        elif ".slow" in new and new.endswith("weight"):
            value = value.flatten(1)
        made[new] = value
    return made


def _describe(state: StateDict, side: int) -> dict[str, Any]:
    """Options of the network behind a state in our names."""
    try:
        blocks = range(1 + max(int(k.split(".")[1]) for k in state if k.startswith("stages.")))
        first = "stages.0"
        options: dict[str, Any] = {
            "widths": tuple(state[f"stages.{i}.bottleneck.weight"].shape[0] for i in blocks),
            "depths": tuple(
                1 + max(int(k.split(".")[4]) for k in state if k.startswith(f"stages.{i}.slow_global.linears."))
                for i in blocks
            ),
            "hidden": state[f"{first}.slow_global.output.weight"].shape[1],
            "local": tuple(round(len(state[f"{first}.local.{n}.slow.bias_map"]) ** 0.5) for n in range(4)),
            "local_hidden": state[f"{first}.local.0.slow.output.weight"].shape[1],
            "channel_hidden": state[f"{first}.hyper_channel.slow_channel.output.weight"].shape[1],
            "interaction_hidden": state[f"{first}.interaction.slow_channel.output.weight"].shape[1],
            "spatial_hidden": state[f"{first}.interaction.slow_spatial.output.weight"].shape[1],
            "img_size": side,
            "in_chans": state[f"{first}.mlp.weight"].shape[0],
        }
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"these weights look like HyperZ.Z.W's, but describe no network: {error}") from error
    options["num_classes"] = state["head.weight"].shape[0] if "head.weight" in state else 0
    if len(options["widths"]) != 5:
        options["drops"] = (0.0,) + (0.05,) * (len(options["widths"]) - 1)
    return options


@recognise(
    "hyperzzw",
    keys=("blocks.0.fast_multi_branch.slow_net_g.Kernel.output_linear.weight", "blocks.*.bottleneck_layer.weight"),
)
def from_official(state: StateDict) -> Recipe | None:
    """State dicts with the published key names; weights are taken as they stand, nothing is scaled again."""
    ours = _ours(state)
    maps = [v for k, v in ours.items() if k.endswith("rgu.bias_map")]
    if not maps:
        return None
    return named("hyperzzw", VARIANTS, _describe(ours, maps[0].shape[-1]), ours)
