"""WaveMix: pixels mixed by a fixed wavelet transform, so that all learnt layers run at a quarter of the pixels.

Jeevan et al., "WaveMix: A Resource-efficient Neural Network for Image Analysis", arXiv:2205.14375.

    block:  r = conv1x1(x), D -> D/4 channels;  bands z_1, ..., z_L = Haar pyramid of r     (D channels each)
            u_L = FF_L(z_L);  u_j = FF_j(z_j | u_(j+1)) from coarse to fine;  x + u_1
    FF_j:   conv1x1 -- GELU -- dropout -- conv1x1 -- transposed conv 4x4, stride 2 -- batch norm

    classifier          picture -- stem -- blocks -- pool -- linear
    segmentation        picture -- two 3x3, stride 2 -- blocks -- two transposed convs -- 1x1      at the picture's size
    super-resolution    picture -- two 3x3 -- blocks -- transposed conv -- 1x1                    at twice the size

Blocks keep the map's size. Fused (`saccade.fuse`), a level's transform and the 1x1 convolution behind it are one 2x2
convolution of stride 2 on the low band of the level before: the same numbers, and no bands are stored. The classifier's
stem, which has nothing between its convolutions, runs the last two of them as one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.checkpoint import Recipe, StateDict
from saccade.errors import CheckpointError, InputError, UsageError
from saccade.nn.backbone import Backbone, made, named
from saccade.nn.fuse import affine_of, joined
from saccade.nn.pictures import check_picture
from saccade.ops.haar import pyramid
from saccade.registry import recognise, register

__all__ = ["WaveBlock", "WaveMix", "WaveMixSegmentation", "WaveMixSuperResolution"]

#: of a 2x2 block, what each band adds it up with: low, then the three high ones
HAAR = ((1, 1, 1, 1), (1, 1, -1, -1), (1, -1, 1, -1), (1, -1, -1, 1))


class FeedForward(nn.Sequential):
    """(B, inputs, h, w) -> (B, outputs, 2h, 2w), the learnt part of a level."""

    def __init__(self, inputs: int, inner: int, ff_width: int, outputs: int, dropout: float) -> None:
        super().__init__(
            nn.Conv2d(inputs, inner, 1),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Conv2d(inner, ff_width, 1),
            nn.ConvTranspose2d(ff_width, outputs, 4, stride=2, padding=1),
            nn.BatchNorm2d(outputs),
        )


class WaveBlock(nn.Module):
    """x + what its wavelet bands say (section 3.2).

    Args:
        width: channels D; divides by 4.
        level: levels of the transform, 1 to 4.
        mult: the inner width of the feed-forwards is ``mult * width``.
        ff_width: channels in front of the transposed convolutions.
        dropout: behind the GELU.

    Shape: (B, D, h, w), sides divisible by 2^level -> the same.
    """

    def __init__(self, width: int, level: int, mult: int, ff_width: int, dropout: float) -> None:
        super().__init__()
        self.level = level
        self.reduction = nn.Conv2d(width, width // 4, 1)
        self.mix = nn.ModuleList(
            FeedForward(
                width if j == level else width + width // 2,
                mult * width,
                ff_width,
                width if j == 1 else width // 2,
                dropout,
            )
            for j in range(1, level + 1)
        )

    def branch(self, x: Tensor) -> Tensor:
        """The block without its shortcut."""
        bands = pyramid(self.reduction(x), self.level)
        up: Tensor | None = None
        for (low, high), mix in zip(reversed(bands), reversed(self.mix), strict=True):
            seen = [low, high.flatten(1, 2)]  # channel by channel its three bands: 3D/4
            up = mix(torch.cat(seen if up is None else [*seen, up], 1))
        assert up is not None
        return up

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)

    def fuse(self) -> nn.Module:
        """Without bands and norms."""
        return FusedWaveBlock(self)


class FusedWaveBlock(nn.Module):
    """`WaveBlock` for inference: 2x2 convolutions of stride 2 in place of the transform, norms folded."""

    def __init__(self, trained: WaveBlock) -> None:
        super().__init__()
        self.reduction = trained.reduction
        channels = trained.reduction.out_channels
        parts = [_split(mix, channels) for mix in trained.mix if isinstance(mix, FeedForward)]
        self.analysis = nn.ModuleList(first for first, _, _ in parts)
        self.above = nn.ModuleList(second for _, second, _ in parts[:-1])
        self.tail = nn.ModuleList(tail for _, _, tail in parts)

    def forward(self, x: Tensor) -> Tensor:
        low, inner = self.reduction(x), []
        for j, layer in enumerate(self.analysis):
            inner.append(layer(low))
            if j + 1 < len(self.analysis):
                low = 2 * F.avg_pool2d(low, 2)
        up = self.tail[-1](F.gelu(inner[-1]))
        for before, above, tail in zip(inner[-2::-1], reversed(self.above), self.tail[-2::-1], strict=True):
            up = tail(F.gelu(before + above(up)))
        out: Tensor = x + up
        return out


@torch.no_grad()
def _split(mix: FeedForward, channels: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    """The first convolution, on the low band (of so many channels) of the level before; its part on what comes from the
    coarser level; the layers behind the GELU."""
    first, second, spread, norm = mix[0], mix[3], mix[4], mix[5]
    assert isinstance(first, nn.Conv2d)
    assert isinstance(second, nn.Conv2d)
    assert isinstance(spread, nn.ConvTranspose2d)
    gain, offset = affine_of(norm)
    weight = first.weight[:, :, 0, 0]
    bands = torch.stack([weight[:, :channels], *weight[:, channels : 4 * channels].unflatten(1, (-1, 3)).unbind(2)], 2)
    taps = torch.tensor(HAAR, dtype=weight.dtype, device=weight.device) / 2
    analysis = nn.Conv2d(channels, first.out_channels, 2, stride=2).to(weight)
    analysis.weight.copy_((bands @ taps).unflatten(2, (2, 2)))
    assert analysis.bias is not None
    assert first.bias is not None
    analysis.bias.copy_(first.bias)
    above: nn.Module = nn.Identity()
    if first.in_channels > 4 * channels:
        above = nn.Conv2d(first.in_channels - 4 * channels, first.out_channels, 1, bias=False).to(weight)
        above.weight.copy_(first.weight[:, 4 * channels :])
    up = nn.ConvTranspose2d(spread.in_channels, spread.out_channels, 4, stride=2, padding=1).to(weight)
    up.weight.copy_(spread.weight * gain[:, None, None])
    assert up.bias is not None
    assert spread.bias is not None
    up.bias.copy_(spread.bias * gain + offset)
    return analysis, above, nn.Sequential(second, up)


# ---------------------------------------------------------------------------------------------------------------------
# Networks
# ---------------------------------------------------------------------------------------------------------------------
def _check(width: int, depth: int, level: int, mult: int, ff_width: int, stride: int) -> None:
    if width < 4 or width % 4:
        raise UsageError(f"width is {width}, it must divide by 4: the transform makes four bands of a quarter each")
    if not isinstance(level, int) or not 1 <= level <= 4:
        raise UsageError(f"level is {level}: there are 1 to 4 levels of the transform")
    if min(depth, mult, ff_width, stride) < 1:
        raise UsageError(f"depth, mult, ff_width and stride are at least 1, not {depth}, {mult}, {ff_width}, {stride}")


def _blocks(width: int, depth: int, level: int, mult: int, ff_width: int, dropout: float) -> nn.Sequential:
    if not 0 <= dropout <= 1:
        raise UsageError(f"dropout lies in [0, 1], not {dropout}")
    return nn.Sequential(*(WaveBlock(width, level, mult, ff_width, dropout) for _ in range(depth)))


class PatchStem(nn.Sequential):
    """(B, 3, H, W) -> (B, width, H / p, W / p): two 3x3, one p x p of stride p, GELU, norm."""

    def __init__(self, in_chans: int, width: int, patch: int) -> None:
        super().__init__(
            nn.Conv2d(in_chans, width // 4, 3, 1, 1),
            nn.Conv2d(width // 4, width // 2, 3, 1, 1),
            nn.Conv2d(width // 2, width, patch, patch),
            nn.GELU(),
            nn.BatchNorm2d(width),
        )

    def fuse(self) -> nn.Module:
        """The second and the third convolution as one: their map of width / 2 channels at the picture's size, the
        largest of the network, is never there."""
        first, second, third, *rest = self
        assert isinstance(second, nn.Conv2d)
        assert isinstance(third, nn.Conv2d)
        return nn.Sequential(first, joined(second, third), *rest)


def _strided(in_chans: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_chans, width // 2, 3, stride, 1),
        nn.Conv2d(width // 2, width, 3, stride, 1),
    )


def _check_multiple(x: Tensor, multiple: int) -> None:
    height, width = x.shape[2:]
    if height % multiple or width % multiple:
        fitting = f"{-(-width // multiple) * multiple} x {-(-height // multiple) * multiple}"
        raise InputError(
            f"this WaveMix takes sides that are multiples of {multiple} px (its stem's stride times 2^level), not "
            f"{width} x {height}; the next larger size is {fitting}, and pad=True continues the picture to it"
        )


def _continued(x: Tensor, multiple: int) -> Tensor:
    """The picture with its last row and column repeated until its sides are multiples."""
    height, width = x.shape[2:]
    return F.pad(x, (0, -width % multiple, 0, -height % multiple), mode="replicate")


class WaveMix(Backbone):
    """WaveMix classifier.

    Args:
        width: channels D; divides by 4.
        depth: blocks.
        level: levels of the wavelet transform, 1 to 4.
        mult: inner width of the feed-forwards, in multiples of D.
        ff_width: channels in front of the transposed convolutions; None for D.
        dropout: in the blocks.
        stem: ``"patch"`` (two 3x3, one ``patch`` x ``patch`` of that stride, GELU, batch norm) or ``"strided"`` (two
            3x3 of stride ``stride``).
        patch, stride: of the stem.
        pad: continue pictures of other sizes by their last row and column. Ours: the official code fails on them.
        options: ``num_classes``, ``in_chans``, ``drop_rate``, ``global_pool`` (`Backbone`).

    Shape: (B, 3, H, W) -> (B, num_classes); one map, of the stem's stride s. Sides are multiples of s * 2^level.

    Raises:
        UsageError: the numbers describe no network.
    """

    def __init__(
        self,
        width: int = 192,
        depth: int = 16,
        level: int = 3,
        mult: int = 2,
        ff_width: int | None = None,
        dropout: float = 0.5,
        stem: str = "patch",
        patch: int = 4,
        stride: int = 2,
        pad: bool = False,
        **options: Any,
    ) -> None:
        ff_width = width if ff_width is None else ff_width
        _check(width, depth, level, mult, ff_width, min(patch, stride))
        if stem not in ("patch", "strided"):
            raise UsageError(f"stem is {stem!r}: 'patch' or 'strided'")
        reduction = patch if stem == "patch" else stride**2
        self.multiple = reduction << level
        super().__init__([width], [reduction], least=1 if pad else self.multiple, **options)
        self.width, self.depth, self.level, self.pad = width, depth, level, pad
        self.stem = _strided(self.in_chans, width, stride)
        if stem == "patch":
            self.stem = PatchStem(self.in_chans, width, patch)
        self.stages = nn.ModuleList([_blocks(width, depth, level, mult, ff_width, dropout)])
        self.reset_classifier(self.num_classes)

    def check(self, x: Tensor) -> None:
        """As `Backbone.check`, and sides that the transform does not divide."""
        super().check(x)
        if not (self.pad or torch.compiler.is_compiling()):
            _check_multiple(x, self.multiple)

    def maps(self, x: Tensor) -> Iterator[Tensor]:
        """The map behind the blocks, (B, D, H/s, W/s)."""
        self.check(x)
        yield from super().maps(_continued(x, self.multiple) if self.pad else x)


class WaveMixSegmentation(nn.Module):
    """WaveMix for semantic segmentation.

    The stem has stride 4, as the two transposed convolutions enlarge by 4. (The official code takes other strides, but
    gives maps of other sizes than the picture's then.)

    Args:
        width, depth, level, mult, ff_width, dropout, pad: as `WaveMix`.
        num_classes: channels of the result.

    Shape: (B, 3, H, W), standardised -> logits (B, num_classes, H, W). Sides are multiples of 4 * 2^level.

    Raises:
        UsageError: the numbers describe no network.
        InputError: what is no batch of pictures, or sides of other sizes.
    """

    def __init__(
        self,
        width: int = 256,
        depth: int = 16,
        level: int = 4,
        mult: int = 2,
        ff_width: int | None = None,
        dropout: float = 0.0,
        num_classes: int = 20,
        pad: bool = False,
    ) -> None:
        super().__init__()
        ff_width = width if ff_width is None else ff_width
        _check(width, depth, level, mult, ff_width, 2)
        if num_classes < 1:
            raise UsageError(f"num_classes is {num_classes}, it is at least 1")
        self.multiple, self.pad, self.num_classes = 4 << level, pad, num_classes
        self.stem = _strided(3, width, 2)
        self.blocks = _blocks(width, depth, level, mult, ff_width, dropout)
        self.expand = nn.Sequential(
            nn.ConvTranspose2d(width, width // 2, 4, stride=2, padding=1),
            nn.ConvTranspose2d(width // 2, width // 4, 4, stride=2, padding=1),
            nn.Conv2d(width // 4, num_classes, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            if x.ndim != 4 or x.shape[1] != 3 or not x.is_floating_point() or x.numel() == 0:
                raise InputError(f"WaveMix takes float pictures (B, 3, H, W), not {x.dtype} {tuple(x.shape)}")
            if not self.pad:
                _check_multiple(x, self.multiple)
        height, width = x.shape[2:]
        made: Tensor = self.expand(self.blocks(self.stem(_continued(x, self.multiple) if self.pad else x)))
        return made[..., :height, :width] if self.pad else made


class WaveMixSuperResolution(nn.Module):
    """WaveMix that enlarges by 2.

    Args:
        width, depth, level, mult, ff_width, dropout: as `WaveMix`.
        pad: continue pictures whose sides are no multiples of 2^level, and cut again. Ours: the official code fails.

    Shape: (B, 3, h, w) RGB in [0, 1] -> (B, 3, 2h, 2w), not clamped.

    Raises:
        UsageError: the numbers describe no network.
        InputError: in evaluation mode, what is no RGB picture in [0, 1]; without ``pad``, sides of other sizes.
    """

    colour, scale, in_channels = "rgb", 2, 3

    def __init__(
        self,
        width: int = 144,
        depth: int = 4,
        level: int = 1,
        mult: int = 2,
        ff_width: int | None = None,
        dropout: float = 0.0,
        pad: bool = True,
    ) -> None:
        super().__init__()
        ff_width = width if ff_width is None else ff_width
        _check(width, depth, level, mult, ff_width, 1)
        self.multiple, self.pad = 1 << level, pad
        self.stem = _strided(3, width, 1)
        self.blocks = _blocks(width, depth, level, mult, ff_width, dropout)
        self.expand = nn.Sequential(
            nn.ConvTranspose2d(width, width // 2, 4, stride=2, padding=1), nn.Conv2d(width // 2, 3, 1)
        )

    @property
    def halo(self) -> int:
        """Input pixels that an output pixel sees beyond its own place, where windows begin at even pixels."""
        return 2 + len(self.blocks) * reach(self.multiple.bit_length() - 1) + 1

    @property
    def kernels(self) -> float:
        """MACs per input pixel."""
        macs = 0.0
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                found = re.search(r"\.mix\.(\d)\.", name)
                pixels = 4.0 if name == "expand.1" else 0.25 ** (int(found[1]) + 1) if found else 1.0
                macs += layer.weight.numel() * pixels
        return macs

    def forward(self, picture: Tensor) -> Tensor:
        if not self.training:
            check_picture(picture, 3, "WaveMix")
        height, width = picture.shape[2:]
        if not self.pad and not torch.compiler.is_compiling():
            _check_multiple(picture, self.multiple)
        x = _continued(picture, self.multiple) if self.pad else picture
        made: Tensor = self.expand(self.blocks(self.stem(x)))
        return made[..., : 2 * height, : 2 * width] if self.pad else made


def reach(level: int) -> int:
    """How many pixels away a block of so many levels looks, at most."""
    farthest = 0
    for place in range(1 << level):  # within a block of the coarsest level; moving by one changes nothing
        first = last = place
        for _ in range(level):  # a transposed convolution reads two cells, a cell covers two of the finer level
            first, last = (first - 1) // 2, (last + 1) // 2
        farthest = max(farthest, place - (first << level), ((last + 1) << level) - 1 - place)
    return farthest


# ---------------------------------------------------------------------------------------------------------------------
# Registered models
# ---------------------------------------------------------------------------------------------------------------------
_CIFAR = {"mult": 2, "stem": "strided", "stride": 1}
VARIANTS: dict[str, dict[str, Any]] = {
    "wavemix_192_16": {"width": 192, "depth": 16, "level": 3, "mult": 2, "ff_width": 192, "stem": "patch", "patch": 4},
    "wavemix_cifar_320_8": {"width": 320, "depth": 8, "level": 1, "ff_width": 320, **_CIFAR},
    "wavemix_cifar_144_7": {"width": 144, "depth": 7, "level": 1, "ff_width": 144, **_CIFAR},
}


@register(
    "wavemix",
    system="wavemix",
    task="classification",
    variants={
        "wavemix_192_16": "WaveMix-192/16 of three levels, for ImageNet: 27.9 M parameters, 15.1 G MACs at 224 px",
        "wavemix_cifar_320_8": {
            "size": 32,
            "about": "WaveMix-320/8 of one level, for 32 px: 17.1 M parameters with ten classes, 4.9 G MACs",
        },
        "wavemix_cifar_144_7": {
            "size": 32,
            "about": "WaveMix-144/7 of one level, for 32 px: 3.0 M parameters with ten classes, 0.9 G MACs",
        },
    },
)
def wavemix(variant: str = "", /, **options: Any) -> nn.Module:
    """Any WaveMix classifier; options as `WaveMix`."""
    return made(WaveMix, options, VARIANTS, variant)


@register("wavemix_segmentation", system="wavemix", task="semantic segmentation")
def wavemix_segmentation(**options: Any) -> nn.Module:
    """WaveMix-256/16 of four levels, for Cityscapes: 63.2 M parameters; options as `WaveMixSegmentation`."""
    return WaveMixSegmentation(**options)


@register("wavemix_x2", system="wavemix", task="super-resolution", scales=(2,), colour="rgb", grid=2)
def wavemix_x2(scale: int = 2, **options: Any) -> nn.Module:
    """WaveMix-144/4 of one level: 1.9 M parameters; options as `WaveMixSuperResolution`."""
    if scale != 2:
        raise UsageError(f"this WaveMix enlarges by 2, not by {scale}")
    return WaveMixSuperResolution(**options)


# ---------------------------------------------------------------------------------------------------------------------
# Published weights
# ---------------------------------------------------------------------------------------------------------------------
def _renamed(state: StateDict, blocks: str) -> StateDict:
    """Our key names for the published ones."""
    rules = ((r"^conv\.", "stem."), (r"^layers\.", f"{blocks}."), (r"^pool\.2\.", "head."))
    made = {}
    for name, value in state.items():
        for pattern, to in rules:
            name = re.sub(pattern, to, name)
        made[re.sub(r"\.feedforward(\d?)\.", lambda m: f".mix.{int(m[1] or 1) - 1}.", name)] = value
    return made


def _describe(state: StateDict, blocks: str) -> dict[str, Any]:
    """Options that the blocks of a state in our key names tell."""
    try:
        found = [m for m in (re.match(rf"{re.escape(blocks)}\.(\d+)\.mix\.(\d)\.0\.weight$", k) for k in state) if m]
        first = f"{blocks}.0."
        width = state[f"{first}reduction.weight"].shape[1]
        inner, ff_width = (state[f"{first}mix.0.{i}.weight"].shape[0] for i in (0, 3))
        depth, level = (1 + max(int(m[i]) for m in found) for i in (1, 2))
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"these weights look like a WaveMix, but they describe none: {error}") from error
    if inner % width:
        raise CheckpointError(f"the inner width of this WaveMix, {inner}, is no multiple of its width, {width}")
    return {"width": width, "depth": depth, "level": level, "mult": inner // width, "ff_width": ff_width}


@recognise("wavemix", keys=("layers.0.reduction.weight", "layers.0.feedforward*.5.running_var", "pool.2.weight"))
def from_classifier(state: StateDict) -> Recipe | None:
    """Published classifiers.

    The stride of a stem of two 3x3 is not in a file. All published ones of one level (CIFAR-10, CIFAR-100, Tiny
    ImageNet) have 1, that of four levels (ImageNet) has 2.
    """
    ours = _renamed(state, "stages.0")
    options = _describe(ours, "stages.0")
    options |= {"in_chans": ours["stem.0.weight"].shape[1], "num_classes": ours["head.weight"].shape[0]}
    if "stem.2.weight" in ours:
        options |= {"stem": "patch", "patch": ours["stem.2.weight"].shape[-1]}
    else:
        options |= {"stem": "strided", "stride": 1 if options["level"] == 1 else 2}
    return named("wavemix", VARIANTS, options, ours)


@recognise("wavemix", keys=("layers.0.reduction.weight", "layers.0.feedforward*.5.running_var", "expand.1.weight"))
def from_dense(state: StateDict) -> Recipe | None:
    """Published networks for segmentation and super-resolution."""
    ours = _renamed(state, "blocks")
    options = _describe(ours, "blocks")
    if "expand.2.weight" not in ours:
        return Recipe("wavemix_x2", {"scale": 2, **options}, ours)
    return Recipe("wavemix_segmentation", {**options, "num_classes": ours["expand.2.weight"].shape[0]}, ours)
