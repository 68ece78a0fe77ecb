"""``saccade reproduce``: a system's published claim, run again."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated, Any

import typer

from saccade.cli.options import a_seed
from saccade.errors import UsageError


def reproduce(
    slugs: Annotated[list[str] | None, typer.Argument(metavar="SLUG...", help="Systems (saccade systems).")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All systems whose claim can be re-run.")] = False,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder of pictures, or one with train_free/, set5/, set14/, b100/, kodak/ inside.  "
            "[default: generated pictures and the bundled photograph]"
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for SLUG.json and SLUG.png.  [default: docs/results here, or saccade-results]"),
    ] = None,
    seed: Annotated[int, typer.Option(callback=a_seed, help="Of everything drawn at random.")] = 0,
    seeds: Annotated[
        int, typer.Option(min=1, help="Runs, each with the next seed; a claim is met where all of them meet it.")
    ] = 1,
    json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Measure a system's claim against its baseline, minutes each; exits with 1 where one is not met."""
    from saccade.reproduce import claims, default_folder, load_claim
    from saccade.reproduce import reproduce as run

    chosen = claims() if everything else list(dict.fromkeys(slugs or ()))
    if not chosen:
        raise UsageError(f"reproduce needs a system, or --all; there are {', '.join(claims())}")
    for slug in chosen:
        load_claim(slug)  # a wrong name is told before minutes are spent on the others
    results = []
    for slug in chosen:
        result = run(slug, data, seed, out, seeds=seeds)
        results.append(result)
        if not json:
            typer.echo(describe(result, (out or default_folder()) / f"{slug}.json"))
    if json:
        typer.echo(json_module.dumps([r.to_dict() for r in results], indent=1))
    if not all(r.met for r in results):
        raise typer.Exit(1)


def describe(result: Any, file: Path) -> str:
    """The claim, its baseline, a table of the figures, and whether the claim is met."""
    lines = [
        f"{result.system}: {result.claim}",
        f"  source    {result.source}",
        f"  baseline  {result.baseline}",
    ]
    rows = [
        (name, told(value) + beside([other["figures"].get(name) for other in result.other_seeds]))
        for name, value in result.figures.items()
    ]
    wide = max((len(name) for name, _ in rows), default=0)
    lines += [f"    {name:<{wide}}  {value}" for name, value in rows]
    seeds = ""
    if result.other_seeds:
        again = [f"{other['seed']} {'met' if other['met'] else 'not met'}" for other in result.other_seeds]
        own = "met" if result.met_with_seed else "not met"
        seeds = f"  (seed {result.seed} {own}; in brackets: seeds {', '.join(again)})"
    met = "met" if result.met else "NOT MET"
    lines.append(f"  {met}{seeds}  in {result.seconds:.0f} s on {result.machine}  {file}")
    return "\n".join(lines)


def beside(others: list[Any]) -> str:
    """The same figure with other seeds, in brackets; of figures that are no single numbers nothing."""
    values = [told(value) for value in others if isinstance(value, bool | int | float)]
    return f"  ({', '.join(values)})" if values else ""


def told(value: Any) -> str:
    """A figure in few digits; of a list no more than its length when it is long."""
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{k} {told(v)}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(map(told, value)) if len(value) <= 4 else f"({len(value)} values, in the file)"
    return str(value)
