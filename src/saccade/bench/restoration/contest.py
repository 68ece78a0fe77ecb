"""What a system brings to the suite of restoration: two calls that do the same job with the same weights."""

from __future__ import annotations

from dataclasses import dataclass, field

from saccade.bench.harness import Contender

__all__ = ["Contest"]


@dataclass(frozen=True)
class Contest:
    """One network on one input, run our way and as its authors published it.

    Attributes:
        what: the job, in words, e.g. ``Histoformer-tiny, RGB``.
        ours: the fast path that a user gets by default.
        official: the published algorithm run plainly (eager PyTorch, the steps of the official code), same weights.
        peers: what else a user could pick.
        notes: what belongs to the figures, one sentence each.
    """

    what: str
    ours: Contender
    official: Contender
    peers: tuple[Contender, ...] = ()
    notes: tuple[str, ...] = field(default=())
