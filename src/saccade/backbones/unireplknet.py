"""UniRepLKNet: 13 x 13 depthwise convolutions, trained with dilated branches beside them and merged for inference.

Ding et al., "UniRepLKNet: A Universal Perception Large-Kernel ConvNet", CVPR 2024, arXiv:2311.15599.

    picture -- two 3x3, stride 2 -- stage 1 (4) -- 3x3, stride 2 -- stage 2 (8) -- ... 3 (16) -- ... 4 (32) -- head

    block:   x + scale * norm(project(GRN(GELU(expand(gate(norm(mixer(x))))))))
    mixer:   norm(depthwise K x K) + sum over branches j of norm(depthwise k_j x k_j with dilation r_j)   (section 3.2)

A dilated kernel is a dense one with zeros between its taps, and no branch reaches beyond K x K: after training they all
add up to one kernel, and the norms, the scale and GRN's bias go into the weights beside them (`saccade.fuse`, or
`UniRepLKNet.reparameterize`). What remains: depthwise, gate, linear, GELU, GRN without bias, linear.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.checkpoint import Recipe, StateDict
from saccade.errors import CheckpointError, UsageError
from saccade.nn.backbone import Backbone, check_stages, made, named
from saccade.nn.channel_norm import ChannelNorm
from saccade.nn.conv_norm import SqueezeExcitation
from saccade.nn.drop_path import drop_path, rising
from saccade.nn.fuse import affine_of
from saccade.ops.large_depthwise import LargeDepthwise
from saccade.registry import recognise, register

__all__ = ["BRANCHES", "Block", "DilatedReparam", "GlobalResponseNorm", "UniRepLKNet", "dense_kernel"]

#: (taps a side, dilation) of the branches beside a kernel of so many taps (section 3.2 and the published code)
BRANCHES: dict[int, tuple[tuple[int, int], ...]] = {
    17: ((5, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
    15: ((5, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
    13: ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    11: ((5, 1), (5, 2), (3, 3), (3, 4), (3, 5)),
    9: ((5, 1), (5, 2), (3, 3), (3, 4)),
    7: ((5, 1), (3, 2), (3, 3)),
    5: ((3, 1), (3, 2)),
}
PLAIN = (3, 5)  # kernels that stand alone in a block; 0 is none


def dense_kernel(weight: Tensor, dilation: int, kernel: int) -> Tensor:
    """The ``kernel`` x ``kernel`` weights that do undilated what ``weight`` (C, 1, k, k) does with its dilation.

    Raises:
        UsageError: it reaches further.
    """
    reach, side = dilation * (weight.shape[-1] - 1) + 1, weight.shape[-1]
    if reach > kernel or (kernel - reach) % 2:
        raise UsageError(f"{side} taps with dilation {dilation} span {reach} pixels, which is not within {kernel}")
    first = (kernel - reach) // 2
    dense = weight.new_zeros(*weight.shape[:2], kernel, kernel)
    dense[..., first : first + reach : dilation, first : first + reach : dilation] = weight
    return dense


class Branch(nn.Module):
    """A depthwise convolution without bias and its batch norm."""

    def __init__(self, width: int, kernel: int, dilation: int = 1) -> None:
        super().__init__()
        self.conv = LargeDepthwise(width, kernel, dilation=dilation, bias=False)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn(self.conv(x))
        return out


class DilatedReparam(nn.Module):
    """A large depthwise kernel with its dilated branches; one depthwise convolution when fused (section 3.2).

    Args:
        width: channels.
        kernel: taps a side, one of `BRANCHES`.

    Shape: (B, C, H, W) -> (B, C, H, W).

    Raises:
        UsageError: there are no branches for this kernel.
    """

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        if kernel not in BRANCHES:
            raise UsageError(f"there are branches for kernels of {', '.join(map(str, BRANCHES))} taps, not {kernel}")
        self.large = Branch(width, kernel)
        self.dilated = nn.ModuleDict({f"k{k}_{r}": Branch(width, k, r) for k, r in BRANCHES[kernel]})

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.large(x)
        for branch in self.dilated.values():
            out = out + branch(x)
        return out

    @torch.no_grad()
    def fuse(self) -> LargeDepthwise:
        """One convolution with bias.

        Raises:
            UsageError: in training mode.
        """
        _at_rest(self)
        like = self.large.conv.weight
        merged = LargeDepthwise(like.shape[0], like.shape[-1]).to(like)
        assert merged.bias is not None
        nn.init.zeros_(merged.weight)
        nn.init.zeros_(merged.bias)
        for branch in (self.large, *self.dilated.values()):
            assert isinstance(branch, Branch)
            gain, offset = affine_of(branch.bn)
            dense = dense_kernel(branch.conv.weight, branch.conv.dilation[0], like.shape[-1])
            merged.weight.add_(dense * gain[:, None, None, None])
            merged.bias.add_(offset)
        return merged


class GlobalResponseNorm(nn.Module):
    """x (1 + gain n) + bias, n the norm of a channel over the picture beside the channels' mean one.

    Woo et al., "ConvNeXt V2", arXiv:2301.00808, equations 1 to 3; here ``bias`` can be left out.

    Shape: (B, H, W, C) -> (B, H, W, C).
    """

    def __init__(self, width: int, bias: bool = True) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(width))
        self.beta = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        size = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
        gain = 1 + self.gamma * (size / (size.mean(-1, keepdim=True) + 1e-6))
        return x * gain if self.beta is None else x * gain + self.beta


class Block(nn.Module):
    """Depthwise mixer, gate, and a pointwise network with global response norm (figure 2).

    Args:
        width: channels.
        kernel: taps a side of the mixer: 0 for none, 3 or 5 for one plain convolution, else with branches.
        layer_scale: start of the numbers that the branch is multiplied by; 0 for none.
        rate: of stochastic depth.
        deploy: the merged form.

    Shape: (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(
        self, width: int, kernel: int, layer_scale: float = 1e-6, rate: float = 0.0, deploy: bool = False
    ) -> None:
        super().__init__()
        self.deploy, self.kernel = deploy, kernel
        self.mixer = _mixer(width, kernel, deploy)
        self.norm = nn.Identity() if deploy or not kernel else nn.BatchNorm2d(width)
        self.se = SqueezeExcitation(width, width // 4)
        self.expand = nn.Linear(width, 4 * width)
        self.grn = GlobalResponseNorm(4 * width, bias=not deploy)
        self.project = nn.Linear(4 * width, width, bias=deploy)
        self.project_norm = nn.Identity() if deploy else nn.BatchNorm2d(width)
        scaled = layer_scale > 0 and not deploy
        self.scale = nn.Parameter(torch.full((width,), layer_scale)) if scaled else None
        self.drop_path = drop_path(rate)

    def forward(self, x: Tensor) -> Tensor:
        y = self.se(self.norm(self.mixer(x))).permute(0, 2, 3, 1)  # (B, H, W, C)
        y = self.project(self.grn(F.gelu(self.expand(y)))).permute(0, 3, 1, 2)
        y = self.project_norm(y)
        if self.scale is not None:
            y = y * self.scale[:, None, None]
        out: Tensor = x + self.drop_path(y)
        return out

    @torch.no_grad()
    def fuse(self) -> nn.Module:
        """The merged form, or this very block where it is merged.

        GRN's bias passes the linear layer behind it: W (u + beta) = W u + W beta. (Its gain depends on the picture.)

        Raises:
            UsageError: in training mode.
        """
        if self.deploy:
            return self
        _at_rest(self)
        merged = Block(self.expand.in_features, self.kernel, deploy=True).to(self.expand.weight).eval()
        _merge_mixer(self, merged)
        for name in ("se", "expand"):
            getattr(merged, name).load_state_dict(getattr(self, name).state_dict())
        merged.grn.gamma.copy_(self.grn.gamma)
        assert self.grn.beta is not None
        gain, offset = affine_of(self.project_norm)
        scale = torch.ones_like(gain) if self.scale is None else self.scale
        merged.project.weight.copy_(self.project.weight * (gain * scale)[:, None])
        merged.project.bias.copy_((gain * (self.project.weight @ self.grn.beta) + offset) * scale)
        return merged


def _mixer(width: int, kernel: int, deploy: bool) -> nn.Module:
    if kernel == 0:
        return nn.Identity()
    if deploy or kernel in PLAIN:
        return LargeDepthwise(width, kernel, bias=deploy)
    return DilatedReparam(width, kernel)


def _merge_mixer(block: Block, merged: Block) -> None:
    """Branches into one kernel, and the norm behind them into that."""
    if not block.kernel:
        return
    mixer = block.mixer.fuse() if isinstance(block.mixer, DilatedReparam) else block.mixer
    assert isinstance(mixer, LargeDepthwise)
    assert isinstance(merged.mixer, LargeDepthwise)
    assert merged.mixer.bias is not None
    gain, offset = affine_of(block.norm)
    merged.mixer.weight.copy_(mixer.weight * gain[:, None, None, None])
    merged.mixer.bias.copy_(offset if mixer.bias is None else mixer.bias * gain + offset)


def _at_rest(module: nn.Module) -> None:
    if module.training:
        raise UsageError("merging freezes running statistics: call model.eval() first")


class UniRepLKNet(Backbone):
    """Large-kernel network (table 1).

    Args:
        widths: channels of the four stages.
        depths: blocks of each.
        kernels: taps a side of each block of each stage; None for the published ones, where depths are published.
        layer_scale: start of the blocks' scales; 0 for none. (1e-6 starts slowly: short trainings want 1e-2.)
        drop_path_rate: of the last block; it rises linearly from 0.
        deploy: the merged form, for weights that are merged.
        map_norms: a layer norm on every map, as published detectors have them.
        head_init_scale: the classifier's start is multiplied by it.
        options: ``num_classes``, ``in_chans``, ``drop_rate``, ``global_pool`` (`Backbone`).

    Shape: (B, 3, H, W) -> (B, num_classes); maps at strides 4, 8, 16, 32. Sides of at least 32 pixels.

    Raises:
        UsageError: the numbers describe no network.
    """

    def __init__(
        self,
        widths: Sequence[int] = (40, 80, 160, 320),
        depths: Sequence[int] = (2, 2, 6, 2),
        kernels: Sequence[Sequence[int]] | None = None,
        layer_scale: float = 1e-6,
        drop_path_rate: float = 0.0,
        deploy: bool = False,
        map_norms: bool = False,
        head_init_scale: float = 1.0,
        **options: Any,
    ) -> None:
        check_stages(widths=widths, depths=depths)
        if min(widths) < 4 or widths[0] % 2:
            raise UsageError(f"widths are at least 4 and the first is even, not {tuple(widths)}")
        self_kernels = _checked(kernels, tuple(depths))
        super().__init__(widths, (4, 8, 16, 32), **options)
        self.widths, self.depths, self.kernels = tuple(widths), tuple(depths), self_kernels
        self.head_init_scale = head_init_scale
        rates = rising(drop_path_rate, depths)
        self.stem = nn.Sequential(
            *_halved(self.in_chans, widths[0] // 2), nn.GELU(), *_halved(widths[0] // 2, widths[0])
        )
        stages: list[nn.Module] = []
        for i, width in enumerate(widths):
            layers = _halved(widths[i - 1], width) if i else []
            layers += [Block(width, k, layer_scale, rates.pop(0), deploy) for k in self_kernels[i]]
            stages.append(nn.Sequential(*layers))
        self.stages = nn.ModuleList(stages)
        self.norms: nn.ModuleList | None = nn.ModuleList(map(ChannelNorm, widths)) if map_norms else None
        self.head_norm = nn.LayerNorm(self.num_features, eps=1e-6)
        self.apply(_initialise)
        self.reset_classifier(self.num_classes)

    @property
    def deploy(self) -> bool:
        """Whether it is in the merged form."""
        return all(m.deploy for m in self.modules() if isinstance(m, Block))

    def maps(self, x: Tensor) -> Iterator[Tensor]:
        """As `Backbone.maps`; with ``map_norms`` each is normalised where it leaves, and not where it goes on."""
        if self.norms is None:
            yield from super().maps(x)
            return
        for norm, found in zip(self.norms, super().maps(x), strict=False):
            yield norm(found)

    @torch.no_grad()
    def make_head(self, num_classes: int) -> nn.Module:
        """The classifier, its start scaled by ``head_init_scale``."""
        head = super().make_head(num_classes)
        assert isinstance(head, nn.Linear)
        head.weight.mul_(self.head_init_scale)
        return head

    def reparameterize(self) -> UniRepLKNet:
        """Merge every block, here; returns self. `saccade.save` then writes a file of the merged form.

        Raises:
            UsageError: in training mode, or it is merged.
        """
        if self.deploy:
            raise UsageError("this UniRepLKNet is merged already")
        return self.fuse()

    def fuse(self) -> UniRepLKNet:
        """As `reparameterize`, but a merged network stays as it is; `saccade.fuse` does it to a copy."""
        for stage in self.stages:
            assert isinstance(stage, nn.Sequential)
            for i, layer in enumerate(stage):
                if isinstance(layer, Block):
                    stage[i] = layer.fuse()
        made_with = getattr(self, "saccade_options", None)
        if isinstance(made_with, dict):  # what `saccade.save` writes into the file
            object.__setattr__(self, "saccade_options", {**made_with, "deploy": True})
        return self

    def refuse_state(self, state: Mapping[str, Any]) -> None:
        """Refuse weights of the other form before names are compared (`saccade.checkpoint.fit` asks).

        Raises:
            CheckpointError: what to do instead.
        """
        merged = _is_merged(state)
        if merged is not None and merged != self.deploy:
            raise CheckpointError(
                "these weights are merged: load them into a network made with deploy=True"
                if merged
                else "these weights are in branch form: load them into a network made with deploy=False, "
                "then call reparameterize()"
            )

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **options: Any) -> Any:
        """As ``nn.Module``'s.

        Raises:
            CheckpointError: weights of the other form; the message says what to do.
        """
        self.refuse_state(state_dict)
        return super().load_state_dict(state_dict, *args, **options)

    def no_weight_decay(self) -> set[str]:
        """The blocks' scales."""
        return {name for name, _ in self.named_parameters() if name.endswith(".scale")}


def _is_merged(state: Mapping[str, Any]) -> bool | None:
    """By the projections, which have biases in the merged form alone; None where there are none."""
    if not any(k.endswith(".project.weight") for k in state):
        return None
    return any(k.endswith(".project.bias") for k in state)


def _halved(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, 2, 1), ChannelNorm(outputs)]


def _checked(kernels: Sequence[Sequence[int]] | None, depths: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    if kernels is None:
        if depths not in _PUBLISHED:
            raise UsageError(f"there are no published kernels for depths {depths}: give kernels, one for each block")
        return _PUBLISHED[depths]
    if any(isinstance(stage, int) for stage in kernels):
        raise UsageError(f"kernels are a list for each stage, one number a block, not {tuple(kernels)}")
    found = tuple(tuple(stage) for stage in kernels)
    if tuple(map(len, found)) != depths:
        raise UsageError(f"kernels for {tuple(map(len, found))} blocks do not go with depths {depths}")
    allowed = (0, *PLAIN, *sorted(k for k in BRANCHES if k not in PLAIN))
    for stage in found:
        for kernel in stage:
            if kernel not in allowed:
                raise UsageError(f"a kernel has {', '.join(map(str, allowed))} taps a side, not {kernel}")
    return found


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


# ---------------------------------------------------------------------------------------------------------------------
# Registered models
# ---------------------------------------------------------------------------------------------------------------------
_PUBLISHED: dict[tuple[int, ...], tuple[tuple[int, ...], ...]] = {
    (2, 2, 6, 2): ((3,) * 2, (13,) * 2, (13,) * 6, (13,) * 2),
    (2, 2, 8, 2): ((3,) * 2, (13,) * 2, (13,) * 8, (13,) * 2),
    (3, 3, 18, 3): ((3,) * 3, (13,) * 3, (13, 3) * 9, (13,) * 3),
    (3, 3, 27, 3): ((3,) * 3, (13,) * 3, (13, 3, 3) * 9, (13,) * 3),
}


def _variant(width: int, depths: tuple[int, ...]) -> dict[str, Any]:
    return {"widths": tuple(width << i for i in range(4)), "depths": depths, "kernels": _PUBLISHED[depths]}


VARIANTS: dict[str, dict[str, Any]] = {
    "unireplknet_a": _variant(40, (2, 2, 6, 2)),
    "unireplknet_f": _variant(48, (2, 2, 6, 2)),
    "unireplknet_p": _variant(64, (2, 2, 6, 2)),
    "unireplknet_n": _variant(80, (2, 2, 8, 2)),
    "unireplknet_t": _variant(80, (3, 3, 18, 3)),
    "unireplknet_s": _variant(96, (3, 3, 27, 3)),
    "unireplknet_b": _variant(128, (3, 3, 27, 3)),
    "unireplknet_l": _variant(192, (3, 3, 27, 3)),
    "unireplknet_xl": _variant(256, (3, 3, 27, 3)),
}


@register(
    "unireplknet",
    system="unireplknet",
    task="classification",
    variants={
        "unireplknet_a": "UniRepLKNet-A: 4.4 M parameters and 0.64 G MACs at 224 px when merged",
        "unireplknet_f": "UniRepLKNet-F: 6.2 M parameters and 0.91 G MACs at 224 px when merged",
        "unireplknet_p": "UniRepLKNet-P: 10.7 M parameters and 1.6 G MACs at 224 px when merged",
        "unireplknet_n": "UniRepLKNet-N: 18.3 M parameters and 2.8 G MACs at 224 px when merged",
        "unireplknet_t": "UniRepLKNet-T: 31.0 M parameters and 4.9 G MACs at 224 px when merged",
        "unireplknet_s": "UniRepLKNet-S: 55.7 M parameters and 9.1 G MACs at 224 px when merged",
        "unireplknet_b": {
            "size": 384,
            "about": "UniRepLKNet-B: 98.0 M parameters and 47.2 G MACs at 384 px when merged",
        },
        "unireplknet_l": {"size": 384, "about": "UniRepLKNet-L: 218 M parameters and 105 G MACs at 384 px when merged"},
        "unireplknet_xl": {
            "size": 384,
            "about": "UniRepLKNet-XL: 386 M parameters and 187 G MACs at 384 px when merged",
        },
    },
)
def unireplknet(variant: str = "", /, **options: Any) -> nn.Module:
    """Any UniRepLKNet; options as `UniRepLKNet`."""
    return made(UniRepLKNet, options, VARIANTS, variant)


# ---------------------------------------------------------------------------------------------------------------------
# Published weights
# ---------------------------------------------------------------------------------------------------------------------
_RULES: tuple[tuple[str, Any], ...] = (
    (r"^downsample_layers\.0\.", "stem."),
    (r"^downsample_layers\.", "stages."),
    (r"\.dwconv\.origin_bn\.", ".mixer.large.bn."),
    (r"\.dwconv\.dil_conv_(k\d+_\d+)\.", r".mixer.dilated.\1.conv."),
    (r"\.dwconv\.dil_bn_(k\d+_\d+)\.", r".mixer.dilated.\1.bn."),
    (r"\.dwconv\.(weight|bias)$", r".mixer.\1"),
    (r"\.se\.down\.", ".se.fc1."),
    (r"\.se\.up\.", ".se.fc2."),
    (r"\.pwconv1\.1\.", ".expand."),
    (r"\.pwconv2\.0\.", ".project."),
    (r"\.pwconv2\.2\.", ".project_norm."),
    (r"^(stages\.\d+\.\d+)\.gamma$", r"\1.scale"),
    (r"\.act\.1\.", ".grn."),
    (r"^norm\.", "head_norm."),
    (r"^norm(\d)\.", r"norms.\1."),
)


def _renamed(state: StateDict, deploy: bool) -> StateDict:
    """Our names; a stage begins with its down-sampling, two layers, and GRN's numbers are vectors."""
    large = (r"\.dwconv\.lk_origin\.", ".mixer." if deploy else ".mixer.large.conv.")
    ours = {}
    for name, value in state.items():
        block = re.match(r"stages\.([123])\.(\d+)\.(.*)", name)
        to = f"stages.{block[1]}.{int(block[2]) + 2}.{block[3]}" if block else name
        for pattern, by in (large, *_RULES):
            to = re.sub(pattern, by, to)
        ours[to] = value.flatten() if ".grn." in to else value
    return ours


@recognise(
    "unireplknet", keys=("downsample_layers.0.4.weight", "stages.0.0.pwconv1.1.weight", "stages.0.0.act.1.gamma")
)
def from_official(state: StateDict) -> Recipe | None:
    """Checkpoints of the published code, in branch form or merged; those of detectors bring norms and no head."""
    deploy = "stages.0.0.pwconv2.0.bias" in state
    try:
        depths = tuple(_count(state, i) for i in range(4))
        options: dict[str, Any] = {
            "widths": tuple(state[f"stages.{i}.0.pwconv1.1.weight"].shape[1] for i in range(4)),
            "depths": depths,
            "kernels": tuple(tuple(_kernel(state, f"stages.{i}.{j}") for j in range(n)) for i, n in enumerate(depths)),
            "in_chans": state["downsample_layers.0.0.weight"].shape[1],
            "num_classes": state["head.weight"].shape[0] if "head.weight" in state else 0,
        }
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"these weights look like a UniRepLKNet, but they describe none: {error}") from error
    if deploy:
        options["deploy"] = True
    elif "stages.0.0.gamma" not in state:
        options["layer_scale"] = 0.0
    if "norm0.weight" in state:
        options["map_norms"] = True
    return named("unireplknet", VARIANTS, options, _completed(_renamed(state, deploy)))


def _count(state: StateDict, stage: int) -> int:
    return 1 + max(int(k.split(".")[2]) for k in state if k.startswith(f"stages.{stage}."))


def _kernel(state: StateDict, block: str) -> int:
    for name in (f"{block}.dwconv.lk_origin.weight", f"{block}.dwconv.weight"):
        if name in state:
            return int(state[name].shape[-1])
    return 0


def _completed(ours: StateDict) -> StateDict:
    """Files of detectors have no norm before a classifier; a fresh one changes no map."""
    if "head_norm.weight" not in ours:
        width = next(value for name, value in ours.items() if name == "norms.3.weight")
        ours |= {"head_norm.weight": torch.ones_like(width), "head_norm.bias": torch.zeros_like(width)}
    return ours
