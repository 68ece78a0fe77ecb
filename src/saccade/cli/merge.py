"""``saccade merge``: interpolate two files of weights of one network."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from saccade.cli.options import AsJson


def merge(
    general: Annotated[Path, typer.Argument(metavar="A", help="File of weights; or a PBaSR file with both branches.")],
    blur: Annotated[Path | None, typer.Argument(metavar="[B]", help="The other file.")] = None,
    alpha: Annotated[float, typer.Option(help="Weight of B: 0 gives A, 1 gives B.")] = 0.5,
    output: Annotated[Path, typer.Option("-o", "--output", help="Safetensors file to write.")] = Path(
        "merged.safetensors"
    ),
    buffers: Annotated[str, typer.Option(help="Statistics of norms: general takes A's, average interpolates.")] = (
        "general"
    ),
    extrapolate: Annotated[bool, typer.Option(help="Allow alpha outside [0, 1].")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace the output if it exists.")] = False,
    json: AsJson = False,
) -> None:
    """Melt two branches of one network into one of the same size and cost (PBaSR; any model of the library).

    Works for branches that were trained from the same start; the similarity that is printed tells.
    """
    from saccade.restoration.pbasr import merge_files

    told = merge_files(general, blur, output, alpha, buffers=buffers, extrapolate=extrapolate, overwrite=overwrite)
    if json:
        typer.echo(json_module.dumps({"output": str(output), **told}, indent=1))
        return
    typer.echo(f"{output}  {told['model']}, alpha {alpha:g}, similarity of the two {told['similarity']:.3f}")
    if told["similarity"] < 0.5:
        typer.echo("saccade: note: these two did not start from the same weights; do not use it", err=True)
