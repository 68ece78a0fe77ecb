"""``saccade shrink``: small pictures that ``saccade enlarge`` turns back."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from saccade.cli import options
from saccade.cli.batch import parse_bytes, run, spare_processor
from saccade.errors import UsageError

__all__ = ["parse_scale", "parse_size", "shrink"]


def parse_size(text: str | None) -> tuple[int, int] | None:
    """``1237x820`` as (width, height).

    Raises:
        UsageError: anything else.
    """
    if text is None:
        return None
    found = re.fullmatch(r"\s*(\d{1,9})\s*[x\u00d7]\s*(\d{1,9})\s*", text, re.IGNORECASE)
    if not found or min(int(found[1]), int(found[2])) < 1:
        raise UsageError(f"--size is width x height in pixels, e.g. 1237x820, not {text!r}")
    return int(found[1]), int(found[2])


def parse_scale(text: str | None) -> tuple[float, float] | None:
    """``2.5``, or ``1.6x2.9`` for columns and rows.

    Raises:
        UsageError: anything else.
    """
    if text is None:
        return None
    try:
        parts = [float(part) for part in re.split("[x\u00d7]", text, flags=re.IGNORECASE)]
    except ValueError:
        parts = []
    if len(parts) not in (1, 2):
        raise UsageError(f"--scale is a number above 1, or two for width and height, e.g. 2.5 or 1.6x2.9, not {text!r}")
    return parts[0], parts[-1]


def shrink(
    inputs: options.Pictures,
    output: Annotated[
        str | None, typer.Option("-o", "--output", help="PNG file or folder; default beside the input.")
    ] = None,
    size: Annotated[str | None, typer.Option(help="Width x height of the small picture, e.g. 1237x820.")] = None,
    scale: Annotated[str | None, typer.Option(help="By how much: 2.5, or 1.6x2.9 for width and height.")] = None,
    model: Annotated[str, typer.Option(help="A name (saccade list 'iarn*') or a file of weights.")] = "iarn",
    max_memory: options.MaxMemory = "1GB",
    device: options.Device = "auto",
    threads: options.Threads = 0,
    overwrite: options.Overwrite = False,
    json: options.AsJson = False,
) -> None:
    """Shrink pictures to PNGs that look like ordinary small ones and hold what `saccade enlarge` needs.

    Each result stands beside its input as NAME_small.png unless -o says otherwise. Keep it as it is: lossy compression
    or a change of its colours destroys what is hidden.
    """
    spare_processor()
    from saccade.io import find_pictures
    from saccade.restoration.rescale import Shrinker

    sources = find_pictures(inputs)
    worker = Shrinker(
        model,
        size=parse_size(size),
        scale=parse_scale(scale),
        device=device,
        max_memory=parse_bytes(max_memory),
        threads=threads,
    )
    run(worker, sources, output, ending="_small", describe=describe, format="png", overwrite=overwrite, json=json)


def describe(report: Any) -> str:
    """One line of what was made and what it cost."""
    size, made = (f"{w} x {h}" for w, h in (report.size, report.made))
    wide, high = (f"{f:.4g}" for f in report.factor)
    factor = wide if wide == high else f"{wide} x {high}"
    return (
        f"{report.target}  {size} -> {made}  factor {factor}  {report.model}  {report.bytes:,} bytes  "
        f"{report.seconds:.2f} s"
    )
