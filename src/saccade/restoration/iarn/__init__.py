"""IARN: shrink a picture to any size so that it can be enlarged back almost without loss, one network for all factors.

"Effective Invertible Arbitrary Image Rescaling", WACV 2023, arXiv:2209.13055, on IRN (arXiv:2005.05650; `irn`). No code
and no confirmed tables exist: splitting before the network, position-aware scale encoding and one network for all real,
unequal factors are the paper's; the form below is ours (`phases`, `network`).

    y = down(x)                       (B, 3, h, w)      split: what survives the resize, and the rest
    z = x - up(y) + synth(P(y))       (B, 3, H, W)
    y = y + F(analyse(z))             (B, 3, h, w)      hide; y is stored in 8 bit
    z = z + synth(G(y))               (B, 3, H, W)      small after training: dropped, and zero when enlarging

Backwards, each line is undone by subtracting what it added, so with z kept the large picture returns exactly whatever
F, G and P are. They are convolutions at h x w; `analyse` and `synth` tie the two grids by cosines of a large pixel's
offset inside its small one, from whole sizes alone. Everything is in opponent colours. With z = 0 an exponent as in
IRN's coupling would only rescale what G says, so there is none.
"""

from __future__ import annotations

from collections.abc import Sequence

from saccade.registry import register
from saccade.restoration.iarn.irn import IRN, Coupling, DenseBlock, Haar, charbonnier, from_official
from saccade.restoration.iarn.network import IARN, Lifting, Subnet

__all__ = ["IARN", "IRN", "Coupling", "DenseBlock", "Haar", "Lifting", "Subnet", "charbonnier", "from_official", "iarn"]


@register("iarn", system="iarn", task="image rescaling")
def iarn(
    blocks: int = 1,
    opening: Sequence[int] = (24, 1),
    hider: Sequence[int] = (32, 2),
    teller: Sequence[int] = (48, 5),
    functions: int = 3,
) -> IARN:
    """IARN: one network for all factors in (1, 4]."""
    return IARN(blocks, opening, hider, teller, functions)
