"""``saccade train``: networks on your own pictures."""

from __future__ import annotations

import json as json_module
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from saccade.cli.options import Accelerator, Devices, Enlargement, FloatPrecision, Nodes, SaveEvery, TrainingThreads
from saccade.cli.train_iqa import train_iqa
from saccade.cli.train_reiqa import train_reiqa
from saccade.errors import UsageError

app = typer.Typer(
    add_completion=False, no_args_is_help=True, rich_markup_mode=None, help="Train a network on your own pictures."
)

Data = Annotated[Path, typer.Option(help="Folder of training photographs.")]
Out = Annotated[Path, typer.Option("-o", "--out", help="Folder of the run; an unfinished run there is continued.")]
Validate = Annotated[Path | None, typer.Option(help="Pictures for the PSNR; default: every 16th of --data.")]
Steps = Annotated[int, typer.Option(help="Optimiser steps.")]
Batch = Annotated[int, typer.Option(help="Crops a step and device.")]
Rate = Annotated[float, typer.Option(help="Peak learning rate (Adam).")]
Warmup = Annotated[int, typer.Option(help="Steps of linear warm-up.")]
Hold = Annotated[float, typer.Option(help="Fraction of the steps at the peak rate before the cosine.")]
Start = Annotated[Path | None, typer.Option(help="Weights to start from.")]
Labelled = Annotated[
    str, typer.Option(help="Folder of a folder a class, of webdataset shards, or hf:NAME@SPLIT (Hugging Face).")
]
HeldOut = Annotated[str | None, typer.Option(help="As --data; default: every 16th picture of it.")]
BetaOfRecipe = Annotated[float | None, typer.Option(help="Of its Beta; 0: none.  [default: the recipe's]")]
Decoders = Annotated[int, typer.Option(help="Processes that decode; 0: none.")]
Beta = Annotated[float, typer.Option(help="Of its Beta; 0: none.")]
Clip = Annotated[float, typer.Option(help="Bound on the norm of the gradient; 0 for none.")]
ClipMode = Annotated[
    str, typer.Option(help="What --clip bounds: norm, the gradient's; agc, each unit's over that of its weights.")
]
Ema = Annotated[float, typer.Option(help="Decay of the weight average; 0 for none.")]
Precision = Annotated[str, typer.Option(help="32-true, bf16-mixed, 16-mixed, ...")]
ValidateEvery = Annotated[int, typer.Option(help="Steps between validations.")]
Seed = Annotated[int, typer.Option(help="Seed of weights and crops.")]
Compile = Annotated[bool, typer.Option("--compile", help="Run the step through torch.compile.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the run's course as JSON at the end.")]


@app.callback()
def root() -> None:
    """Train a network on your own pictures."""


app.command("iqa")(train_iqa)
app.command("reiqa")(train_reiqa)


@app.command("sr")
def super_resolution(
    model: Annotated[str, typer.Option(help="Registered name (saccade list --task super-resolution).")],
    data: Data,
    out: Out,
    scale: Enlargement = 2,
    validate: Validate = None,
    steps: Steps = 40_000,
    batch: Batch = 16,
    patch: Annotated[int, typer.Option(help="Side of the low-resolution crop, pixels.")] = 48,
    shrink: Annotated[
        str, typer.Option(help="Sizes at which each photograph is taken, e.g. 0.75,0.5: finer detail per pixel.")
    ] = "1",
    rate: Rate = 1e-3,
    warmup: Warmup = 300,
    hold: Hold = 0.0,
    loss: Annotated[str, typer.Option(help="l1 or l2.")] = "l1",
    ema: Ema = 0.999,
    phase: Annotated[int, typer.Option(help="Stage of models that train in stages (PCSR: 0, then 1).")] = 0,
    start: Annotated[Path | None, typer.Option(help="Weights to start from, also of another scale.")] = None,
    precision: Precision = "32-true",
    validate_every: ValidateEvery = 2_000,
    save_every: SaveEvery = 500,
    seed: Seed = 0,
    compile: Compile = False,  # noqa: A002
    threads: TrainingThreads = 0,
    accelerator: Accelerator = "auto",
    devices: Devices = "auto",
    nodes: Nodes = 1,
    json: AsJson = False,
) -> None:
    """Train a super-resolution network; killed at any moment, the same command goes on from the last checkpoint.

    One device to many machines: torchrun --nnodes N --nproc-per-node K -m saccade.cli train sr ... (same options).
    """
    given = locals()
    from saccade.training.super_resolution import Options, train

    _run(Options, train, given, then="upscale")


@app.command("restoration")
def restoration(
    model: Annotated[str, typer.Option(help="Registered name (saccade list --task restoration).")],
    data: Annotated[Path, typer.Option(help="Folder of clean training photographs.")],
    out: Out,
    degrade: Annotated[str, typer.Option(help="What is put on them: noise-jpeg, weather, clean.")] = "noise-jpeg",
    validate: Validate = None,
    steps: Steps = 10_000,
    batch: Batch = 8,
    patch: Annotated[int, typer.Option(help="Side of the crop, pixels.")] = 64,
    shrink: Annotated[
        str, typer.Option(help="Sizes at which each photograph is taken, e.g. 1,0.5: finer detail per pixel.")
    ] = "1",
    rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    warmup: Warmup = 100,
    hold: Hold = 0.0,
    loss: Annotated[str, typer.Option(help="l1 or l2, for networks without a loss of their own.")] = "l1",
    optimiser: Annotated[str, typer.Option(help="adam, adamw, sgd or muon.")] = "adam",
    weight_decay: Annotated[float, typer.Option(help="Of adamw, sgd and muon.")] = 0.0,
    clip: Clip = 0.0,
    ema: Ema = 0.999,
    phase: Annotated[int, typer.Option(help="Stage of models that train in stages.")] = 0,
    start: Start = None,
    precision: Precision = "32-true",
    validate_every: ValidateEvery = 1_000,
    save_every: SaveEvery = 250,
    seed: Seed = 0,
    compile: Compile = False,  # noqa: A002
    threads: TrainingThreads = 0,
    accelerator: Accelerator = "auto",
    devices: Devices = "auto",
    nodes: Nodes = 1,
    json: AsJson = False,
) -> None:
    """Train a restoration network on clean photographs that are degraded as they are drawn.

    Killed at any moment, the same command goes on from the last checkpoint.
    """
    given = locals()
    from saccade.training.restoration import Options, train

    _run(Options, train, given, then="restore")


@app.command("rescaling")
def rescaling(
    data: Data,
    out: Out,
    model: Annotated[str, typer.Option(help="Registered name.")] = "iarn",
    validate: Validate = None,
    steps: Steps = 7_000,
    batch: Batch = 8,
    patch: Annotated[int, typer.Option(help="Side of the small picture at factor 2, pixels.")] = 24,
    shrink: Annotated[str, typer.Option(help="Sizes at which each photograph is taken.")] = "1,0.6",
    start_crops: Annotated[int, typer.Option(help="Batches that the linear start is solved on; 0: zeros.")] = 80,
    rate: Rate = 1e-3,
    warmup: Warmup = 50,
    clip: Clip = 0.5,
    ema: Ema = 0.999,
    start: Annotated[Path | None, typer.Option(help="Weights to start from, in place of the linear start.")] = None,
    validate_every: ValidateEvery = 3_500,
    save_every: SaveEvery = 250,
    seed: Seed = 0,
    threads: TrainingThreads = 0,
    accelerator: Accelerator = "auto",
    devices: Devices = "auto",
    json: AsJson = False,
) -> None:
    """Train one network for rescaling by all factors (IARN), from a start that is solved for.

    Killed at any moment, the same command goes on from the last checkpoint.
    """
    given = locals()
    from saccade.restoration.iarn.training import Options, train

    _run(Options, train, given, then="shrink")


@app.command("video")
def video(
    data: Annotated[Path, typer.Option(help="Folder of clips: videos, and folders of frames.")],
    out: Out,
    model: Annotated[
        str, typer.Option(help="Registered name (saccade list --task video-super-resolution).")
    ] = "realbasicvsr",
    phase: Annotated[int, typer.Option(help="0: for fidelity; 1: goes on against a discriminator.")] = 0,
    start: Annotated[Path | None, typer.Option(help="Weights to start from; phase 1 needs those of phase 0.")] = None,
    flow: Annotated[Path | None, typer.Option(help="Weights of SPyNet; without them it begins at no motion.")] = None,
    freeze_flow: Annotated[
        int | None, typer.Option(help="Steps before SPyNet learns; -1: never.  [default: -1, 5000 without its weights]")
    ] = None,
    perceptual: Annotated[Path | None, typer.Option(help="torchvision's VGG-19, for phase 1; else left out.")] = None,
    validate: Annotated[Path | None, typer.Option(help="As --data; default: every 16th clip of it.")] = None,
    degrade: Annotated[str, typer.Option(help="second-order (with video codec), or bicubic.")] = "second-order",
    frames: Annotated[int, typer.Option(help="Of the clips that the network sees.")] = 30,
    loaded: Annotated[int, typer.Option(help="Frames read for each clip, which runs to and fro over them.")] = 15,
    stay: Annotated[float, typer.Option(help="Probability that a frame is shown again before the next.")] = 0.0,
    still: Annotated[float, typer.Option(help="Share of clips that are one frame, standing still.")] = 0.25,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.  [default: 300000, 150000 in phase 1]")] = None,
    batch: Annotated[int | None, typer.Option(help="Clips a step and device.  [default: 2, 1 in phase 1]")] = None,
    patch: Annotated[int, typer.Option(help="Side of the low-resolution frames, pixels.")] = 64,
    rate: Annotated[float | None, typer.Option(help="Learning rate.  [default: 1e-4, 5e-5 in phase 1]")] = None,
    discriminator_rate: Annotated[float, typer.Option(help="Learning rate of the discriminator.")] = 1e-4,
    discriminator_width: Annotated[int, typer.Option(help="Channels of the discriminator at the frames' size.")] = 64,
    warmup: Warmup = 0,
    hold: Hold = 1.0,
    loss: Annotated[str, typer.Option(help="charbonnier or l1.")] = "charbonnier",
    clip: Clip = 0.0,
    ema: Ema = 0.999,
    precision: Precision = "32-true",
    validate_every: ValidateEvery = 5_000,
    save_every: SaveEvery = 500,
    seed: Seed = 0,
    workers: Annotated[int, typer.Option(help="Processes that read and degrade ahead; 0: none.")] = 2,
    threads: TrainingThreads = 0,
    accelerator: Accelerator = "auto",
    devices: Devices = "auto",
    nodes: Nodes = 1,
    json: AsJson = False,
) -> None:
    """Train a video super-resolution network (RealBasicVSR) on clips that are degraded as they are drawn.

    Two phases: for fidelity, then against a discriminator. Killed at any moment, the same command goes on.
    """
    given = locals()
    from saccade.restoration.realbasicvsr.training import Options, train

    _run(Options.of_phase, train, given, then="upscale")


@app.command("classify")
def classify(
    model: Annotated[str, typer.Option(help="Registered name (saccade list --task classification).")],
    data: Labelled,
    out: Out,
    recipe: Annotated[
        str, typer.Option(help="modern, plain, resnet_rs, fast_scaling or hyperzzw; options below win.")
    ] = "modern",
    validate: HeldOut = None,
    steps: Steps = 20_000,
    batch: Annotated[int, typer.Option(help="Pictures a step and device.")] = 64,
    patch: Annotated[
        int | None, typer.Option("--size", help="Side of the pictures, pixels.  [default: the network's]")
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Peak learning rate.  [default: the recipe's]")] = None,
    warmup: Warmup = 300,
    optimiser: Annotated[str | None, typer.Option(help="adamw, sgd, adam, muon, kar.  [default: the recipe's]")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Of matrices.  [default: the recipe's]")] = None,
    clip: Clip = 0.0,
    clip_mode: ClipMode = "norm",
    ema: Annotated[float | None, typer.Option(help="Decay of the average; 0: none.  [default: the recipe's]")] = None,
    operations: Annotated[int | None, typer.Option(help="Of RandAugment; 0: none.  [default: the recipe's]")] = None,
    magnitude: Annotated[int | None, typer.Option(help="Of RandAugment, 0 to 30.  [default: the recipe's]")] = None,
    erasing: Annotated[float | None, typer.Option(help="Probability.  [default: the recipe's]")] = None,
    mixup: BetaOfRecipe = None,
    cutmix: BetaOfRecipe = None,
    smoothing: Annotated[float | None, typer.Option(help="Of the labels.  [default: the recipe's]")] = None,
    drop: Annotated[float | None, typer.Option(help="Before the classifier.  [default: the recipe's]")] = None,
    drop_path: Annotated[
        float | None, typer.Option(help="Stochastic depth, where the network has it.  [default: the recipe's]")
    ] = None,
    start: Annotated[Path | None, typer.Option(help="Weights to start from, also of other classes.")] = None,
    precision: Precision = "32-true",
    validate_every: ValidateEvery = 1_000,
    save_every: SaveEvery = 500,
    seed: Seed = 0,
    compile: Compile = False,  # noqa: A002
    workers: Decoders = 2,
    threads: TrainingThreads = 0,
    accelerator: Accelerator = "auto",
    devices: Devices = "auto",
    nodes: Nodes = 1,
    json: AsJson = False,
) -> None:
    """Train a classifier on pictures with classes; killed at any moment, the same command goes on.

    One device to many machines: torchrun --nnodes N --nproc-per-node K -m saccade.cli train classify ... (as here).
    """
    given = locals()
    from saccade.training.classification import Options, train

    _run(Options.of_recipe, train, given, then="export", flag="")


@app.command("supernet")
def supernet(
    data: Labelled,
    out: Out,
    space: Annotated[str, typer.Option(help="What it holds: elasticvit or elasticvit-small.")] = "elasticvit",
    sampling: Annotated[str, typer.Option(help="neighbours, walk (without memories) or uniform.")] = "neighbours",
    drawn: Annotated[int, typer.Option(help="Networks a step, beside the least of their group.")] = 3,
    teachers: Annotated[
        list[str] | None, typer.Option("--teacher", help="File of a classifier of these classes; may be repeated.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="Divides the teachers' logits.")] = 0.2,
    refresh: Annotated[
        int, typer.Option(help="Steps after which all that banks remember is scored anew; 0: never.")
    ] = 0,
    validate: HeldOut = None,
    steps: Steps = 20_000,
    batch: Annotated[int, typer.Option(help="Pictures a step.")] = 64,
    patch: Annotated[
        int | None, typer.Option("--size", help="Side of the pictures, pixels.  [default: the space's largest]")
    ] = None,
    rate: Annotated[float, typer.Option(help="Peak learning rate (AdamW).")] = 5e-4,
    warmup: Warmup = 300,
    weight_decay: Annotated[float, typer.Option(help="Of matrices outside the inverted bottlenecks.")] = 0.05,
    clip: Clip = 0.1,
    clip_mode: ClipMode = "agc",
    ema: Ema = 0.9995,
    operations: Annotated[int, typer.Option(help="Of RandAugment; 0: none.")] = 1,
    magnitude: Annotated[int, typer.Option(help="Of RandAugment, 0 to 30.")] = 1,
    erasing: Annotated[float, typer.Option(help="Probability.")] = 0.01,
    mixup: Beta = 0.2,
    cutmix: Beta = 0.0,
    smoothing: Annotated[float, typer.Option(help="Of the labels.")] = 0.1,
    start: Start = None,
    precision: FloatPrecision = "32-true",
    validate_every: ValidateEvery = 1_000,
    save_every: SaveEvery = 500,
    seed: Seed = 0,
    workers: Decoders = 2,
    threads: TrainingThreads = 0,
    accelerator: Accelerator = "auto",
    json: AsJson = False,
) -> None:
    """Train an ElasticViT supernet on one device, to search networks in; killed, the same command goes on."""
    given = locals() | {"model": "elasticvit", "teachers": tuple(teachers or ())}
    from saccade.backbones.elasticvit.catalogue import as_space
    from saccade.backbones.elasticvit.training import Options, train

    given["patch"] = as_space(space).resolutions[-1] if patch is None else patch
    _run(Options, train, given, then="search", flag="--weights")


def _run(
    make: Callable[..., Any], train: Callable[..., Path], given: dict[str, Any], *, then: str, flag: str = "--model"
) -> None:
    """Train, and print the end.

    Args:
        make: of a run's options.
        train: of them and ``say``; returns the file of weights.
        given: a command's own arguments: the options by name, and ``json``.
        then: the verb that uses such weights.
        flag: how it is given them; empty: by themselves.
    """
    told = {name: str(value) if isinstance(value, Path) else value for name, value in given.items() if name != "json"}
    options = make(**told | ({"shrink": _sizes(given["shrink"])} if "shrink" in given else {}))
    made = train(options, say=lambda line: typer.echo(line, err=given["json"]))
    if given["json"]:
        typer.echo(json_module.dumps(json_module.loads((made.parent / "run.json").read_text()), indent=1))
    else:
        typer.echo(f"{made}  ({' '.join(filter(None, ('saccade', then, flag, str(made))))} ...)")


def _sizes(text: str) -> tuple[float, ...]:
    """``0.75,0.5`` as numbers.

    Raises:
        UsageError: anything else.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--shrink takes numbers with commas between them, e.g. 0.75,0.5, not {text!r}") from None
