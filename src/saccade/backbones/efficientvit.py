"""EfficientViT (M0 to M5): attention in a sandwich of feed-forwards, each head on its own channels and the last head's.

Liu et al., "EfficientViT: Memory Efficient Vision Transformer with Cascaded Group Attention", CVPR 2023,
arXiv:2305.07027. (Not the EfficientViT with linear attention, arXiv:2205.14756.)

    picture -- four 3x3, stride 2 -- stage 1 (stride 16) -- merge -- stage 2 (32) -- merge -- stage 3 (64) -- head

    block:    x + dw3x3 --> + feed-forward --> + attention in windows --> + dw3x3 --> + feed-forward
    cascade:  f_1 | ... | f_h = split(x);  o_i = attend(f_i + o_(i-1));  project(relu(o_1 | ... | o_h))

Heads share out the channels instead of each reading all, and the cascade makes them differ: each refines what the one
before found (eq. 3). A learnt bias stands for every distance in a window, so the size of the picture is fixed when the
network is built (``img_size``) or by `EfficientViT.set_input_size` later. All norms fold into convolutions
(`saccade.fuse`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.checkpoint import Recipe, StateDict
from saccade.errors import CheckpointError, UsageError
from saccade.nn.backbone import made, named
from saccade.nn.conv_norm import ConvNorm, ResidualDepthwise
from saccade.nn.lean_vit import FeedForward, LeanViT, renamed_official, renamed_timm, transition
from saccade.registry import recognise, register

__all__ = ["CascadedGroupAttention", "EfficientViT", "WindowAttention"]


def distances(side: int) -> Tensor:
    """Which entry of a bias table belongs to query and key of a window: (side^2, side^2) int64.

    Entry ``|dy| * side + |dx|``: the published numbering, in which distances first appear row by row.
    """
    along = torch.arange(side)
    apart = (along[:, None] - along).abs()  # (side, side): of the query, of the key
    table: Tensor = apart[:, None, :, None] * side + apart[None, :, None, :]  # query y, query x, key y, key x
    return table.reshape(side * side, side * side)


def resized(table: Tensor, side: int) -> Tensor:
    """A bias table (heads, s^2) for windows of another side, by bicubic interpolation: (heads, side^2)."""
    old = round(table.shape[1] ** 0.5)
    if old == side:
        return table
    plane = table.detach().float().view(1, -1, old, old)
    wide = F.interpolate(plane, size=(side, side), mode="bicubic", align_corners=False)
    return wide.reshape(-1, side * side).to(table.dtype)


class CascadedGroupAttention(nn.Module):
    """Heads in turn, each on its share of the channels plus what the head before it found (section 3.2, eq. 3).

    Args:
        width: channels C.
        heads: h; each attends on C/h channels.
        key_dim: channels k of queries and keys.
        side: of a window.
        kernels: of the depthwise convolution on the queries, one a head.

    Shape: (N, C, side, side) -> the same.
    """

    def __init__(self, width: int, heads: int, key_dim: int, side: int, kernels: Sequence[int]) -> None:
        super().__init__()
        value = width // heads
        self.dims, self.side = (key_dim, key_dim, value), side
        self.qkvs = nn.ModuleList(ConvNorm(value, 2 * key_dim + value) for _ in range(heads))
        self.dws = nn.ModuleList(ConvNorm(key_dim, key_dim, kernel, groups=key_dim) for kernel in kernels[:heads])
        self.proj = ConvNorm(width, width, gain=0)
        self.attention_biases = nn.Parameter(torch.zeros(heads, side * side))
        self.register_buffer("places", distances(side), persistent=False)
        self.places: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return cascade(x, self.qkvs, self.dws, self.proj, self.attention_biases[:, self.places], self.dims)

    def set_side(self, side: int) -> None:
        """Take windows of another side from now on; the table is interpolated."""
        if side != self.side:
            self.side = side
            made = resized(self.attention_biases, side)
            self.attention_biases = nn.Parameter(made, requires_grad=self.attention_biases.requires_grad)
            self.places = distances(side).to(self.places.device)

    def fuse(self) -> nn.Module:
        """Without norms, the biases laid out once."""
        return FusedAttention(self)


class FusedAttention(nn.Module):
    """`CascadedGroupAttention` for inference."""

    def __init__(self, trained: CascadedGroupAttention) -> None:
        super().__init__()
        self.dims = trained.dims
        self.qkvs = nn.ModuleList(_plain(m) for m in trained.qkvs)
        self.dws = nn.ModuleList(_plain(m) for m in trained.dws)
        self.proj = _plain(trained.proj)
        self.register_buffer("biases", trained.attention_biases.detach()[:, trained.places])
        self.biases: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return cascade(x, self.qkvs, self.dws, self.proj, self.biases, self.dims)


def _plain(module: nn.Module) -> nn.Module:
    assert isinstance(module, ConvNorm)
    return module.fuse()


def cascade(
    x: Tensor,
    qkvs: nn.ModuleList,
    dws: nn.ModuleList,
    proj: nn.Module,
    biases: Tensor,
    dims: tuple[int, int, int],
) -> Tensor:
    """Attention of the heads in turn.

    Args:
        x: (N, C, s, s).
        qkvs, dws: a layer a head.
        proj: behind the ReLU over all heads.
        biases: (heads, s^2, s^2), query by key.
        dims: channels of queries, keys, values.
    """
    shares = x.chunk(len(qkvs), 1)
    found: list[Tensor] = []
    for share, qkv, dw, bias in zip(shares, qkvs, dws, biases.unbind(), strict=True):
        q, k, v = qkv(share + found[-1] if found else share).split(dims, 1)
        q, k, v = (t.flatten(2).mT[:, None] for t in (dw(q), k, v))  # (N, 1, s^2, channels)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        found.append(mixed[:, 0].mT.reshape(share.shape))
    out: Tensor = proj(F.relu(torch.cat(found, 1)))
    return out


class WindowAttention(nn.Module):
    """x + attention within windows; a map that is no multiple of the window is padded by zeros, right and below.

    The padding is attended to like the picture (as published). Shape: (B, C, H, W) -> the same.
    """

    def __init__(self, width: int, heads: int, key_dim: int, side: int, kernels: Sequence[int]) -> None:
        super().__init__()
        self.attn = CascadedGroupAttention(width, heads, key_dim, side, kernels)
        self.side = side

    def set_side(self, side: int) -> None:
        """Take windows of another side from now on."""
        if side != self.side and not isinstance(self.attn, CascadedGroupAttention):
            raise UsageError("a fused EfficientViT keeps its windows: set_input_size goes before saccade.fuse")
        if isinstance(self.attn, CascadedGroupAttention):
            self.attn.set_side(side)
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        side = self.side
        if height == side and width == side:
            whole: Tensor = x + self.attn(x)
            return whole
        padded = F.pad(x, (0, -width % side, 0, -height % side))
        rows, columns = padded.shape[2] // side, padded.shape[3] // side
        windows = padded.view(*x.shape[:2], rows, side, columns, side).permute(0, 2, 4, 1, 3, 5)
        mixed = self.attn(windows.reshape(-1, x.shape[1], side, side))
        back = mixed.view(-1, rows, columns, x.shape[1], side, side).permute(0, 3, 1, 4, 2, 5)
        out: Tensor = x + back.reshape(padded.shape)[:, :, :height, :width]
        return out


class Block(nn.Module):
    """The sandwich: depthwise, feed-forward, attention, depthwise, feed-forward, each with its own shortcut."""

    def __init__(self, width: int, heads: int, key_dim: int, side: int, kernels: Sequence[int]) -> None:
        super().__init__()
        self.dw0, self.ffn0 = ResidualDepthwise(width), FeedForward(width)
        self.mixer = WindowAttention(width, heads, key_dim, side, kernels)
        self.dw1, self.ffn1 = ResidualDepthwise(width), FeedForward(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mixer(self.ffn0(self.dw0(x)))
        out: Tensor = self.ffn1(self.dw1(x))
        return out


class EfficientViT(LeanViT):
    """Vision transformer with cascaded group attention (table 1).

    Args:
        widths: channels of the three stages; the first divides by 8, each by its heads.
        depths: blocks of each.
        heads: of each.
        kernels: of the convolution on the queries, one a head (odd); stages with fewer heads use the first ones.
        key_dim: channels of queries and keys.
        window: side of the windows, in cells of the map; a map that is smaller is one window.
        img_size: side of the pictures in pixels.
        any_size: take pictures of any size of at least 16 px, not of ``img_size`` alone: maps are padded to whole
            windows, whose sides stay those of ``img_size`` (timm's rule; the official classifier takes one size).
        distillation: a second classifier; in training both logits come as a pair, else their mean.
        options: ``num_classes``, ``in_chans``, ``drop_rate``, ``global_pool`` (`Backbone`).

    Shape: (B, 3, img_size, img_size) -> (B, num_classes); maps at strides 16, 32, 64.

    Raises:
        UsageError: the numbers describe no network.
    """

    def __init__(
        self,
        widths: Sequence[int] = (64, 128, 192),
        depths: Sequence[int] = (1, 2, 3),
        heads: Sequence[int] = (4, 4, 4),
        kernels: Sequence[int] = (5, 5, 5, 5),
        key_dim: int | Sequence[int] = 16,
        window: int | Sequence[int] = 7,
        img_size: int = 224,
        any_size: bool = False,
        distillation: bool = False,
        **options: Any,
    ) -> None:
        dims = [key_dim] * len(widths) if isinstance(key_dim, int) else list(key_dim)
        windows = [window] * len(widths) if isinstance(window, int) else list(window)
        _check(widths, depths, heads, kernels, dims, windows)
        super().__init__(widths, distillation=distillation, **options)
        self.widths, self.depths, self.heads, self.kernels = widths, depths, heads, kernels
        self.windows, self.any_size = windows, any_size
        stages: list[nn.Module] = []
        for i, (width, side) in enumerate(zip(widths, self._sides(img_size), strict=True)):
            layers = transition(widths[i - 1], width) if i else []
            layers += [Block(width, heads[i], dims[i], side, kernels) for _ in range(depths[i])]
            stages.append(nn.Sequential(*layers))
        self.stages = nn.ModuleList(stages)
        self._take(img_size)
        self.reset_classifier(self.num_classes)

    def _sides(self, img_size: int) -> list[int]:
        """Side of the windows of each stage for pictures of a size."""
        if not isinstance(img_size, int) or img_size < self.least:
            raise UsageError(f"img_size is {img_size} px, it must be one whole number of at least {self.least}")
        return sides(img_size, self.windows)

    def _take(self, img_size: int) -> None:
        """Pictures of this side from now on, or of any."""
        self.img_size, self.size = img_size, None if self.any_size else img_size

    def set_input_size(self, img_size: int) -> None:
        """Take pictures of another side from now on; bias tables whose window changes are interpolated (bicubic).

        Raises:
            UsageError: a side below 16 px, or windows of another side in a fused network.
        """
        for stage, side in zip(self.stages, self._sides(img_size), strict=False):
            for block in stage.children():
                if isinstance(block, Block):
                    block.mixer.set_side(side)
        self._take(img_size)
        told: Any = getattr(self, "saccade_options", None)
        if isinstance(told, dict):  # what `saccade.save` writes
            told["img_size"] = img_size

    def no_weight_decay(self) -> set[str]:
        """The bias tables."""
        return {name for name, _ in self.named_parameters() if name.endswith("attention_biases")}


def sides(img_size: int, windows: Sequence[int]) -> list[int]:
    """Side of the windows of each stage: the map's own, at most ``windows``."""
    maps = [-(-img_size // 16)]
    while len(maps) < len(windows):
        maps.append((maps[-1] - 1) // 2 + 1)
    return [min(window, side) for window, side in zip(windows, maps, strict=True)]


def _check(
    widths: Sequence[int],
    depths: Sequence[int],
    heads: Sequence[int],
    kernels: Sequence[int],
    dims: Sequence[int],
    windows: Sequence[int],
) -> None:
    for what, given in (("depths", depths), ("heads", heads), ("key_dim", dims), ("window", windows)):
        if len(given) != len(widths):
            raise UsageError(f"{what} has {len(given)} entries for {len(widths)} stages")
        if min(given) < 1:
            raise UsageError(f"{what} has an entry of {min(given)}, all must be at least 1")
    for i, (width, count) in enumerate(zip(widths, heads, strict=True)):
        if width % count:
            raise UsageError(f"widths[{i}] is {width}, it must divide by its {count} heads: they share the channels")
        if count > len(kernels):
            raise UsageError(f"heads[{i}] is {count}, but kernels has {len(kernels)} entries: one a head")
    if any(kernel < 1 or kernel % 2 == 0 for kernel in kernels):
        raise UsageError(f"kernels are odd, not {tuple(kernels)}: an even one would shift the queries")


# ---------------------------------------------------------------------------------------------------------------------
# Registered models
# ---------------------------------------------------------------------------------------------------------------------

VARIANTS: dict[str, dict[str, Any]] = {
    "efficientvit_m0": {
        "widths": (64, 128, 192),
        "depths": (1, 2, 3),
        "heads": (4, 4, 4),
        "kernels": (5, 5, 5, 5),
    },
    # the published table has a fourth kernel here, which no head of this network uses
    "efficientvit_m1": {"widths": (128, 144, 192), "depths": (1, 2, 3), "heads": (2, 3, 3), "kernels": (7, 5, 3)},
    "efficientvit_m2": {"widths": (128, 192, 224), "depths": (1, 2, 3), "heads": (4, 3, 2), "kernels": (7, 5, 3, 3)},
    "efficientvit_m3": {"widths": (128, 240, 320), "depths": (1, 2, 3), "heads": (4, 3, 4), "kernels": (5, 5, 5, 5)},
    "efficientvit_m4": {"widths": (128, 256, 384), "depths": (1, 2, 3), "heads": (4, 4, 4), "kernels": (7, 5, 3, 3)},
    "efficientvit_m5": {"widths": (192, 288, 384), "depths": (1, 3, 4), "heads": (3, 3, 4), "kernels": (7, 5, 3, 3)},
}


@register(
    "efficientvit",
    system="efficientvit",
    task="classification",
    fixed_size=True,
    side_option="img_size",
    variants={
        "efficientvit_m0": "EfficientViT-M0: 2.3 M parameters, 79 M MACs at 224 px",
        "efficientvit_m1": "EfficientViT-M1: 3.0 M parameters, 167 M MACs at 224 px",
        "efficientvit_m2": "EfficientViT-M2: 4.2 M parameters, 201 M MACs at 224 px",
        "efficientvit_m3": "EfficientViT-M3: 6.9 M parameters, 263 M MACs at 224 px",
        "efficientvit_m4": "EfficientViT-M4: 8.8 M parameters, 299 M MACs at 224 px",
        "efficientvit_m5": "EfficientViT-M5: 12.5 M parameters, 522 M MACs at 224 px",
    },
)
def efficientvit(variant: str = "", /, **options: Any) -> nn.Module:
    """Any EfficientViT; options as `EfficientViT`."""
    return made(EfficientViT, options, VARIANTS, variant)


# ---------------------------------------------------------------------------------------------------------------------
# Published weights
# ---------------------------------------------------------------------------------------------------------------------
#: sizes that the tables of a file may be for, likeliest first: the published ones, then multiples of 32, then of 16
_SIZES = (224, 384, 512, *range(32, 1025, 32), *range(16, 1025, 32))


def _describe(state: StateDict) -> dict[str, Any]:
    """Options of the network behind a state in our key names."""
    try:
        stages = [_stage(state, i) for i in range(1 + max(int(k.split(".")[1]) for k in state if "stages." in k))]
        names = ("widths", "depths", "heads", "key_dim", "tables", "kernels")
        options: dict[str, Any] = dict(zip(names, zip(*stages, strict=True), strict=True))
        options["kernels"] = max(options["kernels"], key=len)
        options["img_size"], options["window"] = _size_of(options.pop("tables"))
        options["in_chans"] = state["stem.0.conv.weight"].shape[1]
        options["num_classes"] = state["head.linear.weight"].shape[0] if "head.linear.weight" in state else 0
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"these weights look like an EfficientViT, but they describe none: {error}") from error
    options["distillation"] = "head_dist.linear.weight" in state
    return options


def _stage(state: StateDict, i: int) -> tuple[int, int, int, int, int, tuple[int, ...]]:
    """Width, depth, heads, channels of the queries, side of the windows, kernels."""
    skip = 3 if i else 0  # a transition comes first
    attention = f"stages.{i}.{skip}.mixer.attn"
    depth = 1 + max(int(k.split(".")[2]) for k in state if k.startswith(f"stages.{i}.")) - skip
    heads, places = state[f"{attention}.attention_biases"].shape
    width = state[f"{attention}.proj.conv.weight"].shape[0]
    kernels = tuple(state[f"{attention}.dws.{n}.conv.weight"].shape[-1] for n in range(heads))
    key_dim = state[f"{attention}.dws.0.conv.weight"].shape[0]
    return width, depth, heads, key_dim, round(places**0.5), kernels


def _size_of(tables: Sequence[int]) -> tuple[int, int | tuple[int, ...]]:
    """A size of pictures, and windows, for which the tables have these sides. The tables allow several."""
    for windows in ([max(tables)] * len(tables), list(tables)):
        for size in _SIZES:
            if sides(size, windows) == list(tables):
                return size, windows[0] if len(set(windows)) == 1 else tuple(windows)
    raise ValueError(f"no size of pictures has windows of {', '.join(map(str, tables))}")


def _recipe(ours: StateDict) -> Recipe:
    ours = {name: value for name, value in ours.items() if not name.endswith("attention_bias_idxs")}
    return named("efficientvit", VARIANTS, _describe(ours), ours)


@recognise("efficientvit", keys=("patch_embed.0.c.weight", "blocks2.1.conv1.c.weight", "blocks*.attention_biases"))
def from_official(state: StateDict) -> Recipe | None:
    """Checkpoints of the published code. The size of the pictures follows from the tables, 224 px where that fits."""
    return _recipe(renamed_official(state))


@recognise(
    "efficientvit",
    keys=("patch_embed.conv1.conv.weight", "stages.1.downsample.patchmerge.conv1.conv.weight", "*.attention_biases"),
)
def from_timm(state: StateDict) -> Recipe | None:
    """Checkpoints of timm's zoo."""
    return _recipe(renamed_timm(state))
