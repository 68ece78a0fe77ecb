"""A contest of one backbone: as `saccade.accelerate` runs it, and its published steps run plainly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from saccade.bench import peers
from saccade.bench.contest import Contest
from saccade.bench.harness import Contender
from saccade.registry import create
from saccade.runtime.accelerate import accelerate

__all__ = ["backbone_contest", "eager", "exchanged"]


def exchanged(model: nn.Module, plain: Mapping[type[nn.Module], Callable[[Any], nn.Module]]) -> nn.Module:
    """A network in evaluation mode, each module of a class in ``plain`` exchanged, in place, for what is made of it."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            for kind, make in plain.items():
                if isinstance(child, kind):
                    setattr(module, name, make(child))
                    break
    return model.eval()


def eager(name: str, run: Callable[[Tensor], Any], x: Tensor, threads: int) -> Contender:
    """A function of the batch on torch's threads, without gradients."""

    def once() -> Any:
        with torch.inference_mode():
            return run(x)

    return Contender(name, once, threads, partial(peers.torch_threads, threads))


def backbone_contest(
    name: str,
    official: Callable[[nn.Module], Callable[[Tensor], Any]],
    size: tuple[int, int],
    threads: int,
    *,
    batch: int = 1,
    backend: str = "auto",
    peers: Sequence[Contender] = (),
    notes: Sequence[str] = (),
    **options: Any,
) -> Contest:
    """Our network, made ready by `accelerate`, and the same weights through the published steps.

    Args:
        name: registered.
        official: makes the plain function of a batch from our network.
        size: (width, height).
        batch: pictures at once.
        backend: of ours.
        options: of the network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create(name, weights=None, **options)
        x = torch.randn(batch, 3, size[1], size[0])
    ours = accelerate(model, x.shape, backend=backend, threads=threads)
    plain = official(model)

    def check() -> None:
        with torch.inference_mode():
            torch.testing.assert_close(ours(x), plain(x), rtol=1e-3, atol=1e-3)

    return Contest(
        f"{name}, {batch} picture{'s' if batch > 1 else ''}",
        eager(f"{name}, accelerated ({ours.backend})", ours, x, threads),
        eager(name, plain, x, threads),
        tuple(peers),
        tuple(notes),
        check,
    )
