"""``saccade upscale``: the main job."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from saccade.cli import options, tell
from saccade.cli.batch import check_quality, parse_bytes, run, spare_processor


def upscale(
    inputs: options.Inputs,
    output: options.Output = None,
    scale: Annotated[int | None, typer.Option(help="2, 3 or 4.  [default: 2, or the weights file's own]")] = None,
    model: Annotated[str, typer.Option(help="auto, a name (saccade list --task super-resolution) or a file.")] = "auto",
    budget: options.Budget = None,
    max_memory: options.MaxMemory = "1GB",
    device: options.Device = "auto",
    backend: Annotated[
        str, typer.Option(help="auto (the fastest installed), openvino, onnxruntime or torch.")
    ] = "auto",
    threads: options.Threads = 0,
    precision: Annotated[str, typer.Option(help="float32, or int8: faster, a little less exact.")] = "float32",
    format: options.Format = None,  # noqa: A002
    quality: options.Quality = None,
    flatten: options.Flatten = False,
    overwrite: options.Overwrite = False,
    json: options.AsJson = False,
) -> None:
    """Enlarge pictures and clips by 2, 3 or 4: streamed, in bounded memory, with profile, EXIF, alpha and sound kept.

    Each result stands beside its input as NAME_x2.SUFFIX unless -o says otherwise.
    """
    spare_processor()
    from saccade.io import find_pictures
    from saccade.restoration.clips import ClipUpscaler, upscaler

    check_quality(quality)
    sources = find_pictures(inputs, videos=True)
    worker = upscaler(
        model,
        scale,
        budget=budget,
        backend=backend,
        device=device,
        max_memory=parse_bytes(max_memory),
        threads=threads,
        precision=precision,
    )
    if isinstance(worker, ClipUpscaler):
        worker.announce = lambda line: tell(f"note: {line}")
    run(
        worker,
        sources,
        output,
        ending=f"_x{worker.scale}",
        describe=describe,
        format=format,
        quality=quality,
        flatten=flatten,
        overwrite=overwrite,
        json=json,
    )


def describe(report: Any) -> str:
    """One line of what was made and what it cost."""
    size, made = (f"{w} x {h}" for w, h in (report.size, report.made))
    frames = f", {report.frames} frames" if report.frames != 1 else ""
    backend = report.backend + (" int8" if report.precision == "int8" else "")
    line = (
        f"{report.target}  {size} -> {made}{frames}  {report.model} x{report.scale}, {backend} on "
        f"{report.device}, {report.threads} threads  {report.macs / 1e9:,.1f} GMACs  {report.seconds:.2f} s"
    )
    if report.budget:
        line += f"  budget {report.budget['asked']}: {report.budget['macs_fraction']:.0%} of the full MACs"
        shares = report.budget.get("shares") or {}
        if shares:
            line += " (" + ", ".join(f"{name} {share:.0%}" for name, share in shares.items()) + " of the pixels)"
    return line
