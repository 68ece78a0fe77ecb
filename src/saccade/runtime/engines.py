"""Engines: what enlarges tiles. One face - `submit` a tile, be called back - over OpenVINO, ONNX Runtime and torch.

    tile (h, w, C) uint8/uint16 --> engine --> (scale*h, scale*w, C) of the same dtype

OpenVINO runs one graph from integer pixels to integer pixels (colour, network, bicubic chroma, rounding fused), one
tile per core at a time: tiles stay in a core's cache, and no core waits for another. ONNX Runtime runs the network
alone with the colour in numpy; torch runs whatever has no fixed graph.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from saccade.errors import UnavailableError
from saccade.runtime.colour import enlarge_with_luma, mirrored
from saccade.runtime.fused import pixels_to_pixels, rgb_pixels

__all__ = ["Engine", "ONNXRuntimeEngine", "OpenVINOEngine", "Spent", "TorchEngine", "available_backends", "cores"]

LARGE = (544, 1024)  # rows and columns of a tile for networks that see far

Done = Callable[[np.ndarray], None]


class Engine(Protocol):
    """Enlarges tiles."""

    backend: str
    threads: int
    tile: tuple[int, int]
    """Rows and columns of a core that this engine likes best, in input pixels."""
    parallel: int
    """Tiles that it works on at a time."""

    def submit(self, tile: np.ndarray, done: Done) -> None:
        """Enlarge (h, w, C) integers; ``done`` gets the result, perhaps in another thread, perhaps later."""

    def drain(self) -> None:
        """Wait until every ``done`` has returned; raise what one of them raised."""


def cores() -> int:
    """Processors that this process may use; ``OMP_NUM_THREADS`` limits them further."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return min(allowed, int(wanted)) if wanted.isdigit() and int(wanted) > 0 else allowed


def available_backends() -> list[str]:
    """Installed backends for fixed graphs on a CPU, fastest first (measured: docs, guide "Upscale")."""
    names = {"openvino": "openvino", "onnxruntime": "onnxruntime", "torch": "torch"}
    return [name for name, module in names.items() if importlib.util.find_spec(module) is not None]


def load_openvino() -> Any:
    """OpenVINO without its model converters (and their telemetry client): 0.2 s less at start."""
    if "openvino" in sys.modules:
        return sys.modules["openvino"]
    if importlib.util.find_spec("openvino") is None:
        raise UnavailableError.extra("the openvino backend", "onnx")
    converters = "openvino.tools.ovc"
    blocked = converters not in sys.modules
    if blocked:
        sys.modules[converters] = None  # type: ignore[assignment]
    try:
        import openvino
    finally:
        if blocked:
            sys.modules.pop(converters, None)
    return openvino


class OpenVINOEngine:
    """One graph from integer pixels to integer pixels, tiles in parallel, one thread each.

    Args:
        graph: ONNX file of a luma network, or of an RGB network that keeps the size.
        scale: its enlargement.
        channels: 1 (grey) or 3 (RGB).
        dtype: ``uint8`` or ``uint16``.
        threads: 0 for all cores; as many tiles at a time.
        precision: ``float32``, or ``int8`` for the inner convolutions (`runtime.int8`).
        colour: ``luma`` or ``rgb``, what the network takes. RGB networks see far: their tiles are large and run one
            after the other, each on all threads.
    """

    backend = "openvino"
    tile = (270, 480)  # of 135 x 320 to 360 x 640 the best: larger ones repeat less halo, smaller ones stay in cache

    def __init__(
        self,
        graph: Path,
        scale: int,
        channels: int,
        dtype: str,
        threads: int = 0,
        precision: str = "float32",
        colour: str = "luma",
    ) -> None:
        ov = load_openvino()
        self.threads = threads or cores()
        self.parallel = self.threads if colour == "luma" else 1
        core = ov.Core()
        network = core.read_model(str(graph))
        if precision == "int8":
            from saccade.runtime.int8 import quantise

            quantise(ov, network)
        if colour == "luma":
            model = pixels_to_pixels(ov, network, scale, channels, np.dtype(dtype))
        else:
            model, self.tile = rgb_pixels(ov, network, channels, np.dtype(dtype)), LARGE
        self._mirrors = colour == "luma" and channels == 3
        options = {
            "INFERENCE_PRECISION_HINT": "f32",
            "NUM_STREAMS": self.parallel,
            "INFERENCE_NUM_THREADS": self.threads,
        }
        compiled = core.compile_model(model, "CPU", options)
        self._queue = ov.AsyncInferQueue(compiled, self.parallel)
        self._queue.set_callback(self._finished)
        self._error: BaseException | None = None

    def _finished(self, request: Any, work: tuple[object, Done]) -> None:
        try:
            work[1](request.get_output_tensor(0).data[0])
        except BaseException as error:  # raised again in drain: an exception must not leave a native thread
            self._error = self._error or error

    def submit(self, tile: np.ndarray, done: Done) -> None:
        tile = np.ascontiguousarray(tile)
        inputs = {"pixels": tile[None]}
        if self._mirrors:
            inputs |= {"rows": mirrored(tile.shape[0]), "columns": mirrored(tile.shape[1])}
        self._queue.start_async(inputs, ((tile, inputs), done), share_inputs=True)
        if self._error:
            self.drain()

    def drain(self) -> None:
        self._queue.wait_all()
        if self._error:
            error, self._error = self._error, None
            raise error


class ONNXRuntimeEngine:
    """The luma network by ONNX Runtime, one tile per thread; colour in numpy."""

    backend = "onnxruntime"
    tile = (180, 320)

    def __init__(self, graph: Path, scale: int, channels: int, dtype: str, threads: int = 0) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise UnavailableError.extra("the onnxruntime backend", "onnx") from error
        self.threads = self.parallel = threads or cores()
        self.scale = scale
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        self._pool = _Pool(self.threads)

    def _network(self, luma: np.ndarray) -> np.ndarray:
        made: np.ndarray = self._session.run(None, {"low": np.ascontiguousarray(luma)})[0]
        return made

    def submit(self, tile: np.ndarray, done: Done) -> None:
        self._pool.submit(lambda: done(enlarge_with_luma(tile, self.scale, self._network)))

    def drain(self) -> None:
        self._pool.drain()


class _Pool:
    """A bounded pool of threads: at most two tasks per thread wait."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads)
        self._limit, self._waiting = 2 * threads, []  # type: ignore[var-annotated]

    def submit(self, task: Callable[[], None]) -> None:
        while len(self._waiting) >= self._limit:
            self._waiting.pop(0).result()
        self._waiting.append(self._pool.submit(task))

    def drain(self) -> None:
        waiting, self._waiting = self._waiting, []
        for task in waiting:
            task.result()


@dataclass
class Spent:
    """What a network that routes pixels has executed, over any number of tiles."""

    pixels: int = 0
    heavy: int = 0
    macs: int = 0
    full_macs: int = 0

    def __add__(self, other: Spent) -> Spent:
        mine, its = astuple(self), astuple(other)
        return Spent(*(a + b for a, b in zip(mine, its, strict=True)))

    def take(self) -> Spent:
        """The sums so far; they start again at zero."""
        taken = replace(self)
        self.pixels = self.heavy = self.macs = self.full_macs = 0
        return taken

    @property
    def heavy_share(self) -> float:
        """Share of the pixels that went to the heavy sampler."""
        return self.heavy / self.pixels if self.pixels else 0.0

    @property
    def fraction(self) -> float:
        """Executed over full MACs."""
        return self.macs / self.full_macs if self.full_macs else 1.0


class TorchEngine:
    """Any network of the library in eager torch, ``channels_last``; the whole of a device for one tile at a time.

    Args:
        model: luma or RGB network with ``scale`` and ``colour``.
        device: e.g. ``cpu``, ``cuda``.
        threads: CPU threads; 0 leaves torch's choice.
    """

    backend = "torch"
    parallel = 1

    def __init__(self, model: Any, device: str = "cpu", threads: int = 0) -> None:
        import torch

        if threads:
            torch.set_num_threads(threads)
        self.threads = torch.get_num_threads()
        self.tile = (256, 512) if device == "cpu" else (1024, 1024)
        self.model = model.eval().to(device).to(memory_format=torch.channels_last)
        self.device, self.scale = device, int(getattr(model, "scale", 1))
        self.colour = getattr(model, "colour", "rgb")
        self.spent = Spent()

    def _network(self, x: np.ndarray) -> np.ndarray:
        import torch

        with torch.inference_mode():
            given = torch.from_numpy(np.ascontiguousarray(x)).to(self.device)
            made = self.model(given.contiguous(memory_format=torch.channels_last))
            report = getattr(self.model, "last_report", None)
            if report is not None:
                self.spent.pixels += report.pixels
                self.spent.heavy += report.heavy
                self.spent.macs += report.macs
                self.spent.full_macs += report.full_macs
            out: np.ndarray = made.float().cpu().numpy()
            return out

    def submit(self, tile: np.ndarray, done: Done) -> None:
        if self.colour == "luma":
            done(enlarge_with_luma(tile, self.scale, self._network))
            return
        full = np.float32(np.iinfo(tile.dtype).max)
        x = np.repeat(tile, 3, 2) if tile.shape[2] == 1 else tile
        made = self._network((x.astype(np.float32) / full).transpose(2, 0, 1)[None])[0].transpose(1, 2, 0)
        if tile.shape[2] == 1:
            made = made.mean(2, keepdims=True)
        done(np.rint((made * full).clip(0, full)).astype(tile.dtype))

    def drain(self) -> None:
        return
