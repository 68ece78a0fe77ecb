"""``saccade systems``: the 81 systems and what stands of each."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from saccade.cli.options import OfTask

PARTS = ("implementation", "parity", "claim", "speed", "docs")


def systems(
    pattern: Annotated[str, typer.Argument(help="Shell pattern on the slug, e.g. '*vit*'.")] = "*",
    task: OfTask = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list instead of the table.")] = False,
) -> None:
    """Show every system, and which parts of it exist: code, parity, claim, speed row, page."""
    import sys

    from saccade.systems import table

    rows = table(pattern, task=task)
    if as_json:
        import json

        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
    elif sys.stdout.isatty():
        _print_table(rows)
    else:
        for row in rows:
            stands = ",".join(part for part in PARTS if row[part]) or "-"
            typer.echo("\t".join((row["slug"], row["name"], row["package"], stands, row["dial"] or "-")))


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    grid = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("slug", "name", "package"):
        grid.add_column(title, no_wrap=True)
    for part in PARTS:
        grid.add_column(part if part != "implementation" else "code", justify="center")
    grid.add_column("dial", overflow="fold")
    for row in rows:
        marks = ("[green]yes[/]" if row[part] else "[dim]-[/]" for part in PARTS)
        grid.add_row(row["slug"], row["name"], row["package"].removeprefix("saccade."), *marks, row["dial"] or "-")
    console = Console()
    console.print(grid)
    counts = ", ".join(f"{sum(row[part] for row in rows)} {part}" for part in PARTS)
    console.print(f"{len(rows)} systems: {counts}")
