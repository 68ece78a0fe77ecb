"""A small variational autoencoder for pictures, trained with structural similarity in the place of a pixel error.

Snell et al., "Learning to Generate Images With Perceptual Similarity Metrics", ICIP 2017, arXiv:1511.06409: in the
evidence lower bound, -log p(x|z) is replaced by an expected loss, C E_q[1 - MS-SSIM(x, x')], and the divergence from
the prior stays (section on stochastic autoencoders). The network is ours.

    picture (B,3,H,W) - 1/2 -- unshuffle /2, 3x3, 32 -- residual -- 2x2/2, 48 -- residual x 2 -- 3x3 -- mean, log var
                                                                                                 (B,8,H/4,W/4) each
    latent z (B,8,h,w) -- 3x3, 48 -- residual x 3 -- 3x3, shuffle x2, 32 -- residual -- 3x3, shuffle x2 -- + 1/2

Any size is taken: edges are repeated up to a multiple of four and cut off again. 8 numbers stand for 48.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import InputError, UsageError
from saccade.nn.pictures import check_picture
from saccade.quality.structure import MSSSIMLoss
from saccade.registry import register

__all__ = ["Autoencoder"]

STEP = 4  # pixels of a latent place's side
LOG_VARIANCE = (-12.0, 4.0)  # what a posterior may have
BALANCE = 1e5  # C of the expected loss, per latent number: both terms then weigh alike early in training


class Residual(nn.Module):
    """x + conv(act(conv(x))), 3x3; the second convolution starts at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(F.leaky_relu(self.first(x), 0.1))
        return x + y


def _residuals(width: int, depth: int) -> nn.Sequential:
    return nn.Sequential(*(Residual(width) for _ in range(depth)))


class Autoencoder(nn.Module):
    """Variational autoencoder of pictures, four pixels a side to one place of the latent.

    Args:
        channels: of the latent.
        widths: channels at half and at a quarter of the size.
        depths: residual blocks: encoder at half and a quarter, decoder at a quarter and half.
        balance: C of the expected loss: the structural loss counts C times one latent number's divergence.
        mix: share of MS-SSIM in the loss, the rest is L1 (`MSSSIMLoss`), which holds brightness and colour.

    Shape: (B, 3, H, W) in [0, 1] -> the same, not clamped: the picture decoded from the posterior's mean.

    Raises:
        UsageError: no channels, or a balance or mix out of range.
        InputError: what is no RGB picture in [0, 1].
    """

    colour = "rgb"
    step = STEP
    bytes_per_pixel = 250  # at the default widths, there and back; 192 to 245 were measured from 512 to 1,536 px
    halo = 2 * (1 + 2) + STEP * (4 + 1) + STEP * (1 + 6 + 1) + 2 * (2 + 1)  # at the default depths

    def __init__(
        self,
        channels: int = 8,
        widths: tuple[int, int] = (32, 48),
        depths: tuple[int, int, int, int] = (1, 2, 3, 1),
        balance: float = BALANCE,
        mix: float = 0.84,
    ) -> None:
        super().__init__()
        fine, coarse = widths
        if min(channels, fine, coarse) < 1 or not balance > 0 or not 0 <= mix <= 1:
            raise UsageError("an autoencoder needs channels, a positive balance and a mix in [0, 1]")
        self.channels, self.balance, self.mix = channels, balance, mix
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(2),
            nn.Conv2d(12, fine, 3, padding=1),
            _residuals(fine, depths[0]),
            nn.Conv2d(fine, coarse, 2, stride=2),
            _residuals(coarse, depths[1]),
            nn.Conv2d(coarse, 2 * channels, 3, padding=1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(channels, coarse, 3, padding=1),
            _residuals(coarse, depths[2]),
            nn.Conv2d(coarse, 4 * fine, 3, padding=1),
            nn.PixelShuffle(2),
            _residuals(fine, depths[3]),
            nn.Conv2d(fine, 12, 3, padding=1),
            nn.PixelShuffle(2),
        )

    def encode(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the posterior: (B, 3, H, W) in [0, 1] -> (B, c, ceil(H/4), ceil(W/4)) each."""
        below, beside = (-n % STEP for n in picture.shape[-2:])
        if below or beside:
            picture = F.pad(picture, (0, beside, 0, below), mode="replicate")
        mean, log_variance = self.encoder(picture - 0.5).chunk(2, 1)
        return mean, log_variance.clamp(*LOG_VARIANCE)

    def decode(self, latent: Tensor) -> Tensor:
        """(B, channels, h, w) -> (B, 3, 4h, 4w), not clamped.

        Raises:
            InputError: not a latent of this network.
        """
        if latent.ndim != 4 or latent.shape[1] != self.channels:
            raise InputError(f"a latent has the shape (B, {self.channels}, h, w), not {tuple(latent.shape)}")
        made: Tensor = self.decoder(latent) + 0.5
        return made

    def forward(self, picture: Tensor) -> Tensor:
        if not self.training:
            check_picture(picture, 3, "the autoencoder")
        height, width = picture.shape[-2:]
        return self.decode(self.encode(picture)[0])[..., :height, :width]

    def training_loss(self, given: Tensor, wanted: Tensor, phase: int = 0) -> Tensor:
        """E_q[loss] + KL(q, N(0, 1)) / C, KL the mean over latent numbers.

        The noise of the posterior's sample depends on the pictures alone, so that a resumed training goes on the same.
        """
        height, width = wanted.shape[-2:]
        mean, log_variance = self.encode(given)
        chance = torch.Generator(given.device).manual_seed(int(given.detach().double().sum().item() * 1e6) % 2**62)
        noise = torch.randn(mean.shape, generator=chance, dtype=mean.dtype, device=mean.device)
        made = self.decode(mean + (log_variance / 2).exp() * noise)[..., :height, :width]
        loss = MSSSIMLoss.for_size(height, width, mix=self.mix).to(given.device)
        divergence = (mean**2 + log_variance.exp() - 1 - log_variance).mean() / 2
        structure: Tensor = loss(made, wanted)
        return structure + divergence / self.balance


@register("vae_small", system="msssim_learning", task="autoencoder")
def vae_small(**options: Any) -> Autoencoder:
    """300,000 parameters, 32 kMAC a pixel: 8 latent numbers for 4 x 4 pixels of three colours."""
    return Autoencoder(**options)
