"""The second-order degradation of clips and pictures: everything that footage goes through, twice.

Wang et al., "Real-ESRGAN", ICCVW 2021, arXiv:2107.10833, section 3, as Chan et al., "Investigating Tradeoffs in
Real-World Video Super-Resolution", CVPR 2022, arXiv:2111.12704, section 3.2 extends it to video:

    clip (t,3,H,W) -- blur -- resize -- noise -- JPEG -- video codec --
                   -- blur -- resize -- noise -- JPEG -- {video codec, resize to H/scale + sinc} in either order --
                   -- 8-bit rounding --> (t,3,H/scale,W/scale)

Each parameter is drawn once a clip and then walks in small random steps from frame to frame, within its range.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.data.degrade.blind import white_noise
from saccade.data.degrade.jpeg import jpeg, to_bytes
from saccade.data.degrade.kernels import (
    filter_each,
    gaussian_kernels,
    generalised_kernels,
    plateau_kernels,
    sinc_kernels,
)
from saccade.data.degrade.video import CODECS, compress_video
from saccade.errors import InputError, UsageError
from saccade.nn.pictures import check_picture

__all__ = ["FIRST", "SECOND", "SecondOrder", "Stage", "poisson_noise", "random_kernels", "walk"]

Span = tuple[float, float]

#: probabilities of the kinds of kernel, round and stretched ones of each
KINDS = {
    "iso": 0.405,
    "aniso": 0.225,
    "generalised_iso": 0.108,
    "generalised_aniso": 0.027,
    "plateau_iso": 0.108,
    "plateau_aniso": 0.027,
    "sinc": 0.1,
}
SIZES = tuple(range(7, 22, 2))
#: largest change from one frame to the next
STEPS = {
    "sigma": 0.02,
    "angle": math.pi / 10,
    "beta_generalised": 0.05,
    "beta_plateau": 0.1,
    "cutoff": math.pi / 50,
    "gaussian": 0.1,
    "poisson": 0.005,
    "quality": 3.0,
}


@dataclass(frozen=True)
class Stage:
    """One round of degradation; ranges are uniform, both ends included.

    Attributes:
        blur: probability of a blur. sigma: its widths in pixels.
        larger, smaller: probabilities of enlarging and of reducing; else the size stays. size: range of the factor.
        size_step: largest change of that factor between frames.
        gaussian: standard deviation of 255. poisson: share of the shot noise that the pixel values would have.
        grey: probability that all channels share the noise.
        quality: of JPEG.
        bits_per_frame: what the video codec aims at.
    """

    blur: float = 1.0
    sigma: Span = (0.2, 3.0)
    larger: float = 0.2
    smaller: float = 0.7
    size: Span = (0.15, 1.5)
    size_step: float = 0.015
    gaussian: Span = (1.0, 30.0)
    poisson: Span = (0.05, 3.0)
    grey: float = 0.4
    quality: Span = (30, 95)
    bits_per_frame: Span = (1e4, 1e5)


FIRST = Stage()
SECOND = Stage(0.8, (0.2, 1.5), 0.3, 0.4, (0.3, 1.2), 0.03, (1.0, 25.0), (0.05, 2.5))


def walk(chance: np.random.Generator, span: Span, step: float, count: int) -> np.ndarray:
    """``count`` values: the first uniform over ``span``, each next within ``step`` of the one before, kept inside."""
    moves = chance.uniform(-step, step, count)
    moves[0] = chance.uniform(*span)
    for i in range(1, count):
        moves[i] = min(max(moves[i - 1] + moves[i], span[0]), span[1])
    return moves


def random_kernels(chance: np.random.Generator, sigma: Span, count: int) -> Tensor:
    """Kernels of one kind and size, drawn by `KINDS` and `SIZES`, drifting: (count, k, k)."""
    kind = str(chance.choice(list(KINDS), p=np.array(list(KINDS.values())) / sum(KINDS.values())))
    size = int(chance.choice(SIZES))
    if kind == "sinc":
        return random_sinc(chance, size, count)
    sigma_x = walk(chance, sigma, STEPS["sigma"], count)
    sigma_y, angle = sigma_x, np.zeros(count)
    if kind.endswith("aniso"):
        sigma_y = walk(chance, sigma, STEPS["sigma"], count)
        angle = walk(chance, (-math.pi, math.pi), STEPS["angle"], count)
    if kind.startswith("generalised"):
        beta = walk(chance, (0.5, 4.0), STEPS["beta_generalised"], count)
        return generalised_kernels(size, sigma_x, sigma_y, angle, beta)
    if kind.startswith("plateau"):
        return plateau_kernels(size, sigma_x, sigma_y, angle, walk(chance, (1.0, 2.0), STEPS["beta_plateau"], count))
    return gaussian_kernels(size, sigma_x, sigma_y, angle)


def random_sinc(chance: np.random.Generator, size: int, count: int) -> Tensor:
    """Drifting low-pass kernels; small ones cannot hold the lowest frequencies: (count, size, size)."""
    lowest = math.pi / 3 if size < 13 else math.pi / 5
    return sinc_kernels(size, walk(chance, (lowest, math.pi), STEPS["cutoff"], count))


def poisson_noise(pictures: Tensor, strengths: np.ndarray, grey: bool, chance: np.random.Generator) -> Tensor:
    """Add shot noise, as strong as a picture of that many distinct levels would have, times a strength.

    Args:
        pictures: (n, C, h, w) in [0, 1].
        strengths: (n,).
        grey: one noise for all channels, that of their mean.
    """
    made = []
    for picture, strength in zip(to_bytes(pictures).cpu().numpy(), strengths, strict=True):
        levels = 2.0 ** math.ceil(math.log2(max(2, len(np.unique(picture)))))
        signal = (picture.mean(0, keepdims=True) if grey else picture) / 255
        noise = chance.poisson(signal * levels) / levels - signal
        made.append(np.broadcast_to(noise * strength, picture.shape).astype(np.float32))
    return pictures + torch.from_numpy(np.stack(made)).to(pictures)


def _resized(frames: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    if mode == "area" and size[0] <= frames.shape[2] and size[1] <= frames.shape[3]:
        return F.interpolate(frames, size=size, mode="area")
    if mode == "bicubic":
        return F.interpolate(frames, size=size, mode="bicubic", align_corners=False)
    return F.interpolate(frames, size=size, mode="bilinear", align_corners=False)


MODES = ("bilinear", "area", "bicubic")  # none filters before it reduces: aliasing belongs to what footage suffers


class SecondOrder:
    """The whole chain, for clips and for pictures.

    Args:
        scale: reduction from input to output, 1 for restoration without enlargement.
        stages: the two rounds.
        video: compress as video; False for photographs.
        final_sinc: probability of the last low-pass.

    Raises:
        UsageError: a scale below 1.
    """

    def __init__(
        self,
        scale: int = 4,
        stages: tuple[Stage, Stage] = (FIRST, SECOND),
        *,
        video: bool = True,
        final_sinc: float = 0.8,
    ) -> None:
        if scale < 1:
            raise UsageError(f"a degradation reduces by 1 or more, not {scale}")
        self.scale, self.stages, self.video, self.final_sinc = scale, stages, video, final_sinc

    @torch.no_grad()
    def __call__(self, clip: Tensor, chance: np.random.Generator) -> Tensor:
        """Degrade one clip.

        Args:
            clip: (t, 3, H, W) in [0, 1]; one picture is a clip with t = 1.
            chance: where all randomness comes from.

        Returns:
            (t, 3, H // scale, W // scale) in [0, 1], at levels of 1/255, of the clip's dtype and device.

        Raises:
            InputError: another shape, values that are no pixels in [0, 1], or a clip smaller than ``scale``.
            UnavailableError: with ``video``, PyAV is not installed.
        """
        size = (clip.shape[-2] // self.scale, clip.shape[-1] // self.scale)
        if clip.ndim != 4 or clip.shape[1] != 3 or len(clip) < 1 or min(size) < 1:
            raise InputError(f"a degradation takes a clip (t, 3, H, W) of frames, not {tuple(clip.shape)}")
        check_picture(clip, 3, "a degradation")
        x = clip.float()
        for number, stage in enumerate(self.stages):
            x = self._round(x, stage, chance)
            if number == 0:
                x = self._coded(x, stage, chance)
        if chance.random() < 0.5:
            x = self._last(self._coded(x, self.stages[1], chance), size, chance)
        else:
            x = self._coded(self._last(x, size, chance), self.stages[1], chance)
        return x.mul(255).round_().clamp_(0, 255).div_(255).to(clip.dtype)

    def _round(self, x: Tensor, stage: Stage, chance: np.random.Generator) -> Tensor:
        count = len(x)
        if chance.random() < stage.blur:
            x = filter_each(x, random_kernels(chance, stage.sigma, count))
        x = self._random_size(x, stage, chance)
        grey = bool(chance.random() < stage.grey)
        if chance.random() < 0.5:
            sigmas = walk(chance, stage.gaussian, STEPS["gaussian"], count) / 255
            x = x + white_noise(torch.zeros_like(x[:, :1] if grey else x), sigmas, chance)
        else:
            x = poisson_noise(x, walk(chance, stage.poisson, STEPS["poisson"], count), grey, chance)
        qualities = walk(chance, stage.quality, STEPS["quality"], count)
        return jpeg(x, [round(q) for q in qualities])

    def _random_size(self, x: Tensor, stage: Stage, chance: np.random.Generator) -> Tensor:
        """Every frame at its own drifting size, then all at the first frame's."""
        fate = chance.random()
        if fate >= stage.larger + stage.smaller:
            return x
        span = (1.0, stage.size[1]) if fate < stage.larger else (stage.size[0], 1.0)
        mode = str(chance.choice(MODES))
        factors = walk(chance, span, stage.size_step, len(x))
        sizes = [tuple(max(4, round(n * f)) for n in x.shape[2:]) for f in factors]
        frames = []
        for frame, (height, width) in zip(x.split(1), sizes, strict=True):
            made = _resized(frame, (height, width), mode)
            frames.append(made if (height, width) == sizes[0] else _resized(made, (sizes[0][0], sizes[0][1]), mode))
        return torch.cat(frames)

    def _coded(self, x: Tensor, stage: Stage, chance: np.random.Generator) -> Tensor:
        codec = "mpeg4" if chance.random() < 1 / 3 else CODECS[0]
        bits = chance.uniform(*stage.bits_per_frame)
        return compress_video(x, codec, bits) if self.video else x

    def _last(self, x: Tensor, size: tuple[int, int], chance: np.random.Generator) -> Tensor:
        x = _resized(x, size, str(chance.choice(MODES)))
        if chance.random() < self.final_sinc:
            x = filter_each(x, random_sinc(chance, int(chance.choice(SIZES)), len(x)))
        return x
