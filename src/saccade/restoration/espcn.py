"""ESPCN: super-resolution that spends nothing in high resolution.

Shi et al., "Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel Convolutional Neural
Network", CVPR 2016, arXiv:1609.05158.

    luma (B,1,h,w) -- 5x5 conv, 64 -- tanh -- 3x3 conv, 32 -- tanh -- 3x3 conv, r^2 -- shuffle -- (B,1,rh,rw)

The last convolution writes the r^2 sub-pixels of a block as channels (eq. 4); shuffling them into place moves numbers
and computes none, so every multiplication happens at the input's size. Nothing of the input is added to the output.

There are no official weights. The key names of the two usual re-implementations are recognised.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.checkpoint import Recipe, StateDict
from saccade.errors import CheckpointError, UsageError
from saccade.nn.pictures import check_picture
from saccade.registry import recognise, register

__all__ = ["ESPCN", "from_published", "icnr"]

SCALES = (2, 3, 4, 8)


@torch.no_grad()
def icnr(convolution: nn.Conv2d, scale: int) -> None:
    """Start the last convolution as nearest-neighbour enlargement: no checkerboard before the first step.

    The kernels and biases of the scale^2 sub-pixels of a colour become equal ("ICNR", Aitken et al.,
    arXiv:1707.02937).

    Args:
        convolution: its output channels are colour-major, as `torch.nn.PixelShuffle` takes them.
        scale: of the shuffle behind it.
    """
    convolution.weight.copy_(convolution.weight[:: scale**2].repeat_interleave(scale**2, 0))
    if convolution.bias is not None:
        convolution.bias.copy_(convolution.bias[:: scale**2].repeat_interleave(scale**2, 0))


class ESPCN(nn.Module):
    """Efficient sub-pixel convolutional network (section 3.1).

    Args:
        scale: integer enlargement: 2, 3, 4 or 8.
        in_channels, out_channels: 1 for luma, 3 for RGB; ``out_channels`` None is as many as go in.
        widths: channels of the two hidden layers; (64, 32) in the paper.
        equal_start: start with equal sub-pixel kernels (`icnr`).

    Shape: (B, in_channels, h, w) in [0, 1] -> (B, out_channels, scale*h, scale*w); clamped to [0, 1] in evaluation
    mode only, since a clamp has no gradient where a pixel is beyond it.

    Raises:
        UsageError: another scale, or no channels.
        InputError: in evaluation mode, another number of channels or values outside [0, 1] (looked at on the CPU).
    """

    halo = 4  # input pixels that an output pixel sees beyond its own place: 2 + 1 + 1

    def __init__(
        self,
        scale: int = 3,
        in_channels: int = 1,
        out_channels: int | None = None,
        widths: tuple[int, int] = (64, 32),
        equal_start: bool = False,
    ) -> None:
        super().__init__()
        if scale not in SCALES:
            raise UsageError(f"ESPCN enlarges by 2, 3, 4 or 8, not by {scale}")
        out_channels = in_channels if out_channels is None else out_channels
        if min(in_channels, out_channels, *widths) < 1:
            raise UsageError(f"ESPCN needs a channel at every step, not {in_channels}, {widths} and {out_channels}")
        self.scale, self.in_channels, self.out_channels = scale, in_channels, out_channels
        self.colour = "luma" if in_channels == 1 else "rgb"
        self.features = nn.Conv2d(in_channels, widths[0], 5, padding=2)
        self.mapping = nn.Conv2d(widths[0], widths[1], 3, padding=1)
        self.subpixel = nn.Conv2d(widths[1], out_channels * scale**2, 3, padding=1)
        if equal_start:
            icnr(self.subpixel, scale)

    @property
    def kernels(self) -> int:
        """MACs per input pixel: the parameters without biases."""
        return sum(layer.weight.numel() for layer in (self.features, self.mapping, self.subpixel))

    def forward(self, picture: Tensor) -> Tensor:
        if not self.training:
            check_picture(picture, self.in_channels, "ESPCN on luma" if self.colour == "luma" else "ESPCN")
        x = torch.tanh(self.features(picture))  # (B, 64, h, w)
        x = torch.tanh(self.mapping(x))  # (B, 32, h, w)
        y = F.pixel_shuffle(self.subpixel(x), self.scale)
        return y if self.training else y.clamp(0, 1)


@register("espcn", system="espcn", task="super-resolution", scales=(2, 3, 4, 8))
def espcn(scale: int = 3, width: int = 64, equal_start: bool = False) -> ESPCN:
    """ESPCN on luma: 21,284, 22,729 and 24,752 parameters at x2, x3 and x4."""
    return ESPCN(scale, 1, 1, (width, width // 2), equal_start)


@register("espcn_small", system="espcn", task="super-resolution", scales=(2, 3, 4, 8))
def espcn_small(scale: int = 3, equal_start: bool = False) -> ESPCN:
    """ESPCN on luma at a quarter of the width: 1,868 parameters at x2. Ours."""
    return ESPCN(scale, 1, 1, (16, 8), equal_start)


@register("espcn_rgb", system="espcn", task="super-resolution", scales=(2, 3, 4, 8), colour="rgb")
def espcn_rgb(scale: int = 3, width: int = 64, equal_start: bool = False) -> ESPCN:
    """ESPCN with three channels in and out, as many published files have it."""
    return ESPCN(scale, 3, 3, (width, width // 2), equal_start)


@recognise("espcn", keys=("feature_maps.0.weight", "feature_maps.2.weight", "sub_pixel.0.weight"))
def from_lornatang(state: StateDict) -> Recipe | None:
    """ESPCN-PyTorch by Lornatang."""
    return from_published(state, {"feature_maps.0": "features", "feature_maps.2": "mapping", "sub_pixel.0": "subpixel"})


@recognise("espcn", keys=("first_part.0.weight", "first_part.2.weight", "last_part.0.weight"))
def from_yjn870(state: StateDict) -> Recipe | None:
    """ESPCN-pytorch by yjn870."""
    return from_published(state, {"first_part.0": "features", "first_part.2": "mapping", "last_part.0": "subpixel"})


def from_published(state: StateDict, names: dict[str, str]) -> Recipe | None:
    """Published key names -> (model, options, our key names); width, colours and scale are read from the shapes.

    Args:
        names: their layer: our layer.

    Returns:
        None where the layers are not ESPCN's (5x5, 3x3, 3x3).

    Raises:
        CheckpointError: the last layer fits no scale; a network with an odd number of colours or widths.
    """
    made: StateDict = {}
    for key, value in state.items():  # unknown keys stay, so that loading names them
        layer, _, leaf = key.rpartition(".")
        made[f"{names[layer]}.{leaf}" if layer in names else key] = value
    first, second, last = (made[f"{layer}.weight"].shape for layer in ("features", "mapping", "subpixel"))
    if (first[2:], second[2:], last[2:]) != ((5, 5), (3, 3), (3, 3)):
        return None
    colours, width = first[1], first[0]
    if colours not in (1, 3):
        raise CheckpointError(f"this ESPCN takes {colours} channels; 1 (luma) or 3 (RGB) are known")
    scale = math.isqrt(last[0] // colours)
    if last[0] != colours * scale**2 or scale not in SCALES:
        raise CheckpointError(
            f"this ESPCN ends in {last[0]} channels for {colours} colour{'s' * (colours > 1)}: no scale of 2, 3, 4 or 8"
        )
    if second[0] != width // 2 or second[1] != width or last[1] != second[0]:
        raise CheckpointError(f"this ESPCN has widths {width} and {second[0]}; the second should be half the first")
    options = {"scale": scale} | ({} if width == 64 else {"width": width})
    return Recipe("espcn" if colours == 1 else "espcn_rgb", options, made)
