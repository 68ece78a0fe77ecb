"""Repair pictures and clips of any size: noise, JPEG blocks, weather, known blur; in bounded memory.

    task -- network -- engine -- [deep optimal transport] -- picture

`Restorer` holds a choice of network and how it runs; `restore` is the one-line face. The networks for noise and JPEG
see a limited surrounding, so tiles are exact, and they run as fixed graphs where OpenVINO is installed, without torch.
Networks whose attention is global (Histoformer, Serpent) run in torch on the whole picture where memory allows it,
else on overlapping tiles, which is an approximation and said in the report's notices.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from saccade import registry
from saccade.budget import check_budget
from saccade.errors import CheckpointError, UsageError
from saccade.restoration.given import apply
from saccade.restoration.streamed import Report, Streamed
from saccade.runtime import engines
from saccade.runtime.devices import chosen_device
from saccade.runtime.graphs import cached_graph, can_export, graph_for, told_by
from saccade.runtime.stream import RESIDENT, Picture, band_rows
from saccade.runtime.threads import check_threads

if TYPE_CHECKING:
    from torch import nn

__all__ = ["TASKS", "Restorer", "restore"]

#: task: registered names that ship weights for it, cheapest first
TASKS = {
    "auto": ("cleaner_small", "cleaner"),
    "denoise": ("cleaner_small", "cleaner"),
    "jpeg": ("cleaner_small", "cleaner"),
    "weather": ("histoformer_tiny",),
    "deblur": (),
}
BACKENDS = ("auto", "openvino", "torch")
GLOBAL_HALO = 64  # pixels of surrounding that tiles of a global network get: enough to hide seams, not to be exact


@dataclass(frozen=True)
class _Choice:
    """A network that was settled on."""

    name: str
    weights: Path
    halo: int
    grid: int
    macs: float  # per pixel; 0 where nobody counted
    fixed: bool  # runs as a fixed graph, tiles are exact


class _Deblurring:
    """A `Deblurrer` as an engine: the picture as a whole, for what is blurred depends on the place."""

    backend = "torch"
    parallel = 1
    tile = (1 << 30, 1 << 30)

    def __init__(self, deblurrer: Any, threads: int) -> None:
        import torch

        if threads:
            torch.set_num_threads(threads)
        self.deblurrer, self.threads = deblurrer, torch.get_num_threads()
        self._level: float | None = None
        self._holds = False

    @contextmanager
    def one_level(self) -> Iterator[None]:
        """Inside: all pictures get the level that is chosen for the first."""
        self._holds = True
        try:
            yield
        finally:
            self._holds, self._level = False, None

    def submit(self, tile: np.ndarray, done: engines.Done) -> None:
        colours = self.deblurrer.psfs.shape[-1]
        grey = tile.shape[2] == 1 and (colours == 3 or self.deblurrer.model is not None)
        made = self.deblurrer.array(np.repeat(tile, 3, 2) if grey else tile, self._level)
        if self._holds:
            self._level = self.deblurrer.level
        done(np.rint(made.mean(2, keepdims=True)).astype(tile.dtype) if grey else made)

    def drain(self) -> None:
        return


class Restorer(Streamed):
    """A restoration network, ready for any number of pictures.

    Args:
        task: ``auto`` (noise and JPEG), ``denoise``, ``jpeg``, ``weather`` (rain, snow, drops on the lens), or
            ``deblur`` (give ``psf``, or a ``model`` trained on blur).
        model: ``"auto"``, a registered name, or a file of weights (ours or a published checkpoint).
        budget: fraction of the full cost in (0, 1]: among shipped networks the largest within that fraction of the
            largest one's MACs, None for the smallest; for a model with a dial of its own, that dial.
        perception: 0 for the network's own output (least error), 1 for the statistics of natural pictures (sharper,
            more error), between them a mixture: deep optimal transport. None leaves it out.
        transport: file of statistics for ``perception``; None for what ships with the model.
        vae: the autoencoder that those statistics were taken with, where it was neither pixels nor ``vae_small``: a
            folder that diffusers wrote, or what `restoration.dot.Latent` takes.
        psf: point spread functions of the lens, for ``deblur``: an array or a ``.npy`` file (h, w[, 3]), or a grid of
            cells (rows, columns, h, w, 3).
        noise_level: with ``psf`` and no model, K of the Wiener filter: larger is more cautious. None measures it.
        linear: with ``psf``: pictures hold linear light already; else they are taken as sRGB.
        backend: ``"auto"`` (OpenVINO where the network allows it), ``"openvino"`` or ``"torch"``.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ...
        max_memory: bound on the memory of the process, in bytes.
        threads: CPU threads; 0 for all cores.

    Raises:
        UsageError: unknown task, model or backend; a task without shipped weights and no model; options that do not
            go together.
        CheckpointError: a file of weights that is unsafe, damaged or of another task.
    """

    scale = 1

    def __init__(
        self,
        task: str = "auto",
        model: str | Path = "auto",
        *,
        budget: float | None = None,
        perception: float | None = None,
        transport: str | Path | None = None,
        vae: Any = None,
        psf: Any = None,
        noise_level: float | None = None,
        linear: bool = False,
        backend: str = "auto",
        device: str = "auto",
        max_memory: int = 1 << 30,
        threads: int = 0,
    ) -> None:
        if task not in TASKS:
            raise UsageError(f"no task named {task!r}; there are {', '.join(TASKS)}")
        if backend not in BACKENDS:
            raise UsageError(f"no backend named {backend!r}; there are {', '.join(BACKENDS)}")
        check_threads(threads)
        if perception is not None and not (math.isfinite(perception) and 0 <= perception <= 1):
            raise UsageError(f"perception lies between 0 and 1, not {perception}")
        if perception is None and not (transport is None and vae is None):
            raise UsageError("statistics and an autoencoder of transport go with a perception (--perception 0..1)")
        super().__init__()
        self.budget = None if budget is None else check_budget(budget)
        self.task, self.perception = task, perception
        self.max_memory, self.threads = max_memory, threads
        self.device = chosen_device(device, backend)
        if psf is None and (noise_level is not None or linear):
            raise UsageError("a noise level and linear light are of deblurring with a known blur (--psf FILE)")
        self._deblurring = (
            None if psf is None else _Deblurring(self._with_psf(psf, str(model), noise_level, linear), threads)
        )
        self.choice = self._choose(task, str(model)) if self._deblurring is None else _known_blur(str(model))
        self.halo, self.grid = self.choice.halo, self.choice.grid
        self.backend = self._backend(backend)
        self._transport = None if perception is None else self._transported(transport, vae)
        if self._transport is not None:
            own = self._transport.halo
            self.halo += GLOBAL_HALO if own is None else int(own)
            self.grid = math.lcm(self.grid, self._transport.step)
        self._engines: dict[tuple[int, str], engines.Engine] = {}

    # -- choosing

    def _with_psf(self, psf: Any, model: str, noise_level: float | None, linear: bool) -> Any:
        """What takes a known blur off.

        Raises:
            UsageError: another task, or an option that does not go with it.
        """
        if self.task not in ("auto", "deblur"):
            raise UsageError(f"a point spread function goes with --task deblur, not with {self.task}")
        if self.perception is not None:
            raise UsageError("--perception does not go with --psf")
        if noise_level is not None and model != "auto":
            raise UsageError("a noise level is of the Wiener filter alone; a network reads its own bank of them")
        from saccade.restoration.metalens_former.deblur import Deblurrer

        made = Deblurrer(psf, None if model == "auto" else model, noise_level, linear=linear, device=self.device)
        if self.budget is not None:
            made.budget = self.budget
        return made

    def _choose(self, task: str, model: str) -> _Choice:
        if model == "auto":
            return self._auto(task)
        if os.sep in model or Path(model).suffix or (Path(model).is_file() and not registry.list_models(model)):
            return self._from_file(Path(model))
        entry = registry.entry(model)
        if entry.task != "restoration":
            others = ", ".join(registry.list_models(task="restoration")[:6])
            raise UsageError(f"{model} is for {entry.task}; models that restore: {others}, ...")
        weights = registry.default_weights(model)
        if weights is None:
            raise UsageError(f"no weights ship for {model}; give a file, or one of: {', '.join(_shipped())}")
        return self._with_dial(self._settle(model, weights))

    def _auto(self, task: str) -> _Choice:
        found = [(n, w) for n in TASKS[task] if (w := registry.default_weights(n)) is not None]
        if not found:
            told = "give --psf with the lens' point spread function, or " if task == "deblur" else ""
            raise UsageError(f"no weights ship for {task}: {told}name a file of weights with --model")
        choices = [self._settle(*one) for one in found]
        if self.budget is None:
            return choices[0]
        if len(choices) == 1 and self.budget < 1:
            return self._with_dial(choices[0])
        limit = self.budget * max(c.macs for c in choices)
        return max((c for c in choices if c.macs <= limit), key=lambda c: c.macs, default=choices[0])

    def _from_file(self, path: Path) -> _Choice:
        if not path.is_file():
            raise CheckpointError(f"no file of weights at {path}")
        name, _ = told_by(path) or (None, {})
        if name is None:
            name = str(self._loaded(path).saccade_name)
        try:
            entry = registry.entry(name)
        except UsageError as error:
            raise CheckpointError(f"{path.name} was written for a model this version does not have: {error}") from error
        if entry.task != "restoration":
            raise CheckpointError(f"{path.name} holds {name}, a network for {entry.task}: it restores no pictures")
        return self._with_dial(self._settle(name, path))

    def _with_dial(self, choice: _Choice) -> _Choice:
        """The network that the user named, if it has a dial where a budget is asked for.

        Raises:
            UsageError: it has none.
        """
        if self.budget is not None and (choice.fixed or not hasattr(self._loaded(choice.weights), "budget")):
            raise UsageError(
                f"{choice.name} has no dial; --budget goes with a network that has one, or with a task for which "
                "several ship (auto, denoise, jpeg)"
            )
        return choice

    def _settle(self, name: str, weights: Path) -> _Choice:
        facts = registry.entry(name).facts
        if facts.get("needs") == "psf":
            raise UsageError(f"{name} needs the lens' point spread function: --task deblur --psf FILE --model {name}")
        fixed = "halo" in facts
        if fixed:
            return _Choice(name, weights, int(facts["halo"]), int(facts["grid"]), float(facts["macs"]), True)
        network = self._loaded(weights)
        own = getattr(network, "halo", None)
        return _Choice(name, weights, GLOBAL_HALO if own is None else int(own), 8, 0.0, False)

    def _backend(self, asked: str) -> str:
        graph = self.choice.fixed and self.device == "cpu" and self.perception is None and self._deblurring is None
        if asked == "openvino" and not graph:
            why = "deep optimal transport follows it" if self.perception is not None else "it has no fixed graph"
            raise UsageError(f"{self.choice.name} runs in torch here, not in openvino: {why}")
        if asked != "auto":
            return asked
        able = graph and "openvino" in engines.available_backends()
        return "openvino" if able and (cached_graph(self.choice.weights) or can_export()) else "torch"

    def _transported(self, transport: str | Path | None, vae: Any) -> Any:
        """The statistics for ``perception``.

        Raises:
            UsageError: none ship for the model, and no file was given; or they need another autoencoder.
            CheckpointError: no statistics, or no autoencoder there.
        """
        from saccade.restoration.dot import DeepOptimalTransport, open_autoencoder

        path = registry.WEIGHTS / f"dot_{self.choice.name}.safetensors" if transport is None else Path(transport)
        if transport is None and not path.is_file():
            raise UsageError(f"no statistics ship for {self.choice.name}: give a file with --transport")
        opened = open_autoencoder(vae) if isinstance(vae, str | Path) else vae
        return DeepOptimalTransport.load(path, opened)

    # -- what runs

    def engine(self, channels: int = 3, dtype: str = "uint8") -> engines.Engine:
        """The engine for pictures of that kind; started once."""
        if self._deblurring is not None:
            return self._deblurring
        key = (channels, dtype)
        if key not in self._engines:
            if self.backend == "openvino":
                graph = graph_for(self.choice.weights)
                self._engines[key] = engines.OpenVINOEngine(graph, 1, channels, dtype, self.threads, colour="rgb")
            else:
                made = engines.TorchEngine(self._prepared(), self.device, self.threads)
                made.tile = self._tile()
                self._engines[key] = made
        return self._engines[key]

    def _prepared(self) -> nn.Module:
        network: Any = self._loaded(self.choice.weights)
        if self.budget is not None and hasattr(network, "budget"):
            network.budget = self.budget
        if self._transport is None:
            return network
        from saccade.restoration.dot import wrap

        self._transport.autoencoder_to(self.device)
        made: nn.Module = wrap(network, self._transport, float(self.perception or 0.0))
        return made

    def _stream(self, picture: Picture, *given: Any, **options: Any) -> int:
        whole = self._deblurring
        if whole is not None and band_rows(picture, whole, 1, 0, self.max_memory) < picture.height:
            raise UsageError(
                f"deblurring holds pictures whole: {picture.width} x {picture.height} px needs more --max-memory"
            )
        return super()._stream(picture, *given, **options)

    def one_clip(self) -> AbstractContextManager[None]:
        return super().one_clip() if self._deblurring is None else self._deblurring.one_level()

    def _tile(self) -> tuple[int, int]:
        """Rows and columns of a tile in torch: as large as memory allows for global networks, whose tiles differ.

        An autoencoder around the transport counts as one: it takes as much memory.
        """
        if self.choice.fixed and not self._in_latent:
            return engines.LARGE
        network = self._loaded(self.choice.weights)
        each = 0.0 if self.choice.fixed else float(getattr(network, "bytes_per_pixel", 4_000))
        each = max(each, 0.0 if self._transport is None else self._transport.bytes_per_pixel)
        room = max(0, self.max_memory - RESIDENT["torch"]) / each
        side = max(64, int(math.sqrt(room)) - 2 * self.halo) // 8 * 8
        return side, side

    @property
    def _in_latent(self) -> bool:
        """Whether what was restored goes through an autoencoder."""
        return self._transport is not None and self._transport.step > 1

    def facts(self) -> tuple[str, int, str, str, str]:
        return self.choice.name, 1, self.backend, self.device, "float32"

    def account(self, report: Report) -> None:
        report.macs = self.choice.macs * report.size[0] * report.size[1] * report.frames
        who = "the autoencoder of the transport" if self._in_latent else ""
        if not self.choice.fixed:
            who = f"{self.choice.name} attends to the whole picture; it"
        if who and report.tiles > report.frames:
            each = " of each frame" if report.frames > 1 else ""
            report.notices.append(
                f"{who} saw {report.tiles // report.frames} overlapping tiles{each}: an approximation (more "
                "--max-memory makes them larger)"
            )
        if self.budget is not None and self.choice.macs:
            full = max(float(registry.entry(n).facts["macs"]) for n in TASKS["auto"])
            report.budget = {"asked": self.budget, "macs_fraction": self.choice.macs / full, "shares": {}}


def _known_blur(model: str) -> _Choice:
    name = "Wiener filter" if model == "auto" else Path(model).stem
    return _Choice(name, Path(), 0, 1, 0.0, True)


def _shipped() -> list[str]:
    return [n for n in registry.list_models(task="restoration") if registry.default_weights(n) is not None]


def restore(
    image: Any,
    task: str = "auto",
    *,
    model: str | Path = "auto",
    output: str | Path | None = None,
    overwrite: bool = False,
    **options: Any,
) -> Any:
    """Repair a picture.

    Args:
        image: a path, a PIL image, a numpy array (h, w[, 1, 2, 3 or 4]) of uint8, uint16 or floats in [0, 1], or a
            float tensor ([B,] 1 or 3, h, w) in [0, 1].
        task, model, options: see `Restorer`.
        output: with a path as ``image``: the file to write; a `Report` is returned.
        overwrite: replace an existing ``output``.

    Returns:
        What came in: PIL image for a path or PIL image, array for an array, tensor for a tensor (computed in 16 bits),
        or a `Report` with ``output``.

    Raises:
        SaccadeError: see `Restorer` and `Streamed.picture`.
    """
    worker = Restorer(task, model, **options)
    return apply(worker, image, output, overwrite=overwrite)
