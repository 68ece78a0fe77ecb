"""What a network that takes pictures may be given."""

from __future__ import annotations

import torch
from torch import Tensor

from saccade.errors import InputError

__all__ = ["check_picture"]

#: beyond [0, 1] this much passes: resampling a picture overshoots at its edges
OVERSHOOT = 0.25


def check_picture(x: Tensor, channels: int, network: str) -> None:
    """Refuse what is no batch of pictures for a network of ``channels`` input channels.

    Values are looked at where that costs nothing beside the network: on the CPU, outside of compilation and export.
    Pixels of 0 to 255, or pictures normalised to [-1, 1], would otherwise come out white or grey without a word.

    Args:
        x: should be float (B, channels, h, w) in [0, 1].
        network: its name, for the message.

    Raises:
        InputError: another rank, dtype or number of channels, an empty picture, or values outside [0, 1].
    """
    if torch.compiler.is_compiling():
        return
    takes = f"{network} takes float pictures (B, {channels}, h, w) in [0, 1]"
    if x.ndim != 4 or not x.is_floating_point():
        raise InputError(f"{takes}, not {x.dtype} {tuple(x.shape)}")
    if x.shape[1] != channels:
        hint = "; give its luma (BT.601)" if channels == 1 else ""
        raise InputError(f"{takes}, not {x.shape[1]} channels{hint}")
    if x.numel() == 0:
        raise InputError(f"{takes}, not an empty one {tuple(x.shape)}")
    if x.device.type == "cpu":
        low, high = (float(v) for v in torch.aminmax(x.detach()))
        if not (low >= -OVERSHOOT and high <= 1 + OVERSHOOT):
            hint = "; divide by 255" if high > 2 else ""
            raise InputError(f"{takes}, these lie in [{low:.3g}, {high:.3g}]{hint}")
