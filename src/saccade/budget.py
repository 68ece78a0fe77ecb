"""The dial: one number in (0, 1], the share of its full cost that a model may spend.

What can trade quality for cost at run time has a property ``budget`` and a method ``budgets``; that is the whole
protocol (`Budgeted`), there is no base class:

    model.budget = 0.4              # from now on
    pareto(model, data, psnr)       # what each setting gives, and what it takes

Pixels, tokens, layers, bits, ranks, samples: the dial is the same, its meaning stands in the model's docstring.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from saccade.errors import InputError, UnavailableError, UsageError

if TYPE_CHECKING:
    from saccade.cost import Cost

__all__ = ["Budgeted", "Pareto", "Point", "check_budget", "has_budget", "pareto"]


Spent = Literal["macs", "seconds"]


@runtime_checkable
class Budgeted(Protocol):
    """A model with a dial. Setting ``budget`` takes effect from the next call; 1 is the full cost."""

    @property
    def budget(self) -> float:
        """The present setting, in (0, 1]."""
        ...

    @budget.setter
    def budget(self, value: float) -> None: ...

    def budgets(self) -> Sequence[float]:
        """Settings worth trying, ascending: all of them where the dial clicks, samples where it turns smoothly."""
        ...


def check_budget(value: Any) -> float:
    """``value`` as a float, once it is a number in (0, 1]; every setter of a dial calls this.

    Raises:
        UsageError: not a number, NaN, or out of range.
    """
    try:
        number = math.nan if isinstance(value, bool | str | bytes) else float(value)
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if not 0 < number <= 1:
        raise UsageError(f"a budget is a number in (0, 1], the share of the full cost, not {value!r}")
    return number


def has_budget(model: object) -> bool:
    """Whether a model has the dial."""
    return isinstance(model, Budgeted)


@dataclass(frozen=True)
class Point:
    """What one setting of the dial gives and takes, as means over the samples.

    Attributes:
        budget: the setting.
        quality: of the metric.
        macs: executed, a sample.
        seconds: of one forward pass, a sample.
    """

    budget: float
    quality: float
    macs: float
    seconds: float


@dataclass(frozen=True)
class Pareto:
    """Quality against cost along the dial, in ascending budgets.

    Attributes:
        points: one for each setting.
        samples: how many each point is the mean of.
        higher_is_better: the direction of the metric.
    """

    points: tuple[Point, ...]
    samples: int
    higher_is_better: bool = True

    def front(self, by: Spent = "macs") -> tuple[Point, ...]:
        """The points that no other beats, cheapest first: none is better at the same cost, or as good for less.

        Of points equal in both the one with the smallest budget stays.

        Args:
            by: what counts as cost, ``"macs"`` or ``"seconds"``.
        """
        sign = 1 if self.higher_is_better else -1
        front: list[Point] = []
        for point in sorted(self.points, key=lambda p: (getattr(p, by), -sign * p.quality, p.budget)):
            if not front or sign * point.quality > sign * front[-1].quality:
                front.append(point)
        return tuple(front)

    def to_dict(self) -> dict[str, Any]:
        """Points and the budgets on the front (by MACs) as plain numbers, ready for JSON."""
        return {
            "higher_is_better": self.higher_is_better,
            "samples": self.samples,
            "points": [asdict(p) for p in self.points],
            "front": [p.budget for p in self.front()],
        }

    def plot(
        self,
        path: str | Path,
        *,
        by: Spent = "macs",
        quality: str = "quality",
        title: str = "",
        overwrite: bool = False,
    ) -> Path:
        """Draw quality against cost: the front as a line, every point with its budget.

        Args:
            path: of the picture; its suffix names the format (png, svg, pdf, ...).
            by: the horizontal axis, ``"macs"`` or ``"seconds"``.
            quality: the label of the vertical axis, with its unit.
            title: over the picture.
            overwrite: replace a file that is there.

        Raises:
            UnavailableError: matplotlib is not installed.
            UsageError: the file exists, or its suffix names no known format.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise UnavailableError.extra("drawing a plot", "plot") from error
        path = Path(path)
        if path.exists() and not overwrite:
            raise UsageError(f"{path} exists; pass overwrite=True to replace it")
        figure = Figure(figsize=(6, 4), layout="constrained")
        formats = figure.canvas.get_supported_filetypes()
        kind = path.suffix[1:].lower()
        if kind not in formats:
            raise UsageError(f"cannot draw {path.name}: its suffix is to be one of {', '.join(sorted(formats))}")
        axes, front = figure.add_subplot(), self.front(by)
        unit = 1e9 if by == "macs" else 1.0
        axes.plot([getattr(p, by) / unit for p in front], [p.quality for p in front], color="C0", zorder=1)
        for p in self.points:
            place = (getattr(p, by) / unit, p.quality)
            axes.scatter(*place, color="C0" if p in front else "0.6", zorder=2)
            axes.annotate(f"{p.budget:g}", place, (5, -10), textcoords="offset points", size=8)
        axes.set(xlabel="GMACs a sample" if by == "macs" else "seconds a sample", ylabel=quality, title=title)
        axes.grid(alpha=0.3)
        part = path.with_name(f".{path.name}.part")
        try:
            figure.savefig(part, format=kind, dpi=150)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
        return path


def pareto(
    model: Any,
    data: Iterable[tuple[Any, Any]],
    metric: Callable[[Any, Any], Any],
    budgets: Sequence[float] | None = None,
    *,
    cost: Callable[..., Cost] | None = None,
    higher_is_better: bool = True,
) -> Pareto:
    """Sweep a model's dial over data: what each setting gives, and what it takes.

    The model runs in evaluation mode without gradients and is left as it was, budget included, even after an error.

    Args:
        model: a module, or any callable, with the dial (`Budgeted`).
        data: pairs (input, target), gone through once for each setting; an input that is a tuple holds several
            arguments. An iterator is drawn into memory first.
        metric: ``metric(output, target)`` -> a number, averaged over the pairs.
        budgets: settings to try; by default the model's own ``budgets()``.
        cost: ``cost(model, *inputs)`` -> what a sample takes; by default `saccade.cost`, which counts the MACs that
            are executed on this very sample.
        higher_is_better: the direction of the metric.

    Raises:
        UsageError: the model has no dial, a budget is out of range, or there is none.
        InputError: there is no data, or the metric gives no number.
    """
    import torch

    if not has_budget(model):
        raise UsageError(f"{type(model).__name__} has no budget dial to sweep")
    settings = sorted({check_budget(b) for b in (model.budgets() if budgets is None else budgets)})
    if not settings:
        raise UsageError(f"there are no budgets to sweep {type(model).__name__} over")
    pairs = list(data) if isinstance(data, Iterator) else data
    modes = [(m, m.training) for m in model.modules()] if isinstance(model, torch.nn.Module) else []
    before = model.budget
    points = []
    try:
        if modes:
            model.eval()
        for setting in settings:
            model.budget = setting
            samples = [_sample(model, setting, pair, metric, cost or _macs) for pair in pairs]
            if not samples:
                raise InputError("there is no data to sweep over")
            points.append(Point(setting, *(statistics.fmean(column) for column in zip(*samples, strict=True))))
    finally:
        model.budget = before
        for m, mode in modes:
            m.training = mode
    return Pareto(tuple(points), len(samples), higher_is_better)


def _macs(model: Any, *inputs: Any) -> Cost:
    from saccade.cost import cost

    return cost(model, *inputs, timed=False)


def _sample(
    model: Any, setting: float, pair: tuple[Any, Any], metric: Callable[[Any, Any], Any], cost: Callable[..., Cost]
) -> tuple[float, float, float]:
    """(quality, MACs, seconds) of one pair. Counting goes first, so that the timed pass is a warm one."""
    import torch

    value, target = pair
    inputs = value if isinstance(value, tuple) else (value,)
    macs = float(cost(model, *inputs).macs)
    wait = torch.accelerator.synchronize if torch.accelerator.is_available() else lambda: None
    with torch.inference_mode():
        wait()
        start = time.perf_counter()
        output = model(*inputs)
        wait()
        seconds = time.perf_counter() - start
        quality = float(metric(output, target))
    if math.isnan(quality):
        raise InputError(f"the metric is not a number at budget {setting:g}: nothing can be compared with it")
    return quality, macs, seconds
