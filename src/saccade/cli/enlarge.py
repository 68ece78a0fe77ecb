"""``saccade enlarge``: what ``saccade shrink`` made, at its first size again."""

from __future__ import annotations

from typing import Annotated

import typer

from saccade.cli import options
from saccade.cli.batch import check_quality, parse_bytes, run, spare_processor
from saccade.cli.shrink import describe, parse_size


def enlarge(
    inputs: Annotated[list[str], typer.Argument(metavar="IN...", help="Pictures of `saccade shrink`, folders, globs.")],
    output: options.Output = None,
    size: Annotated[
        str | None, typer.Option(help="Width x height to enlarge to.  [default: as the picture's note says]")
    ] = None,
    model: Annotated[str, typer.Option(help="The name or file of weights that shrank it.")] = "iarn",
    max_memory: options.MaxMemory = "1GB",
    device: options.Device = "auto",
    threads: options.Threads = 0,
    format: options.Format = None,  # noqa: A002
    quality: options.QualityOfPictures = None,
    flatten: options.Flatten = False,
    overwrite: options.Overwrite = False,
    json: options.AsJson = False,
) -> None:
    """Enlarge what `saccade shrink` made; size and network are read from the file.

    Each result stands beside its input as NAME_large.SUFFIX unless -o says otherwise. For pictures that were not
    shrunk by it use `saccade upscale`.
    """
    spare_processor()
    from saccade.io import find_pictures
    from saccade.restoration.rescale import Enlarger

    check_quality(quality)
    sources = find_pictures(inputs)
    worker = Enlarger(model, size=parse_size(size), device=device, max_memory=parse_bytes(max_memory), threads=threads)
    run(
        worker,
        sources,
        output,
        ending="_large",
        describe=describe,
        format=format,
        quality=quality,
        flatten=flatten,
        overwrite=overwrite,
        json=json,
    )
