"""Encoders on bytes: OpenVINO where it is installed, else torch; batch norms folded, float32 throughout.

pixels (h,w,3) uint8 -- /255 -- [mean, deviation] -- convolutions -- mean over the picture --> (D,)
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from saccade.errors import UsageError
from saccade.quality.reiqa.encoder import DEVIATION, FAINT, FAINTEST, FLOOR, MEAN, WINDOW, Encoder, Residual
from saccade.quality.reiqa.network import ReIQA
from saccade.runtime.engines import available_backends, cores, load_openvino

__all__ = ["Backend", "encoders", "pick_backend"]

Backend = Literal["auto", "openvino", "torch"]
Encode = Callable[[np.ndarray], np.ndarray]


def pick_backend(asked: Backend) -> str:
    """``auto`` is OpenVINO where it is installed.

    Raises:
        UsageError: no such backend.
    """
    if asked not in ("auto", "openvino", "torch"):
        raise UsageError(f"backends for scoring are auto, openvino and torch, not {asked!r}")
    return ("openvino" if "openvino" in available_backends() else "torch") if asked == "auto" else asked


def encoders(model: ReIQA, backend: str, threads: int = 0) -> dict[str, Encode]:
    """For every branch of the model: pixels (h, w, 3) uint8 -> features (D,) float32.

    Raises:
        UnavailableError: OpenVINO is asked for and not installed.
    """
    names = [name for name in ("quality", "content") if hasattr(model, name)]
    make = _with_openvino if backend == "openvino" else _with_torch
    return {
        name: make(copy.deepcopy(getattr(model, name).encoder).fuse(), name == "content", threads or cores())
        for name in names
    }


def _with_torch(encoder: Encoder, normalise: bool, threads: int) -> Encode:
    encoder = encoder.to(memory_format=torch.channels_last)
    mean, deviation = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, DEVIATION))
    torch.set_num_threads(threads)

    @torch.inference_mode()
    def encode(pixels: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(np.array(pixels))[None].permute(0, 3, 1, 2).float().div_(255)
        if normalise:
            x = x.sub_(mean).div_(deviation)
        made: np.ndarray = encoder(x)[0].numpy()
        return made

    return encode


def _with_openvino(encoder: Encoder, normalise: bool, threads: int) -> Encode:
    ov = load_openvino()
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    compiled = ov.Core().compile_model(_graph(ov, encoder, normalise), "CPU", options)
    request = compiled.create_infer_request()

    def encode(pixels: np.ndarray) -> np.ndarray:
        request.infer([np.ascontiguousarray(pixels)[None]], share_inputs=True)
        made = np.array(request.get_output_tensor(0).data[0])
        compiled.release_memory()  # else both encoders keep the maps of their largest picture; it takes no longer
        return made

    return encode


def _graph(ov: Any, encoder: Encoder, normalise: bool) -> Any:
    """The fused encoder as an OpenVINO model: ``pixels`` (1, h, w, 3) uint8 -> (1, D)."""
    op = ov.opset13
    pixels = op.parameter([1, -1, -1, 3], ov.Type.u8, name="pixels")
    mean, deviation = (np.array(v if normalise else c, np.float32) for v, c in ((MEAN, 0), (DEVIATION, 1)))
    # the mean goes off before the padding, as in training; the division by 255 and the deviation go into the kernels
    x = op.subtract(op.convert(pixels, "f32"), op.constant(np.broadcast_to(255 * mean, 3).astype(np.float32)))
    x = op.transpose(x, op.constant(np.array([0, 3, 1, 2])))
    scale = 1 / (255 * np.broadcast_to(deviation, 3))
    if encoder.contrast:
        x = _local_contrast(op, op.multiply(x, op.constant(scale.astype(np.float32).reshape(1, 3, 1, 1))))
        x = op.relu(_convolution(op, x, encoder.conv1))
    else:
        x = op.relu(_convolution(op, x, encoder.conv1, scale.astype(np.float32)))
    x = op.max_pool(x, [2, 2], [1, 1], [1, 1], [1, 1], [3, 3], "floor").output(0)
    for i in range(encoder.stages):
        for block in cast("list[Residual]", getattr(encoder, f"layer{i + 1}")):
            x = _residual(op, x, block)
    y = op.reduce_mean(x, op.constant(np.array([2, 3])), False)
    if encoder.contrast:
        y = op.log(op.add(y, op.constant(np.float32(FLOOR))))
    return ov.Model([y.output(0)], [pixels], "encoder")


def _local_contrast(op: Any, x: Any) -> Any:
    """`encoder.local_contrast`."""

    def number(value: float) -> Any:
        return op.constant(np.float32(value))

    def window_mean(y: Any) -> Any:
        reach = op.constant(np.array([0, 0, WINDOW // 2, WINDOW // 2]))
        y = op.pad(y, reach, reach, "edge")
        for shape in ([WINDOW, 1], [1, WINDOW]):
            y = op.avg_pool(y, [1, 1], [0, 0], [0, 0], shape, True, "floor").output(0)
        return y

    x = op.subtract(x, window_mean(x))
    variance = window_mean(op.multiply(x, x))
    over = op.divide(x, op.sqrt(op.add(variance, number(FAINT**2))))
    spread = op.log(op.add(variance, number(FAINTEST**2)))
    return op.concat([over, op.add(op.multiply(spread, number(0.25)), number(1.5))], 1)


def _residual(op: Any, x: Any, block: Residual) -> Any:
    kept = x if block.downsample is None else _convolution(op, x, cast(nn.Conv2d, block.downsample[0]))
    y = _convolution(op, op.relu(_convolution(op, x, block.conv1)), block.conv2)
    if block.bottleneck:
        y = _convolution(op, op.relu(y), block.conv3)
    return op.relu(op.add(y, kept))


def _convolution(op: Any, x: Any, layer: nn.Conv2d, scale: np.ndarray | None = None) -> Any:
    kernel = layer.weight.detach().numpy()
    kernel = kernel if scale is None else kernel * scale[None, :, None, None]
    stride, padding = list(layer.stride), [int(p) for p in layer.padding]
    y = op.convolution(x, op.constant(kernel.astype(np.float32)), stride, padding, padding, [1, 1])
    return op.add(y, op.constant(cast(Tensor, layer.bias).detach().numpy()[None, :, None, None]))
