"""Deep optimal transport in pixels: one convolution beside the official patches, the same statistics."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from saccade.bench import peers
from saccade.bench.contest import Contest
from saccade.bench.harness import Contender

__all__ = ["contests"]


def contests(size: tuple[int, int], threads: int) -> Iterator[Contest]:
    """Transport of one picture; statistics of generated pictures, which do not change the speed.

    Args:
        size: width and height.
        threads: torch's, for both contenders.
    """
    import torch

    from saccade.restoration.dot import DeepOptimalTransport
    from saccade.runtime.scene import scene

    width, height = size
    x = torch.from_numpy(scene(height, width)).permute(2, 0, 1)[None].float().contiguous() / 255
    model = DeepOptimalTransport(5)
    part = x[..., :256, :256]
    model.update_target(part)
    model.update_source(torch.nn.functional.avg_pool2d(part, 3, 1, 1, count_include_pad=False))
    model.compute()
    inside = functools.partial(peers.torch_threads, threads)
    yield Contest(
        what="DOT, patches of 5 x 5 pixels, RGB",
        ours=Contender("DOT by saccade, one convolution", lambda: model.transport(x), threads, inside),
        official=Contender("DOT patch by patch, float64", lambda: _plain(model, x), threads, inside),
        notes=(
            "The official steps with one matrix product for all patches; the official code multiplies a matrix with "
            "each patch.",
        ),
    )


def _plain(model: object, pictures: object) -> object:
    """Pad, unfold, map, weigh, fold, divide by what folding ones gives: all patches at once, in float64."""
    import torch
    import torch.nn.functional as F
    from torch import Tensor

    from saccade.restoration.dot import DeepOptimalTransport

    assert isinstance(model, DeepOptimalTransport)
    assert isinstance(pictures, Tensor)
    p, size = model.patch, pictures.shape[2:]
    with torch.no_grad():

        def patches(of: Tensor) -> Tensor:
            return F.unfold(F.pad(of, (p // 2,) * 4, mode="replicate"), p)

        taken = patches(2 * pictures.double() - 1)
        made = model.transport_operator @ (taken - model.mean_source[:, None]) + model.mean_target[:, None]
        weights = model.weights.flatten().repeat(model.channels)[:, None]
        total = F.fold(made * weights, size, p, padding=p // 2)
        ones = torch.ones(1, model.channels, *size, dtype=torch.float64)
        return (total / F.fold(patches(ones) * weights, size, p, padding=p // 2)).float() / 2 + 0.5
