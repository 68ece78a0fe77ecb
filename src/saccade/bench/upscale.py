"""The main job in memory: 8-bit RGB pixels in, 8-bit RGB pixels out, beside other engines, resizers and networks.

Three questions, three groups of rows:

    the network alone   grey through our tiles and the fused graph, bytes to bytes, beside the same network run whole by
                        PyTorch, ONNX Runtime, OpenVINO and OpenCV on ready-made floats
    the whole job       RGB to RGB, beside bicubic resizers (the floor of any enlargement) and our other backends
    another network     RGB to RGB, beside SRVGGNetCompact, the small network that upscaling programs run by spandrel
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from saccade import registry
from saccade.bench import peers
from saccade.bench.floor import Floor, measure_floor
from saccade.bench.harness import Advance, Contender, Result, Row, Timing, compare, measure, skipped
from saccade.restoration.upscale import Upscaler
from saccade.runtime.colour import BLACK, luma
from saccade.runtime.engines import cores
from saccade.runtime.scene import scene

__all__ = ["run"]

BACKENDS = ("openvino", "onnxruntime", "torch")
WORKERS = ("openvino", "openvino int8", "onnxruntime", "torch")  # rows of the whole job, in their order


def run(
    size: tuple[int, int] = (1920, 1080),
    *,
    scale: int = 2,
    model: str = "sesr_m5",
    threads: int = 0,
    rounds: int = 7,
    compiled: bool = False,
    advance: Callable[[str, float], Advance] | None = None,
) -> Result:
    """Run the suite.

    Args:
        size: width and height of the input.
        scale, model: what enlarges; its weights must ship, or ``model`` be a file of weights.
        threads: of every contender that can be told; 0 for all cores.
        rounds: timed calls of each contender.
        compiled: also ``torch.compile`` (15 s more).
        advance: makes a progress bar from words and a total.

    Raises:
        UsageError: as `Upscaler`.
    """
    threads = threads or cores()
    width, height = size
    command = f"saccade bench upscale --size {width}x{height} --scale {scale} --model {model} --threads {threads}"
    backends = {name: Upscaler(model, scale, backend=name, threads=threads) for name in BACKENDS}
    system = registry.entry(backends["openvino"].choice.name).system
    picture, notes = scene(height, width), list[str]()

    def timed(what: str, contenders: list[Contender], turns: int = rounds) -> dict[str, Timing]:
        bar = advance(what, len(contenders) * (turns + 1)) if advance else None
        return measure(contenders, turns, advance=bar)

    with tempfile.TemporaryDirectory(prefix="saccade-bench-") as folder:
        alone = [_ours("saccade, grey to grey", backends["openvino"], picture[:, :, :1], threads)]
        alone += _networks(
            backends["torch"], luma(picture / np.float32(255)) + BLACK, threads, Path(folder), compiled, notes
        )
        rows = _rows("the network alone", timed("network", alone), system, size, command)
        workers = dict(backends)
        workers["openvino int8"] = Upscaler(model, scale, backend="openvino", threads=threads, precision="int8")
        whole = [_ours(f"saccade, {name}", workers[name], picture, threads) for name in WORKERS]
        whole += _resizers(picture, scale, threads, notes)
        timings = timed("whole job", whole)
        rows += _rows("8-bit RGB enlarged", timings, system, size, command)
        quarter = scene(-(-height // 2), -(-width // 2))
        others = [
            _ours("saccade, openvino", backends["openvino"], quarter, threads),
            *_srvgg(quarter, scale, threads, notes),
        ]
        if len(others) > 1:
            rows += _rows(
                "8-bit RGB enlarged", timed("other networks", others, min(rounds, 3)), system, _size(quarter), command
            )
    floor = measure_floor(threads)
    least = _floor_row(rows[0], floor, backends["openvino"].choice.macs, width * height, scale)
    if least.peer_ms < rows[0].ours_best_ms:
        rows.append(least)
    else:
        notes.append("the machine was too busy to measure its peak: ours came out faster")
    return Result("upscale", command, rounds, tuple(rows), (*notes, str(floor)))


def _size(picture: np.ndarray) -> tuple[int, int]:
    return picture.shape[1], picture.shape[0]


def _rows(what: str, timings: dict[str, Timing], system: str, size: tuple[int, int], command: str) -> list[Row]:
    return compare(timings, next(iter(timings)), system=system, what=what, size="{}x{}".format(*size), command=command)


def _floor_row(row: Row, floor: Floor, macs: float, pixels: int, scale: int) -> Row:
    """Ours beside what the machine's peaks would allow: every MAC at full speed, every pixel moved once."""
    least = round(1e3 * floor.seconds(macs * pixels, pixels * (1.0 + scale**2)), 3)
    ratio = round(least / row.ours_ms, 3)
    return replace(
        row, peer="the machine's peak", peer_ms=least, peer_best_ms=least, ratio=ratio, peer_threads=floor.threads
    )


def _ours(name: str, worker: Upscaler, picture: np.ndarray, threads: int) -> Contender:
    picture = np.ascontiguousarray(picture)
    worker.engine(picture.shape[2])
    return Contender(name, lambda: worker.array(picture), threads)


# -- the same network, by other means


def _networks(
    worker: Upscaler, y: np.ndarray, threads: int, folder: Path, compiled: bool, notes: list[str]
) -> list[Contender]:
    """The network on (1, 1, h, w) float luma, run whole."""
    import torch

    from saccade.checkpoint import load
    from saccade.runtime.graphs import export

    given = np.ascontiguousarray(y[None, None])
    network: Any = load(worker.choice.weights)
    network = (network.collapse() if hasattr(network, "collapse") else network).eval()
    inside = functools.partial(peers.torch_threads, threads)
    plain, last = torch.from_numpy(given), torch.from_numpy(given).contiguous(memory_format=torch.channels_last)
    nhwc: Any = load(worker.choice.weights).eval().to(memory_format=torch.channels_last)
    nhwc = nhwc.collapse().to(memory_format=torch.channels_last) if hasattr(nhwc, "collapse") else nhwc
    made = [
        Contender("PyTorch, eager", lambda: network(plain), threads, inside),
        Contender("PyTorch, eager, channels_last", lambda: nhwc(last), threads, inside),
    ]
    if compiled:
        fast = torch.compile(nhwc)
        made.append(Contender("PyTorch, torch.compile", lambda: fast(last), threads, inside))
    graph = folder / "network.onnx"
    export(network, graph)
    for name, make in (
        ("ONNX Runtime", peers.onnxruntime),
        ("OpenVINO", peers.openvino),
        ("OpenCV dnn", peers.opencv),
    ):
        try:
            made.append(Contender(name, make(graph, given, threads), threads))
        except Exception as error:  # a peer that is missing, or cannot run the graph, is left out and said so
            notes.append(skipped(name, error))
    return made


# -- resizers


def _resizers(picture: np.ndarray, scale: int, threads: int, notes: list[str]) -> list[Contender]:
    made: list[Contender] = []
    for name, make, count in (
        ("OpenCV, bicubic", _opencv, threads),
        ("Pillow, bicubic", _pillow, 1),
        ("libvips, bicubic", _libvips, threads),
    ):
        try:
            made.append(Contender(name, make(picture, scale, count), count))
        except ImportError as error:
            notes.append(skipped(name, error))
    return made


def _opencv(picture: np.ndarray, scale: int, threads: int) -> Callable[[], Any]:
    import cv2

    size = (picture.shape[1] * scale, picture.shape[0] * scale)

    def resize() -> Any:
        cv2.setNumThreads(threads)
        return cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC)

    return resize


def _pillow(picture: np.ndarray, scale: int, threads: int) -> Callable[[], Any]:
    from PIL import Image

    image, size = Image.fromarray(picture), (picture.shape[1] * scale, picture.shape[0] * scale)
    return lambda: np.asarray(image.resize(size, Image.Resampling.BICUBIC))


def _libvips(picture: np.ndarray, scale: int, threads: int) -> Callable[[], Any]:
    import pyvips

    image = pyvips.Image.new_from_array(picture)

    def resize() -> Any:
        made = image.resize(scale, kernel="cubic")
        made.set_type(pyvips.GValue.gint_type, "vips-concurrency", threads)
        return made.numpy()

    return resize


# -- another network


def _srvgg(picture: np.ndarray, scale: int, threads: int, notes: list[str]) -> list[Contender]:
    """SRVGGNetCompact (64 channels, 16 convolutions) by spandrel; random weights, which do not change the speed."""
    import torch

    try:
        from spandrel import ModelLoader

        loaded: Any = ModelLoader().load_from_state_dict(_srvgg_weights(scale, 64, 16))
    except Exception as error:
        notes.append(skipped("SRVGGNetCompact", error))
        return []
    network = loaded.model.eval().to(memory_format=torch.channels_last)

    def enlarge() -> Any:
        x = torch.from_numpy(picture).permute(2, 0, 1)[None].float().div(255)  # a view of NHWC: channels_last already
        return network(x).clamp(0, 1).mul(255).round().byte()[0].permute(1, 2, 0).numpy()

    return [Contender("SRVGGNetCompact, spandrel", enlarge, threads, functools.partial(peers.torch_threads, threads))]


def _srvgg_weights(scale: int, width: int, convolutions: int) -> dict[str, Any]:
    """A state dict under the published names, from a seed."""
    import torch

    random = torch.Generator().manual_seed(0)
    shapes = [(width, 3), *[(width, width)] * convolutions, (3 * scale**2, width)]
    state: dict[str, Any] = {}
    for i, (outputs, inputs) in enumerate(shapes):
        state[f"body.{2 * i}.weight"] = torch.randn(outputs, inputs, 3, 3, generator=random) * (2 / (9 * inputs)) ** 0.5
        state[f"body.{2 * i}.bias"] = torch.zeros(outputs)
        if i < len(shapes) - 1:
            state[f"body.{2 * i + 1}.weight"] = torch.full((width,), 0.1)
    return state
