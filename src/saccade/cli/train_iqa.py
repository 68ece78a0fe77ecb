"""``saccade train iqa``: a regressor of one's own, from rated pictures."""

from __future__ import annotations

import csv
import json as json_module
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saccade.cli.batch import spare_processor
from saccade.cli.options import Budget, FiguresAsJson, LongerSide, OverwriteFile, QualityModel, Threads, a_seed
from saccade.errors import InputError, SaccadeError, UsageError
from saccade.io.files import check_target, reason

if TYPE_CHECKING:
    import numpy as np

    from saccade.quality.reiqa.protocol import Fit
    from saccade.quality.reiqa.ridge import Ridge
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
    model: QualityModel = "reiqa_small",
    budget: Budget = None,
    side: LongerSide = 2048,
    penalty: Annotated[str, typer.Option(help="ridge, or elastic-net, which leaves features out.")] = "ridge",
    l1_share: Annotated[float, typer.Option(help="Of the elastic net's penalty, in (0, 1].")] = 0.5,
    splits: Annotated[int, typer.Option(help="Random 80/20 splits by content for the figures.")] = 10,
    seed: Annotated[int, typer.Option(callback=a_seed, help="Seed of the splits.")] = 0,
    threads: Threads = 0,
    overwrite: OverwriteFile = False,
    json: FiguresAsJson = False,
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
    fitter = _fitter(penalty, l1_share)
    check_target(out, overwrite)
    rows = read_table(scores, data or scores.parent)
    scorer = Scorer(model, budget=budget, side=side, threads=threads)
    features = [_features(scorer, row) for row in track(rows, "reading pictures")]
    ridge, figures = fit(features, rows, splits, seed, fitter)
    Regressor.of(ridge, scorer, **figures).save(out, overwrite=overwrite)
    if json:
        typer.echo(json_module.dumps({"regressor": str(out), "alpha": ridge.alpha, **figures}, indent=1))
        return
    typer.echo(
        f"{out}  {figures['pictures']} pictures of {figures['contents']} contents; "
        f"on unseen contents ({figures['how']}): SRCC {figures['srcc']:.3f}, PLCC {figures['plcc']:.3f}  "
        f"(saccade score DIR --regressor {out})"
    )


def _fitter(penalty: str, l1_share: float) -> Fit:
    """What fits a regressor with that penalty.

    Raises:
        UsageError: no such penalty or share.
    """
    from functools import partial

    from saccade.quality.reiqa.elastic import fit_elastic_net
    from saccade.quality.reiqa.ridge import fit_ridge

    if penalty not in ("ridge", "elastic-net"):
        raise UsageError(f"--penalty is ridge or elastic-net, not {penalty!r}")
    if not 0 < l1_share <= 1:
        raise UsageError(f"--l1-share lies in (0, 1], not {l1_share:g}; for 0 take --penalty ridge")
    return fit_ridge if penalty == "ridge" else partial(fit_elastic_net, share=l1_share)


def fit(
    features: Sequence[np.ndarray], rows: Sequence[Rated], splits: int, seed: int, fitter: Fit
) -> tuple[Ridge, dict[str, Any]]:
    """The regressor to be saved, and its figures on contents that it had not seen.

    With a column ``split`` it is fitted on the training part; else on all, and the figures are medians over random
    splits.

    Raises:
        InputError: leakage, too few contents, scores or features that cannot be fitted.
    """
    import numpy as np

    from saccade.quality.reiqa.protocol import check_split, cross_validate, plcc, srcc

    x, y = np.stack(list(features)), np.array([row.score for row in rows])
    contents = [row.content for row in rows]
    told: dict[str, Any] = {"pictures": len(rows), "contents": len(set(contents))}
    if not any(row.split for row in rows):
        agreement = cross_validate(x, y, contents, splits, seed, fitter)
        found = {"srcc": agreement.srcc, "plcc": agreement.plcc, "how": f"median of {splits} splits by content"}
        made = fitter(x, y, contents)
        return made, told | found | _about(made)
    parts = {name: [i for i, row in enumerate(rows) if row.split == name] for name in ("train", "test")}
    check_split(*([contents[i] for i in parts[name]] for name in ("train", "test")))
    made = fitter(x[parts["train"]], y[parts["train"]], [contents[i] for i in parts["train"]])
    guessed, wanted = made(x[parts["test"]]), y[parts["test"]]
    found = {"srcc": srcc(guessed, wanted), "plcc": plcc(guessed, wanted), "how": "the table's own split"}
    return made, told | found | _about(made)


def _about(made: Ridge) -> dict[str, Any]:
    """What is worth telling of a fit beside its figures."""
    from saccade.quality.reiqa.elastic import ElasticNet

    if not isinstance(made, ElasticNet):
        return {"penalty": "ridge"}
    return {"penalty": "elastic-net", "l1_share": made.l1_share, "features_used": made.used}


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
