"""The losses of PCSR's two phases (section 3.3), on every pixel of the crops and a block of them at a time.

    phase 0   encoder, heavy sampler      L1 of the heavy sampler
    phase 1   light sampler, classifier   1000 L1 of the soft mixture + 3 |sum p_heavy - N/2| / (N/2), N all pixels

In phase 1 encoder and heavy sampler are frozen, in evaluation mode.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.errors import UsageError
from saccade.restoration.pcsr.blockwise import BLOCK, SumOverBlocks

if TYPE_CHECKING:
    from saccade.restoration.pcsr.network import PCSR

__all__ = ["loss"]


def loss(model: PCSR, lr: Tensor, hr: Tensor, phase: int) -> Tensor:
    """`PCSR.training_loss`.

    Args:
        lr: (B, 3, h, w) in [0, 1].
        hr: (B, 3, h*scale, w*scale) in [0, 1].
        phase: 0 or 1.

    Raises:
        UsageError: a scale that is not whole, another phase, or sizes that do not belong together.
    """
    s = int(model.scale)
    if s != model.scale:
        raise UsageError(f"training needs a whole scale, not {model.scale:g}")
    batch, _, h, w = lr.shape
    if hr.shape != (batch, 3, h * s, w * s):
        raise UsageError(f"targets {tuple(hr.shape)} do not belong to inputs {tuple(lr.shape)} at x{s}")
    residual = hr - F.interpolate(lr, size=(h * s, w * s), mode="bilinear", align_corners=False)
    residual = residual.view(batch, 3, h, s, w, s).permute(1, 3, 5, 0, 2, 4).reshape(3, s * s, -1)  # by phase
    model.phase_parameters(phase)  # refuses another one
    return (_heavy if phase == 0 else _mixture)(model, lr, residual, s)


def _columns(model: PCSR, lr: Tensor) -> Tensor:
    """Features of a batch as (D, B*h*w)."""
    features: Tensor = model.encoder(lr - cast(Tensor, model.mean))
    return features.transpose(0, 1).flatten(1)


def _heavy(model: PCSR, lr: Tensor, residual: Tensor, s: int) -> Tensor:
    """Phase 0, for a residual (3, s*s, B*h*w)."""

    def of_block(features: Tensor, a: int, b: int) -> Tensor:
        return F.l1_loss(model.heavy.dense(features, s), residual[..., a:b], reduction="sum") / residual.numel()

    return SumOverBlocks.apply(of_block, max(1, BLOCK // (s * s)), _columns(model, lr), *model.heavy.parameters())


def _mixture(model: PCSR, lr: Tensor, residual: Tensor, s: int) -> Tensor:
    """Phase 1, for a residual (3, s*s, B*h*w)."""
    model.encoder.eval()
    model.heavy.eval()
    with torch.no_grad():
        features = _columns(model, lr)
        half = residual[0].numel() / 2
        surplus = model.classifier.dense(features, s).softmax(0)[1].sum() - half

    def of_block(features: Tensor, a: int, b: int) -> Tensor:
        with torch.no_grad():
            heavy = model.heavy.dense(features, s)
        share = model.classifier.dense(features, s).softmax(0)  # light, heavy
        mixed = share[:1] * model.light.dense(features, s) + share[1:] * heavy
        quality = F.l1_loss(mixed, residual[..., a:b], reduction="sum") / residual.numel()
        # the derivative of |surplus| is its sign times that of the sum
        balance = surplus.sign() * (share[1].sum() - half * (b - a) / residual.shape[-1]) / half
        return 1000 * quality + 3 * balance

    return SumOverBlocks.apply(of_block, max(1, BLOCK // (s * s)), features, *model.phase_parameters(1))
