"""``saccade evaluate``: the quality of weights by the measure of their task."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated, Any

import typer

from saccade.cli.options import EnlargementOfModel, PlainlyAsJson, named_as_file
from saccade.errors import UsageError


def evaluate(
    model: Annotated[str, typer.Argument(help="A name (shipped weights) or a file of weights.")],
    data: Annotated[list[Path], typer.Option(help="Folder of test pictures; may be given several times.")],
    scale: EnlargementOfModel = None,
    budget: Annotated[float | None, typer.Option(help="Set the model's dial, in (0, 1].")] = None,
    json: PlainlyAsJson = False,
) -> None:
    """Measure weights by their task: enlargement on luma by the field's protocol, restoration before and after, ..."""
    from saccade import registry
    from saccade.checkpoint import load

    if named_as_file(model):
        network: Any = load(model)
        if scale is not None and scale != getattr(network, "scale", None):
            raise UsageError(f"{model} enlarges by {getattr(network, 'scale', 1)}, not by {scale}")
    else:
        options: dict[str, Any] = {} if scale is None else {"scale": scale}
        network = registry.create(model, **options)
    if budget is not None:
        if not hasattr(type(network), "budget"):
            raise UsageError(f"{model} has no dial")
        network.budget = budget
    from saccade.restoration.evaluation import evaluate as measure

    rows = {str(folder): measure(network, folder) for folder in data}
    enlarges = getattr(network, "scale", None)
    if json:
        typer.echo(json_module.dumps({"model": model, "scale": enlarges, "sets": rows}, indent=1))
        return
    for folder, figures in rows.items():
        told = "  ".join(
            f"{name} {value:.{4 if 'ssim' in name or 'srcc' in name else 2}f}" for name, value in figures.items()
        )
        typer.echo(f"{Path(folder).name:<12} {f'x{enlarges}  ' if enlarges else ''}{told}")
