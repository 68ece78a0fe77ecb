"""8-bit arithmetic for the inner convolutions of a luma network, by OpenVINO on processors with VNNI.

    first conv, float -- [ x / peak -- int8 -- conv in int8, kernel * peak -- float ] x m -- last conv, float

Nothing is trained and no data is needed. Every input channel of a convolution is brought to one range by its peak over
a few generated pictures, the kernel takes the peaks up, and its outputs are quantised each with its own step. So one
step serves all channels of a tensor, as fast kernels need, while every channel uses its eight bits. The first
convolution (one channel: nothing to gain) and the last (its errors would not be averaged away) stay in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from saccade.runtime.colour import BLACK, luma
from saccade.runtime.scene import scene

__all__ = ["quantise"]

PICTURES, SIDE = 4, 224  # what the peaks are taken over


def quantise(ov: Any, network: Any) -> None:
    """Let the inner convolutions of a luma network run in int8, in place.

    Args:
        ov: the openvino module.
        network: model (1, 1, h, w) -> (1, 1, scale*h, scale*w) in float32.
    """
    op = ov.opset13
    convolutions = [node for node in network.get_ordered_ops() if node.get_type_name() == "Convolution"]
    inner = [c for c in convolutions[1:-1] if c.input_value(1).get_node().get_type_name() == "Constant"]
    if not inner:
        return
    for convolution, peak in zip(inner, _peaks(ov, network, [c.input_value(0) for c in inner]), strict=True):
        kernel = convolution.input_value(1).get_node().data * peak  # (o, i, k, k) * (1, i, 1, 1)
        largest = np.abs(kernel).max((1, 2, 3), keepdims=True)
        x = op.fake_quantize(
            convolution.input_value(0),
            *_floats(op, -peak * 128 / 127, peak, np.float32(-128 / 127), np.float32(1)),
            256,
        )
        weights = op.fake_quantize(*_floats(op, kernel, -largest, largest, -largest, largest), 255)
        facts = convolution.get_attributes()
        made = op.convolution(x, weights, facts["strides"], facts["pads_begin"], facts["pads_end"], facts["dilations"])
        for target in convolution.output(0).get_target_inputs():
            target.replace_source_output(made.output(0))
    network.validate_nodes_and_infer_types()


def _peaks(ov: Any, network: Any, values: list[Any]) -> list[np.ndarray]:
    """Largest magnitude of every channel of ``values`` over generated pictures: (1, C, 1, 1) each, above zero."""
    op = ov.opset13
    axes = op.constant(np.array([0, 2, 3], dtype=np.int64))
    peaks = [op.reduce_max(op.abs(value), axes, True).output(0) for value in values]
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    watched = ov.Core().compile_model(ov.Model(peaks, network.get_parameters(), "watched"), "CPU", options)
    found = []
    for seed in range(PICTURES):
        y = luma(scene(SIDE, SIDE, seed) / np.float32(255)) + BLACK
        found.append([np.array(peak) for peak in watched(y[None, None]).values()])
    largest = [np.max(each, axis=0) for each in zip(*found, strict=True)]
    return [np.maximum(peak, max(1e-3 * float(peak.max()), 1e-6)) for peak in largest]


def _floats(op: Any, *values: Any) -> list[Any]:
    return [op.constant(np.asarray(value, dtype=np.float32)) for value in values]
