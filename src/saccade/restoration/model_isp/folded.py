"""The pipeline as it runs: a few rows at a time, gains and matrix folded into one, gamma and curve into one table.

    forward   rows -- * gain map -- clamp to [0, 1/g] -- (CCM diag g) -- clamp -- sqrt -- table --> rows
    inverse   rows -- table -- CCM^-1 -- clamp -- / gains (safely, where bright) -- / gain map --> rows

The same function as the stages one after the other (`ModelISP.trace`), within 2e-4 at black, where gamma is steep, and
2e-5 elsewhere: tables hold the exact value at their knots and straight lines between, 16,384 of them. Since a gamma of
1/2.2 is nearly a square root, the forward table stands over the root, where it is nearly straight even at black. Rows
are few enough to stay in the cache, so memory beside input and output does not grow with the picture; gain maps of one
size are kept for the next picture while they are small.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from saccade.restoration.model_isp.operators import GAMMA, INFLECTION, safe_invert_gains
from saccade.restoration.model_isp.stages import curve, inverse_curve

if TYPE_CHECKING:
    from saccade.restoration.model_isp.network import ModelISP, Settings
    from saccade.restoration.model_isp.stages import LensShading

__all__ = ["Table", "fold_forward", "fold_inverse", "render", "table_over_root"]

CELLS = 1 << 14  # of a table
PIXELS = 1 << 16  # of a strip
KEPT = 48 << 20  # bytes of gain maps that are kept


@dataclass(frozen=True)
class Table:
    """A curve for each channel as offset + slope * x on equal cells of [0, 1]."""

    offset: Tensor  # (3, CELLS)
    slope: Tensor

    @staticmethod
    def of(values: Tensor) -> Table:
        """From the values (3, CELLS + 1) at the borders of cells, float64."""
        slope = values.diff(dim=1) * CELLS
        offset = values[:, :-1] - slope * torch.arange(CELLS, dtype=values.dtype) / CELLS
        return Table(offset.float().contiguous(), slope.float().contiguous())

    def apply_(self, x: Tensor) -> Tensor:
        """In place on (3, n) in [0, 1]."""
        cells = (x * CELLS).to(torch.int32).clamp_max_(CELLS - 1)
        for channel, cell, offset, slope in zip(x, cells, self.offset, self.slope, strict=True):
            channel.mul_(slope.index_select(0, cell)).add_(offset.index_select(0, cell))
        return x


def table_over_root(function: Callable[[Tensor], Tensor]) -> Table:
    """The table of a function of linear values in [0, 1], to be looked up by their square root.

    ``function`` takes and gives (3, n) float64.
    """
    x = torch.linspace(0, 1, CELLS + 1, dtype=torch.float64).square()
    return Table.of(function(x.expand(3, -1)))


def _forward_table(settings: Settings, i: int) -> Table | None:
    """Gamma and curve of picture ``i``."""
    tone = _one(settings.tone, i)
    if not settings.gamma and tone is None:
        return None

    def function(x: Tensor) -> Tensor:
        x = x.clamp_min(1e-8) ** (1 / GAMMA) if settings.gamma else x
        return x if tone is None else curve(x[None, :, None], tone[None].double())[0, :, 0]

    return table_over_root(function)


def _inverse_table(settings: Settings, i: int) -> Table | None:
    """Undo curve, then gamma, of picture ``i``."""
    x, tone = torch.linspace(0, 1, CELLS + 1, dtype=torch.float64).expand(3, -1), _one(settings.tone, i)
    if tone is not None:
        x = inverse_curve(x[None, :, None], tone[None].double())[0, :, 0]
    elif not settings.gamma:
        return None
    return Table.of(x.clamp_min(1e-8) ** GAMMA if settings.gamma else x)


class _GainMaps:
    """The atoms' gain maps by strips of rows; kept whole for the next picture of this size where they are small."""

    def __init__(self, model: ModelISP, height: int, width: int) -> None:
        self.stage = cast("LensShading", model.stages["lsc"])
        self.height, self.width = height, width
        learnt = (self.stage.dictionary, self.stage.residual)
        key = (height, width, *(p._version for p in learnt), *(p.data_ptr() for p in learnt))
        kept: Any = getattr(model, "_kept_maps", None)
        self.whole: Tensor | None = kept[1] if kept is not None and kept[0] == key else None
        if self.whole is None and 4 * height * width * len(self.stage.residual) <= KEPT:
            self.whole = torch.empty(len(self.stage.residual), height, width)
            for top, rows in _strips(height, width):
                self.whole[:, top : top + rows] = self.stage.strip(top, rows, height, width)
            object.__setattr__(model, "_kept_maps", (key, self.whole))

    def gain(self, weights: Tensor, top: int, rows: int) -> Tensor:
        """(rows * width) of the mix (N,)."""
        own = self.whole is None
        maps = self.stage.strip(top, rows, self.height, self.width) if own else self.whole[:, top : top + rows]  # type: ignore[index]
        return weights @ maps.reshape(len(maps), -1)


def _strips(height: int, width: int) -> list[tuple[int, int]]:
    """(first row, rows) of strips of about `PIXELS` pixels."""
    rows = max(1, PIXELS // width)
    return [(top, min(rows, height - top)) for top in range(0, height, rows)]


def _one(setting: Tensor | None, i: int) -> Tensor | None:
    """A picture's own setting; a batch of one serves all."""
    return None if setting is None else setting[min(i, len(setting) - 1)]


def render(
    y: Tensor,
    gains: Tensor | None,
    ccm: Tensor | None,
    table: Table | None,
    shading: Tensor | None = None,
    open_top: bool = False,
) -> Tensor:
    """RAW colours (3, n) to RGB: gain map (n,), gains (3,), matrix (3, 3) and a table over the square root.

    ``open_top``: the table is gamma alone and nothing before it clamps, so values above 1 go on by the power itself.
    """
    y = y.clone() if shading is None else y * shading
    if gains is not None:
        y = torch.minimum(y.clamp_min_(0), (1 / gains)[:, None], out=y)
        if ccm is None:
            y.mul_(gains[:, None])
    if ccm is not None:
        y = ((ccm if gains is None else ccm * gains) @ y).clamp_(0, 1)
    if table is None:
        return y
    above = y.clamp_min(1).pow_(1 / GAMMA) if open_top and float(y.amax()) > 1 else None
    y = table.apply_(y.clamp_(0, 1).sqrt_())
    return y if above is None else y.mul_(above)


@torch.no_grad()
def fold_forward(model: ModelISP, raw: Tensor, settings: Settings, top: int = 0, whole: int | None = None) -> Tensor:
    """`ModelISP.forward` for float32 (B, 3, H, W) on the CPU.

    Args:
        top: row of the whole picture at which these rows begin.
        whole: rows of the whole picture, if these are only some.
    """
    height, width = raw.shape[2:]
    made = torch.empty_like(raw, memory_format=torch.contiguous_format)
    maps = None if settings.lsc is None else _GainMaps(model, whole or height, width)
    for i, (picture, out) in enumerate(zip(raw, made, strict=True)):
        gains, ccm, lsc = _one(settings.gains, i), _one(settings.ccm, i), _one(settings.lsc, i)
        table = _forward_table(settings, i)
        open_top = gains is None and ccm is None and _one(settings.tone, i) is None
        for row, rows in _strips(height, width):
            shading = maps.gain(lsc, top + row, rows) if maps is not None and lsc is not None else None
            y = render(picture[:, row : row + rows].reshape(3, -1), gains, ccm, table, shading, open_top)
            out[:, row : row + rows] = y.view(3, rows, width)
    return made


@torch.no_grad()
def fold_inverse(model: ModelISP, rgb: Tensor, settings: Settings, top: int = 0, whole: int | None = None) -> Tensor:
    """`ModelISP.inverse` for float32 (B, 3, H, W) on the CPU; ``top`` and ``whole`` as in `fold_forward`."""
    height, width = rgb.shape[2:]
    made = torch.empty_like(rgb, memory_format=torch.contiguous_format)
    maps = None if settings.lsc is None else _GainMaps(model, whole or height, width)
    for i, (picture, out) in enumerate(zip(rgb, made, strict=True)):
        gains, ccm, lsc = _one(settings.gains, i), _one(settings.ccm, i), _one(settings.lsc, i)
        matrix = None if ccm is None else torch.linalg.inv(ccm)
        table = _inverse_table(settings, i)
        for row, rows in _strips(height, width):
            y = picture[:, row : row + rows].reshape(3, -1)
            y = y.clone() if table is None else table.apply_(y.clamp(0, 1))
            if matrix is not None:
                y = (matrix @ y).clamp_(0, 1)
            if gains is not None:
                y = _undo_gains(y, gains)
            if maps is not None and lsc is not None:
                y.div_(maps.gain(lsc, top + row, rows))
            out[:, row : row + rows] = y.view(3, rows, width)
    return made


def _undo_gains(y: Tensor, gains: Tensor) -> Tensor:
    """White balance of (3, n) undone; the safe form only where something is bright enough to need it."""
    if float(y.amax()) > INFLECTION and float(y.sum(0).amax()) > 3 * INFLECTION:
        return safe_invert_gains(y[:, None], gains)[:, 0].clamp_(0, 1)
    return y.mul_((1 / gains)[:, None]).clamp_(0, 1)
