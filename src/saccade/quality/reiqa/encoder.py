"""The encoders of Re-IQA: ResNets without a classifier, fully convolutional, averaged over the picture at the end.

    picture (B,3,h,w) -- 7x7/2 -- BN -- ReLU -- 3x3/2 max -- stage 1 .. n, each but the first /2 -- mean --> (B, D)

He et al., CVPR 2016, arXiv:1512.03385; the stride of a bottleneck is on its 3x3 convolution, as in torchvision and
timm. Key names are torchvision's.

The small encoder, which is ours, looks at local contrast instead of colours and puts out logarithms:

    picture -- minus local mean, over local deviation | log local deviation -- the same network -- mean -- log

Damage is then seen alike in dark and bright, busy and smooth places, as in BRISQUE (Mittal et al., IEEE TIP 2012).
"""

from __future__ import annotations

from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from saccade.errors import UsageError

__all__ = ["Encoder", "Head"]

Block = Literal["basic", "bottleneck"]
#: ImageNet's mean and deviation of R, G, B in [0, 1], for the content branch
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: pixels of a side of the window of local contrast, and deviations below which it fades or is not told apart
WINDOW, FAINT, FAINTEST = 7, 2 / 255, 1 / 255
#: added to a feature before its logarithm is taken
FLOOR = 0.01


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels)


def window_mean(x: Tensor) -> Tensor:
    """Mean over 7x7 pixels, the border repeated; by sums of sums, a tenth of the time of ``avg_pool2d`` on CPU.

    Shape: (B, C, h, w) -> the same.
    """
    y = F.pad(x, (WINDOW // 2,) * 4, mode="replicate")
    for axis in (2, 3):
        n = x.shape[axis]
        two = y.narrow(axis, 0, n + 5) + y.narrow(axis, 1, n + 5)
        four = two.narrow(axis, 0, n + 3) + two.narrow(axis, 2, n + 3)
        y = four.narrow(axis, 0, n) + two.narrow(axis, 4, n) + y.narrow(axis, 6, n)
    return y / WINDOW**2


def local_contrast(x: Tensor) -> Tensor:
    """Pixels less their local mean, over the local deviation, and the logarithm of that deviation.

    The variance is that of the differences themselves: the usual mean square less squared mean is all rounding error
    where a picture is flat.

    Shape: (B, 3, h, w) -> (B, 6, h, w).
    """
    x = x - window_mean(x)
    variance = window_mean(x * x)
    return torch.cat([x * (variance + FAINT**2).rsqrt(), 0.25 * (variance + FAINTEST**2).log() + 1.5], 1)


class Residual(nn.Module):
    """A basic (3x3, 3x3) or bottleneck (1x1, 3x3, 1x1 to four times the width) block.

    Shape: (B, inputs, h, w) -> (B, width or 4*width, h/stride, w/stride), rounded up.
    """

    def __init__(self, block: Block, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.bottleneck = block == "bottleneck"
        outputs = 4 * width if self.bottleneck else width
        if self.bottleneck:
            self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
            self.bn1 = _norm(width)
            self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
            self.bn2 = _norm(width)
            self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
            self.bn3 = _norm(outputs)
        else:
            self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
            self.bn1 = _norm(width)
            self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
            self.bn2 = _norm(width)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), _norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        kept = x if self.downsample is None else self.downsample(x)
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.bottleneck:
            y = self.bn3(self.conv3(F.relu(y)))
        return F.relu(y + kept)

    def fuse(self) -> None:
        """Fold every batch norm into the convolution before it."""
        for i in (1, 2, 3)[: 3 if self.bottleneck else 2]:
            setattr(self, f"conv{i}", fuse_conv_bn_eval(getattr(self, f"conv{i}"), getattr(self, f"bn{i}")))
            setattr(self, f"bn{i}", nn.Identity())
        if self.downsample is not None:
            convolution, norm = cast("tuple[nn.Conv2d, nn.BatchNorm2d]", tuple(self.downsample))
            self.downsample = nn.Sequential(fuse_conv_bn_eval(convolution, norm), nn.Identity())


class Encoder(nn.Module):
    """ResNet without its classifier.

    Args:
        block: ``"basic"`` or ``"bottleneck"``.
        layers: blocks of each stage.
        widths: of each stage; a bottleneck stage puts out four times its width.
        stem: channels of the first convolution.
        contrast: take local contrast instead of colours, put out logarithms (see the module).

    Shape: (B, 3, h, w) -> (B, features), any h and w from 1 up.

    Raises:
        UsageError: stages and widths do not go together, or a width below 1.
    """

    def __init__(
        self,
        block: Block,
        layers: tuple[int, ...],
        widths: tuple[int, ...],
        stem: int = 64,
        contrast: bool = False,
    ) -> None:
        super().__init__()
        if len(layers) != len(widths) or not layers or min(*layers, *widths, stem) < 1:
            raise UsageError(f"an encoder needs a width for each of its stages, not {layers} and {widths}")
        self.contrast = contrast
        self.conv1 = nn.Conv2d(6 if contrast else 3, stem, 7, 2, 3, bias=False)
        self.bn1 = _norm(stem)
        inputs = stem
        self.stages = len(layers)
        for i, (depth, width) in enumerate(zip(layers, widths, strict=True)):
            blocks = []
            for j in range(depth):
                blocks.append(Residual(block, inputs, width, 2 if i and not j else 1))
                inputs = 4 * width if block == "bottleneck" else width
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        self.features = inputs
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """He's start for the convolutions, as in torchvision; the first kernels on colours sum to zero.

        So features are of texture from the first step on, not of brightness: untrained ones then follow the level of a
        distortion with a rank correlation of 0.40 on Kodak instead of 0.20. Ours, for short trainings.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if not self.contrast:
            self.conv1.weight.sub_(self.conv1.weight.mean((2, 3), keepdim=True))

    def forward(self, x: Tensor) -> Tensor:
        if self.contrast:
            x = local_contrast(x)
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)  # (B, stem, h/4, w/4)
        for i in range(self.stages):
            x = getattr(self, f"layer{i + 1}")(x)
        y = x.mean((2, 3))
        return (y + FLOOR).log() if self.contrast else y

    def fuse(self) -> Encoder:
        """Fold every batch norm into its convolution, in place; evaluation only. Returns itself."""
        self.eval()
        if isinstance(self.bn1, nn.BatchNorm2d):
            self.conv1 = fuse_conv_bn_eval(self.conv1, self.bn1)
            self.bn1 = nn.Identity()  # type: ignore[assignment]
            for module in self.modules():
                if isinstance(module, Residual):
                    module.fuse()
        return self


class Head(nn.Sequential):
    """The projection that pre-training compares: linear, ReLU, linear, unit length.

    Shape: (B, features) -> (B, out).
    """

    def __init__(self, features: int, hidden: int, out: int) -> None:
        super().__init__(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, out))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(super().forward(x), dim=1)
