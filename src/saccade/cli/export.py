"""``saccade export``: a model as an ONNX file, checked against the network that it came from."""

from __future__ import annotations

import json as json_module
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saccade.cli.options import EnlargementOfModel
from saccade.errors import InputError, SaccadeError, UsageError

if TYPE_CHECKING:
    from torch import nn

TOLERANCE = 1e-4  # largest difference from the network that an exported graph may show, for values in [0, 1]


def export(
    model: Annotated[str, typer.Argument(metavar="NAME|FILE", help="A model's name, or a file of weights.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The ONNX file.  [default: NAME_xSCALE.onnx here]")
    ] = None,
    scale: EnlargementOfModel = None,
    sampler: Annotated[str | None, typer.Option(help="PCSR: the one sampler to export, heavy or light.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that exists.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Write a model as ONNX with free height and width, and compare it with the original in ONNX Runtime.

    The graph takes (1, C, h, w) float32 in [0, 1]: C is 1 (luma of BT.601) for ESPCN and SESR, 3 (RGB) for PCSR.
    """
    from saccade import registry
    from saccade.io.files import check_target, temporary_beside

    if output is not None:
        _check_output(output, overwrite)
    is_file = os.sep in model or Path(model).suffix != "" or Path(model).exists()
    network: Any = _from_file(Path(model), scale) if is_file else _by_name(model, scale)
    name, options = str(network.saccade_name), dict(network.saccade_options)
    entry = registry.entry(name)
    if entry.task != "super-resolution":
        raise UsageError(f"{name} is for {entry.task}; super-resolution models are exported")
    stem = name + (f"_x{options['scale']}" if "scale" in options else "")
    if entry.facts.get("routed"):
        network = _one_sampler(name, network, sampler)
        stem += f"_{sampler}"
    elif sampler is not None:
        raise UsageError(f"{name} has no samplers to choose from; --sampler is for PCSR models")
    if output is None:
        output = Path(f"{stem}.onnx")
        check_target(output, overwrite)
    network = network.collapse() if hasattr(network, "collapse") else network

    from saccade.runtime import graphs

    temporary = temporary_beside(output)
    try:
        graphs.export(network, temporary)
        difference = largest_difference(temporary, network)
        if difference is not None and not difference <= TOLERANCE:
            raise SaccadeError(
                f"the exported graph of {name} differs from the network by {difference:.1e}: {output} was not written"
            )
        os.replace(temporary, output)
    finally:
        temporary.unlink(missing_ok=True)
    facts = {"model": name, **options, "file": str(output), "bytes": output.stat().st_size, "difference": difference}
    if json:
        typer.echo(json_module.dumps(facts, indent=1))
        return
    checked = "not checked: ONNX Runtime is not installed"
    if difference is not None:
        checked = f"differs from the network by at most {difference:.1e} in ONNX Runtime"
    typer.echo(f"{output}  {stem}, (1, {network.in_channels}, h, w) in [0, 1], {facts['bytes']:,} bytes, {checked}")


def _check_output(output: Path, overwrite: bool) -> None:
    from saccade.io.files import check_target

    if output.suffix.lower() != ".onnx":
        raise UsageError(f"{output} is to be an ONNX file; end its name with .onnx")
    check_target(output, overwrite)


def _by_name(name: str, scale: int | None) -> nn.Module:
    from saccade import registry

    entry = registry.entry(name)
    if scale is None:
        return registry.create(name)
    if not entry.scales:
        raise UsageError(f"{name} has no scale; leave --scale out")
    registry.check_scale(entry, scale)
    return registry.create(name, scale=scale)


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


def largest_difference(graph: Path, network: Any, seed: int = 0) -> float | None:
    """Largest difference between a graph and its network on a random picture; None without ONNX Runtime.

    Raises:
        InputError: ONNX Runtime cannot run the graph.
    """
    import importlib.util

    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime
    import torch

    picture = torch.rand(1, network.in_channels, 37, 53, generator=torch.Generator().manual_seed(seed))
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
    return float((torch.from_numpy(made) - expected).abs().max())
