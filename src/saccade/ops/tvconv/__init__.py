"""Translation-variant depthwise convolution: a kernel of its own at every place, the same for every picture.

    y[b, c, i, j] = bias[c, i, j] + sum over taps (u, v) of weight[u k + v, c, i, j] * x[b, c, s i + u - p, s j + v - p]

with p = (k - 1) / 2 and zeros beyond the border. Chen et al., "TVConv: Efficient Translation Variant Convolution for
Layout-aware Visual Processing", CVPR 2022, arXiv:2203.10489, equation 3. As many multiplications as a depthwise
convolution; k^2 C H W numbers to read.

naive.py is the truth, by unfolding; shifted.py adds up shifted views and never holds the k^2-fold copy; numba.py (where
Numba is installed) runs 3 x 3 kernels in inference, on the processor; triton.py is the path of a GPU.
"""

from __future__ import annotations

import importlib
import math
from typing import Any

import torch
from torch import Tensor

from saccade.cost import register_macs
from saccade.errors import InputError, UsageError
from saccade.ops.compiled import works
from saccade.ops.triton_launch import runs_on_triton
from saccade.ops.tvconv import naive, shifted

__all__ = ["output_size", "tvconv"]


def output_size(height: int, width: int, stride: int) -> tuple[int, int]:
    """Height and width behind a convolution with odd kernel and "same" padding."""
    return (height + stride - 1) // stride, (width + stride - 1) // stride


def tvconv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int = 1, fast: bool | None = None
) -> Tensor:
    """Convolve every place with its own kernel.

    Half precision is added up in float32.

    Args:
        x: (B, C, H, W).
        weight: (k^2, C, h, w), taps row by row, at the output's size; k is odd.
        bias: (C, h, w) or what broadcasts to it, or None.
        stride: between outputs, at least 1.
        fast: compiled (on a GPU that has Triton by its kernels, outside graphs), or by shifted views; None decides as
            true. False unfolds.

    Returns:
        (B, C, h, w). Differentiable, by Triton once.

    Raises:
        InputError: sizes or channels that do not go together; the message names both.
        UsageError: an even kernel or no positive stride.
    """
    kernel = round(weight.shape[0] ** 0.5)
    if not torch.compiler.is_compiling():
        _check(x, weight, kernel, stride)
    if fast is False:
        return naive.unfolded(x, weight, bias, kernel, stride)
    learns = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias))
    if learns and runs_on_triton(x, weight, bias):
        return _by_triton(x, weight, bias, kernel, stride)
    if learns or torch.compiler.is_compiling():
        return shifted.differentiable(x, weight, bias, kernel, stride)
    return _operator(x, weight, bias, kernel, stride)


def _by_triton(x: Tensor, weight: Tensor, bias: Tensor | None, kernel: int, stride: int) -> Tensor:
    y: Tensor = importlib.import_module("saccade.ops.tvconv.triton").convolved(x, weight, bias, kernel, stride)
    return y


def _check(x: Tensor, weight: Tensor, kernel: int, stride: int) -> None:
    if stride < 1:
        raise UsageError(f"a stride is at least 1, not {stride}")
    if x.ndim != 4 or weight.ndim != 4:
        raise InputError(f"tvconv takes (B, C, H, W) and weights (k^2, C, h, w), not {x.ndim} and {weight.ndim} axes")
    if kernel**2 != weight.shape[0] or kernel % 2 == 0:
        raise UsageError(f"a kernel has k^2 taps with k odd, not {weight.shape[0]}")
    if x.shape[1] != weight.shape[1]:
        raise InputError(f"TVConv was built for {weight.shape[1]} channels, not {x.shape[1]}")
    found, built = output_size(x.shape[2], x.shape[3], stride), tuple(weight.shape[2:])
    if found != built:
        raise InputError(
            f"TVConv was built for output {built[1]}x{built[0]}, input {x.shape[3]}x{x.shape[2]} gives "
            f"{found[1]}x{found[0]}"
        )


# -- without gradients: opaque to the ledger of costs, which is to count the products and not the way they go

_LIBRARY = torch.library.Library("saccade", "FRAGMENT")
_LIBRARY.define("tvconv(Tensor x, Tensor weight, Tensor? bias, int kernel, int stride) -> Tensor")
_operator = torch.ops.saccade.tvconv


def _run(x: Tensor, weight: Tensor, bias: Tensor | None, kernel: int, stride: int) -> Tensor:
    if runs_on_triton(x, weight, bias):
        return _by_triton(x, weight, bias, kernel, stride)
    if works("tvconv"):
        from saccade.ops.tvconv import numba

        if numba.takes(x, weight, bias):
            return numba.tvconv3(x, weight, bias, stride)
    return shifted.shifted(x, weight, bias, kernel, stride)


def _shape(x: Tensor, weight: Tensor, bias: Tensor | None, kernel: int, stride: int) -> Tensor:
    return x.new_empty(x.shape[0], *weight.shape[1:])


for _key in ("CPU", "CUDA"):
    _LIBRARY.impl("tvconv", _run, _key)
_LIBRARY.impl("tvconv", _shape, "Meta")


@register_macs(torch.ops.saccade.tvconv)
def _macs(x: Any, weight: Any, *_: Any, **__: Any) -> int:
    """One for each tap of each place."""
    return int(x[0] * math.prod(weight))
