"""Encoders on bytes: OpenVINO where it is installed, else torch; batch norms folded, float32 throughout.

pixels (h,w,3) uint8 -- /255 -- [mean, deviation] -- [local contrast, torch] -- convolutions -- mean --> (D,)
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from saccade.errors import UsageError
from saccade.quality.reiqa.encoder import DEVIATION, FLOOR, MEAN, WINDOW, Encoder, Residual, local_contrast
from saccade.quality.reiqa.network import ReIQA
from saccade.runtime.engines import available_backends, cores, load_openvino
from saccade.runtime.threads import on_threads

__all__ = ["Backend", "encoders", "pick_backend"]

Backend = Literal["auto", "openvino", "torch"]
Encode = Callable[[np.ndarray], np.ndarray]

STRIP = 64  # rows of local contrast that are made at once


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
    torch.set_num_threads(threads)

    @torch.inference_mode()
    def encode(pixels: np.ndarray) -> np.ndarray:
        made: np.ndarray = encoder(_normalised(pixels, normalise))[0].numpy()
        return made

    return encode


def _normalised(pixels: np.ndarray, normalise: bool) -> Tensor:
    """(h, w, 3) bytes as (1, 3, h, w) in [0, 1], less the mean and over the deviation if asked for."""
    x = torch.from_numpy(np.array(pixels))[None].permute(0, 3, 1, 2).float().div_(255)
    if normalise:
        mean, deviation = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, DEVIATION))
        x = x.sub_(mean).div_(deviation)
    return x


def _with_openvino(encoder: Encoder, normalise: bool, threads: int) -> Encode:
    ov = load_openvino()
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    compiled = ov.Core().compile_model(_graph(ov, encoder, normalise), "CPU", options)
    request = compiled.create_infer_request()

    def encode(pixels: np.ndarray) -> np.ndarray:
        if encoder.contrast:
            given = contrast_in_strips(pixels, normalise, threads)
        else:
            given = np.ascontiguousarray(pixels)[None]
        request.infer([given], share_inputs=True)
        made = np.array(request.get_output_tensor(0).data[0])
        compiled.release_memory()  # else both encoders keep the maps of their largest picture; it takes no longer
        return made

    return encode


@torch.inference_mode()
def contrast_in_strips(pixels: np.ndarray, normalise: bool, threads: int) -> np.ndarray:
    """`encoder.local_contrast` of bytes, strip by strip, which stay in the processor's cache.

    As nodes of OpenVINO's graph it takes five times as long: three channels are padded to sixteen there.

    Shape: (h, w, 3) uint8 -> (1, 6, h, w) float32.
    """
    height, width = pixels.shape[:2]
    made = torch.empty(1, 6, height, width)
    reach = 2 * (WINDOW // 2)  # a window of differences, each from a window's mean
    with on_threads(threads):
        for start in range(0, height, STRIP):
            top = max(start - reach, 0)
            x = _normalised(pixels[top : start + STRIP + reach], normalise)
            made[:, :, start : start + STRIP] = local_contrast(x)[:, :, start - top : start - top + STRIP]
    return made.numpy()


def _graph(ov: Any, encoder: Encoder, normalise: bool) -> Any:
    """The fused encoder as an OpenVINO model: ``pixels`` (1, h, w, 3) uint8 -> (1, D).

    One that looks at local contrast takes that instead, (1, 6, h, w) float32.
    """
    op = ov.opset13
    if encoder.contrast:
        given = op.parameter([1, 6, -1, -1], ov.Type.f32, name="contrast")
        x = op.relu(_convolution(op, given, encoder.conv1))
    else:
        given = op.parameter([1, -1, -1, 3], ov.Type.u8, name="pixels")
        mean, deviation = (np.array(v if normalise else c, np.float32) for v, c in ((MEAN, 0), (DEVIATION, 1)))
        # the mean goes off before the padding, as in training; what it is divided by goes into the kernels
        x = op.subtract(op.convert(given, "f32"), op.constant(np.broadcast_to(255 * mean, 3).astype(np.float32)))
        x = op.transpose(x, op.constant(np.array([0, 3, 1, 2])))
        scale = 1 / (255 * np.broadcast_to(deviation, 3))
        x = op.relu(_convolution(op, x, encoder.conv1, scale.astype(np.float32)))
    x = op.max_pool(x, [2, 2], [1, 1], [1, 1], [1, 1], [3, 3], "floor").output(0)
    for i in range(encoder.stages):
        for block in cast("list[Residual]", getattr(encoder, f"layer{i + 1}")):
            x = _residual(op, x, block)
    y = op.reduce_mean(x, op.constant(np.array([2, 3])), False)
    if encoder.contrast:
        y = op.log(op.add(y, op.constant(np.float32(FLOOR))))
    return ov.Model([y.output(0)], [given], "encoder")


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
