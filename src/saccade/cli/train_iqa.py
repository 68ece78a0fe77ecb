"""``saccade train iqa``: a regressor of one's own, from rated pictures."""

from __future__ import annotations

import csv
import json as json_module
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saccade.cli.batch import spare_processor
from saccade.cli.options import Budget, Threads
from saccade.errors import InputError, SaccadeError, UsageError
from saccade.io.files import check_target, reason

if TYPE_CHECKING:
    import numpy as np

    from saccade.quality.reiqa.network import ReIQA
    from saccade.quality.reiqa.scoring import Scorer


@dataclass(frozen=True)
class Rated:
    """A row of the table: a file, its rating, what it shows, and its part if the table names one."""

    path: Path
    score: float
    content: str
    split: str = ""


def train_iqa(
    scores: Annotated[Path, typer.Option(help="CSV with the columns name and score, perhaps content and split.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The regressor, a .safetensors file.")],
    data: Annotated[Path | None, typer.Option(help="Folder that the names start from; default: the CSV's.")] = None,
    model: Annotated[str, typer.Option(help="A name (saccade list --task 'image quality') or a file.")] = "reiqa_small",
    budget: Budget = None,
    side: Annotated[int, typer.Option(help="Pictures with a longer side are reduced to it, pixels.")] = 2048,
    splits: Annotated[int, typer.Option(help="Random 80/20 splits by content for the figures.")] = 10,
    seed: Annotated[int, typer.Option(help="Seed of the splits.")] = 0,
    threads: Threads = 0,
    overwrite: Annotated[bool, typer.Option(help="Replace the file if it exists.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Fit the regressor that turns features into your scores; then: saccade score DIR --regressor FILE.

    Versions of one picture share its content (column content): they are kept on one side of every split, or the figures
    would tell how well the pictures are remembered. Without that column every picture counts as its own content. A
    column split (train or test) fits on the one part and tests on the other.
    """
    spare_processor()
    from saccade.progress import track
    from saccade.quality.reiqa.scoring import Regressor, Scorer

    if out.suffix != ".safetensors":
        raise UsageError(f"--out names a .safetensors file, not {out}")
    if splits < 1:
        raise UsageError(f"--splits is at least 1, not {splits}")
    check_target(out, overwrite)
    rows = read_table(scores, data or scores.parent)
    scorer = Scorer(model, budget=budget, side=side, threads=threads)
    features = [_features(scorer, row) for row in track(rows, "reading pictures")]
    ridge, figures = fit(features, rows, splits, seed)
    Regressor.of(ridge, scorer, **figures).save(out, overwrite=overwrite)
    if json:
        typer.echo(json_module.dumps({"regressor": str(out), "alpha": ridge.alpha, **figures}, indent=1))
        return
    typer.echo(
        f"{out}  {figures['pictures']} pictures of {figures['contents']} contents; "
        f"on unseen contents ({figures['how']}): SRCC {figures['srcc']:.3f}, PLCC {figures['plcc']:.3f}  "
        f"(saccade score DIR --regressor {out})"
    )


def train_reiqa(
    data: Annotated[Path, typer.Option(help="Folder of photographs.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The weights, a .safetensors file.")],
    steps: Annotated[int, typer.Option(help="Steps of the quality encoder.")] = 1400,
    content_steps: Annotated[int, typer.Option(help="Steps of the content encoder.")] = 600,
    rate: Annotated[float, typer.Option(help="Peak learning rate (Muon).")] = 4e-3,
    pictures: Annotated[int, typer.Option(help="Photographs in a step.")] = 4,
    copies: Annotated[int, typer.Option(help="Distorted copies of each.")] = 12,
    seed: Annotated[int, typer.Option(help="Seed of weights, crops and distortions.")] = 0,
    start: Annotated[Path | None, typer.Option(help="Weights whose encoders are kept: regressors alone.")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves torch's choice.")] = 0,
    overwrite: Annotated[bool, typer.Option(help="Replace the file if it exists.")] = False,
) -> None:
    """Pre-train reiqa_small on your own photographs by momentum contrast, and fit its regressors to known damage."""
    import torch

    from saccade.data.pairs import photographs
    from saccade.quality.reiqa.moco import Recipe
    from saccade.quality.reiqa.synthetic import fit_regressors, save_small, train_small

    if out.suffix != ".safetensors":
        raise UsageError(f"--out names a .safetensors file, not {out}")
    check_target(out, overwrite)
    if threads:
        torch.set_num_threads(threads)
    began, files = perf_counter(), photographs(data)

    def say(branch: str, step: int, loss: float, right: float, encoder: Any) -> None:
        if step % 250 == 0:
            typer.echo(f"{branch} {step}: loss {loss:.3f}, own key nearest for {right:.1%}", err=True)

    if start is None:
        recipe = Recipe(steps=steps, rate=rate, pictures=pictures, copies=copies, seed=seed)
        model, fits = train_small(files, recipe, content_steps, say=say, threads=threads)
        words = (
            f"--steps {steps} --content-steps {content_steps} --rate {rate:g} --pictures {pictures} --copies {copies}"
        )
    else:
        model, steps, words = _with_regressors(start), 0, f"--start {start.name}"
        fits = fit_regressors(model, files, seed, threads)
    save_small(
        model,
        out,
        trained_by=f"saccade train reiqa --data {data.name} {words} --seed {seed}",
        training=json_module.dumps({"steps": steps, "seconds": round(perf_counter() - began, 1)}),
    )
    typer.echo(f"{out}  on photographs left out of the fit:")
    for name, f in fits.items():
        typer.echo(
            f"  {name}: SRCC with the level of damage {f.srcc:.3f}, {f.in_order:.1%} of neighbouring levels in order, "
            f"left-out error {f.left_out_error:.1f} points (penalty {f.alpha:g})"
        )


def _with_regressors(path: Path) -> ReIQA:
    """A file of reiqa_small, or of whatever else has regressors to fit."""
    from saccade.checkpoint import load
    from saccade.quality.reiqa.network import ReIQA

    model = load(path)
    if not isinstance(model, ReIQA) or not model.scores:
        raise UsageError(f"--start takes weights that saccade train reiqa wrote; {path} holds no regressors")
    return model


def fit(features: Sequence[np.ndarray], rows: Sequence[Rated], splits: int, seed: int) -> tuple[Any, dict[str, Any]]:
    """The ridge to be saved, and its figures on contents that it had not seen.

    With a column ``split`` the ridge is fitted on the training part; else on all, and the figures are medians over
    random splits.

    Raises:
        InputError: leakage, too few contents, scores or features that cannot be fitted.
    """
    import numpy as np

    from saccade.quality.reiqa.protocol import check_split, cross_validate, plcc, srcc
    from saccade.quality.reiqa.ridge import fit_ridge

    x, y = np.stack(list(features)), np.array([row.score for row in rows])
    contents = [row.content for row in rows]
    told = {"pictures": len(rows), "contents": len(set(contents))}
    if not any(row.split for row in rows):
        agreement = cross_validate(x, y, contents, splits, seed)
        found = {"srcc": agreement.srcc, "plcc": agreement.plcc, "how": f"median of {splits} splits by content"}
        return fit_ridge(x, y, contents), told | found
    parts = {name: [i for i, row in enumerate(rows) if row.split == name] for name in ("train", "test")}
    check_split(*([contents[i] for i in parts[name]] for name in ("train", "test")))
    ridge = fit_ridge(x[parts["train"]], y[parts["train"]], [contents[i] for i in parts["train"]])
    made, wanted = ridge(x[parts["test"]]), y[parts["test"]]
    return ridge, told | {"srcc": srcc(made, wanted), "plcc": plcc(made, wanted), "how": "the table's own split"}


def read_table(path: Path, folder: Path) -> list[Rated]:
    """Rows of a table of ratings; names are relative to ``folder``.

    Raises:
        InputError: unreadable, columns missing, a score that is no finite number, a name twice, a picture not there.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {reason(error)}") from error
    try:
        table = csv.DictReader(text.splitlines())
        columns = [name.strip().lower() for name in table.fieldnames or []]
        lines = list(table)
    except csv.Error as error:
        raise InputError(f"{path} is no table with commas ({error})") from error
    if not {"name", "score"} <= set(columns):
        raise InputError(f"{path} needs the columns name and score; it has {', '.join(columns) or 'none'}")
    rows = [_row(dict(zip(columns, line.values(), strict=False)), path, folder, i + 2) for i, line in enumerate(lines)]
    if not rows:
        raise InputError(f"{path} has no rows")
    seen: dict[Path, int] = {}
    for i, row in enumerate(rows):
        if seen.setdefault(row.path, i) != i:
            raise InputError(f"{path} rates {row.path.name} twice, in lines {seen[row.path] + 2} and {i + 2}")
    if any(row.split for row in rows) and not all(row.split for row in rows):
        raise InputError(f"{path} names a split for some rows only")
    return rows


def _row(cells: dict[str, Any], path: Path, folder: Path, line: int) -> Rated:
    name, text = str(cells.get("name") or "").strip(), str(cells.get("score") or "").strip()
    try:
        score = float(text)
    except ValueError:
        raise InputError(f"{path}, line {line}: {text!r} is no score") from None
    if not math.isfinite(score):
        raise InputError(f"{path}, line {line}: a score must be finite, not {text}")
    split = str(cells.get("split") or "").strip().lower()
    if split not in ("", "train", "test"):
        raise InputError(f"{path}, line {line}: a split is train or test, not {split!r}")
    picture = folder / name
    if not name or not picture.is_file():
        raise InputError(f"{path}, line {line}: there is no picture {picture}")
    return Rated(picture, score, str(cells.get("content") or "").strip() or name, split)


def _features(scorer: Scorer, row: Rated) -> np.ndarray:
    try:
        return scorer.features(row.path)
    except SaccadeError as error:
        text = str(error)
        raise InputError(text if str(row.path) in text else f"{row.path}: {text}") from error
