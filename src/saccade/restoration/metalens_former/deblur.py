"""Deblurring pictures of any size with a user's own point spread functions.

    worker = Deblurrer("psf.npy")                       # one PSF, or one for each cell of a grid over the field
    sharp = worker.array(picture)                       # (H, W, 3) uint8, uint16 or float -> the same
    for sharp in worker.frames(pictures): ...           # a clip: transfer functions and K are kept

    picture -- linear light -- windows: cell + margin -- Wiener bank -- one filter, or a network over M -- blended

A window is a cell of the field, or a part of a large one, and a margin of the PSF's size around it, mirrored beyond
the picture. Neighbours overlap and are cross-faded, so cells leave no seams. Memory holds one row of windows, whatever
the height of the picture. Without a network the filter of least expected error is taken (`levels`).

Blur happens in light, not in the numbers of a JPEG: pictures are taken to be sRGB-encoded and are linearised and
encoded again, unless `linear` says that they are linear already.
"""

from __future__ import annotations

import functools
import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from saccade.budget import check_budget
from saccade.errors import InputError, UsageError
from saccade.restoration.metalens_former import levels, optics, wiener
from saccade.restoration.metalens_former.network import ACFormer
from saccade.restoration.metalens_former.optics import Compat
from saccade.restoration.metalens_former.psfs import psf_field, read_psf

__all__ = ["Deblurrer", "deblur", "psf_field", "read_psf"]

CORE = 1024  # pixels of a window's core
NETWORK_CORE = 256
CONTEXT = 32  # pixels around its core that the network sees besides
KEPT = 256 << 20  # bytes of transfer functions that are kept
SAMPLES = 5  # windows that the choice of K looks at


@dataclass(frozen=True)
class _Layout:
    """How a picture is cut: the edges of the cores, which cell each lies in, and the one size of all windows."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    row_cells: tuple[int, ...]
    column_cells: tuple[int, ...]
    window: tuple[int, int]
    margin: tuple[int, int]
    fade: tuple[int, int]

    @property
    def pixels(self) -> int:
        """Pixels of all windows together: what the transforms cost."""
        return len(self.row_cells) * len(self.column_cells) * math.prod(self.window)


class Deblurrer:
    """Takes a known blur off pictures of any size.

    Args:
        psf: point spread functions (`psf_field` tells the shapes), or a ``.npy`` file of them (`read_psf`).
        model: None for the Wiener bank alone; the name of a model (`ACFormer`), a file of its weights, or the model.
        noise_levels: K of the filters. Without a model: one number that is used, or several of which the best is
            chosen for each picture, by default `levels.CANDIDATES`; brightness is kept. With a model of M filters: M
            numbers, by default 10^-2 to 10^-5 as published.
        linear: pictures hold linear light already (RAW, renderings); else they are sRGB-encoded.
        compat: ``"official"``: the published pipeline. PSFs as they are (not normalised), a border of black, cells
            with one cell around them cut without blending, the picture a whole number of cells, and the pixel shift
            that `optics` describes. The network then sees the whole picture at once, in memory that grows with it; one
            that is loaded by name or file rounds its attention as published (one that is given stays as it is).
        device: of torch.

    Attributes:
        level: the K that the last picture was filtered with; None with a model.

    Raises:
        InputError: unusable PSFs.
        UsageError: K <= 0 or another number of them than the model has filters; a model that reads no Wiener bank.
    """

    def __init__(
        self,
        psf: Any,
        model: str | Path | nn.Module | None = None,
        noise_levels: float | Sequence[float] | None = None,
        *,
        linear: bool = False,
        compat: Compat = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.device, self.linear, self.compat = torch.device(device), linear, compat
        values = read_psf(psf) if isinstance(psf, str | Path) else psf
        self.psfs = psf_field(values, normalise=compat is None).to(self.device)
        self.model = None if model is None else _model(model, compat).to(self.device)
        self.noise_levels = self._levels(noise_levels)
        self.level: float | None = None
        self._budget = 1.0
        self._kept: OrderedDict[tuple[Any, ...], Tensor] = OrderedDict()

    def _levels(self, given: float | Sequence[float] | None) -> tuple[float, ...]:
        if given is not None:
            given = [given] if isinstance(given, int | float) else given
        if self.model is None:
            return wiener.check_levels(levels.CANDIDATES if given is None else given)
        count = self.model.filters
        made = wiener.check_levels(_published(count) if given is None else given)
        if len(made) != count:
            raise UsageError(f"this model reads {count} filtered pictures, got {len(made)} noise levels")
        return made

    @property
    def budget(self) -> float:
        """The density of the PSF grid, as the share of the full grid's cost; 1 uses every PSF.

        A coarser grid has larger cells and so fewer windows that overlap: the finest grid within the budget is taken.
        Below what one PSF for the whole field costs, that one is used.
        """
        return self._budget

    @budget.setter
    def budget(self, value: float) -> None:
        self._budget = check_budget(value)

    def budgets(self) -> tuple[float, ...]:
        """Samples of the dial; 1 alone where there is one PSF."""
        return (0.25, 0.5, 0.75, 1.0) if max(self.psfs.shape[:2]) > 1 and self.compat is None else (1.0,)

    def array(self, picture: np.ndarray, level: float | None = None) -> np.ndarray:
        """A picture without its blur.

        Args:
            picture: (H, W, C) uint8, uint16 or float in [0, 1]; C = 3, or any if the PSF has one colour.
            level: K for this picture, instead of choosing one; without a model only.

        Returns:
            The same shape and dtype.

        Raises:
            InputError: another shape, dtype or number of colours, values that are not finite, a picture smaller than
                its PSF; with ``compat="official"``, no whole number of cells.
            UsageError: a level that is not positive.
        """
        self._check(picture)
        if level is not None:
            (level,) = wiener.check_levels([level])
        made = np.empty(picture.shape, picture.dtype)
        with torch.inference_mode():
            if self.compat == "official" and self.model is not None:
                made[:] = self._encoded(self._whole(picture), picture.dtype)
                return made
            layout = self._layout(*picture.shape[:2])
            self.level = None if self.model else self._chosen(picture, layout) if level is None else level
            for top, rows in self._bands(picture, layout):
                made[top : top + rows.shape[1]] = self._encoded(rows, picture.dtype)
        return made

    def frames(self, pictures: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The frames of a clip, one by one; K is chosen on the first, so that brightness of grain does not flicker."""
        held: float | None = None
        for picture in pictures:
            yield self.array(picture, held)
            held = self.level

    # -- light

    def _check(self, picture: np.ndarray) -> None:
        if not isinstance(picture, np.ndarray) or picture.ndim != 3 or picture.dtype.kind not in "uf":
            kind = f"{picture.dtype} {picture.shape}" if isinstance(picture, np.ndarray) else type(picture).__name__
            raise InputError(f"deblurring takes pictures (H, W, colours) of uint8, uint16 or float, not {kind}")
        if 0 in picture.shape:
            raise InputError(f"deblurring takes pictures (H, W, colours), not empty ones {picture.shape}")
        if picture.dtype.kind == "u" and picture.dtype.itemsize > 2:
            raise InputError(f"deblurring takes uint8, uint16 or float pictures, not {picture.dtype}")
        colours, own = picture.shape[2], self.psfs.shape[-1]
        if own not in (1, colours) or (self.model is not None and colours != 3):
            raise InputError(
                f"a PSF of {own} colour{'s' * (own > 1)}{' and a network on RGB' if self.model else ''} "
                f"cannot deblur a picture of {colours}"
            )
        (height, width), (h, w) = picture.shape[:2], self.psfs.shape[2:4]
        if height < h or width < w:
            raise InputError(f"a picture of {width}x{height} is smaller than its PSF of {w}x{h}")
        if picture.dtype.kind == "f":
            low, high = float(picture.min()), float(picture.max())
            if not (low >= -0.25 and high <= 1.25):
                raise InputError(f"float pictures lie in [0, 1], this one in [{low:.3g}, {high:.3g}]")

    def _light(self, pixels: np.ndarray) -> Tensor:
        """Linear light (C, h, w) float32 of pixels (h, w, C)."""
        if pixels.dtype.kind == "u":
            made = torch.from_numpy(_table(pixels.dtype.itemsize, self.linear)[pixels])
        else:
            made = torch.from_numpy(np.array(pixels, np.float32)).clamp_(0, 1)
            made = made if self.linear else _decoded(made)
        return made.permute(2, 0, 1).to(self.device, memory_format=torch.contiguous_format, copy=True)

    def _encoded(self, light: Tensor, dtype: np.dtype[Any]) -> np.ndarray:
        """Pixels (h, w, C) of light (C, h, w)."""
        light = light.clamp(0, 1)
        if not self.linear:
            light = torch.where(light <= 0.0031308, light * 12.92, 1.055 * light.pow(1 / 2.4) - 0.055)
        if dtype.kind == "u":
            light = light.mul(float(np.iinfo(dtype).max)).round_()
        return light.permute(1, 2, 0).cpu().numpy().astype(dtype)

    # -- windows

    def _layout(self, height: int, width: int) -> _Layout:
        """The finest grid of PSFs within the budget."""
        rows, columns = self.psfs.shape[:2]
        full = self._cut(height, width, rows, columns)
        for n in range(max(rows, columns), 0, -1):
            made = self._cut(height, width, min(rows, n), min(columns, n))
            if made.pixels <= self._budget * full.pixels or n == 1:
                return made
        raise AssertionError

    def _cut(self, height: int, width: int, rows: int, columns: int) -> _Layout:
        side = self.psfs.shape[2], self.psfs.shape[3]
        if self.compat == "official":
            if height % rows or width % columns:
                raise InputError(
                    f"a picture of {width}x{height} is no whole number of {columns}x{rows} cells (compat='official')"
                )
            margin, fade, core = (height // rows, width // columns), (0, 0), max(height, width)
        else:
            context, core = (CONTEXT, NETWORK_CORE) if self.model is not None else (0, CORE)
            margin = max(side[0], 4) + context, max(side[1], 4) + context
            fade = max(2, side[0] // 2), max(2, side[1] // 2)
        edges = [_edges(n, count, core) for n, count in ((height, rows), (width, columns))]
        window = []
        for (cuts, _), more in zip(edges, margin, strict=True):
            largest = max(b - a for a, b in pairwise(cuts))
            window.append(largest + 2 * more if self.compat else _fast(largest + 2 * more))
        cells = []
        for (_, which), count, own in zip(edges, (rows, columns), self.psfs.shape[:2], strict=True):
            cells.append(tuple((2 * i + 1) * own // (2 * count) for i in which))
        return _Layout(edges[0][0], edges[1][0], cells[0], cells[1], (window[0], window[1]), margin, fade)

    def _window(self, picture: np.ndarray, layout: _Layout, row: int, column: int) -> Tensor:
        """Light of one window, (C, h, w): mirrored beyond the picture, black with ``compat``."""
        places = []
        for edge, more, size, n in zip(
            (layout.rows[row], layout.columns[column]), layout.margin, layout.window, picture.shape[:2], strict=True
        ):
            places.append(np.arange(edge - more, edge - more + size) if self.compat else _mirror(edge - more, size, n))
        if self.compat != "official":
            down, across = (_slice(p, n) for p, n in zip(places, picture.shape[:2], strict=True))
            return self._light(picture[down][:, across])
        inside = [(p >= 0) & (p < n) for p, n in zip(places, picture.shape[:2], strict=True)]
        made = torch.zeros(picture.shape[2], *layout.window, device=self.device)
        (top, bottom), (left, right) = ((int(p[i][0]), int(p[i][-1]) + 1) for p, i in zip(places, inside, strict=True))
        y, x = int(np.argmax(inside[0])), int(np.argmax(inside[1]))
        made[:, y : y + bottom - top, x : x + right - left] = self._light(picture[top:bottom, left:right])
        return made

    def _otf(self, layout: _Layout, row: int, column: int) -> Tensor:
        """The transfer function of a window, (C, h, w // 2 + 1); the last ones used are kept."""
        cell = layout.row_cells[row], layout.column_cells[column]
        key = (*cell, *layout.window)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        made = self._kept[key] = optics.psf2otf(self.psfs[cell], *layout.window, self.compat)
        room = max(1, KEPT // (made.numel() * made.element_size()))
        while len(self._kept) > room:
            self._kept.popitem(last=False)
        return made

    def _chosen(self, picture: np.ndarray, layout: _Layout) -> float:
        """K of least expected error, from a few windows spread over the picture."""
        if len(self.noise_levels) == 1:
            return self.noise_levels[0]
        total = len(layout.row_cells) * len(layout.column_cells)
        which = sorted({(2 * i + 1) * total // (2 * SAMPLES) for i in range(SAMPLES)})
        places = [divmod(i, len(layout.column_cells)) for i in which]
        windows = ((self._window(picture, layout, *p), self._otf(layout, *p)) for p in places)
        return levels.choose_level(windows, self.noise_levels)

    # -- putting it together

    def _sharp(self, picture: np.ndarray, layout: _Layout, row: int, column: int) -> Tensor:
        """One window without its blur, (C, h, w); its outermost part is of no use."""
        window, otf = self._window(picture, layout, row, column), self._otf(layout, row, column)
        if self.model is None:
            assert self.level is not None
            made = wiener.wiener_bank(window, otf, (self.level,))[0]
            # a filter passes 1 / (1 + K c) of the mean; a network makes up for that, here it is done by hand
            return made if self.compat else made.mul_(1 + self.level * wiener.contrast(window))
        stack = wiener.wiener_bank(window, otf, self.noise_levels)  # (M, 3, h, w)
        ring = [n // 2 for n in self.psfs.shape[2:4]]  # where the transform's wrapping around is strongest
        inner = stack[..., ring[0] : stack.shape[-2] - ring[0], ring[1] : stack.shape[-1] - ring[1]]
        made = torch.zeros_like(window)
        made[:, ring[0] : window.shape[1] - ring[0], ring[1] : window.shape[2] - ring[1]] = self.model(inner[None])[0]
        return made

    def _bands(self, picture: np.ndarray, layout: _Layout) -> Iterator[tuple[int, Tensor]]:
        """Finished rows from top to bottom: (first row, (C, rows, W))."""
        height, width, colours = picture.shape
        done, carried = 0, torch.zeros(colours, 0, width, device=self.device)
        for row, (start, stop) in enumerate(pairwise(layout.rows)):
            top, bottom = max(0, start - layout.fade[0]), min(height, stop + layout.fade[0])
            sums = torch.zeros(colours, bottom - done, width, device=self.device)
            sums[:, : carried.shape[1]] = carried
            down = _share(layout.rows, row, layout.fade[0], top, bottom).to(self.device)[:, None]
            for column, (first, last) in enumerate(pairwise(layout.columns)):
                left, right = max(0, first - layout.fade[1]), min(width, last + layout.fade[1])
                across = _share(layout.columns, column, layout.fade[1], left, right).to(self.device)
                y, x = top - (start - layout.margin[0]), left - (first - layout.margin[1])
                sharp = self._sharp(picture, layout, row, column)[:, y : y + bottom - top, x : x + right - left]
                sums[:, top - done : bottom - done, left:right].addcmul_(sharp, down * across)
            ready = height if stop == height else max(done, stop - layout.fade[0])
            if ready > done:
                yield done, sums[:, : ready - done]
            carried, done = sums[:, ready - done :], ready

    def _whole(self, picture: np.ndarray) -> Tensor:
        """The published pipeline with its network: the stack of the whole picture, then the network once."""
        rows, columns = self.psfs.shape[:2]
        layout = self._cut(picture.shape[0], picture.shape[1], rows, columns)
        p, q = layout.margin
        light = torch.nn.functional.pad(self._light(picture), (q, q, p, p))
        stack = wiener.wiener_field(
            light[None], self.psfs.flatten(0, 1), self.noise_levels, grid=(rows, columns), compat=self.compat
        )
        assert self.model is not None
        made: Tensor = self.model(stack)[0]
        return made


def deblur(
    picture: np.ndarray,
    psf: Any,
    model: str | Path | nn.Module | None = None,
    noise_levels: float | Sequence[float] | None = None,
    *,
    linear: bool = False,
    compat: Compat = None,
) -> np.ndarray:
    """Take a known blur off one picture: `Deblurrer` made and used once; for more pictures keep one."""
    return Deblurrer(psf, model, noise_levels, linear=linear, compat=compat).array(picture)


def _model(model: str | Path | nn.Module, compat: Compat) -> ACFormer:
    if not isinstance(model, nn.Module):
        from saccade import checkpoint, registry

        known = isinstance(model, str) and model in registry.list_models()
        model = registry.create(str(model)) if known else checkpoint.load(model)
        if compat is not None and isinstance(model, ACFormer):
            model.ca.compat = compat
    if not isinstance(model, ACFormer):
        raise UsageError(
            f"deblurring with PSFs takes an ACFormer (acformer, acformer_tiny), not {type(model).__name__}"
        )
    return model.eval()


def _published(count: int) -> tuple[float, ...]:
    """logspace(-2, -5, count); one alone is the middle of the bank."""
    return tuple(10 ** (-2 - 3 * i / (count - 1)) for i in range(count)) if count > 1 else (10**-3.5,)


def _edges(length: int, cells: int, core: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Edges of the cores along an axis and the cell of each: cells of equal size, large ones in equal parts."""
    cells = min(cells, length)
    edges, which = [0], list[int]()
    for i in range(cells):
        start, stop = i * length // cells, (i + 1) * length // cells
        parts = -(-(stop - start) // core)
        edges += [start + (stop - start) * (j + 1) // parts for j in range(parts)]
        which += [i] * parts
    return tuple(edges), tuple(which)


def _fast(length: int) -> int:
    """The next even length whose transform is fast: no prime factor above 5."""
    length += length % 2
    while True:
        rest = length
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return length
        length += 2


def _mirror(start: int, size: int, length: int) -> np.ndarray:
    """Places start .. start + size - 1 of an axis that is mirrored at its ends, the end itself not repeated."""
    period = max(1, 2 * length - 2)
    place = np.arange(start, start + size) % period
    return np.where(place < length, place, period - place)


def _share(edges: Sequence[int], i: int, fade: int, start: int, stop: int) -> Tensor:
    """The weight of core ``i`` at places start .. stop - 1: 1 within, a ramp of 2 fade pixels across inner edges.

    The weights of all cores add up to 1 everywhere, however small they are.
    """
    place = torch.arange(start, stop, dtype=torch.float32) + 0.5

    def rise(edge: int) -> Tensor:
        if edge in (edges[0], edges[-1]) or not fade:
            return (place >= edge).float()
        return ((place - edge + fade) / (2 * fade)).clamp_(0, 1)

    return rise(edges[i]) - (rise(edges[i + 1]) if i + 2 < len(edges) else torch.zeros_like(place))


def _slice(places: np.ndarray, length: int) -> np.ndarray | slice:
    """A slice, which needs no copy, where places do not leave the picture."""
    first, last = int(places[0]), int(places[-1])
    return slice(first, last + 1) if last - first == len(places) - 1 and last < length else places


def _decoded(x: Tensor) -> Tensor:
    """Linear light of sRGB values (IEC 61966-2-1)."""
    return torch.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055).pow(2.4))


@functools.cache
def _table(itemsize: int, linear: bool) -> np.ndarray:
    """Light of every 8- or 16-bit value."""
    full = 256**itemsize - 1
    x = torch.arange(full + 1, dtype=torch.float32) / full
    made: np.ndarray = (x if linear else _decoded(x)).numpy()
    return made
