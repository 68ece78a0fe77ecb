"""The main job: enlarge pictures and clips of any size, fast, in bounded memory, with exact tiles.

    reader --rows--> band of rows + halo --tiles--> engine --tiles--> band of output --rows--> encoder thread
                     (two bands at a time; alpha goes its own way, by bicubic)

`Upscaler` holds a choice of model, scale, budget and backend and the engines it started; `upscale` is the one-line
face. Where OpenVINO or ONNX Runtime serve, torch is never imported.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from saccade import registry
from saccade.budget import check_budget
from saccade.checkpoint import read_header
from saccade.errors import CheckpointError, InputError, UnavailableError, UsageError
from saccade.runtime import engines
from saccade.runtime.colour import bicubic
from saccade.runtime.graphs import cached_graph, check_finite, graph_for, told_by
from saccade.runtime.tiles import Span, bands, columns, fitted

if TYPE_CHECKING:
    from torch import nn

    from saccade.io import PictureReader

__all__ = ["Report", "Upscaler", "upscale"]

AUTO = ("sesr_m5", "sesr_m11", "sesr_xl")  # what `model="auto"` chooses from, by cost
BACKENDS = ("auto", "openvino", "onnxruntime", "torch")
PRECISIONS = ("float32", "int8")
#: bytes of the interpreter, libvips, the backend and its tiles, whatever the picture (measured)
RESIDENT = {"openvino": 440 << 20, "onnxruntime": 360 << 20, "torch": 700 << 20}
QUEUED = 64 << 20  # bytes of rows on their way to the encoder
CHROMA_HALO = 2  # input pixels that bicubic chroma and alpha see beyond their own place

Read = Callable[[int, int], tuple[np.ndarray, np.ndarray | None]]
Write = Callable[[np.ndarray, np.ndarray | None], None]
Advance = Callable[[float], None]


@dataclass
class Report:
    """What one picture or clip cost.

    Attributes:
        source, target: file names ("" for arrays).
        size, made: width and height in pixels, before and after.
        model, scale, backend, device, threads: what ran.
        tiles: how many.
        frames: 1 for pictures.
        macs: multiply-accumulates of the network, halos not counted.
        budget: None, or {"asked": ..., "macs_fraction": ..., "shares": {...}}: what the dial did.
        seconds: wall time, reading and writing included.
        notices: what was converted or left out, one sentence each.
        precision: ``float32`` or ``int8``.
    """

    source: str
    target: str
    size: tuple[int, int]
    made: tuple[int, int]
    model: str
    scale: int
    backend: str
    device: str
    threads: int
    tiles: int = 0
    frames: int = 1
    macs: float = 0.0
    budget: dict[str, Any] | None = None
    seconds: float = 0.0
    notices: list[str] = field(default_factory=list)
    precision: str = "float32"

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for ``--json``."""
        return asdict(self)


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


class Upscaler:
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
        if threads < 0:
            raise UsageError(f"threads must not be negative, got {threads}")
        self.budget = None if budget is None else check_budget(budget)
        self.max_memory, self.threads = max_memory, threads
        self.device = _device(device, backend)
        self._network: nn.Module | None = None
        self.choice = self._choose(str(model), scale)
        self.backend, self.precision = self._backend(backend), precision
        if precision == "int8" and self.backend != "openvino":
            raise UsageError(f"int8 runs with the openvino backend on a CPU, not with {self.backend} on {self.device}")
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
            from saccade.checkpoint import load

            self._network = load(path)
            check_finite(self._network, path)
            name, options = self._network.saccade_name, self._network.saccade_options  # type: ignore[assignment]
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
        if routed or graph is None:
            network: Any = self._loaded(weights)
            halo, macs = network.halo, float(getattr(network, "kernels", 0) or _full_macs(network))
        else:
            halo, macs = _measure(graph.with_suffix(".safetensors"))
        scale = int(options.get("scale", entry.scales[0]))
        return _Choice(name, scale, max(halo, CHROMA_HALO), macs, weights, routed, dict(entry.facts))

    def _loaded(self, weights: Path) -> nn.Module:
        if self._network is None:
            from saccade.checkpoint import load

            self._network = load(weights)
            check_finite(self._network, weights)
        return self._network

    def _backend(self, asked: str) -> str:
        if self.choice.routed:
            if asked not in ("auto", "torch"):
                raise UsageError(
                    f"{self.choice.name} decides for every pixel what runs: it runs in torch, not in {asked}"
                )
            return "torch"
        if self.choice.facts.get("colour") == "rgb":
            if asked not in ("auto", "torch"):
                raise UsageError(
                    f"{self.choice.name} works on RGB: it runs in torch, the graphs of {asked} are for luma"
                )
            return "torch"
        if self.device != "cpu":
            return "torch"
        if asked != "auto":
            return asked
        for name in engines.available_backends():
            if name == "torch" or (cached_graph(self.choice.weights) or _can_export()):
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
                    made = engines.OpenVINOEngine(*facts, self.precision)
                else:
                    made = engines.ONNXRuntimeEngine(*facts)
            self._engines[key] = made
        return self._engines[key]

    def _prepared(self) -> nn.Module:
        network = self._loaded(self.choice.weights)
        if self.budget is not None and self.choice.routed:
            network.budget = self.budget  # type: ignore[assignment]
        return network

    def _agree(self, samples: Iterator[np.ndarray]) -> None:
        """Let the tiles of one picture share a threshold: the best pixels of the picture, not of every tile.

        Args:
            samples: (h, w, 1 or 3) integer patches spread over the picture.
        """
        if self.budget is None or not self.choice.routed:
            return
        import torch

        network: Any = self._loaded(self.choice.weights)

        def tensors() -> Iterator[torch.Tensor]:
            for patch in samples:
                x = torch.from_numpy(np.repeat(patch, 3, 2) if patch.shape[2] == 1 else patch)
                yield (x.float() / float(np.iinfo(patch.dtype).max)).permute(2, 0, 1)[None].to(self.device)

        network.calibrate(tensors(), self.budget)

    # -- work

    def array(self, colour: np.ndarray, alpha: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        """Enlarge a picture in memory.

        Args:
            colour: (h, w, 1 or 3) uint8 or uint16.
            alpha: (h, w) of the same dtype, or None.

        Raises:
            InputError: another shape or dtype, or an empty picture.
        """
        _check_array(colour, alpha)
        height, width, channels = colour.shape
        scale = self.choice.scale
        made = np.empty((height * scale, width * scale, channels), colour.dtype)
        clear = None if alpha is None else np.empty(made.shape[:2], colour.dtype)
        row = 0

        def read(top: int, rows: int) -> tuple[np.ndarray, np.ndarray | None]:
            return colour[top : top + rows], None if alpha is None else alpha[top : top + rows]

        def write(band: np.ndarray, its_alpha: np.ndarray | None) -> None:
            nonlocal row
            made[row : row + len(band)] = band
            if clear is not None and its_alpha is not None:
                clear[row : row + len(band)] = its_alpha
            row += len(band)

        self.engine(channels, str(colour.dtype))
        self._agree(_patches(width, height, read))
        self._stream(width, height, channels, str(colour.dtype), alpha is not None, read, write)
        return made, clear

    def picture(
        self,
        source: str | Path,
        target: str | Path,
        *,
        format: str | None = None,  # noqa: A002
        quality: int | None = None,
        overwrite: bool = False,
        flatten: bool = False,
        advance: Advance | None = None,
    ) -> Report:
        """Enlarge a picture file; memory stays within ``max_memory`` whatever its size.

        Raises:
            InputError: an unreadable or damaged picture, or a target that cannot be written; nothing is left behind.
        """
        from saccade.io import create_picture, open_picture

        began, scale = time.perf_counter(), self.choice.scale
        _give_blocks_back()
        with open_picture(source) as reader:
            size, made = (reader.width, reader.height), (reader.width * scale, reader.height * scale)
            report = self._report(str(source), str(target), size, self.engine(reader.bands, reader.dtype))
            self._band_rows(reader.width, reader.bands, reader.dtype)  # refuse before anything is written
            if self.budget is not None and self.choice.routed:
                with open_picture(source) as first_look:
                    self._agree(_patches(*size, first_look.read_rows))
            with create_picture(
                target,
                *made,
                bands=reader.bands,
                has_alpha=reader.has_alpha,
                dtype=reader.dtype,
                like=reader,
                format=format,
                quality=quality,
                overwrite=overwrite,
                flatten=flatten,
            ) as writer:
                report.tiles = self._stream(
                    reader.width,
                    reader.height,
                    reader.bands,
                    reader.dtype,
                    reader.has_alpha,
                    _rolling(reader),
                    writer.write_rows,
                    advance,
                )
            report.notices = [*reader.notices, *writer.notices]
        self._account(report)
        report.seconds = time.perf_counter() - began
        return report

    def video(
        self,
        source: str | Path,
        target: str | Path,
        *,
        quality: int | None = None,
        overwrite: bool = False,
        advance: Advance | None = None,
    ) -> Report:
        """Enlarge a clip frame by frame; sound is copied, frame times and colour tags are kept.

        Raises:
            InputError: an unreadable clip, or a target that cannot be written.
            UnavailableError: the ``video`` extra is not installed.
        """
        from saccade.io.video import VideoWriter, open_video

        began = time.perf_counter()
        reader = open_video(source)
        report = self._report(str(source), str(target), (reader.width, reader.height), self.engine())
        report.frames, report.notices = 0, reader.notices
        with VideoWriter(target, *report.made, like=reader, quality=quality, overwrite=overwrite) as writer:
            for frame in reader:
                writer.write(self.array(frame)[0])
                report.frames += 1
                if advance:
                    advance(frame.shape[0] * frame.shape[1])
        self._account(report)
        report.seconds = time.perf_counter() - began
        return report

    def _report(self, source: str, target: str, size: tuple[int, int], engine: engines.Engine) -> Report:
        scale = self.choice.scale
        made = (size[0] * scale, size[1] * scale)
        facts = (self.choice.name, scale, self.backend, self.device, engine.threads)
        return Report(source, target, size, made, *facts, precision=self.precision)

    def _account(self, report: Report) -> None:
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

    def _band_rows(self, width: int, channels: int, dtype: str) -> int:
        """Rows of a band, so that two bands in flight, the queue and the tiles fit into ``max_memory``.

        Raises:
            UsageError: not even a band of 16 rows fits.
        """
        item, scale = np.dtype(dtype).itemsize, self.choice.scale
        tile_rows = self.engine(channels, dtype).tile[0]
        resident = RESIDENT[self.backend] + QUEUED
        per_row = width * (channels + 1) * item * (3 * scale**2 + 4)
        fixed = 4 * self.choice.halo * width * (channels + 1) * item
        room = self.max_memory - resident - fixed
        rows = min(tile_rows, room // per_row)
        if rows < min(16, tile_rows):
            need = resident + fixed + 16 * per_row
            raise UsageError(f"a picture {width} px wide needs --max-memory {-(-need // (1 << 20))}MB or more")
        return int(rows)

    def _stream(
        self,
        width: int,
        height: int,
        channels: int,
        dtype: str,
        has_alpha: bool,
        read: Read,
        write: Write,
        advance: Advance | None = None,
    ) -> int:
        """Read bands of rows, enlarge their tiles, write them in order; two bands are under way at a time."""
        engine, scale, halo = self.engine(channels, dtype), self.choice.scale, self.choice.halo
        largest = (self._band_rows(width, channels, dtype), engine.tile[1])
        tile = fitted(width, height, largest, engine.parallel)
        waiting: list[_Band] = []
        count = 0
        try:
            for rows in bands(height, tile[0], halo):
                colour, alpha = read(rows.low, rows.high - rows.low)
                band = _Band(rows, width, channels, dtype, scale)
                spans = list(columns(width, tile[1], halo))
                band.expect(len(spans))
                for span in spans:
                    engine.submit(colour[:, span.low : span.high], band.place(span))
                count += len(spans)
                if has_alpha and alpha is not None:
                    band.alpha = _enlarge_alpha(alpha, rows, scale)
                waiting.append(band)
                if len(waiting) > 1:
                    _finish(waiting.pop(0), engine, write, advance)
            for band in waiting:
                _finish(band, engine, write, advance)
        finally:
            _quietly_drain(engine)
        return count


class _Band:
    """A band of output rows that fills up tile by tile."""

    def __init__(self, rows: Span, width: int, channels: int, dtype: str, scale: int) -> None:
        self.rows, self.scale = rows, scale
        self.pixels = np.empty((rows.length * scale, width * scale, channels), dtype)
        self.alpha: np.ndarray | None = None
        self.full = threading.Event()
        self._left, self._lock = 0, threading.Lock()

    def expect(self, tiles: int) -> None:
        self._left = tiles

    def place(self, span: Span) -> Callable[[np.ndarray], None]:
        """What takes the enlarged window of one tile and keeps its core."""
        s, rows = self.scale, self.rows.inner

        def put(window: np.ndarray) -> None:
            inner = span.inner
            core = window[rows.start * s : rows.stop * s, inner.start * s : inner.stop * s]
            self.pixels[:, span.start * s : span.stop * s] = core
            with self._lock:
                self._left -= 1
                if self._left == 0:
                    self.full.set()

        return put


def _finish(band: _Band, engine: engines.Engine, write: Write, advance: Advance | None) -> None:
    """Wait for a band and hand it on; a failed tile shows up as its error, not as waiting for ever."""
    while not band.full.wait(2.0):
        engine.drain()
    write(band.pixels, band.alpha)
    if advance:
        advance(band.rows.length * band.pixels.shape[1] // band.scale)


def _quietly_drain(engine: engines.Engine) -> None:
    """Let tiles end that are still under way after an error, so that their memory may go."""
    with contextlib.suppress(Exception):
        engine.drain()


def _enlarge_alpha(alpha: np.ndarray, rows: Span, scale: int) -> np.ndarray:
    """Bicubic, on the band's window; rows beyond the core only serve as context."""
    full = np.iinfo(alpha.dtype).max
    window = slice(max(rows.low, rows.start - 2) - rows.low, min(rows.high, rows.stop + 2) - rows.low)
    made = bicubic(alpha[window, :, None].astype(np.float32), scale)[:, :, 0]
    first = (rows.inner.start - window.start) * scale
    return np.rint(made[first : first + rows.length * scale].clip(0, full)).astype(alpha.dtype)


@functools.cache
def _give_blocks_back() -> None:
    """Let glibc return every freed block above 1 MB to the system at once.

    By its default it keeps blocks up to 32 MB, and bands of rows tear holes between them: a picture 20,000 pixels
    wide peaked at 1,075 MB instead of 626 MB.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD


def _rolling(reader: PictureReader) -> Read:
    """Windows of rows, overlapping and in order, from a reader that gives every row once."""
    kept: tuple[np.ndarray, np.ndarray | None] | None = None
    first = 0

    def read(top: int, rows: int) -> tuple[np.ndarray, np.ndarray | None]:
        nonlocal kept, first
        have = 0 if kept is None else first + len(kept[0]) - top
        fresh = reader.read_rows(top + have, rows - have)
        if kept is not None and have:
            old = (kept[0][-have:], None if kept[1] is None else kept[1][-have:])
            alpha = None if fresh[1] is None or old[1] is None else np.concatenate((old[1], fresh[1]))
            fresh = (np.concatenate((old[0], fresh[0])), alpha)
        kept, first = fresh, top
        return fresh

    return read


def _patches(width: int, height: int, read: Read, count: int = 4, side: int = 128) -> Iterator[np.ndarray]:
    """About ``count`` x ``count`` patches spread evenly over a picture, read top to bottom."""
    rows, columns_ = min(side, height), min(side, width)
    tops = sorted({round(i * (height - rows) / max(1, count - 1)) for i in range(count)})
    lefts = sorted({round(i * (width - columns_) / max(1, count - 1)) for i in range(count)})
    end = 0
    for top in tops:
        top = max(top, end)
        if top + rows > height:
            return
        band = read(top, rows)[0]
        end = top + rows
        for left in lefts:
            yield band[:, left : left + columns_]


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


def _can_export() -> bool:
    import importlib.util

    return all(importlib.util.find_spec(m) for m in ("torch", "onnx", "onnxscript"))


def _device(asked: str, backend: str) -> str:
    if asked == "auto":
        if backend in ("openvino", "onnxruntime") or not Path("/dev/nvidia0").exists():
            return "cpu"
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked == "cpu":
        return asked
    if backend in ("openvino", "onnxruntime"):
        raise UsageError(f"the {backend} backend runs on the CPU, not on {asked}")
    import torch

    try:
        device = torch.device(asked)
    except (RuntimeError, TypeError):
        raise UsageError(f"no device named {asked!r}; try auto, cpu or cuda") from None
    try:
        torch.zeros(1, device=device).cpu()
    except (AssertionError, NotImplementedError, RuntimeError):
        raise UnavailableError(f"no usable device {asked} here; try --device cpu") from None
    return str(device)


def _check_array(colour: np.ndarray, alpha: np.ndarray | None) -> None:
    if colour.ndim != 3 or colour.shape[2] not in (1, 3) or min(colour.shape[:2]) < 1:
        raise InputError(f"a picture is (h, w, 1 or 3) and not empty, got {colour.shape}")
    if colour.dtype not in (np.uint8, np.uint16):
        raise InputError(f"pixels are uint8 or uint16, got {colour.dtype}")
    if alpha is not None and (alpha.shape != colour.shape[:2] or alpha.dtype != colour.dtype):
        raise InputError(f"alpha {alpha.shape} {alpha.dtype} does not go with colour {colour.shape} {colour.dtype}")


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
    worker = Upscaler(
        model,
        scale,
        budget=budget,
        backend=backend,
        device=device,
        max_memory=max_memory,
        threads=threads,
        precision=precision,
    )
    if isinstance(image, str | os.PathLike):
        if output is not None:
            return worker.picture(os.fspath(image), output, overwrite=overwrite)
        from saccade.io import read_picture

        colour, alpha, _ = read_picture(image)
        return _to_pil(*worker.array(colour, alpha))
    if output is not None:
        raise UsageError("output goes with a path as input")
    if type(image).__module__.startswith("PIL."):
        return _to_pil(*worker.array(*_from_pil(image)))
    if isinstance(image, np.ndarray):
        return _array_like(image, worker)
    if hasattr(image, "detach"):
        return _tensor_like(image, worker)
    raise InputError(f"a picture is a path, a PIL image, a numpy array or a tensor, not {type(image).__name__}")


def _from_pil(image: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """Colour and alpha of a PIL image; pictures of 32 bits a sample must hold 16-bit counts, or floats in [0, 1]."""
    try:
        if image.mode == "F":
            return _to_16_bits(np.asarray(image))[:, :, None], None
        if image.mode.startswith("I"):
            counts = np.asarray(image)[:, :, None]
            if counts.size and (counts.min() < 0 or counts.max() > 65535):
                raise InputError(f"a PIL image of mode {image.mode} holds counts from 0 to 65535")
            return counts.astype(np.uint16), None
        return _from_pil_bytes(image)
    except (OSError, SyntaxError, ValueError) as error:  # PIL decodes here
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot use this PIL image of mode {image.mode}: {error}") from error


def _from_pil_bytes(image: Any) -> tuple[np.ndarray, np.ndarray | None]:
    has_alpha = image.mode in ("LA", "RGBA", "PA", "La", "RGBa") or "transparency" in image.info
    grey = image.mode in ("1", "L", "LA", "La")
    pixels = np.asarray(image.convert(("LA" if grey else "RGBA") if has_alpha else ("L" if grey else "RGB")))
    if not has_alpha:
        return pixels.reshape(*pixels.shape[:2], -1), None
    return np.ascontiguousarray(pixels[..., :-1]), np.ascontiguousarray(pixels[..., -1])


def _to_pil(colour: np.ndarray, alpha: np.ndarray | None) -> Any:
    from PIL import Image

    if colour.dtype == np.uint16 and colour.shape[2] == 1 and alpha is None:
        return Image.fromarray(colour[:, :, 0])
    if colour.dtype == np.uint16:  # PIL has no 16-bit colour
        colour = np.rint(colour / 257).astype(np.uint8)
        alpha = None if alpha is None else np.rint(alpha / 257).astype(np.uint8)
    pixels = colour if alpha is None else np.concatenate((colour, alpha[:, :, None]), 2)
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def _array_like(image: np.ndarray, worker: Upscaler) -> np.ndarray:
    """An array of the same rank and dtype."""
    given = image
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or image.shape[2] not in (1, 2, 3, 4):
        raise InputError(f"an array picture is (h, w) or (h, w, 1 to 4), got {given.shape}")
    floats = np.issubdtype(image.dtype, np.floating)
    if floats:
        image = _to_16_bits(image)
    has_alpha = image.shape[2] in (2, 4)
    colour, alpha = (image[..., :-1], image[..., -1]) if has_alpha else (image, None)
    made, clear = worker.array(np.ascontiguousarray(colour), alpha)
    if clear is not None:
        made = np.concatenate((made, clear[:, :, None]), 2)
    if floats:
        made = (made / 65535).astype(given.dtype)
    return made[:, :, 0] if given.ndim == 2 else made


def _to_16_bits(image: np.ndarray) -> np.ndarray:
    if not image.size or not np.isfinite(image).all() or image.min() < -1e-3 or image.max() > 1 + 1e-3:
        raise InputError("floating-point pictures lie in [0, 1]; divide by 255 or give uint8")
    return np.rint(image.clip(0, 1).astype(np.float32) * 65535).astype(np.uint16)  # 65535 is infinite in float16


def _tensor_like(image: Any, worker: Upscaler) -> Any:
    import torch

    batch = image if image.ndim == 4 else image[None]
    if batch.ndim != 4 or batch.shape[1] not in (1, 3) or not batch.numel() or not batch.is_floating_point():
        raise InputError(
            f"a tensor picture is float ([B,] 1 or 3, h, w) in [0, 1], got {tuple(image.shape)} {image.dtype}"
        )
    made = []
    for picture in batch.detach().float().cpu().permute(0, 2, 3, 1).numpy():
        pixels, _ = worker.array(_to_16_bits(picture))
        made.append(torch.from_numpy(pixels.astype(np.float32) / 65535).permute(2, 0, 1))
    out = torch.stack(made).to(image.device, image.dtype)
    return out if image.ndim == 4 else out[0]


def names_folder(out: str | Path) -> bool:
    """Whether an output is meant as a folder: it exists as one, ends with a slash, or has no suffix."""
    return str(out).endswith(("/", os.sep)) or Path(out).is_dir() or not Path(out).suffix


def targets(
    sources: Iterable[Path],
    out: str | Path | None,
    scale: int,
    format: str | None,  # noqa: A002
) -> Iterator[tuple[Path, Path]]:
    """Where each source goes: ``photo_x2.jpg`` beside it, into the folder ``out``, or the file ``out`` itself.

    Raises:
        UsageError: several sources for one output file, or two sources for the same name.
    """
    from saccade.io import is_video

    sources = list(sources)
    one_file = out is not None and not names_folder(out)
    if one_file and len(sources) > 1:
        raise UsageError(f"{len(sources)} pictures cannot go into the one file {out}; give a folder")
    seen: dict[Path, Path] = {}
    for source in sources:
        if out is not None and one_file:
            target = Path(out)
        else:
            suffix = source.suffix if is_video(source) else _suffix(source, format)
            target = Path(out or source.parent) / f"{source.stem}_x{scale}{suffix}"
        if target in seen:
            raise UsageError(f"{source} and {seen[target]} would both be written to {target}")
        seen[target] = source
        yield source, target


def _suffix(source: Path, format: str | None) -> str:  # noqa: A002
    """The suffix of a result: that of the asked format, else the source's own where it can be written, else PNG."""
    if format is not None:
        return {"jpeg": ".jpg", "jpg": ".jpg", "tif": ".tiff"}.get(format.lower(), f".{format.lower()}")
    writable = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".avif")
    return source.suffix if source.suffix.lower() in writable else ".png"
