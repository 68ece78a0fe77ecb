"""``saccade unprocess``: pictures to RAW files."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from saccade.cli.batch import run
from saccade.cli.develop import describe, names_file

__all__ = ["unprocess"]


def unprocess(
    inputs: Annotated[list[str], typer.Argument(metavar="IN...", help="Pictures, folders or globs.")],
    output: Annotated[
        str | None, typer.Option("-o", "--output", help="File or folder; default beside the input.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="File of a learnt ISP (saccade list 'model_isp*').")] = None,
    pattern: Annotated[str, typer.Option(help="Bayer pattern: rggb, bggr, grbg or gbrg.")] = "rggb",
    seed: Annotated[int | None, typer.Option(help="Draw a camera at random instead of the average one.")] = None,
    budget: Annotated[float | None, typer.Option(help="Share of the learnt ISP's encoders to run, in (0, 1].")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 for all cores.")] = 0,
    format: Annotated[str | None, typer.Option(help="dng, npz or tiff; default: by the suffix, else dng.")] = None,  # noqa: A002
    overwrite: Annotated[bool, typer.Option(help="Replace files that exist.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Make RAW files of pictures: what a camera would have recorded, for training and testing on RAW.

    Each result stands beside its input as NAME.dng unless -o or --format says otherwise.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from saccade.io import find_pictures
    from saccade.restoration.unprocess import Unprocessor

    sources = find_pictures(inputs)
    worker = Unprocessor(model, pattern=pattern, seed=seed, budget=budget, threads=threads)
    named = format if output is not None and names_file(output) else format or "dng"
    run(worker, sources, output, ending="", describe=describe, format=named, overwrite=overwrite, json=json)
