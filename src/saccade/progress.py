"""Progress bars on stderr: drawn only for a terminal, silent in pipes, logs and tests.

`track` is for loops with a known count, `bar` for work that reports in steps (tiles of a picture, frames of a clip).
Nothing appears before two seconds have passed, so that short work stays quiet.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

__all__ = ["bar", "track"]

T = TypeVar("T")
Advance = Callable[[float], None]
_DELAY = 2.0


@contextmanager
def bar(what: str, total: float | None, *, enabled: bool | None = None) -> Iterator[Advance]:
    """A progress bar with an estimate of the time left; yields a function that advances it.

    Args:
        what: the words before the bar.
        total: the amount of work in any unit, or None when unknown.
        enabled: True or False to force; by default only when stderr is a terminal.
    """
    if not (sys.stderr.isatty() if enabled is None else enabled):
        yield lambda amount: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    progress = Progress(*columns, console=Console(stderr=True), transient=True)
    task = progress.add_task(what, total=total)
    started, shown = time.monotonic(), False

    def advance(amount: float) -> None:
        nonlocal shown
        progress.advance(task, amount)
        if not shown and time.monotonic() - started > _DELAY:
            progress.start()
            shown = True

    try:
        yield advance
    finally:
        if shown:
            progress.stop()


def track(items: Iterable[T], what: str, total: int | None = None, *, enabled: bool | None = None) -> Iterator[T]:
    """Iterate over ``items`` with a progress bar; ``total`` defaults to ``len(items)`` where that is known."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with bar(what, total, enabled=enabled) as advance:
        for item in items:
            yield item
            advance(1)
