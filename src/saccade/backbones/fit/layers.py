"""What FIT's networks are made of: attention, feed-forward, tables of positions, the string that says how many."""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import UsageError
from saccade.nn.drop_path import drop_path

__all__ = ["Attention", "Cross", "FeedForward", "Layer", "block_causal", "layer_pattern", "sin_cos", "sin_cos_2d"]

EPS = 1e-6
FARTHEST = 1000.0  # the coordinate of the last place of a table


def layer_pattern(text: str) -> list[tuple[int, int]]:
    """``"(4)24(4)"`` -> [(4, 24), (4, 0)]: local layers in brackets, then global ones, block by block.

    Raises:
        UsageError: another form, or a block before the last without global layers.
    """
    whole = text + "0" if isinstance(text, str) and text.endswith(")") else text
    if not isinstance(whole, str) or not re.fullmatch(r"(\(\d{1,3}\)\d{1,3})+", whole):
        raise UsageError(f"layers are like '(4)24(4)': local layers in brackets, then global ones, not {text!r}")
    found = [(int(a), int(b)) for a, b in re.findall(r"\((\d+)\)(\d+)", whole)]
    if any(b == 0 for _, b in found[:-1]):
        raise UsageError(f"only the last block of {text!r} may be without global layers")
    return found


def sin_cos(places: Tensor, width: int) -> Tensor:
    """[sin of even | cos of odd] angles p / 10000^(2 floor(i/2) / width): (...,) -> (..., width), not interleaved."""
    i = torch.arange(width, device=places.device)
    angles = places[..., None] / 10000 ** (2 * (i // 2) / width)
    return torch.cat([angles[..., 0::2].sin(), angles[..., 1::2].cos()], -1)


def _coordinates(count: int, farthest: float) -> Tensor:
    if count < 2:
        raise UsageError("a sin_cos table of one place divides by nothing: take 'learned', or more places")
    return torch.arange(count) / (count - 1) * farthest


def sin_cos_table(count: int, width: int, farthest: float = FARTHEST) -> Tensor:
    """Positions along a line, from 0 to ``farthest``: (count, width).

    Raises:
        UsageError: a single place, for which the published code gives NaN, or an odd width.
    """
    _check_width(width, 2)
    return sin_cos(_coordinates(count, farthest), width)


def sin_cos_2d(rows: int, columns: int, width: int, farthest: float = FARTHEST) -> Tensor:
    """Positions on a grid, row in the first half of the channels, column in the second: (rows, columns, width).

    Raises:
        UsageError: a single row or column, or a width that does not divide by 4.
    """
    _check_width(width, 4)
    y, x = (sin_cos(_coordinates(n, farthest), width // 2) for n in (rows, columns))
    return torch.cat([y[:, None].expand(-1, columns, -1), x[None].expand(rows, -1, -1)], -1)


def _check_width(width: int, divisor: int) -> None:
    if width % divisor:
        raise UsageError(f"sine and cosine tables of this kind have a width that divides by {divisor}, not {width}")


def block_causal(groups: int, size: int) -> Tensor:
    """(groups * size, same) bool, True where row may look at column: at its own group and those before it."""
    group = torch.arange(groups * size) // size
    return group[:, None] >= group


class Attention(nn.Module):
    """Multi-head attention with a width of its own and biases everywhere, q and what it attends normalised before.

    Args:
        width: of what asks, and of the result.
        heads: of the attention.
        inner: of queries, keys and values; None for ``width``.
        source: width of what is attended, where that is something else; None for self-attention.
        normalise_source: a layer norm of its own on the source.

    Shape: (B, N, width), (B, M, source) -> (B, N, width), without the shortcut.

    Raises:
        UsageError: heads that do not divide the inner width.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        inner: int | None = None,
        source: int | None = None,
        normalise_source: bool = True,
    ) -> None:
        super().__init__()
        inner = width if inner is None else inner
        if heads < 1 or inner % heads:
            raise UsageError(f"{heads} heads do not divide a width of {inner}")
        self.heads, self.crosses = heads, source is not None
        self.ln = nn.LayerNorm(width, EPS)
        self.enc_ln = nn.LayerNorm(source, EPS) if source is not None and normalise_source else nn.Identity()
        self.query = nn.Linear(width, inner)
        self.key, self.value = (nn.Linear(width if source is None else source, inner) for _ in "kv")
        self.attention_output = nn.Linear(inner, width)

    def split(self, x: Tensor) -> Tensor:
        """(B, N, inner) -> (B, heads, N, inner / heads)."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def forward(
        self,
        x: Tensor,
        source: Tensor | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
        cache: list[Tensor] | None = None,
    ) -> Tensor:
        x = self.ln(x)
        told = x if source is None else self.enc_ln(source)
        q, k, v = self.split(self.query(x)), self.split(self.key(told)), self.split(self.value(told))
        if cache is not None:  # what was asked before comes first; it saw nothing of what comes now
            if cache:
                k, v = torch.cat([cache[0], k], 2), torch.cat([cache[1], v], 2)
            cache[:] = [k, v]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal and q.shape[2] == k.shape[2])
        out: Tensor = self.attention_output(mixed.transpose(1, 2).flatten(2))
        return out


class FeedForward(nn.Module):
    """dense2(GELU(dense1(norm(x)))), without the shortcut."""

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(width, EPS)
        self.dense1, self.dense2 = nn.Linear(width, int(width * ratio)), nn.Linear(int(width * ratio), width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.dense2(F.gelu(self.dense1(self.ln(x))))
        return out


class Layer(nn.Module):
    """Self-attention and feed-forward with shortcuts, norms before.

    Args:
        width, heads, ratio: of the two.
        attends: False leaves the feed-forward alone.
        rate: chance of a branch to be left out in training.
    """

    def __init__(self, width: int, heads: int, ratio: float, attends: bool = True, rate: float = 0.0) -> None:
        super().__init__()
        self.mha = Attention(width, heads) if attends else None
        self.ffn = FeedForward(width, ratio)
        self.drop = drop_path(rate)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, causal: bool = False, cache: list[Tensor] | None = None
    ) -> Tensor:
        if self.mha is not None:
            x = x + self.drop(self.mha(x, mask=mask, causal=causal, cache=cache))
        out: Tensor = x + self.drop(self.ffn(x))
        return out


class Cross(nn.Module):
    """x + attention of x to a source; with ``ratio`` a feed-forward after it."""

    def __init__(
        self, width: int, source: int, heads: int, inner: int, ratio: float = 0.0, normalise_source: bool = True
    ) -> None:
        super().__init__()
        self.mha = Attention(width, heads, inner, source, normalise_source)
        self.ffn = FeedForward(width, ratio) if ratio else None

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        x = x + self.mha(x, source)
        return x if self.ffn is None else x + self.ffn(x)
