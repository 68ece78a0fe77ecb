"""Enlarging clips with networks that look at neighbouring frames; pictures are clips of one frame.

    reader --frames--> window + context in memory --> frames --> encoder, sound and times of the source

`upscaler` chooses: networks registered with ``clip=True`` come here, all others to `Upscaler`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from saccade import registry
from saccade.errors import UsageError
from saccade.restoration import upscale as pictures
from saccade.restoration.streamed import Report, Streamed
from saccade.runtime import engines
from saccade.runtime.devices import chosen_device
from saccade.runtime.graphs import check_finite, told_by
from saccade.runtime.stream import RESIDENT, Advance
from saccade.runtime.threads import check_threads

if TYPE_CHECKING:
    from torch import Tensor

    from saccade.io.video import VideoReader

__all__ = ["ClipUpscaler", "upscaler"]

PROBE = 64  # side of the frames that the estimate of time is made on


def upscaler(model: str | Path = "auto", scale: int | None = None, **options: Any) -> pictures.Upscaler | ClipUpscaler:
    """The worker for a model: `ClipUpscaler` for networks that look at neighbouring frames, else `Upscaler`.

    Args:
        model, scale: as of `Upscaler`.
        options: the other arguments of `Upscaler`.

    Raises:
        UsageError, CheckpointError, UnavailableError: as `Upscaler`.
    """
    name = str(model)
    if name in registry.list_models():
        if not registry.entry(name).facts.get("clip"):
            return pictures.Upscaler(model, scale, **options)
        raise UsageError(f"no weights ship for {name}; give a file of weights (--model FILE)")
    path = Path(name)
    if name == "auto" or not path.is_file():
        return pictures.Upscaler(model, scale, **options)
    told = told_by(path)
    if told is not None and not (told[0] in registry.list_models() and registry.entry(told[0]).facts.get("clip")):
        return pictures.Upscaler(model, scale, **options)
    from saccade.checkpoint import load

    network = load(path)
    if not registry.entry(str(network.saccade_name)).facts.get("clip"):
        return pictures.Upscaler(model, scale, **options)
    check_finite(network, path)
    return ClipUpscaler(network, scale, **options)


class ClipUpscaler(Streamed):
    """A network for clips, ready to enlarge any number of them.

    Args:
        network: such as `RealBasicVSR`.
        scale: its own, or None.
        budget: fraction of the full cost in (0, 1]: how often frames may be cleaned.
        backend: ``"auto"`` (OpenVINO where it is installed), ``"openvino"`` or ``"torch"``.
        device, max_memory, threads: as of `Upscaler`; the memory decides how long the windows are.
        precision: ``"float32"``.

    Attributes:
        announce: is told, before a clip begins, how long it will take; None by default.

    Raises:
        UsageError: another scale, backend or precision. UnavailableError: the backend is not installed.
    """

    def __init__(
        self,
        network: Any,
        scale: int | None = None,
        *,
        budget: float | None = None,
        backend: str = "auto",
        device: str = "auto",
        max_memory: int = 1 << 30,
        threads: int = 0,
        precision: str = "float32",
    ) -> None:
        super().__init__()
        self.network = network
        self.name = str(network.saccade_name)
        if scale not in (None, self.network.scale):
            raise UsageError(f"{self.name} enlarges by {self.network.scale}, you asked for x{scale}")
        if backend not in pictures.BACKENDS or backend == "onnxruntime":
            raise UsageError(f"{self.name} runs in openvino or torch, not in {backend}")
        if precision != "float32":
            raise UsageError(f"{self.name} runs in float32, not in {precision}")
        check_threads(threads)
        self.device = chosen_device(device, backend)
        installed = "openvino" in engines.available_backends()
        self.backend = ("openvino" if installed and self.device == "cpu" else "torch") if backend == "auto" else backend
        self.max_memory, self.threads, self.budget = max_memory, threads or engines.cores(), budget
        self.scale, self.halo = self.network.scale, self.network.picture_halo
        if budget is not None:
            self.network.budget = budget
        self.announce: Callable[[str], None] | None = None
        self._steps: Any = None
        self._picture_engine: engines.Engine | None = None

    # -- pictures

    def engine(self, channels: int = 3, dtype: str = "uint8") -> engines.Engine:
        """The engine for single pictures: in torch, tiles with the halo of a clip of one frame."""
        if self._picture_engine is None:
            self._picture_engine = engines.TorchEngine(self.network, self.device, self.threads)
        return self._picture_engine

    def facts(self) -> tuple[str, int, str, str, str]:
        backend = "torch" if self._picture_engine is not None else self.backend
        return self.name, self.scale, backend, self.device, "float32"

    def account(self, report: Report) -> None:
        """Fill in what was spent; pictures are cleaned once."""
        self._account(report, 1)

    def _account(self, report: Report, passes: int) -> None:
        macs = self.network.macs(passes)
        report.macs = macs * report.size[0] * report.size[1] * report.frames
        if self.budget is not None:
            share = macs * self.network.budgets()[0] / self.network.macs(1)
            report.budget = {"asked": self.budget, "macs_fraction": share, "shares": {}}

    # -- clips

    def video(
        self,
        source: str | Path,
        target: str | Path,
        *,
        quality: int | None = None,
        overwrite: bool = False,
        advance: Advance | None = None,
    ) -> Report:
        """Enlarge a clip; sound is copied, frame times and colour tags are kept.

        Frames are cleaned as often as the first window asks for. Memory is that of a window, whatever the length.

        Raises:
            InputError: an unreadable or damaged clip (the frame is named), or a target that cannot be written; nothing
                is left behind.
            UnavailableError: the ``video`` extra is not installed.
        """
        from saccade.io.files import check_target
        from saccade.io.video import VideoWriter, open_video

        began = time.perf_counter()
        reader = open_video(source)
        check_target(Path(target), overwrite)
        self._window((reader.height, reader.width))  # refuse before anything is made
        size, made = (reader.width, reader.height), (reader.width * self.scale, reader.height * self.scale)
        report = Report(
            str(source), str(target), size, made, self.name, self.scale, self.backend, self.device, self.threads
        )
        report.frames, report.notices = 0, reader.notices
        if min(size) < 64:
            report.notices.append(f"{source} is below 64 pixels a side: large motion in it is not followed")
        streamer = self._streamer((reader.height, reader.width))
        if self.announce is not None:
            self.announce(self._estimate(streamer, reader))
        with VideoWriter(target, *made, like=reader, quality=quality, overwrite=overwrite) as writer:
            for frame in streamer(self._frames(reader)):
                writer.write(_pixels(frame))
                report.frames += 1
                if advance:
                    advance(size[0] * size[1])
            report.notices = [*report.notices, *writer.notices]
        self._account(report, streamer.passes or 0)
        report.seconds = time.perf_counter() - began
        return report

    def _streamer(self, size: tuple[int, int]) -> Any:
        import torch

        from saccade.restoration.realbasicvsr.streaming import Streamer

        torch.set_num_threads(self.threads)
        if self._steps is None and self.backend == "openvino":
            from saccade.restoration.realbasicvsr.compiled import Compiled

            self._steps = Compiled(self.network, self.threads)
        self.network.to(self.device)
        return Streamer(self.network, *self._window(size), self._steps)

    def _window(self, size: tuple[int, int]) -> tuple[int, int]:
        from saccade.restoration.realbasicvsr.streaming import window_for

        if self.device != "cpu":
            return window_for(self.network, size, 1 << 62)
        return window_for(self.network, size, self.max_memory, RESIDENT[self.backend])

    def _frames(self, reader: VideoReader) -> Iterator[Tensor]:
        import torch

        for frame in reader:
            yield torch.from_numpy(frame).to(self.device).permute(2, 0, 1).float().div_(255)

    def _estimate(self, streamer: Any, reader: VideoReader) -> str:
        """What the clip will take, from a few small frames."""
        import torch

        side = min(PROBE, reader.width, reader.height)
        frames = torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(0)).to(self.device)
        list(streamer(frames[:2]))  # the first call also prepares the graphs
        began = time.perf_counter()
        list(streamer(frames))
        share = 1 + 0.25 * streamer.context / streamer.window  # the backward branch looks ahead again and again
        each = (time.perf_counter() - began) / 3 * reader.width * reader.height / side**2 * share
        if not reader.frames:
            return f"{reader.path}: about {each:.2g} s a frame; how many there are its header does not tell"
        return (
            f"{reader.path}: about {_duration(each * reader.frames)} for {reader.frames} frames ({each:.2g} s a frame)"
        )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _pixels(frame: Tensor) -> np.ndarray:
    """(3, h, w) in [0, 1] -> (h, w, 3) uint8."""
    import torch

    whole = (frame * 255).round_().clamp_(0, 255).to(torch.uint8).permute(1, 2, 0)
    made: np.ndarray = whole.contiguous().cpu().numpy()
    return made
