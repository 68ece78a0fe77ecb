"""The folder of one training run: its checkpoint, its log, its result.

What the checkpoint holds is decided by the trainer; here it is written so that a killed run leaves the last whole one,
and read so that a run is never continued with other options than it began with.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from saccade.checkpoint import write_bytes
from saccade.errors import CheckpointError, InputError, UsageError
from saccade.training.options import Options

__all__ = ["FREE", "Run", "listed"]

#: options that a resumed run may change
FREE = {
    "data",
    "out",
    "validate",
    "validate_every",
    "save_every",
    "compile",
    "threads",
    "accelerator",
    "devices",
    "nodes",
}


class Run:
    """The folder of one training: ``last.ckpt``, ``weights.safetensors``, ``run.json`` and TensorBoard's events.

    Attributes:
        course: the figures of each validation, in order.
    """

    def __init__(self, options: Options) -> None:
        self.folder = Path(options.out)
        self.last = self.folder / "last.ckpt"
        self.weights = self.folder / "weights.safetensors"
        self.course: list[dict[str, float]] = []

    def make(self) -> None:
        """Make the folder.

        Raises:
            InputError: it cannot be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot create {self.folder}: {error.strerror}") from error

    def resume(self, options: Options) -> dict[str, Any] | None:
        """The checkpoint to continue from, or None for a new run.

        Raises:
            UsageError: the folder holds a run with other options.
            CheckpointError: the checkpoint is damaged.
        """
        if not self.last.exists():
            return None
        try:
            kept: dict[str, Any] = torch.load(self.last, map_location="cpu", weights_only=True)
            old, _ = kept["options"], [kept[k] for k in ("model", "optimiser", "average", "step", "seconds", "course")]
        except Exception as error:
            raise CheckpointError(f"{self.last} is damaged; remove it to start anew") from error
        differing = [
            f"--{k.replace('_', '-')} was {old[k]!r}, now {v!r}"
            for k, v in dataclasses.asdict(options).items()
            if k not in FREE and k in old and old[k] != listed(v)
        ]
        if differing:
            raise UsageError(
                f"{self.folder} holds a run with other options ({'; '.join(differing)}); choose another --out"
            )
        self.course = [dict(c) for c in kept["course"]]
        return kept

    def keep(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint atomically; what a killed run left half-written is overwritten."""
        temporary = self.folder / ".last.ckpt.part"
        torch.save(state, temporary)
        with temporary.open("rb+") as f:
            os.fsync(f.fileno())
        temporary.replace(self.last)

    @contextmanager
    def events(self) -> Iterator[Callable[[dict[str, float]], None]]:
        """Yields a function that writes an entry of the course for TensorBoard, where that is installed."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            yield lambda entry: None
            return
        with SummaryWriter(str(self.folder)) as writer:

            def log(entry: dict[str, float]) -> None:
                for name, value in entry.items():
                    if name != "step":
                        writer.add_scalar(name, value, int(entry["step"]))
                writer.flush()

            yield log

    def report(self, options: Options, seconds: float) -> None:
        """Write the options and the course to ``run.json``."""
        told = {"options": dataclasses.asdict(options), "course": self.course, "seconds": round(seconds, 1)}
        write_bytes(self.folder / "run.json", json.dumps(told, indent=1).encode())


def listed(value: Any) -> Any:
    """An option as checkpoints hold it: a tuple is a list there."""
    return list(value) if isinstance(value, tuple) else value
