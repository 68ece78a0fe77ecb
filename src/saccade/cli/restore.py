"""``saccade restore``: repair pictures and clips."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from saccade.cli.batch import check_quality, parse_bytes, run


def restore(
    inputs: Annotated[list[str], typer.Argument(metavar="IN...", help="Pictures, clips, folders or globs.")],
    output: Annotated[
        str | None, typer.Option("-o", "--output", help="File or folder; default beside the input.")
    ] = None,
    task: Annotated[str, typer.Option(help="auto (noise and JPEG), denoise, jpeg, weather or deblur.")] = "auto",
    model: Annotated[str, typer.Option(help="auto, a name (saccade list --task restoration) or a file.")] = "auto",
    budget: Annotated[float | None, typer.Option(help="Fraction of the full cost to spend, in (0, 1].")] = None,
    perception: Annotated[
        float | None, typer.Option(help="0 least error ... 1 natural statistics: deep optimal transport.")
    ] = None,
    transport: Annotated[
        Path | None, typer.Option(help="Statistics for --perception; default: those of the model.")
    ] = None,
    psf: Annotated[Path | None, typer.Option(help="With --task deblur: .npy of the point spread function.")] = None,
    max_memory: Annotated[str, typer.Option(help="Bound on this process's memory.")] = "1GB",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    backend: Annotated[str, typer.Option(help="auto (the fastest that works), openvino or torch.")] = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads; 0 for all cores.")] = 0,
    format: Annotated[str | None, typer.Option(help="jpeg, png, webp, tiff, avif; default: by the suffix.")] = None,  # noqa: A002
    quality: Annotated[int | None, typer.Option(help="1 to 100 for JPEG, WebP, AVIF; CRF for clips.")] = None,
    flatten: Annotated[bool, typer.Option(help="Blend transparency onto white where the format has none.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace files that exist.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Repair pictures and clips: noise, JPEG blocks, rain and snow, known blur; metadata, alpha and sound are kept.

    Each result stands beside its input as NAME_restored.SUFFIX unless -o says otherwise.
    """
    # torch's OpenMP threads spin while they wait; beside other busy processes that made seconds of work take minutes
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
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
        psf=psf,
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
