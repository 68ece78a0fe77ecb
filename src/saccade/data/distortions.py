"""The 26 synthetic distortions of KADIS-700k in five levels each, on 8-bit RGB pictures.

Lin et al., "KADID-10k: A Large-scale Artificially Distorted IQA Database", QoMEX 2019, named 25; Re-IQA (Saha et al.,
CVPR 2023, arXiv:2304.00451, supplement) trains on these 26.

    (H, W, 3) uint8 -- one distortion at level 0..4 -- (H, W, 3) uint8

Names, numbers and amounts stand in `DISTORTIONS`. Chance comes from the generator that is given, nothing else.

``compat="official"`` repeats what the published code does where that differs: results are cut to integers instead of
rounded; `sharpen` takes bytes for numbers in [0, 1], so that L saturates; `color_shift` rolls the flattened plane, so
that rows run into each other; `motion_blur` moves the picture sideways by a pixel.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor

from saccade.data.lab import lab_to_rgb, rgb_to_lab
from saccade.errors import InputError, UsageError

__all__ = ["DISTORTIONS", "LEVELS", "Distortion", "distort", "distorted_stack"]

LEVELS = 5
Compat = Literal["official"] | None
Change = Callable[[np.ndarray, float, np.random.Generator, bool], np.ndarray]
#: samples of Gaussian filters end here, in standard deviations
_TRUNCATE = 4.0


@dataclass(frozen=True)
class Distortion:
    """One kind of damage.

    Attributes:
        number: 1..26, as in the published code.
        amounts: what levels 0..4 mean, in the unit of the kind (pixels, variance, JPEG quality, ...).
        change: (picture, amount, chance, official) -> uint8, or float32 in 0..255 that is still to be rounded.
        random: whether it draws on chance.
        rising: whether a higher level is always a worse picture (not so for shifts of brightness and contrast, which
            cross the identity, nor for saturation).
    """

    number: int
    amounts: tuple[float, ...]
    change: Change
    random: bool = False
    rising: bool = True


def _to_bytes(values: np.ndarray, official: bool) -> np.ndarray:
    """Float 0..255 -> uint8: rounded, or cut off as the published code does."""
    clipped = np.clip(values, 0, 255)
    return clipped.astype(np.uint8) if official else np.rint(clipped).astype(np.uint8)


# -- filters


def _convolve(picture: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """(H, W, C) float convolved with a kernel of odd sides, by FFT; the border is repeated."""
    rows, columns = kernel.shape
    planes = torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1), np.float32))
    y, x = rows // 2, columns // 2
    padded = F.pad(planes[None], (x, x, y, y), mode="replicate")[0]
    size = tuple(n + (-n) % 8 for n in padded.shape[1:])
    spectrum = torch.fft.rfft2(padded, size) * torch.fft.rfft2(torch.from_numpy(kernel.astype(np.float32)), size)
    made: Tensor = torch.fft.irfft2(spectrum, size)[:, 2 * y : 2 * y + picture.shape[0], 2 * x :][
        ..., : picture.shape[1]
    ]
    return made.numpy().transpose(1, 2, 0)


def _mirrored(index: np.ndarray, n: int) -> np.ndarray:
    """Half-sample symmetric continuation: ... b a | a b c | c b ..."""
    index = np.mod(index, 2 * n)
    return np.minimum(index, 2 * n - 1 - index)


def _symmetric(planes: Tensor, y: int, x: int) -> Tensor:
    rows = torch.from_numpy(_mirrored(np.arange(-y, planes.shape[1] + y), planes.shape[1]))
    columns = torch.from_numpy(_mirrored(np.arange(-x, planes.shape[2] + x), planes.shape[2]))
    return planes[:, rows][:, :, columns]


def _gaussian(picture: np.ndarray, sigma: float) -> np.ndarray:
    """(H, W, C) smoothed by a sampled Gaussian of 4 sigma either side."""
    radius = int(_TRUNCATE * sigma + 0.5)
    line = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    line /= line.sum()
    return _convolve(picture, np.outer(line, line))


def disk_kernel(radius: float) -> np.ndarray:
    """The antialiased disk of a lens out of focus: each entry is the area of its pixel inside the circle, sum 1.

    The exact areas, by integrating the half circle over each pixel's columns; MATLAB's ``fspecial('disk')`` has the
    same.
    """
    reach = int(np.ceil(radius - 0.5))
    edges = np.arange(-reach, reach + 2) - 0.5
    return _areas(edges, radius)


def _areas(edges: np.ndarray, radius: float, steps: int = 400) -> np.ndarray:
    """Area of the disk in each cell of a square grid with these edges, over the whole area."""
    n = len(edges) - 1
    x = (edges[:-1, None] + (np.arange(steps) + 0.5) / steps).reshape(-1)  # midpoints of thin columns
    half = np.sqrt(np.maximum(radius**2 - x**2, 0))
    inside = np.clip(half, edges[:-1, None], edges[1:, None]) - np.clip(-half, edges[:-1, None], edges[1:, None])
    area: np.ndarray = inside.reshape(n, n, steps).mean(2)
    return area / area.sum()


def gaussian_blur(im: np.ndarray, radius: float, chance: np.random.Generator, official: bool) -> np.ndarray:
    """Pillow's Gaussian: three box passes."""
    return np.asarray(Image.fromarray(im).filter(ImageFilter.GaussianBlur(radius)))


def lens_blur(im: np.ndarray, radius: float, chance: np.random.Generator, official: bool) -> np.ndarray:
    return _convolve(im, disk_kernel(radius))


def motion_blur(im: np.ndarray, length: float, chance: np.random.Generator, official: bool) -> np.ndarray:
    """A box of an even number of pixels along a row or a column."""
    n = int(length)
    line = np.zeros((1, 2 * n + 1))
    line[0, n - n // 2 : n + n // 2] = 1 / n  # centred half a pixel off: an even box has no middle
    along_rows = bool(chance.integers(2))
    made = _convolve(im, line if along_rows else line.T)
    if official:
        made = np.concatenate([made[1:], made[-1:]]) if along_rows else np.concatenate([made[:, 1:], made[:, -1:]], 1)
    return made


def denoise(im: np.ndarray, variance: float, chance: np.random.Generator, official: bool) -> np.ndarray:
    """White noise, then a Gaussian of radius 3 or a box of radius 2."""
    noisy = Image.fromarray(_to_bytes(white_noise(im, variance, chance, official), official))
    kernel = ImageFilter.GaussianBlur(3) if chance.integers(2) == 0 else ImageFilter.BoxBlur(2)
    return np.asarray(noisy.filter(kernel))


# -- colour


def color_diffusion(im: np.ndarray, amount: float, chance: np.random.Generator, official: bool) -> np.ndarray:
    """Chroma smoothed and multiplied by the amount, L kept."""
    lab = rgb_to_lab(im)
    lab[..., 1:] = _gaussian(lab[..., 1:], 1.5 * amount + 2) * amount
    return 255 * lab_to_rgb(lab)


def _unit_range(x: np.ndarray) -> np.ndarray:
    low, high = x.min(), x.max()
    return (x - low) / (high - low) if high > low else x


def _edges(im: np.ndarray) -> np.ndarray:
    """(H, W) in [0, 1]: where brightness changes, smoothed; a hundredth at both ends is cut."""
    grey = im.astype(np.float32) @ np.array([0.2989, 0.5870, 0.1140], np.float32) / 255
    steep = np.hypot(*np.gradient(grey))
    mask = _unit_range(np.clip(_unit_range(_gaussian(steep[..., None], 4)[..., 0]), 0.1, 1))
    return _unit_range(np.clip(mask, *np.percentile(mask, [1, 99])))


def color_shift(im: np.ndarray, amount: float, chance: np.random.Generator, official: bool) -> np.ndarray:
    """Green moved by the amount in a random direction, blended in where there are edges."""
    way = chance.random(2)
    down, right = (int(v) for v in np.rint(way / np.linalg.norm(way) * amount))
    pad = max(down, right)
    green = np.pad(im[..., 1].astype(np.float32), pad, "symmetric")
    moved = np.roll(green, down + right) if official else np.roll(green, (down, right), (0, 1))
    made, mask = im.astype(np.float32), _edges(im)
    made[..., 1] = moved[pad:-pad, pad:-pad] * mask + made[..., 1] * (1 - mask)
    return made


def hsv_saturation(im: np.ndarray, amount: float, chance: np.random.Generator, official: bool) -> np.ndarray:
    """HSV's S times the amount: every channel's distance below the brightest one, times the amount."""
    value = im.max(2, keepdims=True).astype(np.float32)
    return value - np.float32(amount) * (value - im)


def lab_saturation(im: np.ndarray, amount: float, chance: np.random.Generator, official: bool) -> np.ndarray:
    lab = rgb_to_lab(im)
    lab[..., 1:] *= amount
    return 255 * lab_to_rgb(lab)


# -- compression and noise


def jpeg(im: np.ndarray, quality: float, chance: np.random.Generator, official: bool) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(im).save(file, "JPEG", quality=int(quality))
    return np.asarray(Image.open(file).convert("RGB"))


def _normal(shape: tuple[int, ...], variance: float, chance: np.random.Generator) -> np.ndarray:
    return chance.standard_normal(shape, np.float32) * np.float32(variance**0.5)


def white_noise(im: np.ndarray, variance: float, chance: np.random.Generator, official: bool) -> np.ndarray:
    return im + 255 * _normal(im.shape, variance, chance)


#: studio-swing YCbCr (16..235, 16..240) of RGB in [0, 1], ITU-R BT.601; inverse, for noise given in units of 255
_YCBCR = np.array([[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]])
_FROM_YCBCR = (255 * np.linalg.inv(_YCBCR)).astype(np.float32)


def ycbcr_noise(im: np.ndarray, variance: float, chance: np.random.Generator, official: bool) -> np.ndarray:
    return im + 255 * (_normal(im.shape, variance, chance) @ _FROM_YCBCR.T)


def impulse_noise(im: np.ndarray, share: float, chance: np.random.Generator, official: bool) -> np.ndarray:
    """Salt and pepper: whole pixels black or white."""
    made, drawn = im.copy(), chance.random(im.shape[:2], np.float32)
    made[drawn < share / 2] = 0
    made[drawn > 1 - share / 2] = 255
    return made


def speckle_noise(im: np.ndarray, variance: float, chance: np.random.Generator, official: bool) -> np.ndarray:
    return im * (1 + _normal(im.shape, variance, chance))


# -- brightness and contrast: curves on bytes, so tables of 256 entries


def _curve(points: tuple[tuple[float, float], ...], official: bool) -> np.ndarray:
    """Table of the polynomial through the points, cut to [0, 1], in 0..255."""
    x, y = np.array(points).T
    table = np.clip(np.polyval(np.polyfit(x, y, min(len(x) - 1, 3)), np.arange(256) / 255), 0, 1) * 255
    return table.astype(np.float32)


def brighten(im: np.ndarray, amount: float, chance: np.random.Generator, official: bool) -> np.ndarray:
    """Two thirds of the curve on RGB and one third of the curve on L."""
    points = ((0.0, 0.0), (0.5, 0.5 + 0.5 * amount), (1.0, 1.0))
    lab = rgb_to_lab(im)
    x, y = np.array(points).T
    lab[..., 0] = 100 * np.clip(np.polyval(np.polyfit(x, y, 2).astype(np.float32), lab[..., 0] / 100), 0, 1)
    return (2 * _curve(points, official)[im] + 255 * lab_to_rgb(lab)) / 3


def darken(im: np.ndarray, amount: float, chance: np.random.Generator, official: bool) -> np.ndarray:
    return _curve(((0.0, 0.0), (0.5, 0.5 - amount / 2), (1.0, 1.0)), official)[im]


def mean_shift(im: np.ndarray, amount: float, chance: np.random.Generator, official: bool) -> np.ndarray:
    return im + np.float32(255 * amount)


def contrast(im: np.ndarray, amount: float, chance: np.random.Generator, official: bool) -> np.ndarray:
    """A cubic; its five points are odd about the middle, so it goes through all of them."""
    low, high = 0.25 - amount / 4, 0.75 + amount / 4
    return _curve(((0.0, 0.0), (0.3, low), (0.5, 0.5), (0.7, high), (1.0, 1.0)), official)[im]


# -- resolution


def _down_up(im: np.ndarray, width: int, height: int, method: Image.Resampling) -> np.ndarray:
    picture = Image.fromarray(im)
    return np.asarray(picture.resize((max(width, 1), max(height, 1)), method).resize(picture.size, method))


def _resized(method: Image.Resampling) -> Change:
    def change(im: np.ndarray, amount: float, chance: np.random.Generator, official: bool) -> np.ndarray:
        return _down_up(im, int(im.shape[1] / amount), int(im.shape[0] / amount), method)

    return change


def pixelate(im: np.ndarray, amount: float, chance: np.random.Generator, official: bool) -> np.ndarray:
    share = 0.95 - amount**0.6
    return _down_up(im, int(share * im.shape[1]), int(share * im.shape[0]), Image.Resampling.NEAREST)


def sharpen(im: np.ndarray, amount: float, chance: np.random.Generator, official: bool) -> np.ndarray:
    """L minus the amount times its Laplacian (central differences, twice)."""
    lab = rgb_to_lab(im.astype(np.float32) if official else im)
    light = lab[..., 0]
    laplacian = np.gradient(np.gradient(light, axis=0), axis=0) + np.gradient(np.gradient(light, axis=1), axis=1)
    lab[..., 0] = np.clip(light - amount * laplacian, 0, 100)
    return 255 * lab_to_rgb(lab)


# -- places


def color_blocks(im: np.ndarray, count: float, chance: np.random.Generator, official: bool) -> np.ndarray:
    """Blocks of 32 pixels of random colours at random places."""
    made = im.copy()
    side = min(32, *im.shape[:2])
    for _ in range(int(count)):
        top, left = (int(chance.random() * (n - side)) for n in im.shape[:2])
        made[top : top + side, left : left + side] = chance.integers(0, 256, 3)
    return made


def moved_patches(im: np.ndarray, count: float, chance: np.random.Generator, official: bool) -> np.ndarray:
    """Patches of 16 pixels copied up to 8 pixels away."""
    made, side, reach = im.copy(), 16, 16
    if min(im.shape[:2]) < side:
        return made
    margin = [reach if n > side + 2 * reach else 0 for n in im.shape[:2]]  # small pictures have no room for margins
    for _ in range(int(count)):
        start = [int(chance.random() * (n - side - 2 * m)) + m for n, m in zip(im.shape[:2], margin, strict=True)]
        moved = [int((chance.random() - 0.5) * reach + s) for s in start]
        top, left = (max(0, min(m, n - side)) for m, n in zip(moved, im.shape[:2], strict=True))
        patch = made[start[0] : start[0] + side, start[1] : start[1] + side].copy()
        made[top : top + side, left : left + side] = patch
    return made


_POLE = 3**0.5 - 2  # of the filter that turns samples into coefficients of cubic B-splines
_SPLINE_LINE = 3**0.5 * _POLE ** np.abs(np.arange(-12, 13))


def _spline_weights(places: tuple[Tensor, ...]) -> tuple[list[Tensor], ...]:
    """For each axis' t in [0, 1): the cubic B-spline at distances 1+t, t, 1-t and 2-t, as columns."""
    found = []
    for t in places:
        t = t[:, None]
        u = 1 - t
        found.append([u**3 / 6, (4 - 6 * t**2 + 3 * t**3) / 6, (4 - 6 * u**2 + 3 * u**3) / 6, t**3 / 6])
    return tuple(found)


def _warp(im: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """(H, W, C) float read at its own places minus ``shift`` (H, W, 2; rows, columns), by cubic B-splines."""
    h, w, channels = im.shape
    reach = int(np.ceil(np.abs(shift).max())) + 2
    tail = len(_SPLINE_LINE) // 2
    planes = torch.from_numpy(np.ascontiguousarray(im.transpose(2, 0, 1)))
    wide = _symmetric(planes, reach + tail, reach + tail).numpy().transpose(1, 2, 0)
    spline = np.outer(_SPLINE_LINE, _SPLINE_LINE)
    coefficients = _convolve(wide, spline)[tail:-tail, tail:-tail]
    flat = torch.from_numpy(np.ascontiguousarray(coefficients)).view(-1, channels)
    place = np.stack(np.meshgrid(np.arange(h), np.arange(w), indexing="ij"), -1).astype(np.float32) - shift + reach
    whole = np.floor(place)
    stride = w + 2 * reach
    base = torch.from_numpy((whole @ np.array([stride, 1], np.float64)).astype(np.int64).reshape(-1))
    down, across = _spline_weights(torch.from_numpy(place - whole).view(-1, 2).unbind(1))
    made = torch.zeros(h * w, channels)
    for i in range(4):
        line = torch.zeros_like(made)
        for j in range(4):
            line.addcmul_(flat.index_select(0, base + ((i - 1) * stride + j - 1)), across[j])
        made.addcmul_(line, down[i])
    return made.numpy().reshape(h, w, channels)


def jitter(im: np.ndarray, amount: float, chance: np.random.Generator, official: bool) -> np.ndarray:
    """Five warps in a row, each by independent normal displacements of every pixel."""
    made = im.astype(np.float32)
    for _ in range(5):
        shift = chance.standard_normal((*im.shape[:2], 2), np.float32) * np.float32(amount)
        made = np.clip(_warp(made, shift), 0, 255)
    return made


_R = Image.Resampling
#: name: what it is and does; in the order of the published numbers
DISTORTIONS: dict[str, Distortion] = {
    "gaussian_blur": Distortion(1, (0.1, 0.5, 1, 2, 5), gaussian_blur),
    "lens_blur": Distortion(2, (1, 2, 4, 6, 8), lens_blur),
    "color_diffusion": Distortion(3, (1, 3, 6, 8, 12), color_diffusion),
    "color_shift": Distortion(4, (1, 3, 6, 8, 12), color_shift, random=True),
    "hsv_saturation": Distortion(5, (0.4, 0.2, 0.1, 0, -0.4), hsv_saturation, rising=False),
    "lab_saturation": Distortion(6, (1, 2, 3, 6, 9), lab_saturation, rising=False),
    "jpeg": Distortion(7, (70, 43, 36, 24, 7), jpeg),
    "white_noise": Distortion(8, (0.001, 0.002, 0.003, 0.005, 0.01), white_noise, random=True),
    "ycbcr_noise": Distortion(9, (0.0001, 0.0005, 0.001, 0.002, 0.003), ycbcr_noise, random=True),
    "impulse_noise": Distortion(10, (0.001, 0.005, 0.01, 0.02, 0.03), impulse_noise, random=True),
    "speckle_noise": Distortion(11, (0.001, 0.005, 0.01, 0.02, 0.05), speckle_noise, random=True),
    "denoise": Distortion(12, (0.001, 0.002, 0.003, 0.005, 0.01), denoise, random=True),
    "brighten": Distortion(13, (0.1, 0.2, 0.4, 0.7, 1.1), brighten),
    "darken": Distortion(14, (0.05, 0.1, 0.2, 0.4, 0.8), darken),
    "mean_shift": Distortion(15, (0.15, 0.08, 0, -0.08, -0.15), mean_shift, rising=False),
    "resize_bicubic": Distortion(16, (2, 3, 4, 8, 16), _resized(_R.BICUBIC)),
    "sharpen": Distortion(17, (1, 2, 3, 6, 12), sharpen),
    "contrast": Distortion(18, (0.3, 0.15, 0, -0.4, -0.6), contrast, rising=False),
    "color_blocks": Distortion(19, (2, 4, 6, 8, 10), color_blocks, random=True),
    "pixelate": Distortion(20, (0.01, 0.05, 0.1, 0.2, 0.5), pixelate),
    "moved_patches": Distortion(21, (20, 40, 60, 80, 100), moved_patches, random=True),
    "jitter": Distortion(22, (0.05, 0.1, 0.2, 0.5, 1), jitter, random=True),
    "resize_bilinear": Distortion(23, (2, 3, 4, 8, 16), _resized(_R.BILINEAR)),
    "resize_nearest": Distortion(24, (2, 3, 4, 5, 6), _resized(_R.NEAREST)),
    "resize_lanczos": Distortion(25, (2, 3, 4, 8, 16), _resized(_R.LANCZOS)),
    "motion_blur": Distortion(26, (12, 16, 20, 24, 28), motion_blur, random=True),
}


def distort(
    picture: np.ndarray,
    kind: str,
    level: int,
    chance: np.random.Generator | int = 0,
    *,
    compat: Compat = None,
) -> np.ndarray:
    """One distorted copy of a picture.

    Args:
        picture: (H, W, 3) uint8.
        kind: a name in `DISTORTIONS`.
        level: 0 (weakest) to 4.
        chance: generator, or a seed for one.
        compat: ``"official"`` repeats the published code's quirks (see the module).

    Returns:
        (H, W, 3) uint8, a new array.

    Raises:
        UsageError: no such kind, level or compat.
        InputError: no 8-bit RGB picture.
    """
    if kind not in DISTORTIONS:
        raise UsageError(f"no distortion named {kind!r}; there are {', '.join(DISTORTIONS)}")
    if not 0 <= level < LEVELS:
        raise UsageError(f"levels of distortions are 0 to {LEVELS - 1}, not {level}")
    if compat not in (None, "official"):
        raise UsageError(f"compat is 'official' or None, not {compat!r}")
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or picture.size == 0:
        raise InputError(f"distortions take (H, W, 3) uint8 pictures, not {picture.dtype} {picture.shape}")
    generator = chance if isinstance(chance, np.random.Generator) else np.random.default_rng(chance)
    what, official = DISTORTIONS[kind], compat == "official"
    made = what.change(picture, what.amounts[level], generator, official)
    return np.array(made) if made.dtype == np.uint8 else _to_bytes(made, official)


def distorted_stack(
    picture: np.ndarray, count: int, chance: np.random.Generator, *, compat: Compat = None
) -> tuple[np.ndarray, list[tuple[str, int]]]:
    """A picture and ``count`` distorted copies, kinds drawn without replacement, levels at random.

    Args:
        picture: (H, W, 3) uint8.
        count: 0 to 26.

    Returns:
        (1 + count, H, W, 3) uint8, the picture first, and the (kind, level) of each copy.

    Raises:
        UsageError: ``count`` beyond the number of kinds.
    """
    if not 0 <= count <= len(DISTORTIONS):
        raise UsageError(f"there are {len(DISTORTIONS)} distortions to draw from, not {count}")
    kinds = chance.permutation(list(DISTORTIONS))[:count]
    drawn = [(str(kind), int(chance.integers(LEVELS))) for kind in kinds]
    copies = [distort(picture, kind, level, chance, compat=compat) for kind, level in drawn]
    return np.stack([picture, *copies]), drawn
