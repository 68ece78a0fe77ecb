"""Ways to spoil pictures and clips, for training and testing whatever repairs them.

`noise_jpeg` is the simple blind one: noise and JPEG of unknown strength. `SecondOrder` is the whole life of footage:
blur, resizing, noise, JPEG and video codec, twice, with parameters that drift along a clip. All randomness comes from
the generator that is handed in.
"""

from saccade.data.degrade.blind import noise_jpeg, white_noise
from saccade.data.degrade.chain import FIRST, SECOND, SecondOrder, Stage, poisson_noise, random_kernels, walk
from saccade.data.degrade.jpeg import jpeg, to_bytes
from saccade.data.degrade.kernels import (
    filter_each,
    gaussian_blur,
    gaussian_kernels,
    generalised_kernels,
    plateau_kernels,
    sinc_kernels,
)
from saccade.data.degrade.schedule import mirrored, to_and_fro
from saccade.data.degrade.video import compress_video

__all__ = [
    "FIRST",
    "SECOND",
    "SecondOrder",
    "Stage",
    "compress_video",
    "filter_each",
    "gaussian_blur",
    "gaussian_kernels",
    "generalised_kernels",
    "jpeg",
    "mirrored",
    "noise_jpeg",
    "plateau_kernels",
    "poisson_noise",
    "random_kernels",
    "sinc_kernels",
    "to_and_fro",
    "to_bytes",
    "walk",
    "white_noise",
]
