"""UniRepLKNet beside its published form run plainly, merged beside branches, and its kernels beside torch's own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from saccade.bench.classify import backbone_contest, eager
from saccade.bench.contest import Contest
from saccade.bench.harness import Row, compare, measure
from saccade.bench.large_depthwise import depthwise_rows
from saccade.nn.fuse import fuse
from saccade.ops.large_depthwise import set_path
from saccade.registry import create

__all__ = ["contests", "plain", "rows"]


def plain(model: nn.Module) -> Callable[[Tensor], Any]:
    """The merged form, as it is published for inference, with torch's own convolutions."""
    return set_path(fuse(copy.deepcopy(model).eval()), "torch")


def contests(size: tuple[int, int], threads: int) -> Iterator[Contest]:
    """A and T."""
    for name in ("unireplknet_a", "unireplknet_t"):
        yield backbone_contest(name, plain, size, threads)


def rows(threads: int, rounds: int) -> tuple[list[Row], list[str]]:
    """A before and after merging, batches of 4; kernels of 13 to 31 taps on maps of T at 224 px and of a detector."""
    command = f"saccade bench backbones --system unireplknet --threads {threads}"
    branches = create("unireplknet_a", weights=None)
    x = torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    contenders = [
        eager("unireplknet_a, merged", fuse(branches), x, threads),
        eager("unireplknet_a, branches", branches, x, threads),
    ]
    timings = measure(contenders, rounds, warmup=1)
    found = compare(
        timings, contenders[0].name, system="unireplknet", what="4 pictures", size="224x224", command=command
    )
    maps = ((1, 160, 28, 28), (1, 320, 14, 14), (1, 64, 64, 64), (8, 96, 16, 16))
    cases = [(shape, kernel, 1) for shape in maps for kernel in (13, 17, 31)]
    return found + depthwise_rows(cases, "unireplknet", command, threads, rounds), []
