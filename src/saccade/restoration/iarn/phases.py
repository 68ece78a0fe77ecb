"""What ties a small picture to a large one, as banded matrices along each axis: resizing, and what a small pixel hides.

For n large and m small samples, r = m / n, large sample i lies in small pixel q(i) = floor((i + 1/2) r), off its centre
by p(i) = (i + 1/2) r - q(i) - 1/2 in [-1/2, 1/2). That offset is the position-aware scale encoding; it enters through
cosines over the small pixel, c_0 = 1 and c_k(i) = sqrt(2) cos(k pi (p(i) + 1/2)):

    down        (m, n)     MATLAB's bicubic, antialiased
    up          (n, m)     MATLAB's bicubic
    analysis    (K m, n)   mean over the small pixel of c_k times the sample, k = 0 .. K-1 one below the other
    synthesis   (n, K m)   sum over k of c_k(i) times what the small pixel q(i) has for k

At factor 2, analysis is Haar's transform and synthesis its inverse; at 4, with K = 4, they are DCTs of 4 samples; at
other factors they are what comes nearest, at any place of the picture, from sizes alone.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saccade.ops.resize.weights import Axis

__all__ = ["Banded", "Maps", "Window", "gather", "large_range", "maps", "scatter", "window"]

BLOCK = 64  # outputs of a piece
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Banded:
    """A matrix that is zero but near its diagonal, as dense pieces along it.

    Attributes:
        pieces: (outputs, inputs, weight) each; weight is (made * outputs, given * inputs).
        outputs, inputs: how many there are of one function.
        made, given: functions in the output and the input, one below the other.
    """

    pieces: tuple[tuple[tuple[int, int], tuple[int, int], Tensor], ...]
    outputs: int
    inputs: int
    made: int = 1
    given: int = 1

    def rows(self, x: Tensor) -> Tensor:
        """(..., given * inputs, X) -> (..., made * outputs, X)."""
        whole = x.unflatten(-2, (self.given, self.inputs))
        parts = []
        for (begin, end), (first, last), weight in self.pieces:
            source = whole[..., first:last, :].flatten(-3, -2)
            parts.append((weight.to(x) @ source).unflatten(-2, (self.made, end - begin)))
        return (parts[0] if len(parts) == 1 else torch.cat(parts, -2)).flatten(-3, -2)

    def columns(self, x: Tensor) -> Tensor:
        """(..., X, given * inputs) -> (..., X, made * outputs)."""
        return self.rows(x.transpose(-1, -2)).transpose(-1, -2)

    def dense(self) -> Tensor:
        """The matrix, (made * outputs, given * inputs): the slow truth."""
        whole = torch.zeros(self.made, self.outputs, self.given, self.inputs)
        for (begin, end), (first, last), weight in self.pieces:
            whole[:, begin:end, :, first:last] = weight.view(self.made, end - begin, self.given, last - first)
        return whole.view(self.made * self.outputs, self.given * self.inputs)


@dataclass(frozen=True)
class Maps:
    """The maps of one axis."""

    down: Banded  # m from n
    up: Banded  # n from m
    analysis: Banded  # K m from n
    synthesis: Banded  # n from K m


@dataclass(frozen=True)
class Window:
    """A part of a picture in both sizes: both axes, rows then columns.

    Attributes:
        sizes: (H, h) and (W, w) of the whole picture.
        small: which small pixels the part holds, (first, behind the last).
        large: which large ones.
    """

    sizes: tuple[tuple[int, int], tuple[int, int]]
    small: tuple[tuple[int, int], tuple[int, int]]
    large: tuple[tuple[int, int], tuple[int, int]]

    @property
    def ratios(self) -> tuple[float, float]:
        """h / H and w / W, from whole numbers: the same in both directions."""
        (n, m), (k, j) = self.sizes
        return m / n, j / k


def window(
    large: tuple[int, int],
    small: tuple[int, int],
    rows: tuple[int, int] | None = None,
    columns: tuple[int, int] | None = None,
) -> Window:
    """The window of small rows and columns (all, if not given) of a picture of these two sizes (height, width)."""
    cut = (rows or (0, small[0]), columns or (0, small[1]))
    sizes = ((large[0], small[0]), (large[1], small[1]))
    wide = tuple(large_range(n, m, part) for (n, m), part in zip(sizes, cut, strict=True))
    return Window(sizes, cut, (wide[0], wide[1]))


def large_range(n: int, m: int, part: tuple[int, int]) -> tuple[int, int]:
    """The large samples that lie in the small pixels ``part`` = (first, behind the last)."""
    return tuple(max(0, min(n, -((m - 2 * q * n) // (2 * m)))) for q in part)  # type: ignore[return-value]


def maps(n: int, m: int, functions: int, small: tuple[int, int], large: tuple[int, int]) -> Maps:
    """The maps of one axis, cut to the small pixels ``small`` and the large samples ``large``."""
    # what is made inside of a graph has no values outside of it, so it is not kept
    return (_maps if torch.compiler.is_compiling() else _kept_maps)(n, m, functions, small, large)


def _maps(n: int, m: int, functions: int, small: tuple[int, int], large: tuple[int, int]) -> Maps:
    wide, narrow = large[1] - large[0], small[1] - small[0]
    place = np.arange(*large) * 2 * m + m  # (i + 1/2) r in units of 1 / 2n: whole numbers, so no rounding
    inside = place // (2 * n)
    offset = (place - inside * 2 * n) / (2 * n)  # p + 1/2 in [0, 1)
    waves = np.stack([np.ones(wide), *(math.sqrt(2) * np.cos(k * math.pi * offset) for k in range(1, functions))])
    analysis, synthesis = [], []
    for first in range(0, narrow, BLOCK):
        pixels = (first, min(first + BLOCK, narrow))
        begin, end = (v - large[0] for v in large_range(n, m, (pixels[0] + small[0], pixels[1] + small[0])))
        member = np.zeros((end - begin, pixels[1] - pixels[0]))
        member[np.arange(end - begin), inside[begin:end] - small[0] - first] = 1
        mean = (member / np.maximum(member.sum(0), 1)).T
        own = waves[:, begin:end]
        analysis.append((pixels, (begin, end), np.concatenate([mean * wave for wave in own])))
        synthesis.append(((begin, end), pixels, np.concatenate([member * wave[:, None] for wave in own], 1)))
    return Maps(
        _banded(_cut(Axis(n, m, m / n), small, large), narrow, wide),
        _banded(_cut(Axis(m, n, n / m), large, small), wide, narrow),
        _banded(analysis, narrow, wide, made=functions),
        _banded(synthesis, wide, narrow, given=functions),
    )


_kept_maps = functools.lru_cache(maxsize=128)(_maps)

Piece = tuple[tuple[int, int], tuple[int, int], Array]


def _banded(pieces: list[Piece], outputs: int, inputs: int, *, made: int = 1, given: int = 1) -> Banded:
    with torch.inference_mode(False):  # they are kept, and may be needed for gradients later
        ready = tuple((o, s, torch.from_numpy(np.ascontiguousarray(w, np.float32))) for o, s, w in pieces)
    return Banded(ready, outputs, inputs, made, given)


def _cut(axis: Axis, outs: tuple[int, int], sources: tuple[int, int]) -> list[Piece]:
    """The pieces of an axis' matrix with rows ``outs`` and columns ``sources``, counted from there."""
    pieces: list[Piece] = []
    for band in axis.bands(BLOCK):
        top, bottom = max(band.out.start, outs[0]), min(band.out.stop, outs[1])
        left, right = max(band.source.start, sources[0]), max(min(band.source.stop, sources[1]), sources[0])
        if top >= bottom:
            continue
        weight = band.weight[top - band.out.start : bottom - band.out.start]
        weight = weight[:, max(0, left - band.source.start) : max(0, right - band.source.start)]
        right = left + weight.shape[1]
        pieces.append(((top - outs[0], bottom - outs[0]), (left - sources[0], right - sources[0]), weight))
    return pieces


def gather(x: Tensor, functions: int) -> Tensor:
    """(B, C, K h, K w), functions one below the other, -> (B, C K K, h, w)."""
    batch, channels, height, width = x.shape
    x = x.view(batch, channels, functions, height // functions, functions, width // functions)
    return x.permute(0, 1, 2, 4, 3, 5).flatten(1, 3)


def scatter(x: Tensor, functions: int) -> Tensor:
    """(B, C K K, h, w) -> (B, C, K h, K w): undoes `gather`."""
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels // functions**2, functions, functions, height, width)
    return x.permute(0, 1, 2, 4, 3, 5).reshape(batch, -1, functions * height, functions * width)
