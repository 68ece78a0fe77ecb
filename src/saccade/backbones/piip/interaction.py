"""What neighbouring branches tell each other: cross attention between their grids, and a small convolutional MLP.

    a (larger network, coarse grid)   a' = injected(a, project(b))
    b (smaller network, fine grid)    b' = injected(b, project(a))        both of what was before the exchange

    injected(q, f):   q + gamma attention(norm(q), norm(f)) --> + gamma' feed-forward(norm(q))

All gammas start at zero: a fresh network is its branches, side by side.
"""

from __future__ import annotations

import copy
import math
from typing import TypedDict, Unpack

import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from torch import Tensor, nn

from saccade.errors import UsageError
from saccade.ops.deform_attention import centres, deform_attention

__all__ = ["ConvFeedForward", "CrossAttention", "DeformAttention", "Exchange", "Injector", "InteractionUnit"]

EPS = 1e-6
Grid = tuple[int, int]


class Exchange(TypedDict, total=False):
    """What the `Injector`s of a network have in common; their docstring says what each is."""

    heads: int
    points: int
    ratio: float
    cffn_ratio: float
    attention: str
    drop_path: float
    norms: bool


class DeformAttention(nn.Module):
    """Each query reads ``points`` places of the other map for each head, around its own place.

    Args:
        width: channels C of the queries.
        source: channels of the map that is read.
        heads: they divide C and ``int(C * ratio)``.
        points: places for each head.
        ratio: channels of the values, as a share of C.

    Shape: queries (B, N, C) on a grid, features (B, K, source) on another -> (B, N, C).
    """

    def __init__(self, width: int, source: int, heads: int, points: int, ratio: float) -> None:
        super().__init__()
        values = int(width * ratio)
        if heads < 1 or points < 1 or width % heads or values % heads or not values:
            raise UsageError(f"{heads} heads do not divide {width} channels and {values} of the values")
        self.heads, self.points = heads, points
        self.sampling_offsets = nn.Linear(width, heads * points * 2)
        self.attention_weights = nn.Linear(width, heads * points)
        self.value_proj, self.output_proj = nn.Linear(source, values), nn.Linear(values, width)
        self._start()

    @torch.no_grad()
    def _start(self) -> None:
        """Heads look in directions of their own, the n-th point n pixels away, all with the same weight."""
        angles = torch.arange(self.heads, dtype=torch.float32) * (2 * math.pi / self.heads)
        ways = torch.stack([angles.cos(), angles.sin()], -1)
        ways = ways / ways.abs().amax(-1, keepdim=True)
        steps = torch.arange(1.0, self.points + 1)
        self.sampling_offsets.bias.copy_((ways[:, None] * steps[:, None]).flatten())
        for weight in (self.sampling_offsets.weight, self.attention_weights.weight, self.attention_weights.bias):
            weight.zero_()
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            layer.bias.zero_()

    @property
    def last(self) -> nn.Linear:
        """The layer that a scale of the output can go into."""
        return self.output_proj

    def forward(self, query: Tensor, feat: Tensor, grid: Grid, other: Grid) -> Tensor:
        value = self.value_proj(feat).unflatten(2, (self.heads, -1))
        offsets = self.sampling_offsets(query).unflatten(2, (self.heads, 1, self.points, 2))
        weights = self.attention_weights(query).unflatten(2, (self.heads, 1, self.points)).softmax(-1)
        scale = offsets.new_tensor([1 / other[1], 1 / other[0]])
        places = centres(*grid, query)[:, None, None, None] + offsets * scale
        out: Tensor = self.output_proj(deform_attention(value, [other], places, weights))
        return out


class CrossAttention(nn.Module):
    """Attention of every query to every feature; the plain alternative.

    Shape: queries (B, N, C), features (B, K, source) -> (B, N, C).
    """

    def __init__(self, width: int, source: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise UsageError(f"{heads} heads do not divide {width} channels")
        self.heads = heads
        self.wq = nn.Linear(width, width, bias=False)
        self.wk, self.wv = nn.Linear(source, width, bias=False), nn.Linear(source, width, bias=False)
        self.proj = nn.Linear(width, width)

    @property
    def last(self) -> nn.Linear:
        """The layer that a scale of the output can go into."""
        return self.proj

    def forward(self, query: Tensor, feat: Tensor, grid: Grid, other: Grid) -> Tensor:
        q, k, v = (
            layer(t).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer, t in ((self.wq, query), (self.wk, feat), (self.wv, feat))
        )
        out: Tensor = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out


class ConvFeedForward(nn.Module):
    """Linear, 3x3 depthwise on the grid, GELU, linear. Shape: (B, N, C) -> (B, N, C)."""

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        hidden = int(width * ratio)
        if hidden < 1:
            raise UsageError(f"cffn_ratio {ratio} leaves no channel of {width}")
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        plane = self.fc1(x).mT.unflatten(2, grid)
        out: Tensor = self.fc2(F.gelu(self.dwconv(plane).flatten(2).mT))
        return out


class Injector(nn.Module):
    """What one branch takes from another.

    Args:
        width: channels of the queries.
        source: channels of the features.
        heads, points, ratio: of the attention.
        cffn_ratio: hidden channels of the feed-forward, a share of ``width``; 0 for none.
        attention: ``"deform"`` or ``"normal"``.
        drop_path: of the feed-forward alone.
        norms: False leaves the layer norms out, as the pyramids with InternViT-6B do.

    Raises:
        UsageError: another attention, or heads that do not divide the channels.
    """

    def __init__(
        self,
        width: int,
        source: int,
        *,
        heads: int = 6,
        points: int = 4,
        ratio: float = 1.0,
        cffn_ratio: float = 0.25,
        attention: str = "deform",
        drop_path: float = 0.0,
        norms: bool = True,
    ) -> None:
        super().__init__()
        if attention not in ("deform", "normal"):
            raise UsageError(f"attention is 'deform' or 'normal', not {attention!r}")
        self.query_norm = nn.LayerNorm(width, EPS) if norms else nn.Identity()
        self.feat_norm = nn.LayerNorm(source, EPS) if norms else nn.Identity()
        self.attn: DeformAttention | CrossAttention
        if attention == "deform":
            self.attn = DeformAttention(width, source, heads, points, ratio)
        else:
            self.attn = CrossAttention(width, source, heads)
        self.ca_gamma: nn.Parameter | None = nn.Parameter(torch.zeros(width))
        self.ffn = ConvFeedForward(width, cffn_ratio) if cffn_ratio else None
        if self.ffn is not None:
            self.ffn_norm = nn.LayerNorm(width, EPS) if norms else nn.Identity()
            self.cffn_gamma: nn.Parameter | None = nn.Parameter(torch.zeros(width))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, query: Tensor, feat: Tensor, grid: Grid, other: Grid) -> Tensor:
        taken = self.attn(self.query_norm(query), self.feat_norm(feat), grid, other)
        query = query + (taken if self.ca_gamma is None else self.ca_gamma * taken)
        if self.ffn is None:
            return query
        fed = self.drop_path(self.ffn(self.ffn_norm(query), grid))
        return query + (fed if self.cffn_gamma is None else self.cffn_gamma * fed)

    @torch.no_grad()
    def fuse(self) -> nn.Module:
        """With the gammas inside the layers before them."""
        made = copy.deepcopy(self)
        pairs = [(made.attn.last, made.ca_gamma)]
        if made.ffn is not None:
            pairs.append((made.ffn.fc2, made.cffn_gamma))
            made.cffn_gamma = None
        for layer, gamma in pairs:
            if gamma is not None:
                layer.weight.mul_(gamma[:, None])
                layer.bias.mul_(gamma)
        made.ca_gamma = None
        return made


class InteractionUnit(nn.Module):
    """The exchange between a larger network and its smaller, finer neighbour.

    Args:
        coarse, fine: channels of both.
        project: bring features to the other's channels first.
        options: of the `Injector`.
    """

    def __init__(self, coarse: int, fine: int, project: bool, **options: Unpack[Exchange]) -> None:
        super().__init__()
        self.fine_proj = nn.Linear(fine, coarse) if project else nn.Identity()
        self.coarse_proj = nn.Linear(coarse, fine) if project else nn.Identity()
        self.into_coarse = Injector(coarse, coarse if project else fine, **options)
        self.into_fine = Injector(fine, fine if project else coarse, **options)

    def forward(self, coarse: Tensor, fine: Tensor, grids: tuple[Grid, Grid]) -> tuple[Tensor, Tensor]:
        from_fine, from_coarse = self.fine_proj(fine), self.coarse_proj(coarse)  # before either has changed
        large, small = grids
        return (
            self.into_coarse(coarse, from_fine, large, small),
            self.into_fine(fine, from_coarse, small, large),
        )
