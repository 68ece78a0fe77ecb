"""RealBasicVSR: frames streamed through the default path, beside the published algorithm run plainly on whole clips."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from saccade import registry
from saccade.bench import peers
from saccade.bench.contest import Contest
from saccade.bench.harness import Contender, Row, Timing, compare, measure
from saccade.restoration.realbasicvsr.streaming import Streamer
from saccade.runtime.scene import scene

__all__ = ["Plain", "contests", "rows", "streaming_peak"]

FRAMES = 3


class Plain:
    """The published steps in eager PyTorch: all frames cleaned, both flows of all pairs as one batch each, NCHW.

    Args:
        model: whose weights are used.
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, clip: Tensor) -> Tensor:
        """(1, t, 3, h, w) -> (1, t, 3, 4h, 4w); one cleaning pass."""
        with torch.inference_mode():
            if self.model.cleaning is not None:
                clip = clip + self._clean(clip.flatten(0, 1)).view_as(clip)
            here, there = clip[:, :-1].flatten(0, 1), clip[:, 1:].flatten(0, 1)
            n, t = clip.shape[:2]
            to_next, to_last = (
                self._flow(a, b).view(n, t - 1, 2, *clip.shape[3:]) for a, b in ((here, there), (there, here))
            )
            return self._propagate(clip, to_next, to_last)

    def _stack(self, x: Tensor, stack: Any) -> Tensor:
        x = F.leaky_relu(stack.first(x), 0.1)
        for block in stack.blocks:
            x = x + block.conv2(F.relu(block.conv1(x)))
        return x

    def _clean(self, frames: Tensor) -> Tensor:
        made: Tensor = self.model.cleaning.last(self._stack(frames, self.model.cleaning.body))
        return made

    def _flow(self, reference: Tensor, neighbour: Tensor) -> Tensor:
        net = self.model.flow
        height, width = reference.shape[2:]
        size = tuple(-(-n // 32) * 32 for n in (height, width))
        pairs = []
        for frames in (reference, neighbour):
            levels = [(F.interpolate(frames, size=size, mode="bilinear") - net.mean) / net.std]
            for _ in range(5):
                levels.append(F.avg_pool2d(levels[-1], 2))
            pairs.append(levels[::-1])
        flow = reference.new_zeros(len(reference), 2, size[0] // 32, size[1] // 32)
        for i, level in enumerate(net.levels):
            if i:
                flow = 2 * F.interpolate(flow, scale_factor=2, mode="bilinear", align_corners=True)
            x = torch.cat([pairs[0][i], self._warp(pairs[1][i], flow, "border"), flow], 1)
            for number, layer in enumerate(level.convs):
                x = layer(x) if number == 4 else F.relu(layer(x))
            flow = flow + x
        flow = F.interpolate(flow, size=(height, width), mode="bilinear")
        return flow * flow.new_tensor([width / size[1], height / size[0]]).view(1, 2, 1, 1)

    @staticmethod
    def _warp(x: Tensor, flow: Tensor, border: str = "zeros") -> Tensor:
        height, width = x.shape[2:]
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        grid = torch.stack([columns, rows], 2).to(x) + flow.permute(0, 2, 3, 1)
        sides = x.new_tensor([max(width - 1, 1), max(height - 1, 1)])
        return F.grid_sample(x, 2 * grid / sides - 1, mode="bilinear", padding_mode=border, align_corners=True)

    def _propagate(self, clip: Tensor, to_next: Tensor, to_last: Tensor) -> Tensor:
        net, (n, t, _, h, w) = self.model, clip.shape
        features, behind = clip.new_zeros(n, net.width, h, w), []
        for i in range(t - 1, -1, -1):
            features = self._warp(features, to_next[:, i]) if i < t - 1 else features
            features = self._stack(torch.cat([clip[:, i], features], 1), net.backward_branch.stack)
            behind.append(features)
        behind, made = behind[::-1], []
        features = torch.zeros_like(features)
        for i in range(t):
            features = self._warp(features, to_last[:, i - 1]) if i else features
            features = self._stack(torch.cat([clip[:, i], features], 1), net.forward_branch.stack)
            x = F.leaky_relu(net.tail.fusion(torch.cat([behind[i], features], 1)), 0.1)
            for layer in (net.tail.enlarge1, net.tail.enlarge2):
                x = F.leaky_relu(F.pixel_shuffle(layer(x), 2), 0.1)
            x = net.tail.last(F.leaky_relu(net.tail.high(x), 0.1))
            made.append(x + F.interpolate(clip[:, i], scale_factor=4, mode="bilinear"))
        return torch.stack(made, 1)


def contests(size: tuple[int, int], threads: int) -> Iterator[Contest]:
    """Clips of three frames; fresh weights, which do not change the speed.

    Args:
        size: width and height of the frames.
        threads: for both.
    """
    width, height = size
    large = width * height > 1 << 19
    name = "realbasicvsr_tiny" if large else "realbasicvsr"
    options = {} if large else {"blocks": 5, "cleaning_blocks": 5}
    note = (
        "the small relative (16 channels, 3 blocks): the published network takes a minute a frame at this size"
        if large
        else "64 channels as published, 5 of 20 residual blocks in each part, so that a round takes seconds"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = registry.create(name, weights=None, threshold=255.0, **options)
    clip = torch.rand(1, FRAMES, 3, height, width, generator=torch.Generator().manual_seed(0))
    steps, ours = _steps(model, threads)
    streamer = Streamer(model, FRAMES, 0, steps)
    official = Plain(model)
    inside = functools.partial(peers.torch_threads, threads)

    def stream() -> None:
        for frame in streamer(clip[0]):
            del frame  # it would go to the encoder

    yield Contest(
        f"{'RealBasicVSR-tiny' if large else 'RealBasicVSR'}, {FRAMES} frames to x4",
        Contender(ours, stream, threads, inside),
        Contender("the published algorithm in PyTorch", lambda: official(clip), threads, inside),
        notes=(note, "frames stream out one by one; the published code keeps the clip and all its results"),
    )


def _steps(model: Any, threads: int) -> tuple[Any, str]:
    if importlib.util.find_spec("openvino") is None:
        return model, "RealBasicVSR by saccade, PyTorch"
    from saccade.restoration.realbasicvsr.compiled import Compiled

    return Compiled(model, threads), "RealBasicVSR by saccade, OpenVINO"


def rows(threads: int, rounds: int) -> tuple[list[Row], list[str]]:
    """Streaming memory from 50 to 500 frames, and what the stochastic degradation scheme saves."""
    times, notes = _degradation(threads, rounds)
    command = f"saccade bench restoration --threads {threads}"
    what = f"{LENGTH} frames of {SIDE} x {SIDE} loaded and degraded for one training clip"
    facts = {"system": "realbasicvsr", "what": what, "size": f"{SIDE}x{SIDE}", "command": command}
    first, second = times
    memory = {n: streaming_peak(n) for n in (50, 500)}
    notes.append(
        f"streaming {memory[50] / 2**20:.0f} MiB at its peak for 50 frames of 32 x 32, "
        f"{memory[500] / 2**20:.0f} MiB for 500 (RealBasicVSR-tiny, PyTorch)"
    )
    return compare(times, first, [second], **facts), notes


LENGTH, SIDE = 30, 256


def _degradation(threads: int, rounds: int) -> tuple[dict[str, Timing], list[str]]:
    """Loading and degrading every frame, against half of them, run forward and backward."""
    from saccade.data.degrade import SecondOrder, mirrored

    degrade = SecondOrder()
    with tempfile.TemporaryDirectory(prefix="saccade-bench-") as name:
        files = []
        for i in range(LENGTH):
            files.append(Path(name) / f"{i:03}.png")
            Image.fromarray(scene(720, 1280)[:, : 1280 - i].copy()).save(files[-1])

        def load(count: int) -> Tensor:
            frames = [np.array(Image.open(f))[:SIDE, :SIDE] for f in files[:count]]
            return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 255

        def half(seeds: Iterator[int]) -> Tensor:
            return mirrored(degrade(load(LENGTH // 2), np.random.default_rng(next(seeds))))

        def whole(seeds: Iterator[int]) -> Tensor:
            return degrade(load(LENGTH), np.random.default_rng(next(seeds)))

        inside = functools.partial(peers.torch_threads, threads)
        contenders = [
            Contender("half the frames, mirrored", functools.partial(half, itertools.count()), threads, inside),
            Contender("every frame", functools.partial(whole, itertools.count()), threads, inside),
        ]
        timings = measure(contenders, max(rounds, 9))
    return timings, ["the degradation draws other parameters each time: its cost varies from clip to clip"]


def streaming_peak(frames: int) -> int:
    """Peak bytes of a fresh process that streams so many frames."""
    code = (
        "import resource, sys, torch; torch.set_num_threads(1)\n"
        "from saccade.registry import create\n"
        "from saccade.restoration.realbasicvsr.streaming import Streamer\n"
        "model = create('realbasicvsr_tiny', weights=None)\n"
        "given = (torch.rand(3, 32, 32) for _ in range(int(sys.argv[1])))\n"
        "print(sum(1 for _ in Streamer(model)(given)), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    command = [sys.executable, "-c", code, str(frames)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    if int(said[0]) != frames:
        raise RuntimeError(f"{said[0]} frames came out of {frames}")
    return int(said[1]) << 10
