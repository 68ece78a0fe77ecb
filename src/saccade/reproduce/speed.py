"""Pictures a second for the claims: networks on batches of one size, in turns, on the same threads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import nn

from saccade.reproduce import Figures
from saccade.reproduce.training import medians
from saccade.runtime.threads import on_threads

__all__ = ["folded_peer", "network_speeds", "pictures_a_second"]


def folded_peer(name: str) -> nn.Module:
    """A network of timm in the form that it is deployed in, batch norms folded where it says how."""
    import timm
    from timm.utils.model import reparameterize_model

    made: nn.Module = reparameterize_model(timm.create_model(name).eval())
    return made


def pictures_a_second(
    calls: Mapping[str, Callable[[], object]], batch: int, *, threads: int, rounds: int
) -> dict[str, float]:
    """Of calls that take a batch each: ``pictures_per_s_<name>``, by the median of calls in turns, and ``threads``."""
    with on_threads(threads):
        seconds = medians(calls, rounds)
    return {f"pictures_per_s_{name}": batch / taken for name, taken in seconds.items()} | {"threads": threads}


def network_speeds(networks: Mapping[str, tuple[nn.Module, int]], batch: int, *, threads: int, rounds: int) -> Figures:
    """`pictures_a_second` of networks in PyTorch, channels last, without gradients.

    Args:
        networks: by name, each with the side in pixels of the pictures that it is given.
    """
    calls: dict[str, Callable[[], object]] = {}
    for name, (model, side) in networks.items():
        x = torch.randn(batch, 3, side, side).contiguous(memory_format=torch.channels_last)
        calls[name] = torch.inference_mode()(partial(model.to(memory_format=torch.channels_last), x))
    return pictures_a_second(calls, batch, threads=threads, rounds=rounds)
