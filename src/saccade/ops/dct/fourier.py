"""Through a real FFT of the same length (Makhoul, IEEE Trans. ASSP 28(1), 1980).

v = x_0, x_2, x_4, ..., x_5, x_3, x_1      W_k = exp(-i pi k / 2N) FFT(v)_k      C_k = a_k Re W_k = -a_k Im W_(N-k)
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

__all__ = ["forward", "inverse"]


@functools.lru_cache(maxsize=64)
def _constants(length: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """exp(-i pi k / 2N) of the half spectrum, and a_k."""
    with torch.inference_mode(False), torch.no_grad():
        k = torch.arange(length, dtype=torch.float64)
        turn = torch.polar(torch.ones_like(k), -math.pi * k / (2 * length))[: length // 2 + 1]
        gain = torch.full_like(k, math.sqrt(2 / length))
        gain[0] = math.sqrt(1 / length)
        return turn.to(device, dtype.to_complex()), gain.to(device, dtype)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def forward(x: Tensor, axis: int, kept: int) -> Tensor:
    """The lowest ``kept`` coefficients along an axis."""
    y = _wide(x).movedim(axis, -1)
    length = y.shape[-1]
    turn, gain = _constants(length, y.dtype, y.device)
    ordered = torch.cat([y[..., ::2], y[..., 1::2].flip(-1)], -1)
    half = torch.view_as_real(torch.fft.rfft(ordered) * turn)
    upper = -half[..., 1 : (length + 1) // 2, 1].flip(-1)
    whole = torch.cat([half[..., 0], upper], -1)[..., :kept] * gain[:kept]
    return whole.to(x.dtype).movedim(-1, axis)


def inverse(coefficients: Tensor, axis: int, length: int) -> Tensor:
    """``length`` samples along an axis from its lowest coefficients."""
    c = _wide(coefficients).movedim(axis, -1)
    turn, gain = _constants(length, c.dtype, c.device)
    c = torch.nn.functional.pad(c / gain[: c.shape[-1]], (0, length - c.shape[-1]))
    real = c[..., : length // 2 + 1]
    imaginary = -torch.nn.functional.pad(c[..., (length + 1) // 2 :].flip(-1), (1, 0))
    ordered = torch.fft.irfft(torch.complex(real, imaginary) * turn.conj(), length)
    even, odd = ordered[..., : (length + 1) // 2], ordered[..., (length + 1) // 2 :].flip(-1)
    out = torch.stack([even[..., : length // 2], odd], -1).flatten(-2)
    if length % 2:
        out = torch.cat([out, even[..., -1:]], -1)
    return out.to(coefficients.dtype).movedim(-1, axis)
