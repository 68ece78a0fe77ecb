"""MobileNets with subspace attention beside the published loop over groups, and the module beside its peers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from saccade.backbones.ulsam import LoopedSubspaceAttention, SubspaceAttention, looped_state
from saccade.backbones.ulsam.mobilenets import VARIANTS
from saccade.bench.classify import backbone_contest, eager, exchanged
from saccade.bench.contest import Contest
from saccade.bench.harness import Row, compare, measure

__all__ = ["contests", "looped", "plain", "rows"]


def looped(module: SubspaceAttention) -> LoopedSubspaceAttention:
    """The same attention group by group."""
    made = LoopedSubspaceAttention(module.width, module.groups)
    made.load_state_dict(looped_state(module.state_dict(), module.groups))
    return made.eval()


def plain(model: nn.Module) -> Callable[[Tensor], Any]:
    """The network with batch norms of its own and looped attention; of the same weights."""
    return exchanged(copy.deepcopy(model), {SubspaceAttention: looped})


def contests(size: tuple[int, int], threads: int) -> Iterator[Contest]:
    """The published placements of most interest in V1 and V2."""
    for name in ("ulsam_mobilenetv1_517m", "ulsam_mobilenetv2_224m"):
        assert name in VARIANTS
        yield backbone_contest(name, plain, size, threads)


def rows(threads: int, rounds: int) -> tuple[list[Row], list[str]]:
    """The module on 96 channels at 14 x 14, one picture, beside its loop and beside SE and CBAM of timm."""
    from timm.layers.create_attn import get_attn

    from saccade.nn.fuse import fuse

    x = torch.randn(1, 96, 14, 14, generator=torch.Generator().manual_seed(0))
    found: list[Row] = []
    for groups in (4, 16):
        module = SubspaceAttention(96, groups).eval()
        kinds: dict[str, Any] = {name: get_attn(name) for name in ("se", "cbam")}
        contenders = [
            eager(f"subspace attention, g={groups}", fuse(module), x, threads),
            eager(f"the loop over {groups} groups", looped(module), x, threads),
            *(eager(f"timm {name}", kind(96).eval(), x, threads) for name, kind in kinds.items()),
        ]
        timings = measure(contenders, 10 * rounds, warmup=10)
        command = f"saccade bench backbones --system ulsam --threads {threads}"
        what = f"the module, {groups} groups"
        found += compare(timings, contenders[0].name, system="ulsam", what=what, size="96x14x14", command=command)
    return found, []
