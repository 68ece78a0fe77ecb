"""``saccade train reiqa``: encoders of one's own, from photographs that nobody rated."""

from __future__ import annotations

import json as json_module
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saccade.cli.options import (
    Accelerator,
    Devices,
    FloatPrecision,
    Nodes,
    OverwriteFile,
    SaveEvery,
    TrainingThreads,
    a_seed,
)
from saccade.errors import UsageError
from saccade.io.files import check_target

if TYPE_CHECKING:
    from saccade.quality.reiqa.network import ReIQA
    from saccade.quality.reiqa.ordering import Ordered
    from saccade.quality.reiqa.recipe import Recipe
    from saccade.training.processes import Processes

RECIPES = ("small", "paper")
MODELS = ("reiqa_small", "reiqa")
#: steps of quality and content encoder by the small recipe
SMALL_STEPS, SMALL_CONTENT_STEPS = 1400, 600


@dataclass(frozen=True)
class Placement:
    """Where to train, as the user says it."""

    accelerator: str
    devices: str
    nodes: int
    precision: str


def train_reiqa(
    data: Annotated[Path, typer.Option(help="Folder of photographs.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The weights, a .safetensors file.")],
    model: Annotated[str, typer.Option(help="reiqa_small, or reiqa: two ResNet-50.")] = "reiqa_small",
    recipe: Annotated[str, typer.Option(help="small, for dozens of photographs; paper, for 100,000s.")] = "small",
    steps: Annotated[
        int | None, typer.Option(help="Steps of the quality encoder.  [default: 1400; paper: by --epochs]")
    ] = None,
    content_steps: Annotated[
        int | None, typer.Option(help="Steps of the content encoder.  [default: 600; paper: as many]")
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the photographs, of the paper's recipe.")] = 40,
    optimiser: Annotated[str | None, typer.Option(help="muon, adamw or lars.  [default: muon; paper: lars]")] = None,
    rate: Annotated[
        float | None, typer.Option(help="Peak learning rate.  [default: muon 0.004, adamw 0.001, lars 0.6*pictures/32]")
    ] = None,
    pictures: Annotated[
        int | None, typer.Option(help="Photographs in a step, over all processes.  [default: 4; paper: 630]")
    ] = None,
    copies: Annotated[int | None, typer.Option(help="Distorted copies of each.  [default: 12; paper: 11]")] = None,
    seed: Annotated[int, typer.Option(callback=a_seed, help="Seed of weights, crops and distortions.")] = 0,
    start: Annotated[Path | None, typer.Option(help="Weights whose encoders are kept: regressors alone.")] = None,
    checkpoints: Annotated[
        Path | None, typer.Option(help="Folder of checkpoints; an unfinished training there is continued.")
    ] = None,
    save_every: SaveEvery = 500,
    workers: Annotated[int, typer.Option(help="Processes that distort ahead, by the paper's recipe.")] = 2,
    precision: FloatPrecision = "32-true",
    threads: TrainingThreads = 0,
    accelerator: Accelerator = "auto",
    devices: Devices = "auto",
    nodes: Nodes = 1,
    overwrite: OverwriteFile = False,
) -> None:
    """Pre-train encoders on your own photographs by momentum contrast; reiqa_small's regressors are fitted too.

    The regressors of reiqa_small are fitted to known damage. For reiqa, fit one to ratings: saccade train iqa --model
    FILE. One device to many machines: torchrun --nnodes N --nproc-per-node K -m saccade.cli train reiqa ... (same
    options).
    """
    import torch

    from saccade.data.pairs import photographs

    if out.suffix != ".safetensors":
        raise UsageError(f"--out names a .safetensors file, not {out}")
    if model not in MODELS:
        raise UsageError(f"--model is {' or '.join(MODELS)}, not {model!r}")
    if save_every < 1 or workers < 0:
        raise UsageError("--save-every is at least 1 and --workers at least 0")
    check_target(out, overwrite)
    if threads:
        torch.set_num_threads(threads)
    began, files = perf_counter(), photographs(data)
    if start is not None:
        words = f"--data {data.name} --start {start.name} --seed {seed}"
        _fit_and_save(_with_regressors(start), files, out, words, seed, threads, 0, began)
        return
    given = {"steps": steps, "pictures": pictures, "copies": copies, "optimiser": optimiser, "rate": rate}
    own = chosen_recipe(recipe, len(files), epochs, given, seed, precision)
    content = content_steps or (SMALL_CONTENT_STEPS if recipe == "small" else own.steps)
    processes = _processes(Placement(accelerator, devices, nodes, "32-true"))
    made = _trained(model, files, own, content, processes, workers, checkpoints, save_every)
    if processes.leads:
        words = f"--data {data.name} {told(recipe, model, own, content)} --seed {seed}"
        _fit_and_save(made, files, out, words, seed, threads, own.steps, began)


def chosen_recipe(
    name: str, photographs: int, epochs: int, given: dict[str, Any], seed: int, precision: str = "32-true"
) -> Recipe:
    """The recipe of that name with what the user says himself (None: left as it is).

    Raises:
        UsageError: no such recipe, optimiser or precision; values that cannot be meant.
    """
    from dataclasses import replace

    from saccade.quality.reiqa.recipe import OPTIMISERS, Recipe, rate_of

    if name not in RECIPES:
        raise UsageError(f"--recipe is {' or '.join(RECIPES)}, not {name!r}")
    if precision not in ("32-true", "bf16-mixed"):
        raise UsageError(f"--precision is 32-true or bf16-mixed, not {precision!r}")
    said = {key: value for key, value in given.items() if value is not None}
    if name == "small":
        recipe = Recipe(**{"steps": SMALL_STEPS} | said, seed=seed)
    else:
        recipe = Recipe.published(photographs, said.pop("pictures", 630), epochs, **said, seed=seed)
    recipe.check()
    if "optimiser" in said and "rate" not in said:
        recipe = replace(recipe, rate=rate_of(recipe.optimiser, recipe.pictures))
    if "optimiser" in said:
        recipe = replace(recipe, decay=OPTIMISERS[recipe.optimiser])
    return replace(recipe, bfloat16=precision == "bf16-mixed")


def told(name: str, model: str, recipe: Recipe, content_steps: int) -> str:
    """The options that this training could be repeated with, for the file's header."""
    words = "" if (name, model) == ("small", "reiqa_small") else f"--model {model} --recipe {name} "
    words += f"--steps {recipe.steps} --content-steps {content_steps} --rate {recipe.rate:g} "
    words += f"--pictures {recipe.pictures} --copies {recipe.copies}"
    words += "" if recipe.optimiser == ("muon" if name == "small" else "lars") else f" --optimiser {recipe.optimiser}"
    return words + (" --precision bf16-mixed" if recipe.bfloat16 else "")


def _processes(place: Placement) -> Processes:
    """One process on the processor needs nothing; more than that, or another device, needs Lightning Fabric."""
    import torch

    from saccade.training.processes import ALONE, Processes

    simple = place.accelerator == "cpu" or (place.accelerator == "auto" and not torch.cuda.is_available())
    if simple and place.devices in ("auto", "1") and place.nodes == 1 and "WORLD_SIZE" not in os.environ:
        return ALONE
    from saccade.training.devices import launched

    return Processes(launched(place))


def _trained(
    model: str,
    files: Sequence[Path],
    recipe: Recipe,
    content_steps: int,
    processes: Processes,
    workers: int,
    run: Path | None,
    save_every: int,
) -> ReIQA:
    from saccade.quality.reiqa.synthetic import train_encoders

    def say(branch: str, step: int, loss: float, right: float, encoder: Any) -> None:
        if step % 250 == 0:
            typer.echo(f"{branch} {step}: loss {loss:.3f}, own key nearest for {right:.1%}", err=True)

    if processes.leads and processes.count > 1:
        typer.echo(f"{processes.count} processes learn as one", err=True)
    return train_encoders(
        model,
        files,
        recipe,
        content_steps,
        say=say if processes.leads else None,
        processes=processes,
        workers=workers,
        run=run,
        save_every=save_every,
    )


def _fit_and_save(
    model: ReIQA, files: Sequence[Path], out: Path, words: str, seed: int, threads: int, steps: int, began: float
) -> None:
    """Fit the regressors, if the model holds any, write the file, and tell what came out."""
    from saccade.quality.reiqa.synthetic import fit_regressors, save_small

    fits: dict[str, Ordered] = fit_regressors(model, files, seed, threads) if model.scores else {}
    save_small(
        model,
        out,
        trained_by=f"saccade train reiqa {words}",
        training=json_module.dumps({"steps": steps, "seconds": round(perf_counter() - began, 1)}),
    )
    if not fits:
        typer.echo(f"{out}  features, no scores yet: saccade train iqa --model {out} --scores TABLE -o REGRESSOR")
        return
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
