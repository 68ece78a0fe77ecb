"""Clips of any length in bounded memory.

    frames --> cleaned, flows to both neighbours --> buffer of window + context frames
    buffer full: backward branch over all of it; forward branch and tail over the first `window` frames --> out

The forward branch never restarts: its features pass from window to window, so towards the past the context is the
whole clip. The backward branch starts anew ``context`` frames behind each window; how much that costs is measured in
the reproduction of this system. Every frame is cleaned once and every flow found once.

How often frames are cleaned is decided on the first buffer and kept: a decision for each window could change in the
middle of the clip, and the picture with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from saccade.errors import InputError, UsageError
from saccade.restoration.realbasicvsr.network import ONE_PASS, RealBasicVSR, check_clip

__all__ = ["CONTEXT", "WINDOW", "Steps", "Streamer", "window_for"]

WINDOW, CONTEXT = 12, 6


class Steps(Protocol):
    """The parts of the network that streaming calls, in torch or compiled."""

    cleaning: Any
    flow: Any
    backward_branch: Any
    forward_branch: Any
    tail: Any


@dataclass
class _Frame:
    cleaned: Tensor  # (1, 3, h, w)
    to_last: Tensor | None  # flow to the frame before, (1, 2, h, w)
    to_next: Tensor | None = None


class Streamer:
    """Runs a network over a stream of frames.

    Args:
        model: in evaluation mode.
        window: frames that come out of one round; longer ones repeat less work (context / window) and hold more.
        context: frames looked ahead beyond the window.
        steps: the network's parts where they run; by default the model itself.

    Attributes:
        passes: cleaning passes, once the first buffer has been seen.
        changes: mean absolute changes of those passes, of 255.

    Raises:
        UsageError: a window below 1 or a negative context.
    """

    def __init__(
        self, model: RealBasicVSR, window: int = WINDOW, context: int = CONTEXT, steps: Steps | None = None
    ) -> None:
        if window < 1 or context < 0:
            raise UsageError(f"a window has at least one frame and no negative context, not {window} and {context}")
        self.model, self.window, self.context = model, window, context
        self.steps: Steps = model if steps is None else steps
        self.passes: int | None = None
        self.changes: list[float] = []
        self._features: Tensor | None = None  # of the forward branch at the last frame that went out

    def __call__(self, frames: Iterable[Tensor]) -> Iterator[Tensor]:
        """Enlarge frames as they come.

        Args:
            frames: (3, h, w) each, float in [0, 1], all of one size.

        Yields:
            (3, 4h, 4w) each, not clamped, `window` frames at a time.

        Raises:
            InputError: no frame at all, frames that change size, or values outside [0, 1]; names the frame.
        """
        self.passes, self.changes = None, []
        arriving = self._checked(frames)
        buffer: list[_Frame] = []
        self._features = None
        pyramid: list[Tensor] | None = None
        ended = False
        while not ended:
            fresh: list[Tensor] = []
            while len(buffer) + len(fresh) < self.window + self.context:
                frame = next(arriving, None)
                if frame is None:
                    ended = True
                    break
                fresh.append(frame[None])
            with torch.inference_mode():
                for cleaned in self._clean(fresh):
                    pyramid = self._append(buffer, cleaned, pyramid)
            emitted = len(buffer) if ended else self.window
            yield from self._round(buffer, emitted)
            del buffer[:emitted]

    def _checked(self, frames: Iterable[Tensor]) -> Iterator[Tensor]:
        first = None
        for number, frame in enumerate(frames):
            if first is None:
                first = frame.shape
            if frame.shape != first:
                raise InputError(
                    f"frame {number} is of size {tuple(frame.shape)}, those before of size {tuple(first)}: "
                    "all frames of a clip have one size"
                )
            try:
                check_clip(frame[None, None] if frame.ndim == 3 else frame)
            except InputError as error:
                raise InputError(f"frame {number}: {error}") from error
            yield frame
        if first is None:
            raise InputError("a clip has at least one frame")

    def _clean(self, fresh: list[Tensor]) -> list[Tensor]:
        if self.model.cleaning is None or not fresh:
            return fresh
        limit = ONE_PASS if self.passes is None and self.model.training else self.model.threshold
        done = 0
        while done < (self.model.most_passes if self.passes is None else self.passes):
            total = 0.0
            for i, frame in enumerate(fresh):
                change = self.steps.cleaning(frame)
                total += float(change.abs().mean(dtype=torch.float64))
                fresh[i] = frame + change
            done += 1
            if self.passes is None:
                self.changes.append(255 * total / len(fresh))
                if self.changes[-1] < limit:
                    break
        self.passes = done
        return fresh

    def _append(self, buffer: list[_Frame], cleaned: Tensor, before: list[Tensor] | None) -> list[Tensor]:
        """Put a frame into the buffer with the flows that it makes known; returns its pyramid."""
        size = (cleaned.shape[2], cleaned.shape[3])
        pyramid: list[Tensor] = self.steps.flow.pyramid(cleaned)
        to_last = None
        if before is not None:
            to_last = self.steps.flow.between(pyramid, before, size)
            if buffer:
                buffer[-1].to_next = self.steps.flow.between(before, pyramid, size)
        buffer.append(_Frame(cleaned, to_last))
        return pyramid

    def _round(self, frames: list[_Frame], emitted: int) -> Iterator[Tensor]:
        """One window: the finished frames, one at a time; the forward features stay for the next window."""
        behind: list[Tensor] = []
        with torch.inference_mode():
            coming = None
            for i in range(len(frames) - 1, -1, -1):
                coming = self.steps.backward_branch(frames[i].cleaned, coming, frames[i].to_next)
                if i < emitted:
                    behind.append(coming)
            del coming
        for frame in frames[:emitted]:
            with torch.inference_mode():
                self._features = self.steps.forward_branch(frame.cleaned, self._features, frame.to_last)
                made = self.steps.tail(frame.cleaned, behind.pop(), self._features)[0]
            yield made


def window_for(model: RealBasicVSR, size: tuple[int, int], memory: int, resident: int = 0) -> tuple[int, int]:
    """The longest window and context that keep within ``memory``, `WINDOW` and `CONTEXT` at most.

    Args:
        size: (h, w) of the frames.
        memory: bytes for the whole process.
        resident: of them, what it has anyway: interpreter, backend, weights.

    Raises:
        UsageError: not even single frames fit.
    """
    pixel = 4 * size[0] * size[1]
    # a block's features in and out or those of the flow, and two enlarged frames on their way out
    step = (max(6 * model.width, 128) + 2 * 48) * pixel
    kept = 3 + 4 + model.width  # a cleaned frame, two flows and the backward features
    for window in range(WINDOW, 0, -1):
        context = min(CONTEXT, window)
        need = resident + step + (window * kept + context * 7) * pixel
        if need <= memory:
            return window, context
    raise UsageError(f"clips of {size[1]} x {size[0]} px need --max-memory {-(-need // (1 << 20))}MB or more")
