"""Colour around a luma network, in numpy: the plain truth that the fused graphs are tested against.

A luma network enlarges Y of BT.601; Cb and Cr are enlarged by bicubic. Both being linear in RGB, the result is the
bicubic enlargement of RGB with its luma exchanged:

    rgb_high = bicubic(rgb) + 255/219 * (clamp(network(Y)) - bicubic(Y))

since Y enters R, G and B with the same weight 255/219 (studio swing).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

__all__ = ["BLACK", "LUMA", "SWING", "bicubic", "bicubic_phases", "enlarge_with_luma", "mirrored"]

LUMA = np.array([65.481, 128.553, 24.966], dtype=np.float32) / 255
BLACK = np.float32(16 / 255)
SWING = np.float32(219 / 255)


def bicubic_phases(scale: int) -> np.ndarray:
    """Weights of the bicubic enlargement by a whole number (a = -0.5): (scale, 5) float32.

    Output sample ``scale*i + p`` is the sum of row p over inputs i-2 .. i+2.
    """
    offset = (np.arange(scale) + 0.5) / scale - 0.5  # of the output's centre from input i
    x = np.abs(offset[:, None] - np.arange(-2, 3)[None])
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = np.where(x <= 1, near, np.where(x < 2, far, 0))
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def mirrored(length: int) -> np.ndarray:
    """Indices -2 .. length+1 with the edge sample repeated on reflection, for any length >= 1: (length + 4,) int32."""
    index = np.arange(-2, length + 2) % (2 * length)
    return np.where(index >= length, 2 * length - 1 - index, index).astype(np.int32)


def bicubic(x: np.ndarray, scale: int) -> np.ndarray:
    """Enlarge by a whole number, edges mirrored: (h, w, C) float32 -> (scale*h, scale*w, C)."""
    phases = bicubic_phases(scale)
    for axis in (0, 1):
        n = x.shape[axis]
        padded = np.take(x, mirrored(n), axis)
        taps = [np.take(padded, np.arange(t, t + n), axis) for t in range(5)]
        made = np.stack([sum(phases[p, t] * taps[t] for t in range(5)) for p in range(scale)], axis + 1)
        x = made.reshape(*x.shape[:axis], n * scale, *x.shape[axis + 1 :])
    return x


def luma(x: np.ndarray) -> np.ndarray:
    """BT.601 luma without its black level: (..., 3) -> (...), in [0, 219/255] for pictures in [0, 1].

    Written out, because a matrix product rounds differently by where a pixel lies in memory: tiles would differ.
    """
    made: np.ndarray = x[..., 0] * LUMA[0] + x[..., 1] * LUMA[1] + x[..., 2] * LUMA[2]
    return made


def enlarge_with_luma(tile: np.ndarray, scale: int, network: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Enlarge a picture with a network that knows luma only.

    Args:
        tile: (h, w, 1 or 3) uint8 or uint16.
        scale: enlargement.
        network: (1, 1, h, w) float32 luma in [16/255, 235/255] -> (1, 1, scale*h, scale*w).

    Returns:
        (scale*h, scale*w, C) of the same dtype.
    """
    full = np.float32(np.iinfo(tile.dtype).max)
    x = tile.astype(np.float32) / full
    if x.shape[2] == 1:
        high = network((BLACK + SWING * x)[None, None, :, :, 0])[0, 0].clip(0, 1)
        y = ((high - BLACK) / SWING)[:, :, None]
    else:
        high = network((luma(x) + BLACK)[None, None])[0, 0].clip(0, 1)
        smooth = bicubic(x, scale)
        y = smooth + ((high - luma(smooth) - BLACK) / SWING)[:, :, None]
    return np.rint((y * full).clip(0, full)).astype(tile.dtype)
