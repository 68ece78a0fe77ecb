"""Stochastic depth: branches that are left out in training, the later the oftener.

Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016, arXiv:1603.09382; the layer is timm's.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from saccade.errors import UsageError

__all__ = ["drop_path", "rising"]


def drop_path(rate: float) -> nn.Module:
    """A layer that leaves a picture's branch out with chance ``rate`` in training; nothing at all for 0."""
    if not rate:
        return nn.Identity()
    from timm.layers.drop import DropPath

    return DropPath(rate)


def rising(last: float, depths: Sequence[int]) -> list[float]:
    """The rate of each block of a network, in order: 0 at the first, ``last`` at the last, linear between.

    Args:
        last: ``drop_path_rate``, in [0, 1).
        depths: blocks of each stage.

    Raises:
        UsageError: no such rate.
    """
    if not 0 <= last < 1:
        raise UsageError(f"drop_path_rate lies in [0, 1), not {last}")
    count = sum(depths)
    return [last * i / max(count - 1, 1) for i in range(count)]
