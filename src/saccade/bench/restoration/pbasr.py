"""PBaSR: the melted network beside the same one run plainly."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from saccade.bench import peers
from saccade.bench.contest import Contest
from saccade.bench.harness import Contender
from saccade.checkpoint import save
from saccade.registry import create
from saccade.restoration.upscale import Upscaler
from saccade.runtime.scene import scene

__all__ = ["contests"]


def contests(size: tuple[int, int], threads: int) -> Iterator[Contest]:
    """A small RRDBNet x4 (3 blocks of 32 channels): the published one takes 17.6 TMACs for 1080p."""
    import torch

    width, height = size
    picture = scene(height, width)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network: Any = create("rrdbnet", weights=None, blocks=3, width=32, growth=16)
    with tempfile.TemporaryDirectory(prefix="saccade-bench-") as name:
        before = os.environ.get("SACCADE_CACHE")
        os.environ["SACCADE_CACHE"] = name
        try:
            save(network, Path(name) / "rrdbnet.safetensors")
            worker = Upscaler(Path(name) / "rrdbnet.safetensors", threads=threads)
            worker.engine(3)
        finally:
            os.environ.pop("SACCADE_CACHE") if before is None else os.environ.update(SACCADE_CACHE=before)

        def plainly() -> Any:
            given = torch.from_numpy(picture).permute(2, 0, 1)[None].float().div(255)
            made = network(given)[0].clamp(0, 1).mul(255).round().byte().permute(1, 2, 0)
            return np.ascontiguousarray(made.numpy())

        yield Contest(
            "RRDBNet x4, 3 blocks of 32 channels, RGB to RGB",
            Contender("RRDBNet by saccade", lambda: worker.array(picture), threads),
            Contender("RRDBNet by PyTorch", plainly, threads, functools.partial(peers.torch_threads, threads)),
            notes=("pbasr: a small RRDBNet; the published one (16.7 M parameters) needs minutes a picture on a CPU",),
        )
