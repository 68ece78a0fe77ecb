"""Options that several verbs share, each written once: a name for the annotation, its flag and its help."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from saccade.errors import UsageError


def a_seed(value: int | None) -> int | None:
    """What an option ``--seed`` was given, for typer to call.

    Raises:
        UsageError: no generator of random numbers takes it.
    """
    if value is not None and not 0 <= value < 2**63:
        raise UsageError(f"--seed lies between 0 and 2^63 - 1, not at {value}")
    return value


def named_as_file(model: str) -> bool:
    """Whether a NAME|FILE is a file of weights: it has a folder or a suffix, or is there."""
    return os.sep in model or Path(model).suffix != "" or Path(model).exists()


# what the verbs share that make files of files
Inputs = Annotated[list[str], typer.Argument(metavar="IN...", help="Pictures, clips, folders or globs.")]
Pictures = Annotated[list[str], typer.Argument(metavar="IN...", help="Pictures, folders or globs.")]
Output = Annotated[str | None, typer.Option("-o", "--output", help="File or folder; default beside the input.")]
Format = Annotated[str | None, typer.Option(help="jpeg, png, webp, tiff, avif; default: by the suffix.")]
Quality = Annotated[int | None, typer.Option(help="1 to 100 for JPEG, WebP, AVIF; CRF for clips.")]
Flatten = Annotated[bool, typer.Option(help="Blend transparency onto white where the format has none.")]
Overwrite = Annotated[bool, typer.Option(help="Replace files that exist.")]
QualityOfPictures = Annotated[int | None, typer.Option(help="1 to 100 for JPEG, WebP, AVIF.")]
OverwriteFile = Annotated[bool, typer.Option(help="Replace the file if it exists.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")]
ResultAsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
FiguresAsJson = Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")]
PlainlyAsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

# which network
OfTask = Annotated[str | None, typer.Option(help="Only this task, e.g. super-resolution.")]
Enlargement = Annotated[int, typer.Option(help="Enlargement.")]
EnlargementOfModel = Annotated[
    int | None, typer.Option(help="Enlargement.  [default: the model's first, or the file's]")
]
QualityModel = Annotated[str, typer.Option(help="A name (saccade list --task 'image quality') or a file.")]
LongerSide = Annotated[int, typer.Option(help="Pictures with a longer side are reduced to it, pixels.")]

# how a network runs
Budget = Annotated[float | None, typer.Option(help="Fraction of the full cost to spend, in (0, 1].")]
MaxMemory = Annotated[str, typer.Option(help="Bound on this process's memory.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, ...")]
Threads = Annotated[int, typer.Option(help="CPU threads; 0 for all cores.")]

# the learnt ISP of develop and unprocess
LearntISP = Annotated[str | None, typer.Option(help="File of a learnt ISP (saccade list 'model_isp*').")]
BudgetOfISP = Annotated[float | None, typer.Option(help="Share of the learnt ISP's encoders to run, in (0, 1].")]

# training runs
SaveEvery = Annotated[int, typer.Option(help="Steps between checkpoints.")]
FloatPrecision = Annotated[str, typer.Option(help="32-true or bf16-mixed.")]
TrainingThreads = Annotated[int, typer.Option(help="CPU threads; 0 leaves torch's choice.")]
Accelerator = Annotated[str, typer.Option(help="auto, cpu, cuda, mps, ...")]
Devices = Annotated[str, typer.Option(help="How many, or auto.")]
Nodes = Annotated[int, typer.Option(help="Machines (torchrun sets its own).")]
