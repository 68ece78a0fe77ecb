"""Clips for training video networks: excerpts of footage, made longer, degraded as they are drawn.

    clips or folders of frames -- excerpt of `loaded` frames -- crop, flips -- run to and fro until `frames` long
         -- sharpened -- degraded, each frame by its own drifting parameters --> low (n,t,3,h,w), high (n,t,3,sh,sw)

Chan et al., "Investigating Tradeoffs in Real-World Video Super-Resolution", CVPR 2022, arXiv:2111.12704, section 4.1:
long clips train better, reading them starves the accelerator; so fewer frames are read than are shown. Footage is
read where it lies. What clip ``i`` of step ``t`` of rank ``r`` is depends on (seed, t, r, i) alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from saccade.data.degrade import SecondOrder, gaussian_blur, to_and_fro
from saccade.data.pairs import SUFFIXES, read_resized
from saccade.errors import InputError, UsageError
from saccade.io.finding import find_files, is_video
from saccade.io.video import VideoReader, open_video
from saccade.ops.resize import resize
from saccade.progress import track

__all__ = ["DEGRADATIONS", "ClipPairs", "Footage", "clip_degradation", "footage", "held_out_clips", "sharpened"]

#: high (t, 3, H, W) in [0, 1] and what decides -> low (t, 3, H/scale, W/scale), at levels of 1/255
Degrade = Callable[[Tensor, np.random.Generator], Tensor]
DEGRADATIONS = ("second-order", "bicubic")


class Footage(Protocol):
    """Consecutive frames of one size."""

    path: Path
    frames: int
    size: tuple[int, int]

    def read(self, first: int, count: int) -> Tensor:
        """Frames from number ``first`` on: (count, 3, H, W) uint8."""
        ...


class FrameFolder:
    """Pictures of one folder in natural order, read when they are asked for."""

    def __init__(self, path: Path) -> None:
        self.path, self.files = path, find_files(path, SUFFIXES, "frames")
        self.frames = len(self.files)
        height, width = read_resized(self.files[0]).shape[1:]
        self.size = (height, width)

    def read(self, first: int, count: int) -> Tensor:
        made = []
        for file in self.files[first : first + count]:
            frame = read_resized(file)
            if tuple(frame.shape[1:]) != self.size:
                height, width = self.size
                raise InputError(
                    f"{file} is of {frame.shape[2]} x {frame.shape[1]} px, the first of its folder of "
                    f"{width} x {height}: frames of a clip have one size"
                )
            made.append(frame)
        return torch.stack(made)


class VideoFile:
    """A video file; excerpts are decoded from the key frame before them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reader: VideoReader = open_video(path)
        self.frames, self.size = self.reader.count(), (self.reader.height, self.reader.width)

    def read(self, first: int, count: int) -> Tensor:
        return torch.from_numpy(np.stack(self.reader.excerpt(first, count))).permute(0, 3, 1, 2)


def footage(folder: str | Path) -> list[Footage]:
    """The clips below a folder: video files, and folders that hold pictures, sorted by name.

    Raises:
        InputError: no such folder, nothing in it, or an unreadable clip.
        UnavailableError: video files without the extra ``video``.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"no folder of clips at {folder}")
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.startswith(".")]
    frames = {p.parent for p in files if p.suffix.lower() in SUFFIXES}
    videos = {p for p in files if is_video(p)}
    if not frames and not videos:
        raise InputError(f"{folder} holds neither videos nor folders of frames")
    found = track(sorted(frames | videos), "reading clips")
    return [VideoFile(path) if path in videos else FrameFolder(path) for path in found]


def sharpened(frames: Tensor, *, weight: float = 0.5, threshold: float = 10.0, size: int = 51) -> Tensor:
    """Unsharp masking where there is something to sharpen: what the network is to give back, as published.

    With b a Gaussian blur and r = x - b(x):  x + b(|r| > threshold / 255) * (clamp(x + weight r, 0, 1) - x).

    Args:
        frames: (n, 3, H, W) in [0, 1].
        weight: of the difference.
        threshold: of 255; smaller differences, noise among them, are left alone.
        size: side of the blur, odd; its width follows from it as in OpenCV, 0.3 ((size - 1) / 2 - 1) + 0.8 pixels.
    """
    sigma = 0.3 * ((size - 1) * 0.5 - 1) + 0.8
    rest = frames - gaussian_blur(frames, sigma, size)
    where = gaussian_blur((rest.abs() * 255 > threshold).to(frames), sigma, size)
    return frames + where * ((frames + weight * rest).clamp(0, 1) - frames)


def clip_degradation(name: str, scale: int) -> Degrade:
    """What is put on clips: ``second-order`` (`data.degrade.SecondOrder`, video codec included) or ``bicubic``.

    Raises:
        UsageError: another name.
    """
    if name == "second-order":
        return SecondOrder(scale)
    if name == "bicubic":
        return lambda clip, chance: resize(clip * 255, 1 / scale).round_().clamp_(0, 255).div_(255)
    raise UsageError(f"clips are degraded by {' or '.join(DEGRADATIONS)}, not {name!r}")


class ClipPairs(Dataset[tuple[Tensor, Tensor]]):
    """Low- and high-resolution excerpts.

    Args:
        clips: footage, each as likely as it is long.
        patch: side of the low-resolution frames.
        scale: of the high-resolution ones.
        frames: length of the clips that are shown.
        loaded: frames read for each; fewer than ``frames`` are run to and fro. Shorter footage is read whole.
        degrade: what makes the low-resolution frames of the sharpened ones.
        stay: probability that a frame is shown again instead of the next (`degrade.to_and_fro`).
        still: share of the clips that are one frame, standing still; its damage goes on changing.
        workers: processes that read and degrade ahead; 0: none.

    Raises:
        InputError: footage smaller than a crop.
    """

    def __init__(
        self,
        clips: Sequence[Footage],
        patch: int,
        *,
        scale: int = 4,
        frames: int = 30,
        loaded: int = 15,
        degrade: Degrade,
        stay: float = 0.0,
        still: float = 0.0,
        workers: int = 0,
    ) -> None:
        self.clips, self.side, self.frames, self.loaded = clips, patch * scale, frames, loaded
        self.degrade, self.stay, self.still, self.workers = degrade, stay, still, workers
        for clip in clips:
            if min(clip.size) < self.side:
                raise InputError(
                    f"{clip.path} is of {clip.size[1]} x {clip.size[0]} px, smaller than a crop of "
                    f"{self.side} x {self.side} px"
                )
        lengths = np.array([clip.frames for clip in clips], dtype=np.float64)
        self.chance = lengths / lengths.sum()
        self._coming: Iterator[Any] | None = None
        self._next: tuple[int, ...] = ()

    def batch(self, size: int, seed: int, step: int, rank: int = 0) -> tuple[Tensor, Tensor]:
        """Clips of one step: (size, t, 3, h, w) and (size, t, 3, scale*h, scale*w), float32 in [0, 1]."""
        if not self.workers:
            low, high = zip(*(self[seed, step, rank, i] for i in range(size)), strict=True)
            return torch.stack(low), torch.stack(high)
        if self._coming is None or self._next != (size, seed, step, rank):
            ahead = _Ahead(size, seed, step, rank)
            self._coming = iter(DataLoader(self, batch_sampler=ahead, num_workers=self.workers))
        self._next = (size, seed, step + 1, rank)
        made: tuple[Tensor, Tensor] = tuple(next(self._coming))
        return made

    def __getitem__(self, asked: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        chance = np.random.default_rng(asked)
        high = self._shown(chance)
        return self.degrade(sharpened(high), chance), high

    def _shown(self, chance: np.random.Generator) -> Tensor:
        """A clip before anything is done to it, (frames, 3, side, side)."""
        clip = self.clips[int(chance.choice(len(self.clips), p=self.chance))]
        count = 1 if chance.random() < self.still else min(self.loaded, clip.frames)
        read = clip.read(int(chance.integers(clip.frames - count + 1)), count)
        top, left = (int(chance.integers(n - self.side + 1)) for n in clip.size)
        crop = read[..., top : top + self.side, left : left + self.side]
        crop = crop.flip([dim for dim in (2, 3) if chance.integers(2)])
        crop = crop.transpose(2, 3) if chance.integers(2) else crop
        order = to_and_fro(count, self.frames, chance, stay=self.stay)
        if count >= self.frames and not self.stay:
            order = np.arange(self.frames)  # long enough as it is
        return crop.contiguous().float().div_(255)[torch.from_numpy(order)]

    def seconds(self, seed: int, clips: int = 3) -> tuple[float, float, float]:
        """Mean processor time a clip: of reading as few frames as are read, of reading all, and of degrading."""
        spent = np.zeros(3)
        for i in range(clips):
            chance = np.random.default_rng((seed, i))
            clip = self.clips[int(chance.choice(len(self.clips), p=self.chance))]
            whole = min(self.frames, clip.frames)
            first = int(chance.integers(clip.frames - whole + 1))
            for place, count in enumerate((min(self.loaded, whole), whole)):
                began = time.process_time()
                clip.read(first, count)
                spent[place] += time.process_time() - began
            shown, began = self._shown(chance), time.process_time()
            self.degrade(sharpened(shown), chance)
            spent[2] += time.process_time() - began
        few, every, degrading = (spent / clips).tolist()
        return few, every, degrading


@dataclass(frozen=True)
class _Ahead:
    """What the clips of each step are decided by, from a step on, without end."""

    size: int
    seed: int
    first: int
    rank: int

    def __iter__(self) -> Iterator[list[tuple[int, ...]]]:
        step = self.first
        while True:
            yield [(self.seed, step, self.rank, i) for i in range(self.size)]
            step += 1


def held_out_clips(
    clips: Sequence[Footage], degrade: Degrade, *, scale: int = 4, frames: int = 15, side: int = 256, seed: int = 0
) -> list[tuple[Tensor, Tensor]]:
    """The beginning of each clip, its centre, with a fixed degradation, to measure on.

    Returns:
        Low (1, t, 3, h, w) and high (1, t, 3, scale*h, scale*w), float32 in [0, 1].
    """
    made = []
    for i, clip in enumerate(clips):
        rows, columns = (min(side, n) // scale * scale for n in clip.size)
        top, left = (clip.size[0] - rows) // 2, (clip.size[1] - columns) // 2
        whole = clip.read(0, min(frames, clip.frames))
        high = whole[..., top : top + rows, left : left + columns].float().div(255)
        made.append((degrade(high, np.random.default_rng((seed, i)))[None], high[None]))
    return made
