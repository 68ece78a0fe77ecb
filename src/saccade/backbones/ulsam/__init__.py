"""ULSAM: a soft-max map per group of channels, so light that it replaces whole blocks of compact networks.

Saini et al., "ULSAM: Ultra-Lightweight Subspace Attention Module for Compact Convolutional Neural Networks", WACV 2020,
arXiv:2006.15102.

    x (B, C, H, W) -- g groups F_n of C/g channels, each with weights of its own:
        A_n = softmax over H*W of  relu(bn(1x1 to one channel( maxpool 3x3( relu(bn(1x1 per channel(F_n)))))))
        out_n = F_n + A_n * F_n

`SubspaceAttention` computes all groups at once, `LoopedSubspaceAttention` is the loop that the equations are; their
states turn into each other. It goes behind a block (``insert``) or in its place (``replace``), in our MobileNets or in
any network (`replace_blocks`, `insert_after`). No networks or weights were published; which blocks were replaced
follows from the published counts. Written from the paper alone.
"""

from saccade.backbones.ulsam.attention import LoopedSubspaceAttention, SubspaceAttention, grouped_state, looped_state
from saccade.backbones.ulsam.mobilenets import MobileNetV1, MobileNetV2
from saccade.backbones.ulsam.surgery import insert_after, replace_blocks

__all__ = [
    "LoopedSubspaceAttention",
    "MobileNetV1",
    "MobileNetV2",
    "SubspaceAttention",
    "grouped_state",
    "insert_after",
    "looped_state",
    "replace_blocks",
]
