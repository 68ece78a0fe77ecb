"""One OpenVINO graph from integer pixels to integer pixels: colour, network, bicubic chroma, rounding, shuffle.

    pixels (1, h, w, C) -- luma -- network up to its shuffle -- clamp -- 1x1, s^2 -> s^2 C --(+)-- round -- shuffle
                     |_____ mirrored by 2 -- bicubic of RGB without its luma, 5x5, C -> s^2 C _|   (1, sh, sw, C)

What `colour.enlarge_with_luma` does, arranged so that little of it touches memory: everything up to the rounding
happens at the input's size with sub-pixels as channels, and what is shuffled into place are bytes, not floats. The
channels are ordered (sub-row, sub-column, colour), so a row of a block leaves as one run of bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from saccade.runtime.colour import BLACK, LUMA, SWING, bicubic_phases

__all__ = ["pixels_to_pixels", "rgb_pixels"]

LANES = 16  # float32 numbers in an AVX-512 register: fewer output channels leave a convolution's lanes idle


def pixels_to_pixels(ov: Any, luma: Any, scale: int, channels: int, dtype: np.dtype[Any]) -> Any:
    """Put colour around a luma network.

    Args:
        ov: the openvino module.
        luma: model (1, 1, h, w) -> (1, 1, scale*h, scale*w); taken apart.
        scale: its enlargement.
        channels: 1 (grey) or 3 (RGB).
        dtype: uint8 or uint16.

    Returns:
        The model; inputs ``pixels`` (1, h, w, C) and, for RGB, ``rows`` and ``columns`` as `colour.mirrored` gives.
    """
    op, full = ov.opset13, float(np.iinfo(dtype).max)
    kind = ov.Type.u8 if dtype == np.uint8 else ov.Type.u16
    pixels = op.parameter([1, -1, -1, channels], kind, name="pixels")
    rows = op.parameter([-1], ov.Type.i32, name="rows")
    columns = op.parameter([-1], ov.Type.i32, name="columns")
    used = [pixels, rows, columns] if channels == 3 else [pixels]
    for node in used:
        node.output(0).set_names({node.get_friendly_name()})

    def planes(x: Any) -> Any:
        return op.transpose(op.convert(x, "f32"), _integers(op, 0, 3, 1, 2))  # (1, C, h, w)

    weights = (LUMA if channels == 3 else np.array([SWING])).reshape(1, channels, 1, 1) / full
    y = op.add(_convolution(op, planes(pixels), weights), _floats(op, BLACK))
    fill_lanes(ov, luma)
    high = op.clamp(_sub_pixels(op, _splice(luma, y), scale), 0.0, 1.0)  # (1, s^2, h, w)

    gain, offset = full / SWING, -full * BLACK / SWING
    if channels == 3:
        around = op.gather(op.gather(pixels, rows, op.constant(1)), columns, op.constant(2))
        smooth = op.add(_convolution(op, planes(around), _chroma_kernel(scale)), _floats(op, offset))
        each = np.kron(np.eye(scale**2), np.full((channels, 1), gain))[:, :, None, None]  # the luma, to all colours
        made = op.add(_convolution(op, high, each), smooth)
    else:
        made = op.add(op.multiply(high, _floats(op, gain)), _floats(op, offset))
    made = op.convert(op.round(op.clamp(made, 0.0, full), "half_to_even"), kind.to_string())

    made = op.transpose(made, _integers(op, 0, 2, 3, 1))  # (1, h, w, s s C)
    made = op.reshape(made, _integers(op, 0, 0, 0, scale, scale * channels), True)
    made = op.transpose(made, _integers(op, 0, 1, 3, 2, 4))  # (1, h, s, w, s C)
    size = op.multiply(op.shape_of(pixels), _integers(op, 1, scale, scale, 1))
    return ov.Model([op.reshape(made, size, False).output(0)], used, "pixels_to_pixels")


def rgb_pixels(ov: Any, network: Any, channels: int, dtype: np.dtype[Any]) -> Any:
    """Put integer pixels around an RGB network that keeps the size.

    Args:
        ov: the openvino module.
        network: model (1, 3, h, w) -> (1, 3, h, w), values in [0, 1]; taken apart.
        channels: 1 (grey: three equal colours go in, their mean comes out) or 3 (RGB).
        dtype: uint8 or uint16.

    Returns:
        The model; input ``pixels`` (1, h, w, C), output of the same shape and type.
    """
    op, full = ov.opset13, float(np.iinfo(dtype).max)
    kind = ov.Type.u8 if dtype == np.uint8 else ov.Type.u16
    pixels = op.parameter([1, -1, -1, channels], kind, name="pixels")
    pixels.output(0).set_names({"pixels"})
    x = op.transpose(op.convert(pixels, "f32"), _integers(op, 0, 3, 1, 2))
    x = op.multiply(x, _floats(op, 1 / full))
    made = _splice(network, op.concat([x] * 3, 1) if channels == 1 else x)
    if channels == 1:
        made = op.reduce_mean(made, _integers(op, 1), True)
    made = op.clamp(op.multiply(made, _floats(op, full)), 0.0, full)
    made = op.convert(op.round(made, "half_to_even"), kind.to_string())
    made = op.transpose(made, _integers(op, 0, 2, 3, 1))
    return ov.Model([made.output(0)], [pixels], "rgb_pixels")


def _chroma_kernel(scale: int) -> np.ndarray:
    """(s s 3, 3, 5, 5): the bicubic enlargement of RGB minus its luma, sub-pixels as channels."""
    phases = bicubic_phases(scale)
    colour = np.eye(3) - LUMA[None, :] / SWING  # (out, in)
    return np.einsum("oc,it,js->ijocts", colour, phases, phases).reshape(3 * scale**2, 3, 5, 5)


def fill_lanes(ov: Any, network: Any) -> None:
    """Let a last convolution with few output channels make 2 x 2 neighbouring pixels at once, in place; exact.

    Four k x k kernels side by side in one (k+1) x (k+1) kernel with stride 2 have four times the channels: the 5x5
    convolution to 4 channels that ends SESR x2 fills a register instead of a quarter of it (2.3 times as fast).
    """
    op = ov.opset13
    last = [node for node in network.get_ordered_ops() if node.get_type_name() == "Convolution"][-1]
    kernel = last.input_value(1).get_node()
    if kernel.get_type_name() != "Constant":
        return
    k = kernel.data
    outputs, inputs, height, width = k.shape
    same = {"strides": [1, 1], "dilations": [1, 1], "pads_begin": [height // 2, width // 2]}
    facts = last.get_attributes()
    if 4 * outputs > LANES or height != width or height % 2 == 0 or any(list(facts[n]) != v for n, v in same.items()):
        return
    four = np.zeros((outputs, 2, 2, inputs, height + 1, width + 1), np.float32)
    for i in (0, 1):
        for j in (0, 1):
            four[:, i, j, :, i : i + height, j : j + width] = k
    x, pad = last.input_value(0), height // 2
    blocks = op.convolution(
        x, _floats(op, four.reshape(-1, *four.shape[3:])), [2, 2], [pad, pad], [pad + 1, pad + 1], [1, 1]
    )
    size = op.gather(op.shape_of(x), _integers(op, 2, 3), op.constant(0))
    made = op.slice(
        op.depth_to_space(blocks, "depth_first", 2), _integers(op, 0, 0), size, _integers(op, 1, 1), _integers(op, 2, 3)
    )
    for target in last.output(0).get_target_inputs():
        target.replace_source_output(made.output(0))


def _splice(network: Any, source: Any) -> Any:
    """The output of ``network`` when its one input is fed by ``source``."""
    for target in network.get_parameters()[0].output(0).get_target_inputs():
        target.replace_source_output(source.output(0))
    return network.get_results()[0].input_value(0)


def _sub_pixels(op: Any, output: Any, scale: int) -> Any:
    """(1, s^2, h, w): the network's output before its shuffle and clamps, or taken apart again where it has none."""
    node = output.get_node()
    while node.get_type_name() in ("Clamp", "Maximum", "Minimum"):
        inner = _within_unit_range(node)
        if inner is None:
            break
        node = inner
    if node.get_type_name() == "DepthToSpace":
        facts = node.get_attributes()
        if facts["block_size"] == scale and facts["mode"].lower() == "depth_first":
            return node.input_value(0)
    return op.space_to_depth(output, "depth_first", scale)


def _within_unit_range(node: Any) -> Any:
    """What a clamp clamps, if it leaves [0, 1] alone: the clamp to [0, 1] that follows makes it idle. Else None."""
    if node.get_type_name() == "Clamp":
        facts = node.get_attributes()
        return node.input_value(0).get_node() if facts["min"] <= 0 and facts["max"] >= 1 else None
    sources = [value.get_node() for value in node.input_values()]
    bounds = [s.data for s in sources if s.get_type_name() == "Constant"]
    others = [s for s in sources if s.get_type_name() != "Constant"]
    if len(bounds) != 1 or len(others) != 1:
        return None
    idle = (bounds[0] <= 0).all() if node.get_type_name() == "Maximum" else (bounds[0] >= 1).all()
    return others[0] if idle else None


def _convolution(op: Any, x: Any, kernel: np.ndarray) -> Any:
    """Stride 1, no padding."""
    return op.convolution(x, _floats(op, kernel), [1, 1], [0, 0], [0, 0], [1, 1])


def _floats(op: Any, x: Any) -> Any:
    return op.constant(np.asarray(x, dtype=np.float32))


def _integers(op: Any, *x: int) -> Any:
    return op.constant(np.array(x, dtype=np.int64))
