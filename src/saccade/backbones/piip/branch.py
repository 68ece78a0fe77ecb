"""A branch: a plain vision transformer whose blocks run a range at a time, and whose class token is kept aside.

Its blocks are those of DeiT and AugReg; those of InternViT-6B: RMS norms, also of queries and keys over all heads, and
no bias before these; or those of BEiT within windows: every score has a bias that is learnt for the offset between the
query and the key, in place of position tables.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from torch import Tensor, nn

from saccade.checkpoint import StateDict
from saccade.errors import CheckpointError, UsageError
from saccade.nn.windows import join_windows, split_windows

__all__ = ["KINDS", "Block", "Branch", "relative_bias", "resized_table"]

EPS = 1e-6
KINDS = ("vit", "intern", "beit")  # of blocks
Grid = tuple[int, int]


def resized_table(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """A position table (1, side^2, C) for another grid, bicubic: (1, height * width, C)."""
    side = round(table.shape[1] ** 0.5)
    if (side, side) == grid:
        return table
    plane = table.transpose(1, 2).reshape(1, -1, side, side)
    wide = F.interpolate(plane.float(), size=grid, mode="bicubic", align_corners=False)
    return wide.flatten(2).mT.to(table.dtype)


def relative_bias(table: Tensor, size: int) -> Tensor:
    """What BEiT adds to the scores of a window: for each head one number for each offset from key to query.

    Args:
        table: ((2 size - 1)^2, heads), offsets from -(size - 1) to size - 1, rows before columns.
        size: side of the window in cells.

    Returns:
        (1, heads, size^2, size^2), queries before keys.
    """
    steps = torch.arange(size, device=table.device)
    offsets = steps[:, None] - steps + size - 1  # (query, key) along an axis
    rows = offsets[:, None, :, None] * (2 * size - 1) + offsets[None, :, None, :]  # (y, x of query, y, x of key)
    return table[rows.reshape(size**2, size**2)].permute(2, 0, 1)[None]


class Block(nn.Module):
    """x + gamma_1 attention(norm(x)) --> + gamma_2 mlp(norm(x)); plain, or with the scales of LayerScale.

    Args:
        width: channels C.
        heads: of the attention; they divide C.
        mlp_ratio: hidden channels of the feed-forward, as a multiple of C.
        drop_path: probability that a branch is left out in training.
        scaled: gamma_1 and gamma_2 are learnt, from 1, in ``"intern"`` blocks from 0.1.
        kind: ``"vit"``, ``"intern"``, or ``"beit"``: see the module's text.
        window: side of windows that attend each on its own, in cells; 0 for none. What is no multiple of it is filled
            up with zeros behind the norm, and these take part (as published).
        gelu: ``"exact"``, or ``"tanh"`` for the approximation that fused feed-forwards make.

    Shape: (B, N, C) -> (B, N, C); with windows N is height * width of ``grid``.

    Raises:
        UsageError: no such kind or GELU; blocks of BEiT without a window.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float,
        drop_path: float,
        scaled: bool,
        kind: str = "vit",
        window: int = 0,
        gelu: str = "exact",
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise UsageError(f"blocks are of the kind 'vit', 'intern' or 'beit', not {kind!r}")
        if kind == "beit" and not window:
            raise UsageError("blocks of the kind 'beit' learn biases within windows: tell their side, window=14")
        if gelu not in ("exact", "tanh"):
            raise UsageError(f"gelu is 'exact' or 'tanh', not {gelu!r}")
        self.heads, self.window = heads, window
        intern = kind == "intern"
        hidden = int(width * mlp_ratio)
        norm = nn.RMSNorm if intern else nn.LayerNorm
        self.norm1, self.norm2 = norm(width, EPS), norm(width, EPS)
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=not intern), nn.Linear(width, width)
        self.q_norm = nn.RMSNorm(width, EPS) if intern else nn.Identity()
        self.k_norm = nn.RMSNorm(width, EPS) if intern else nn.Identity()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads)) if kind == "beit" else None
        self.approximate = "tanh" if gelu == "tanh" else "none"
        start = 0.1 if intern else 1.0
        self.gamma_1 = nn.Parameter(torch.full((width,), start)) if scaled else None
        self.gamma_2 = nn.Parameter(torch.full((width,), start)) if scaled else None
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        for layer in (self.qkv, self.proj, self.fc1, self.fc2):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def mix(self, x: Tensor) -> Tensor:
        """Multi-head attention of tokens (B, N, C) among each other, before the last layer."""
        q, k, v = self.qkv(x).chunk(3, -1)
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in (self.q_norm(q), self.k_norm(k), v))
        bias = None if self.bias_table is None else relative_bias(self.bias_table, self.window).to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)

    def attend(self, x: Tensor, grid: Grid | None = None) -> Tensor:
        """Attention of all tokens, or within windows."""
        mixed: Tensor = self.proj(self.mix_windows(x, grid) if self.window and grid is not None else self.mix(x))
        return mixed if self.gamma_1 is None else self.gamma_1 * mixed

    def mix_windows(self, x: Tensor, grid: Grid) -> Tensor:
        """`mix` within windows of the grid."""
        (height, width), size = grid, self.window
        plane = F.pad(x.unflatten(1, grid), (0, 0, 0, -width % size, 0, -height % size))
        windows = split_windows(plane, size)
        whole = join_windows(self.mix(windows.flatten(0, 2)).reshape(windows.shape), size)
        return whole[:, :height, :width].flatten(1, 2)

    def feed(self, x: Tensor) -> Tensor:
        """The feed-forward."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x), approximate=self.approximate))
        return out if self.gamma_2 is None else self.gamma_2 * out

    def forward(self, x: Tensor, grid: Grid | None = None) -> Tensor:
        x = x + self.drop_path(self.attend(self.norm1(x), grid))
        out: Tensor = x + self.drop_path(self.feed(self.norm2(x)))
        return out

    @torch.no_grad()
    def fuse(self) -> nn.Module:
        """With the scales inside the last layers of both branches."""
        made = copy.deepcopy(self)
        for layer, gamma in ((made.proj, made.gamma_1), (made.fc2, made.gamma_2)):
            if gamma is not None:
                layer.weight.mul_(gamma[:, None])
                layer.bias.mul_(gamma)
        made.gamma_1 = made.gamma_2 = None
        return made


class Branch(nn.Module):
    """Patch embedding, position table, class token and blocks of one branch.

    The class token gets no position term and never meets another branch (as published).

    Args:
        width, depth, heads, mlp_ratio: of the transformer.
        side: of its pictures in pixels, a multiple of ``patch``.
        patch: side of a patch.
        in_chans: channels of the pictures.
        scaled: blocks with LayerScale.
        with_cls: whether there is a class token; with windows there cannot be one.
        drop_path_rate: of the last block; rises linearly from 0 at the first.
        table: side of the position table in cells; 0 for that of the pictures. It is resized to them as they come.
        windows: of the blocks, repeated over them: ``(24, 24, 0)`` lets every third block attend over the whole map.
        kind, gelu: of the blocks (`Block`); blocks of BEiT go without a position table.

    Raises:
        UsageError: no such kind or GELU, blocks of BEiT without windows, a window with a class token, a negative one.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float,
        *,
        side: int,
        patch: int,
        in_chans: int,
        scaled: bool,
        with_cls: bool,
        drop_path_rate: float,
        table: int = 0,
        windows: Sequence[int] = (0,),
        kind: str = "vit",
        gelu: str = "exact",
    ) -> None:
        super().__init__()
        if not windows or min(windows) < 0 or (any(windows) and with_cls):
            raise UsageError(
                f"windows have at least one cell and no class token: window={tuple(windows)}, with_cls={with_cls}"
            )
        self.patch = patch
        self.patch_embed = nn.Conv2d(in_chans, width, patch, patch)
        places = (table or side // patch) ** 2
        self.pos_embed = None if kind == "beit" else nn.Parameter(torch.zeros(1, places, width))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if with_cls else None
        rates = [drop_path_rate * i / max(1, depth - 1) for i in range(depth)]
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio, rate, scaled, kind, windows[i % len(windows)], gelu)
            for i, rate in enumerate(rates)
        )
        for table_or_token in (self.pos_embed, self.cls_token):
            if table_or_token is not None:
                nn.init.trunc_normal_(table_or_token, std=0.02)

    def embed(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Tokens of the patches (B, N, C) with positions, and the class token (B, 1, C) if there is one."""
        tokens = self.patch_embed(x).flatten(2).mT
        height, width = x.shape[2] // self.patch, x.shape[3] // self.patch
        cls = None if self.cls_token is None else self.cls_token.expand(x.shape[0], -1, -1)
        return (tokens if self.pos_embed is None else tokens + resized_table(self.pos_embed, (height, width))), cls

    def run(
        self, x: Tensor, cls: Tensor | None, first: int, last: int, grid: Grid | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Blocks ``first`` to ``last``, the class token in front meanwhile; windows need the grid."""
        joined = x if cls is None else torch.cat([cls, x], 1)
        for i in range(first, last + 1):
            joined = self.blocks[i](joined, grid)
        return (joined, None) if cls is None else (joined[:, 1:], joined[:, :1])

    @torch.no_grad()
    def load_vit(self, state: StateDict) -> None:
        """Take the weights of a plain vision transformer (key names of timm and DeiT), or of a BEiT.

        Its position table or tables of biases and its patches are resized, bicubic; the class token's slots of tables,
        where there are any, are dropped. A head and a final norm are left aside; scales that are missing become 1.

        Raises:
            CheckpointError: weights of another width or depth, or other names.
            UsageError: a table that is no square.
        """
        ours = {k: v for k, v in plain_names(state).items() if k.startswith(("patch_embed", "pos_embed", "blocks"))}
        if self.cls_token is not None and "cls_token" in state:
            ours["cls_token"] = state["cls_token"]
        own = self.state_dict()
        for name in [k for k in ours if k in own and k.endswith(("pos_embed", "bias_table"))]:
            table, side = ours[name], math.isqrt(own[name].numel() // own[name].shape[-1])
            table = squared(table[None] if table.dim() == 2 else table)
            ours[name] = resized_table(table, (side, side)).reshape(own[name].shape)
        if "patch_embed.weight" in ours and ours["patch_embed.weight"].shape[-1] != self.patch:
            kernel = F.interpolate(ours["patch_embed.weight"], (self.patch, self.patch), mode="bicubic")
            ours["patch_embed.weight"] = kernel
        for name, value in own.items():
            ours.setdefault(name, torch.ones_like(value) if ".gamma_" in name else value)
        wrong = [k for k, v in own.items() if ours[k].shape != v.shape] + sorted(ours.keys() - own.keys())
        lost = [k for k in own if "gamma" not in k and k != "cls_token" and k not in plain_names(state)]
        if wrong or lost:
            raise CheckpointError(f"these weights do not fit this branch: {', '.join((wrong + lost)[:3])}")
        self.load_state_dict(ours)


def squared(table: Tensor) -> Tensor:
    """A table without the class token's slots: (1, side^2, C). Positions have one before, biases of BEiT three behind.

    Raises:
        UsageError: no square either way.
    """
    count = table.shape[1]
    for first, last in ((0, count), (1, count), (0, count - 3)):
        if last > first and math.isqrt(last - first) ** 2 == last - first:
            return table[:, first:last]
    raise UsageError(f"a position table of {count} places is no square, nor is it one without the class token")


def plain_names(state: StateDict) -> StateDict:
    """A plain vision transformer, or BEiT, under our names."""
    return joined_biases({plain_name(name): value for name, value in state.items()})


def plain_name(name: str) -> str:
    """Our name of one tensor of such a transformer."""
    changes = (
        ("patch_embed.proj.", "patch_embed."),
        (".attn.", "."),
        (".mlp.", "."),
        (".ls1.gamma", ".gamma_1"),
        (".ls2.gamma", ".gamma_2"),
        (".ls1", ".gamma_1"),
        (".ls2", ".gamma_2"),
        (".relative_position_bias_table", ".bias_table"),
    )
    for theirs, ours in changes:
        name = name.replace(theirs, ours)
    return name


def joined_biases(state: StateDict) -> StateDict:
    """The biases of queries and values, apart in BEiT, as those of one layer; keys have none, which changes no softmax.

    Places in the table, which BEiT stores beside it, are left out.
    """
    made = {k: v for k, v in state.items() if not k.endswith((".q_bias", ".v_bias", ".relative_position_index"))}
    for name, query in state.items():
        block = name.removesuffix(".q_bias")
        if block != name and f"{block}.v_bias" in state:
            made[f"{block}.qkv.bias"] = torch.cat([query, torch.zeros_like(query), state[f"{block}.v_bias"]])
    return made
