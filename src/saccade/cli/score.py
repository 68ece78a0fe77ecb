"""``saccade score``: how good pictures look, without a reference."""

from __future__ import annotations

import csv as csv_module
import io
import json as json_module
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from saccade.cli import tell
from saccade.cli.batch import spare_processor
from saccade.cli.options import Budget, LongerSide, Overwrite, Pictures, QualityModel, Threads
from saccade.errors import InputError, UsageError
from saccade.io.files import check_target, reason

if TYPE_CHECKING:
    from saccade.quality.reiqa.engine import Backend
    from saccade.quality.reiqa.scoring import Score


def score(
    inputs: Pictures,
    model: QualityModel = "reiqa_small",
    regressor: Annotated[
        Path | None, typer.Option(help="A regressor of your own (saccade train iqa); default: the model's.")
    ] = None,
    budget: Budget = None,
    side: LongerSide = 2048,
    csv: Annotated[Path | None, typer.Option(help="Write the table to this file too.")] = None,
    sort: Annotated[bool, typer.Option("--sort", help="Best first.")] = False,
    best: Annotated[int, typer.Option(help="Only the best so many, best first.")] = 0,
    worst: Annotated[int, typer.Option(help="Only the worst so many, worst first.")] = 0,
    copy: Annotated[Path | None, typer.Option(help="Copy the pictures of the table into this folder.")] = None,
    move: Annotated[Path | None, typer.Option(help="Move the pictures of the table into this folder.")] = None,
    threads: Threads = 0,
    backend: Annotated[str, typer.Option(help="auto (the fastest installed), openvino or torch.")] = "auto",
    overwrite: Overwrite = False,
    json: Annotated[bool, typer.Option("--json", help="Print the table as JSON.")] = False,
) -> None:
    """Score pictures by how good they look: about 100 for a clean photograph, 0 for a spoilt one, less for worse.

    Files that cannot be scored are named at the end and make the exit code 1; the others are scored all the same.
    """
    spare_processor()
    from saccade.io import find_pictures
    from saccade.progress import bar
    from saccade.quality.reiqa.scoring import Scorer

    _check(best, worst, copy, move)
    files = find_pictures(inputs)
    if csv is not None:
        check_target(csv, overwrite)
    if copy is not None or move is not None:
        _folder(copy or move)
    asked = cast("Backend", backend)  # the scorer refuses what is none
    scorer = Scorer(model, regressor, budget=budget, side=side, backend=asked, threads=threads)
    began, rows = time.perf_counter(), []
    with bar("scoring", len(files)) as advance:
        for row in scorer.scores(files):
            rows.append(row)
            advance(1)
    seconds = time.perf_counter() - began
    table = chosen(rows, sort, best, worst)
    placed = _place(table, copy or move, moved=move is not None, overwrite=overwrite)
    if csv is not None:
        _write(csv, table)
    _print(table, rows, seconds, json, placed)
    if any(row.error for row in rows) or any("error" in p for p in placed):
        raise typer.Exit(1)


def _check(best: int, worst: int, copy: Path | None, move: Path | None) -> None:
    if best < 0 or worst < 0:
        raise UsageError("--best and --worst take how many pictures, 1 or more")
    if best and worst:
        raise UsageError("choose one of --best and --worst")
    if copy is not None and move is not None:
        raise UsageError("choose one of --copy and --move")
    if move is not None and not (best or worst):
        raise UsageError("--move takes --best N or --worst N with it, so that no folder is emptied by accident")


def chosen(rows: Sequence[Score], sort: bool, best: int, worst: int) -> list[Score]:
    """The rows of the table, in its order; those with errors come last."""
    good = [row for row in rows if row.score is not None]
    bad = [row for row in rows if row.score is None]
    if sort or best or worst:
        good.sort(key=lambda row: row.score or 0.0, reverse=not worst)
    if best or worst:
        return good[: best or worst]
    return good + bad if sort else list(rows)


def _folder(path: Path | None) -> None:
    assert path is not None
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot create the folder {path}: {reason(error)}") from error


def _place(table: Sequence[Score], folder: Path | None, *, moved: bool, overwrite: bool) -> list[dict[str, str]]:
    """Copy or move scored pictures; returns what happened to each."""
    made: list[dict[str, str]] = []
    if folder is None:
        return made
    for row in table:
        if row.score is None:
            continue
        source, target = Path(row.path), folder / Path(row.path).name
        try:
            check_target(target, overwrite)
            _transfer(source, target, moved)
        except (InputError, OSError) as error:
            said = str(error) if isinstance(error, InputError) else f"cannot write {target}: {reason(error)}"
            tell(said)
            made.append({"source": str(source), "error": said})
            continue
        made.append({"source": str(source), "target": str(target)})
    return made


def _transfer(source: Path, target: Path, moved: bool) -> None:
    """Whole or not at all: a copy gets its name when it is complete, and a moved file goes when its copy is there."""
    from saccade.io.files import temporary_beside

    if target.exists() and source.samefile(target):
        raise InputError(f"{source} is in that folder already")
    temporary = temporary_beside(target)
    try:
        shutil.copy2(source, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    if moved:
        source.unlink()


def _write(path: Path, table: Sequence[Score]) -> None:
    from saccade.checkpoint import write_bytes

    text = io.StringIO()
    writer = csv_module.writer(text, lineterminator="\n")
    writer.writerow(["name", "score", "width", "height", "error"])
    for row in table:
        value = "" if row.score is None else f"{row.score:.3f}"
        writer.writerow([row.path, value, row.width, row.height, row.error or ""])
    write_bytes(path, text.getvalue().encode(errors="surrogateescape"))  # names as the disc has them


def _print(
    table: Sequence[Score], rows: Sequence[Score], seconds: float, json: bool, placed: list[dict[str, str]]
) -> None:
    failed = [row for row in rows if row.error]
    for row in rows:
        for notice in row.notices:
            tell(f"note: {notice}")
    if json:
        whole: dict[str, Any] = {"results": [row.to_dict() for row in table], "failed": len(failed), "seconds": seconds}
        typer.echo(json_module.dumps(whole | ({"placed": placed} if placed else {}), indent=1))
    else:
        for row in table:
            if row.score is not None:
                typer.echo(f"{row.score:7.2f}  {row.width:>5} x {row.height:<5}  {row.path}")
        pictures = len(rows) - len(failed)
        without = f"; {len(failed)} could not be scored" if failed else ""
        typer.echo(f"{pictures} picture{'s' * (pictures != 1)} in {seconds:.1f} s{without}")
    for row in failed:
        tell(row.error or "")
