"""One worker over many pictures and clips: what the verbs that make pictures of pictures share."""

from __future__ import annotations

import contextlib
import json as json_module
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import typer

from saccade.cli import tell
from saccade.errors import InputError, SaccadeError, UsageError, naming
from saccade.io.files import reason

__all__ = ["check_quality", "parse_bytes", "run", "spare_processor"]


def spare_processor() -> None:
    """Let torch's threads sleep while they wait; before torch is imported.

    They spin else, and beside other busy processes that made seconds of work take minutes.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def parse_bytes(text: str) -> int:
    """``1GB``, ``1.5 GiB``, ``800MB`` or plain bytes as a number of bytes (powers of 1024).

    Raises:
        UsageError: anything else, or nothing.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?\s*", text, re.IGNORECASE)
    if not found or float(found[1]) <= 0:
        raise UsageError(f"{text!r} is no amount of memory; write it like 800MB or 1.5GB")
    return int(float(found[1]) * 1024 ** " kmgt".index(found[2].lower() or " "))


def check_quality(quality: int | None) -> None:
    """Refuse a quality that no encoder knows.

    Raises:
        UsageError: naming the option.
    """
    if quality is not None and not 0 <= quality <= 100:
        raise UsageError(f"--quality lies between 1 and 100, got {quality}")


def run(
    worker: Any,
    sources: Sequence[Path],
    output: str | None,
    *,
    ending: str,
    describe: Callable[[Any], str],
    format: str | None = None,  # noqa: A002
    quality: int | None = None,
    flatten: bool = False,
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Run a worker over files; one that fails is said and does not keep the others.

    Args:
        worker: with ``picture(source, target, ...)``, and ``video(source, target, ...)`` if it takes clips, that return
            a report.
        sources: pictures and clips.
        output: file or folder; None puts each result beside its input.
        ending: of the names of results, e.g. ``_x2``.
        describe: a report as one line.
        format, quality, flatten, overwrite: as the command line gives them.
        json: print reports as JSON.

    Raises:
        typer.Exit: with 1, some files failed; with one file its error is raised instead.
    """
    from saccade.restoration.given import names_folder, targets

    began = time.perf_counter()
    pairs = list(targets(sources, output, ending, format))
    fresh = _make_folder(Path(output)) if output is not None and names_folder(output) else []
    reports: list[dict[str, Any]] = []
    failed = 0
    of_picture = {"format": format, "flatten": flatten}
    for source, target in pairs:
        try:
            report = _made(worker, source, target, of_picture, quality=quality, overwrite=overwrite)
        except SaccadeError as error:
            failed += 1
            if failed == len(pairs):
                _remove_empty(fresh)
            if len(pairs) == 1:
                raise
            said = naming(error, source)
            tell(said)
            reports.append({"source": str(source), "error": said})
            continue
        for notice in report.notices:
            tell(f"note: {notice}")
        reports.append(report.to_dict())
        if not json:
            typer.echo(describe(report))
    if json:
        whole = {"results": reports, "failed": failed, "seconds": time.perf_counter() - began}
        typer.echo(json_module.dumps(whole, indent=1))
    if failed:
        raise typer.Exit(1)


def _made(worker: Any, source: Path, target: Path, of_picture: dict[str, Any], **options: Any) -> Any:
    """The report of one file, worked on behind a progress bar; ``of_picture`` says nothing to clips."""
    from saccade.io import is_video
    from saccade.progress import bar

    with bar(source.name, _pixels(source)) as advance:
        if not is_video(source):
            return worker.picture(source, target, advance=advance, **of_picture, **options)
        if not hasattr(worker, "video"):
            raise InputError(f"{source} is a clip; here pictures alone are worked on")
        return worker.video(source, target, advance=advance, **options)


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
