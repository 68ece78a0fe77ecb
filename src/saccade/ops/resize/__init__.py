"""Resizing in the field's convention: MATLAB ``imresize``'s bicubic, antialiased, mirrored at the edges.

resize          tensors (..., H, W): naive.py is the truth, torch.py the fast path
resize_array    numpy pictures (H, W[, C]), without torch
RowResizer      the same a strip at a time, equal to the whole picture bit for bit
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from saccade.ops.resize.numpy import RowResizer, resize_array

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["RowResizer", "resize", "resize_array"]


def resize(
    x: Tensor,
    scale: float | tuple[float, float] | None = None,
    *,
    size: tuple[int, int] | None = None,
    method: str = "bicubic",
    antialias: bool = True,
) -> Tensor:
    """(..., h, w) -> (..., H, W), up or down by any real scale, in x's dtype and on its device.

    Output sample i of an axis is a weighted sum of the source samples around (i + 1/2) / scale - 1/2: see
    `saccade.ops.resize.weights`. Bicubic with a = -1/2 and antialiasing is MATLAB's ``imresize`` and the convention of
    every super-resolution benchmark; ``torch.nn.functional.interpolate`` differs from it at the edges and, without
    antialiasing, in the kernel.

    Args:
        x: floating point or uint8. Floating-point results are not clamped (a cubic overshoots); uint8 results are
            rounded, halves upwards, and clamped to 0..255. Half precision is computed in float32.
        scale: enlargement, one number or (rows, columns); below 1 shrinks.
        size: (H, W); without it H = ceil(h * scale). With both, scale sets the geometry and size the extent.
        method: "bicubic", "bilinear" or "box" (with ``antialias=False`` box is nearest neighbour).
        antialias: widen the kernel by 1/scale when shrinking.

    Returns:
        A contiguous tensor. Differentiable, twice and more, in x.

    Raises:
        UsageError: neither scale nor size, or one that is not positive, or an unknown method.
        InputError: fewer than two dimensions, no pixels, or a dtype that is neither floating point nor uint8.
    """
    from saccade.ops.resize.torch import resize_planes

    return resize_planes(x, scale, size, method, antialias)
