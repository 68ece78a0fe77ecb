"""Depthwise convolution with large or dilated kernels, and gradients that do not take a hundred times as long.

naive.py is the truth; cpu.py chooses among torch's own kernels in the layout that they like, the dense form of a
dilated kernel, and FFT, in float32; triton.py is the path of a GPU from `SPAN` pixels on. Everywhere else torch's own
convolution runs, and so in graphs.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.cost import register_macs
from saccade.errors import InputError, UsageError
from saccade.ops.large_depthwise import cpu
from saccade.ops.large_depthwise.naive import depthwise_naive
from saccade.ops.triton_launch import autocast, require_triton, runs_on_triton

__all__ = ["LargeDepthwise", "large_depthwise", "set_path"]

M = TypeVar("M", bound=nn.Module)

Path = Literal["auto", "fast", "torch", "triton", "naive"]
SPAN = 9  # pixels from the first tap to the last from which a GPU takes Triton; torch has kernels of its own below


def large_depthwise(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, dilation: int = 1, path: Path = "auto"
) -> Tensor:
    """Convolve every channel with a kernel of its own, the size kept by zeros outside.

    y[b, c, h, w] = bias[c] + sum over i, j of weight[c, 0, i, j] x[b, c, h + d (i - K//2), w + d (j - K//2)]

    Args:
        x: (B, C, H, W), floating point, in either layout; the result has the same.
        weight: (C, 1, K, K), K odd.
        bias: (C,), or None.
        dilation: pixels between taps, d.
        path: ``"auto"`` takes the fast path in float32 on a processor and Triton for large kernels on a GPU, both
            outside graphs, else torch's; ``"naive"`` sums over the taps. Triton adds up in float32 (float64 in
            itself) and follows autocast, as torch's does.

    Returns:
        (B, C, H, W). Differentiable, on the fast path and in Triton once.

    Raises:
        InputError: shapes or dtypes that do not go together.
        UsageError: an even kernel, a dilation below 1, an unknown path, or the fast path or Triton on what they do
            not take.
        UnavailableError: Triton is asked for and not installed.
    """
    if x.ndim != 4 or not x.is_floating_point() or weight.ndim != 4 or weight.shape[:2] != (x.shape[1], 1):
        raise InputError(
            f"a depthwise convolution takes x (B, C, H, W) and weight (C, 1, K, K), floating point, "
            f"not {x.dtype} {tuple(x.shape)} and {tuple(weight.shape)}"
        )
    kernel = weight.shape[-1]
    if weight.shape[2] != kernel or kernel % 2 == 0 or dilation < 1:
        raise UsageError(
            f"kernels are square with an odd side and the dilation is at least 1: "
            f"not {tuple(weight.shape[2:])}, {dilation}"
        )
    if path not in ("auto", "fast", "torch", "triton", "naive"):
        raise UsageError(
            f"a depthwise convolution runs by 'auto', 'fast', 'torch', 'triton' or 'naive', not by {path!r}"
        )
    if path == "auto":
        path = _chosen(x, weight, dilation)
    if path == "torch":
        return F.conv2d(x, weight, bias, padding=kernel // 2 * dilation, dilation=dilation, groups=x.shape[1])
    if path == "naive":
        y = depthwise_naive(x, weight, dilation)
    elif path == "triton":
        y, bias = _by_triton(x, weight, dilation), None if bias is None else autocast(bias)
    elif x.dtype == weight.dtype == torch.float32 and x.device.type == weight.device.type == "cpu":
        y = _operator(x, weight, dilation, path)
    else:
        raise UsageError(f"the fast path is for float32 on a processor, not {x.dtype} on {x.device.type}")
    return y if bias is None else y + bias[:, None, None]


def _by_triton(x: Tensor, weight: Tensor, dilation: int) -> Tensor:
    require_triton()
    x, weight = autocast(x), autocast(weight)
    if x.dtype != weight.dtype or x.device != weight.device:
        raise UsageError(
            f"Triton's path takes a map and a kernel of one dtype on one device, not {x.dtype} on {x.device} and "
            f"{weight.dtype} on {weight.device}"
        )
    return _operator(x, weight, dilation, "triton")


def _chosen(x: Tensor, weight: Tensor, dilation: int) -> Path:
    if _is_fast(x, weight, dilation):
        return "fast"
    large = dilation * (weight.shape[-1] - 1) + 1 >= SPAN
    return "triton" if large and runs_on_triton(x, weight) else "torch"


def _is_fast(x: Tensor, weight: Tensor, dilation: int) -> bool:
    """Whether there is something to gain over torch's own."""
    if torch.compiler.is_compiling():
        return False
    gains = cpu.gains(x, weight.shape[-1], dilation)  # first: where nothing is gained nothing else needs to be asked
    if not (gains.forward or (gains.gradient and torch.is_grad_enabled() and weight.requires_grad)):
        return False
    fits = x.device.type == weight.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
    return fits and not torch.is_autocast_enabled("cpu") and x.numel() > 0


class LargeDepthwise(nn.Conv2d):
    """`large_depthwise` as a layer with the names of ``nn.Conv2d``.

    Args:
        width: channels.
        kernel: taps a side, odd.

    Attributes:
        path: that it takes, ``"auto"`` unless it is set.

    Shape: (B, C, H, W) -> (B, C, H, W).
    """

    path: Path = "auto"

    def __init__(self, width: int, kernel: int, *, dilation: int = 1, bias: bool = True) -> None:
        if kernel < 1 or kernel % 2 == 0 or dilation < 1:
            raise UsageError(f"only odd kernels keep the size, with a dilation of at least 1: not {kernel}, {dilation}")
        super().__init__(
            width, width, kernel, padding=kernel // 2 * dilation, dilation=dilation, groups=width, bias=bias
        )

    def forward(self, x: Tensor) -> Tensor:
        return large_depthwise(x, self.weight, self.bias, dilation=self.dilation[0], path=self.path)


def set_path(model: M, path: Path) -> M:
    """The network, in which every `LargeDepthwise` takes this path from now on."""
    for module in model.modules():
        if isinstance(module, LargeDepthwise):
            module.path = path
    return model


# -- the operator: opaque to the ledger of costs, which is to count the convolution and not the way it goes

_LIBRARY = torch.library.Library("saccade", "FRAGMENT")
_LIBRARY.define("large_depthwise(Tensor x, Tensor weight, int dilation, str path) -> Tensor")
_LIBRARY.define("large_depthwise_grad_weight(Tensor gy, Tensor x, int kernel, int dilation, str path) -> Tensor")
_operator = torch.ops.saccade.large_depthwise


def _runner(path: str) -> ModuleType:
    return importlib.import_module("saccade.ops.large_depthwise.triton") if path == "triton" else cpu


def _forward(x: Tensor, weight: Tensor, dilation: int, path: str) -> Tensor:
    y: Tensor = _runner(path).forward(x, weight, dilation) if x.numel() else _shape(x, weight, dilation, path)
    return y


def _shape(x: Tensor, weight: Tensor, dilation: int, path: str) -> Tensor:
    return torch.empty_like(x)


def _grad_weight(gy: Tensor, x: Tensor, kernel: int, dilation: int, path: str) -> Tensor:
    if not x.numel():
        return _shape_of_weight(gy, x, kernel, dilation, path).zero_()
    found: Tensor = _runner(path).grad_weight(gy, x, kernel, dilation)
    return found


def _shape_of_weight(gy: Tensor, x: Tensor, kernel: int, dilation: int, path: str) -> Tensor:
    return x.new_empty(x.shape[1], 1, kernel, kernel)


for _name, _run, _shapes in (
    ("large_depthwise", _forward, _shape),
    ("large_depthwise_grad_weight", _grad_weight, _shape_of_weight),
):
    for _key in ("CPU", "CUDA"):
        _LIBRARY.impl(_name, _run, _key)
    _LIBRARY.impl(_name, _shapes, "Meta")


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, ctx.dilation, ctx.path = inputs
    ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
    ctx.kernel = weight.shape[-1]


def _differentiate(ctx: Any, gy: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
    x, weight = ctx.saved_tensors
    # Turning the kernel makes the adjoint: the same operator, with the same way of going fast.
    gx = _operator(gy, weight.flip(-1, -2), ctx.dilation, ctx.path) if ctx.needs_input_grad[0] else None
    gw = None
    if ctx.needs_input_grad[1]:
        gw = torch.ops.saccade.large_depthwise_grad_weight(gy, x, ctx.kernel, ctx.dilation, ctx.path)
    return gx, gw, None, None


torch.library.register_autograd("saccade::large_depthwise", _differentiate, setup_context=_remember, lib=_LIBRARY)


@register_macs(torch.ops.saccade.large_depthwise)
def _macs(x: Any, weight: Any, *_: Any, **__: Any) -> int:
    """One for each tap of each place."""
    batch, channels, height, width = x
    return int(batch * channels * height * width * weight[-1] * weight[-2])


@register_macs(torch.ops.saccade.large_depthwise_grad_weight)
def _macs_grad_weight(gy: Any, x: Any, kernel: int, *_: Any, **__: Any) -> int:
    """As many as the convolution."""
    batch, channels, height, width = x
    return int(batch * channels * height * width * kernel * kernel)
