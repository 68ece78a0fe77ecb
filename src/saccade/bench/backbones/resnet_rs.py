"""ResNet-RS beside timm's module run plainly with the same weights, and beside EfficientNets of its accuracy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from saccade.backbones.resnet_rs import ResNetRS
from saccade.bench.classify import backbone_contest, eager
from saccade.bench.contest import Contest
from saccade.bench.harness import Row, compare, measure
from saccade.registry import create
from saccade.runtime.accelerate import accelerate

__all__ = ["contests", "plain", "rows"]


def plain(model: nn.Module) -> Callable[[Tensor], Any]:
    """timm's network of the same numbers with our weights."""
    from timm.layers.create_attn import get_attn
    from timm.models.resnet import Bottleneck, ResNet

    assert isinstance(model, ResNetRS)
    kind: Any = Bottleneck
    squeeze: Any = get_attn("se")
    twin: nn.Module = ResNet(
        kind,
        model.layers,
        num_classes=model.num_classes,
        stem_width=model.stem_width,
        stem_type="deep",
        replace_stem_pool=True,
        avg_down=True,
        channels=model.channels,
        block_args={"attn_layer": lambda c, **_: squeeze(c, rd_channels=int(c * model.se_ratio))},
    )
    twin.load_state_dict(model.state_dict())
    return twin.eval()


def contests(size: tuple[int, int], threads: int) -> Iterator[Contest]:
    """50 and 101."""
    for name in ("resnetrs50", "resnetrs101"):
        yield backbone_contest(name, plain, size, threads)


def rows(threads: int, rounds: int) -> tuple[list[Row], list[str]]:
    """101 at 192 px beside EfficientNet-B3 at 300 px (as accurate), batches of 8; all in PyTorch, channels last."""
    import timm
    from timm.utils.model import reparameterize_model

    chance = torch.Generator().manual_seed(0)
    small, large = (torch.randn(8, 3, s, s, generator=chance) for s in (192, 300))
    ours = accelerate(create("resnetrs101", weights=None), backend="torch")
    peer = reparameterize_model(timm.create_model("efficientnet_b3").eval()).to(memory_format=torch.channels_last)
    contenders = [
        eager("resnetrs101 at 192 px, fused", ours, small, threads),
        eager("timm efficientnet_b3 at 300 px", peer, large.contiguous(memory_format=torch.channels_last), threads),
    ]
    timings = measure(contenders, rounds, warmup=1)
    what, command = "8 pictures", f"saccade bench backbones --system resnet_rs --threads {threads}"
    return compare(timings, contenders[0].name, system="resnet_rs", what=what, size="192, 300", command=command), []
