"""The orthonormal discrete cosine transform (type II) of pictures, and of their lowest frequencies alone.

    F = D_H X D_W^T     D_N[k, n] = a_k cos(pi (n + 1/2) k / N)     a_0 = sqrt(1/N), a_k = sqrt(2/N)

naive.py is the sum itself; matrix.py multiplies by cached bases and is fastest up to about 64 a side; fourier.py goes
through a real FFT, O(N log N). The inverse is the transpose. Conventions are scipy's ``dctn(type=2, norm="ortho")``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from saccade.errors import InputError, UsageError
from saccade.ops.dct import fourier, matrix, naive

__all__ = ["FORMS", "dct2", "idct2"]

FORMS = ("auto", "matrix", "fourier", "naive")
LONGEST = 64  # of an axis that the matrix form takes by itself; beyond it the FFT wins
_PATHS: dict[str, Any] = {"matrix": matrix, "fourier": fourier, "naive": naive}


def dct2(x: Tensor, kept: tuple[int, int] | None = None, *, form: str = "auto", channels_last: bool = False) -> Tensor:
    """Coefficients of the two-dimensional transform, the lowest in the corner of index 0.

    Args:
        x: (..., H, W), floating point; lengths of 1 are legal.
        kept: (h, w): compute the lowest h x w coefficients alone.
        form: ``"matrix"``, ``"fourier"``, ``"naive"``, or ``"auto"``: by the length of each axis. Compiled and exported
            graphs always multiply. The Fourier form computes half precision in float32 (cuFFT has it for powers of two
            alone), the matrix form in the dtype that is given.
        channels_last: x is (..., H, W, C), and so are the coefficients.

    Returns:
        (..., h, w), or (..., h, w, C).

    Raises:
        InputError: integer or complex numbers, too few axes, or an axis without elements.
        UsageError: no such form, or more coefficients than there are.
    """
    rows = -3 if channels_last else -2
    _check(x, rows, form)
    height, width = x.shape[rows], x.shape[rows + 1]
    h, w = (height, width) if kept is None else kept
    if not torch.compiler.is_compiling() and not (1 <= h <= height and 1 <= w <= width):
        raise UsageError(f"of {height} x {width} coefficients {h} x {w} cannot be kept")
    x = _path(form, height).forward(x, rows, h)
    out: Tensor = _path(form, width).forward(x, rows + 1, w)
    return out


def idct2(
    coefficients: Tensor, size: tuple[int, int] | None = None, *, form: str = "auto", channels_last: bool = False
) -> Tensor:
    """The picture of coefficients; those that are not there count as 0.

    Args:
        coefficients: (..., h, w), the lowest ones of `dct2`.
        size: (H, W) of the picture; as many as there are coefficients by default.
        form, channels_last: as `dct2`.

    Returns:
        (..., H, W), or (..., H, W, C).

    Raises:
        InputError, UsageError: as `dct2`.
    """
    rows = -3 if channels_last else -2
    _check(coefficients, rows, form)
    h, w = coefficients.shape[rows], coefficients.shape[rows + 1]
    height, width = (h, w) if size is None else size
    if not torch.compiler.is_compiling() and not (height >= h and width >= w):
        raise UsageError(f"{h} x {w} coefficients are too many for a picture of {height} x {width}")
    x = _path(form, width).inverse(coefficients, rows + 1, width)
    out: Tensor = _path(form, height).inverse(x, rows, height)
    return out


def _path(form: str, length: int) -> Any:
    if form != "auto":
        return _PATHS[form]
    return matrix if torch.compiler.is_compiling() or length <= LONGEST else fourier


def _check(x: Tensor, rows: int, form: str) -> None:
    if form not in FORMS:
        raise UsageError(f"no form named {form!r} of the cosine transform; there are {', '.join(FORMS)}")
    if torch.compiler.is_compiling():
        return
    if x.ndim < -rows or not x.is_floating_point() or 0 in x.shape[rows:]:
        raise InputError(f"the cosine transform takes real floats of at least 1 x 1, not {x.dtype} {tuple(x.shape)}")
