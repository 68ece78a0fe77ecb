"""PCSR: super-resolution that decides for every output pixel whether a heavy or a light upsampler predicts it.

Jeong et al., "Accelerating Image Super-Resolution Networks with Pixel-Level Classification", ECCV 2024,
arXiv:2407.21448.

                                             +-- classifier --> margin > threshold?  (B,1,H,W)
    picture (B,3,h,w) -- encoder -- f (B,D,h,w) +-- heavy MLP on the pixels above   } scattered back, (B,3,H,W)
                                             +-- light MLP on the others          }
    picture -- bilinear (B,3,H,W) ------------------------------------------------(+)-- refine -- (B,3,H,W)

Encoder at the input's size, then one small MLP per output pixel. What the dials (`PCSR.budget`, `PCSR.k`, ...) move is
the share of pixels that the heavy MLP gets; the others really skip it.

`encoders` holds the three networks of the paper, `sampler` the MLPs and their exact fast form, `grid` the blocks of
output pixels, `routing` the decision, `network` the whole.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from saccade.checkpoint import Recipe, StateDict
from saccade.errors import CheckpointError
from saccade.registry import recognise, register
from saccade.restoration.pcsr.encoders import CARNM, FSRCNN, MSRResNet
from saccade.restoration.pcsr.export import OneSampler
from saccade.restoration.pcsr.network import PCSR, Report
from saccade.restoration.pcsr.sampler import Sampler

__all__ = ["CARNM", "FSRCNN", "PCSR", "MSRResNet", "OneSampler", "Report", "Sampler", "from_official"]

DIV2K_MEAN = (0.4488, 0.4371, 0.4040)  # what CARN's input is freed of


@register("pcsr_fsrcnn", system="pcsr", task="super-resolution", scales=(2, 3, 4), routed=True)
def pcsr_fsrcnn(
    scale: float = 4,
    heavy: Sequence[int] = (58, 58, 58, 58),
    light: Sequence[int] = (10, 10, 10),
    classifier: Sequence[int] = (),
    width: int = 48,
    shrink: int = 12,
    layers: int = 4,
) -> PCSR:
    """FSRCNN-PCSR: 24,502 parameters; a 32x32 input at x4 takes 456 MFLOPs all heavy, 45 all light."""
    return PCSR(FSRCNN(width, shrink, layers), heavy, light, classifier, scale)


@register("pcsr_small", system="pcsr", task="super-resolution", scales=(2, 3, 4), routed=True)
def pcsr_small(scale: float = 4) -> PCSR:
    """A third of FSRCNN-PCSR, 6,940 parameters: ours, for CPUs and for training in minutes."""
    return PCSR(FSRCNN(24, 8, 2), (32, 32, 32), (8, 8), (), scale)


@register("pcsr_carn", system="pcsr", task="super-resolution", scales=(2, 3, 4), routed=True)
def pcsr_carn(
    scale: float = 4,
    heavy: Sequence[int] = (74, 74, 74, 74),
    light: Sequence[int] = (20, 20, 20),
    classifier: Sequence[int] = (10, 10),
    width: int = 52,
    groups: int = 4,
    mean: Sequence[float] | None = DIV2K_MEAN,
) -> PCSR:
    """CARN-PCSR: 168,970 parameters; a 32x32 input at x4 takes 1,159 MFLOPs all heavy, 543 all light."""
    return PCSR(CARNM(width, groups), heavy, light, classifier, scale, mean)


@register("pcsr_srresnet", system="pcsr", task="super-resolution", scales=(2, 3, 4), routed=True)
def pcsr_srresnet(
    scale: float = 4,
    heavy: Sequence[int] = (170, 170, 170, 170),
    light: Sequence[int] = (40, 40, 40),
    classifier: Sequence[int] = (20, 20),
    width: int = 58,
    blocks: int = 16,
) -> PCSR:
    """SRResNet-PCSR: 1,078,390 parameters; a 32x32 input at x4 takes 5,190 MFLOPs all heavy, 2,177 all light."""
    return PCSR(MSRResNet(width, blocks), heavy, light, classifier, scale)


_SAMPLERS = {"heavy_sampler": "heavy", "light_sampler": "light", "classifier": "classifier"}
_SAMPLER_KEY = re.compile(r"(heavy_sampler|light_sampler|classifier)\.imnet\.layers\.(\d+)\.(weight|bias)$")


def _natural(key: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", key)]


def _samplers(state: StateDict) -> tuple[dict[str, Any], StateDict]:
    """Hidden widths and weights of the three samplers; in the published files every other layer is a ReLU."""
    renamed: StateDict = {}
    widths: dict[str, dict[int, int]] = {name: {} for name in _SAMPLERS.values()}
    for key, value in state.items():
        if found := _SAMPLER_KEY.match(key):
            name, layer = _SAMPLERS[found[1]], int(found[2]) // 2
            renamed[f"{name}.layers.{layer}.{found[3]}"] = value
            widths[name][layer] = value.shape[0]
    options = {name: [w for _, w in sorted(layers.items())][:-1] for name, layers in widths.items()}
    return options, renamed


def _fsrcnn(encoder: StateDict) -> tuple[dict[str, Any], StateDict]:
    mapping = sorted(
        int(k.split(".")[1]) for k, v in encoder.items() if re.match(r"body_conv\.\d+\.weight$", k) and v.ndim == 4
    )
    last = len(mapping)
    names = {
        "head_conv.0": "extract",
        "head_conv.1": "extract_slope",
        "body_conv.0.0": "shrink",
        "body_conv.0.1": "shrink_slope",
        **{f"body_conv.{i}": f"mapping.{i - 1}" for i in mapping},
        f"body_conv.{last + 1}": "mapping_slope",
        f"body_conv.{last + 2}.0": "expand",
        f"body_conv.{last + 2}.1": "expand_slope",
    }
    options = {
        "width": encoder["head_conv.0.weight"].shape[0],
        "shrink": encoder["body_conv.0.0.weight"].shape[0],
        "layers": last,
    }
    return options, _renamed(encoder, names)


def _carn(encoder: StateDict) -> tuple[dict[str, Any], StateDict]:
    names = {"entry": "entry"}
    for i in range(3):
        names[f"c{i + 1}.0"], names[f"c{i + 1}.1"] = f"body.fuse.{i}", f"body.norm.{i}"
        block = f"body.steps.{i}"
        for theirs, ours in (("0", "first"), ("2", "second"), ("4", "mix")):
            names[f"b{i + 1}.b1.body.{theirs}"] = f"{block}.steps.0.{ours}"
        for j in range(3):
            names[f"b{i + 1}.c{j + 1}.0"], names[f"b{i + 1}.c{j + 1}.1"] = f"{block}.fuse.{j}", f"{block}.norm.{j}"
    width = encoder["entry.weight"].shape[0]
    return {"width": width, "groups": width // encoder["b1.b1.body.0.weight"].shape[1]}, _renamed(encoder, names)


def _srresnet(encoder: StateDict) -> tuple[dict[str, Any], StateDict]:
    """The published names inside this encoder are not known to us: its convolutions are taken in natural order."""
    stems = sorted({k.rpartition(".")[0] for k in encoder}, key=_natural)
    entry = [s for s in stems if encoder[f"{s}.weight"].shape[1] == 3]
    inner = [s for s in stems if s not in entry]
    if len(entry) != 1 or not inner or len(inner) % 2:
        raise CheckpointError(
            "this PCSR checkpoint's encoder is no SRResNet: it needs one entry and pairs of convolutions"
        )
    names = {entry[0]: "entry", **{s: f"blocks.{i // 2}.{('first', 'second')[i % 2]}" for i, s in enumerate(inner)}}
    width = encoder[f"{entry[0]}.weight"].shape[0]
    return {"width": width, "blocks": len(inner) // 2}, _renamed(encoder, names)


def _renamed(encoder: StateDict, names: dict[str, str]) -> StateDict:
    """Keys with their stem translated; unknown ones keep their name, so that `load` reports them."""
    out: StateDict = {}
    for key, value in encoder.items():
        stem, _, leaf = key.rpartition(".")
        out[f"encoder.{names.get(stem, stem)}.{leaf}"] = value
    return out


@recognise("pcsr", keys=("heavy_sampler.imnet.layers.*.weight", "light_sampler.imnet.layers.*.weight", "encoder.*"))
def from_official(state: StateDict) -> Recipe | None:
    """Published key names -> (options, our key names); the encoder and every width are read from names and shapes.

    The published weights are for x4, which nothing in the tensors tells.
    """
    encoder = {k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")}
    try:
        if "head_conv.0.weight" in encoder:
            model, (options, own) = "pcsr_fsrcnn", _fsrcnn(encoder)
        elif "b1.b1.body.0.weight" in encoder:
            model, (options, own) = "pcsr_carn", _carn(encoder)
        else:
            model, (options, own) = "pcsr_srresnet", _srresnet(encoder)
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError(f"this PCSR checkpoint lacks {error} in its encoder") from error
    widths, samplers = _samplers(state)
    return Recipe(model, {"scale": 4, **widths, **options}, {**own, **samplers})
