"""``saccade train``: networks on your own pictures."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from saccade.cli.train_iqa import train_iqa, train_reiqa
from saccade.errors import UsageError

app = typer.Typer(
    add_completion=False, no_args_is_help=True, rich_markup_mode=None, help="Train a network on your own pictures."
)


@app.callback()
def root() -> None:
    """Train a network on your own pictures."""


app.command("iqa")(train_iqa)
app.command("reiqa")(train_reiqa)


@app.command("sr")
def super_resolution(
    model: Annotated[str, typer.Option(help="Registered name (saccade list --task super-resolution).")],
    data: Annotated[Path, typer.Option(help="Folder of training photographs.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the run; an unfinished run there is continued.")],
    scale: Annotated[int, typer.Option(help="Enlargement.")] = 2,
    validate: Annotated[Path | None, typer.Option(help="Pictures for the PSNR; default: every 16th of --data.")] = None,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 40_000,
    batch: Annotated[int, typer.Option(help="Crops a step and device.")] = 16,
    patch: Annotated[int, typer.Option(help="Side of the low-resolution crop, pixels.")] = 48,
    shrink: Annotated[
        str, typer.Option(help="Sizes at which each photograph is taken, e.g. 0.75,0.5: finer detail per pixel.")
    ] = "1",
    rate: Annotated[float, typer.Option(help="Peak learning rate (Adam).")] = 1e-3,
    warmup: Annotated[int, typer.Option(help="Steps of linear warm-up.")] = 300,
    hold: Annotated[float, typer.Option(help="Fraction of the steps at the peak rate before the cosine.")] = 0.0,
    loss: Annotated[str, typer.Option(help="l1 or l2.")] = "l1",
    ema: Annotated[float, typer.Option(help="Decay of the weight average; 0 for none.")] = 0.999,
    phase: Annotated[int, typer.Option(help="Stage of models that train in stages (PCSR: 0, then 1).")] = 0,
    start: Annotated[Path | None, typer.Option(help="Weights to start from, also of another scale.")] = None,
    precision: Annotated[str, typer.Option(help="32-true, bf16-mixed, 16-mixed, ...")] = "32-true",
    validate_every: Annotated[int, typer.Option(help="Steps between validations.")] = 2_000,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 500,
    seed: Annotated[int, typer.Option(help="Seed of weights and crops.")] = 0,
    compile: Annotated[bool, typer.Option("--compile", help="Run the step through torch.compile.")] = False,  # noqa: A002
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves torch's choice.")] = 0,
    accelerator: Annotated[str, typer.Option(help="auto, cpu, cuda, mps, ...")] = "auto",
    devices: Annotated[str, typer.Option(help="How many, or auto.")] = "auto",
    nodes: Annotated[int, typer.Option(help="Machines (torchrun sets its own).")] = 1,
    json: Annotated[bool, typer.Option("--json", help="Print the run's course as JSON at the end.")] = False,
) -> None:
    """Train a super-resolution network; killed at any moment, the same command goes on from the last checkpoint.

    One device to many machines: torchrun --nnodes N --nproc-per-node K -m saccade.cli train sr ... (same options).
    """
    from saccade.training.super_resolution import Options, train

    options = Options(
        model=model,
        data=str(data),
        out=str(out),
        scale=scale,
        validate=None if validate is None else str(validate),
        steps=steps,
        batch=batch,
        patch=patch,
        shrink=_sizes(shrink),
        rate=rate,
        warmup=warmup,
        hold=hold,
        loss=loss,
        ema=ema,
        phase=phase,
        start=None if start is None else str(start),
        precision=precision,
        validate_every=validate_every,
        save_every=save_every,
        seed=seed,
        compile=compile,
        threads=threads,
        accelerator=accelerator,
        devices=devices,
        nodes=nodes,
    )
    made = train(options, say=lambda line: typer.echo(line, err=json))
    if json:
        typer.echo(json_module.dumps(json_module.loads((made.parent / "run.json").read_text()), indent=1))
    else:
        typer.echo(f"{made}  (saccade upscale --model {made} ...)")


@app.command("restoration")
def restoration(
    model: Annotated[str, typer.Option(help="Registered name (saccade list --task restoration).")],
    data: Annotated[Path, typer.Option(help="Folder of clean training photographs.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the run; an unfinished run there is continued.")],
    degrade: Annotated[str, typer.Option(help="What is put on them: noise-jpeg, weather, clean.")] = "noise-jpeg",
    validate: Annotated[Path | None, typer.Option(help="Pictures for the PSNR; default: every 16th of --data.")] = None,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 10_000,
    batch: Annotated[int, typer.Option(help="Crops a step and device.")] = 8,
    patch: Annotated[int, typer.Option(help="Side of the crop, pixels.")] = 64,
    shrink: Annotated[
        str, typer.Option(help="Sizes at which each photograph is taken, e.g. 1,0.5: finer detail per pixel.")
    ] = "1",
    rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    warmup: Annotated[int, typer.Option(help="Steps of linear warm-up.")] = 100,
    hold: Annotated[float, typer.Option(help="Fraction of the steps at the peak rate before the cosine.")] = 0.0,
    loss: Annotated[str, typer.Option(help="l1 or l2, for networks without a loss of their own.")] = "l1",
    optimiser: Annotated[str, typer.Option(help="adam, adamw or muon.")] = "adam",
    weight_decay: Annotated[float, typer.Option(help="Of adamw and muon.")] = 0.0,
    clip: Annotated[float, typer.Option(help="Bound on the norm of the gradient; 0 for none.")] = 0.0,
    ema: Annotated[float, typer.Option(help="Decay of the weight average; 0 for none.")] = 0.999,
    phase: Annotated[int, typer.Option(help="Stage of models that train in stages.")] = 0,
    start: Annotated[Path | None, typer.Option(help="Weights to start from.")] = None,
    precision: Annotated[str, typer.Option(help="32-true, bf16-mixed, 16-mixed, ...")] = "32-true",
    validate_every: Annotated[int, typer.Option(help="Steps between validations.")] = 1_000,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 250,
    seed: Annotated[int, typer.Option(help="Seed of weights and crops.")] = 0,
    compile: Annotated[bool, typer.Option("--compile", help="Run the step through torch.compile.")] = False,  # noqa: A002
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves torch's choice.")] = 0,
    accelerator: Annotated[str, typer.Option(help="auto, cpu, cuda, mps, ...")] = "auto",
    devices: Annotated[str, typer.Option(help="How many, or auto.")] = "auto",
    nodes: Annotated[int, typer.Option(help="Machines (torchrun sets its own).")] = 1,
    json: Annotated[bool, typer.Option("--json", help="Print the run's course as JSON at the end.")] = False,
) -> None:
    """Train a restoration network on clean photographs that are degraded as they are drawn.

    Killed at any moment, the same command goes on from the last checkpoint.
    """
    from saccade.training.restoration import Options, train

    options = Options(
        model=model,
        data=str(data),
        out=str(out),
        degrade=degrade,
        validate=None if validate is None else str(validate),
        steps=steps,
        batch=batch,
        patch=patch,
        shrink=_sizes(shrink),
        rate=rate,
        warmup=warmup,
        hold=hold,
        loss=loss,
        optimiser=optimiser,
        weight_decay=weight_decay,
        clip=clip,
        ema=ema,
        phase=phase,
        start=None if start is None else str(start),
        precision=precision,
        validate_every=validate_every,
        save_every=save_every,
        seed=seed,
        compile=compile,
        threads=threads,
        accelerator=accelerator,
        devices=devices,
        nodes=nodes,
    )
    made = train(options, say=lambda line: typer.echo(line, err=json))
    if json:
        typer.echo(json_module.dumps(json_module.loads((made.parent / "run.json").read_text()), indent=1))
    else:
        typer.echo(f"{made}  (saccade restore --model {made} ...)")


@app.command("rescaling")
def rescaling(
    data: Annotated[Path, typer.Option(help="Folder of training photographs.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the run; an unfinished run there is continued.")],
    model: Annotated[str, typer.Option(help="Registered name.")] = "iarn",
    validate: Annotated[Path | None, typer.Option(help="Pictures for the PSNR; default: every 16th of --data.")] = None,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 7_000,
    batch: Annotated[int, typer.Option(help="Crops a step and device.")] = 8,
    patch: Annotated[int, typer.Option(help="Side of the small picture at factor 2, pixels.")] = 24,
    shrink: Annotated[str, typer.Option(help="Sizes at which each photograph is taken.")] = "1,0.6",
    start_crops: Annotated[int, typer.Option(help="Batches that the linear start is solved on; 0: zeros.")] = 80,
    rate: Annotated[float, typer.Option(help="Peak learning rate (Adam).")] = 1e-3,
    warmup: Annotated[int, typer.Option(help="Steps of linear warm-up.")] = 50,
    clip: Annotated[float, typer.Option(help="Bound on the norm of the gradient; 0 for none.")] = 0.5,
    ema: Annotated[float, typer.Option(help="Decay of the weight average; 0 for none.")] = 0.999,
    start: Annotated[Path | None, typer.Option(help="Weights to start from, in place of the linear start.")] = None,
    validate_every: Annotated[int, typer.Option(help="Steps between validations.")] = 3_500,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 250,
    seed: Annotated[int, typer.Option(help="Seed of weights and crops.")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves torch's choice.")] = 0,
    accelerator: Annotated[str, typer.Option(help="auto, cpu, cuda, mps, ...")] = "auto",
    devices: Annotated[str, typer.Option(help="How many, or auto.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print the run's course as JSON at the end.")] = False,
) -> None:
    """Train one network for rescaling by all factors (IARN), from a start that is solved for.

    Killed at any moment, the same command goes on from the last checkpoint.
    """
    from saccade.restoration.iarn.training import Options, train

    options = Options(
        model=model,
        data=str(data),
        out=str(out),
        validate=None if validate is None else str(validate),
        steps=steps,
        batch=batch,
        patch=patch,
        shrink=_sizes(shrink),
        start_crops=start_crops,
        rate=rate,
        warmup=warmup,
        clip=clip,
        ema=ema,
        start=None if start is None else str(start),
        validate_every=validate_every,
        save_every=save_every,
        seed=seed,
        threads=threads,
        accelerator=accelerator,
        devices=devices,
    )
    made = train(options, say=lambda line: typer.echo(line, err=json))
    if json:
        typer.echo(json_module.dumps(json_module.loads((made.parent / "run.json").read_text()), indent=1))
    else:
        typer.echo(f"{made}  (saccade shrink --model {made} ...)")


def _sizes(text: str) -> tuple[float, ...]:
    """``0.75,0.5`` as numbers.

    Raises:
        UsageError: anything else.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--shrink takes numbers with commas between them, e.g. 0.75,0.5, not {text!r}") from None
