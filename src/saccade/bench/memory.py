"""Peak memory of one contender, in a process of its own: python -m saccade.bench.memory MODULE WxH I WHO N

Prints the bytes that the call held at its peak beyond what the process held before it; the weights are held before.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import itertools
import re
import sys
from pathlib import Path
from typing import Any


def held(what: str) -> int:
    """``VmRSS`` (now) or ``VmHWM`` (peak) of this process in bytes."""
    found = re.search(rf"^{what}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10


def main(name: str, size: str, index: str, who: str, threads: str) -> int:
    """Bytes at the peak of one call, beyond those held before it."""
    module: Any = importlib.import_module(f"saccade.bench.{name}")
    width, height = (int(n) for n in size.split("x"))
    made = module.contests((width, height), int(threads))  # kept: a generator that is closed may remove its files
    contest = next(itertools.islice(made, int(index), None))
    contender = contest.ours if who == "ours" else contest.official
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = held("VmRSS")
    with contender.inside() if contender.inside else contextlib.nullcontext():
        contender.run()
    return held("VmHWM") - before


if __name__ == "__main__":
    print(main(*sys.argv[1:6]))
