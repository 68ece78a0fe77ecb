"""ResNet-RS beside timm's module run plainly with the same weights, and beside EfficientNets of its accuracy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from saccade.backbones.resnet_rs import ResNetRS
from saccade.bench.classify import backbone_contest, beside_timm
from saccade.bench.contest import Contest
from saccade.bench.harness import Row

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
    """101 at 192 px beside EfficientNet-B3 at 300 px, which is as accurate."""
    return beside_timm("resnet_rs", ("resnetrs101", 192), ("efficientnet_b3", 300), threads, rounds)
