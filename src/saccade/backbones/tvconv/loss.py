"""The loss that face embeddings are trained with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import InputError, UsageError

__all__ = ["AMSoftmax"]


class AMSoftmax(nn.Module):
    """Additive-margin softmax: logits are cosines of embedding and class vectors, less a margin at the label.

    Wang et al., "Additive Margin Softmax for Face Verification", arXiv:1801.05599.

    Args:
        features: of the embedding.
        classes: identities of the training set.
        margin: taken off the label's cosine.
        scale: of the cosines, from [-1, 1] to logits.

    Shape: (B, features) and labels (B,) -> logits (B, classes). Feed them to the cross-entropy; `loss` does.

    Raises:
        UsageError: no features or classes.
        InputError: embeddings of another width, labels that are not one class number each.
    """

    def __init__(self, features: int, classes: int, margin: float = 0.35, scale: float = 32.0) -> None:
        super().__init__()
        if features < 1 or classes < 1:
            raise UsageError(f"this loss takes at least one feature and one class, not {features} and {classes}")
        self.weight = nn.Parameter(F.normalize(torch.randn(features, classes), dim=0))
        self.margin, self.scale = margin, scale

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        self._check(x, labels)
        cosine = (F.normalize(x) @ F.normalize(self.weight, dim=0)).clamp(-1, 1)
        return self.scale * (cosine - self.margin * F.one_hot(labels, cosine.shape[1]))

    def _check(self, x: Tensor, labels: Tensor) -> None:
        """Labels are looked at where that costs nothing: on the CPU, outside of compilation."""
        features, classes = self.weight.shape
        if x.ndim != 2 or x.shape[1] != features or labels.shape != x.shape[:1] or labels.is_floating_point():
            raise InputError(
                f"this loss takes embeddings (B, {features}) and a class number each, not {tuple(x.shape)} and "
                f"{labels.dtype} {tuple(labels.shape)}"
            )
        if torch.compiler.is_compiling() or labels.device.type != "cpu" or not len(labels):
            return
        low, high = (int(v) for v in torch.aminmax(labels))
        if low < 0 or high >= classes:
            raise InputError(f"labels are numbers from 0 to {classes - 1}, not from {low} to {high}")

    def loss(self, x: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy."""
        return F.cross_entropy(self(x, labels), labels)
