"""``saccade demo``: the bundled photograph enlarged, and what that cost."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import saccade
from saccade.cli.options import AsJson
from saccade.errors import InputError

if TYPE_CHECKING:
    from saccade.restoration.upscale import Report

PHOTO = Path(saccade.__file__).parent / "demo" / "osprey.jpg"
FOLDER = Path("demo-output")


def demo(
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help=f"Folder of the result.  [default: {FOLDER}]")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a result in the folder given by -o.")] = False,
    json: AsJson = False,
) -> None:
    """Enlarge the bundled photograph by 2 and say where the result is and what it cost.

    Its own folder, demo-output in the current one, is made anew at every run; a folder given by -o is yours, and
    nothing in it is replaced without --overwrite.
    """
    from saccade.restoration.upscale import Upscaler

    folder = output or FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot create the folder {folder}: {error.strerror}") from error
    worker = Upscaler(scale=2)
    report = worker.picture(PHOTO, folder / f"{PHOTO.stem}_x2.jpg", overwrite=overwrite or output is None)
    typer.echo(json_module.dumps(report.to_dict(), indent=1) if json else describe(report))


def describe(report: Report) -> str:
    """The report in words, and what to try next."""
    size, made = (f"{width} x {height}" for width, height in (report.size, report.made))
    target = Path(report.target)
    rows = {
        "from": f"{report.source}  ({size} pixels)",
        "made": f"{target.resolve()}  ({made} pixels, {target.stat().st_size / 1000:,.0f} kB)",
        "model": f"{report.model} x{report.scale}",
        "backend": f"{report.backend} on {report.device}, {report.threads} thread{'s' * (report.threads != 1)}",
        "cost": f"{report.macs / 1e9:.2f} GMACs, {report.seconds:.2f} s with reading and writing",
    }
    told = "\n".join(f"{name:<8} {text}" for name, text in rows.items())
    return f"{told}\n\nnext:    saccade upscale PHOTO.jpg\n         saccade list\n         saccade systems"
