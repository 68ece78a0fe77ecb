"""BasicVSR's body: features run through the clip in both directions, moved along the flow, then become pixels.

Chan et al., "BasicVSR", CVPR 2021, arXiv:2012.02181, section 3.

    backward  b_i = stack_b(cat[frame_i, warp(b_{i+1}, flow i -> i+1)])       i = t-1 .. 0
    forward   f_i = stack_f(cat[frame_i, warp(f_{i-1}, flow i -> i-1)])       i = 0 .. t-1
    tail      cat[b_i, f_i] -- 1x1 -- conv, shuffle x2 -- conv, shuffle x2 -- conv -- conv (+ frame_i bilinear x4)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.ops.warp import flow_warp
from saccade.restoration.realbasicvsr.blocks import SLOPE, ResidualStack, conv, shrunk_start

__all__ = ["Branch", "Tail", "tail_in_strips"]

#: rows of the frame that one strip of the tail covers, and how far it sees by its convolutions at x1, x2, x4 and x4
STRIP, TAIL_HALO = 64, 2


class Branch(nn.Module):
    """One direction of propagation; one step a call.

    Args:
        width: channels of the features.
        blocks: residual blocks.
    """

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.width = width
        self.stack = ResidualStack(3 + width, width, blocks)

    def forward(self, frame: Tensor, before: Tensor | None, flow: Tensor | None) -> Tensor:
        """The features of one frame.

        Args:
            frame: (B, 3, h, w).
            before: features (B, C, h, w) of the frame that came before in this direction; None at the end of a clip.
            flow: (B, 2, h, w) from this frame to that one.

        Returns:
            (B, C, h, w).
        """
        if before is None or flow is None:
            moved = frame.new_zeros(len(frame), self.width, *frame.shape[2:])
        else:
            moved = flow_warp(before, flow)
        made: Tensor = self.stack(torch.cat([frame, moved], 1))
        return made


class Tail(nn.Module):
    """Fusion of both directions and enlargement by 4.

    Args:
        width: channels of each direction.
        high_width: channels at the output's size; 64 in the paper, whatever ``width`` is.
    """

    def __init__(self, width: int, high_width: int = 64) -> None:
        super().__init__()
        self.fusion = nn.Conv2d(2 * width, width, 1)
        self.enlarge1 = conv(width, 4 * width)
        self.enlarge2 = conv(width, 4 * high_width)
        self.high = conv(high_width, high_width)
        self.last = conv(high_width, 3)
        shrunk_start(self.enlarge1, 1.0)
        shrunk_start(self.enlarge2, 1.0)

    @property
    def kernels(self) -> int:
        """MACs a pixel of the frame, each convolution at its own size."""
        sizes = {self.fusion: 1, self.enlarge1: 1, self.enlarge2: 4, self.high: 16, self.last: 16}
        return sum(layer.weight.numel() * pixels for layer, pixels in sizes.items())

    def forward(self, frame: Tensor, backward: Tensor, forward: Tensor) -> Tensor:
        """Pixels of one frame.

        Args:
            frame: (B, 3, h, w), cleaned.
            backward, forward: (B, C, h, w).

        Returns:
            (B, 3, 4h, 4w), not clamped.
        """
        if torch.is_grad_enabled():
            return enlarged(frame) + self.detail(backward, forward)
        return tail_in_strips(self.detail, frame, backward, forward)

    def detail(self, backward: Tensor, forward: Tensor) -> Tensor:
        """What is added to the enlarged frame."""
        x = F.leaky_relu(self.fusion(torch.cat([backward, forward], 1)), SLOPE)
        x = F.leaky_relu(F.pixel_shuffle(self.enlarge1(x), 2), SLOPE)
        x = F.leaky_relu(F.pixel_shuffle(self.enlarge2(x), 2), SLOPE)
        made: Tensor = self.last(F.leaky_relu(self.high(x), SLOPE))
        return made


def enlarged(frame: Tensor) -> Tensor:
    """Bilinear by 4, the floor that the tail adds to."""
    return F.interpolate(frame, scale_factor=4, mode="bilinear", align_corners=False)


def tail_in_strips(detail: Callable[[Tensor, Tensor], Tensor], frame: Tensor, back: Tensor, ahead: Tensor) -> Tensor:
    """A tail strip by strip: its features at the output's size are 16 times a frame's and never exist all at once.

    Args:
        detail: (B, C, h, w) twice -> (B, 3, 4h, 4w).
        frame: (B, 3, h, w), cleaned.
        back, ahead: features (B, C, h, w) of both directions.

    Returns:
        (B, 3, 4h, 4w), the same as in one piece.
    """
    made, height = enlarged(frame), frame.shape[2]
    for top in range(0, height, STRIP):
        bottom = min(height, top + STRIP)
        low, high = max(0, top - TAIL_HALO), min(height, bottom + TAIL_HALO)
        part = detail(back[:, :, low:high], ahead[:, :, low:high])
        made[:, :, 4 * top : 4 * bottom] += part[:, :, 4 * (top - low) : 4 * (bottom - low)]
    return made
