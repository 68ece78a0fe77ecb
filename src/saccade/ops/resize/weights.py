"""Where an output sample looks and how much each source sample weighs: one axis of a resize, without torch.

MATLAB ``imresize``'s convention. With pixel centres at whole numbers, output sample i looks at

    u = (i + 1/2) / scale - 1/2

and weighs the source samples j around it by kernel(u - j), normalised to sum 1. When the axis shrinks and antialiasing
is on, the kernel is stretched by 1/scale. Beyond the picture the samples are mirrored, the edge sample included
(period 2n), so a window larger than the picture is fine too.

An axis is a sparse matrix. `bands` cuts it into dense blocks along its diagonal, which is how the fast paths use it: a
few small matrix products are far quicker than gathering taps one by one.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable
from typing import Any

import numpy as np

from saccade.errors import InputError, UsageError

__all__ = ["KERNELS", "Axis", "Band", "axes", "output_size", "tap_count"]

Array = np.ndarray[Any, Any]


def _cubic(x: Any) -> Any:
    """Cubic convolution kernel (Keys 1981) with a = -1/2, as truncated powers: numpy and torch alike."""
    x = abs(x)
    outer, inner = (2 - x).clip(min=0), (1 - x).clip(min=0)
    return 0.5 * outer**2 * (outer - 1) + inner**2 * (1 - 2 * inner)


def _triangle(x: Any) -> Any:
    return (1 - abs(x)).clip(min=0)


def _box(x: Any) -> Any:
    return ((x >= -0.5) & (x < 0.5)) * 1.0


KERNELS: dict[str, tuple[Callable[[Any], Any], float]] = {
    "bicubic": (_cubic, 2.0),
    "bilinear": (_triangle, 1.0),
    "box": (_box, 0.5),
}
"""Method -> (kernel, the distance at which it has ended)."""


@dataclasses.dataclass(frozen=True)
class Band:
    """A dense block of an axis: samples ``[out.start, out.stop)`` are ``weight`` (outs, sources) times ``source``."""

    out: slice
    source: slice
    weight: Array


@dataclasses.dataclass(frozen=True)
class Axis:
    """The linear map of one axis, n samples to m; `transposed` is the map that gradients take, m to n."""

    n: int
    m: int
    scale: float
    method: str = "bicubic"
    antialias: bool = True
    transposed: bool = False

    def transpose(self) -> Axis:
        """The map back, that of gradients."""
        return dataclasses.replace(self, transposed=not self.transposed)

    @property
    def sizes(self) -> tuple[int, int]:
        """Samples in, samples out."""
        return (self.m, self.n) if self.transposed else (self.n, self.m)

    def bands(self, block: int) -> tuple[Band, ...]:
        """The map as dense float64 blocks of ``block`` output samples each (the last may hold fewer)."""
        outs, sources, weights = _entries(self)
        size = self.sizes[1]
        starts = range(0, size, block)
        cuts = np.searchsorted(outs, [*starts, size])
        bands = []
        for start, low, high in zip(starts, cuts[:-1], cuts[1:], strict=True):
            stop, source = min(start + block, size), sources[low:high]
            begin, end = (int(source.min()), int(source.max()) + 1) if high > low else (0, 1)  # read by nobody: zeros
            dense = np.zeros((stop - start, end - begin))
            np.add.at(dense, (outs[low:high] - start, source - begin), weights[low:high])
            bands.append(Band(slice(start, stop), slice(begin, end), dense))
        return tuple(bands)


def output_size(n: int, scale: float) -> int:
    """ceil(n * scale), where a product that misses a whole number by rounding noise alone counts as that number."""
    return max(1, math.ceil(round(n * scale, 9)))


def tap_count(scale: float, method: str, antialias: bool) -> int:
    """How many neighbouring source samples can have a weight; two to spare, for rounding at either end."""
    return math.ceil(2 * KERNELS[method][1] / stretch(scale, antialias)) + 2


def stretch(scale: float, antialias: bool) -> float:
    """The kernel's argument is multiplied by this: below 1, hence a wider kernel, only when antialiasing a shrink."""
    return min(scale, 1.0) if antialias else 1.0


def axes(
    height: int,
    width: int,
    scale: float | tuple[float, float] | None,
    size: tuple[int, int] | None,
    method: str,
    antialias: bool,
) -> tuple[Axis, Axis]:
    """The two axes, rows then columns, of a resize as the caller asked for it.

    Raises:
        UsageError: neither scale nor size, a scale or size that is not positive and finite, or an unknown method.
        InputError: a picture without pixels.
    """
    if method not in KERNELS:
        raise UsageError(f"no resize method named {method!r}; there are {', '.join(KERNELS)}")
    if height < 1 or width < 1:
        raise InputError(f"cannot resize a picture of {width}x{height} pixels")
    if scale is None and size is None:
        raise UsageError("resize needs a scale or a size")
    if size is not None and (len(size) != 2 or not all(isinstance(m, numbers.Integral) and m >= 1 for m in size)):
        raise UsageError(f"resize: size must be (height, width) in whole pixels, at least 1x1, got {size}")
    if scale is None:
        assert size is not None
        scales = (size[0] / height, size[1] / width)
    else:
        pair = scale if isinstance(scale, tuple) else (scale, scale)
        if len(pair) != 2 or not all(math.isfinite(s) and s > 0 for s in pair):
            raise UsageError(f"resize: scale must be a positive number or a pair (rows, columns), got {scale}")
        scales = (float(pair[0]), float(pair[1]))
    m = size or (output_size(height, scales[0]), output_size(width, scales[1]))
    return (
        Axis(height, int(m[0]), scales[0], method, antialias),
        Axis(width, int(m[1]), scales[1], method, antialias),
    )


def _entries(axis: Axis) -> tuple[Array, Array, Array]:
    """The sparse matrix of an axis as (output sample, source sample, weight), sorted by output sample."""
    kernel, reach = KERNELS[axis.method]
    squeeze = stretch(axis.scale, axis.antialias)
    centre = (np.arange(axis.m) + 0.5) / axis.scale - 0.5
    first = np.floor(centre - reach / squeeze)
    place = first[:, None] + np.arange(tap_count(axis.scale, axis.method, axis.antialias))  # (m, taps)
    weight = kernel((centre[:, None] - place) * squeeze)
    weight /= weight.sum(1, keepdims=True)
    source = place.astype(np.int64) % (2 * axis.n)
    source = np.where(source < axis.n, source, 2 * axis.n - 1 - source)
    out = np.broadcast_to(np.arange(axis.m)[:, None], source.shape)
    used = weight != 0
    out, source, weight = out[used], source[used], weight[used]
    if axis.transposed:
        order = np.argsort(source, kind="stable")
        return source[order], out[order], weight[order]
    return out, source, weight
