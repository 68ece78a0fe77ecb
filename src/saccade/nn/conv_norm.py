"""Convolution, batch norm and an activation as one module: what most efficient networks are made of."""

from __future__ import annotations

from torch import Tensor, nn

from saccade.nn.fuse import absorb_identity, fused_conv, fused_linear

__all__ = ["ConvNorm", "NormLinear", "ResidualDepthwise", "SqueezeExcitation"]


class ConvNorm(nn.Module):
    """Convolution, batch norm (eps 1e-5), and the activation if there is one.

    Shape: (B, inputs, H, W) -> (B, outputs, H', W'); "same" padding for odd kernels unless ``padding`` says otherwise.

    Args:
        gain: start of the norm's weight; 0 makes a residual branch start as nothing.
        bias: of the convolution; the norm has one, so it only matters where published networks have it.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        stride: int = 1,
        *,
        padding: int | None = None,
        groups: int = 1,
        act: nn.Module | None = None,
        gain: float = 1.0,
        bias: bool = False,
    ) -> None:
        super().__init__()
        padding = kernel // 2 if padding is None else padding
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=bias)
        self.bn = nn.BatchNorm2d(outputs)
        self.act = act if act is not None else nn.Identity()
        nn.init.constant_(self.bn.weight, gain)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.bn(self.conv(x)))
        return out

    def fuse(self) -> nn.Module:
        """One convolution with bias, and the activation."""
        conv = fused_conv(self.conv, self.bn)
        return conv if isinstance(self.act, nn.Identity) else nn.Sequential(conv, self.act).train(self.training)


class ResidualDepthwise(nn.Module):
    """x + norm(depthwise convolution of x); one convolution when fused."""

    def __init__(self, width: int, kernel: int = 3, *, gain: float = 0.0) -> None:
        super().__init__()
        self.m = ConvNorm(width, width, kernel, groups=width, gain=gain)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.m(x)
        return out

    def fuse(self) -> nn.Module:
        """One depthwise convolution: the identity becomes 1 in the middle of its kernels."""
        return absorb_identity(fused_conv(self.m.conv, self.m.bn))


class NormLinear(nn.Module):
    """Batch norm and a linear layer, (B, inputs) -> (B, outputs); one linear layer when fused."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.bn, self.linear = nn.BatchNorm1d(inputs), nn.Linear(inputs, outputs)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(self.bn(x))
        return out

    def fuse(self) -> nn.Module:
        """One linear layer."""
        return fused_linear(self.bn, self.linear)


class SqueezeExcitation(nn.Module):
    """Channel gates from the pooled picture: x * gate(fc2(act(fc1(mean x)))). Hu et al., arXiv:1709.01507.

    Args:
        squeeze: inner channels.
        act, gate: activations, ReLU and sigmoid by default.
    """

    def __init__(self, width: int, squeeze: int, act: nn.Module | None = None, gate: nn.Module | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(width, squeeze, 1)
        self.act = act if act is not None else nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(squeeze, width, 1)
        self.gate = gate if gate is not None else nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = self.gate(self.fc2(self.act(self.fc1(x.mean((2, 3), keepdim=True)))))  # (B, C, 1, 1)
        return x * gate
