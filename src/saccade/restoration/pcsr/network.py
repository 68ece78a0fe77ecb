from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from saccade.errors import UsageError
from saccade.restoration.pcsr.sampler import Sampler

BLOCK = 8192  # output pixels whose activations are held at once


class _SumOverBlocks(torch.autograd.Function):
    """Sum of ``function(features[:, a:b], a, b)`` over blocks of pixels, with its gradient made block by block.

    A block's activations stay in the cache and are dropped before the next block, which makes a step on a CPU four
    times as fast at x4 as one graph over all pixels, and needs a hundredth of the memory. The value and the gradient
    are the same sums.
    """

    @staticmethod
    def forward(
        ctx: Any, function: Callable[[Tensor, int, int], Tensor], block: int, features: Tensor, *parameters: Tensor
    ) -> Tensor:
        total = features.new_zeros(())
        wanted = [t for t in (features, *parameters) if t.requires_grad]
        sums = [torch.zeros_like(t) for t in wanted]
        for a in range(0, features.shape[1], block):
            part = features[:, a : a + block].detach().requires_grad_(features.requires_grad)
            b = a + part.shape[1]
            with torch.enable_grad():
                value = function(part, a, b)
            total += value.detach()
            sources = [part, *wanted[1:]] if features.requires_grad else wanted
            for source, into, grad in zip(sources, sums, torch.autograd.grad(value, sources), strict=True):
                (into[:, a:b] if source is part else into).add_(grad)
        ctx.flags = [t.requires_grad for t in (features, *parameters)]
        ctx.save_for_backward(*sums)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        sums = iter(ctx.saved_tensors)
        return (None, None, *(next(sums) * grad if flag else None for flag in ctx.flags))


class PCSR(nn.Module):
    colour = "rgb"
    in_channels = 3

    def __init__(
        self,
        encoder: nn.Module,
        heavy: Sequence[int],
        light: Sequence[int],
        classifier: Sequence[int],
        scale: float = 4,
        mean: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.encoder = encoder
        width: int = encoder.width  # type: ignore[assignment]
        self.heavy = Sampler(width, heavy, 3)
        self.light = Sampler(width, light, 3)
        self.classifier = Sampler(width, classifier, 2)
        self.register_buffer("mean", torch.tensor(mean or [0.0, 0.0, 0.0]).view(1, 3, 1, 1), persistent=False)

    # training

    def phase_parameters(self, phase: int) -> list[nn.Parameter]:
        """What phase 0 (encoder, heavy sampler) or phase 1 (light sampler, classifier) trains."""
        parts = {0: (self.encoder, self.heavy), 1: (self.light, self.classifier)}
        if phase not in parts:
            raise UsageError(f"PCSR trains in phases 0 and 1, there is no phase {phase}")
        return [p for part in parts[phase] for p in part.parameters()]

    def _channels_first(self, lr: Tensor) -> Tensor:
        """Features of a batch as (D, B*h*w)."""
        return self.encoder(lr).transpose(0, 1).flatten(1)

    def _by_phase(self, picture: Tensor) -> Tensor:
        """(B, C, h*s, w*s) -> (C, s^2, B*h*w), the layout of `Sampler.dense`."""
        s = int(self.scale)
        b, c, height, width = picture.shape
        parts = picture.view(b, c, height // s, s, width // s, s)
        return parts.permute(1, 3, 5, 0, 2, 4).reshape(c, s * s, -1)

    def training_loss(self, lr: Tensor, hr: Tensor, phase: int) -> Tensor:
        """Loss of one training step on every pixel of the crops (sections 3.3 and 4.1); whole scales only.

        Phase 0 is the L1 of the heavy sampler. Phase 1 holds encoder and heavy sampler frozen, in evaluation mode,
        and trains on the soft mixture: 1000 L1 + 3 |sum p_heavy - N/2| / (N/2), N all pixels of the batch.

        Args:
            lr: (B, 3, h, w) in [0, 1].
            hr: (B, 3, h*scale, w*scale) in [0, 1].
            phase: 0 or 1.

        Raises:
            UsageError: a scale that is not whole, another phase, or sizes that do not belong together.
        """
        s = int(self.scale)
        if s != self.scale:
            raise UsageError(f"training needs a whole scale, not {self.scale:g}")
        if hr.shape != (lr.shape[0], 3, lr.shape[2] * s, lr.shape[3] * s):
            raise UsageError(f"targets {tuple(hr.shape)} do not belong to inputs {tuple(lr.shape)} at x{s}")
        base = F.interpolate(lr, scale_factor=s, mode="bilinear", align_corners=False)
        residual = self._by_phase(hr - base)  # (3, s^2, B*h*w)
        lr = lr - self.mean  # type: ignore[operator]
        parameters = self.phase_parameters(phase)
        block = max(1, BLOCK // (s * s))
        if phase == 0:

            def heavy_loss(features: Tensor, a: int, b: int) -> Tensor:
                return F.l1_loss(self.heavy.dense(features, s), residual[..., a:b], reduction="sum") / residual.numel()

            return _SumOverBlocks.apply(heavy_loss, block, self._channels_first(lr), *self.heavy.parameters())

        self.encoder.eval()
        self.heavy.eval()
        with torch.no_grad():
            features = self._channels_first(lr)
            half = residual[0].numel() / 2
            surplus = self.classifier.dense(features, s).softmax(0)[1].sum() - half

        def mixed_loss(features: Tensor, a: int, b: int) -> Tensor:
            with torch.no_grad():
                heavy = self.heavy.dense(features, s)
            share = self.classifier.dense(features, s).softmax(0)  # light, heavy
            mixed = share[:1] * self.light.dense(features, s) + share[1:] * heavy
            quality = F.l1_loss(mixed, residual[..., a:b], reduction="sum") / residual.numel()
            # the derivative of |surplus| is its sign times that of the sum
            balance = surplus.sign() * (share[1].sum() - half * (b - a) / residual.shape[-1]) / half
            return 1000 * quality + 3 * balance

        return _SumOverBlocks.apply(mixed_loss, block, features, *parameters)
