"""Activations, not MACs, predict how long a network runs; so scale what adds few activations: the width.

A grid of RegNets, scaled by six strategies to the same two levels of MACs, is timed on the processor. At one level MACs
hardly differ, so whatever orders the run times must be something else.

The grid takes the processor time of one thread, which other work on the machine lengthens little. The head-to-head of
fast against uniform scaling also takes the wall clock on two threads, as the median of ratios of neighbouring runs.

The claim is about memory: it needs batches that outgrow the caches. With one picture at a time on a server's processor
with large caches, MACs were seen to predict as well (Pearson 0.87, against 0.83 for activations).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from saccade.backbones.fast_scaling import BASES, AnyNet, Architecture, complexity, scale, solve
from saccade.reproduce import Claim, Data, Figures
from saccade.reproduce.training import on_threads

CLAIM = Claim(
    system="fast_scaling",
    says="Activations predict run time better than MACs, and at equal MACs a RegNetY-400MF scaled four times by fast "
    "scaling (dWr) runs at least 1.15 times as fast as by uniform scaling (dwr).",
    source="arXiv:2103.06877, the analysis of run time and fast compound scaling",
    baseline="uniform compound scaling (dwr, group width scaled too) to the same MACs; MACs as predictor of time",
)

GRID_BASES = ("regnetx_400mf", "regnety_400mf")
GRID_STRATEGIES = ("fast", "compound", "depth", "resolution", "width", "dr")
GRID_MACS = (0.8e9, 1.6e9)
BATCH = 8


def grid() -> dict[str, Architecture]:
    """The networks of the grid by name, e.g. ``regnety_400mf fast 1.6G``."""
    return {
        f"{base} {strategy} {macs / 1e9:g}G": solve(BASES[base], macs, strategy=strategy).architecture
        for base in GRID_BASES
        for macs in GRID_MACS
        for strategy in GRID_STRATEGIES
    }


def pair(s: float) -> tuple[Architecture, Architecture]:
    """RegNetY-400MF scaled ``s`` times by fast scaling, and by uniform scaling to the MACs that this reached."""
    base = BASES["regnety_400mf"]
    fast = scale(base, "fast", s)
    return fast, solve(base, complexity(fast).macs, strategy="compound").architecture


def pearson(x: Sequence[float], y: Sequence[float]) -> float:
    """Linear correlation."""
    return statistics.correlation(x, y)


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Correlation of ranks; equal values share their mean rank."""

    def ranks(values: Sequence[float]) -> list[float]:
        return [sum(v < u for v in values) + (sum(v == u for v in values) - 1) / 2 for u in values]

    return pearson(ranks(x), ranks(y))


def rounds(
    nets: Sequence[Architecture],
    count: int,
    *,
    seed: int,
    clock: Callable[[], float] = time.thread_time,
    threads: int = 1,
    batch: int = BATCH,
    channels_last: bool = False,
) -> list[list[float]]:
    """Seconds of every network in each of ``count`` interleaved rounds, after one round that is not timed.

    Args:
        nets: each runs at its own training size.
        count: of rounds.
        seed: of the pictures.
        clock: of the thread, or of the wall.
        threads: of the processor.
        batch: pictures at once.
        channels_last: memory layout, instead of contiguous.
    """
    generator = torch.Generator().manual_seed(seed)
    format_ = torch.channels_last if channels_last else torch.contiguous_format
    calls = []
    for net in nets:
        model = AnyNet(net).eval().to(memory_format=format_)
        x = torch.rand(batch, 3, net.train_size, net.train_size, generator=generator)
        calls.append((model, x.contiguous(memory_format=format_)))
    seconds: list[list[float]] = [[] for _ in nets]
    with on_threads(threads), torch.inference_mode():
        for i in range(count + 1):
            for (model, x), times in zip(calls, seconds, strict=True):
                start = clock()
                model(x)
                if i:
                    times.append(clock() - start)
    return seconds


def run(data: Data, seed: int) -> Figures:
    """Time the grid and the pairs; about three minutes on two idle cores. No data is needed."""
    nets = grid()
    costs = [complexity(net) for net in nets.values()]
    macs, acts = [c.macs / 1e9 for c in costs], [c.acts / 1e6 for c in costs]
    seconds = [statistics.median(t) for t in rounds([*nets.values()], 3, seed=seed)]
    figures: dict[str, Any] = {
        "pearson_activations": pearson(acts, seconds),
        "pearson_macs": pearson(macs, seconds),
        "spearman_activations": spearman(acts, seconds),
        "spearman_macs": spearman(macs, seconds),
    }
    for level in GRID_MACS:
        of = [i for i, name in enumerate(nets) if name.endswith(f" {level / 1e9:g}G")]
        at = [seconds[i] for i in of]
        figures[f"pearson_activations_at_{level / 1e9:g}_gmacs"] = pearson([acts[i] for i in of], at)
        figures[f"pearson_macs_at_{level / 1e9:g}_gmacs"] = pearson([macs[i] for i in of], at)

    settings: dict[str, tuple[float, int, dict[str, Any]]] = {
        "two_threads": (4, 31, {"clock": time.perf_counter, "threads": 2}),
        "one_thread": (4, 15, {}),
        "one_thread_channels_last": (4, 15, {"channels_last": True}),
        "one_thread_scaled_16x_batch_2": (16, 7, {"batch": 2}),
    }
    for how, (s, count, options) in settings.items():
        fast, uniform = pair(s)
        quick, slow = rounds([fast, uniform], count, seed=seed, **options)
        figures[f"speedup_{how}"] = statistics.median(b / a for a, b in zip(quick, slow, strict=True))
        for name, net, times in (("fast", fast, quick), ("uniform", uniform, slow)):
            figures[f"seconds_{name}_{how}"] = statistics.median(times)
            figures[f"gmacs_{name}_{how}"] = complexity(net).macs / 1e9
            figures[f"activations_m_{name}_{how}"] = complexity(net).acts / 1e6
    return {**figures, "networks": [*nets], "macs_g": macs, "activations_m": acts, "seconds": seconds}


def met(f: Figures) -> bool:
    """Activations correlate better, linearly and in ranks; fast scaling is 1.15 times as fast, on two threads."""
    return bool(
        f["pearson_activations"] > f["pearson_macs"]
        and f["spearman_activations"] > f["spearman_macs"]
        and f["speedup_two_threads"] >= 1.15
    )


def plot(figures: Figures, path: Path) -> None:
    """Run time over MACs and over activations, one colour a strategy."""
    import matplotlib.pyplot as plt

    f = figures
    picture, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for axis, key, unit, r in zip(
        axes,
        ("macs_g", "activations_m"),
        ("MACs (G)", "activations (M)"),
        (f["pearson_macs"], f["pearson_activations"]),
        strict=True,
    ):
        for strategy in GRID_STRATEGIES:
            of = [i for i, name in enumerate(f["networks"]) if name.split()[1] == strategy]
            axis.scatter([f[key][i] for i in of], [f["seconds"][i] for i in of], label=strategy, s=24)
        axis.set_xlabel(unit)
        axis.set_title(f"Pearson r = {r:.2f}")
    axes[0].set_ylabel(f"seconds for {BATCH} pictures, one thread")
    axes[1].legend()
    picture.savefig(path, dpi=120)
    plt.close(picture)
