"""Dynamic pre-cleaning (section 3.1): take away what propagation would amplify, as often as a threshold asks.

frames (t,3,h,w) --+-- conv, 20 residual blocks, conv --(+)--+--> again, at most 3 times,
                   |_________________________________|      |    until the mean |change| is below the threshold
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from saccade.restoration.realbasicvsr.blocks import ResidualStack, conv

__all__ = ["MOST_PASSES", "Cleaning"]

MOST_PASSES = 3


class Cleaning(nn.Module):
    """The cleaning module: (B, 3, h, w) -> the change (B, 3, h, w) that is to be added.

    Args:
        width: channels.
        blocks: residual blocks.
    """

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.body = ResidualStack(3, width, blocks)
        self.last = conv(width, 3)

    def forward(self, frames: Tensor) -> Tensor:
        change: Tensor = self.last(self.body(frames))
        return change

    @property
    def kernels(self) -> int:
        """MACs an input pixel of one pass."""
        return self.body.kernels + self.last.weight.numel()

    def clean(self, clip: Tensor, passes: int) -> Tensor:
        """Apply a known number of passes.

        Args:
            clip: (n, t, 3, h, w); never changed in place.
            passes: 0 or more.
        """
        for _ in range(passes):
            clip, _ = self._pass(clip)
        return clip

    def dynamic(self, clip: Tensor, threshold: float, most: int = MOST_PASSES) -> tuple[Tensor, list[float]]:
        """Clean until the change is small (equation 3).

        The mean is over all frames of all clips together, as published: one decision for the whole tensor.

        Args:
            clip: (n, t, 3, h, w) in [0, 1]; never changed in place.
            threshold: of the mean absolute change, in units of 1/255. Of 255: always one pass.
            most: passes at most.

        Returns:
            the cleaned clip, and the mean absolute change of every pass that was made, in units of 1/255.
        """
        changes: list[float] = []
        while len(changes) < most and not (changes and changes[-1] < threshold):
            clip, change = self._pass(clip)
            changes.append(change * 255)
        return clip, changes

    def _pass(self, clip: Tensor) -> tuple[Tensor, float]:
        if torch.is_grad_enabled():
            change = self(clip.flatten(0, 1)).view_as(clip)
            return clip + change, float(change.detach().abs().mean())
        made, total = torch.empty_like(clip), 0.0
        for n in range(clip.shape[0]):
            for i in range(clip.shape[1]):  # frame after frame: the features of one frame in memory at a time
                change = self(clip[n, i][None])[0]
                total += float(change.abs().sum(dtype=torch.float64))
                torch.add(clip[n, i], change, out=made[n, i])
        return made, total / clip.numel()
