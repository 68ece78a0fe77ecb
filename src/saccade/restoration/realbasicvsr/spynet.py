"""SPyNet: optical flow by a pyramid of small networks, each mending the flow of the level above.

Ranjan and Black, "Optical Flow Estimation using a Spatial Pyramid Network", CVPR 2017, arXiv:1611.00850, in the form
that BasicVSR carries:

    flow at h/32 = 0;  flow <- 2 * enlarged(flow) + level(cat[reference, warped(neighbour, flow), flow])   (6 levels)
    level: five 7x7 convolutions 8-32-64-32-16-2 with ReLU between
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import InputError
from saccade.ops.warp import flow_warp

__all__ = ["FlowLevel", "SPyNet"]

WIDTHS = (8, 32, 64, 32, 16, 2)
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class FlowLevel(nn.Module):
    """One level: cat[reference (3), warped neighbour (3), flow (2)] (B,8,h,w) -> correction (B,2,h,w)."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 7, padding=3) for i, o in pairwise(WIDTHS))

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.convs):
            x = layer(x)
            if i < len(self.convs) - 1:
                x = F.relu(x) if torch.is_grad_enabled() else x.relu_()
        return x


class SPyNet(nn.Module):
    """Flow from a reference frame to its neighbour.

    Shape: (B, 3, h, w) twice, in [0, 1] -> (B, 2, h, w): (dx, dy) in pixels, such that the neighbour warped by it is
    the reference. Any size; below 64 pixels the coarsest levels hold one or two pixels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, levels: int = 6) -> None:
        super().__init__()
        self.levels = nn.ModuleList(FlowLevel() for _ in range(levels))
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1))

    @property
    def multiple(self) -> int:
        """Sides are brought to multiples of this."""
        return 1 << (len(self.levels) - 1)

    @property
    def kernels(self) -> int:
        """MACs a pixel of the finest level; all levels together take 4/3 of it."""
        return sum(p.numel() for p in self.levels[0].parameters() if p.dim() == 4)

    def pyramid(self, frames: Tensor) -> list[Tensor]:
        """Normalised frames, coarsest first; made once a frame, however many flows it takes part in.

        Args:
            frames: (B, 3, h, w) in [0, 1].
        """
        size = [-(-n // self.multiple) * self.multiple for n in frames.shape[2:]]
        x = (F.interpolate(frames, size=size, mode="bilinear", align_corners=False) - self.mean) / self.std
        made = [x]
        for _ in self.levels[1:]:
            made.append(F.avg_pool2d(made[-1], 2))
        return made[::-1]

    def between(
        self,
        reference: list[Tensor],
        neighbour: list[Tensor],
        size: tuple[int, int],
        levels: Sequence[Callable[[Tensor], Tensor]] | None = None,
    ) -> Tensor:
        """Flow from two pyramids.

        Args:
            reference, neighbour: from `pyramid`.
            size: (h, w) of the frames they were made of.
            levels: what runs instead of the own levels (compiled ones).

        Returns:
            (B, 2, h, w).
        """
        flow = None
        run = cast(Sequence[Callable[[Tensor], Tensor]], levels or self.levels)
        for level, here, there in zip(run, reference, neighbour, strict=True):
            if flow is None:
                flow = here.new_zeros(len(here), 2, *here.shape[2:])
                seen = there  # a flow of zero moves nothing
            else:
                flow = 2 * F.interpolate(flow, scale_factor=2, mode="bilinear", align_corners=True)
                seen = flow_warp(there, flow, "border")
            flow = flow + level(torch.cat([here, seen, flow], 1))
        assert flow is not None
        height, width = size
        up = flow.shape[2:]
        if tuple(up) == tuple(size):
            return flow
        flow = F.interpolate(flow, size=size, mode="bilinear", align_corners=False)
        return flow * flow.new_tensor([width / up[1], height / up[0]]).view(1, 2, 1, 1)

    def forward(self, reference: Tensor, neighbour: Tensor) -> Tensor:
        if reference.shape != neighbour.shape:
            raise InputError(f"flow between frames of size {tuple(reference.shape)} and {tuple(neighbour.shape)}")
        return self.between(self.pyramid(reference), self.pyramid(neighbour), (reference.shape[2], reference.shape[3]))
