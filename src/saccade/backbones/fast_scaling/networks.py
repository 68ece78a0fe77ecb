"""The torch half: the network that an `Architecture` describes, the registered models and the published weights."""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from saccade.backbones.fast_scaling.architecture import BASES, Architecture, Block, regnet
from saccade.backbones.fast_scaling.counting import BlockShape, block_shapes
from saccade.backbones.fast_scaling.scaling import scale as scaled
from saccade.backbones.fast_scaling.solver import solve
from saccade.checkpoint import Recipe, StateDict
from saccade.cost import cost
from saccade.errors import CheckpointError, SaccadeError, UsageError
from saccade.nn.backbone import NamedStages, made
from saccade.nn.conv_norm import ConvNorm, SqueezeExcitation
from saccade.registry import recognise, register

__all__ = ["AnyNet", "seconds", "timm_regnet"]


class ResidualBlock(nn.Module):
    """1x1 to the inner width, k x k in groups, gates, 1x1 out, and a shortcut: all three block types of the family.

    ``bottleneck`` projects its shortcut where the shape changes and activates the sum; ``linear`` and ``mbconv`` have
    an identity shortcut where the shape stays and leave the sum as it is.
    """

    def __init__(self, shape: BlockShape, act: nn.Module, activate_sum: bool) -> None:
        super().__init__()
        self.identity = shape.identity
        self.conv1 = ConvNorm(shape.inputs, shape.inner, act=act) if shape.expand else nn.Identity()
        self.conv2 = ConvNorm(shape.inner, shape.inner, shape.kernel, shape.stride, groups=shape.groups, act=act)
        self.se = SqueezeExcitation(shape.inner, shape.squeeze, act) if shape.squeeze else nn.Identity()
        self.conv3 = ConvNorm(shape.inner, shape.outputs)
        self.downsample = ConvNorm(shape.inputs, shape.outputs, stride=shape.stride) if shape.projection else None
        self.act3 = act if activate_sum else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv3(self.se(self.conv2(self.conv1(x))))
        if self.downsample is not None:
            out = out + self.downsample(x)
        elif self.identity:
            out = out + x
        activated: Tensor = self.act3(out)
        return activated


class AnyNet(NamedStages):
    """The network that an `Architecture` describes: RegNet, AnyNet or EfficientNet, scaled or not.

    Names of parameters are those of timm's RegNet, so the states of both are interchangeable.

    Args:
        architecture: what to build.
        num_classes: instead of the architecture's ``classes``; 0 for no classifier.
        options: ``in_chans``, ``drop_rate``, ``global_pool`` (`Backbone`).

    Shape: (B, 3, H, W), RGB, standardised by `mean` and `std` -> (B, classes) logits; maps behind every stage. Any
    H, W >= 1 will do.
    """

    final = "final_conv"

    def __init__(self, architecture: Architecture, num_classes: int | None = None, **options: Any) -> None:
        net = self.architecture = architecture if not num_classes else replace(architecture, classes=num_classes)
        kernel, stride, pooled = {"simple": (3, 2, 1), "pool": (7, 2, 2), "cifar": (3, 1, 1)}[net.stem]
        strides = [stage.stride for stage in net.stages]
        super().__init__(
            [f"s{i + 1}" for i in range(len(net.stages))],
            [stage.width for stage in net.stages],
            [stride * pooled * math.prod(strides[: i + 1]) for i in range(len(strides))],
            num_classes=net.classes if num_classes is None else num_classes,
            least=1,
            **options,
        )
        act: nn.Module = nn.ReLU(inplace=True) if net.activation == "relu" else nn.SiLU(inplace=True)
        self.stem = ConvNorm(self.in_chans, net.stem_width, kernel, stride, act=act)
        self.pool = nn.MaxPool2d(3, 2, 1) if net.stem == "pool" else nn.Identity()
        for name, shapes in zip(self.stage_names, block_shapes(net), strict=True):
            stage = nn.Sequential()
            for j, shape in enumerate(shapes, 1):
                stage.add_module(f"b{j}", ResidualBlock(shape, act, activate_sum=net.block == "bottleneck"))
            self.add_module(name, stage)
        width = net.stages[-1].width
        self.num_features = self.head_hidden_size = net.head_width or width
        self.final_conv = ConvNorm(width, net.head_width, act=act) if net.head_width else nn.Identity()
        self.reset_parameters()
        self.reset_classifier(self.num_classes)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Convolutions normal with variance 2 / (k^2 * outputs), groups ignored."""
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                m.weight.normal_(0, (2 / (m.kernel_size[0] * m.kernel_size[1] * m.out_channels)) ** 0.5)
                if m.bias is not None:
                    m.bias.zero_()

    def make_head(self, num_classes: int) -> nn.Module:
        """A linear layer named ``fc``, normal of deviation 0.01."""
        linear = nn.Linear(self.num_features, num_classes)
        nn.init.normal_(linear.weight, std=0.01)
        nn.init.zeros_(linear.bias)
        return nn.Sequential(OrderedDict(fc=linear))

    def opening(self, x: Tensor) -> Tensor:
        """The stem, and its pool where there is one."""
        out: Tensor = self.pool(self.stem(x))
        return out

    def features(self, x: Tensor) -> list[Tensor]:
        """The outputs of the stem and of every stage, finest first."""
        return [self.opening(x), *self.maps(x)]


def timm_regnet(
    depth: int, w_0: int, w_a: float, w_m: float, group_width: int, *, block: Block = "bottleneck", **options: Any
) -> nn.Module:
    """timm's RegNet for the parameters that `regnet` takes; an `AnyNet`'s state loads into it as it is.

    Only un-scaled networks have such parameters. timm wants exactly four stages, and it activates before the pooling
    where a ``linear`` network has no head convolution; the official code does not, so that combination is refused.

    Raises:
        UsageError: the combination above, or not four stages.
    """
    from timm.models.regnet import RegNet, RegNetCfg

    expanded = regnet(depth, w_0, w_a, w_m, group_width, block=block, **options)
    linear = block == "linear"
    if block == "mbconv" or (linear and not expanded.head_width):
        raise UsageError(f"timm's RegNet has no {block} network with head width {expanded.head_width} as published")
    if len(expanded.stages) != 4:
        raise UsageError(f"timm's RegNet has 4 stages, these parameters make {len(expanded.stages)}")
    config = RegNetCfg(
        depth=depth,
        w0=w_0,
        wa=w_a,
        wm=w_m,
        group_size=group_width,
        bottle_ratio=float(options.get("bottleneck", 1.0)),
        se_ratio=expanded.se_ratio,
        stem_width=expanded.stem_width,
        downsample=None if linear else "conv1x1",
        linear_out=linear,
        num_features=expanded.head_width,
        act_layer=expanded.activation,
    )
    made: nn.Module = RegNet(config, num_classes=expanded.classes)
    return made


def seconds(
    net: Architecture,
    *,
    batch: int = 1,
    repeats: int = 7,
    threads: int | None = None,
    device: str | torch.device = "cpu",
) -> float:
    """Median time of one inference at the network's training size, in seconds, for `solve_measured`.

    Args:
        batch: pictures at once.
        repeats: timed runs.
        threads: of the processor; by default as many as torch uses now.
        device: where to run.
    """
    model = AnyNet(net).to(device).to(memory_format=torch.channels_last).eval()
    x = torch.zeros(batch, 3, net.train_size, net.train_size, device=device).to(memory_format=torch.channels_last)
    latency = cost(model, x, repeats=repeats, threads=threads).latency_s
    assert latency is not None  # a real device was given
    return latency


# ---------------------------------------------------------------------------------------------------------------------
# Registered models
# ---------------------------------------------------------------------------------------------------------------------
def _network(
    base: str,
    scale: float = 1,
    strategy: str = "fast",
    macs: float | None = None,
    classes: int = 1000,
    num_classes: int | None = None,
    **options: Any,
) -> AnyNet:
    net = BASES[base]
    if macs is not None:
        if scale != 1:
            raise UsageError("give a scale or a target of MACs, not both")
        net = solve(net, macs, strategy=strategy).architecture
    elif scale != 1:
        net = scaled(net, strategy, scale)
    return AnyNet(replace(net, classes=classes), num_classes, **options)


def _any(
    depths: Sequence[int],
    widths: Sequence[int],
    num_classes: int | None = None,
    in_chans: int = 3,
    drop_rate: float = 0.0,
    global_pool: str = "avg",
    **lists: Any,
) -> AnyNet:
    net = Architecture.from_lists(depths, widths, **lists)
    return AnyNet(net, num_classes, in_chans=in_chans, drop_rate=drop_rate, global_pool=global_pool)


@register("regnetx_200mf", system="fast_scaling", task="classification")
def regnetx_200mf(**options: Any) -> nn.Module:
    """RegNetX-200MF, scaled to ``scale`` times its MACs or to ``macs`` (counted with 1000 classes) by ``strategy``."""
    return made(_network, {"base": "regnetx_200mf", **options})


@register("regnetx_400mf", system="fast_scaling", task="classification")
def regnetx_400mf(**options: Any) -> nn.Module:
    """RegNetX-400MF, scaled as `regnetx_200mf`."""
    return made(_network, {"base": "regnetx_400mf", **options})


@register("regnety_400mf", system="fast_scaling", task="classification")
def regnety_400mf(**options: Any) -> nn.Module:
    """RegNetY-400MF, scaled as `regnetx_200mf`."""
    return made(_network, {"base": "regnety_400mf", **options})


@register("regnety_4gf", system="fast_scaling", task="classification")
def regnety_4gf(**options: Any) -> nn.Module:
    """RegNetY-4.0GF, scaled as `regnetx_200mf`."""
    return made(_network, {"base": "regnety_4gf", **options})


@register("regnetz_500mf", system="fast_scaling", task="classification")
def regnetz_500mf(**options: Any) -> nn.Module:
    """RegNetZ-500MF, scaled as `regnetx_200mf`."""
    return made(_network, {"base": "regnetz_500mf", **options})


@register("regnetz_4gf", system="fast_scaling", task="classification")
def regnetz_4gf(**options: Any) -> nn.Module:
    """RegNetZ-4GF, scaled as `regnetx_200mf`."""
    return made(_network, {"base": "regnetz_4gf", **options})


@register("efficientnet_b0", system="fast_scaling", task="classification")
def efficientnet_b0(**options: Any) -> nn.Module:
    """EfficientNet-B0, scaled as `regnetx_200mf`."""
    return made(_network, {"base": "efficientnet_b0", **options})


@register("anynet", system="fast_scaling", task="classification", timm=False)
def anynet(**options: Any) -> nn.Module:
    """Any network of the family from per-stage lists; options as `Architecture.from_lists`, and `AnyNet`'s."""
    return made(_any, options)


# ---------------------------------------------------------------------------------------------------------------------
# Published weights
# ---------------------------------------------------------------------------------------------------------------------
_OFFICIAL_BLOCK = re.compile(r"(s\d+\.b\d+\.)(?:f\.)?(a|b|c|exp|dwise|lin_proj)(_bn)?\.(.*)")
_INNER = {"a": "conv1", "exp": "conv1", "b": "conv2", "dwise": "conv2", "c": "conv3", "lin_proj": "conv3"}
_OFFICIAL_REST = (
    (re.compile(r"^(s\d+\.b\d+\.)(?:f\.)?se\.f_ex\.0\."), r"\1se.fc1."),
    (re.compile(r"^(s\d+\.b\d+\.)(?:f\.)?se\.f_ex\.2\."), r"\1se.fc2."),
    (re.compile(r"^(s\d+\.b\d+\.)proj\."), r"\1downsample.conv."),
    (re.compile(r"^(s\d+\.b\d+\.)bn\."), r"\1downsample.bn."),
    (re.compile(r"^head\.conv\."), "final_conv.conv."),
    (re.compile(r"^head\.(?:conv_)?bn\."), "final_conv.bn."),
)


def our_name(official: str) -> str:
    """Our (and timm's) name of an official parameter."""
    block = _OFFICIAL_BLOCK.fullmatch(official)
    if block:
        where, layer, norm, rest = block.groups()
        return f"{where}{_INNER[layer]}.{'bn' if norm else 'conv'}.{rest}"
    for pattern, replacement in _OFFICIAL_REST:
        official = pattern.sub(replacement, official)
    return official


def _blocks_of(state: StateDict, stage: int) -> list[str]:
    blocks: list[str] = []
    while f"s{stage}.b{len(blocks) + 1}.conv2.conv.weight" in state:
        blocks.append(f"s{stage}.b{len(blocks) + 1}.")
    return blocks


def describe(state: StateDict, mbconv: bool) -> Architecture:
    """The architecture behind a state in our key names.

    Strides leave no trace in weights, so the published ones are assumed: 2 in every stage of a RegNet; 1, 2, 2, 2 after
    a pooling stem; EfficientNet-B0's for seven MBConv stages, else 1, 2, 2, ... Activations neither: ReLU for
    bottlenecks that project their shortcut, SiLU for linear and MBConv blocks.

    Raises:
        CheckpointError: the shapes describe no network of the family.
    """
    depths: list[int] = []
    widths: list[int] = []
    bottlenecks: list[float] = []
    groups: list[int] = []
    kernels: list[int] = []
    squeezes: list[tuple[int, int]] = []
    stem_width, _, stem_kernel, _ = state["stem.conv.weight"].shape
    inputs = stem_width
    try:
        while blocks := _blocks_of(state, len(depths) + 1):
            inner_conv = state[f"{blocks[0]}conv2.conv.weight"]
            inner, width = inner_conv.shape[0], state[f"{blocks[0]}conv3.conv.weight"].shape[0]
            depths.append(len(blocks))
            widths.append(width)
            bottlenecks.append(inner / (inputs if mbconv else width))
            groups.append(inner_conv.shape[1])
            kernels.append(inner_conv.shape[2])
            for block in blocks:
                if f"{block}se.fc1.weight" in state:
                    squeezes.append((state[f"{block}se.fc1.weight"].shape[0], inputs))
                inputs = width
        strides = [2] * len(depths)
        if mbconv:
            strides = [1, 2, 2, 2, 1, 2, 1] if len(depths) == 7 else [1, *strides[1:]]
        elif stem_kernel == 7:
            strides[0] = 1
        projects = any(".downsample." in name for name in state)
        ratio = 0.0
        if squeezes:
            quarter = all(s in (int(i * 0.25), round(i * 0.25)) for s, i in squeezes)
            ratio = 0.25 if quarter else squeezes[-1][0] / squeezes[-1][1]
        return Architecture.from_lists(
            depths,
            widths,
            strides=strides,
            bottlenecks=bottlenecks,
            group_widths=1 if mbconv else groups,
            kernels=kernels,
            stem_width=stem_width,
            head_width=state["final_conv.conv.weight"].shape[0] if "final_conv.conv.weight" in state else 0,
            block="mbconv" if mbconv else "bottleneck" if projects else "linear",
            stem="pool" if stem_kernel == 7 else "simple",
            activation="relu" if projects and not mbconv else "silu",
            se_ratio=ratio,
            classes=state["head.fc.weight"].shape[0],
        )
    except (KeyError, ValueError, IndexError, SaccadeError) as error:
        raise CheckpointError(f"these weights look like an AnyNet, but they describe none: {error}") from error


def _recipe(state: StateDict, mbconv: bool) -> Recipe:
    net = describe(state, mbconv)
    for name, base in BASES.items():
        if replace(base, classes=net.classes) == net:
            return Recipe(name, {"classes": net.classes}, state)
    stages = net.stages
    options = {
        "depths": [s.depth for s in stages],
        "widths": [s.width for s in stages],
        "strides": [s.stride for s in stages],
        "bottlenecks": [s.bottleneck for s in stages],
        "group_widths": [s.group_width for s in stages],
        "kernels": [s.kernel for s in stages],
        **{
            name: getattr(net, name)
            for name in ("stem_width", "head_width", "block", "stem", "activation", "se_ratio", "classes")
        },
    }
    return Recipe("anynet", options, state)


def _from_official(state: StateDict, mbconv: bool) -> Recipe:
    ours = {our_name(name): value for name, value in state.items()}
    if len(ours) < len(state) or ours["stem.conv.weight"].dim() != 4:
        raise CheckpointError("these weights mix the key names of two networks of the pycls zoo")
    ours["stem.conv.weight"] = ours["stem.conv.weight"].flip(1)  # the official code feeds BGR pictures
    return _recipe(ours, mbconv)


@recognise("fast_scaling", keys=("stem.conv.weight", "s1.b1.f.a.weight", "s1.b1.f.c.weight", "head.fc.weight"))
def regnet_from_official(state: StateDict) -> Recipe | None:
    """RegNets, AnyNets and bottleneck ResNets of the pycls zoo. The stem's channels are turned from BGR to RGB."""
    return _from_official(state, mbconv=False)


@recognise("fast_scaling", keys=("stem.conv.weight", "s1.b1.dwise.weight", "s1.b1.lin_proj.weight", "head.fc.weight"))
def efficientnet_from_official(state: StateDict) -> Recipe | None:
    """EfficientNets of the pycls zoo. The stem's channels are turned from BGR to RGB."""
    return _from_official(state, mbconv=True)


@recognise(
    "fast_scaling", keys=("stem.conv.weight", "s1.b1.conv1.conv.weight", "s1.b1.conv3.conv.weight", "head.fc.weight")
)
def regnet_from_timm(state: StateDict) -> Recipe | None:
    """RegNets of timm's zoo, whose key names are ours."""
    linear = not any(".downsample." in name for name in state)
    if linear and "final_conv.conv.weight" not in state:
        raise CheckpointError(
            "a RegNetZ without head convolution: timm activates before its pooling and the official network does not, "
            "so these weights would be read wrongly; use timm for them"
        )
    return _recipe(state, mbconv=False)
