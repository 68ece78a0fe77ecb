"""A small denoiser of packed RAW that is told the noise: what the augmentation trains.

    noisy (B,4,h,w), root --+-- 3x3 conv, f -- ReLU -- [3x3, f -- ReLU] x m -- 3x3, 4 --(* deviation + noisy)--> clean
    deviation = sqrt(shot*x + read), root _|                                                                (B,4,h,w)

The second input is the deviation of the noise at each pixel, as in Brooks et al. (section 4), so one network serves
every exposure. The network itself is ours, sized for one core.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import UsageError
from saccade.ops.demosaic import check_packed
from saccade.registry import register
from saccade.restoration.model_isp.network import check_raw
from saccade.restoration.model_isp.operators import noise_variance

__all__ = ["RawDenoiser"]


class RawDenoiser(nn.Module):
    """Residual denoiser of packed Bayer data.

    Args:
        width: channels f.
        depth: inner convolutions m.

    Shape: packed RAW (B, 4, h, w), values below black level included -> the same, not clamped.

    Raises:
        UsageError: no channels.
        InputError: in evaluation mode, no packed normalised RAW.
    """

    in_channels = 4

    def __init__(self, width: int = 32, depth: int = 5) -> None:
        super().__init__()
        if width < 1 or depth < 0:
            raise UsageError(f"a denoiser needs at least one channel and no negative depth, not {width} and {depth}")
        self.first = nn.Conv2d(8, width, 3, padding=1)
        self.inner = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(depth))
        self.last = nn.Conv2d(width, 4, 3, padding=1)
        for layer in (self.first, *self.inner):
            assert isinstance(layer, nn.Conv2d)
            assert layer.bias is not None
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)  # RAW is dark: a drawn bias would outweigh what it is added to
        for p in self.last.parameters():  # it starts by changing nothing
            nn.init.zeros_(p)

    @property
    def halo(self) -> int:
        """Cells that an output cell sees beyond its own place."""
        return 2 + len(self.inner)

    def forward(self, noisy: Tensor, shot: Tensor | float = 0.01, read: Tensor | float = 5e-4) -> Tensor:
        """Remove noise.

        Args:
            shot, read: of the exposure, numbers or (B,): the variance is shot * x + read. The defaults are those of a
                phone at high ISO.
        """
        if not self.training:
            check_packed(noisy)
            check_raw(noisy, channels=4, limit=2)  # noise carries bright samples beyond white
        shot, read = (v[:, None, None, None] if isinstance(v, Tensor) and v.ndim == 1 else v for v in (shot, read))
        deviation = noise_variance(noisy.clamp_min(0), shot, read).sqrt()
        deviation = deviation.expand_as(noisy)
        # square roots, sign kept: noise that grows with the root of light becomes about the same everywhere
        x = F.relu(self.first(torch.cat((noisy.sign() * (noisy.abs() + 1e-6).sqrt(), deviation.sqrt()), 1)))
        for convolution in self.inner:
            x = F.relu(convolution(x))
        made: Tensor = noisy + deviation * self.last(x)
        return made


@register("raw_denoiser", system="model_isp", task="raw denoising", removes=("noise",))
def raw_denoiser(width: int = 32, depth: int = 5) -> RawDenoiser:
    """The small denoiser of packed RAW: 50 thousand parameters."""
    return RawDenoiser(width, depth)
