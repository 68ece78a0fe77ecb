"""The main job: enlarge pictures and clips of any size, fast, in bounded memory, with exact tiles.

    reader --rows--> band of rows + halo --tiles--> engine --tiles--> band of output --rows--> encoder thread
                     (two bands at a time; alpha goes its own way, by bicubic)

`Upscaler` holds a choice of model, scale, budget and backend and the engines it started; `upscale` is the one-line
face. Where OpenVINO or ONNX Runtime serve, torch is never imported.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from saccade import registry
from saccade.budget import check_budget
from saccade.checkpoint import read_header
from saccade.errors import CheckpointError, UsageError
from saccade.restoration.given import apply
from saccade.restoration.streamed import Report, Streamed
from saccade.runtime import engines
from saccade.runtime.devices import chosen_device
from saccade.runtime.graphs import cached_graph, can_export, graph_for, told_by
from saccade.runtime.threads import check_threads

if TYPE_CHECKING:
    from torch import nn


__all__ = ["Report", "Upscaler", "upscale"]

AUTO = ("sesr_m5", "sesr_m11", "sesr_xl")  # what `model="auto"` chooses from, by cost
BACKENDS = ("auto", "openvino", "onnxruntime", "torch")
PRECISIONS = ("float32", "int8")
CHROMA_HALO = 2  # input pixels that bicubic chroma and alpha see beyond their own place


@dataclass(frozen=True)
class _Choice:
    """A model that was settled on: a graph on disc, or a network in memory."""

    name: str
    scale: int
    halo: int
    macs: float  # per input pixel, all of the network
    weights: Path
    routed: bool
    facts: dict[str, Any]


class Upscaler(Streamed):
    """A model, ready to enlarge any number of pictures.

    Args:
        model: ``"auto"``, a registered name, or a file of weights (ours or a published checkpoint).
        scale: 2, 3 or 4; None for the file's own, else 2.
        budget: fraction of the full cost in (0, 1]. With ``"auto"`` it chooses the largest SESR whose MACs are within
            that fraction of SESR-XL's; models with a dial (PCSR) spend it per pixel.
        backend: ``"auto"`` (the fastest installed), ``"openvino"``, ``"onnxruntime"`` or ``"torch"``.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...
        max_memory: bound on the memory of the process, in bytes; bands of rows are made as high as fits.
        threads: CPU threads; 0 for all cores.
        precision: ``"float32"``, or ``"int8"`` for the inner convolutions (`runtime.int8`): faster on processors with
            VNNI, a little less exact; openvino only.

    Raises:
        UsageError: unknown model, backend or precision, a scale the model lacks, a budget outside (0, 1] or without a
            dial, int8 without openvino.
        CheckpointError: a file of weights that is unsafe, damaged or of another task.
        UnavailableError: the backend is not installed.
    """

    def __init__(
        self,
        model: str | Path = "auto",
        scale: int | None = None,
        *,
        budget: float | None = None,
        backend: str = "auto",
        device: str = "auto",
        max_memory: int = 1 << 30,
        threads: int = 0,
        precision: str = "float32",
    ) -> None:
        if backend not in BACKENDS:
            raise UsageError(f"no backend named {backend!r}; there are {', '.join(BACKENDS)}")
        if precision not in PRECISIONS:
            raise UsageError(f"no precision named {precision!r}; there are {', '.join(PRECISIONS)}")
        check_threads(threads)
        super().__init__()
        self.budget = None if budget is None else check_budget(budget)
        self.max_memory, self.threads = max_memory, threads
        self.device = chosen_device(device, backend)
        self.choice = self._choose(str(model), scale)
        self.scale, self.halo, self.grid = self.choice.scale, self.choice.halo, int(self.choice.facts.get("grid", 1))
        self.backend, self.precision = self._backend(backend), precision
        if precision == "int8" and self.backend != "openvino":
            raise UsageError(f"int8 runs with the openvino backend on a CPU, not with {self.backend} on {self.device}")
        if precision == "int8" and self.choice.facts.get("colour") == "rgb":
            raise UsageError(f"int8 is for networks on luma; {self.choice.name} works on RGB")
        self._engines: dict[tuple[int, str], engines.Engine] = {}

    # -- choosing

    def _choose(self, model: str, scale: int | None) -> _Choice:
        if model == "auto":
            return self._auto(2 if scale is None else scale)
        if os.sep in model or Path(model).suffix or (Path(model).is_file() and not registry.list_models(model)):
            return self._from_file(Path(model), scale)
        entry = registry.entry(model)
        if entry.task != "super-resolution":
            others = ", ".join(registry.list_models(task="super-resolution")[:6])
            raise UsageError(f"{model} is for {entry.task}; models that enlarge: {others}, ...")
        scale = entry.scales[0] if scale is None else scale
        registry.check_scale(entry, scale)
        weights = registry.default_weights(model, scale=scale)
        if weights is None:
            raise UsageError(f"no weights ship for {model} x{scale}; give a file, or one of: {_shipped()}")
        if self.budget is not None and not entry.facts.get("routed"):
            raise UsageError(f"{model} has no dial; use --model auto (it chooses by cost) or a PCSR model")
        return self._settle(model, {"scale": scale}, weights)

    def _auto(self, scale: int) -> _Choice:
        if scale not in (2, 3, 4):
            raise UsageError(f"the scale is 2, 3 or 4, not {scale}")
        names = [n for n in AUTO if registry.default_weights(n, scale=scale) is not None]
        choices = []
        for name in names:
            weights = registry.default_weights(name, scale=scale)
            assert weights is not None
            choices.append(self._settle(name, {"scale": scale}, weights))
        if not choices:
            raise UsageError(f"no weights ship for x{scale}; there are {_shipped()}")
        if self.budget is None:
            return choices[0]
        limit = self.budget * max(c.macs for c in choices)
        return max((c for c in choices if c.macs <= limit), key=lambda c: c.macs, default=choices[0])

    def _from_file(self, path: Path, scale: int | None) -> _Choice:
        if not path.is_file():
            raise CheckpointError(f"no file of weights at {path}")
        name, options = told_by(path) or (None, {})
        if name is None:
            network = self._loaded(path)
            name, options = str(network.saccade_name), dict(network.saccade_options)
        try:
            entry = registry.entry(str(name))
        except UsageError as error:
            raise CheckpointError(f"{path.name} was written for a model this version does not have: {error}") from error
        if entry.task != "super-resolution":
            raise CheckpointError(f"{path.name} holds {name}, a network for {entry.task}: it cannot enlarge pictures")
        found = options.get("scale", entry.scales[0])
        if found not in entry.scales:
            raise CheckpointError(f"{path.name} has a damaged header: {name} has no scale {str(found)[:20]!r}")
        if scale is not None and scale != found:
            able = ", ".join(
                n for n in registry.list_models(task="super-resolution") if scale in registry.entry(n).scales
            )
            raise UsageError(
                f"{path.name} holds {name} for x{found}, you asked for x{scale}; models for x{scale}: {able}"
            )
        if self.budget is not None and not entry.facts.get("routed"):
            raise UsageError(f"{name} has no dial; --budget goes with --model auto or a PCSR model")
        return self._settle(str(name), dict(options), path)

    def _settle(self, name: str, options: dict[str, Any], weights: Path) -> _Choice:
        entry = registry.entry(name)
        routed = bool(entry.facts.get("routed"))
        graph = weights if weights.parent == registry.WEIGHTS else cached_graph(weights)
        if routed or graph is None or entry.facts.get("colour") == "rgb":
            network = self._loaded(weights)
            halo, macs = network.halo, float(getattr(network, "kernels", 0) or _full_macs(network))
        else:
            halo, macs = _measure(graph.with_suffix(".safetensors"))
        scale = int(options.get("scale", entry.scales[0]))
        return _Choice(name, scale, max(halo, CHROMA_HALO), macs, weights, routed, dict(entry.facts))

    def _backend(self, asked: str) -> str:
        if self.choice.routed:
            if asked not in ("auto", "torch"):
                raise UsageError(
                    f"{self.choice.name} decides for every pixel what runs: it runs in torch, not in {asked}"
                )
            return "torch"
        if self.choice.facts.get("colour") == "rgb" and asked == "onnxruntime":
            raise UsageError(f"{self.choice.name} works on RGB: it runs in openvino or torch, not in {asked}")
        if self.device != "cpu":
            return "torch"
        if asked != "auto":
            return asked
        for name in engines.available_backends():
            if name == "onnxruntime" and self.choice.facts.get("colour") == "rgb":
                continue
            if name == "torch" or (cached_graph(self.choice.weights) or can_export()):
                return name
        return "torch"

    def engine(self, channels: int = 3, dtype: str = "uint8") -> engines.Engine:
        """The engine for pictures of that kind; started once."""
        key = (channels, dtype)
        if key not in self._engines:
            if self.backend == "torch":
                made: engines.Engine = engines.TorchEngine(self._prepared(), self.device, self.threads)
            else:
                facts = (graph_for(self.choice.weights), self.choice.scale, channels, dtype, self.threads)
                if self.backend == "openvino":
                    colour = str(self.choice.facts.get("colour", "luma"))
                    made = engines.OpenVINOEngine(*facts, self.precision, colour)
                else:
                    made = engines.ONNXRuntimeEngine(*facts)
            self._engines[key] = made
        return self._engines[key]

    def _prepared(self) -> nn.Module:
        network = self._loaded(self.choice.weights)
        if self.budget is not None and self.choice.routed:
            network.budget = self.budget
        made: nn.Module = network
        return made

    def agree(self, samples: Iterator[np.ndarray]) -> None:
        """Let the tiles of one picture share a threshold: the best pixels of the picture, not of every tile.

        Args:
            samples: (h, w, 1 or 3) integer patches spread over the picture.
        """
        if self.budget is None or not self.choice.routed:
            return
        import torch

        network = self._loaded(self.choice.weights)

        def tensors() -> Iterator[torch.Tensor]:
            for patch in samples:
                x = torch.from_numpy(np.repeat(patch, 3, 2) if patch.shape[2] == 1 else patch)
                yield (x.float() / float(np.iinfo(patch.dtype).max)).permute(2, 0, 1)[None].to(self.device)

        network.calibrate(tensors(), self.budget)

    @property
    def looks_first(self) -> bool:
        return self.budget is not None and self.choice.routed

    def facts(self) -> tuple[str, int, str, str, str]:
        return self.choice.name, self.choice.scale, self.backend, self.device, self.precision

    def account(self, report: Report) -> None:
        """Fill in what was spent."""
        pixels = report.size[0] * report.size[1] * report.frames
        report.macs = self.choice.macs * pixels
        if self.choice.routed:
            spent = sum((e.spent.take() for e in self._engines.values()), start=engines.Spent())  # type: ignore[attr-defined]
            report.macs = self.choice.macs * pixels * spent.fraction
            shares = {"light": 1 - spent.heavy_share, "heavy": spent.heavy_share}
            report.budget = {"asked": self.budget, "macs_fraction": spent.fraction, "shares": shares}
        elif self.budget is not None:
            largest = registry.default_weights(AUTO[-1], scale=self.choice.scale)
            full_macs = _measure(largest)[1] if largest else self.choice.macs
            report.budget = {"asked": self.budget, "macs_fraction": self.choice.macs / full_macs, "shares": {}}


def _measure(weights: Path) -> tuple[int, float]:
    """Halo in pixels and MACs per input pixel of a chain of stride-1 convolutions, from its file's header alone."""
    _, table = read_header(weights)
    kernels = [t["shape"] for t in table.values() if len(t["shape"]) == 4]
    return sum(shape[2] // 2 for shape in kernels), float(sum(np.prod(shape) for shape in kernels))


def _full_macs(network: Any) -> float:
    """MACs per input pixel of a routed network that spends all it can."""
    return float(network.cost(64, 64, 1.0)) / (64 * 64)


def _shipped() -> str:
    """The weights that ship with the library, in words."""
    return ", ".join(sorted(p.stem for p in registry.WEIGHTS.glob("*.safetensors"))) or "none"


def upscale(
    image: Any,
    scale: int | None = None,
    *,
    model: str | Path = "auto",
    budget: float | None = None,
    output: str | Path | None = None,
    backend: str = "auto",
    device: str = "auto",
    max_memory: int = 1 << 30,
    threads: int = 0,
    precision: str = "float32",
    overwrite: bool = False,
) -> Any:
    """Enlarge a picture.

    Args:
        image: a path, a PIL image, a numpy array (h, w[, 1, 2, 3 or 4]) of uint8, uint16 or floats in [0, 1], or a
            float tensor ([B,] 1 or 3, h, w) in [0, 1].
        scale: 2, 3 or 4; None for 2, or the scale of the file of weights.
        model, budget, backend, device, max_memory, threads, precision: see `Upscaler`.
        output: with a path as ``image``: the file to write; a `Report` is returned.
        overwrite: replace an existing ``output``.

    Returns:
        What came in: PIL image for a path or PIL image, array for an array, tensor for a tensor (computed in 16 bits),
        or a `Report` with ``output``.

    Raises:
        SaccadeError: see `Upscaler` and `Upscaler.picture`.
    """
    from saccade.restoration.clips import upscaler

    worker = upscaler(
        model,
        scale,
        budget=budget,
        backend=backend,
        device=device,
        max_memory=max_memory,
        threads=threads,
        precision=precision,
    )
    return apply(worker, image, output, overwrite=overwrite)
