"""``saccade weights``: published weights that can be fetched, those that were, and room again."""

from __future__ import annotations

import json as json_module
from typing import Annotated, Any

import typer

from saccade.errors import UsageError

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    invoke_without_command=True,
    help="List, fetch and clear published weights.",
)


@app.callback(invoke_without_command=True)
def show(
    context: typer.Context,
    json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
) -> None:
    """List the published weights that are known, and what of them is in the cache."""
    if context.invoked_subcommand:
        return
    from saccade import published
    from saccade.cache import cache_folder

    folder = cache_folder() / "weights"
    files, rows = published.cached(), list[dict[str, Any]]()
    for name, found in sorted(published.published().items()):
        rows.append({"model": name, "bytes": files.pop(found.file.name, 0), "licence": found.licence, "url": found.url})
    if json:
        told = {"folder": str(folder), "weights": rows, "others": files}
        typer.echo(json_module.dumps(told, indent=1))
        return
    for row in rows:
        held = f"{row['bytes'] / 1e6:.1f} MB" if row["bytes"] else "-"
        typer.echo(f"{row['model']}\t{held}\t{row['licence']}\t{row['url']}")
    for file, size in files.items():
        typer.echo(f"{file}\t{size / 1e6:.1f} MB")
    typer.echo(f"# cached in {folder}", err=True)


@app.command()
def fetch(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Models (saccade weights lists them).")],
) -> None:
    """Fetch published weights now, e.g. before going offline."""
    from saccade.published import official

    for name in names:
        typer.echo(official(name, say=lambda line: typer.echo(line, err=True)))


@app.command()
def clear(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME...]", help="Models.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
) -> None:
    """Remove fetched weights from the cache."""
    if bool(names) == everything:
        raise UsageError("name the models whose weights are to go, or --all")
    from saccade.published import remove

    typer.echo(f"{remove(names) / 1e6:.1f} MB are free again", err=True)
