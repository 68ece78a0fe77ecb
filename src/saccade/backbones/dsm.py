"""DSM: tokens mixed by weighing their cosine spectrum, with weights made from the picture. A reconstruction.

Hu and Yu, "Dynamic Spectrum Mixer for Visual Recognition", 2023, arXiv:2309.06721.

No code and no weights were published. The abstract tells what stands here: the cosine transform, weights that select
bands per picture, a global receptive field at log-linear cost. Sizes, the form of the weights and the recipe are a
reconstruction of ours: behaviour can be matched, the paper's numbers cannot, and none of them is claimed.

    block (NHWC):  x + mixer(LN(x)) --> x + MLP(LN(x)), each branch with a scale per channel
    mixer:  u = GELU(P1 x);  F = DCT(u);  F (1 + W);  back;  P2
    W[e] = sum_k pi[k, e] Phi[k, group(e)]     pi = softmax over k of gen(band energies of F, mean of u)

``Phi`` are K learned spectra a group of channels; over which frequencies they are high is learned, how much of each a
channel takes is decided per picture. `DSM.budget` is the share of the spectrum's rows and columns that is computed.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.budget import check_budget
from saccade.errors import InputError, UsageError
from saccade.nn.backbone import Backbone, made
from saccade.nn.channel_norm import ChannelNorm
from saccade.nn.drop_path import drop_path, rising
from saccade.ops.dct import dct2, idct2
from saccade.registry import register

__all__ = ["DSM", "SpectrumMixer", "cells"]

CELLS = 16


# ---------------------------------------------------------------------------------------------------------------------
# The spectrum's cells
# ---------------------------------------------------------------------------------------------------------------------
def cells(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """The cell (0 to 15) of each frequency of an H x W spectrum, (H, W): four rings of four angles.

    Whole numbers alone, so that ties fall the same way everywhere: rings begin at 1/8, 1/4 and 1/2 of the largest
    radius, angles at 22.5, 45 and 67.5 degrees; the constant term is in cell 0.
    """
    down = torch.arange(height, device=device)[:, None] * width  # k W
    right = torch.arange(width, device=device)[None] * height  # l H
    squared, bound = down**2 + right**2, (height * width) ** 2
    rings = sum((m * squared >= bound).long() for m in (32, 8, 2))
    # down >= t * right for t = sqrt(2) - 1, 1, sqrt(2) + 1, squared where t is no whole number
    low = (down + right) ** 2 >= 2 * right**2
    high = (down >= right) & ((down - right) ** 2 >= 2 * right**2)
    angles = low.long() + (down >= right).long() + high.long()
    return torch.where(squared == 0, 0, 4 * rings + angles)


def _means(height: int, width: int, h: int, w: int, device: torch.device) -> Tensor:
    """(16, h w): the mean over each cell as a product; frequencies outside the h x w corner count as 0."""
    own = cells(height, width, device).flatten() == torch.arange(CELLS, device=device)[:, None]
    shares = own / own.sum(1, keepdim=True).clamp(min=1)
    return shares.view(CELLS, height, width)[:, :h, :w].flatten(1)


@functools.lru_cache(maxsize=256)
def _kept_means(height: int, width: int, h: int, w: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        return _means(height, width, h, w, device)


def cell_means(height: int, width: int, h: int, w: int, device: torch.device) -> Tensor:
    """`_means`, remembered outside of graphs."""
    return (_means if torch.compiler.is_compiling() else _kept_means)(height, width, h, w, device)


# ---------------------------------------------------------------------------------------------------------------------
# The network
# ---------------------------------------------------------------------------------------------------------------------
class SpectrumMixer(nn.Module):
    """Token mixer that weighs the cosine spectrum, (B, H, W, C) -> (B, H, W, C).

    Args:
        width: C; inside there are ``expansion`` times as many channels.
        grid: (H, W) that the learned spectra have.
        groups: of channels that share spectra.
        bases: spectra a group, K.
        dynamic: weights from the picture; False: one spectrum a group, the same for all pictures.
        resize_bases: fit the spectra to other grids (bilinear, frequency k/N stays where it is) instead of refusing.

    Attributes:
        keep: share of rows and columns of the spectrum that is computed, in (0, 1]; the others count as 0.

    Raises:
        UsageError: channels that do not split into groups.
        InputError: what is no float map of ``width`` channels, or one without places.
    """

    def __init__(
        self,
        width: int,
        grid: tuple[int, int],
        *,
        expansion: int = 2,
        groups: int = 8,
        bases: int = 4,
        dynamic: bool = True,
        resize_bases: bool = True,
    ) -> None:
        super().__init__()
        inner = expansion * width
        if groups < 1 or bases < 1 or inner < 1 or inner % groups:
            raise UsageError(f"{inner} channels do not split into {groups} groups with {bases} spectra each")
        self.grid, self.groups, self.resize_bases = grid, groups, resize_bases
        self.bases = bases if dynamic else 1
        self.keep = 1.0
        self.p1, self.p2 = nn.Linear(width, inner), nn.Linear(inner, width)
        self.phi = nn.Parameter(0.02 * torch.randn(self.bases, groups, *grid))
        hidden = max(16, inner // 8)
        self.gen = (
            nn.Sequential(nn.Linear(CELLS * groups + inner, hidden), nn.GELU(), nn.Linear(hidden, bases * inner))
            if dynamic
            else None
        )

    def corner(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the spectrum that are computed: the ceiling of ``keep`` times each side."""
        if self.keep == 1:
            return size
        share = Fraction(self.keep).limit_denominator(10**6)
        height, width = (-(-side * share.numerator // share.denominator) for side in size)
        return height, width

    def spectra(self, size: tuple[int, int]) -> Tensor:
        """Phi on a grid of this size, its computed corner: (K, G, h, w).

        Raises:
            InputError: another grid than that it was built for, and it may not be resized.
        """
        phi: Tensor = self.phi
        h, w = self.corner(size)
        if torch.compiler.is_exporting() or tuple(size) != self.grid:
            if not self.resize_bases:
                raise InputError(
                    f"these spectra are of {self.grid[0]} x {self.grid[1]} tokens, not {size[0]} x {size[1]}: "
                    "resize_bases=True fits them"
                )
            phi = F.interpolate(phi, size, mode="bilinear", align_corners=True)
        return phi[:, :, :h, :w]

    def describe(self, u: Tensor, f: Tensor) -> Tensor:
        """What the weights are made from, (B, 16 G + E): log root-mean-square of every group in every cell; mean u."""
        (height, width), (h, w) = u.shape[1:3], f.shape[1:3]
        wide = f.to(torch.promote_types(f.dtype, torch.float32))
        energies = wide.square().unflatten(-1, (self.groups, -1)).mean(-1).flatten(1, 2)  # (B, h w, G)
        shares = cell_means(height, width, h, w, f.device).to(wide.dtype)
        if not f.is_meta and torch.is_autocast_enabled(f.device.type):  # squares leave the range of float16
            with torch.autocast(f.device.type, enabled=False):
                means = shares @ energies
        else:
            means = shares @ energies  # (B, 16, G)
        bands = torch.log1p((1e-6 + means).sqrt()).mT.flatten(1)
        return torch.cat([bands.to(u.dtype), u.mean((1, 2))], 1)

    def weights(self, u: Tensor, f: Tensor) -> Tensor:
        """W at the computed frequencies, (B, h w, G, E/G); for the static form (1, h w, G, 1)."""
        phi = self.spectra((u.shape[1], u.shape[2])).flatten(2)  # (K, G, h w)
        if self.gen is None:
            return phi[0].mT[None, :, :, None]
        shares = self.gen(self.describe(u, f)).unflatten(1, (self.bases, self.groups, -1)).softmax(1)
        return (phi.permute(1, 2, 0) @ shares.transpose(1, 2)).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling() and (
            x.ndim != 4 or x.shape[3] != self.p1.in_features or not x.is_floating_point() or 0 in x.shape[1:3]
        ):
            told = f"float tokens (B, H, W, {self.p1.in_features}) of at least 1 x 1"
            raise InputError(f"this mixer takes {told}, not {x.dtype} {tuple(x.shape)}")
        size = (x.shape[1], x.shape[2])
        u = F.gelu(self.p1(x))
        f = dct2(u, self.corner(size), channels_last=True)  # (B, h, w, E)
        grouped = f.flatten(1, 2).unflatten(-1, (self.groups, -1))  # (B, h w, G, E/G)
        weighed = torch.addcmul(grouped, grouped, self.weights(u, f).to(f.dtype)).reshape(f.shape)
        # P2 mixes channels, the transform places: on coefficients it costs less, and half the channels go back
        out: Tensor = idct2(F.linear(weighed, self.p2.weight), size, channels_last=True) + self.p2.bias
        return out


class MLP(nn.Module):
    """Two linear layers with GELU between."""

    def __init__(self, width: int, ratio: int = 4) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, ratio * width), nn.Linear(ratio * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """Mixer and MLP, each normalised, scaled per channel and added: (B, H, W, C) -> (B, H, W, C)."""

    def __init__(
        self, width: int, grid: tuple[int, int], rate: float = 0.0, layer_scale: float = 1.0, **mixer: Any
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.mixer, self.mlp = SpectrumMixer(width, grid, **mixer), MLP(width)
        self.ls1, self.ls2 = (nn.Parameter(torch.full((width,), layer_scale)) for _ in range(2))
        self.drop_path = drop_path(rate)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.ls1 * self.mixer(self.norm1(x)))
        out: Tensor = x + self.drop_path(self.ls2 * self.mlp(self.norm2(x)))
        return out


class Stage(nn.Module):
    """A convolution that shrinks the map (none in the first stage), and blocks: NCHW -> NCHW."""

    def __init__(self, down: nn.Module, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.down, self.blocks = down, nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x).permute(0, 2, 3, 1)
        out: Tensor = self.blocks(x).permute(0, 3, 1, 2)
        return out


class DSM(Backbone):
    """Dynamic spectrum mixer: a reconstruction, see the module's text.

    Args:
        widths: channels of the stages.
        depths: blocks of each.
        img_size: side of the pictures for whose token grids the spectra are built.
        stem_stride: 4 (a 7x7 convolution) or 2 (3x3).
        layer_scale: start of the scales of the branches.
        drop_path_rate: of the last block; rises linearly from 0 at the first.
        expansion, groups, bases, dynamic, resize_bases: as `SpectrumMixer`.
        options: ``num_classes``, ``in_chans``, ``drop_rate``, ``global_pool`` (`Backbone`).

    Shape: (B, 3, H, W) -> (B, num_classes); maps at strides 4, 8, 16, 32. Sides of at least the last stride.

    Raises:
        UsageError: the numbers describe no network.
    """

    def __init__(
        self,
        widths: Sequence[int] = (64, 128, 320, 512),
        depths: Sequence[int] = (3, 3, 10, 3),
        img_size: int = 224,
        stem_stride: int = 4,
        layer_scale: float = 1.0,
        drop_path_rate: float = 0.0,
        expansion: int = 2,
        groups: int = 8,
        bases: int = 4,
        dynamic: bool = True,
        resize_bases: bool = True,
        **options: Any,
    ) -> None:
        if len(depths) != len(widths):
            raise UsageError(f"depths has {len(depths)} entries for {len(widths)} stages")
        if stem_stride not in (2, 4):
            raise UsageError(f"stem_stride is 2 or 4, not {stem_stride}")
        strides = [stem_stride << i for i in range(len(widths))]
        super().__init__(widths, strides, least=strides[-1] if strides else 1, **options)
        if img_size < self.least:
            raise UsageError(f"img_size is at least {self.least}, not {img_size}")
        kernel, padding = (7, 2) if stem_stride == 4 else (3, 1)
        self.stem = nn.Conv2d(self.in_chans, widths[0], kernel, stem_stride, padding)
        side, rates = (img_size + 2 * padding - kernel) // stem_stride + 1, rising(drop_path_rate, depths)
        mixer = {"expansion": expansion, "groups": groups, "bases": bases}
        mixer |= {"dynamic": dynamic, "resize_bases": resize_bases}
        stages: list[nn.Module] = []
        for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            down: nn.Module = nn.Conv2d(widths[i - 1], width, 3, 2, 1) if i else nn.Identity()
            side = (side + 1) // 2 if i else side
            blocks = [Block(width, (side, side), rates.pop(0), layer_scale, **mixer) for _ in range(depth)]
            stages.append(Stage(down, blocks))
        self.stages = nn.ModuleList(stages)
        self.norm = ChannelNorm(widths[-1])
        self._budget = 1.0
        self.reset_classifier(self.num_classes)
        self.apply(_initialise)

    def make_head(self, num_classes: int) -> nn.Module:
        """A linear layer, initialised as all others here."""
        head = nn.Linear(self.num_features, num_classes)
        _initialise(head)
        return head

    @property
    def budget(self) -> float:
        """Share of the rows and columns of every spectrum that is computed; the lowest frequencies stay."""
        return self._budget

    @budget.setter
    def budget(self, value: float) -> None:
        self._budget = check_budget(value)
        for m in self.modules():
            if isinstance(m, SpectrumMixer):
                m.keep = self._budget

    def budgets(self) -> Sequence[float]:
        """Settings worth trying; the dial turns smoothly."""
        return (0.1, 0.25, 0.5, 0.75, 1.0)

    def no_weight_decay(self) -> set[str]:
        """The spectra, beside vectors."""
        return {name for name, _ in self.named_parameters() if name.endswith(".phi")}


@torch.no_grad()
def _initialise(module: nn.Module) -> None:
    """Weights truncated normal of variance 1 / fan-in, biases 0. (With a deviation of 0.02 small nets learn less.)"""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        assert module.bias is not None
        module.bias.zero_()


# ---------------------------------------------------------------------------------------------------------------------
# Registered models. No weights were published, so there is no reader of other key names
# ---------------------------------------------------------------------------------------------------------------------
VARIANTS: dict[str, dict[str, Any]] = {
    "dsm_t": {"drop_path_rate": 0.1},
    "dsm_s": {"depths": (4, 6, 18, 3), "layer_scale": 1e-6, "drop_path_rate": 0.2},
    "dsm_b": {
        "widths": (96, 192, 384, 768),
        "depths": (4, 6, 24, 3),
        "layer_scale": 1e-6,
        "drop_path_rate": 0.4,
    },
    "dsm_nano": {"widths": (32, 64), "depths": (2, 2), "img_size": 32, "stem_stride": 2, "num_classes": 10},
}


@register(
    "dsm",
    system="dsm",
    task="classification",
    variants={
        "dsm_t": "DSM-T (a reconstruction): 30.3 M parameters, 4.0 G MACs of linear layers and convolutions at 224 px",
        "dsm_s": "DSM-S (a reconstruction): 43.4 M parameters, 6.6 G MACs of linear layers and convolutions at 224 px",
        "dsm_b": "DSM-B (a reconstruction): 86.4 M parameters, 13.3 G MACs of linear layers and convolutions at 224 px",
        "dsm_nano": {
            "size": 32,
            "timm": False,
            "about": "DSM-nano (ours): 0.2 M parameters, two stages, ten classes, for pictures of 32 px",
        },
    },
)
def dsm(variant: str = "", /, **options: Any) -> nn.Module:
    """Any DSM (a reconstruction); options as `DSM`."""
    return made(DSM, options, VARIANTS, variant)
