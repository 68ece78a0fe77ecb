"""Fast compound scaling: a RegNet grown to a target of MACs by dWr, beside other ways to grow it and timm's own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from saccade.bench.harness import Advance, Contender, Result, compare, measure, skipped
from saccade.bench.peers import torch_threads
from saccade.runtime.engines import cores

__all__ = ["run"]


def run(
    base: str = "regnety_400mf",
    *,
    macs: float = 1.6e9,
    batch: int = 8,
    threads: int = 0,
    rounds: int = 5,
    advance: Callable[[str, float], Advance] | None = None,
) -> Result:
    """Run the suite: inference of equal MACs in PyTorch, channels_last; fresh weights.

    Args:
        base: a base network of `backbones.fast_scaling.BASES`.
        macs: what each network is grown to.
        batch: pictures at once, each network at its own picture size.
        threads, rounds, advance: as in `bench.upscale.run`.

    Raises:
        UsageError: a target that a strategy cannot reach.
    """
    import torch

    threads = threads or cores()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        networks, notes = _networks(base, macs)
    contenders = [_contender(name, network, (batch, side), threads) for name, network, side in networks]
    bar = advance("backbones", len(contenders) * (rounds + 1)) if advance else None
    timings = measure(contenders, rounds, advance=bar)
    command = f"saccade bench fast_scaling --base {base} --macs {macs:g} --batch {batch} --threads {threads}"
    what = f"inference of {batch} pictures at {macs / 1e9:g} GMACs each"
    rows = compare(
        timings, contenders[0].name, system="fast_scaling", what=what, size=f"batch {batch}", command=command
    )
    return Result("fast_scaling", command, rounds, tuple(rows), tuple(notes))


def _networks(base: str, macs: float) -> tuple[list[tuple[str, Any, int]], list[str]]:
    """Networks of equal MACs with their names and the sides of their pictures, and what is to be said of them.

    Raises:
        UsageError: an unknown base, or a target that a strategy cannot reach.
    """
    from saccade.backbones.fast_scaling import BASES, complexity, solve
    from saccade.backbones.fast_scaling.networks import AnyNet
    from saccade.errors import UsageError

    if base not in BASES:
        raise UsageError(f"no base network {base!r}; there are {', '.join(BASES)}")
    made, notes = list[tuple[str, Any, int]](), list[str]()
    for strategy, words in (("fast", "mostly wider (dWr)"), ("compound", "uniformly"), ("depth", "deeper")):
        net = solve(BASES[base], macs, strategy=strategy).architecture
        counted = complexity(net)
        made.append((f"{base} grown {words}", AnyNet(net), net.train_size))
        notes.append(f"{made[-1][0]}: {counted.macs / 1e6:.0f} MMACs, {counted.acts / 1e6:.1f} M activations")
    if base == "regnety_400mf" and macs == 1.6e9:
        try:
            import timm

            made.append(("timm regnety_016", timm.create_model("regnety_016", pretrained=False), 224))
        except (ImportError, RuntimeError) as error:
            notes.append(skipped("timm regnety_016", error))
    return made, notes


def _contender(name: str, network: Any, shape: tuple[int, int], threads: int) -> Contender:
    """A network on a batch of pictures, (count, side)."""
    import torch

    batch, side = shape
    network = network.eval().to(memory_format=torch.channels_last)
    x = torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(0))
    x = x.contiguous(memory_format=torch.channels_last)
    return Contender(name, lambda: network(x), threads, functools.partial(torch_threads, threads))
