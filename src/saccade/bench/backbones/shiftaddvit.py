"""ShiftAddViT beside its published steps run plainly, its dispatch beside masks, its packed layer beside unpacking."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.backbones.shiftaddvit import MoELinear, ShiftAddViT
from saccade.bench.classify import backbone_contest, eager, exchanged
from saccade.bench.contest import Contest
from saccade.bench.harness import Row, compare, measure
from saccade.nn.moe import combine, dispatch, one_hot_combine, one_hot_dispatch, route
from saccade.ops.shift_add import pack, packed_linear, traffic, unpack

__all__ = ["PlainMixture", "contests", "rows"]

NOTE = (
    "ShiftAddViT on a processor multiplies by powers of two: its figures here are of the routing and of weights made "
    "once, not of shifts, which want hardware of their own"
)


class PlainMixture(nn.Module):
    """The mixture as published: tokens sorted by expert, results as exponentials, added, and their logarithm taken."""

    def __init__(self, ours: MoELinear) -> None:
        super().__init__()
        self.gate, self.experts = ours.gate, ours.experts

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, -2)
        logits, values = self.gate(tokens)
        top = logits.topk(1, 1).indices
        gates = torch.zeros_like(values).scatter(1, top, values.gather(1, top))
        sorted_experts, order = gates.nonzero().sort(0)
        rows = gates.nonzero()[order[:, 1], 0]
        counts = (gates > 0).sum(0).tolist()
        parts = tokens[rows].split(counts)
        made = torch.cat([expert(part) for expert, part in zip(self.experts, parts, strict=True)]).exp()
        weighted = made * gates[rows].gather(1, sorted_experts[:, 1:])
        out = torch.zeros(len(tokens), made.shape[1]).index_add(0, rows, weighted)
        # the published code multiplies exponentials by the gate, which is 1 there; ours scales the output itself
        scale = values.gather(1, top)
        unscaled = torch.where(out == 0, torch.finfo(out.dtype).eps, out / scale).log()
        return (unscaled * scale).unflatten(0, x.shape[:-1])


def plain(model: nn.Module) -> Callable[[Tensor], Any]:
    """The network with published mixtures, and weights made of shifts and signs at every call; of the same weights."""
    assert isinstance(model, ShiftAddViT)
    twin = ShiftAddViT(**model.told)
    twin.load_state_dict(model.state_dict())
    return exchanged(twin, {MoELinear: PlainMixture})


def contests(size: tuple[int, int], threads: int) -> Iterator[Contest]:
    """B0 and B1 with hash codes and mixtures."""
    for name in ("shiftaddvit_b0", "shiftaddvit_b1"):
        yield backbone_contest(name, plain, size, threads, notes=(NOTE,))


def rows(threads: int, rounds: int) -> tuple[list[Row], list[str]]:
    """Dispatch and combine of 4,096 tokens among 16 experts, and a packed layer of B1's last stage."""
    command = f"saccade bench backbones --system shiftaddvit --threads {threads}"
    chance = torch.Generator().manual_seed(0)
    tokens = torch.randn(4096, 256, generator=chance)
    routing = route(torch.randn(4096, 16, generator=chance).softmax(1))
    contenders = [
        eager("by index", lambda x: combine(dispatch(x, routing), routing), tokens, threads),
        eager("one-hot masks", lambda x: one_hot_combine(one_hot_dispatch(x, routing), routing), tokens, threads),
    ]
    timings = measure(contenders, rounds, warmup=1)
    what = "dispatch and combine, 4096 tokens of 256, 16 experts"
    made = compare(timings, "by index", system="shiftaddvit", what=what, size="4096x256", command=command)

    shift = torch.randint(-14, 1, (2048, 512), generator=chance).float()
    weight = pack(shift, torch.randint(-1, 2, (2048, 512), generator=chance).float())
    x = torch.randn(49, 512, generator=chance)
    contenders = [
        eager("packed, block by block", lambda x: packed_linear(x, weight), x, threads),
        eager("unpacked whole, then multiplied", lambda x: F.linear(x, unpack(weight)), x, threads),
    ]
    timings = measure(contenders, max(rounds, 9), warmup=2)
    what = "shift layer 512 -> 2048 of 5 bits, 49 tokens"
    made += compare(timings, contenders[0].name, system="shiftaddvit", what=what, size="49x512", command=command)
    moved = traffic(49, 512, 2048)
    note = (
        f"a shift layer 512 -> 2048 on 49 tokens: weights {moved.packed_bytes:,} bytes packed, {moved.dense_bytes:,} "
        f"as floats; bytes moved by unpacking the whole matrix first over those of the packed layer, activations "
        f"counted in both: {moved.saved:.2f}; {moved.shifts:,} shifts and as many additions for as many "
        f"multiplications (counted from sizes, not timed)"
    )
    return made, [note]
