"""``saccade list``: the models that can be created."""

from __future__ import annotations

import json as json_module
from typing import Annotated

import typer

from saccade import registry
from saccade.cli.options import OfTask, PlainlyAsJson


def list_models(
    pattern: Annotated[str, typer.Argument(help="Shell pattern, e.g. 'sesr*'.")] = "*",
    task: OfTask = None,
    system: Annotated[str | None, typer.Option(help="Only this system's models.")] = None,
    json: PlainlyAsJson = False,
) -> None:
    """List the models that `saccade.create` knows, and which weights ship with them."""
    rows = []
    for name in registry.list_models(pattern, task=task, system=system):
        entry = registry.entry(name)
        shipped = [s for s in entry.scales or (None,) if registry.default_weights(name, **({"scale": s} if s else {}))]
        rows.append(
            {
                "name": name,
                "system": entry.system,
                "task": entry.task,
                "scales": list(entry.scales),
                "weights": shipped,
                "about": entry.about,
            }
        )
    if json:
        typer.echo(json_module.dumps(rows, indent=1))
        return
    if not rows:
        typer.echo(f"no model matches {pattern!r}", err=True)
        return
    width = max(len(str(r["name"])) for r in rows)
    for r in rows:
        weights = ", ".join(f"x{s}" if s else "yes" for s in r["weights"]) or "-"
        about = f"  {r['about']}" if r["about"] else ""
        typer.echo(f"{r['name']:<{width}}  {r['task']:<18}  {r['system']:<14}  weights: {weights:<8}{about}".rstrip())
