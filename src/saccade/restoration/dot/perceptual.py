"""A restorer with a dial between the least error and the statistics of natural pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from saccade.errors import InputError, UsageError
from saccade.quality import quantise8
from saccade.restoration.dot.network import DeepOptimalTransport

__all__ = ["Perceptual", "fit", "wrap"]

Restorer = Callable[[Tensor], Tensor]


class Perceptual(nn.Module):
    """Restore, transport, mix: x_a = (1 - a) clamp(x_0) + a x, where x is the restorer's output and a = 1 - perception.

    Args:
        restorer: (B, 3, h, w) in [0, 1] -> (B, 3, H, W); a module or any callable.
        transport: its statistics.
        perception: the dial, in [0, 1]: 0 is the restorer's own output (least error), 1 the transported one (the
            statistics of natural pictures). May be turned at any time.

    Shape: as of the restorer; in [0, 1].
    """

    colour = "rgb"
    in_channels = 3

    def __init__(self, restorer: Restorer, transport: DeepOptimalTransport, perception: float = 1.0) -> None:
        super().__init__()
        if not callable(restorer):
            raise UsageError(f"a restorer is called with pictures; {type(restorer).__name__} cannot be")
        self.restorer, self.transport = restorer, transport
        self.perception = perception

    @property
    def perception(self) -> float:
        """The dial."""
        return self._perception

    @perception.setter
    def perception(self, value: float) -> None:
        if not (math.isfinite(value) and 0 <= value <= 1):
            raise UsageError(f"perception lies between 0 and 1, not {value}")
        self._perception = float(value)

    @property
    def halo(self) -> int | None:
        """Input pixels that an output pixel sees beyond its own place; None where one part sees all."""
        own, more = getattr(self.restorer, "halo", None), self.transport.halo
        if own is None or more is None:
            return None
        return int(own) + -(-more // int(getattr(self.restorer, "scale", 1)))

    @property
    def scale(self) -> int:
        """Enlargement of the restorer."""
        return int(getattr(self.restorer, "scale", 1))

    def forward(self, pictures: Tensor) -> Tensor:
        restored = self.restorer(pictures).clamp(0, 1)
        return restored if self.perception == 0 else self.mixed(restored, 1 - self.perception)

    def mixed(self, restored: Tensor, alpha: float) -> Tensor:
        """Any alpha, also beyond [0, 1] (the paper sweeps -1 to 2), of a picture that was restored already.

        Raises:
            UsageError: alpha is no number.
        """
        if not math.isfinite(alpha):
            raise UsageError(f"alpha must be a number, not {alpha}")
        natural = self.transport.transport(restored).clamp(0, 1)
        return torch.lerp(natural, restored, alpha).clamp(0, 1)


def wrap(restorer: Restorer, transport: DeepOptimalTransport, perception: float = 1.0) -> Perceptual:
    """A restorer with the dial: see `Perceptual`.

    Raises:
        UsageError: a dial outside [0, 1], or a restorer that cannot be called.
    """
    made = Perceptual(restorer, transport, perception)
    return made.train(restorer.training) if isinstance(restorer, nn.Module) else made


@torch.no_grad()
def fit(
    restorer: Restorer,
    degraded: Iterable[Any],
    clean: Iterable[Any],
    *,
    vae: Any = None,
    patch: int = 5,
    eps: float = 1e-7,
    floor: float = 0.0,
    seed: int = 0,
    **options: Any,
) -> DeepOptimalTransport:
    """Statistics and map for a restorer, from a dozen pictures of each kind; seconds, no training.

    Restored pictures are rounded to 8 bit, as files hold them. A restorer leaves some directions of a patch all but
    empty; rounding fills them evenly, and the map does not blow them up.

    Args:
        restorer: as of `Perceptual`; put into evaluation mode while it runs.
        degraded: what the restorer takes: tensors ([B,] 3, h, w) in [0, 1], paths, PIL images or arrays.
        clean: natural pictures, of the same kinds; pairs are not needed.
        vae, patch, eps, options: as of `DeepOptimalTransport`.
        floor: deviation of white noise put on both sides, in [0, 1] units; ours. It bounds how far directions that a
            restorer leaves empty are blown up (one Kodak picture, denoised, full perception: 31.7 dB with 3/255, 30.1
            without, 32.1 before).
        seed: of that noise.

    Raises:
        InputError: no pictures on one side, or unusable ones.
    """
    made = DeepOptimalTransport(patch, eps=eps, vae=vae, **options)
    chance = torch.Generator().manual_seed(seed)

    def noisy(x: Tensor) -> Tensor:
        return x + floor * torch.randn(x.shape, generator=chance).to(x) if floor else x

    training = isinstance(restorer, nn.Module) and restorer.training
    if isinstance(restorer, nn.Module):
        restorer.eval()
    try:
        for picture in degraded:
            made.update_source(quantise8(noisy(restorer(_tensor(picture)))))
    finally:
        if isinstance(restorer, nn.Module):
            restorer.train(training)
    for picture in clean:
        made.update_target(noisy(_tensor(picture)).clamp(0, 1))
    made.compute()
    return made


def _tensor(picture: Any) -> Tensor:
    """(B, 3, h, w) float32 of a tensor, or of whatever `saccade.io` reads."""
    if isinstance(picture, Tensor):
        return picture if picture.ndim == 4 else picture[None]
    import numpy as np
    from PIL import Image

    from saccade.io import read_picture
    from saccade.io.pil import from_pil

    if hasattr(picture, "dtype"):
        colour = picture
        if colour.ndim != 3 or colour.shape[2] != 3:
            raise InputError(f"an array holds a picture as (h, w, 3), not {tuple(colour.shape)}")
    else:
        colour = from_pil(picture)[0] if isinstance(picture, Image.Image) else read_picture(picture)[0]
    full = 1 if colour.dtype.kind == "f" else np.iinfo(colour.dtype).max
    made = torch.from_numpy(colour.astype(np.float32) / np.float32(full)).permute(2, 0, 1)[None]
    return made.expand(-1, 3, -1, -1)
