"""``saccade enlarge``: what ``saccade shrink`` made, at its first size again."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from saccade.cli.batch import check_quality, parse_bytes, run
from saccade.cli.options import AsJson, Device, Flatten, Format, MaxMemory, Output, Overwrite, Threads
from saccade.cli.shrink import describe, parse_size


def enlarge(
    inputs: Annotated[list[str], typer.Argument(metavar="IN...", help="Pictures of `saccade shrink`, folders, globs.")],
    output: Output = None,
    size: Annotated[
        str | None, typer.Option(help="Width x height to enlarge to.  [default: as the picture's note says]")
    ] = None,
    model: Annotated[str, typer.Option(help="The name or file of weights that shrank it.")] = "iarn",
    max_memory: MaxMemory = "1GB",
    device: Device = "auto",
    threads: Threads = 0,
    format: Format = None,  # noqa: A002
    quality: Annotated[int | None, typer.Option(help="1 to 100 for JPEG, WebP, AVIF.")] = None,
    flatten: Flatten = False,
    overwrite: Overwrite = False,
    json: AsJson = False,
) -> None:
    """Enlarge what `saccade shrink` made; size and network are read from the file.

    Each result stands beside its input as NAME_large.SUFFIX unless -o says otherwise. For pictures that were not
    shrunk by it use `saccade upscale`.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
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
