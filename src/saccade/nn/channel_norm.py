"""Layer norm over the channels of a map: ConvNeXt's and its kin's."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ChannelNorm"]


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels at every place of a map, (B, C, H, W) -> the same; Ba et al., arXiv:1607.06450."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__(width, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        tokens = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return tokens.permute(0, 3, 1, 2)
