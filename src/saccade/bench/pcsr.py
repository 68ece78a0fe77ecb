"""PCSR: what routing pixels saves, beside predicting every pixel with the heavy sampler, and beside running both."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from saccade import registry
from saccade.bench.harness import Advance, Contender, Result, compare, measure
from saccade.bench.peers import torch_threads
from saccade.runtime.engines import cores
from saccade.runtime.scene import scene

__all__ = ["run"]


def run(
    size: tuple[int, int] = (960, 540),
    *,
    scale: int = 2,
    model: str = "pcsr_fsrcnn",
    budget: float = 0.5,
    threads: int = 0,
    rounds: int = 5,
    advance: Callable[[str, float], Advance] | None = None,
) -> Result:
    """Run the suite: float RGB to float RGB in PyTorch, as PCSR runs everywhere.

    With ``budget`` the share of heavy pixels follows from the cost alone, so fresh weights (taken where none ship)
    give the same speed as trained ones.

    Args:
        size: width and height of the input.
        scale, model: a PCSR model.
        budget: fraction of the all-heavy MACs that the routed run may spend.
        threads, rounds, advance: as in `bench.upscale.run`.
    """
    import torch

    threads = threads or cores()
    width, height = size
    network, trained = _network(model, scale)
    x = torch.from_numpy(scene(height, width).astype(np.float32) / 255).permute(2, 0, 1)[None]
    contenders = _contenders(model, network, x, budget, threads)
    timings = measure(contenders, rounds, advance=advance("routing", 3 * (rounds + 1)) if advance else None)
    with torch_threads(threads):
        contenders[0].run()
    spent = network.last_report
    command = (
        f"saccade bench pcsr --size {width}x{height} --scale {scale} --model {model} --budget {budget:g} "
        f"--threads {threads}"
    )
    rows = compare(
        timings,
        contenders[0].name,
        system="pcsr",
        what=f"float RGB enlarged x{scale}",
        size=f"{width}x{height}",
        command=command,
    )
    notes = (
        f"budget {budget:g}: {spent.heavy_share:.1%} of the pixels heavy, {spent.fraction:.1%} of the MACs",
        "trained weights" if trained else "fresh weights: the routed share is what counts here",
    )
    return Result("pcsr", command, rounds, tuple(rows), notes)


def _network(model: str, scale: int) -> tuple[Any, bool]:
    """The network, and whether weights for it ship; without them they are drawn from a seed."""
    import torch

    weights = registry.default_weights(model, scale=scale)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return registry.create(model, weights=weights, scale=scale), weights is not None


def _contenders(model: str, network: Any, x: Any, budget: float, threads: int) -> list[Contender]:
    """The routed run, and the two that it is compared with."""
    inside = functools.partial(torch_threads, threads)

    def at(fraction: float) -> Any:
        network.budget = fraction
        return network(x)

    return [
        Contender(f"{model}, budget {budget:g}", lambda: at(budget), threads, inside),
        Contender(f"{model}, every pixel heavy", lambda: at(1.0), threads, inside),
        Contender(f"{model}, both samplers everywhere", lambda: network.forward_mixture(x), threads, inside),
    ]
