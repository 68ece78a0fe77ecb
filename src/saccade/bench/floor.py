"""What the machine can do at best: arithmetic and memory, measured, and the time that a job cannot go below."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from saccade.runtime.threads import on_threads

__all__ = ["Floor", "measure_floor"]


@dataclass(frozen=True)
class Floor:
    """The machine's measured peaks at a number of threads.

    Attributes:
        threads: of the measurement.
        macs_per_second: multiply-accumulates in float32, by a large matrix product.
        bytes_per_second: read plus written, by copying an array that fits in no cache of a core.
    """

    threads: int
    macs_per_second: float
    bytes_per_second: float

    def seconds(self, macs: float, moved: float) -> float:
        """The time that ``macs`` and ``moved`` bytes take at least, if one can hide behind the other."""
        return max(macs / self.macs_per_second, moved / self.bytes_per_second)

    def __str__(self) -> str:
        return (
            f"peak at {self.threads} threads: {self.macs_per_second / 1e9:.0f} GMAC/s in float32 (matrix product), "
            f"{self.bytes_per_second / 1e9:.1f} GB/s (copy)"
        )


def measure_floor(threads: int, *, side: int = 3072, megabytes: int = 256, repeats: int = 5) -> Floor:
    """Measure the peaks: the best of ``repeats`` products of ``side`` x ``side`` matrices, and of as many copies."""
    import torch

    with on_threads(threads):
        a = torch.ones(side, side)
        out = torch.empty(side, side)
        product = _best(lambda: torch.mm(a, a, out=out), repeats)
        source = torch.ones(megabytes << 18)  # float32
        target = torch.empty_like(source)
        copy = _best(lambda: target.copy_(source), repeats)
    return Floor(threads, side**3 / product, 2.0 * source.nbytes / copy)


def _best(run: Callable[[], Any], repeats: int) -> float:
    run()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return min(seconds)
