"""``saccade restore``: repair pictures and clips."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from saccade.cli import options
from saccade.cli.batch import check_quality, parse_bytes, run, spare_processor


def restore(
    inputs: options.Inputs,
    output: options.Output = None,
    task: Annotated[str, typer.Option(help="auto (noise and JPEG), denoise, jpeg, weather or deblur.")] = "auto",
    model: Annotated[str, typer.Option(help="auto, a name (saccade list --task restoration) or a file.")] = "auto",
    budget: options.Budget = None,
    perception: Annotated[
        float | None, typer.Option(help="0 least error ... 1 natural statistics: deep optimal transport.")
    ] = None,
    transport: Annotated[
        Path | None, typer.Option(help="Statistics for --perception; default: those of the model.")
    ] = None,
    vae: Annotated[
        Path | None,
        typer.Option(help="Autoencoder of --transport: a folder of diffusers; not for pixels or vae_small."),
    ] = None,
    psf: Annotated[Path | None, typer.Option(help="With --task deblur: .npy of the point spread function.")] = None,
    noise_level: Annotated[
        float | None, typer.Option(help="With --psf: K of the Wiener filter, e.g. 0.03.  [default: measured]")
    ] = None,
    linear: Annotated[
        bool, typer.Option("--linear", help="With --psf: pictures hold linear light; else sRGB is undone first.")
    ] = False,
    max_memory: options.MaxMemory = "1GB",
    device: options.Device = "auto",
    backend: Annotated[str, typer.Option(help="auto (the fastest that works), openvino or torch.")] = "auto",
    threads: options.Threads = 0,
    format: options.Format = None,  # noqa: A002
    quality: options.Quality = None,
    flatten: options.Flatten = False,
    overwrite: options.Overwrite = False,
    json: options.AsJson = False,
) -> None:
    """Repair pictures and clips: noise, JPEG blocks, rain and snow, known blur; metadata, alpha and sound are kept.

    Each result stands beside its input as NAME_restored.SUFFIX unless -o says otherwise.
    """
    spare_processor()
    from saccade.io import find_pictures
    from saccade.restoration.restore import Restorer

    check_quality(quality)
    sources = find_pictures(inputs, videos=True)
    worker = Restorer(
        task,
        model,
        budget=budget,
        perception=perception,
        transport=transport,
        vae=vae,
        psf=psf,
        noise_level=noise_level,
        linear=linear,
        backend=backend,
        device=device,
        max_memory=parse_bytes(max_memory),
        threads=threads,
    )
    run(
        worker,
        sources,
        output,
        ending="_restored",
        describe=describe,
        format=format,
        quality=quality,
        flatten=flatten,
        overwrite=overwrite,
        json=json,
    )


def describe(report: Any) -> str:
    """One line of what was made and what it cost."""
    frames = f", {report.frames} frames" if report.frames != 1 else ""
    cost = f"  {report.macs / 1e9:,.1f} GMACs" if report.macs else ""
    line = (
        f"{report.target}  {report.size[0]} x {report.size[1]}{frames}  {report.model}, {report.backend} on "
        f"{report.device}, {report.threads} threads{cost}  {report.seconds:.2f} s"
    )
    if report.budget:
        line += f"  budget {report.budget['asked']}: {report.budget['macs_fraction']:.0%} of the full MACs"
    return line
