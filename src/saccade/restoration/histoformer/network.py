"""The U-Net of Histoformer (figure 2 of the paper)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import InputError, UsageError
from saccade.nn.pictures import check_picture
from saccade.nn.restormer import Downsample, Upsample
from saccade.quality.pearson import pearson_loss
from saccade.restoration.histoformer.blocks import Block

__all__ = ["Histoformer"]

MULTIPLE = 8  # what the sides of a picture must divide by inside: three halvings
LEVELS = 4


class Embedding(nn.Module):
    """3x3 convolution from the picture to features, (B, 3, h, w) -> (B, dim, h, w)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.proj(x)
        return y


class SkipEmbedding(nn.Module):
    """The picture at half the size, its colours mixed, then smoothed or sharpened: (B, 3, h, w) -> (B, 3, h/2, w/2)."""

    def __init__(self) -> None:
        super().__init__()
        mix, filtered = nn.Conv2d(3, 3, 1, bias=False), nn.Conv2d(3, 3, 3, padding=1, groups=3, bias=False)
        self.proj = nn.Sequential(nn.AvgPool2d(2), mix, filtered)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.proj(x)
        return y


def run(level: nn.ModuleList, x: Tensor, naive: bool) -> Tensor:
    """The blocks of a level one after the other."""
    for block in level:
        x = cast(Block, block).forward_naive(x) if naive else block(x)
    return x


def padded(picture: Tensor) -> Tensor:
    """Reflected at the right and the bottom until its sides divide by 8."""
    height, width = picture.shape[-2:]
    return F.pad(picture, (0, -width % MULTIPLE, 0, -height % MULTIPLE), mode="reflect")


class Histoformer(nn.Module):
    """Histogram transformer for pictures in bad weather.

    Args:
        dim: channels at full size; twice as many at each halving, and in the last decoder.
        blocks: blocks of the four levels (the decoder has as many as the encoder).
        refinement: blocks at full size behind the decoder.
        heads: attention heads, and bins, of the four levels.
        expansion: width of the feed-forward; 2.667 as published. int(width * expansion) must divide by 4 everywhere.
        bias: of the convolutions in blocks, between levels and at the end.
        centred: whether normalisation subtracts the mean ("WithBias" in the official code).

    Shape: (B, 3, h, w) in [0, 1] -> the same, not clamped; sides of 8 or more. What does not divide by 8 is padded by
    reflection at the right and the bottom.

    It compiles (`torch.compile`) and exports (`torch.export`) at a fixed size. There is no ONNX export: a stable sort
    of the whole picture has no operator there.

    Raises:
        UsageError: widths that do not divide among heads or by 4.
        InputError: what is no batch of RGB pictures, a side below 8; in evaluation mode also values outside [0, 1] and
            NaN, which sorting would spread over the picture.
    """

    colour = "rgb"
    in_channels = 3
    halo = None  # every output pixel sees the whole picture

    def __init__(
        self,
        dim: int = 36,
        blocks: Sequence[int] = (4, 4, 6, 8),
        refinement: int = 4,
        heads: Sequence[int] = (1, 2, 4, 8),
        expansion: float = 2.667,
        bias: bool = False,
        centred: bool = True,
    ) -> None:
        super().__init__()
        _check(dim, blocks, refinement, heads)

        def level(index: int, width: int, depth: int) -> nn.ModuleList:
            return nn.ModuleList(Block(width, heads[index], expansion, bias, centred) for _ in range(depth))

        def reduce(inputs: int, outputs: int) -> nn.Conv2d:
            return nn.Conv2d(inputs, outputs, 1, bias=bias)

        d1, d2, d3, d4 = (dim << i for i in range(LEVELS))
        self.patch_embed = Embedding(d1)
        self.encoder_level1 = level(0, d1, blocks[0])
        self.down1_2, self.skip_patch_embed1 = Downsample(d1), SkipEmbedding()
        self.reduce_chan_level_1, self.encoder_level2 = reduce(d2 + 3, d2), level(1, d2, blocks[1])
        self.down2_3, self.skip_patch_embed2 = Downsample(d2), SkipEmbedding()
        self.reduce_chan_level_2, self.encoder_level3 = reduce(d3 + 3, d3), level(2, d3, blocks[2])
        self.down3_4, self.skip_patch_embed3 = Downsample(d3), SkipEmbedding()
        self.reduce_chan_level_3, self.latent = reduce(d4 + 3, d4), level(3, d4, blocks[3])
        self.up4_3, self.reduce_chan_level3, self.decoder_level3 = Upsample(d4), reduce(d4, d3), level(2, d3, blocks[2])
        self.up3_2, self.reduce_chan_level2, self.decoder_level2 = Upsample(d3), reduce(d3, d2), level(1, d2, blocks[1])
        self.up2_1, self.decoder_level1 = Upsample(d2), level(0, d2, blocks[0])
        self.refinement = level(0, d2, refinement)
        self.output = nn.Conv2d(d2, 3, 3, padding=1, bias=bias)

    def forward(self, picture: Tensor) -> Tensor:
        self._check_picture(picture)
        height, width = picture.shape[-2:]
        return self.restore(padded(picture))[..., :height, :width]

    def forward_naive(self, picture: Tensor) -> Tensor:
        """The published algorithm step by step (`Block.forward_naive`): what `forward` is checked and timed against."""
        self._check_picture(picture)
        height, width = picture.shape[-2:]
        return self.restore(padded(picture), naive=True)[..., :height, :width]

    def restore(self, x: Tensor, naive: bool = False) -> Tensor:
        """The network itself, on sides that divide by 8."""
        e1 = run(self.encoder_level1, self.patch_embed(x), naive)  # (B, d, h, w)
        s1 = self.skip_patch_embed1(x)
        y = self.reduce_chan_level_1(torch.cat((self.down1_2(e1), s1), 1))
        e2 = run(self.encoder_level2, y, naive)  # (B, 2d, h/2, w/2)
        s2 = self.skip_patch_embed2(s1)
        y = self.reduce_chan_level_2(torch.cat((self.down2_3(e2), s2), 1))
        e3 = run(self.encoder_level3, y, naive)  # (B, 4d, h/4, w/4)
        s3 = self.skip_patch_embed3(s2)
        y = self.reduce_chan_level_3(torch.cat((self.down3_4(e3), s3), 1))
        y = run(self.latent, y, naive)  # (B, 8d, h/8, w/8)
        y = self.reduce_chan_level3(torch.cat((self.up4_3(y), e3), 1))
        y = run(self.decoder_level3, y, naive)  # (B, 4d, h/4, w/4)
        y = self.reduce_chan_level2(torch.cat((self.up3_2(y), e2), 1))
        y = run(self.decoder_level2, y, naive)  # (B, 2d, h/2, w/2)
        y = torch.cat((self.up2_1(y), e1), 1)
        del e1, e2, e3
        y = run(self.refinement, run(self.decoder_level1, y, naive), naive)  # (B, 2d, h, w)
        return torch.add(self.output(y), x)

    @torch.no_grad()
    def forward_tiles(self, picture: Tensor, tile: int = 512, overlap: int = 64) -> Tensor:
        """The picture in pieces, for less memory still: an approximation, since attention is global.

        Each piece is sorted by itself, so it sees its own histogram and not the picture's. On a trained
        `histoformer_tiny`, ``saccade reproduce histoformer`` measures how far that is from the whole.

        Args:
            picture: as in `forward`.
            tile: side of the squares that the result is put together from, pixels.
            overlap: pixels that a piece sees beyond its square on each side.

        Raises:
            UsageError: tiles below 8 pixels, or a negative overlap.
        """
        if tile < MULTIPLE or overlap < 0:
            raise UsageError(
                f"tiles have sides of {MULTIPLE} or more and no negative overlap, not {tile} and {overlap}"
            )
        self._check_picture(picture)
        height, width = picture.shape[-2:]
        out = torch.empty_like(picture)
        for top in _starts(height, tile):
            for left in _starts(width, tile):
                y, x = max(0, top - overlap), max(0, left - overlap)
                bottom, right = min(height, top + tile), min(width, left + tile)
                piece = self(picture[..., y : bottom + overlap, x : right + overlap])
                out[..., top:bottom, left:right] = piece[..., top - y : bottom - y, left - x : right - x]
        return out

    def training_loss(self, given: Tensor, wanted: Tensor, phase: int = 0) -> Tensor:
        """L1 + Pearson, both of weight 1 (section 3.4)."""
        restored = self(given)
        return F.l1_loss(restored, wanted) + pearson_loss(restored, wanted)

    def _check_picture(self, x: Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != 3 or not x.is_floating_point():
            raise InputError(f"Histoformer takes float pictures (B, 3, h, w), not {x.dtype} {tuple(x.shape)}")
        if min(x.shape[-2:]) < MULTIPLE:
            raise InputError(
                f"Histoformer takes pictures of {MULTIPLE} pixels a side or more, not {tuple(x.shape[-2:])}"
            )
        if not len(x):
            raise InputError(f"Histoformer takes pictures, not an empty batch {tuple(x.shape)}")
        if not self.training:
            check_picture(x, 3, "Histoformer")
        if x.dtype == torch.float16 and x.device.type == "cpu":
            warnings.warn("half precision is slow on the CPU, sorting above all; use float32", stacklevel=3)


def _starts(length: int, tile: int) -> list[int]:
    """Where tiles begin; the last begins earlier rather than being smaller than the network takes."""
    return [min(start, max(0, length - MULTIPLE)) for start in range(0, length, tile)]


def _check(dim: int, blocks: Sequence[int], refinement: int, heads: Sequence[int]) -> None:
    if len(blocks) != LEVELS or len(heads) != LEVELS:
        raise UsageError(f"Histoformer has {LEVELS} levels; blocks {tuple(blocks)} and heads {tuple(heads)} say others")
    if dim < 2 or dim % 2 or min(*blocks, refinement) < 0 or min(heads) < 1:
        raise UsageError(
            f"Histoformer needs an even width, no negative depth and heads of 1 or more, not {dim}, "
            f"{(*blocks, refinement)} and {tuple(heads)}"
        )
