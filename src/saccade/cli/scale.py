"""``saccade scale``: scale a backbone to a target, and show what comes out.

RegNets and EfficientNet are described and counted without torch; it is imported to build the others, and for latency.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from saccade.cli.options import ResultAsJson
from saccade.errors import UsageError

if TYPE_CHECKING:
    from saccade.backbones.fast_scaling import Architecture, Solution
    from saccade.backbones.fast_scaling.any_network import Result, Scaled
    from saccade.cost import Cost

Target = Literal["macs", "acts", "params", "seconds", "by"]

_AMOUNT = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(?:[eE]([+-]?\d+))?\s*([kKmMgGtT]?)")
#: least and most that is asked for: beyond lies nothing that a machine runs, and what does not end
_RANGES = {
    "--macs": (1.0, 1e13),
    "--activations": (1.0, 1e12),
    "--params": (1.0, 1e12),
    "--latency": (1e-3, 60e3),
    "--by": (1e-4, 1e4),
    "--size": (1, 16384),
}
_PREFIX = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}


def scale(
    model: Annotated[str, typer.Argument(help="The base: regnety_400mf, van_b1 or any with widths and depths.")],
    macs: Annotated[str | None, typer.Option(help="Target of MACs, e.g. 4G.")] = None,
    activations: Annotated[str | None, typer.Option(help="Target of activations, e.g. 8M.")] = None,
    params: Annotated[str | None, typer.Option(help="Target of parameters, e.g. 20M.")] = None,
    latency: Annotated[float | None, typer.Option(help="Target in milliseconds a picture, measured here.")] = None,
    by: Annotated[float | None, typer.Option(help="Scale MACs by this factor instead of solving.")] = None,
    strategy: Annotated[
        str,
        typer.Option(
            help="fast, depth, width, resolution, compound, rs_long, rs_short, or weights such as dwr or d1_w8_g8_r1."
        ),
    ] = "fast",
    size: Annotated[int | None, typer.Option(help="Side of the base's pictures in pixels, before scaling.")] = None,
    threads: Annotated[int | None, typer.Option(help="Processor threads for --latency.")] = None,
    as_json: ResultAsJson = False,
) -> None:
    """Scale a backbone to a target cost so that it stays fast."""
    from saccade.backbones.fast_scaling import BASES

    quantity, value = target_of(macs, activations, params, latency, by)
    if size is not None:
        within(size, "--size")
    if model in BASES:
        base = base_of(model, size)
        found = solve_for(base, strategy, quantity, value, threads)
        told = describe(model, strategy, base, found)
    else:
        told = describe_any(strategy, scale_any(model, size, strategy, quantity, value, threads))
    told["seconds"] = told["achieved"] if quantity == "seconds" else None
    if as_json:
        import json

        typer.echo(json.dumps(told, indent=2))
    else:
        typer.echo(table(told) if model in BASES else table_any(told))


def target_of(
    macs: str | None, activations: str | None, params: str | None, latency: float | None, by: float | None
) -> tuple[Target, float]:
    """The one target that is given, and how much.

    Raises:
        UsageError: none or several targets, or one that does not read as an amount.
    """
    targets = {"--macs": macs, "--activations": activations, "--params": params, "--latency": latency, "--by": by}
    given = [name for name, value in targets.items() if value is not None]
    if len(given) != 1:
        raise UsageError(f"give one of {', '.join(targets)}; got {' and '.join(given) or 'none'}")
    if by is not None:
        return "by", within(by, "--by")
    if latency is not None:
        return "seconds", within(latency, "--latency") / 1e3
    if macs is not None:
        return "macs", within(amount(macs, "--macs"), "--macs")
    if activations is not None:
        return "acts", within(amount(activations, "--activations"), "--activations")
    return "params", within(amount(str(params), "--params"), "--params")


def within(value: float, option: str) -> float:
    """The value of an option that has bounds.

    Raises:
        UsageError: it lies outside, or is no number.
    """
    least, most = _RANGES[option]
    if not least <= value <= most:
        raise UsageError(f"{option} lies between {least:g} and {most:g}, not at {value:g}")
    return value


def base_of(model: str, size: int | None) -> Architecture:
    """The description of a RegNet or EfficientNet, with its pictures' side replaced.

    Raises:
        UsageError: a size below 1.
    """
    from dataclasses import replace

    from saccade.backbones.fast_scaling import BASES

    base = BASES[model]
    if size is None:
        return base
    if size < 1:
        raise UsageError(f"--size is the side of the pictures in pixels, not {size}")
    return replace(base, train_size=size, test_size=max(1, round(size * base.test_size / base.train_size)))


def solve_for(
    base: Architecture, strategy: str, quantity: Target, value: float, threads: int | None = None
) -> Solution:
    """The network of a RegNet's or EfficientNet's description for a target.

    Raises:
        UsageError: a target that cannot be reached.
    """
    from saccade.backbones.fast_scaling import Solution, complexity, solve, solve_measured
    from saccade.backbones.fast_scaling import scale as scaled

    if quantity == "by":
        net = scaled(base, strategy, value)
        return Solution(net, value, complexity(base).macs * value, complexity(net).macs)
    if quantity == "seconds":
        from saccade.backbones.fast_scaling import seconds

        return solve_measured(base, value, lambda net: seconds(net, threads=threads), strategy=strategy)
    return solve(base, value, quantity=quantity, strategy=strategy)


def scale_any(
    model: str, size: int | None, strategy: str, quantity: Target, value: float, threads: int | None = None
) -> Result:
    """The network of a registered backbone for a target.

    Raises:
        UsageError: unknown name, a network without widths and depths, a target that cannot be reached.
    """
    from saccade.backbones.fast_scaling.any_network import Base, scale_to

    base = Base.of(model, size)
    if quantity == "by":
        return scale_to(base, strategy=strategy, by=value)
    return scale_to(base, strategy=strategy, target=value, quantity=quantity, threads=threads)


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
        "call": call_of(net),
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


def call_of(net: Architecture) -> str:
    """The Python expression that builds a description."""
    columns = {
        "depths": "depth",
        "widths": "width",
        "strides": "stride",
        "bottlenecks": "bottleneck",
        "group_widths": "group_width",
        "kernels": "kernel",
    }
    told: dict[str, Any] = {
        plural: tuple(getattr(stage, one) for stage in net.stages) for plural, one in columns.items()
    }
    told |= {
        name: getattr(net, name) for name in ("stem_width", "head_width", "block", "stem", "activation", "se_ratio")
    }
    return f'saccade.create("anynet", weights=None{"".join(f", {k}={v!r}" for k, v in told.items())})'


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
    return "\n".join([*lines, "", told["call"], "", closing(told)])


def describe_any(strategy: str, found: Result) -> dict[str, Any]:
    """Everything about a scaled backbone as plain data: the call that builds it, options, costs, deviation."""
    import math

    def told(net: Scaled, cost: Cost) -> dict[str, Any]:
        costs = {"macs": cost.macs, "params": cost.parameters, "activations": cost.activations}
        return {"size": net.size, "options": dict(net.options), **costs}

    return {
        "model": found.network.name,
        "strategy": strategy,
        "scale": found.scale,
        "call": found.network.call,
        "base": told(found.base, found.before),
        **told(found.network, found.after),
        "exponent": None if math.isnan(found.exponent) else found.exponent,
        "target": found.target,
        "achieved": found.achieved,
        "deviation": found.deviation,
    }


def table_any(told: dict[str, Any]) -> str:
    """The description as text: before and after, then the call."""
    lines = [
        f"{told['model']} scaled by {told['scale']:.4g} ({told['strategy']})",
        "",
        f"{'':<7}{'side':>6}{'MACs (M)':>12}{'params (M)':>12}{'acts (M)':>11}",
    ]
    for name, net in (("before", told["base"]), ("after", told)):
        lines.append(
            f"{name:<7}{net['size']:>6}{net['macs'] / 1e6:>12.2f}{net['params'] / 1e6:>12.3f}"
            f"{net['activations'] / 1e6:>11.3f}"
        )
    return "\n".join([*lines, "", told["call"], "", closing(told)])


def closing(told: dict[str, Any]) -> str:
    """The last line of both tables: seconds, deviation, exponent."""
    power = "" if told["exponent"] is None else f"; activations grew as MACs^{told['exponent']:.2f}"
    timed = f"{told['seconds'] * 1e3:.1f} ms measured, " if told["seconds"] is not None else ""
    return f"{timed}{told['deviation']:+.2%} from the target{power}"
