"""``saccade cost``: what a model costs on an input of a given size."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saccade.cli.options import FiguresAsJson, named_as_file
from saccade.errors import InputError, UsageError

if TYPE_CHECKING:
    from torch import nn

_SIZE = re.compile(r"[1-9]\d*(?:[xX×][1-9]\d*){1,3}")


def cost(
    name: Annotated[
        str, typer.Argument(metavar="NAME|FILE", help="A model's name (saccade list shows all), or a file of weights.")
    ],
    size: Annotated[str, typer.Option(help="Of the input: HxW, CxHxW or BxCxHxW, e.g. 3x1080x1920.")],
    scale: Annotated[int | None, typer.Option(help="Enlargement, for super-resolution.")] = None,
    budget: Annotated[float | None, typer.Option(help="Setting of the model's dial, in (0, 1].")] = None,
    meta: Annotated[bool, typer.Option("--meta", help="Count by shapes alone: nothing is computed or timed.")] = False,
    threads: Annotated[int | None, typer.Option(help="Processor threads of the timed runs.")] = None,
    repeats: Annotated[int, typer.Option(help="Timed runs, of which the median is shown.")] = 5,
    device: Annotated[str, typer.Option(help="Where to run, e.g. cpu or cuda.")] = "cpu",
    as_json: FiguresAsJson = False,
) -> None:
    """Count a model's parameters, MACs, activations and peak memory on one input, and time it."""
    sides = parse_size(size)
    import torch

    from saccade.budget import check_budget, has_budget
    from saccade.checkpoint import load
    from saccade.cost import cost as count
    from saccade.registry import create, shaped

    options = {} if scale is None else {"scale": scale}
    model: Any
    if named_as_file(name):
        if options:
            raise UsageError(f"{name} tells its enlargement itself; leave --scale out")
        model = load(name)
    else:
        model = shaped(name, **options) if meta else create(name, weights=None, **options)
    if budget is not None:
        if not has_budget(model):
            raise UsageError(f"{name} has no budget dial")
        model.budget = check_budget(budget)
    shape = input_shape(name, model, sides)
    if meta:
        figures = count(model.to("meta"), torch.empty(shape, device="meta"))
    else:
        try:
            model = model.to(device)
        except (RuntimeError, AssertionError) as error:  # what torch raises for a device that is not there
            raise UsageError(f"cannot use the device {device!r}: {str(error).splitlines()[0]}") from error
        try:
            x = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(device)
            figures = count(model, x, repeats=repeats, threads=threads)
        except RuntimeError as error:
            if "memory" not in str(error):
                raise
            raise InputError(f"{name} at {size} does not fit in memory; --meta counts it without computing") from error
    if as_json:
        import json

        facts: dict[str, Any] = {"model": name, **options, "input": list(shape)}
        typer.echo(json.dumps(facts | ({"budget": budget} if budget is not None else {}) | figures.to_dict(), indent=2))
    else:
        typer.echo(f"{name}{'' if scale is None else f' x{scale}'} on {'x'.join(map(str, shape))}: {figures}")


def parse_size(size: str) -> tuple[int, ...]:
    """``"3x1080x1920"`` -> (3, 1080, 1920); two to four positive numbers.

    Raises:
        UsageError: anything else.
    """
    if not _SIZE.fullmatch(size):
        raise UsageError(f"--size takes HxW, CxHxW or BxCxHxW, e.g. 3x1080x1920, not {size!r}")
    return tuple(int(side) for side in re.split("[xX×]", size))


def input_shape(name: str, model: nn.Module, sides: tuple[int, ...]) -> tuple[int, int, int, int]:
    """(B, C, H, W) for a model from two to four sides; a picture in RGB reaches a luma network as its one channel.

    Raises:
        UsageError: the channels are not the model's.
    """
    takes = getattr(model, "in_channels", None)
    batch, channels = ((1, 1, *sides)[-4], sides[-3] if len(sides) > 2 else takes or 3)
    if channels == 3 and takes == 1 and getattr(model, "colour", None) == "luma":
        channels = 1
    if takes is not None and channels != takes:
        given = "x".join(map(str, sides))
        want = "x".join(map(str, (takes, *sides[-2:])))
        raise UsageError(
            f"{name} takes {takes} channel{'s' * (takes > 1)}, --size {given} has {channels}; ask for {want}"
        )
    return batch, channels, sides[-2], sides[-1]
