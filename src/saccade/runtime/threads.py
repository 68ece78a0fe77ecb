"""How many threads of the processor torch uses, for as long as it matters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from saccade.cost import MOST_THREADS
from saccade.errors import UsageError

__all__ = ["check_threads", "on_threads"]


def check_threads(threads: int) -> int:
    """A number of threads, 0 where it is left to others.

    Raises:
        UsageError: a negative one, or more than `MOST_THREADS`.
    """
    if threads < 0:
        raise UsageError(f"threads must not be negative, got {threads}")
    if threads > MOST_THREADS:
        raise UsageError(f"threads are {MOST_THREADS} at the most, not {threads}")
    return threads


@contextmanager
def on_threads(count: int) -> Iterator[None]:
    """Torch on this many threads of the processor inside, on as many as before outside."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
