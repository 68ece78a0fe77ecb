"""A network made as fast as this machine runs it: fused, in the layout that its convolutions like, or in OpenVINO.

    model = saccade.accelerate(saccade.create("shvit_s4"), (1, 3, 256, 256))
    logits = model(x)

On a processor a graph of one size runs fastest in OpenVINO (extra ``onnx``), in float32; on an accelerator, or where
OpenVINO is missing or a network has no graph, the fused network runs in PyTorch, channels last.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from saccade.errors import InputError, UnavailableError, UsageError
from saccade.nn.fuse import fuse
from saccade.runtime.engines import load_openvino

__all__ = ["Accelerated", "accelerate"]

BACKENDS = ("auto", "openvino", "torch")


class Accelerated:
    """A network for inference. Called with a batch it returns what the network returns, without gradients.

    Attributes:
        backend: ``"openvino"`` or ``"torch"``.
        parameters: of the fused network.
        shape: of the input, where the graph is of one size; else None.
    """

    def __init__(self, model: nn.Module, shape: Sequence[int] | None, backend: str, threads: int = 0) -> None:
        self.backend = backend
        self.shape = tuple(shape) if shape is not None and backend == "openvino" else None
        self._model = fuse(model).to(memory_format=torch.channels_last)
        self.parameters = sum(p.numel() for p in self._model.parameters())
        self._graph = _openvino_graph(self._model, self.shape, threads) if self.shape is not None else None

    def __call__(self, x: Tensor) -> Any:
        if self._graph is None:
            with torch.inference_mode():
                return self._model(x.contiguous(memory_format=torch.channels_last))
        if tuple(x.shape) != self.shape:
            raise InputError(f"this graph was made for {self.shape}, not {tuple(x.shape)}: accelerate it for that size")
        found = self._graph(x.detach().contiguous().numpy())
        made = [torch.from_numpy(found[i]) for i in range(len(found))]
        return made[0] if len(made) == 1 else made


def accelerate(
    model: nn.Module, shape: Sequence[int] | None = None, *, backend: str = "auto", threads: int = 0
) -> Accelerated:
    """Make a network ready for inference.

    Args:
        model: in evaluation mode; left as it is.
        shape: (B, C, H, W) of what it will be given; without it no graph is made.
        backend: ``"openvino"``, ``"torch"``, or ``"auto"``: OpenVINO where there is a shape, the network is on the
            processor, has a graph, and the extra is installed.
        threads: of OpenVINO, 0 for all cores; torch has its own setting.

    Raises:
        UsageError: an unknown backend, OpenVINO without a shape, or a model in training mode.
        UnavailableError: OpenVINO was asked for by name and is not installed.
    """
    if backend not in BACKENDS:
        raise UsageError(f"no backend named {backend!r}; there are {', '.join(BACKENDS)}")
    if backend == "openvino" and shape is None:
        raise UsageError("OpenVINO compiles for one size: give the shape (B, C, H, W)")
    chosen = backend
    if backend == "auto":
        first = next(model.parameters(), torch.empty(0))
        fits = shape is not None and first.device.type == "cpu" and getattr(model, "has_graph", True)
        chosen = "openvino" if fits else "torch"
    try:
        return Accelerated(model, shape, chosen, threads)
    except UnavailableError:
        if backend == "openvino":
            raise
        return Accelerated(model, shape, "torch", threads)


def _openvino_graph(model: nn.Module, shape: Sequence[int], threads: int) -> Any:
    import logging

    openvino = load_openvino()
    try:
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ImportError as error:
        raise UnavailableError.extra("exporting a graph", "onnx") from error

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    core = openvino.Core()
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    with tempfile.TemporaryDirectory(prefix="saccade-") as folder:
        path = Path(folder) / "graph.onnx"
        program = torch.onnx.export(model, (torch.zeros(tuple(shape)),), dynamo=True, verbose=False)
        assert program is not None
        program.save(str(path))
        return core.compile_model(core.read_model(str(path)), "CPU", settings)
