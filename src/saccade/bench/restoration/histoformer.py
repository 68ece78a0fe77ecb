"""Histoformer in lean blocks beside its published steps; its sort, and its tiles beside the whole picture."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from saccade.bench import peers
from saccade.bench.contest import Contest
from saccade.bench.harness import Contender, Row, compare, measure
from saccade.ops.stable_order import packed_order, stable_order_naive
from saccade.registry import create
from saccade.restoration.histoformer import Histoformer
from saccade.runtime.scene import scene

__all__ = ["contests", "rows"]

WHOLE = 512 * 512  # pixels up to which the published size runs too


def contests(size: tuple[int, int], threads: int) -> Iterator[Contest]:
    """The tiny network at every size, the published one up to 512 x 512; fresh weights, the same for both."""
    width, height = size
    picture = _picture(height, width)
    inside = functools.partial(peers.torch_threads, threads)
    names = ("histoformer_tiny", "histoformer") if width * height <= WHOLE else ("histoformer_tiny",)
    for name in names:
        model = _fresh(name)
        yield Contest(
            f"{name}, RGB",
            Contender(f"{name} by saccade", functools.partial(model, picture), threads, inside),
            Contender(
                f"{name} as published, PyTorch", functools.partial(model.forward_naive, picture), threads, inside
            ),
            notes=() if len(names) > 1 else ("histoformer: the published size takes minutes at 1920x1080",),
        )


def rows(threads: int, rounds: int) -> tuple[list[Row], list[str]]:
    """What the time goes to: sorting eight planes of a megapixel, and the picture whole beside tiles of it."""
    command = f"saccade bench restoration --system histoformer --threads {threads}"
    inside = functools.partial(peers.torch_threads, threads)
    planes = torch.randn(8, 1 << 20, generator=torch.Generator().manual_seed(0))
    values = planes.numpy()
    ours = Contender("packed keys", functools.partial(packed_order, values, values=True), threads, inside)
    torchs = Contender("torch.sort, stable", functools.partial(stable_order_naive, planes), threads, inside)
    facts = {"system": "histoformer", "command": command}
    made = compare(measure([ours, torchs], rounds), ours.name, what="the order of 8 planes", size="1024x1024", **facts)
    model, picture = _fresh("histoformer_tiny"), _picture(1024, 1024)
    tiles: Callable[[], Tensor] = functools.partial(model.forward_tiles, picture, 512, 64)
    whole = Contender("whole picture", functools.partial(model, picture), threads, inside)
    pieces = Contender("tiles of 512 px, 64 px overlap (approximate)", tiles, threads, inside)
    timings = measure([whole, pieces], rounds)
    made += compare(timings, whole.name, what="histoformer_tiny, RGB", size="1024x1024", **facts)
    return made, ["tiles of Histoformer sort their own histogram: another function than the whole picture's, near it"]


def _picture(height: int, width: int) -> Tensor:
    return torch.from_numpy(scene(height, width)).permute(2, 0, 1)[None].float() / 255


def _fresh(name: str) -> Histoformer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = create(name, weights=None)
    assert isinstance(model, Histoformer)
    return model
