"""Exported graphs: the ONNX file that stands beside a file of weights and borrows its numbers.

``sesr_m5_x2.onnx`` holds the structure (a few KB); its kernels are external data that point into
``sesr_m5_x2.safetensors``, so every number exists once. For weights that ship with the library the graph ships too;
for any other file it is exported once (that needs torch) and kept in the user's cache under the file's hash.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

from saccade import __version__, registry
from saccade.cache import cache_folder
from saccade.checkpoint import named_model, read_header, write_bytes
from saccade.errors import CheckpointError, InputError, UnavailableError

__all__ = ["cached_graph", "can_export", "export", "graph_for", "load_finite", "told_by"]


def can_export() -> bool:
    """Whether what `export` needs is installed; nothing is imported."""
    return all(importlib.util.find_spec(m) for m in ("torch", "onnx", "onnxscript"))


def export(
    model: Any,
    path: Path,
    weights: Path | None = None,
    *,
    shape: tuple[int, ...] | None = None,
    example: tuple[int, ...] | None = None,
    names: tuple[str, str] = ("low", "high"),
) -> None:
    """Write a network on (1, C, h, w) pictures as ONNX, with free height and width.

    Args:
        model: the network; ``in_channels`` says C (3 where it says nothing).
        path: the ONNX file.
        weights: a safetensors file in the same folder that holds the same tensors under the same names: the graph
            then points into it instead of repeating them.
        shape: of the input, for a graph of this one size.
        example: shape of an input that is traced, for a network that does not take pictures of any size.
        names: of what goes in and what comes out.

    Raises:
        UnavailableError: the ``onnx`` extra is not installed.
    """
    import logging

    import torch

    try:
        import onnx
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ImportError as error:
        raise UnavailableError.extra("exporting a graph", "onnx") from error
    traced = torch.zeros(shape or example or (1, getattr(model, "in_channels", 3), 24, 20))
    free: dict[int, Any] = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    if example is None:
        free = {2: torch.export.Dim("height", min=1, max=1 << 20), 3: torch.export.Dim("width", min=1, max=1 << 20)}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    was = model.training
    program = torch.onnx.export(
        model.eval(),
        (traced,),
        dynamo=True,
        dynamic_shapes=(free,) if shape is None else None,
        input_names=[names[0]],
        output_names=[names[1]],
        verbose=False,
    )
    model.train(was)
    assert program is not None
    graph = program.model_proto
    _undress(graph)
    if weights is not None:
        _borrow(graph, weights)
    onnx.checker.check_model(graph.SerializeToString()) if weights is None else None
    write_bytes(path, graph.SerializeToString())


def _undress(model: onnx.ModelProto) -> None:  # type: ignore[name-defined]  # noqa: F821
    """Remove the exporter's notes (source lines, tracing names): they make up most of a small file."""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for named in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        del named.metadata_props[:]
        named.doc_string = ""
    del model.graph.value_info[:], model.graph.metadata_props[:], model.metadata_props[:]


def _borrow(model: onnx.ModelProto, weights: Path) -> None:  # type: ignore[name-defined]  # noqa: F821
    """Let initialisers that stand in a safetensors file point there."""
    import onnx

    _, table = read_header(weights)
    start = 8 + int.from_bytes(weights.read_bytes()[:8], "little")
    for tensor in model.graph.initializer:
        kept = table.get(tensor.name)
        if kept is None or kept["dtype"] != "F32" or list(tensor.dims) != kept["shape"]:
            continue
        begin, end = kept["data_offsets"]
        tensor.ClearField("raw_data")
        tensor.ClearField("float_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        del tensor.external_data[:]
        for key, value in (("location", weights.name), ("offset", start + begin), ("length", end - begin)):
            tensor.external_data.add(key=key, value=str(value))


def told_by(weights: Path) -> tuple[str, dict[str, Any]] | None:
    """Name and options of the model that a file of ours, or a file seen before, holds; None if torch must look."""
    if weights.suffix == ".safetensors":
        metadata, _ = read_header(weights)
        if "saccade" in metadata:
            return named_model(metadata["saccade"], weights.name)
    note = _cached(weights) / "graph.json"
    try:
        return named_model(note.read_text(encoding="utf-8"), note.name)
    except (CheckpointError, OSError, ValueError):  # not there, or damaged: the weights themselves tell
        return None


def _cached(weights: Path) -> Path:
    """The cache folder of a file of weights, named by its hash and the version that made the graph."""
    try:
        with weights.open("rb") as f:
            digest = hashlib.file_digest(f, "sha256").hexdigest()[:32]
    except OSError as error:
        raise CheckpointError(f"cannot read {weights}: {error.strerror}") from error
    return cache_folder() / "graphs" / f"{digest}-{__version__}"


def cached_graph(weights: Path) -> Path | None:
    """The graph of a file of weights if it exists already: shipped beside it, or exported earlier."""
    beside = weights.with_suffix(".onnx")
    if weights.parent == registry.WEIGHTS and beside.is_file():
        return beside
    graph = _cached(weights) / "graph.onnx"
    return graph if graph.is_file() and graph.with_suffix(".json").is_file() else None


def check_finite(model: Any, weights: Path) -> None:
    """Refuse a network with parameters that are infinite or no numbers: it makes noise of every picture.

    Raises:
        CheckpointError: naming the first such tensor.
    """
    for name, values in model.named_parameters():
        if not bool(values.isfinite().all()):
            raise CheckpointError(f"{weights.name} holds values in {name} that are not finite (a diverged training?)")


def load_finite(weights: Path) -> Any:
    """The network of a file of weights, refused as `check_finite` does.

    Raises:
        CheckpointError: a file that is unsafe or damaged, or holds values that are not finite.
    """
    from saccade.checkpoint import load

    network = load(weights)
    check_finite(network, weights)
    return network


def graph_for(weights: Path) -> Path:
    """The graph of a file of weights, exported first if need be.

    Raises:
        CheckpointError: an unreadable or unknown file, values that are not finite, or a model that decides per pixel
            what runs (PCSR).
        UnavailableError: an export is needed and its extra is missing.
    """
    found = cached_graph(weights)
    if found is not None:
        return found
    from saccade.checkpoint import load, save

    model: Any = load(weights)
    if registry.entry(str(model.saccade_name)).facts.get("routed"):
        raise CheckpointError(f"{weights.name} decides for every pixel what runs: it has no fixed graph")
    folder = _cached(weights)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot create {folder}: {error.strerror}; set SACCADE_CACHE to a writable folder") from error
    check_finite(model, weights)
    model = model.collapse() if hasattr(model, "collapse") else model
    save(model, folder / "graph.safetensors")
    export(model, folder / "graph.onnx", folder / "graph.safetensors")
    told = {"model": model.saccade_name, "options": model.saccade_options}
    write_bytes(folder / "graph.json", json.dumps(told).encode())
    return folder / "graph.onnx"
