"""A gate of 5x5 and dilated 7x7 sees 23 pixels a side, multiplies, learns, and is not slow when it is folded.

The gate's reach is measured with an impulse and positive kernels, beside the same gate without dilation; that it
multiplies, by the distance to a network whose gates add; learning on the shapes set; speed on two threads beside the
network as it was trained, with torch's own convolutions. Training is measured at small scale alone; its threshold,
90 %, was estimated before and is kept.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from saccade.backbones.van import LargeKernelAttention
from saccade.ops.large_depthwise import LargeDepthwise, set_path
from saccade.registry import create
from saccade.reproduce import Claim, Data, Figures
from saccade.reproduce.shapes import learn
from saccade.reproduce.speed import pictures_a_second
from saccade.reproduce.training import seeded
from saccade.runtime.accelerate import accelerate

CLAIM = Claim(
    system="van",
    says="VAN's gate sees exactly 23 x 23 pixels with 74 weights a channel, and a sum in its place gives another "
    "network; a small VAN learns the shapes to at least 90 % in 1,500 steps; folded, B0 is at least as fast as plain.",
    source="section 3.2, equation 4 and table 4; learning at small scale",
    baseline="the gate without dilation, which sees 11 x 11; gates that add; B0 as it was trained, plainly",
)

SMALL = {"widths": (24, 48, 96, 128), "ratios": (4, 4, 2, 2), "depths": (1, 1, 2, 1), "num_classes": 8}
STEPS = 1_500
BATCH, SIDE, THREADS = 4, 224, 2
FIELD = 41  # pixels a side of the picture with the impulse


def run(data: Data, seed: int) -> Figures:
    """Measure the gate and the speed, train one network; about eight minutes on two cores."""
    model = seeded(lambda: create("van", weights=None, **SMALL), seed)
    figures: Figures = {
        "field_side": field_side(LargeKernelAttention(4)),
        "field_side_undilated": field_side(undilated(LargeKernelAttention(4))),
        "gate_weights_a_channel": 5 * 5 + 7 * 7,
        "change_if_gates_add": change_if_gates_add(model, seed),
    }
    figures |= speeds()
    found = learn(model, STEPS, seed, what="van")
    figures |= {"accuracy_van": found.accuracy, "parameters_van": found.parameters}
    return figures | {"steps": STEPS, "data": "generated shapes"}


@torch.no_grad()
def field_side(gate: LargeKernelAttention) -> int:
    """Side of the square on which an impulse is felt, with positive kernels; 0 where that is no full square."""
    for conv in (gate.near, gate.far, gate.mix):
        nn.init.constant_(conv.weight, 0.1)
        assert conv.bias is not None
        nn.init.zeros_(conv.bias)
    x = torch.zeros(1, gate.mix.in_channels, FIELD, FIELD)
    x[:, :, FIELD // 2, FIELD // 2] = 1
    felt = gate.attention(x)[0, 0] > 0
    side = int(felt.any(0).sum())
    return side if int(felt.sum()) == side * side else 0


def undilated(gate: LargeKernelAttention) -> LargeKernelAttention:
    """The same number of weights, side by side."""
    width, kernel = gate.far.in_channels, gate.far.kernel_size[0]
    gate.far = LargeDepthwise(width, kernel)
    return gate


class Added(LargeKernelAttention):
    """x + attention(x): the ablation."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attention(x)


@torch.no_grad()
def change_if_gates_add(model: nn.Module, seed: int) -> float:
    """Mean distance of the logits over their mean size, with layer scales of 1."""
    twins = [copy.deepcopy(model).eval() for _ in range(2)]
    for twin in twins:
        for name, value in twin.named_parameters():
            if name.rpartition(".")[2] in ("scale1", "scale2"):
                value.fill_(1)
    for module in twins[1].modules():
        if isinstance(module, LargeKernelAttention):
            module.__class__ = Added
    x = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
    product, added = (twin(x) for twin in twins)
    return float((product - added).abs().mean() / product.abs().mean())


def speeds() -> Figures:
    """Pictures a second of B0 in PyTorch: folded by `accelerate`, and plainly; medians of calls in turns."""
    model = create("van_b0", weights=None)
    plainly = set_path(copy.deepcopy(model), "torch")
    folded = accelerate(model, backend="torch")
    x = torch.randn(BATCH, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    calls = {"folded": torch.inference_mode()(lambda: folded(x)), "plain": torch.inference_mode()(lambda: plainly(x))}
    return pictures_a_second(calls, BATCH, threads=THREADS, rounds=9)


def met(f: Figures) -> bool:
    """The five inequalities of the claim."""
    return bool(
        f["field_side"] == 23
        and f["field_side_undilated"] == 11
        and f["change_if_gates_add"] > 0.01
        and f["accuracy_van"] >= 90
        and f["pictures_per_s_folded"] >= f["pictures_per_s_plain"]
    )


def plot(figures: Figures, path: Path) -> None:
    """What the gates see, and pictures a second."""
    import matplotlib.pyplot as plt

    picture, (left, right) = plt.subplots(1, 2, figsize=(8, 2.6), layout="constrained")
    left.barh(["dilated", "not dilated"], [figures["field_side"], figures["field_side_undilated"]])
    left.set_xlabel("pixels a side that the gate sees")
    right.barh(["folded", "plain"], [figures["pictures_per_s_folded"], figures["pictures_per_s_plain"]])
    right.set_xlabel(f"pictures a second, B0, {figures['threads']} threads")
    picture.savefig(path, dpi=120)
    plt.close(picture)
