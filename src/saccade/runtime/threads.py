"""How many threads of the processor torch uses, for as long as it matters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["on_threads"]


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
