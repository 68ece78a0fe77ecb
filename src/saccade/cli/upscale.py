"""``saccade upscale``: the main job."""

from __future__ import annotations

import contextlib
import json as json_module
import os
import re
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from saccade.errors import InputError, SaccadeError, UsageError
from saccade.io.files import reason


def parse_bytes(text: str) -> int:
    """``1GB``, ``1.5 GiB``, ``800MB`` or plain bytes as a number of bytes (powers of 1024).

    Raises:
        UsageError: anything else, or nothing.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?\s*", text, re.IGNORECASE)
    if not found or float(found[1]) <= 0:
        raise UsageError(f"{text!r} is no amount of memory; write it like 800MB or 1.5GB")
    return int(float(found[1]) * 1024 ** " kmgt".index(found[2].lower() or " "))


def upscale(
    inputs: Annotated[list[str], typer.Argument(metavar="IN...", help="Pictures, clips, folders or globs.")],
    output: Annotated[
        str | None, typer.Option("-o", "--output", help="File or folder; default beside the input.")
    ] = None,
    scale: Annotated[int | None, typer.Option(help="2, 3 or 4.  [default: 2, or the weights file's own]")] = None,
    model: Annotated[str, typer.Option(help="auto, a name (saccade list --task super-resolution) or a file.")] = "auto",
    budget: Annotated[float | None, typer.Option(help="Fraction of the full cost to spend, in (0, 1].")] = None,
    max_memory: Annotated[str, typer.Option(help="Bound on this process's memory.")] = "1GB",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    backend: Annotated[
        str, typer.Option(help="auto (the fastest installed), openvino, onnxruntime or torch.")
    ] = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads; 0 for all cores.")] = 0,
    precision: Annotated[str, typer.Option(help="float32, or int8: faster, a little less exact.")] = "float32",
    format: Annotated[str | None, typer.Option(help="jpeg, png, webp, tiff, avif; default: by the suffix.")] = None,  # noqa: A002
    quality: Annotated[int | None, typer.Option(help="1 to 100 for JPEG, WebP, AVIF; CRF for clips.")] = None,
    flatten: Annotated[bool, typer.Option(help="Blend transparency onto white where the format has none.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace files that exist.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Enlarge pictures and clips by 2, 3 or 4: streamed, in bounded memory, with profile, EXIF, alpha and sound kept.

    Each result stands beside its input as NAME_x2.SUFFIX unless -o says otherwise.
    """
    # torch's OpenMP threads spin while they wait; beside other busy processes that made seconds of work take minutes
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from saccade.io import find_pictures, is_video
    from saccade.progress import bar
    from saccade.restoration.upscale import Upscaler, names_folder, targets

    began = time.perf_counter()
    if quality is not None and not 0 <= quality <= 100:
        raise UsageError(f"--quality lies between 1 and 100, got {quality}")
    sources = find_pictures(inputs, videos=True)
    worker = Upscaler(
        model,
        scale,
        budget=budget,
        backend=backend,
        device=device,
        max_memory=parse_bytes(max_memory),
        threads=threads,
        precision=precision,
    )
    pairs = list(targets(sources, output, worker.choice.scale, format))
    fresh = _make_folder(Path(output)) if output is not None and names_folder(output) else []
    reports: list[dict[str, Any]] = []
    failed = 0
    for source, target in pairs:
        try:
            with bar(source.name, _pixels(source)) as advance:
                if is_video(source):
                    report = worker.video(source, target, quality=quality, overwrite=overwrite, advance=advance)
                else:
                    report = worker.picture(
                        source,
                        target,
                        format=format,
                        quality=quality,
                        overwrite=overwrite,
                        flatten=flatten,
                        advance=advance,
                    )
        except SaccadeError as error:
            failed += 1
            if failed == len(pairs):
                _remove_empty(fresh)
            if len(pairs) == 1:
                raise
            print(f"saccade: {error}", file=sys.stderr)
            reports.append({"source": str(source), "error": str(error)})
            continue
        for notice in report.notices:
            print(f"saccade: note: {notice}", file=sys.stderr)
        reports.append(report.to_dict())
        if not json:
            typer.echo(describe(report))
    if json:
        whole = {"results": reports, "failed": failed, "seconds": time.perf_counter() - began}
        typer.echo(json_module.dumps(whole, indent=1))
    if failed:
        raise typer.Exit(1)


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


def _make_folder(path: Path) -> list[Path]:
    """Make a folder and those above it; returns the ones that are new, innermost first."""
    fresh = [p for p in (path, *path.parents) if not p.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _remove_empty(fresh)
        raise InputError(f"cannot create the folder {path}: {reason(error)}") from error
    return fresh


def _remove_empty(folders: list[Path]) -> None:
    """Nothing was made: leave no empty folders behind either."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _pixels(source: Path) -> float | None:
    """Input pixels, for the progress bar; None where that is not known yet or the file is bad."""
    from saccade.io import is_video, open_picture

    if not sys.stderr.isatty():
        return None
    try:
        if is_video(source):
            from saccade.io import open_video

            clip = open_video(source)
            return float(clip.width * clip.height * clip.frames) if clip.frames else None
        with open_picture(source) as picture:
            return float(picture.width * picture.height)
    except SaccadeError:
        return None
