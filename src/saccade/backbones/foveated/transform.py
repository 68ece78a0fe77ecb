"""The foveated texture transform: what a picture looks like to a periphery that keeps statistics alone.

Deza, Jonnalagadda and Eckstein, "Towards Metamerism via Foveated Style Transfer", ICLR 2019, arXiv:1705.10041; as in
Deza and Konkle, arXiv:2006.07991.

    picture (B,3,H,W) in [0,1] -----------------+-- E --> f_c (B,C,h,w) --+
                                                |                         +-- region by region, painted -- D -- clamp
    noise n ~ N(0, 1) -- CORAL, its colours <---+-- E --> f_n (B,C,h,w) --+

    t   = (f_n - mean_i(f_n)) / std_i(f_n) * std_i(f_c) + mean_i(f_c)     over the cells of region i, every channel
    out = (1 - alpha_i) f_c + alpha_i t                                   alpha_0 = 0: the fovea stays

The statistics of all regions come from one segment reduction (`saccade.ops.segment_stats`), and the painting is one
gather: each cell takes the gain and the offset of the region that owns it.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from saccade.backbones.foveated.adain import EPSILON, adain, coloured, whitened
from saccade.backbones.foveated.lapped import Lapped, Unlapped
from saccade.backbones.foveated.windows import Painting, Regions, Windows, pooling_regions
from saccade.errors import InputError, UsageError
from saccade.nn.pictures import check_picture
from saccade.nn.precision import WideBuffers, widened, without_autocast
from saccade.ops.segment_stats import segment_stats

__all__ = ["FoveatedTexture", "drawn", "fitting_block", "painted", "painted_in_turn"]

TOGETHER = 1 << 17  # pixels up to which picture and noise are encoded as one batch; beyond, that takes memory only
FINE = 1e-14  # in the place of AdaIN's epsilon for lapped features, whose highest bands vary by less than that


def painted(content: Tensor, noise: Tensor, regions: Regions, epsilon: float = EPSILON) -> Tensor:
    """Features whose regions have the statistics of the content and, as far as alpha says, the values of the noise.

    Args:
        content, noise: (B, C, h, w) features, fastest channels last. Half precision goes through float32.
        regions: of this grid.
        epsilon: added to variances before the root.

    Returns:
        (B, C, h, w). Differentiable in both.

    Raises:
        InputError: features of another grid.
    """
    if not torch.compiler.is_compiling() and not content.shape == noise.shape == (*content.shape[:2], *regions.grid):
        raise InputError(
            f"the regions are of a grid of {regions.grid[1]} x {regions.grid[0]} cells, not for features of "
            f"{tuple(content.shape)} and {tuple(noise.shape)}"
        )
    with without_autocast(content):
        return _painted(widened(content), widened(noise), regions, epsilon).to(content.dtype)


def _painted(content: Tensor, noise: Tensor, regions: Regions, epsilon: float) -> Tensor:
    own, other = (f.flatten(2).mT for f in (content, noise))  # (B, N, C)
    mean, var = segment_stats(own, regions.cells, regions.segments, regions.sizes)
    other_mean, other_var = segment_stats(other, regions.cells, regions.segments, regions.sizes)
    alpha = regions.alpha.to(own.dtype)[:, None]
    gain = alpha * ((var + epsilon) / (other_var + epsilon)).sqrt()
    offset = alpha * mean - gain * other_mean
    owner = regions.owner.clamp_min(0)
    out = own * (1 - alpha[owner]) + other * gain.index_select(1, owner) + offset.index_select(1, owner)
    out = out * (regions.owner >= 0).to(out.dtype)[:, None]  # cells of no region stay 0: compat="official" alone
    return out.mT.reshape(content.shape)


def painted_in_turn(content: Tensor, noise: Tensor, regions: Regions, epsilon: float = EPSILON) -> Tensor:
    """`painted` as published, the truth: one region after the other, each over what was there."""
    out = torch.zeros_like(content).flatten(2)
    for number, alpha in enumerate(regions.alpha):
        cells = regions.cells[regions.segments == number]
        own, other = (f.flatten(2)[:, :, cells, None] for f in (content, noise))
        mixed = ((1 - alpha) * own + alpha * adain(other, own, epsilon)).squeeze(3)
        painted_last = regions.owner[cells] == number
        out = out.index_copy(2, cells[painted_last], mixed[:, :, painted_last])
    return out.view(content.shape)


def fitting_block(size: tuple[int, int]) -> int:
    """A block of the lapped transform that leaves a periphery in pictures of this size: 8, 4 or 2 pixels."""
    return next((block for block, side in ((8, 160), (4, 80)) if min(size) >= side), 2)


def drawn(shape: tuple[int, ...], generator: torch.Generator, *, pink: bool) -> Tensor:
    """Normal noise (B, C, H, W): white, or with the spectrum of photographs, an amplitude that falls as 1/f."""
    white = torch.randn(shape, generator=generator, device=generator.device)
    if not pink:
        return white
    rows = torch.fft.fftfreq(shape[2], device=generator.device)[:, None]
    frequencies = (rows.square() + torch.fft.rfftfreq(shape[3], device=generator.device).square()).sqrt()
    frequencies[0, 0] = torch.inf  # no mean
    return torch.fft.irfft2(torch.fft.rfft2(white) / frequencies, s=shape[2:])


class FoveatedTexture(WideBuffers):
    """Foveated texture transform for pictures of one size.

    Args:
        size: (height, width), multiples of the features' stride.
        scale: s, diameter over eccentricity of the pooling regions.
        fixation: (x, y) as parts of width and height.
        encoder, decoder: of the features; both or none. The encoder has a ``stride``. Published: `Encoder` and
            `Decoder` of `saccade.backbones.foveated.adain`. By default the lapped transform, whose inverse is exact.
        block: of the lapped transform in pixels; by default what the size allows.
        channels: of the pictures.
        painting: see `pooling_regions`.
        regions: instead of those of the windows.
        noise: ``"white"``, as published, or ``"pink"``. By default white for an encoder that is given, and pink for the
            lapped transform, whose bands do not overlap: its lowest would show white noise as a mosaic of cells.
        seed: of the noise that is taken where no generator is given.

    Shape: (B, C, H, W) in [0, 1] -> the same, clamped to [0, 1]. In half precision and under autocast all but an
    encoder and a decoder that are given is computed in float32; these run in the dtype of their weights.

    Raises:
        UsageError: an encoder without a decoder, or what `Windows` and `pooling_regions` refuse.
        InputError: sides that are no multiples of the stride.
    """

    cells: Tensor
    segments: Tensor
    sizes: Tensor
    owner: Tensor
    alpha: Tensor
    white: Tensor

    def __init__(
        self,
        size: tuple[int, int],
        scale: float = 0.4,
        fixation: tuple[float, float] = (0.5, 0.5),
        *,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        block: int | None = None,
        channels: int = 3,
        painting: Painting = "strongest",
        regions: Regions | None = None,
        noise: Literal["white", "pink"] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if (encoder is None) != (decoder is None):
            raise UsageError("an encoder goes with its decoder: give both or none")
        block = fitting_block(size) if block is None else block
        self.encoder = Lapped(block, channels) if encoder is None else encoder
        self.decoder = Unlapped(block, channels) if decoder is None else decoder
        if noise not in (None, "white", "pink"):
            raise UsageError(f"noise is 'white' or 'pink', not {noise!r}")
        self.epsilon = EPSILON if encoder is not None else FINE
        self.pink = noise == "pink" or (noise is None and encoder is None)
        self.size, self.fixation, self.painting, self.channels = size, fixation, painting, channels
        self.stride = int(getattr(self.encoder, "stride", block))
        self._windows = Windows(size, scale, fixation)
        self._set(pooling_regions(self._windows, self.stride, painting=painting) if regions is None else regions)
        chance = torch.Generator(device="cpu").manual_seed(seed)
        self.register_buffer("white", whitened(drawn((1, channels, *size), chance, pink=self.pink)), persistent=False)

    def _set(self, regions: Regions) -> None:
        place = self.alpha.device if hasattr(self, "alpha") else "cpu"
        for name in ("cells", "segments", "sizes", "owner", "alpha"):
            self.register_buffer(name, getattr(regions, name).to(place), persistent=False)
        self._grid = regions.grid

    @property
    def regions(self) -> Regions:
        """On the device where the module is."""
        return Regions(self._grid, self.cells, self.segments, self.sizes, self.owner, self.alpha)

    @property
    def scale(self) -> float:
        """s; setting it builds the regions anew."""
        return self._windows.scale

    @scale.setter
    def scale(self, value: float) -> None:
        self._windows = Windows(self.size, value, self.fixation)
        self._set(pooling_regions(self._windows, self.stride, painting=self.painting))

    def reference(self, picture: Tensor) -> Tensor:
        """The picture through encoder and decoder alone, clamped: what the others are compared with."""
        return self._decoded(self._encoded(widened(picture))).clamp(0, 1).to(picture.dtype)

    def _encoded(self, wide: Tensor) -> Tensor:
        """Features in single precision at least, of an encoder that may compute in half."""
        return widened(self.encoder(_as_weights(wide, self.encoder)))

    def _decoded(self, features: Tensor) -> Tensor:
        return widened(self.decoder(_as_weights(features, self.decoder)))

    def features(self, picture: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The painted features, (B, C, h, w), in float32 at least.

        Args:
            generator: draws noise of their own for all pictures; None takes the module's, the same for each.
        """
        picture, white = widened(picture), self.white
        if generator is not None:
            white = whitened(drawn(tuple(picture.shape), generator, pink=self.pink).to(picture))
        noise = coloured(white, picture)
        if self.size[0] * self.size[1] > TOGETHER:
            return painted(self._encoded(picture), self._encoded(noise), self.regions, self.epsilon)
        content, other = self._encoded(torch.cat([picture, noise])).chunk(2)
        return painted(content, other, self.regions, self.epsilon)

    def check(self, picture: Tensor) -> None:
        """Refuse what is no batch of pictures of this size in [0, 1].

        Raises:
            InputError: see there.
        """
        check_picture(picture, self.channels, "the foveated transform")
        if not torch.compiler.is_compiling() and tuple(picture.shape[2:]) != tuple(self.size):
            raise InputError(
                f"these windows were built for {self.size[1]} x {self.size[0]} px, not for "
                f"{picture.shape[3]} x {picture.shape[2]}: build the transform with that size"
            )

    def forward(self, picture: Tensor, generator: torch.Generator | None = None) -> Tensor:
        self.check(picture)
        return self.paint(picture, generator)

    def paint(self, picture: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """`forward` without looking at the values."""
        return self._decoded(self.features(picture, generator)).clamp(0, 1).to(picture.dtype)


def _as_weights(x: Tensor, network: nn.Module) -> Tensor:
    """In the dtype of a network's parameters; as it is for a network without."""
    first = next(network.parameters(), None)
    return x if first is None else x.to(first.dtype)
