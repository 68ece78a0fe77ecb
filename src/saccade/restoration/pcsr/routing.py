"""Which pixels the heavy sampler gets: every dial of PCSR ends as one threshold on the classifier's margin.

The margin of a pixel is m = logit_heavy - logit_light, so p_heavy = sigmoid(m) and p_heavy - p_light = tanh(m / 2).
Pixels with m above the threshold are heavy; a tie is light. In these terms

    k:        argmax(prob / cost^k) is heavy   <=>   m > k ln(cost_heavy / cost_light)      (equation 5)
    budget:   the threshold is a quantile of m
    adaptive: it lies between the two clusters of p_heavy                                   (section 3.4)
"""

from __future__ import annotations

import copy
import math
import warnings

import torch
from torch import Tensor, nn

from saccade.restoration.pcsr.grid import Block, Fast

__all__ = ["cluster_threshold", "flops_per_pixel", "k_threshold", "macs_per_pixel", "refine", "run", "share_threshold"]

GATHER = 1000  # multiply-accumulates that take as long as gathering and scattering one pixel


def _per_pixel(network: nn.Module, official: bool) -> int:
    total = 0

    def count(module: nn.Module, _: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            total += module.weight.numel() * (2 if official else 1)
        elif official and isinstance(module, nn.BatchNorm2d):
            total += 2 * out.numel()
        elif official and isinstance(module, nn.PReLU):
            total += out.numel()

    probe = copy.deepcopy(network).to_empty(device="cpu").float().eval()  # values do not matter, only calls
    for module in probe.modules():
        module.register_forward_hook(count)
    with torch.no_grad():
        probe(torch.zeros(1, 3, 1, 1))
    return total


def macs_per_pixel(encoder: nn.Module) -> int:
    """Multiply-accumulates that an encoder spends on one input pixel."""
    return _per_pixel(encoder, official=False)


def flops_per_pixel(encoder: nn.Module) -> int:
    """FLOPs of an encoder for one input pixel as the official counter has them.

    2 for a multiply-accumulate, 1 for each element of a PReLU, 2 for each element of a BatchNorm; biases and ReLU free.
    """
    return _per_pixel(encoder, official=True)


def k_threshold(k: float, cost: Tensor) -> float:
    """The margin above which ``argmax(prob / cost^k)`` is heavy; ``cost`` is (light, heavy), of any common unit."""
    light, heavy = cost.double().tolist()
    return k * math.log(heavy / light)


def share_threshold(margins: Tensor, share: float) -> float:
    """The smallest threshold that makes at most a ``share`` of the margins heavy.

    Args:
        margins: any shape.
        share: in [0, 1].
    """
    flat = margins.flatten()
    light = flat.numel() - math.floor(share * flat.numel() + 1e-9)
    if light == 0:
        return -math.inf
    return float(flat.float().kthvalue(light).values)


def cluster_threshold(margins: Tensor, iterations: int = 20, tolerance: float = 1e-4) -> float:
    """Adaptive decision: the margin that parts the two clusters of p_heavy, over the whole batch.

    Two-means in one dimension on p_heavy, min-max normalised. The published procedure starts from the single centre
    0.5, which makes the first pair of centres (mean, 0); Lloyd steps follow until the squared shift of the centres is
    at most ``tolerance``, at most ``iterations`` passes in all. The labels are those of the last pass, made before its
    update of the centres. The cluster of the smallest value is light.

    Constant probabilities have no clusters: a warning, and the threshold of k = 0.
    """
    heavy = margins.flatten().float().sigmoid()
    low, high = heavy.aminmax()
    if not bool(high > low):
        warnings.warn(
            "the classifier gives every pixel the same probability; deciding with k = 0 instead", stacklevel=2
        )
        return 0.0
    value = (heavy - low) / (high - low)
    # In one dimension the labels are a cut: values nearer to the upper centre lie above the middle of the two.
    upper, lower = float(value.mean()), 0.0
    cut = (upper + lower) / 2
    for _ in range(iterations - 1):
        cut = (upper + lower) / 2
        above = value > cut
        count = int(above.sum())
        sums = float(value[above].sum(dtype=torch.float64))
        new = (
            sums / max(count, 1),
            (float(value.sum(dtype=torch.float64)) - sums) / max(value.numel() - count, 1),
        )
        shift = (new[0] - upper) ** 2 + (new[1] - lower) ** 2
        upper, lower = new
        if shift <= tolerance:
            break
    light = margins.flatten()[value <= cut]
    return float(light.max())


def run(block: Block, mask: Tensor, heavy: Fast, light: Fast) -> tuple[int, Tensor]:
    """The routed answers of a block: gather, run, scatter.

    The heavy sampler runs on its pixels alone. The light one runs on its own list too, unless evaluating it on the
    whole block costs less than gathering and scattering that list would.

    Args:
        block: of a grid.
        mask: (outputs,) bool, true where heavy.
        heavy, light: the two samplers.

    Returns:
        The number of heavy pixels, and (3, outputs).
    """
    wanted = mask.nonzero().squeeze(1)
    many, few = wanted.numel(), block.outputs - wanted.numel()
    if few == 0:
        return many, heavy.answer(block)
    if many * light.tail_macs <= few * GATHER:
        answer = light.answer(block)
    else:
        others = (~mask).nonzero().squeeze(1)
        part = light.answer(block, others)
        answer = part.new_empty(part.shape[0], block.outputs).index_copy_(1, others, part)
    if many:
        answer.index_copy_(1, wanted, heavy.answer(block, wanted))
    return many, answer


def refine(picture: Tensor, heavy: Tensor) -> Tensor:
    """Pixel-wise refinement: light pixels with a heavy one in their 3x3 become the mean of their 3x3 (section 3.4).

    Args:
        picture: (B, 3, H, W), the finished prediction; changed in place.
        heavy: (B, 1, H, W) bool.

    Returns:
        ``picture``. Its outermost rows and columns stay as they are.
    """
    if min(picture.shape[-2:]) < 3:
        return picture
    rows = heavy[..., :-2, :] | heavy[..., 1:-1, :] | heavy[..., 2:, :]
    near = rows[..., :-2] | rows[..., 1:-1] | rows[..., 2:]
    sums = picture[..., :-2, :] + picture[..., 1:-1, :]
    sums += picture[..., 2:, :]
    mean = sums[..., :-2] + sums[..., 1:-1]
    mean += sums[..., 2:]
    inner = picture[..., 1:-1, 1:-1]
    inner.copy_(torch.where(near & ~heavy[..., 1:-1, 1:-1], mean.mul_(1 / 9), inner))
    return picture
