"""A branch: a plain vision transformer whose blocks run a range at a time, and whose class token is kept aside."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from torch import Tensor, nn

from saccade.checkpoint import StateDict
from saccade.errors import CheckpointError, UsageError

__all__ = ["Block", "Branch", "resized_table"]

EPS = 1e-6


def resized_table(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """A position table (1, side^2, C) for another grid, bicubic: (1, height * width, C)."""
    side = round(table.shape[1] ** 0.5)
    if (side, side) == grid:
        return table
    plane = table.transpose(1, 2).reshape(1, -1, side, side)
    wide = F.interpolate(plane.float(), size=grid, mode="bicubic", align_corners=False)
    return wide.flatten(2).mT.to(table.dtype)


class Block(nn.Module):
    """x + gamma_1 attention(norm(x)) --> + gamma_2 mlp(norm(x)); plain, or with the scales of LayerScale.

    Args:
        width: channels C.
        heads: of the attention; they divide C.
        mlp_ratio: hidden channels of the feed-forward, as a multiple of C.
        drop_path: probability that a branch is left out in training.
        scaled: gamma_1 and gamma_2 are learnt, from 1.

    Shape: (B, N, C) -> (B, N, C).
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float, drop_path: float, scaled: bool) -> None:
        super().__init__()
        self.heads = heads
        hidden = int(width * mlp_ratio)
        self.norm1, self.norm2 = nn.LayerNorm(width, EPS), nn.LayerNorm(width, EPS)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.gamma_1 = nn.Parameter(torch.ones(width)) if scaled else None
        self.gamma_2 = nn.Parameter(torch.ones(width)) if scaled else None
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        for layer in (self.qkv, self.proj, self.fc1, self.fc2):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def attend(self, x: Tensor) -> Tensor:
        """Multi-head attention of all tokens."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed: Tensor = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return mixed if self.gamma_1 is None else self.gamma_1 * mixed

    def feed(self, x: Tensor) -> Tensor:
        """The feed-forward."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out if self.gamma_2 is None else self.gamma_2 * out

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attend(self.norm1(x)))
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
        with_cls: whether there is a class token.
        drop_path_rate: of the last block; rises linearly from 0 at the first.
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
    ) -> None:
        super().__init__()
        self.patch = patch
        self.patch_embed = nn.Conv2d(in_chans, width, patch, patch)
        self.pos_embed = nn.Parameter(torch.zeros(1, (side // patch) ** 2, width))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if with_cls else None
        rates = [drop_path_rate * i / max(1, depth - 1) for i in range(depth)]
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio, rate, scaled) for rate in rates)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        if self.cls_token is not None:
            nn.init.trunc_normal_(self.cls_token, std=0.02)

    def embed(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Tokens of the patches (B, N, C) with positions, and the class token (B, 1, C) if there is one."""
        tokens = self.patch_embed(x)
        height, width = x.shape[2] // self.patch, x.shape[3] // self.patch
        cls = None if self.cls_token is None else self.cls_token.expand(x.shape[0], -1, -1)
        return tokens.flatten(2).mT + resized_table(self.pos_embed, (height, width)), cls

    def run(self, x: Tensor, cls: Tensor | None, first: int, last: int) -> tuple[Tensor, Tensor | None]:
        """Blocks ``first`` to ``last``, the class token in front meanwhile."""
        joined = x if cls is None else torch.cat([cls, x], 1)
        for i in range(first, last + 1):
            joined = self.blocks[i](joined)
        return (joined, None) if cls is None else (joined[:, 1:], joined[:, :1])

    @torch.no_grad()
    def load_vit(self, state: StateDict) -> None:
        """Take the weights of a plain vision transformer (key names of timm and DeiT).

        Its position table and patches are resized, bicubic; the class token's slot of the table, where there is one,
        is dropped. A head and a final norm are left aside; scales that are missing become 1.

        Raises:
            CheckpointError: weights of another width or depth, or other names.
            UsageError: a table that is no square.
        """
        ours = {k: v for k, v in plain_names(state).items() if k.startswith(("patch_embed", "pos_embed", "blocks"))}
        if self.cls_token is not None and "cls_token" in state:
            ours["cls_token"] = state["cls_token"]
        own = self.state_dict()
        if "pos_embed" in ours:
            table = squared(ours["pos_embed"])
            side = round(self.pos_embed.shape[1] ** 0.5)
            ours["pos_embed"] = resized_table(table, (side, side))
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
    """A position table without the class token's slot: (1, side^2, C).

    Raises:
        UsageError: no square either way.
    """
    count = table.shape[1]
    for skip in (0, 1):
        if round((count - skip) ** 0.5) ** 2 == count - skip:
            return table[:, skip:]
    raise UsageError(f"a position table of {count} places is no square, nor is it one without the class token")


def plain_names(state: StateDict) -> StateDict:
    """The names of a plain vision transformer in ours."""
    changes = (
        ("patch_embed.proj.", "patch_embed."),
        (".attn.", "."),
        (".mlp.", "."),
        (".ls1.gamma", ".gamma_1"),
        (".ls2.gamma", ".gamma_2"),
        (".ls1", ".gamma_1"),
        (".ls2", ".gamma_2"),
    )
    made: StateDict = {}
    for name, value in state.items():
        for theirs, ours in changes:
            name = name.replace(theirs, ours)
        made[name] = value
    return made
