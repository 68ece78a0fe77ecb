"""Which filter of the bank to take when no network weighs them: the K of least expected error.

A Wiener filter darkens: it passes 1 / (1 + K c) of what the lens left whole, the mean among it. A network makes up for
that; a picture of one filter is scaled by 1 + K c. Its expected error is then

    E(K) = sum over frequencies of ((1 - |H|^2)^2 (K c)^2 S + |H|^2 (1 + K c)^2 s^2) / (|H|^2 + K c)^2

on a signal of power S and white noise of power s^2: blur that is left, noise that is let in. Natural pictures have
S = A / f^2. Both numbers come from the capture: s^2 from the frequencies where the lens passes least, A from those
where it passes much. Ours; the paper leaves the choice to its network.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from saccade.restoration.metalens_former.wiener import contrast

__all__ = ["CANDIDATES", "choose_level", "expected_errors", "noise_power"]

#: K that are tried, from hardly any sharpening on. Bolder ones, which noise alone would allow in a clean capture, show
#: how far the PSFs are from the truth: what lies beyond the picture, and between two cells, is only guessed.
CANDIDATES: tuple[float, ...] = tuple(10 ** (-0.5 - i / 4) for i in range(9))

DARKEST = 0.1  # share of the frequencies that are taken for noise alone
SIGNAL = (0.02, 0.25)  # cycles a pixel between which the signal's power is read
PASSES = 0.05  # |H|^2 from which on it is
LEAST = 1e-12
BINS = 16384  # frequencies that the sum over them is made of, evenly taken


def _frequency(height: int, width: int, like: Tensor) -> Tensor:
    """Cycles a pixel of every bin of a half spectrum: (height, width // 2 + 1); the mean counts as the first bin."""
    rows = torch.fft.fftfreq(height, device=like.device, dtype=like.dtype)
    columns = torch.fft.rfftfreq(width, device=like.device, dtype=like.dtype)
    return torch.hypot(rows[:, None], columns).clamp_min(1 / max(height, width))


def _periodogram(picture: Tensor) -> Tensor:
    """Power of every frequency, under a Hann window so that borders do not count: (C, H, W) -> (C, H, W // 2 + 1)."""
    height, width = picture.shape[-2:]
    down, across = (torch.hann_window(n + 2, periodic=False)[1:-1].to(picture) for n in (height, width))
    window = down[:, None] * across
    spectrum = torch.fft.rfft2((picture - picture.mean((-2, -1), keepdim=True)) * window)
    return spectrum.abs().square() / window.square().sum()


def noise_power(picture: Tensor, otf: Tensor) -> Tensor:
    """Variance of white noise in a capture, by colour.

    Args:
        picture: (C, H, W).
        otf: (C or 1, H, W // 2 + 1), half spectrum.

    Returns:
        (C,).
    """
    return _noise(_periodogram(picture), otf.abs().square().expand(len(picture), -1, -1), _frequency_of(picture))


def _frequency_of(picture: Tensor) -> Tensor:
    return _frequency(picture.shape[-2], picture.shape[-1], picture)


def _noise(power: Tensor, passed: Tensor, frequency: Tensor) -> Tensor:
    signal = (passed / frequency.square()).flatten(1)  # up to a factor, what the lens leaves of a natural picture
    count = max(1, round(DARKEST * signal.shape[1]))
    which = signal.topk(count, largest=False).indices
    # the power of noise at one frequency is spread exponentially: its mean is its median over ln 2
    return power.flatten(1).gather(1, which).median(1).values / math.log(2)


def expected_errors(picture: Tensor, otf: Tensor, candidates: Sequence[float] = CANDIDATES) -> Tensor:
    """The expected squared error of every filter, its brightness restored, up to a factor.

    Args:
        picture: (C, H, W), a window of a capture, linear light.
        otf: its half spectrum, (C or 1, H, W // 2 + 1), of PSFs with the sum 1.
        candidates: K.

    Returns:
        (len(candidates),).
    """
    frequency, passed = _frequency_of(picture), otf.abs().square().expand(len(picture), -1, -1)
    power = _periodogram(picture)
    noise = _noise(power, passed, frequency)[:, None, None]
    signal = _scale(power - noise, passed, frequency)[:, None, None] / frequency.square()
    step = max(1, frequency.numel() // BINS)
    signal, passed = (t.flatten(1)[:, ::step] for t in (signal, passed))
    noise, c = noise[:, 0], contrast(picture)[:, 0]
    left, through = (1 - passed).square_() * signal, passed * noise
    made = [
        ((k * c).square() * left + (1 + k * c).square() * through).div_((passed + k * c).square_()).sum()
        for k in candidates
    ]
    return torch.stack(made)


def _scale(power: Tensor, passed: Tensor, frequency: Tensor) -> Tensor:
    """A of the signal's A / f^2, by colour: the geometric mean of two readings of |Y|^2 f^2 / |H|^2.

    The mean is moved by a few strong edges, the median (over ln 2) sees the flat areas that most of a picture is.
    """
    made = []
    for i in range(len(power)):
        where = (frequency > SIGNAL[0]) & (frequency < SIGNAL[1]) & (passed[i] > PASSES)
        where = where if bool(where.any()) else passed[i] >= passed[i].amax()
        read = power[i][where] * frequency[where].square() / passed[i][where].clamp_min(LEAST)
        strong, usual = read.mean().clamp_min(LEAST), (read.median() / math.log(2)).clamp_min(LEAST)
        made.append((strong * usual).sqrt())
    return torch.stack(made)


def choose_level(windows: Iterable[tuple[Tensor, Tensor]], candidates: Sequence[float] = CANDIDATES) -> float:
    """The K of least expected error over some windows (picture, OTF) of one capture."""
    total = torch.stack([expected_errors(picture, otf, candidates) for picture, otf in windows]).sum(0)
    return candidates[int(total.argmin())]
