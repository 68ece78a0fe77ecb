"""Time and memory of backbones from 224 to 1,792 pixels a side: the picture that a user chooses by.

Each network at each size runs in a process of its own, fused, channels last, one picture, in PyTorch (which takes any
size without compiling anew). Networks that are built for one size are built for each: branches of PIIP see pictures in
proportion, ElasticViT's architecture gets the side for its resolution. A network stops where one picture takes longer
than `PATIENCE` or the memory runs out.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from saccade import registry
from saccade.bench.harness import Advance, busy_with_others, machine, versions
from saccade.errors import UsageError
from saccade.runtime.engines import cores

__all__ = ["SIDES", "Course", "Sweep", "exponent", "plot", "run"]

SIDES = (224, 320, 448, 640, 896, 1280, 1792)
PATIENCE = 60.0  # seconds of one picture from which on larger ones are left out
CALLS = 3
INSTEAD = {"piip": "piip_tsb_368"}  # of the smallest: piip_nano is for pictures of 96 px, in patches of 4


@dataclass(frozen=True)
class Course:
    """One network along the sides.

    Attributes:
        model, system: its registered name and its slug.
        parameters: of the fused network.
        sides: of the square pictures, pixels.
        seconds: of one picture, the fastest of three.
        bytes: held at the peak beyond weights and picture.
        time_exponent, memory_exponent: of a power law in pixels fitted to the points.
        note: why larger ones are missing.
    """

    model: str
    system: str
    parameters: int
    sides: tuple[int, ...]
    seconds: tuple[float, ...]
    bytes: tuple[int, ...]
    time_exponent: float | None
    memory_exponent: float | None
    note: str = ""


@dataclass(frozen=True)
class Sweep:
    """What one run found, ready for JSON."""

    command: str
    threads: int
    courses: tuple[Course, ...]
    machine: str = field(default_factory=machine)
    versions: dict[str, str] = field(default_factory=versions)
    others: float = field(default_factory=busy_with_others)

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def exponent(sides: Sequence[int], values: Sequence[float]) -> float | None:
    """Slope of log(value) over log(pixels) by least squares; None for fewer than two points that are not zero."""
    points = [(2 * math.log(s), math.log(v)) for s, v in zip(sides, values, strict=True) if v > 0]
    if len(points) < 2:
        return None
    x, y = (sum(column) / len(points) for column in zip(*points, strict=True))
    spread = sum((a - x) ** 2 for a, _ in points)
    return sum((a - x) * (b - y) for a, b in points) / spread if spread else None


def default_models() -> list[str]:
    """One variant a system, the smallest; of those that are built for one size, none that cannot be told which."""
    found = dict(INSTEAD)
    for slug in {registry.entry(n).system for n in registry.list_models(task="classification")} - {""}:
        for name in registry.variants(slug):
            entry = registry.entry(name)
            any_size = not entry.facts.get("fixed_size") or "side_option" in entry.facts
            if entry.task == "classification" and any_size and entry.facts.get("timm", True):
                found.setdefault(slug, name)
    return sorted(found.values())


def run(
    models: Sequence[str] = (),
    sides: Sequence[int] = SIDES,
    *,
    threads: int = 0,
    advance: Callable[[str, float], Advance] | None = None,
) -> Sweep:
    """Run the sweep.

    Args:
        models: registered names; none for one a system.
        sides: of the pictures, pixels.
        threads: of the processor, 0 for all cores.
        advance: makes a progress bar of a title and a total.

    Raises:
        UsageError: a model that is no classifier.
    """
    models = list(models) or default_models()
    for name in models:
        if registry.entry(name).task != "classification":
            raise UsageError(f"{name} is for {registry.entry(name).task}; backbones are swept")
    threads = threads or cores()
    courses = []
    for name in models:
        bar = advance(name, len(sides)) if advance else None
        courses.append(_course(name, sorted(sides), threads, bar))
    told = "".join(f" --model {n}" for n in models) if len(models) < 4 else ""
    told += "" if tuple(sides) == SIDES else "".join(f" --side {n}" for n in sides)
    return Sweep(f"saccade bench sweep{told} --threads {threads}", threads, tuple(courses))


def _course(name: str, sides: Sequence[int], threads: int, advance: Advance | None) -> Course:
    found: list[tuple[int, float, int]] = []
    parameters, note = 0, ""
    for side in sides:
        words = [sys.executable, "-W", "ignore", "-m", "saccade.bench.sweep", name, str(side), str(threads)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        try:
            done = subprocess.run(
                words, capture_output=True, text=True, check=False, timeout=10 * PATIENCE, env=environment
            )
        except subprocess.TimeoutExpired:
            note = f"{side} px took too long"
            break
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            note = f"{side} px: {lines[-1][:160] if lines else 'ended by the system'}"
            break
        told = json.loads(done.stdout.strip().splitlines()[-1])
        parameters = told["parameters"]
        found.append((side, told["seconds"], told["bytes"]))
        if advance:
            advance(1)
        if told["seconds"] > PATIENCE:
            note = f"sizes above {side} px were left out"
            break
    measured, seconds, peaks = ([*column] for column in zip(*found, strict=True)) if found else ([], [], [])
    return Course(
        name,
        registry.entry(name).system,
        parameters,
        tuple(measured),
        tuple(round(s, 5) for s in seconds),
        tuple(peaks),
        exponent(measured, seconds),
        exponent(measured, [float(p) for p in peaks]),
        note,
    )


def one(name: str, side: int, threads: int) -> dict[str, float]:
    """Seconds of the fastest of three calls, and bytes at the peak of the first beyond those held before."""
    import torch

    from saccade.bench.memory import held, settle
    from saccade.runtime.accelerate import accelerate

    torch.set_num_threads(threads)
    option = registry.entry(name).facts.get("side_option")
    model = accelerate(registry.create(name, weights=None, **({option: side} if option else {})), backend="torch")
    x = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    before = settle()
    seconds, peak = [], 0
    for i in range(CALLS):
        began = time.perf_counter()
        model(x)
        seconds.append(time.perf_counter() - began)
        peak = peak if i else held("VmHWM") - before
        if seconds[-1] > PATIENCE / 4:
            break
    return {"seconds": min(seconds), "bytes": max(peak, 0), "parameters": model.parameters}


def plot(sweep: Sweep | dict[str, Any], path: Path) -> None:
    """Time and memory over the side, both axes logarithmic, with the fitted exponents in the legend."""
    import matplotlib.pyplot as plt

    told = sweep.to_dict() if isinstance(sweep, Sweep) else sweep
    picture, (left, right) = plt.subplots(1, 2, figsize=(14, 5), layout="constrained")
    for i, course in enumerate(c for c in told["courses"] if c["sides"]):
        style = {"marker": "osv^Dx"[i % 6], "color": f"C{i % 10}", "markersize": 4}
        times, peaks = course["time_exponent"], course["memory_exponent"]
        left.plot(course["sides"], course["seconds"], label=f"{course['model']}  {times or 0:.2f}", **style)
        right.plot(
            course["sides"], [b / 2**20 for b in course["bytes"]], label=f"{course['model']}  {peaks or 0:.2f}", **style
        )
    for axis, unit in ((left, "seconds a picture"), (right, "MiB at the peak")):
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(SIDES, [str(s) for s in SIDES])
        axis.set_xlabel("side of the picture, pixels")
        axis.set_ylabel(unit)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7, title="exponent in pixels", title_fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    picture.savefig(path, dpi=120)
    plt.close(picture)


if __name__ == "__main__":
    from saccade.bench import memory

    memory.bound()
    print(json.dumps(one(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
