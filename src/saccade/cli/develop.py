"""``saccade develop``: RAW files to pictures."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from saccade.cli import options
from saccade.cli.batch import check_quality, run, spare_processor
from saccade.errors import UsageError

__all__ = ["describe", "develop", "names_file"]


def develop(
    inputs: Annotated[list[str], typer.Argument(metavar="IN...", help="RAW files, folders or globs.")],
    output: options.Output = None,
    white_balance: Annotated[
        str | None, typer.Option(help="camera, auto (grey world) or factors R,G,B.  [default: camera, or the model's]")
    ] = None,
    model: options.LearntISP = None,
    tone: Annotated[str | None, typer.Option(help="smooth, srgb or linear.  [default: smooth, or the model's]")] = None,
    bits: Annotated[int, typer.Option(help="Of a sample, 8 or 16.")] = 8,
    exposure: Annotated[float, typer.Option(help="Stops to brighten by.")] = 0.0,
    demosaic: Annotated[str, typer.Option(help="malvar or bilinear.")] = "malvar",
    budget: options.BudgetOfISP = None,
    threads: options.Threads = 0,
    format: options.Format = None,  # noqa: A002
    quality: options.QualityOfPictures = None,
    overwrite: options.Overwrite = False,
    json: options.AsJson = False,
) -> None:
    """Develop RAW files of cameras with a Bayer sensor; needs the extra ``raw``.

    Each result stands beside its input as NAME.jpg (NAME.png with --bits 16) unless -o or --format says otherwise.
    """
    spare_processor()
    from saccade.io.raw import find_raws
    from saccade.restoration.develop import Developer

    check_quality(quality)
    if bits == 16 and (format or "").lower() in ("jpeg", "jpg", "webp"):
        raise UsageError(f"{format} keeps 8 bits; use png or tiff for 16")
    sources = find_raws(inputs)
    worker = Developer(
        white_balance,
        model,
        tone=tone,
        bits=bits,
        exposure=exposure,
        method=demosaic,
        budget=budget,
        threads=threads,
    )
    named = format if output is not None and names_file(output) else format or ("png" if bits == 16 else "jpeg")
    run(
        worker,
        sources,
        output,
        ending="",
        describe=describe,
        format=named,
        quality=quality,
        overwrite=overwrite,
        json=json,
    )


def names_file(output: str) -> bool:
    """Whether -o names a file, whose suffix tells the format."""
    from saccade.restoration.given import names_folder

    return not names_folder(output)


def describe(report: Any) -> str:
    """One line of what was made, and how."""
    gains = ", ".join(f"{v:.2f}" for v in report.gains)
    size = " x ".join(map(str, report.size))
    isp = f"{report.isp} ISP, {report.tone} tone"
    light = f"{report.white_balance} gains {gains}"
    return f"{report.target}  {size}  {isp}, {light}  {report.bits} bits  {report.seconds:.2f} s"
