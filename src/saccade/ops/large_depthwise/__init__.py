"""Depthwise convolution with large or dilated kernels, and gradients that do not take a hundred times as long.

naive.py is the truth; cpu.py chooses among torch's own kernels in the layout that they like, the dense form of a
dilated kernel, and FFT. Elsewhere than in float32 on a processor torch's own convolution runs, and so in graphs.
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.cost import register_macs
from saccade.errors import InputError, UsageError
from saccade.ops.large_depthwise import cpu
from saccade.ops.large_depthwise.naive import depthwise_naive

__all__ = ["LargeDepthwise", "large_depthwise", "set_path"]

M = TypeVar("M", bound=nn.Module)

Path = Literal["auto", "fast", "torch", "naive"]


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
        path: ``"auto"`` takes the fast path in float32 on a processor outside graphs, else torch's; ``"naive"`` sums
            over the taps.

    Returns:
        (B, C, H, W). Differentiable, on the fast path once.

    Raises:
        InputError: shapes or dtypes that do not go together.
        UsageError: an even kernel, a dilation below 1, an unknown path, or the fast path where there is none.
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
    if path not in ("auto", "fast", "torch", "naive"):
        raise UsageError(f"a depthwise convolution runs by 'auto', 'fast', 'torch' or 'naive', not by {path!r}")
    if path == "auto":
        path = "fast" if _is_fast(x, weight, dilation) else "torch"
    if path == "torch":
        return F.conv2d(x, weight, bias, padding=kernel // 2 * dilation, dilation=dilation, groups=x.shape[1])
    if path == "naive":
        y = depthwise_naive(x, weight, dilation)
    elif x.dtype == weight.dtype == torch.float32 and x.device.type == weight.device.type == "cpu":
        y = _operator(x, weight, dilation)
    else:
        raise UsageError(f"the fast path is for float32 on a processor, not {x.dtype} on {x.device.type}")
    return y if bias is None else y + bias[:, None, None]


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
_LIBRARY.define("large_depthwise(Tensor x, Tensor weight, int dilation) -> Tensor")
_LIBRARY.define("large_depthwise_grad_weight(Tensor gy, Tensor x, int kernel, int dilation) -> Tensor")
_operator = torch.ops.saccade.large_depthwise


def _shape(x: Tensor, weight: Tensor, dilation: int) -> Tensor:
    return torch.empty_like(x)


def _shape_of_weight(gy: Tensor, x: Tensor, kernel: int, dilation: int) -> Tensor:
    return x.new_empty(x.shape[1], 1, kernel, kernel)


_LIBRARY.impl("large_depthwise", cpu.forward, "CPU")
_LIBRARY.impl("large_depthwise", _shape, "Meta")
_LIBRARY.impl("large_depthwise_grad_weight", cpu.grad_weight, "CPU")
_LIBRARY.impl("large_depthwise_grad_weight", _shape_of_weight, "Meta")


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, ctx.dilation = inputs
    ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
    ctx.kernel = weight.shape[-1]


def _differentiate(ctx: Any, gy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    x, weight = ctx.saved_tensors
    # Turning the kernel makes the adjoint: the same operator, with the same way of going fast.
    gx = _operator(gy, weight.flip(-1, -2), ctx.dilation) if ctx.needs_input_grad[0] else None
    gw = None
    if ctx.needs_input_grad[1]:
        gw = torch.ops.saccade.large_depthwise_grad_weight(gy, x, ctx.kernel, ctx.dilation)
    return gx, gw, None


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
