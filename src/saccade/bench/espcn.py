"""ESPCN: convolving at the input's size, beside the same layers on the enlarged picture, and beside OpenCV's runner."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from saccade import registry
from saccade.bench import peers
from saccade.bench.harness import Advance, Contender, Result, compare, measure, skipped
from saccade.checkpoint import save
from saccade.restoration.upscale import Upscaler
from saccade.runtime.colour import BLACK, luma
from saccade.runtime.engines import cores
from saccade.runtime.graphs import export
from saccade.runtime.scene import scene

__all__ = ["run"]


def run(
    size: tuple[int, int] = (960, 540),
    *,
    scale: int = 3,
    threads: int = 0,
    rounds: int = 5,
    advance: Callable[[str, float], Advance] | None = None,
) -> Result:
    """Run the suite on luma; fresh weights, which do not change the speed.

    Args:
        size: width and height of the input.
        scale, threads, rounds, advance: as in `bench.upscale.run`.
    """
    import torch

    threads = threads or cores()
    width, height = size
    picture = scene(height, width)
    given = np.ascontiguousarray((luma(picture / np.float32(255)) + BLACK)[None, None])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network: Any = registry.create("espcn", weights=None, scale=scale)
        large: Any = _at_high_resolution(network, scale)
    x = torch.from_numpy(given)
    inside = functools.partial(peers.torch_threads, threads)
    grey, notes = np.ascontiguousarray(picture[:, :, :1]), list[str]()
    with tempfile.TemporaryDirectory(prefix="saccade-bench-") as name, _cache(Path(name)):
        save(network, Path(name) / "espcn.safetensors")
        export(network, Path(name) / "espcn.onnx")
        worker = Upscaler(Path(name) / "espcn.safetensors", backend="openvino", threads=threads)
        worker.engine(1)
        contenders = [
            Contender("ESPCN by saccade, grey to grey", lambda: worker.array(grey), threads),
            Contender("ESPCN by PyTorch", lambda: network(x), threads, inside),
            Contender("the same layers on the enlarged picture, PyTorch", lambda: large(x), threads, inside),
        ]
        for title, make in (("ONNX Runtime", peers.onnxruntime), ("OpenCV dnn", peers.opencv)):
            try:
                run_it = make(Path(name) / "espcn.onnx", given, threads)
                contenders.append(Contender(f"ESPCN by {title}", run_it, threads))
            except Exception as error:  # a peer that is missing, or cannot run the graph, is left out and said so
                notes.append(skipped(title, error))
        bar = advance("sub-pixels", len(contenders) * (rounds + 1)) if advance else None
        timings = measure(contenders, rounds, advance=bar)
    command = f"saccade bench espcn --size {width}x{height} --scale {scale} --threads {threads}"
    facts = {"system": "espcn", "what": f"luma enlarged x{scale}", "size": f"{width}x{height}", "command": command}
    first, plain, slow = (c.name for c in contenders[:3])
    rows = compare(timings, plain, [slow], **facts) + compare(timings, first, **facts)
    return Result("espcn", command, rounds, tuple(rows), tuple(notes))


def _at_high_resolution(network: Any, scale: int) -> Any:
    """The layers of an ESPCN behind a bicubic enlargement, with one output channel instead of scale^2."""
    import torch
    from torch import nn

    hidden = [network.features, nn.Tanh(), network.mapping, nn.Tanh()]
    last = nn.Conv2d(network.mapping.out_channels, 1, 3, padding=1)
    up = nn.Upsample(scale_factor=scale, mode="bicubic")
    return nn.Sequential(up, *hidden, last).eval().to(memory_format=torch.channels_last)


@contextmanager
def _cache(folder: Path) -> Iterator[None]:
    """Keep what is exported in ``folder`` instead of the user's cache."""
    before = os.environ.get("SACCADE_CACHE")
    os.environ["SACCADE_CACHE"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["SACCADE_CACHE"]
        else:
            os.environ["SACCADE_CACHE"] = before
