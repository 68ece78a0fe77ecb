"""VAN beside its published steps run plainly, and the far part of its gate beside torch's own convolution."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from saccade.bench.classify import backbone_contest
from saccade.bench.contest import Contest
from saccade.bench.harness import Row
from saccade.bench.large_depthwise import depthwise_rows
from saccade.ops.large_depthwise import set_path

__all__ = ["contests", "plain", "rows"]


def plain(model: nn.Module) -> Callable[[Tensor], Any]:
    """The network as it was trained, batch norms and scales of their own, with torch's own convolutions."""
    return set_path(copy.deepcopy(model).eval(), "torch")


def contests(size: tuple[int, int], threads: int) -> Iterator[Contest]:
    """B0 and B2."""
    for name in ("van_b0", "van_b2"):
        yield backbone_contest(name, plain, size, threads)


def rows(threads: int, rounds: int) -> tuple[list[Row], list[str]]:
    """7x7 with dilation 3 on the maps of B1 to B4 at 224 px."""
    cases = [((1, width, side, side), 7, 3) for width, side in ((64, 56), (128, 28), (320, 14))]
    command = f"saccade bench backbones --system van --threads {threads}"
    return depthwise_rows(cases, "van", command, threads, rounds), []
