"""Point spread functions as users have them, files and arrays of several shapes, as one field of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saccade.errors import InputError
from saccade.restoration.metalens_former import optics

__all__ = ["psf_field", "read_psf"]

LARGEST_FILE = 512 << 20  # bytes of a file of PSFs
LARGEST_SIDE = 2048  # pixels of a PSF
MOST_CELLS = 4096


def read_psf(path: str | Path) -> np.ndarray:
    """PSFs from a ``.npy`` file; nothing in it is executed, and nothing is read before its header is checked.

    Returns:
        The array as it is stored, 2 to 5 axes.

    Raises:
        InputError: no such file, another format, truncated, too large, or no real numbers.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if path.is_dir() or size > LARGEST_FILE:
            what = "it is a folder" if path.is_dir() else f"{size:,} bytes are more than {LARGEST_FILE:,}"
            raise InputError(f"cannot read PSFs from {path}: {what}")
        with path.open("rb") as file:
            if file.read(6) != b"\x93NUMPY":
                raise InputError(f"cannot read PSFs from {path}: it is no .npy file (numpy.save writes one)")
        with np.errstate(over="ignore"):  # of sides that nobody stores; numpy refuses them a line later
            stored = np.load(path, mmap_mode="r", allow_pickle=False, max_header_size=4096)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot read PSFs from {path}: {(error.strerror or str(error)).lower()}") from error
    except Exception as error:  # the header is parsed as Python literals: SyntaxError, TokenError, MemoryError, ...
        raise InputError(f"cannot read PSFs from {path}: it is damaged or holds no plain numbers") from error
    if stored.dtype.kind not in "fui" or not 2 <= stored.ndim <= 5 or stored.size == 0:
        raise InputError(
            f"{path} holds {stored.dtype} {stored.shape}; PSFs are real numbers (h, w), (h, w, 3), (cells, h, w, 3) or "
            "(rows, columns, h, w, 3)"
        )
    return np.array(stored)


def psf_field(psf: Any, *, normalise: bool = True) -> Tensor:
    """PSFs as a field (rows, columns, h, w, C) float32.

    Args:
        psf: (h, w); (h, w, C) with C = 1 or 3; (cells, h, w, C), a square number of cells, row by row; or (rows,
            columns, h, w, C). An even side has its centre at ``side // 2``.
        normalise: give every PSF the sum 1, so that brightness stays; else as they are.

    Raises:
        InputError: another shape, negative or non-finite values, no light, or too many of them.
    """
    try:
        psf = psf.detach().cpu() if isinstance(psf, Tensor) else psf
        values = torch.as_tensor(np.asarray(psf, np.float32))
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"PSFs are arrays of real numbers, not {type(psf).__name__}") from error
    if values.ndim == 2:
        values = values[..., None]
    if not 3 <= values.ndim <= 5 or values.shape[-1] not in (1, 3):
        raise InputError(
            f"PSFs are (h, w), (h, w, 3), (cells, h, w, 3) or (rows, columns, h, w, 3), not {tuple(values.shape)}"
        )
    optics.check_psf(values)
    if values.ndim == 3:
        values = values[None]
    if values.ndim == 4:
        values = values.unflatten(0, optics.grid_of(len(values)))
    rows, columns, height, width, _ = values.shape
    if rows * columns > MOST_CELLS or max(height, width) > LARGEST_SIDE:
        raise InputError(
            f"{columns}x{rows} PSFs of {width}x{height} are too many or too large: at most {MOST_CELLS} cells and "
            f"{LARGEST_SIDE} pixels a side"
        )
    if normalise:
        values = (values.double() / values.sum((2, 3), keepdim=True, dtype=torch.float64)).float()
    return values
