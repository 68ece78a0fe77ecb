"""``saccade export``: a model as an ONNX file, checked against the network that it came from."""

from __future__ import annotations

import json as json_module
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saccade.cli.cost import parse_size
from saccade.cli.options import EnlargementOfModel, named_as_file
from saccade.errors import InputError, SaccadeError, UsageError

if TYPE_CHECKING:
    from torch import nn

    from saccade.registry import ModelEntry

WEIGHTS = ("default", "official", "none")
LONGEST = 8192  # side of pictures of a graph of one size
TOLERANCE = 1e-4  # largest difference from the network that a graph may show; of logits, as a share of the largest


def export(
    model: Annotated[str, typer.Argument(metavar="NAME|FILE", help="A model's name, or a file of weights.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The .onnx file to write; default: the model's name, here.")
    ] = None,
    scale: EnlargementOfModel = None,
    weights: Annotated[
        str, typer.Option(help="Of a name: default (shipped), official (fetched), or none (random, to measure with).")
    ] = "default",
    size: Annotated[
        str | None, typer.Option(help="HxW of the pictures, for a graph of that one size.  [default: any size]")
    ] = None,
    sampler: Annotated[str | None, typer.Option(help="PCSR: the one sampler to export, heavy or light.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that exists.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Write a model as ONNX, fused, with free height and width, and compare it with the original in ONNX Runtime.

    The graph takes (1, C, h, w) float32: pictures in [0, 1] for super-resolution (C is 1, luma of BT.601, for ESPCN and
    SESR) and restoration, pictures standardised as training had them for backbones. What was built for pictures of one
    size gives a graph of that size.
    """
    from saccade import registry
    from saccade.io.files import check_target, temporary_beside

    if output is not None:
        _check_output(output, overwrite)
    sides = None if size is None else _sides(size)
    is_file = named_as_file(model)
    if is_file and weights != "default":
        raise UsageError(f"{model} is a file of weights itself; --weights goes with a model's name")
    network: Any = _from_file(Path(model), scale) if is_file else _by_name(model, scale, weights, sides)
    name, options = str(network.saccade_name), dict(network.saccade_options)
    entry = registry.entry(name)
    if not (entry.task in ("super-resolution", "classification") or "halo" in entry.facts):
        raise UsageError(
            f"{name} is for {entry.task} and has no fixed graph; backbones, super-resolution and the cleaners have one"
        )
    stem = name + (f"_x{options['scale']}" if "scale" in options else "")
    if entry.facts.get("routed"):
        network = _one_sampler(name, network, sampler)
        stem += f"_{sampler}"
    elif sampler is not None:
        raise UsageError(f"{name} has no samplers to choose from; --sampler is for PCSR models")
    if output is None:
        output = Path(f"{stem}.onnx")
        check_target(output, overwrite)
    classifies = entry.task == "classification"
    channels = getattr(network, "in_chans" if classifies else "in_channels", 3)
    example = (1, channels, *_sides_of(entry, network)) if classifies else (1, channels, 37, 53)
    shape = example if classifies and entry.facts.get("fixed_size") else None
    if sides is not None:
        shape = (1, channels, *sides)

    from saccade.nn.fuse import fuse
    from saccade.progress import bar
    from saccade.runtime import graphs

    temporary = temporary_beside(output)
    try:
        with bar(f"exporting {stem}", None):
            plain = network.collapse() if hasattr(network, "collapse") else fuse(network)
            names = ("pictures", "logits") if classifies else ("low", "high")
            graphs.export(plain, temporary, shape=shape, example=example if classifies else None, names=names)
            other = (1, channels, example[2] + 32, example[3] + 64)  # than what was traced
            difference = largest_difference(
                temporary, network, shape or (other if classifies else example), relative=classifies
            )
        if difference is not None and not difference <= TOLERANCE:
            raise SaccadeError(
                f"the exported graph of {name} differs from the network by {difference:.1e}: {output} was not written"
            )
        os.replace(temporary, output)
    finally:
        temporary.unlink(missing_ok=True)
    facts: dict[str, Any] = {"model": name, **options, "file": str(output)}
    facts["input"] = list(shape or (1, channels, "h", "w"))
    facts |= {"bytes": output.stat().st_size, "difference": difference}
    values = "in [0, 1]"
    if classifies:
        facts |= {"mean": list(network.mean), "std": list(network.std)}
        values = f"less the mean {_joined(network.mean)}, over the deviation {_joined(network.std)}"
    if json:
        typer.echo(json_module.dumps(facts, indent=1))
        return
    checked = "not checked: ONNX Runtime is not installed"
    if difference is not None:
        checked = f"differs from the network by at most {difference:.1e} in ONNX Runtime"
    typer.echo(f"{output}  {stem}, ({_joined(facts['input'])}) {values}, {facts['bytes']:,} bytes, {checked}")


def _joined(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values))


def _sides(text: str) -> tuple[int, int]:
    """``224x320`` as (height, width).

    Raises:
        UsageError: anything else, or sides above `LONGEST`.
    """
    sides = parse_size(text)
    if len(sides) != 2 or max(sides) > LONGEST:
        raise UsageError(f"--size of a graph is HxW with sides up to {LONGEST:,} pixels, not {text}")
    return sides[0], sides[1]


def _sides_of(entry: ModelEntry, network: Any) -> tuple[int, int]:
    """Height and width that a backbone was built for, or is usually shown."""
    own = network.saccade_options.get("img_size") or getattr(network, "size", None) or entry.facts.get("size", 224)
    return (int(own), int(own)) if isinstance(own, int) else (int(own[0]), int(own[1]))


def _check_output(output: Path, overwrite: bool) -> None:
    from saccade.io.files import check_target

    if output.suffix.lower() != ".onnx":
        raise UsageError(f"{output} is to be an ONNX file; end its name with .onnx")
    check_target(output, overwrite)


def _by_name(name: str, scale: int | None, weights: str, sides: tuple[int, int] | None) -> nn.Module:
    """The network of a name, built for pictures of ``sides`` where it is built for one size."""
    from saccade import registry

    if weights not in WEIGHTS:
        raise UsageError(f"--weights is {', '.join(WEIGHTS[:-1])} or {WEIGHTS[-1]}, not {weights!r}")
    entry = registry.entry(name)
    options: dict[str, Any] = {}
    if scale is not None:
        if not entry.scales:
            raise UsageError(f"{name} has no scale; leave --scale out")
        registry.check_scale(entry, scale)
        options["scale"] = scale
    if sides is not None and entry.facts.get("side_option"):
        if sides[0] != sides[1]:
            raise UsageError(f"{name} is built for square pictures, not for {sides[1]} x {sides[0]} px")
        options[entry.facts["side_option"]] = sides[0]
    if weights == "default" and entry.task == "classification" and registry.default_weights(name, **options) is None:
        raise UsageError(
            f"no weights ship for {name}: give a file of weights, --weights official to fetch the published ones, or "
            "--weights none for random ones (to measure with)"
        )
    return registry.create(name, weights=None if weights == "none" else weights, **options)


def _from_file(path: Path, scale: int | None) -> nn.Module:
    """The network of a file of weights.

    Raises:
        CheckpointError: a file that cannot be used. UsageError: it holds another enlargement than ``scale``.
    """
    from saccade.checkpoint import load

    network = load(path)
    options: Any = network.saccade_options
    found = options.get("scale")
    if scale is not None and scale != found:
        raise UsageError(f"{path.name} holds {network.saccade_name} for x{found}, you asked for x{scale}")
    return network


def _one_sampler(name: str, network: Any, which: str | None) -> nn.Module:
    if which not in ("heavy", "light"):
        asked = "" if which is None else f", not {which!r}"
        raise UsageError(
            f"{name} decides for every pixel what runs, which no fixed graph can hold; --sampler heavy or light "
            f"exports one of its samplers for all pixels{asked}"
        )
    made: nn.Module = network.one_sampler(which)
    return made


def largest_difference(
    graph: Path, network: Any, shape: tuple[int, ...] | None = None, seed: int = 0, *, relative: bool = False
) -> float | None:
    """Largest difference between a graph and its network on a random picture; None without ONNX Runtime.

    Args:
        graph: the ONNX file.
        network: what it came from.
        shape: (B, C, H, W) of the picture; None: 37 x 53 px.
        seed: of its numbers, uniform in [0, 1].
        relative: as a share of the largest value that the network gives (of 0.001 at the least): for logits, which
            have any size. Else absolute: for pictures in [0, 1].

    Raises:
        InputError: ONNX Runtime cannot run the graph.
    """
    import importlib.util

    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime
    import torch

    shape = shape or (1, getattr(network, "in_channels", 3), 37, 53)
    picture = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        expected = network.eval()(picture)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        made = session.run(None, {session.get_inputs()[0].name: picture.numpy()})[0]
    except Exception as error:  # its own exception classes have no common base that is public
        raise InputError(f"ONNX Runtime cannot run the exported graph: {str(error).splitlines()[0]}") from error
    if made.shape != tuple(expected.shape):
        raise InputError(f"the exported graph gives {made.shape} instead of {tuple(expected.shape)}")
    difference = (torch.from_numpy(made) - expected).abs().max()
    return float(difference / expected.abs().max().clamp(min=1e-3) if relative else difference)
