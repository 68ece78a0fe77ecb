"""Large depthwise convolution beside torch's own, forward and with gradients, for the backbones that rest on it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from saccade.bench import peers
from saccade.bench.harness import Contender, Row, compare, measure
from saccade.ops.large_depthwise import large_depthwise

__all__ = ["depthwise_rows"]

Case = tuple[tuple[int, int, int, int], int, int]  # the map, taps a side, dilation


def depthwise_rows(cases: Iterable[Case], system: str, command: str, threads: int, rounds: int) -> list[Row]:
    """One row each: forward and with both gradients, in both layouts."""
    rows = []
    for shape, kernel, dilation in cases:
        chance = torch.Generator().manual_seed(0)
        x = torch.randn(shape, generator=chance)
        weight = torch.randn(shape[1], 1, kernel, kernel, generator=chance) / kernel
        for layout, words in ((torch.contiguous_format, "planes"), (torch.channels_last, "channels last")):
            moved = x.contiguous(memory_format=layout)
            for run, job in ((_forward, "forward"), (_with_gradients, "forward and gradients")):
                contenders = [
                    Contender(name, partial(run, moved, weight, dilation, path), threads, partial(inside, threads))
                    for name, path, inside in (
                        ("large_depthwise", "auto", peers.torch_threads),
                        ("torch conv2d", "torch", peers.torch_threads),
                    )
                ]
                timings = measure(contenders, max(rounds, 9), warmup=2)
                spread = f", dilation {dilation}" if dilation > 1 else ""
                what = f"depthwise {kernel}x{kernel}{spread}, {shape[1]} channels, {words}, {job}"
                size = f"{shape[3]}x{shape[2]}"
                rows += compare(timings, "large_depthwise", system=system, what=what, size=size, command=command)
    return rows


def _forward(x: Tensor, weight: Tensor, dilation: int, path: Any) -> Tensor:
    with torch.inference_mode():
        return large_depthwise(x, weight, dilation=dilation, path=path)


def _with_gradients(x: Tensor, weight: Tensor, dilation: int, path: Any) -> tuple[Tensor, ...]:
    with torch.inference_mode(False), torch.enable_grad():
        x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
        y = large_depthwise(x, weight, dilation=dilation, path=path)
        return torch.autograd.grad(y, (x, weight), y.detach())
