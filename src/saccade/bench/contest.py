"""Suites in which every system brings contests: its job done our way and as its authors published it, same weights.

A suite is a package of this one, e.g. ``saccade.bench.restoration``, with a module a system that has one or both of

    def contests(size: tuple[int, int], threads: int) -> Iterator[Contest]
    def rows(threads: int, rounds: int) -> tuple[list[Row], list[str]]        what else the system promises

Memory is measured in processes of its own.
"""

from __future__ import annotations

import importlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saccade.bench.harness import Advance, Contender, Result, Row, compare, measure
from saccade.errors import UsageError
from saccade.runtime.engines import cores

__all__ = ["Contest", "Suite"]

PATIENCE = 40.0  # seconds that the rounds of one contest may take, beyond one round
OFFICIAL = "(official, plainly)"


@dataclass(frozen=True)
class Contest:
    """One network on one input, run our way and as its authors published it.

    Attributes:
        what: the job, in words, e.g. ``Histoformer-tiny, RGB``.
        ours: the fast path that a user gets by default.
        official: the published algorithm run plainly (eager PyTorch, the steps of the official code), same weights.
        peers: what else a user could pick.
        notes: what belongs to the figures, one sentence each.
        check: run before the timing; raises where the two do not give the same.
    """

    what: str
    ours: Contender
    official: Contender
    peers: tuple[Contender, ...] = ()
    notes: tuple[str, ...] = field(default=())
    check: Callable[[], None] | None = None


@dataclass(frozen=True)
class Suite:
    """A package of contests.

    Attributes:
        name: of the package.
        sizes: widths and heights of the inputs, where the user gives none.
    """

    name: str
    sizes: tuple[tuple[int, int], ...]

    def systems(self) -> list[str]:
        """Slugs of the systems that have something to show here."""
        return sorted(p.stem for p in (Path(__file__).parent / self.name).glob("*.py") if p.stem != "__init__")

    def run(
        self,
        chosen: Sequence[str] = (),
        sizes: Sequence[tuple[int, int]] = (),
        *,
        threads: int = 0,
        rounds: int = 5,
        memory: bool = True,
        extras: bool = True,
        advance: Callable[[str, float], Advance] | None = None,
    ) -> Result:
        """Run the suite.

        Args:
            chosen: slugs; none for all.
            sizes: widths and heights of the inputs; none for the suite's own.
            threads: of the processor, 0 for all cores.
            rounds: timed calls of each contender; fewer where one takes long, at least one.
            memory: measure peak memory too, each contender in a process of its own.
            extras: run the systems' own further rows too.
            advance: makes a progress bar of a title and a total.

        Raises:
            UsageError: no such system.
        """
        known = self.systems()
        for slug in chosen:
            if slug not in known:
                raise UsageError(f"no benchmark of {slug!r} here; there are {', '.join(known)}")
        threads = threads or cores()
        rows: list[Row] = []
        notes: list[str] = []
        for slug in chosen or known:
            module: Any = importlib.import_module(f"saccade.bench.{self.name}.{slug}")
            for size in sizes or self.sizes:
                made = module.contests(size, threads) if hasattr(module, "contests") else ()
                for i, contest in enumerate(made):
                    rows += self._contest(slug, contest, size, threads, rounds, advance)
                    notes += [n for n in contest.notes if n not in notes]
                    if memory:
                        notes.append(self._memory(slug, contest, size, i, threads))
            if extras and hasattr(module, "rows"):
                more, said = module.rows(threads, rounds)
                rows += more
                notes += said
        versus = [r.ratio for r in rows if r.peer.endswith(OFFICIAL)]
        if versus:
            told = f"{len(versus)} contests against the official algorithm: median {statistics.median(versus):.2f}x"
            notes.insert(0, f"{told}, lowest {min(versus):.2f}x")
        command = f"saccade bench {self.name}{''.join(f' --system {s}' for s in chosen)} --threads {threads}"
        return Result(self.name, command, rounds, tuple(rows), tuple(notes))

    def _contest(
        self,
        slug: str,
        contest: Contest,
        size: tuple[int, int],
        threads: int,
        rounds: int,
        advance: Callable[[str, float], Advance] | None,
    ) -> list[Row]:
        if contest.check:
            contest.check()
        plain = contest.official
        official = Contender(f"{plain.name} {OFFICIAL}", plain.run, plain.threads, plain.inside)
        contenders = [contest.ours, official, *contest.peers]
        began = time.perf_counter()
        timings = measure(contenders, 1, warmup=0)
        once = time.perf_counter() - began
        count = max(1, min(rounds, int(PATIENCE / max(once, 1e-3))))
        if once < 2 * PATIENCE:  # of calls that take minutes the first counts: what it warms up takes milliseconds
            bar = advance(f"{slug}, {contest.what}", len(contenders) * count) if advance else None
            timings = measure(contenders, count, warmup=0, advance=bar)
        text = f"{size[0]}x{size[1]}"
        command = f"saccade bench {self.name} --system {slug} --size {text} --threads {threads}"
        return compare(timings, contest.ours.name, system=slug, what=contest.what, size=text, command=command)

    def _memory(self, slug: str, contest: Contest, size: tuple[int, int], index: int, threads: int) -> str:
        """Peak memory of both, in words."""
        found = []
        for which in ("ours", "official"):
            words = [f"{self.name}.{slug}", f"{size[0]}x{size[1]}", str(index), which, str(threads)]
            line = [sys.executable, "-W", "ignore", "-m", "saccade.bench.memory", *words]
            done = subprocess.run(line, capture_output=True, text=True, check=False)
            lines = done.stdout.strip().splitlines()
            found.append(f"{int(lines[-1]) / (1 << 20):,.0f} MB" if done.returncode == 0 and lines else "not measured")
        place = f"{slug}, {contest.what}, {size[0]}x{size[1]}"
        return f"{place}: memory above what was held before, at its peak: ours {found[0]}, official {found[1]}"
