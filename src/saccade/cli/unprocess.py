"""``saccade unprocess``: pictures to RAW files."""

from __future__ import annotations

from typing import Annotated

import typer

from saccade.cli import options
from saccade.cli.batch import run, spare_processor
from saccade.cli.develop import describe, names_file

__all__ = ["unprocess"]


def unprocess(
    inputs: options.Pictures,
    output: options.Output = None,
    model: options.LearntISP = None,
    pattern: Annotated[str, typer.Option(help="Bayer pattern: rggb, bggr, grbg or gbrg.")] = "rggb",
    seed: Annotated[int | None, typer.Option(help="Draw a camera at random instead of the average one.")] = None,
    budget: options.BudgetOfISP = None,
    threads: options.Threads = 0,
    format: Annotated[str | None, typer.Option(help="dng, npz or tiff; default: by the suffix, else dng.")] = None,  # noqa: A002
    overwrite: options.Overwrite = False,
    json: options.AsJson = False,
) -> None:
    """Make RAW files of pictures: what a camera would have recorded, for training and testing on RAW.

    Each result stands beside its input as NAME.dng unless -o or --format says otherwise.
    """
    spare_processor()
    from saccade.io import find_pictures
    from saccade.restoration.unprocess import Unprocessor

    sources = find_pictures(inputs)
    worker = Unprocessor(model, pattern=pattern, seed=seed, budget=budget, threads=threads)
    named = format if output is not None and names_file(output) else format or "dng"
    run(worker, sources, output, ending="", describe=describe, format=named, overwrite=overwrite, json=json)
