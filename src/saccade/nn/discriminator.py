"""A discriminator that judges every pixel: U-Net with spectral norm, with a condition picture where wanted.

    (B,3,h,w) -- conv -- x0 -- /2 -- x1 -- /2 -- x2 -- /2 -- x3 -- up (+x2) -- up (+x1) -- up (+x0) -- 3 convs
                                                                                                       (B,1,h,w)

Wang et al., "Real-ESRGAN", arXiv:2107.10833, section 3.4; the two ways to show it a condition (a mask of what is
blurred on purpose) are those of PBaSR, Qin et al., arXiv:2407.14880.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from saccade.errors import InputError, UsageError

__all__ = ["UNetDiscriminator"]

Condition = Literal["none", "joint", "late"]


class UNetDiscriminator(nn.Module):
    """U-Net discriminator.

    Args:
        width: channels at the picture's size; 64 as published.
        condition: ``none``; ``joint``: picture and condition through 3x3 convolutions of half the width each, then 1x1;
            ``late``: the condition joins behind the first convolution by a 1x1 that starts by ignoring it, so that a
            trained unconditional discriminator can be continued.

    Shape: picture (B, 3, h, w) and condition (B, 1, h, w), sides at least 8 -> logits (B, 1, h, w).

    Raises:
        UsageError: another way to condition. InputError: a condition where none is taken, or none where one is.
    """

    def __init__(self, width: int = 64, condition: Condition = "none") -> None:
        super().__init__()
        if condition not in ("none", "joint", "late"):
            raise UsageError(f"a discriminator's condition is none, joint or late, not {condition!r}")
        self.condition = condition
        w, half = width, width // 2
        self.first = nn.Conv2d(3, half if condition == "joint" else w, 3, padding=1)
        if condition != "none":
            self.beside = nn.Conv2d(1, half, 3, padding=1)
            self.join = nn.Conv2d(2 * half if condition == "joint" else w + half, w, 1)
        if condition == "late":
            assert self.join.bias is not None
            with torch.no_grad():
                self.join.weight.copy_(torch.eye(w, w + half)[:, :, None, None])
                self.join.bias.zero_()
        pairs = ((w, 2 * w), (2 * w, 4 * w), (4 * w, 8 * w))
        self.down = nn.ModuleList(spectral_norm(nn.Conv2d(a, b, 4, 2, 1, bias=False)) for a, b in pairs)
        self.up = nn.ModuleList(spectral_norm(nn.Conv2d(b, a, 3, padding=1, bias=False)) for a, b in reversed(pairs))
        self.tail = nn.ModuleList(spectral_norm(nn.Conv2d(w, w, 3, padding=1, bias=False)) for _ in range(2))
        self.last = nn.Conv2d(w, 1, 3, padding=1)

    def forward(self, picture: Tensor, condition: Tensor | None = None) -> Tensor:
        if (condition is None) != (self.condition == "none"):
            raise InputError(f"this discriminator takes {'no' if self.condition == 'none' else 'a'} condition")
        x = self.first(picture)
        if condition is not None:
            beside = self.beside(condition)
            if self.condition == "late":
                x, beside = F.leaky_relu(x, 0.2), F.leaky_relu(beside, 0.2)
            x = self.join(torch.cat((x, beside), 1))
        if self.condition != "late":
            x = F.leaky_relu(x, 0.2)
        seen = [x]
        for layer in self.down:
            seen.append(F.leaky_relu(layer(seen[-1]), 0.2))
        x = seen.pop()
        for layer in self.up:
            before = seen.pop()
            x = F.interpolate(x, size=before.shape[-2:], mode="bilinear", align_corners=False)
            x = F.leaky_relu(layer(x), 0.2) + before
        for layer in self.tail:
            x = F.leaky_relu(layer(x), 0.2)
        made: Tensor = self.last(x)
        return made
