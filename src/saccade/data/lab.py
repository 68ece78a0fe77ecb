"""sRGB and CIELab (D65, 2 degrees) on numpy pictures, float32.

    sRGB -- inverse gamma -- linear RGB -- 3x3 matrix -- XYZ over white -- cube root -- L (0..100), a, b

Constants: IEC 61966-2-1 for sRGB (matrix of ITU-R BT.709 primaries to six digits), CIE 15 for Lab with the linear part
below 0.008856.
"""

from __future__ import annotations

import numpy as np

__all__ = ["lab_to_rgb", "rgb_to_lab"]

_TO_XYZ = np.array(
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]], np.float64
)
_WHITE = np.array([0.95047, 1.0, 1.08883])
_TO_RELATIVE = (_TO_XYZ / _WHITE[:, None]).astype(np.float32)
_TO_LINEAR = np.linalg.inv(_TO_XYZ / _WHITE[:, None]).astype(np.float32)


def _linear(rgb: np.ndarray) -> np.ndarray:
    return np.where(rgb > 0.04045, ((np.maximum(rgb, 0) + 0.055) / 1.055) ** 2.4, rgb / 12.92).astype(np.float32)


_LINEAR_OF_BYTE = _linear(np.arange(256, dtype=np.float32) / 255)


def rgb_to_lab(rgb: np.ndarray) -> np.ndarray:
    """(..., 3) sRGB, uint8 or float in [0, 1] -> (..., 3) float32 L, a, b.

    Floats beyond [0, 1] are taken as they are: L then exceeds 100.
    """
    linear = _LINEAR_OF_BYTE[rgb] if rgb.dtype == np.uint8 else _linear(rgb.astype(np.float32))
    t = linear @ _TO_RELATIVE.T
    f = np.where(t > 0.008856, np.cbrt(t), 7.787 * t + np.float32(16 / 116))
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def lab_to_rgb(lab: np.ndarray) -> np.ndarray:
    """(..., 3) L, a, b -> (..., 3) float32 sRGB, clipped to [0, 1]."""
    y = (lab[..., 0] + 16) / 116
    x = lab[..., 1] / 500 + y
    z = np.maximum(y - lab[..., 2] / 200, 0)
    f = np.stack([x, y, z], -1)
    t = np.where(f > 0.2068966, f**3, (f - np.float32(16 / 116)) / np.float32(7.787))
    linear = np.maximum(t @ _TO_LINEAR.T, 0)
    rgb = np.where(linear > 0.0031308, 1.055 * linear ** np.float32(1 / 2.4) - 0.055, 12.92 * linear)
    return np.clip(rgb, 0, 1).astype(np.float32)
