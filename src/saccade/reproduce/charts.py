"""Charts of figures whose names say what they are: ``accuracy_plain`` is a bar named "plain" among accuracies."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saccade.reproduce import Figures

__all__ = ["bars", "panels"]


def bars(axis: Any, figures: Figures, start: str, unit: str) -> None:
    """A bar for each figure whose name begins with ``start``, named by what follows; ``unit`` along the axis."""
    names = [name for name in figures if name.startswith(start)]
    axis.barh([n.removeprefix(start).replace("_", " ") for n in names], [figures[n] for n in names])
    axis.set_xlabel(unit)


def panels(figures: Figures, path: Path, units: Mapping[str, str], size: tuple[float, float]) -> None:
    """Bars side by side, one panel a start of names, into a file.

    Args:
        units: starts of names, and what stands along their axes.
        size: of the whole, inches.
    """
    import matplotlib.pyplot as plt

    picture, axes = plt.subplots(1, len(units), figsize=size, layout="constrained", squeeze=False)
    for axis, (start, unit) in zip(axes[0], units.items(), strict=True):
        bars(axis, figures, start, unit)
    picture.savefig(path, dpi=120)
    plt.close(picture)
