"""placeholder"""

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
