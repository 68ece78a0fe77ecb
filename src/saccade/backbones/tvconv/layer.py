"""The layer: affinity maps, their generator of kernels, and the kernels alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from saccade.errors import InputError, UsageError
from saccade.nn.fuse import affine_of
from saccade.ops.tvconv import output_size, tvconv

__all__ = ["BakedTVConv", "TVConv", "TVConvNorm"]


class BakedTVConv(nn.Module):
    """A TVConv whose kernels are fixed, for inference.

    Args:
        weight: (k^2, C, h, w), taps row by row.
        bias: (1, C, h, w), (1, C, 1, 1) or None.
        stride: between outputs.

    Shape: (B, C, H, W) -> (B, C, h, w).
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, stride: int) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return tvconv(x, self.weight, self.bias, stride=self.stride)


class TVConv(nn.Module):
    """Translation-variant depthwise convolution with its generator of kernels (section 3.2).

    In evaluation without gradients the kernels are generated once and kept until a parameter changes.

    Args:
        channels: C.
        size: (h, w) of the output; behind a stride of 2 that is half of the input's.
        kernel: k, odd.
        stride: between outputs.
        posi_chans, inter_chans, inter_layers: affinity maps, channels of the generator, and its layers beyond the
            first; (4, 64, 3) for the published face networks.
        bias: a bias at every place, by a second generator from the same affinity maps.

    Shape: (B, C, H, W) -> (B, C, h, w).

    Raises:
        UsageError: an even kernel, or numbers below 1.
    """

    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        kernel: int = 3,
        stride: int = 1,
        *,
        posi_chans: int = 4,
        inter_chans: int = 64,
        inter_layers: int = 3,
        bias: bool = False,
    ) -> None:
        super().__init__()
        if kernel < 1 or kernel % 2 == 0:
            raise UsageError(f"the kernel of a TVConv is odd, not {kernel}")
        if min(channels, *size, stride, posi_chans, inter_chans) < 1 or inter_layers < 0:
            raise UsageError("channels, sizes and strides of a TVConv are at least 1, and inter_layers at least 0")
        self.channels, self.size, self.kernel, self.stride = channels, tuple(size), kernel, stride
        self.posi_map = nn.Parameter(torch.ones(1, posi_chans, *size))

        def generator(outputs: int) -> nn.Sequential:
            inputs = [posi_chans, *[inter_chans] * inter_layers]
            blocks = [_generating(c, inter_chans, size) for c in inputs]
            return nn.Sequential(*blocks, nn.Conv2d(inter_chans, outputs, 3, padding=1, bias=False))

        self.weight_layers = generator(channels * kernel**2)
        self.bias_layers = generator(channels) if bias else None
        self._kept: tuple[Any, Tensor, Tensor | None] | None = None

    def kernels(self) -> tuple[Tensor, Tensor | None]:
        """Weights (k^2, C, h, w) and bias (1, C, h, w) or None, from the affinity maps (equation 4)."""
        drawn = self.weight_layers(self.posi_map)[0].unflatten(0, (self.channels, -1))  # channel outermost
        return drawn.transpose(0, 1).contiguous(), None if self.bias_layers is None else self.bias_layers(self.posi_map)

    def _current(self) -> tuple[Tensor, Tensor | None]:
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling() or self.posi_map.is_meta:
            self._kept = None
            return self.kernels()
        try:
            stamp = tuple((p.data_ptr(), p._version, p.dtype) for p in self.parameters())
        except RuntimeError:  # parameters made in inference mode do not tell of changes
            return self.kernels()
        if self._kept is None or self._kept[0] != stamp:
            self._kept = (stamp, *self.kernels())
        return self._kept[1:]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}  # copies generate their own

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            self._check(x)
        weight, bias = self._current()
        return tvconv(x, weight, bias, stride=self.stride)

    def _check(self, x: Tensor) -> None:
        """Refuse before the generator runs."""
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise InputError(f"TVConv was built for {self.channels} channels (B, C, H, W), not {tuple(x.shape)}")
        found = output_size(x.shape[2], x.shape[3], self.stride)
        if found != self.size:
            raise InputError(
                f"TVConv was built for output {self.size[1]}x{self.size[0]}, input {x.shape[3]}x{x.shape[2]} gives "
                f"{found[1]}x{found[0]}"
            )

    @torch.no_grad()
    def fuse(self) -> BakedTVConv:
        """The kernels alone, bias included.

        Raises:
            UsageError: in training mode.
        """
        if self.training:
            raise UsageError("a TVConv is baked for inference: call eval() first")
        weight, bias = self.kernels()
        return BakedTVConv(weight.clone(), None if bias is None else bias.clone(), self.stride)


def _generating(inputs: int, outputs: int, size: tuple[int, int]) -> nn.Sequential:
    """A block of the generator; the norm is over channels and places together, with a gain for each."""
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.LayerNorm([outputs, *size]), nn.ReLU(inplace=True))


class TVConvNorm(nn.Module):
    """A TVConv, batch norm, and the activation if there is one; one `BakedTVConv` and the activation when fused."""

    def __init__(self, conv: TVConv | BakedTVConv, channels: int, act: nn.Module | None = None) -> None:
        super().__init__()
        self.conv, self.bn = conv, nn.BatchNorm2d(channels)
        self.act = act if act is not None else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.bn(self.conv(x)))
        return out

    @torch.no_grad()
    def fuse(self) -> nn.Module:
        """Gains go into the kernels, offsets into the bias."""
        baked = self.conv.fuse() if isinstance(self.conv, TVConv) else self.conv
        gain, offset = (t[:, None, None] for t in affine_of(self.bn))
        bias = offset[None] if baked.bias is None else offset + baked.bias * gain
        conv = BakedTVConv(baked.weight * gain, bias, baked.stride)
        return conv if isinstance(self.act, nn.Identity) else nn.Sequential(conv, self.act)
