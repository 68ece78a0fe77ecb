"""SSIM and MS-SSIM, to measure pictures with and to train networks with.

Snell, Ridgeway, Liao, Roads, Mozer, Zemel, "Learning to Generate Images With Perceptual Similarity Metrics", ICIP 2017,
arXiv:1511.06409; Wang, Bovik, Sheikh, Simoncelli (SSIM, 2004); Wang, Simoncelli, Bovik (MS-SSIM, 2003).

    a, b (..., C, H, W) --+-- window -- mean CS_1 ------------------------------+
                          | 2x2 means                                           |
                          +-- window -- mean CS_2 --------------------- ^w_j -- product -- mean over C -- (...)
                          | ...                                                 |
                          +-- window -- mean l_M CS_M --------------------------+

    l  = (2 mu_a mu_b + C1) / (mu_a^2 + mu_b^2 + C1)          C1 = (0.01 L)^2
    CS = (2 cov_ab + C2) / (var_a + var_b + C2)               C2 = (0.03 L)^2, L the data range

A channel's means are taken over pixels first, then clipped at zero, then raised and multiplied, then averaged over
channels; luminance enters at the coarsest scale alone. What programs differ in are borders and odd sizes:

    protocol      windows           an odd last row or column when halving      colour
    wang2003      wholly inside     left out                                    every channel
    matlab        wholly inside     mirrored, as Wang's own msssim.m            every channel
    vainf         wholly inside     zeros on both sides, as pytorch-msssim      every channel
    y_channel     wholly inside     left out                                    BT.601 luma (also pyiqa)
    torchmetrics  also over mirrored borders in SSIM, and   left out            all together: their mean is raised and
                  so at the coarsest scale                                      multiplied

kornia counts windows over padded borders, piq first shrinks pictures towards 256 pixels: other numbers from the third
digit on. scikit-image agrees with ``gaussian_weights=True, sigma=1.5, use_sample_covariance=False``.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import InputError, UsageError
from saccade.ops.ssim import gaussian, similarity
from saccade.quality.pair import prepared

__all__ = ["WEIGHTS", "MSSSIMLoss", "for_size", "ms_ssim", "ssim"]

SYSTEM = "msssim_learning"
WINDOW, SIGMA = 11, 1.5
K = (0.01, 0.03)
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the five scales, finest first (Wang 2003)
MIX = 0.84  # structural part of the loss of Zhao et al. 2017, arXiv:1511.08861
GUARD = 1e-4  # below this the power's gradient, w x^(w-1), is of no use to training
Protocol = Literal["wang2003", "matlab", "vainf", "y_channel", "torchmetrics"]


def ssim(
    a: Tensor,
    b: Tensor,
    *,
    border: int = 0,
    luma: bool = False,
    data_range: float = 1.0,
    win_size: int = WINDOW,
    win_sigma: float = SIGMA,
    k: tuple[float, float] = K,
    protocol: Protocol = "wang2003",
) -> Tensor:
    """Structural similarity (Wang et al. 2004), mean over pixels and channels.

    The super-resolution protocol's: an 11x11 Gaussian window of sigma 1.5, only where it lies wholly inside, population
    variances. Of the protocols ``y_channel`` differs in colour, ``torchmetrics`` at borders; the others are alike.

    Args:
        a, b, border, luma, data_range: as in `saccade.quality.psnr`. The data range is never guessed from the values:
            pictures of 0..255 need ``data_range=255``; what lies outside is warned of once.
        win_size, win_sigma: taps and sigma of the Gaussian, pixels.
        k: of C1 and C2.
        protocol: see the module; ``y_channel`` is ``luma=True``.

    Returns:
        (...): one figure per picture.

    Raises:
        InputError: as `psnr`, pictures smaller than the window, and values that are not numbers, unless gradients are
            recorded (training goes on, as the loss shows it).
        UsageError: an even window, an unknown protocol.
    """
    _known(protocol)
    taps = gaussian(win_size, win_sigma)
    a, b = prepared(a, b, border, luma or protocol == "y_channel", data_range)
    if min(a.shape[-2:]) < win_size:
        raise InputError(f"SSIM needs at least {win_size}x{win_size} pixels, got {a.shape[-1]}x{a.shape[-2]}")
    _look(a, b, strict=not _recorded(a, b))
    return _score(a, b, taps, k, True, protocol).mean(-1)


def ms_ssim(
    a: Tensor,
    b: Tensor,
    *,
    border: int = 0,
    luma: bool = False,
    data_range: float = 1.0,
    weights: Sequence[float] = WEIGHTS,
    win_size: int = WINDOW,
    win_sigma: float = SIGMA,
    k: tuple[float, float] = K,
    protocol: Protocol = "wang2003",
    guard: float = 0.0,
) -> Tensor:
    """Multi-scale structural similarity (Wang, Simoncelli and Bovik 2003), five scales, mean over channels.

    Args:
        a, b, border, luma, data_range, win_size, win_sigma, k: as in `ssim`.
        weights: exponents of the scales, finest first; `for_size` gives those that fit a small picture.
        protocol: see the module.
        guard: figures below this count as this much before they are raised to their power, whose gradient is infinite
            at zero; 0 for the exact score.

    Returns:
        (...): one figure per picture, in [0, 1].

    Raises:
        InputError: as `ssim`, and pictures too small for the scales: the message says how many would fit.
        UsageError: as `ssim`; no weights, or weights that are not positive.
    """
    _known(protocol)
    _check_weights(weights)
    taps = gaussian(win_size, win_sigma)
    a, b = prepared(a, b, border, luma or protocol == "y_channel", data_range)
    _fits(a, win_size, len(weights), protocol)
    _look(a, b, strict=not _recorded(a, b))
    return _product(a, b, taps, weights, k, protocol, guard)


def _product(
    a: Tensor,
    b: Tensor,
    taps: Sequence[float],
    weights: Sequence[float],
    k: tuple[float, float],
    protocol: str,
    guard: float,
) -> Tensor:
    """MS-SSIM of pictures that were looked at, data range 1: (..., C, H, W) -> (...)."""
    total = torch.ones((), dtype=a.dtype, device=a.device)
    for scale, weight in enumerate(weights):
        last = scale == len(weights) - 1
        score = _score(a, b, taps, k, last, protocol)  # (..., C), or (..., 1) for all channels together
        total = total * score.clamp(min=guard) ** weight
        if not last:
            a, b = _halved(a, protocol), _halved(b, protocol)
    return total.mean(-1)


def _score(
    a: Tensor, b: Tensor, taps: Sequence[float], k: tuple[float, float], luminance: bool, protocol: str
) -> Tensor:
    """Mean SSIM, or mean contrast-structure, of each channel: (..., C, H, W) -> (..., C).

    With the protocol of torchmetrics (..., 1), and SSIM counts windows over mirrored borders.
    """
    theirs = protocol == "torchmetrics"
    if theirs and luminance:
        a, b = (_mirrored(x, len(taps) // 2) for x in (a, b))
    found = similarity(a, b, taps, c1=k[0] ** 2, c2=k[1] ** 2, level=0.5, luminance=luminance)
    return found.mean(-1, keepdim=True) if theirs else found


def _mirrored(x: Tensor, reach: int) -> Tensor:
    """(..., H, W) with so many pixels more on each side, mirrored at the outermost ones."""
    planes = F.pad(x.reshape(-1, 1, *x.shape[-2:]), (reach,) * 4, mode="reflect")
    return planes.view(*x.shape[:-2], *planes.shape[-2:])


def _halved(x: Tensor, protocol: str) -> Tensor:
    """2x2 means; what becomes of an odd last row or column is the protocol's."""
    planes = x.reshape(-1, 1, *x.shape[-2:])
    odd_h, odd_w = (n % 2 for n in x.shape[-2:])
    if protocol == "vainf":
        planes = F.avg_pool2d(planes, 2, padding=(odd_h, odd_w))  # shifts by one, and zeros enter
    else:
        if protocol == "matlab" and (odd_h or odd_w):
            planes = F.pad(planes, (0, odd_w, 0, odd_h), mode="replicate")
        planes = F.avg_pool2d(planes, 2)
    return planes.view(*x.shape[:-2], *planes.shape[-2:])


def for_size(
    height: int,
    width: int,
    *,
    win_size: int = WINDOW,
    protocol: Protocol = "wang2003",
    weights: Sequence[float] = WEIGHTS,
) -> tuple[float, ...]:
    """The exponents of as many scales as pictures of a size can have, renormalised to sum 1.

    M scales fit where (win_size - 1) 2^(M-1) < the smaller side; where odd rows are left out (``wang2003``,
    ``y_channel``) they need win_size 2^(M-1) <= the smaller side.

    Raises:
        InputError: not even one scale fits.
        UsageError: an even window, an unknown protocol, or weights that are not positive.
    """
    _known(protocol)
    _check_weights(weights)
    gaussian(win_size, SIGMA)
    scales = min(len(weights), _scales(min(height, width), win_size, protocol))
    if scales == 0:
        raise InputError(
            f"a window of {win_size} does not fit into {width}x{height} pixels; the largest that does is "
            f"{_odd(min(height, width))}"
        )
    return tuple(w / math.fsum(weights[:scales]) for w in weights[:scales])


class MSSSIMLoss(nn.Module):
    """mix (1 - MS-SSIM) + (1 - mix) L1, the mean over the batch.

    The structural score hardly sees a shift of brightness or colour, so colour networks drift when nothing else holds
    them: ``MSSSIMLoss.preset("zhao2017")`` mixes 0.84 of it with 0.16 of L1, weighted by the Gaussian of the coarsest
    scale as in Zhao et al. 2017. Its gradient is about a tenth to a hundredth of L2's: tune the learning rate anew.

    Args:
        weights, win_size, win_sigma, k, data_range, protocol, guard: as in `ms_ssim`; ``guard`` is on, 1e-4.
        mix: share of the structural part, in [0, 1].
        scale: what the whole is multiplied by: the C of the expected-loss VAE, C E[loss] + KL.

    Shape: two of (B, C, H, W), same dtype -> (). Half precision is computed in float32. No parameters, no state.

    Raises:
        UsageError: options that cannot be.
        InputError: shapes that differ or are not (B, C, H, W), dtypes that are not floating point, pictures too small;
            in evaluation mode also values that are not numbers.
    """

    def __init__(
        self,
        weights: Sequence[float] = WEIGHTS,
        *,
        win_size: int = WINDOW,
        win_sigma: float = SIGMA,
        k: tuple[float, float] = K,
        data_range: float = 1.0,
        protocol: Protocol = "wang2003",
        guard: float = GUARD,
        mix: float = 1.0,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        _known(protocol)
        _check_weights(weights)
        taps = gaussian(win_size, win_sigma)
        if not (math.isfinite(data_range) and data_range > 0):
            raise UsageError(f"the data range must be a positive number, not {data_range}")
        if not 0 <= mix <= 1:
            raise UsageError(f"the mix lies in [0, 1], not {mix}")
        if not (math.isfinite(scale) and scale > 0 and 0 <= guard < 1):
            raise UsageError(f"the loss needs a positive scale and a guard in [0, 1), not {scale} and {guard}")
        self.weights, self.win_size, self.win_sigma, self.k = tuple(weights), win_size, win_sigma, k
        self.data_range, self.protocol, self.guard, self.mix, self.scale = data_range, protocol, guard, mix, scale
        self.taps = taps  # no buffer: casting the module must not round the window

    @classmethod
    def for_size(cls, height: int, width: int, *, win_size: int = WINDOW, **options: Any) -> MSSSIMLoss:
        """The loss for pictures of a size: as many scales as fit; other options as of the class."""
        protocol = options.get("protocol", "wang2003")
        weights = for_size(height, width, win_size=win_size, protocol=protocol, weights=options.pop("weights", WEIGHTS))
        return cls(weights, win_size=win_size, **options)

    @classmethod
    def preset(cls, name: str, **options: Any) -> MSSSIMLoss:
        """A loss as published: a protocol's name (exact, without guard), or ``zhao2017`` (the mix with L1).

        Raises:
            UsageError: no preset of this name.
        """
        if name == "zhao2017":
            return cls(**{"mix": MIX, **options})
        if name not in get_args(Protocol):
            raise UsageError(f"no preset {name!r}; there are zhao2017, {', '.join(get_args(Protocol))}")
        return cls(**{"protocol": name, "guard": 0.0, **options})

    def extra_repr(self) -> str:
        return f"scales={len(self.weights)}, win_size={self.win_size}, protocol={self.protocol}, mix={self.mix:g}"

    def forward(self, made: Tensor, wanted: Tensor) -> Tensor:
        if made.shape != wanted.shape or made.ndim != 4:
            raise InputError(f"the loss takes two of (B, C, H, W), not {tuple(made.shape)} and {tuple(wanted.shape)}")
        if not (made.is_floating_point() and wanted.is_floating_point()):
            raise InputError(
                f"the loss takes floating-point pictures, not {made.dtype} and {wanted.dtype}; convert them, and pass "
                "data_range=255 for values of 0..255"
            )
        double = torch.float64 in (made.dtype, wanted.dtype)
        made, wanted = (x.double() if double else x.float() for x in (made, wanted))
        made, wanted = prepared(made, wanted, 0, self.protocol == "y_channel", self.data_range)
        _fits(made, self.win_size, len(self.weights), self.protocol)
        _look(made, wanted, strict=not self.training)
        loss = made.new_zeros(())
        if self.mix > 0:
            score = _product(made, wanted, self.taps, self.weights, self.k, self.protocol, self.guard)
            loss = loss + self.mix * (1 - score.mean())
        if self.mix < 1:
            loss = loss + (1 - self.mix) * self._pixel_loss(made, wanted)
        return self.scale * loss

    def _pixel_loss(self, made: Tensor, wanted: Tensor) -> Tensor:
        """Mean of |a - b| under the Gaussian of the coarsest scale, wherever its window lies inside.

        The mean over all places of a window is a weight for every pixel: the sum of the taps that reach it.
        """
        far = 2 ** (len(self.weights) - 1)
        taps = made.new_tensor(gaussian((self.win_size - 1) * far + 1, self.win_sigma * far))
        down, along = (_reached(taps, n) for n in made.shape[-2:])
        with torch.autocast(made.device.type, enabled=False):
            return down @ (made - wanted).abs().mean((0, 1)) @ along


def _reached(taps: Tensor, length: int) -> Tensor:
    """(length,): the part of all windows that falls on each pixel of a row, the mean over their places; sums to 1."""
    places = length - len(taps) + 1
    return F.pad(taps, (places - 1, places - 1)).unfold(0, places, 1).mean(-1)


def _recorded(a: Tensor, b: Tensor) -> bool:
    return torch.is_grad_enabled() and (a.requires_grad or b.requires_grad)


def _look(a: Tensor, b: Tensor, strict: bool) -> None:
    """Values of pictures of data range 1, where looking is cheap: refuse NaN if strict, warn once of a wrong range.

    A network in training may overshoot by a quarter; everything else by rounding only.
    """
    if a.device.type != "cpu" or torch.compiler.is_compiling():
        return
    for x in (a, b):
        low, high = (float(v) for v in torch.aminmax(x.detach()))
        if math.isnan(low) or math.isinf(low) or math.isinf(high):
            if strict:
                raise InputError("a picture holds values that are not numbers; there is no similarity to tell")
            continue
        slack = 0.25 if x.requires_grad else 1e-3
        if low < -slack or high > 1 + slack:
            _warn_of_range(low, high)


@functools.cache
def _warned() -> list[bool]:
    return [False]


def _warn_of_range(low: float, high: float) -> None:
    if not _warned()[0]:
        _warned()[0] = True
        warnings.warn(
            f"pictures lie in [{low:.3g}, {high:.3g}] times data_range; structural similarity is meant for [0, 1]: "
            "clamp them, or pass the data_range that they have",
            stacklevel=4,
        )


def _known(protocol: str) -> None:
    if protocol not in get_args(Protocol):
        raise UsageError(f"no protocol {protocol!r}; there are {', '.join(get_args(Protocol))}")


def _check_weights(weights: Sequence[float]) -> None:
    if not weights or not all(math.isfinite(w) and w > 0 for w in weights):
        raise UsageError(f"MS-SSIM needs positive weights, one a scale, not {list(weights)}")


def _odd(side: int) -> int:
    return side - (side % 2 == 0)


def _scales(side: int, window: int, protocol: str) -> int:
    """How many scales hold a whole window."""
    scales = 0
    while side >= window:
        scales += 1
        side = -(-side // 2) if protocol in ("matlab", "vainf") else side // 2
        if side <= 1:
            break
    return scales


def _fits(x: Tensor, win_size: int, scales: int, protocol: str) -> None:
    """Refuse pictures (..., H, W) whose coarsest scale would be smaller than the window."""
    height, width = x.shape[-2:]
    possible = _scales(min(height, width), win_size, protocol)
    if possible >= scales:
        return
    far = 2 ** (scales - 1)
    side = (win_size - 1) * far + 1 if protocol in ("matlab", "vainf") else win_size * far
    most = (
        f"the largest usable M there is {possible}"
        if possible
        else f"use a window of at most {_odd(min(height, width))}"
    )
    raise InputError(
        f"MS-SSIM of {scales} scales and a window of {win_size} needs at least {side}x{side} pixels, got "
        f"{width}x{height}; {most} (for_size gives the weights)"
    )
