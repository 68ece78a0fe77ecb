"""A contest of one backbone: as `saccade.accelerate` runs it, and its published steps run plainly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from saccade.bench import peers
from saccade.bench.contest import Contest
from saccade.bench.harness import Contender, Row, compare, measure
from saccade.registry import create
from saccade.runtime.accelerate import accelerate

__all__ = ["PICTURES", "backbone_contest", "beside_timm", "eager", "exchanged"]

PICTURES = 8  # of a batch beside another design


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


def beside_timm(
    system: str, ours: tuple[str, int], peer: tuple[str, int], threads: int, rounds: int
) -> tuple[list[Row], list[str]]:
    """One of our networks as `saccade.accelerate` runs it, beside another design's from timm; batches of 8.

    Ours in PyTorch, timm's in PyTorch (fused, channels last) and timm's in OpenVINO stand beside it, so that what the
    network does and what the engine does can be told apart.

    Args:
        system: a slug.
        ours: registered name, and the side of its pictures.
        peer: timm's name, and the side of its own.
        threads: of all.
        rounds: timed.

    Returns:
        Rows of milliseconds a batch and their ratios, and no notes.
    """
    import timm
    from timm.utils.model import reparameterize_model

    chance, contenders = torch.Generator().manual_seed(0), []
    theirs = reparameterize_model(timm.create_model(peer[0]).eval()).to(memory_format=torch.channels_last)
    for who, net, side in (
        (ours[0], create(ours[0], weights=None), ours[1]),
        (f"timm {peer[0]}", theirs, peer[1]),
    ):
        x = torch.randn(PICTURES, 3, side, side, generator=chance)
        for backend in ("auto", "torch"):
            fast = accelerate(net, x.shape, backend=backend, threads=threads)
            contenders.append(eager(f"{who} at {side} px ({fast.backend})", fast, x, threads))
    timings = measure(contenders, rounds, warmup=1)
    what, command = f"{PICTURES} pictures", f"saccade bench backbones --system {system} --threads {threads}"
    size = " and ".join(dict.fromkeys(str(side) for _, side in (ours, peer))) + " px"
    return compare(timings, contenders[0].name, system=system, what=what, size=size, command=command), []
