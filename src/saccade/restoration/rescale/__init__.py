"""Shrink a picture so that it can be enlarged back almost without loss; files, arrays, any size, in bounded memory.

    photo -- tiles with their halo -- network's F -- 8 bit -- small.png + note (model, sizes, kind, checksum of pixels)
    small.png -- note -- tiles with their halo -- network's G and F -- large picture

The small picture must stay what it is, bit for bit: it is a PNG, and its note says by a checksum whether it still is.
Tiles know their place in the whole picture, so that the seams of a tiled result are those of a whole one: none.
"""

from __future__ import annotations

from pathlib import Path

from saccade.restoration.iarn import IARN
from saccade.restoration.rescale.note import KEYWORD, Note, parse_note
from saccade.restoration.rescale.workers import Enlarger, Report, Rescaler, Shrinker, fingerprint

__all__ = [
    "KEYWORD",
    "Enlarger",
    "Note",
    "Report",
    "Rescaler",
    "Shrinker",
    "enlarge",
    "fingerprint",
    "parse_note",
    "shrink",
]


def shrink(
    source: str | Path,
    target: str | Path,
    *,
    size: tuple[int, int] | None = None,
    scale: float | tuple[float, float] | None = None,
    model: str | Path | IARN = "iarn",
    overwrite: bool = False,
) -> Report:
    """Shrink one picture file to a PNG that `enlarge` turns back; see `Shrinker`."""
    return Shrinker(model, size=size, scale=scale).picture(source, target, overwrite=overwrite)


def enlarge(
    source: str | Path,
    target: str | Path,
    *,
    size: tuple[int, int] | None = None,
    model: str | Path | IARN = "iarn",
    overwrite: bool = False,
) -> Report:
    """Enlarge one small picture back to its size; see `Enlarger`."""
    return Enlarger(model, size=size).picture(source, target, overwrite=overwrite)
