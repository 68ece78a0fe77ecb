"""HyperZ.Z.W with its kernels kept beside the same network that makes them at every call.

It is built for one size and keeps it through all blocks: 32 px is what it is published for. At 224 px it holds maps of
1,728 channels at full size; larger contests are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from saccade.bench.classify import backbone_contest, eager
from saccade.bench.contest import Contest
from saccade.bench.harness import Row, compare, measure
from saccade.nn.fuse import fuse
from saccade.registry import create

__all__ = ["contests", "rows"]

LARGEST, BATCH = 224, 4  # px; pictures


def plain(model: nn.Module) -> Callable[[Tensor], Any]:
    """The published steps: every kernel is generated at every call."""
    return model


def contests(size: tuple[int, int], threads: int) -> Iterator[Contest]:
    """The network of the CIFAR runs, built for the size; alone and in a batch where pictures are small."""
    if size[0] != size[1] or size[0] > LARGEST:
        return
    for batch in (1, 8) if size[0] <= 64 else (1,):
        yield backbone_contest("hyperzzw_cifar", plain, size, threads, batch=batch, img_size=size[0])


def rows(threads: int, rounds: int) -> tuple[list[Row], list[str]]:
    """Kept kernels beside generated ones, both in PyTorch, one picture and four of 32 px."""
    found: list[Row] = []
    model = create("hyperzzw_cifar", weights=None)
    for batch in (1, BATCH):
        x = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        kept = eager("hyperzzw_cifar, kernels kept, PyTorch", fuse(model), x, threads)
        timings = measure([kept, eager("kernels made anew, PyTorch", model, x, threads)], rounds, warmup=1)
        what = f"{batch} picture{'s' if batch > 1 else ''}"
        command = f"saccade bench backbones --system hyperzzw --threads {threads}"
        found += compare(timings, kept.name, system="hyperzzw", what=what, size="32x32", command=command)
    return found, ["hyperzzw: no contest above 224 px, where its maps of 1,728 channels at full size fill the memory"]
