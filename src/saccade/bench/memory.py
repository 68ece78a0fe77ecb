"""What a process holds, what it may ask for, and the peak of one contender in a process of its own.

``python -m saccade.bench.memory MODULE WxH I WHO N`` prints the bytes that the call held at its peak beyond what the
process held before it; the weights are held before.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import itertools
import re
import sys
from pathlib import Path
from typing import Any


def held(what: str) -> int:
    """``VmRSS`` (now), ``VmHWM`` (peak) or ``VmData`` (asked for, used or not) of this process in bytes."""
    found = re.search(rf"^{what}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10


def available() -> int:
    """Bytes that are there for a program that asks now, what the system would give up with them; 0 where none tells."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable")), 0)


def bound(share: float = 0.75) -> None:
    """Let this process fail with an error, not the machine, where it wants more than this share of what is there.

    What it holds already, and what its libraries set aside without using, is not counted.
    """
    import resource

    more = int(share * available())
    if more:
        resource.setrlimit(resource.RLIMIT_DATA, (held("VmData") + more, resource.RLIM_INFINITY))


def settle() -> int:
    """Give back what is not in use, let the peak start again from here, and return the bytes that are held.

    Without it, pages that making a network left free with the allocator serve the call too, and are not counted. A
    compiler that the call may need is loaded before: it is none of the call's memory. Of one call the first counts: an
    engine may keep its buffers from then on.
    """
    with contextlib.suppress(ImportError):
        import numba

        numba.njit(lambda x: x + 1)(1)
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library than GNU's keeps them
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return held("VmRSS")


def main(name: str, size: str, index: str, who: str, threads: str) -> int:
    """Bytes at the peak of one call, beyond those held before it."""
    module: Any = importlib.import_module(f"saccade.bench.{name}")
    width, height = (int(n) for n in size.split("x"))
    made = module.contests((width, height), int(threads))  # kept: a generator that is closed may remove its files
    contest = next(itertools.islice(made, int(index), None))
    contender = contest.ours if who == "ours" else contest.official
    before = settle()
    with contender.inside() if contender.inside else contextlib.nullcontext():
        contender.run()
    return held("VmHWM") - before


if __name__ == "__main__":
    print(main(*sys.argv[1:6]))
