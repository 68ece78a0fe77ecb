"""The loss that face embeddings are trained with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["AMSoftmax"]


class AMSoftmax(nn.Module):
    """Additive-margin softmax, the loss that embeddings are trained with: (B, features) and labels -> (B, classes).

    cos of normalised features and class vectors, less ``margin`` at the label, times ``scale``. Feed it to the
    cross-entropy; `loss` does.
    """

    def __init__(self, features: int, classes: int, margin: float = 0.35, scale: float = 32.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(F.normalize(torch.randn(features, classes), dim=0))
        self.margin, self.scale = margin, scale

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        cosine = (F.normalize(x) @ F.normalize(self.weight, dim=0)).clamp(-1, 1)
        return self.scale * (cosine - self.margin * F.one_hot(labels, cosine.shape[1]))

    def loss(self, x: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy."""
        return F.cross_entropy(self(x, labels), labels)
