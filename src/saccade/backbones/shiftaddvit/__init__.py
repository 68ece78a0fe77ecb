"""ShiftAddViT: a trained vision transformer whose products become additions and shifts, with a way out for tokens.

You et al., "ShiftAddViT: Mixture of Multiplication Primitives Towards Efficient Vision Transformer", NeurIPS 2023,
arXiv:2306.06446.

    picture -- 7x7, stride 4 -- stage 1 (4) -- 3x3, stride 2 -- stage 2 (8) -- ... 3 (16) -- ... 4 (32) -- head

    block:      x + attention(norm(x))  -->  x + fc2(GELU(depthwise 3x3(fc1(norm(x)))))             PVTv2's
    attention:  v / 2 + b_q (b_k^T v) / pi of binary codes: additions alone; softmax in the last stage
    linear:     a gate sends each token to W x (multiplications) or to sum of +- (x >> s) (shifts and additions)

`attention.py` has the codes, `layers.py` the layers and the conversion of any network, `network.py` the backbone with
its steps PVTv2 -> softmax -> additive -> mixture (`convert`), `operations.py` counts what is multiplied and shifted,
`published.py` reads weights of others.
"""

from __future__ import annotations

from saccade.backbones.shiftaddvit.attention import BinaryAttention, HashAttention, KernelHash
from saccade.backbones.shiftaddvit.layers import (
    AdditiveShiftLinear,
    MoELinear,
    PackedShift,
    ShiftLinear,
    ShiftLinearQ,
    convert_linears,
    packed_weights,
)
from saccade.backbones.shiftaddvit.network import VARIANTS, ShiftAddViT, convert, fit_hashes
from saccade.backbones.shiftaddvit.operations import Operations, operations
from saccade.backbones.shiftaddvit.published import from_official, from_timm

__all__ = [
    "VARIANTS",
    "AdditiveShiftLinear",
    "BinaryAttention",
    "HashAttention",
    "KernelHash",
    "MoELinear",
    "Operations",
    "PackedShift",
    "ShiftAddViT",
    "ShiftLinear",
    "ShiftLinearQ",
    "convert",
    "convert_linears",
    "fit_hashes",
    "from_official",
    "from_timm",
    "operations",
    "packed_weights",
]
