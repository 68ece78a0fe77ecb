"""Ratios from one run: contenders take turns, A B C A B C ..., so that what disturbs the machine disturbs them all.

    contenders -- warm-up, each -- rounds of one timed call each -- medians -- rows: ours, peer, peer's time over ours

Every contender states its threads. Before each timed call there is a short rest, in which thread pools that spin for
more work go to sleep: they would take processors from the next contender.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from saccade.errors import InputError, UsageError

__all__ = ["Contender", "Result", "Row", "Timing", "compare", "machine", "measure", "save", "versions"]

REST = 0.02  # seconds before each timed call
LIBRARIES = (
    "torch",
    "numpy",
    "openvino",
    "onnxruntime",
    "numba",
    "opencv-python-headless",
    "spandrel",
    "pillow",
    "pyvips",
    "timm",
)

Advance = Callable[[float], None]


@dataclass(frozen=True)
class Contender:
    """Something that does the job, ready to run.

    Attributes:
        name: what it is, in words that tell it from the others.
        run: does the job once; everything that is made once for many pictures is made before.
        threads: processor threads that it was told to use.
        inside: entered around each of its calls, e.g. to set a library's global number of threads; not timed.
    """

    name: str
    run: Callable[[], Any]
    threads: int
    inside: Callable[[], AbstractContextManager[Any]] | None = None


@dataclass(frozen=True)
class Timing:
    """The timed calls of one contender, in seconds, in the order of the rounds."""

    name: str
    threads: int
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    @property
    def best(self) -> float:
        """Seconds of the fastest call."""
        return min(self.seconds)


@dataclass(frozen=True)
class Row:
    """Ours beside one peer.

    Attributes:
        system: slug of the system whose speed this is.
        what: the job, in words.
        ours, peer: names of the two contenders.
        ours_ms, peer_ms: medians, milliseconds.
        ours_best_ms, peer_best_ms: the fastest calls, milliseconds.
        ratio: peer_ms over ours_ms: 2 means that ours takes half the time.
        threads, peer_threads: processor threads of the two.
        size: of the input, e.g. ``1920x1080``.
        command: what prints this row again.
    """

    system: str
    what: str
    ours: str
    ours_ms: float
    ours_best_ms: float
    peer: str
    peer_ms: float
    peer_best_ms: float
    ratio: float
    threads: int
    peer_threads: int
    size: str
    command: str


@dataclass(frozen=True)
class Result:
    """What one run of a suite found, ready for JSON.

    Attributes:
        name, command: of the suite, and what runs it again.
        rounds: timed calls of each contender.
        rows: ours beside each peer.
        notes: what belongs to the figures, one sentence each.
        machine, versions, date: where, with what and when.
        others: threads of other processes that ran or wanted to run when the suite ended; above about 0.5 the times,
            and ratios of contenders that share work among threads differently, are to be taken with care.
    """

    name: str
    command: str
    rounds: int
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    machine: str = field(default_factory=lambda: machine())
    versions: dict[str, str] = field(default_factory=lambda: versions())
    date: str = field(default_factory=lambda: datetime.date.today().isoformat())
    others: float = field(default_factory=lambda: busy_with_others())

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def measure(
    contenders: Sequence[Contender],
    rounds: int,
    *,
    warmup: int = 1,
    rest: float = REST,
    clock: Callable[[], float] = time.perf_counter,
    advance: Advance | None = None,
) -> dict[str, Timing]:
    """Time contenders in turns.

    Args:
        contenders: in the order of a round; names differ.
        rounds: timed calls of each.
        warmup: calls of each before the first round, not timed.
        rest: seconds to wait before each timed call.
        clock: gives seconds.
        advance: called with 1 after every call, timed or not.

    Returns:
        Timings by name, in the order given.

    Raises:
        UsageError: no contender, two of one name, or fewer than one round.
    """
    names = [c.name for c in contenders]
    if not names or len(set(names)) < len(names):
        raise UsageError(f"a benchmark needs contenders with names of their own, got {', '.join(names) or 'none'}")
    if rounds < 1 or warmup < 0:
        raise UsageError(f"a benchmark needs at least one round and no negative warm-up, got {rounds} and {warmup}")
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-warmup, rounds):
        for contender in contenders:
            took = _call(contender, rest if turn >= 0 else 0.0, clock)
            if turn >= 0:
                seconds[contender.name].append(took)
            if advance:
                advance(1)
    return {c.name: Timing(c.name, c.threads, tuple(seconds[c.name])) for c in contenders}


def _call(contender: Contender, rest: float, clock: Callable[[], float]) -> float:
    if contender.inside is None:
        return _timed(contender.run, rest, clock)
    with contender.inside():
        return _timed(contender.run, rest, clock)


def _timed(run: Callable[[], Any], rest: float, clock: Callable[[], float]) -> float:
    if rest:
        time.sleep(rest)
    began = clock()
    run()
    return clock() - began


def compare(
    timings: dict[str, Timing],
    ours: str,
    peers: Iterable[str] | None = None,
    *,
    system: str,
    what: str,
    size: str,
    command: str,
) -> list[Row]:
    """Rows of ``ours`` beside each of ``peers`` (default: all others), in their order."""
    own = timings[ours]
    return [
        Row(
            system=system,
            what=what,
            ours=ours,
            ours_ms=_ms(own.median),
            ours_best_ms=_ms(own.best),
            peer=name,
            peer_ms=_ms(timings[name].median),
            peer_best_ms=_ms(timings[name].best),
            ratio=round(timings[name].median / own.median, 3),
            threads=own.threads,
            peer_threads=timings[name].threads,
            size=size,
            command=command,
        )
        for name in (peers if peers is not None else [n for n in timings if n != ours])
    ]


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)


def machine() -> str:
    """Processor, cores, memory and system in words; no name of the machine."""
    facts = _cpuinfo()
    name = facts.get("model name") or platform.processor() or platform.machine()
    extras = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "amx_int8") if flag in facts.get("flags", "").split()]
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parts = [name + (f" ({', '.join(extras)})" if extras else ""), f"{allowed} cores"]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        parts.append(f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB")
    return ", ".join([*parts, platform.system()])


def _cpuinfo() -> dict[str, str]:
    """The first processor's entries in /proc/cpuinfo; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    lines = (line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in lines}


def busy_with_others() -> float:
    """Threads that are running or ready to run now, this one not counted; -1 where the system does not tell."""
    try:
        samples = []
        for _ in range(10):
            samples.append(int(Path("/proc/loadavg").read_text().split()[3].split("/")[0]) - 1)
            time.sleep(0.02)
    except (OSError, ValueError, IndexError):
        return -1.0
    return float(statistics.mean(samples))


def versions() -> dict[str, str]:
    """Of Python and of the libraries that suites use, where installed."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def save(result: Result, path: Path, *, overwrite: bool = False) -> None:
    """Write a result as JSON, whole or not at all.

    Raises:
        InputError: the file exists and ``overwrite`` is not set, or it cannot be written.
    """
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists; choose another name, or give --overwrite")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_text(json.dumps(result.to_dict(), indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(f"cannot write {path}: {error.strerror}") from error


def skipped(name: str, why: object) -> str:
    """The note about a contender that could not run here."""
    lines = str(why).strip().splitlines()
    said = (
        f"{type(why).__name__}: {lines[0]}" if isinstance(why, Exception) and lines else str(why) or "no reason given"
    )
    print(f"saccade: note: without {name}: {said}", file=sys.stderr)
    return f"without {name}: {said}"
