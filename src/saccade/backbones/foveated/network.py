"""The four systems: a fixed stage that shows a picture as an eye might, and a trainable network behind it.

Deza and Konkle, "Emergent Properties of Foveated Perceptual Systems", arXiv:2006.07991, section 2.

    standardised (B,3,S,S) -- to [0,1] -- stage -- standardised -- ResNet (torchvision's layers and names) -- logits
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from saccade.backbones.foveated.stages import KINDS, SCALES, stage
from saccade.backbones.foveated.transform import FoveatedTexture
from saccade.backbones.foveated.windows import Painting, Windows, pooling_regions
from saccade.budget import check_budget
from saccade.checkpoint import Recipe, StateDict
from saccade.errors import UsageError
from saccade.nn.backbone import NamedStages, made
from saccade.nn.fuse import folded
from saccade.registry import recognise, register

__all__ = ["VARIANTS", "FoveatedNetwork"]


class FusedBlock(nn.Module):
    """torchvision's basic block for inference, its norms folded into the convolutions."""

    def __init__(self, block: BasicBlock) -> None:
        super().__init__()
        self.body = folded(nn.Sequential(block.conv1, block.bn1, nn.ReLU(), block.conv2, block.bn2))
        self.downsample = nn.Identity() if block.downsample is None else folded(nn.Sequential(*block.downsample))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.downsample(x))


def _layer(inputs: int, width: int, depth: int, stride: int) -> nn.Sequential:
    """``depth`` basic blocks, the first with a projection where the shape changes."""
    downsample = None
    if stride > 1 or inputs != width:
        downsample = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))
    first = BasicBlock(inputs, width, stride, downsample)
    return nn.Sequential(first, *(BasicBlock(width, width) for _ in range(depth - 1)))


class FoveatedNetwork(NamedStages):
    """A foveation stage and a residual network (torchvision's, any widths and depths) behind it.

    The stage has no parameters; the network's key names are torchvision's. Without a generator the noise of the texture
    is that of the seed, so that a picture always gives the same logits; give ``model.stage`` a generator to render
    training pictures once, as published.

    Args:
        kind: `KINDS`, or ``"none"`` for pictures that were rendered before.
        img_size: side of the pictures in pixels, a multiple of the block (8).
        scale, fixation: of the pooling windows.
        strength: of the blurs, see `stage`.
        block, painting, seed: of `FoveatedTexture`.
        widths, depths: channels and blocks of the four stages.
        small: a first convolution of 3x3 with stride 1, and no pooling behind it, for pictures of 32 or 64 px.
        options: ``num_classes``, ``in_chans``, ``drop_rate``, ``global_pool`` (`Backbone`).

    Shape: (B, 3, S, S), standardised -> (B, num_classes); maps at strides 4 to 32, or 1 to 8 where small.

    The dial: ``budget`` is the number of regions that describe the picture over that of scale 0.25; it clicks at the
    published scales. It changes what is kept, not the multiplications.

    Raises:
        UsageError: the numbers describe no network, or nothing but the fovea is left at this size.
    """

    classifier = "fc"
    conv1: nn.Module
    bn1: nn.Module
    centre: Tensor
    spread: Tensor

    def __init__(
        self,
        kind: str = "texture",
        img_size: int = 256,
        scale: float = 0.4,
        fixation: Sequence[float] = (0.5, 0.5),
        *,
        strength: float | None = None,
        block: int | None = None,
        painting: Painting = "strongest",
        seed: int = 0,
        widths: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (2, 2, 2, 2),
        small: bool = False,
        **options: Any,
    ) -> None:
        if len(widths) != len(depths) or not widths or min(*widths, *depths) < 1:
            raise UsageError(f"a stage has a width and a depth of at least 1: {tuple(widths)}, {tuple(depths)}")
        names = [f"layer{i + 1}" for i in range(len(widths))]
        first = 1 if small else 4
        built = img_size if kind in ("texture", "blur") else None  # the others take any size
        super().__init__(names, widths, [first << i for i in range(len(widths))], size=built, **options)
        self.kind, self.img_size, self.small = kind, img_size, small
        self.stage = self._made_stage(scale, fixation, strength, {"block": block, "painting": painting, "seed": seed})
        colours = self.in_chans == 3
        mean = self.mean if colours else (sum(self.mean) / 3,) * self.in_chans
        std = self.std if colours else (sum(self.std) / 3,) * self.in_chans
        for name, values in (("centre", mean), ("spread", std)):
            self.register_buffer(name, torch.tensor(values, device="cpu")[:, None, None], persistent=False)
        kernel, stride = (3, 1) if small else (7, 2)
        self.conv1 = nn.Conv2d(self.in_chans, widths[0], kernel, stride, kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        inputs = widths[0]
        for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            setattr(self, names[i], _layer(inputs, width, depth, 1 if i == 0 else 2))
            inputs = width
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.reset_classifier(self.num_classes)

    def _made_stage(
        self, scale: float, fixation: Sequence[float], strength: float | None, texture: dict[str, Any]
    ) -> nn.Module:
        if self.kind == "none":
            return nn.Identity()
        if len(fixation) != 2:
            raise UsageError(f"a fixation is (x, y), not {tuple(fixation)}")
        place, square = (float(fixation[0]), float(fixation[1])), (self.img_size, self.img_size)
        if self.kind != "texture":
            return stage(self.kind, square, scale, place, strength=strength)
        return stage("texture", square, scale, place, strength=strength, channels=self.in_chans, **texture)

    def opening(self, x: Tensor) -> Tensor:
        """The stage in [0, 1], the first convolution, and the pooling unless small."""
        if self.kind not in ("none", "reference"):
            picture = x * self.spread + self.centre
            # standardised pictures may leave [0, 1] a little, as random ones in a test do: no reason to refuse them
            picture = self.stage.paint(picture) if isinstance(self.stage, FoveatedTexture) else self.stage(picture)
            x = (picture - self.centre) / self.spread
        x = F.relu(self.bn1(self.conv1(x)))
        return x if self.small else F.max_pool2d(x, 3, 2, 1)

    def fuse(self) -> nn.Module:
        """The network without batch norms."""
        if isinstance(self.bn1, nn.Identity):
            return self
        whole = copy.deepcopy(self)
        whole.conv1, whole.bn1 = folded(nn.Sequential(whole.conv1, whole.bn1)), nn.Identity()
        for name in self.stage_names:
            setattr(whole, name, nn.Sequential(*map(FusedBlock, getattr(whole, name))))
        return whole

    # -- the dial

    def _counts(self) -> dict[float, int]:
        """Regions at each published scale that this size has windows for."""
        assert isinstance(self.stage, FoveatedTexture)
        own, counts = self.stage, {}
        for scale in SCALES:
            with suppress(UsageError):
                windows = Windows(own.size, scale, own.fixation)
                counts[scale] = len(pooling_regions(windows, own.stride, painting=own.painting))
        return counts

    def budgets(self) -> tuple[float, ...]:
        """Regions at the published scales over those of the finest."""
        if not isinstance(self.stage, FoveatedTexture):
            return (1.0,)
        counts = self._counts()
        return tuple(sorted({n / max(counts.values()) for n in counts.values()}))

    @property
    def budget(self) -> float:
        """Regions over those of the finest published scale; 1 for the other systems, which have no dial."""
        if not isinstance(self.stage, FoveatedTexture):
            return 1.0
        return min(1.0, len(self.stage.sizes) / max(self._counts().values()))

    @budget.setter
    def budget(self, value: float) -> None:
        value = check_budget(value)
        if not isinstance(self.stage, FoveatedTexture):
            return
        counts = self._counts()
        most = max(counts.values())
        fitting = [scale for scale, n in counts.items() if n / most <= value + 1e-9]
        self.stage.scale = max(fitting, key=counts.__getitem__) if fitting else min(counts, key=counts.__getitem__)


# ---------------------------------------------------------------------------------------------------------------------
# Registered models
# ---------------------------------------------------------------------------------------------------------------------
VARIANTS: dict[str, dict[str, Any]] = {f"foveated_{kind}_resnet18": {"kind": kind} for kind in KINDS}


@register(
    "foveated",
    system="foveated",
    task="classification",
    size=256,
    variants={
        "foveated_texture_resnet18": {
            "fixed_size": True,
            "side_option": "img_size",
            "about": "Foveation-Texture-Net: 11.7 M parameters, 2.4 G MACs at 256 px",
        },
        "foveated_reference_resnet18": "Reference-Net; with the lapped transform the pictures as they are",
        "foveated_uniform_resnet18": "Uniform-Net: one Gaussian, as similar to the picture as the texture is",
        "foveated_blur_resnet18": {
            "fixed_size": True,
            "side_option": "img_size",
            "about": "Foveation-Blur-Net: Gaussians that grow with eccentricity, as similar to the picture",
        },
    },
)
def foveated(variant: str = "", /, **options: Any) -> nn.Module:
    """Any foveated network; options as `FoveatedNetwork`."""
    return made(FoveatedNetwork, options, VARIANTS, variant)


@recognise("foveated", keys=("conv1.weight", "layer1.0.conv1.weight", "layer4.1.bn2.weight", "fc.weight"))
def from_official(state: StateDict) -> Recipe | None:
    """ResNet-18 of the published training: 20 classes, for pictures that were rendered before (``kind="none"``)."""
    if tuple(state["fc.weight"].shape) != (20, 512) or "layer1.0.conv3.weight" in state:
        return None
    return Recipe("foveated", {"kind": "none", "num_classes": 20}, dict(state))
