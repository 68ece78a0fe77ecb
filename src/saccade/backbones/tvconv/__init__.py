"""TVConv: depthwise convolutions whose kernel differs at every place, for pictures with a fixed layout.

Chen et al., "TVConv: Efficient Translation Variant Convolution for Layout-aware Visual Processing", CVPR 2022,
arXiv:2203.10489.

    affinity maps P (4, h, w), learned -- [3x3 conv, layer norm over (c, h, w), ReLU] x n -- 3x3 conv -- k^2 C kernels
    y[c, i, j] = sum over taps of kernels[tap, c, i, j] * x[c, s i + u, s j + v]            the same for every picture

    face (B, 3, 96, 96) -- 3x3 -- inverted residuals with TVConv -- 1x1 -- norm, pool, linear, norm -- embedding (512)

The generator of the kernels may be of any size: in inference it is gone (`saccade.fuse`), the kernels stay, and a
layer costs the multiplications of a depthwise convolution and k^2 C h w numbers of memory. It is of use where the same
thing is at the same place in every picture (aligned faces, fundus pictures, fixed cameras), and of none where not.
"""

from saccade.backbones.tvconv.layer import BakedTVConv, TVConv, TVConvNorm
from saccade.backbones.tvconv.loss import AMSoftmax
from saccade.backbones.tvconv.networks import TVMobileNetV2, TVShuffleNetV2
from saccade.backbones.tvconv.published import from_official_mobilenet, from_official_shufflenet, load_state

__all__ = [
    "AMSoftmax",
    "BakedTVConv",
    "TVConv",
    "TVConvNorm",
    "TVMobileNetV2",
    "TVShuffleNetV2",
    "from_official_mobilenet",
    "from_official_shufflenet",
    "load_state",
]
