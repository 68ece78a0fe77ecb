"""``saccade scale``: scale a backbone to a target, and show what comes out. Imports torch only to measure latency."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saccade.errors import UsageError

if TYPE_CHECKING:
    from saccade.backbones.fast_scaling import Architecture, Solution

_AMOUNT = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(?:[eE]([+-]?\d+))?\s*([kKmMgGtT]?)")
_PREFIX = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}


def scale(
    model: Annotated[str, typer.Argument(help="The base, e.g. regnety_400mf (saccade list 'regnet*' shows more).")],
    macs: Annotated[str | None, typer.Option(help="Target of MACs, e.g. 4G.")] = None,
    activations: Annotated[str | None, typer.Option(help="Target of activations, e.g. 8M.")] = None,
    params: Annotated[str | None, typer.Option(help="Target of parameters, e.g. 20M.")] = None,
    latency: Annotated[float | None, typer.Option(help="Target in milliseconds a picture, measured here.")] = None,
    by: Annotated[float | None, typer.Option(help="Scale MACs by this factor instead of solving.")] = None,
    strategy: Annotated[
        str,
        typer.Option(help="fast, depth, width, resolution, compound, or weights such as dwr or d1_w8_g8_r1."),
    ] = "fast",
    size: Annotated[int | None, typer.Option(help="Side of the base's pictures in pixels, before scaling.")] = None,
    threads: Annotated[int | None, typer.Option(help="Processor threads for --latency.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Scale a backbone to a target cost so that it stays fast."""
    base = base_of(model, size)
    found = solve_for(base, strategy, macs, activations, params, latency, by, threads)
    told = describe(model, strategy, base, found) | {"seconds": found.achieved if latency is not None else None}
    if as_json:
        import json

        typer.echo(json.dumps(told, indent=2))
    else:
        typer.echo(table(told))


def base_of(model: str, size: int | None) -> Architecture:
    """The base network of a name, with its pictures' side replaced.

    Raises:
        UsageError: unknown name, a model that cannot be scaled, a size below 1.
    """
    from dataclasses import replace

    from saccade import registry
    from saccade.backbones.fast_scaling import BASES

    if model not in BASES:
        registry.entry(model)  # raises with the nearest names where there is no such model
        raise UsageError(f"{model} is not a network that can be scaled; these can: {', '.join(BASES)}")
    base = BASES[model]
    if size is None:
        return base
    if size < 1:
        raise UsageError(f"--size is the side of the pictures in pixels, not {size}")
    return replace(base, train_size=size, test_size=max(1, round(size * base.test_size / base.train_size)))


def solve_for(
    base: Architecture,
    strategy: str,
    macs: str | None = None,
    activations: str | None = None,
    params: str | None = None,
    latency: float | None = None,
    by: float | None = None,
    threads: int | None = None,
) -> Solution:
    """The network for the one target that is given.

    Raises:
        UsageError: none or several targets, a target that does not read as an amount or cannot be reached.
    """
    from saccade.backbones.fast_scaling import Solution, complexity, solve, solve_measured
    from saccade.backbones.fast_scaling import scale as scaled

    targets = {"--macs": macs, "--activations": activations, "--params": params, "--latency": latency, "--by": by}
    given = [name for name, value in targets.items() if value is not None]
    if len(given) != 1:
        raise UsageError(f"give one of {', '.join(targets)}; got {' and '.join(given) or 'none'}")
    if by is not None:
        net = scaled(base, strategy, by)
        return Solution(net, by, complexity(base).macs * by, complexity(net).macs)
    if latency is not None:
        from saccade.backbones.fast_scaling import seconds

        return solve_measured(base, latency / 1e3, lambda net: seconds(net, threads=threads), strategy=strategy)
    if macs is not None:
        return solve(base, amount(macs, "--macs"), quantity="macs", strategy=strategy)
    if activations is not None:
        return solve(base, amount(activations, "--activations"), quantity="acts", strategy=strategy)
    assert params is not None
    return solve(base, amount(params, "--params"), quantity="params", strategy=strategy)


def amount(text: str, option: str) -> float:
    """``"4G"`` -> 4e9; the prefixes are k, M, G, T, in either case.

    Raises:
        UsageError: anything else, or zero.
    """
    found = _AMOUNT.fullmatch(text.strip())
    value = float(f"{found[1]}e{found[2] or 0}") * _PREFIX[found[3].lower()] if found else 0.0
    if value <= 0:
        raise UsageError(f"{option} takes an amount such as 4G, 600M or 1.5e9, not {text!r}")
    return value


def describe(model: str, strategy: str, base: Architecture, found: Solution) -> dict[str, Any]:
    """Everything about a solution as plain data: stages, costs, exponent, deviation."""
    import math

    from saccade.backbones.fast_scaling import complexity, exponent, part_complexities

    net = found.architecture
    parts = [
        {"part": name, "side": side, "macs": cost.macs, "params": cost.params, "activations": cost.acts}
        for name, side, cost in part_complexities(net)
    ]
    for part, stage in zip(parts[1:-1], net.stages, strict=True):
        part |= {
            "depth": stage.depth,
            "width": stage.width,
            "group_width": 1 if net.block == "mbconv" else stage.group_width,
            "bottleneck": stage.bottleneck,
            "stride": stage.stride,
            "kernel": stage.kernel,
        }
    parts[0] |= {"width": net.stem_width}
    parts[-1] |= {"width": net.head_width or net.stages[-1].width}
    total, power = complexity(net), exponent(base, net)
    return {
        "model": model,
        "strategy": strategy,
        "scale": found.scale,
        "train_size": net.train_size,
        "test_size": net.test_size,
        "parts": parts,
        "macs": total.macs,
        "params": total.params,
        "activations": total.acts,
        "exponent": None if math.isnan(power) else power,
        "target": found.target,
        "achieved": found.achieved,
        "deviation": found.deviation,
    }


def table(told: dict[str, Any]) -> str:
    """The description as text: one line a part, then the totals."""
    lines = [
        f"{told['model']} scaled by {told['scale']:.4g} ({told['strategy']}), "
        f"{told['train_size']} px to train, {told['test_size']} px to test",
        "",
        f"{'part':<5}{'side':>6}{'depth':>7}{'width':>7}{'group':>7}{'MACs (M)':>11}{'params (M)':>12}{'acts (M)':>10}",
    ]
    for p in told["parts"]:
        lines.append(
            f"{p['part']:<5}{p['side']:>6}{p.get('depth', ''):>7}{p['width']:>7}{p.get('group_width', ''):>7}"
            f"{p['macs'] / 1e6:>11.2f}{p['params'] / 1e6:>12.3f}{p['activations'] / 1e6:>10.3f}"
        )
    lines.append(
        f"{'all':<32}{told['macs'] / 1e6:>11.2f}{told['params'] / 1e6:>12.3f}{told['activations'] / 1e6:>10.3f}"
    )
    power = "" if told["exponent"] is None else f"; activations grew as MACs^{told['exponent']:.2f}"
    timed = f"{told['seconds'] * 1e3:.1f} ms measured, " if told["seconds"] is not None else ""
    return "\n".join([*lines, "", f"{timed}{told['deviation']:+.2%} from the target{power}"])
