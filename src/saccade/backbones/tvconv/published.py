"""Weights in the published layout (no files were published), and of networks built for another size."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from saccade.backbones.tvconv.networks import MOBILENETS, SHUFFLENETS, TABLE
from saccade.checkpoint import Recipe, StateDict, fit
from saccade.errors import CheckpointError
from saccade.nn.backbone import named
from saccade.registry import recognise

__all__ = ["from_official_mobilenet", "from_official_shufflenet", "load_state"]

#: affinity maps, gains and offsets of the generator's norms, baked kernels
_MAPS = r"posi_map$|_layers\.\d+\.1\.(weight|bias)$|\.conv\.(weight|bias)$"


def load_state(model: nn.Module, state: StateDict, *, resize: bool = False) -> None:
    """Copy weights in our key names into a network, which may be built for another size of picture.

    Args:
        model: of this system.
        state: names as in its own `state_dict`.
        resize: resize affinity maps, the generator's gains and offsets, and baked kernels bilinearly where sizes
            differ. This is no published step, and kernels so made are to be trained further: a warning says so.

    Raises:
        CheckpointError: names or shapes differ, sizes of maps too unless ``resize`` is set.
    """
    own = model.state_dict()
    maps = [k for k in own if k in state and re.search(_MAPS, k) and own[k].dim() == state[k].dim() > 2]
    differ = [k for k in maps if own[k].shape != state[k].shape and own[k].shape[:-2] == state[k].shape[:-2]]
    if differ and resize:
        warnings.warn(f"{len(differ)} maps were resized to another size of picture: train further", stacklevel=2)
        state = dict(state)
        for name in differ:
            size = tuple(own[name].shape[-2:])
            flat = state[name].reshape(1, -1, *state[name].shape[-2:])
            grown = F.interpolate(flat, size, mode="bilinear", align_corners=False)
            state[name] = grown.reshape(own[name].shape)
    elif differ:
        was, now = state[differ[0]].shape, own[differ[0]].shape
        raise CheckpointError(
            f"{differ[0]} was made for maps of {was[-1]}x{was[-2]}, the network has {now[-1]}x{now[-2]}; resize=True "
            "makes them fit"
        )
    fit(model, state, "the state")


_NUMBERS = r"\.(TVConv_k|TVConv_k_square|stride|channels|c|h|w)$"  # sizes that the official layers keep as buffers


def _head(name: str) -> str:
    """The end of the network: norm, linear layer and norm."""
    name = re.sub(r"^output_layer\.layer1\.(0\.)?(?=\w+$)", "norm.", name)
    return re.sub(r"^output_layer\.layer2\.([01])\.", lambda m: f"head.{('linear', 'bn')[int(m[1])]}.", name)


def _layers(state: StateDict, prefix: str, of: str) -> dict[str, Any]:
    """What the depthwise layer named ``of`` tells of all: kind, generator, kernel."""
    if f"{of}.posi_map" in state:
        posi, first = state[f"{of}.posi_map"], state[f"{of}.weight_layers.0.0.weight"]
        count = sum(k.startswith(f"{of}.weight_layers.") and k.endswith(".0.weight") for k in state)
        last = state[f"{of}.weight_layers.{count}.weight"]
        options: dict[str, Any] = {
            "posi_chans": posi.shape[1],
            "inter_chans": first.shape[0],
            "inter_layers": count - 1,
        }
        options |= {"kernel": round((last.shape[0] / state[f"{prefix}.weight"].shape[0]) ** 0.5)}
        return options | {"bias": f"{of}.bias_layers.0.0.weight" in state}
    if f"{of}.weight_maps" in state:
        return {"deployed": True}
    return {"layer": "depthwise", "kernel": state[f"{of}.weight"].shape[-1]}


def _map_size(state: StateDict, of: str) -> int | None:
    """The side of the output of a layer, where it is built for one."""
    found = state.get(f"{of}.posi_map", state.get(f"{of}.weight_maps"))
    if found is None:
        return None
    if found.shape[-1] != found.shape[-2]:
        raise CheckpointError(f"{of} is for maps of {found.shape[-1]}x{found.shape[-2]}; networks here are for squares")
    return int(found.shape[-1])


def _baked(value: Tensor) -> Tensor:
    """Official deployed kernels (1, C, 3, 3, h, w) as ours, (9, C, h, w)."""
    return value[0].flatten(1, 2).transpose(0, 1).contiguous()


@recognise("tvconv", keys=("features.1.conv.*", "output_layer.layer2.1.running_mean"))
def from_official_mobilenet(state: StateDict) -> Recipe | None:
    """MobileNetV2 in the published layout: with generators, deployed, or with depthwise convolutions."""
    count = max(int(k.split(".")[1]) for k in state if k.startswith("features.")) - 1
    blocks: list[list[int]] = []
    rename: dict[str, str] = {}
    sides: list[int | None] = []
    for i in range(1, count + 1):
        path = f"features.{i}.conv"
        wide = f"{path}.3.weight" in state  # a block that begins with a 1x1 convolution has one part more
        at = int(wide)
        hidden, outputs = state[f"{path}.{at}.1.weight"].shape[0], state[f"{path}.{at + 1}.weight"].shape[0]
        sides.append(_map_size(state, f"{path}.{at}.0"))
        blocks.append([hidden, outputs, _stride(state, f"{path}.{at}.0", sides, i, count)])
        rename |= {
            f"{path}.{j}.{k}.": f"conv.{j}.{part}." for j in range(at + 1) for k, part in enumerate(("conv", "bn"))
        }
        rename |= {f"{path}.{at + 1}.": f"conv.{at + 1}.conv.", f"{path}.{at + 2}.": f"conv.{at + 1}.bn."}
    first = "features.1.conv.1" if "features.1.conv.3.weight" in state else "features.1.conv.0"
    options = _layers(state, f"{first}.1", f"{first}.0")
    options |= {"blocks": tuple(map(tuple, blocks)), "stem_width": state["features.0.0.weight"].shape[0]}
    options |= _common(state, "features.0.0.weight", (sides[0] or 0) * blocks[0][2])
    last = state[f"features.{count + 1}.0.weight"].shape[0]
    options |= {} if last == 512 else {"last": last}
    places = _places([b[2] for b in blocks])
    return named("tvconv_mobilenetv2", MOBILENETS, options, _mobilenet_state(state, rename, places, count))


def _stride(state: StateDict, layer: str, sides: Sequence[int | None], i: int, count: int) -> int:
    """Of the i-th block: as its buffer says, by the sizes of maps, or by the published table."""
    if f"{layer}.stride" in state:
        return int(state[f"{layer}.stride"])
    if sides[-1] is not None:
        return 1 if i == 1 or sides[-1] == sides[-2] else 2
    table = [stride if j == 0 else 1 for _, _, many, stride in TABLE for j in range(many)]
    if len(table) != count:
        raise CheckpointError(
            f"{count} blocks with depthwise convolutions: strides are known of the published 17 alone"
        )
    return table[i - 1]


def _places(strides: Sequence[int]) -> list[tuple[int, int]]:
    """(stage, number in it) of every block: a stage begins where the map shrinks."""
    found: list[tuple[int, int]] = []
    for i, stride in enumerate(strides):
        stage, number = found[-1] if found else (0, -1)
        found.append((stage + 1, 0) if stride > 1 and i else (stage, number + 1))
    return found


def _mobilenet_state(
    state: StateDict, rename: dict[str, str], places: Sequence[tuple[int, int]], count: int
) -> StateDict:
    stage, number = places[-1]
    rename = dict(rename)
    for part, kind in enumerate(("conv", "bn")):
        rename[f"features.0.{part}."] = f"stem.{kind}."
        rename[f"features.{count + 1}.{part}."] = f"stages.{stage}.{number + 1}.{kind}."
    ours = {}
    for name, value in state.items():
        if re.search(_NUMBERS, name):
            continue
        prefix = next((p for p in rename if name.startswith(p)), None)
        new = _head(name) if prefix is None else rename[prefix] + name.removeprefix(prefix)
        if new.startswith("conv."):
            stage, number = places[int(name.split(".")[1]) - 1]
            new = f"stages.{stage}.{number}.{new}"
        if new.endswith(".weight_maps"):
            new, value = new.replace("weight_maps", "weight"), _baked(value)
        ours[new] = value
    return ours


@recognise("tvconv", keys=("stage2.0.branch1.0.*", "stage2.0.branch2.3.*", "output_layer.layer2.1.running_mean"))
def from_official_shufflenet(state: StateDict) -> Recipe | None:
    """ShuffleNetV2 in the published layout: with generators, deployed, or with depthwise convolutions."""
    numbers = sorted({int(k[5]) for k in state if k.startswith("stage")})
    depths = [1 + max(int(k.split(".")[1]) for k in state if k.startswith(f"stage{i}.")) for i in numbers]
    widths = [2 * state[f"stage{i}.0.branch2.0.weight"].shape[0] for i in numbers]
    layer = "stage2.0.branch1.0"
    options = _layers(state, "stage2.0.branch1.1", layer)
    stem, last = state["conv1.0.weight"].shape[0], state["conv5.0.weight"].shape[0]
    options |= {"widths": (stem, *widths, last), "depths": tuple(depths)}
    options |= _common(state, "conv1.0.weight", 4 * (_map_size(state, layer) or 0))
    first, second = {"0": "0.conv", "1": "0.bn", "2": "1.conv", "3": "1.bn"}, {"0": "0.conv", "1": "0.bn"}
    parts = {"1": first, "2": {**second, "3": "1.conv", "4": "1.bn", "5": "2.conv", "6": "2.bn"}}
    ours = {}
    for name, value in state.items():
        if re.search(_NUMBERS, name):
            continue
        new = re.sub(r"^conv1\.([01])\.", lambda m: f"stem.0.{('conv', 'bn')[int(m[1])]}.", _head(name))
        new = re.sub(
            r"^conv5\.([01])\.",
            lambda m: f"stages.{len(depths) - 1}.{depths[-1]}.{('conv', 'bn')[int(m[1])]}.",
            new,
        )
        new = re.sub(
            r"^stage(\d)\.(\d+)\.branch([12])\.(\d)\.",
            lambda m: f"stages.{int(m[1]) - numbers[0]}.{m[2]}.branch{m[3]}.{parts[m[3]][m[4]]}.",
            new,
        )
        if new.endswith(".weight_maps"):
            new, value = new.replace("weight_maps", "weight"), _baked(value)
        ours[new] = value
    return named("tvconv_shufflenetv2", SHUFFLENETS, options, ours)


def _common(state: StateDict, first: str, side: int) -> dict[str, Any]:
    options: dict[str, Any] = {"in_chans": state[first].shape[1]}
    options["num_classes"] = state["output_layer.layer2.0.weight"].shape[0]
    if side:
        options["img_size"] = side
    if "output_layer.layer1.0.weight" in state:
        options["drop_rate"] = 0.0  # its rate leaves no trace
    return options
