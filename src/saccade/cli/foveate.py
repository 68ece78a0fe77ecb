"""``saccade foveate``: pictures as an eye might see them that rests on one point."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from saccade.cli import options
from saccade.cli.batch import check_quality, parse_bytes, run, spare_processor


def foveate(
    inputs: options.Pictures,
    output: options.Output = None,
    at: Annotated[
        str, typer.Option(help="X,Y of the fixation: parts of width and height, or pixels as 640px,480px.")
    ] = "0.5,0.5",
    scale: Annotated[
        float, typer.Option(help="Growth of the regions, diameter over eccentricity; larger keeps less.")
    ] = 0.4,
    to: Annotated[
        str, typer.Option(help="What the periphery becomes: texture, blur, or uniform (blurred alike everywhere).")
    ] = "texture",
    strength: Annotated[
        float | None,
        typer.Option(help="Of the blur: deviation over eccentricity, or in pixels if uniform.  [default: as texture]"),
    ] = None,
    seed: Annotated[int, typer.Option(callback=options.a_seed, help="Of the texture's noise.")] = 0,
    max_memory: options.MaxMemory = "4GB",
    device: options.Device = "auto",
    threads: options.Threads = 0,
    format: options.Format = None,  # noqa: A002
    quality: options.QualityOfPictures = None,
    flatten: options.Flatten = False,
    overwrite: options.Overwrite = False,
    json: options.AsJson = False,
) -> None:
    """Show pictures as an eye might see them: sharp at one point, only statistics or blur farther out.

    Each result stands beside its input as NAME_foveated.SUFFIX unless -o says otherwise.
    """
    spare_processor()
    from saccade.backbones.foveated.files import Foveator, parse_point
    from saccade.io import find_pictures

    check_quality(quality)
    worker = Foveator(
        parse_point(at),
        scale,
        to,
        strength=strength,
        seed=seed,
        device=device,
        max_memory=parse_bytes(max_memory),
        threads=threads,
    )
    run(
        worker,
        find_pictures(inputs),
        output,
        ending="_foveated",
        describe=describe,
        format=format,
        quality=quality,
        flatten=flatten,
        overwrite=overwrite,
        json=json,
    )


def describe(report: Any) -> str:
    """One line of what was made."""
    width, height = report.size
    x, y = report.at
    kept = f", {report.regions} regions" if report.regions else ""
    how = f"{report.kind} around {x:.0f}, {y:.0f} px, scale {report.scale:g}{kept}"
    return f"{report.target}  {width} x {height}  {how}  {report.device}  {report.seconds:.2f} s"
