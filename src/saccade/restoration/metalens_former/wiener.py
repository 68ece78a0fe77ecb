"""The adaptive Wiener bank: one blurred picture, M sharpened ones, from cautious to bold (section 3.2).

    y (..., C, H, W) -- rfft2 --+-- * conj(H) / (|H|^2 + K_m c) -- irfft2 -- clamp to [0, 1] --> (..., M, C, H, W)
                                |_ c = 1 - mean(y), for each picture and colour on its own

K_1 > K_2 > ...: a large K keeps noise down and leaves blur, a small one does the reverse; where little light falls
(c near 1), noise counts for more and every K does more. One forward transform serves all M filters, so the cost is
that of M inverse transforms (`floor_seconds` in ``saccade.bench.restoration.metalens_former`` takes their time alone).

`naive_bank` is the truth: complex transforms of everything, one filter after the other. `wiener_bank` uses half
spectra, multiplies by reciprocals instead of dividing complex numbers, and works in pieces of bounded memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from saccade.errors import InputError, UsageError
from saccade.restoration.metalens_former.optics import Compat, assemble, grid_of, psf2otf, surroundings

__all__ = ["FILTERS", "check_levels", "contrast", "naive_bank", "wiener_bank", "wiener_field"]

#: K of the published bank: logspace(-2, -5, 13)
FILTERS: tuple[float, ...] = tuple(10 ** (-2 - i / 4) for i in range(13))

LEAST = 1e-30  # |H|^2 + K c of a white picture at a zero of H: any number but 0, which would make NaN


def check_levels(levels: Sequence[float] | Tensor) -> tuple[float, ...]:
    """The noise levels K as numbers.

    Raises:
        UsageError: none, or one that is not a positive number.
    """
    made = tuple(float(k) for k in levels)
    if not made or not all(0 < k < float("inf") for k in made):
        raise UsageError(f"noise levels K are positive numbers, at least one, not {[float(f'{k:.3g}') for k in made]}")
    return made


def contrast(picture: Tensor) -> Tensor:
    """c = 1 - mean over the pixels: (..., H, W) -> (..., 1, 1)."""
    return 1 - picture.mean((-2, -1), keepdim=True)


def naive_bank(picture: Tensor, otf: Tensor, levels: Sequence[float] | Tensor = FILTERS) -> Tensor:
    """The bank as its formula stands; arguments as in `wiener_bank`, but ``otf`` is the whole spectrum.

    Args:
        picture: (..., C, H, W).
        otf: (..., C, H, W), complex.
        levels: K_m.

    Returns:
        (..., M, C, H, W).
    """
    spectrum = torch.fft.fft2(picture)
    made = []
    for k in check_levels(levels):
        inverse = otf.conj() / (otf.abs().square() + k * contrast(picture))
        made.append(torch.fft.ifft2(spectrum * inverse).real.clamp(0, 1))
    return torch.stack(torch.broadcast_tensors(*made), -4)


def wiener_bank(picture: Tensor, otf: Tensor, levels: Sequence[float] | Tensor = FILTERS) -> Tensor:
    """Deblur with every filter of the bank.

    Args:
        picture: linear light in [0, 1], (..., C, H, W); e.g. (B, C, H, W), or (B, N, C, H, W) for N patches.
        otf: half spectrum (`psf2otf`), (C or 1, H, W // 2 + 1) for one PSF, or (N, C, H, W // 2 + 1), ... : it is
            broadcast against the picture.
        levels: noise levels K_m, the published 13 by default.

    Returns:
        (..., M, C, H, W) in [0, 1], in the order of ``levels``.

    Raises:
        InputError: shapes that do not go together.
        UsageError: a level that is not positive.
    """
    levels = check_levels(levels)
    _check(picture, otf)
    if torch.is_grad_enabled() and (picture.requires_grad or otf.requires_grad):
        return _filtered(picture, otf, levels)
    batch = np.broadcast_shapes(picture.shape[:-3], otf.shape[:-3])
    made = picture.new_empty(*batch, len(levels), *picture.shape[-3:])
    pictures = picture.expand(*batch, *picture.shape[-3:]).reshape(-1, *picture.shape[-3:])
    otfs = otf.expand(*batch, *otf.shape[-3:]).reshape(-1, *otf.shape[-3:]) if otf.ndim > 3 else otf[None]
    for i, out in enumerate(made.view(-1, *made.shape[-4:])):
        _fill(out, pictures[i], otfs[i if len(otfs) > 1 else 0], levels)
    return made


def _fill(out: Tensor, picture: Tensor, otf: Tensor, levels: Sequence[float]) -> None:
    """Write the bank of one picture (C, H, W) into ``out`` (M, C, H, W): two spectra are alive at a time."""
    raised = torch.fft.rfft2(picture).mul_(otf.conj())  # Y conj(H)
    power = otf.real.square() + otf.imag.square()
    c = contrast(picture)
    product = torch.empty_like(raised)
    pair, scaled = torch.view_as_real(raised), torch.view_as_real(product)
    for m, k in enumerate(levels):
        gain = torch.add(power, c, alpha=k).clamp_min_(LEAST).reciprocal_()
        torch.mul(pair, gain[..., None], out=scaled)
        torch.fft.irfft2(product, picture.shape[-2:], out=out[m])
        out[m].clamp_(0, 1)


def _filtered(picture: Tensor, otf: Tensor, levels: Sequence[float]) -> Tensor:
    """The same with nothing written in place, for gradients."""
    raised = torch.fft.rfft2(picture) * otf.conj()
    power, c = otf.real.square() + otf.imag.square(), contrast(picture)
    made = [torch.fft.irfft2(raised / (power + k * c).clamp_min(LEAST), picture.shape[-2:]).clamp(0, 1) for k in levels]
    return torch.stack(made, -4)


def _check(picture: Tensor, otf: Tensor) -> None:
    if picture.ndim < 3 or otf.ndim < 3 or not picture.is_floating_point() or not otf.is_complex():
        raise InputError(
            f"the bank takes pictures (..., C, H, W) and OTFs (..., C, H, W // 2 + 1), not {picture.dtype} "
            f"{tuple(picture.shape)} and {otf.dtype} {tuple(otf.shape)}"
        )
    height, width = picture.shape[-2:]
    if tuple(otf.shape[-2:]) != (height, width // 2 + 1):
        raise InputError(
            f"an OTF of {tuple(otf.shape[-2:])} is not the half spectrum of a picture of {width}x{height}: "
            f"({height}, {width // 2 + 1})"
        )
    if otf.shape[-3] not in (1, picture.shape[-3]):
        raise InputError(f"a PSF of {otf.shape[-3]} colours does not fit a picture of {picture.shape[-3]}")
    try:
        np.broadcast_shapes(picture.shape[:-3], otf.shape[:-3])
    except ValueError:
        raise InputError(f"{tuple(otf.shape[:-3])} OTFs do not fit {tuple(picture.shape[:-3])} pictures") from None


def wiener_field(
    scene: Tensor,
    psfs: Tensor,
    levels: Sequence[float] | Tensor = FILTERS,
    *,
    grid: tuple[int, int] | None = None,
    compat: Compat = None,
) -> Tensor:
    """Deblur a capture whose PSF differs from cell to cell, as published: 3x3 cells each, the middle one kept.

    Args:
        scene: (B, C, (rows + 2) * p, (columns + 2) * q): the capture and a border of one cell, zeros or what is there.
        psfs: (rows * columns, h, w, C), row by row.
        levels: noise levels K_m.
        grid: rows and columns; a square one by default.
        compat: see `saccade.restoration.metalens_former.optics`.

    Returns:
        (B, M, C, rows * p, columns * q).

    Raises:
        InputError: a number of PSFs that is no square, cells that do not fit, colours that differ.
        UsageError: a level that is not positive.
    """
    grid = grid_of(len(psfs)) if grid is None else grid
    patches = surroundings(scene, grid)  # (B, N, C, 3p, 3q)
    otf = psf2otf(psfs, patches.shape[-2], patches.shape[-1], compat)  # (N, C, 3p, 3q // 2 + 1)
    return assemble(wiener_bank(patches, otf, levels), grid)
