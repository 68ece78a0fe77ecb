"""The camera: point spread functions from the phase of a lens, blur that changes over the field, and noise.

    phase W(u, v) -- pupil exp(iW) -- |FFT|^2, cut out, sum 1 -- PSF (cells, h, w, C)
    scene, one border of cells around it -- 3x3 cells around each cell -- * its own PSF -- centre cells, tiled -- noise

Everything here is linear light in [0, 1]. A convolution is a product of spectra; pictures are real, so half of each
spectrum (`torch.fft.rfft2`) is all there is to know. Where `compat="official"` is offered, the published code's order
is followed: it centres the PSF in the canvas and turns it with ``fftshift``, which lays the middle of an odd PSF on
pixel (-1, -1), so that its blur also moves the picture by one pixel up and left, and its deconvolution back. The
default lays pixel ``size // 2`` of the PSF (the middle, for odd sides) on (0, 0), and nothing moves.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.errors import InputError, UsageError

__all__ = [
    "add_noise",
    "assemble",
    "blur",
    "check_psf",
    "grid_of",
    "lens_psfs",
    "place_psf",
    "psf2otf",
    "surroundings",
]

Compat = Literal["official"] | None

GAIN = 4e-5  # light of one photon: Poisson(y / GAIN) * GAIN (section 4.1)
READ = 1e-5  # standard deviation of the read noise
DARK = 1e-20  # least light of a blurred picture


def check_psf(psf: Tensor) -> None:
    """Refuse what is no point spread function, or no field of them.

    Args:
        psf: should be real (..., h, w, C).

    Raises:
        InputError: another rank or dtype, an empty one, values that are negative or not finite, or no light at all.
    """
    if psf.ndim < 3 or not psf.is_floating_point():
        raise InputError(f"a PSF is a real array (h, w, colours), not {psf.dtype} {tuple(psf.shape)}")
    if psf.numel() == 0:
        raise InputError(f"this PSF is empty: {tuple(psf.shape)}")
    if psf.is_meta:
        return
    low, high = (float(v) for v in torch.aminmax(psf))
    if not (low > -float("inf") and high < float("inf")):
        raise InputError("this PSF holds values that are not finite (NaN or infinite)")
    if low < 0:
        raise InputError(
            f"this PSF holds negative values (down to {low:.3g}); light only adds up: subtract less offset"
        )
    dark = psf.sum((-3, -2)) <= 0
    if bool(dark.any()):
        where = [int(i) for i in dark.nonzero()[0]]
        cell = f"cell {', '.join(map(str, where[:-1]))}, " if where[:-1] else ""
        raise InputError(f"the PSF of {cell}colour {where[-1]} has the sum 0: no light reaches the sensor")


def place_psf(psf: Tensor, height: int, width: int, compat: Compat = None) -> Tensor:
    """Lay a PSF on a canvas so that convolving with it does not move the picture (or moves it as officially).

    Args:
        psf: (..., h, w, C).
        height, width: of the canvas.
        compat: ``"official"``: centre it (an odd pixel goes right and below; a larger PSF is cut), then ``fftshift``.

    Returns:
        (..., C, height, width).

    Raises:
        InputError: without ``compat``, a canvas smaller than the PSF.
    """
    psf = psf.movedim(-1, -3)  # (..., C, h, w)
    h, w = psf.shape[-2:]
    if compat == "official":
        above, left = _half(height - h), _half(width - w)
        psf = F.pad(psf, (left, width - w - left, above, height - h - above))  # negative padding cuts
        return torch.fft.fftshift(psf, (-2, -1))
    if height < h or width < w:
        raise InputError(f"a picture of {width}x{height} is smaller than its PSF of {w}x{h}")
    return F.pad(psf, (0, width - w, 0, height - h)).roll((-(h // 2), -(w // 2)), (-2, -1))


def _half(difference: int) -> int:
    """Half of the padding, the smaller half first; cutting takes the smaller half first as well."""
    return difference // 2 if difference >= 0 else -(-difference // 2)


def psf2otf(psf: Tensor, height: int, width: int, compat: Compat = None, *, half: bool = True) -> Tensor:
    """The optical transfer function of a PSF on a canvas (section 3.1).

    Args:
        psf: (..., h, w, C), used as it is: its sum is the brightness.
        height, width: of the canvas.
        compat: see `place_psf`.
        half: the half of the spectrum that a real picture needs, width // 2 + 1 columns; else all.

    Returns:
        (..., C, height, width // 2 + 1 or width), complex.

    Raises:
        InputError: see `place_psf`.
    """
    placed = place_psf(psf, height, width, compat)
    return torch.fft.rfft2(placed) if half else torch.fft.fft2(placed)


def blur(picture: Tensor, otf: Tensor) -> Tensor:
    """What a lens makes of a scene: clamp(|ifft2(fft2(x) OTF)|, 1e-20, 1).

    Args:
        picture: (..., H, W).
        otf: (..., H, W // 2 + 1), the half spectrum of `psf2otf`.
    """
    made = torch.fft.irfft2(torch.fft.rfft2(picture) * otf, picture.shape[-2:])
    return made.abs().clamp(DARK, 1)


def surroundings(scene: Tensor, grid: tuple[int, int]) -> Tensor:
    """The 3x3 cells around every cell of a scene that has a border of one cell.

    Args:
        scene: (B, C, (rows + 2) * p, (columns + 2) * q).
        grid: rows and columns.

    Returns:
        (B, rows * columns, C, 3p, 3q), row by row.

    Raises:
        InputError: the scene is no whole number of cells.
    """
    rows, columns = grid
    height, width = scene.shape[-2:]
    if height % (rows + 2) or width % (columns + 2):
        raise InputError(
            f"a scene of {width}x{height} is no whole number of {columns + 2}x{rows + 2} cells (the field of "
            f"{columns}x{rows} and a border of one cell)"
        )
    p, q = height // (rows + 2), width // (columns + 2)
    patches = scene.unfold(2, 3 * p, p).unfold(3, 3 * q, q)  # (B, C, rows, columns, 3p, 3q), a view
    return patches.permute(0, 2, 3, 1, 4, 5).flatten(1, 2)


def assemble(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """The middle cell of every patch, put together.

    (B, rows * columns, ..., 3p, 3q) -> (B, ..., rows * p, columns * q)

    Raises:
        InputError: the number of patches is not that of the grid.
    """
    rows, columns = grid
    if patches.shape[1] != rows * columns:
        raise InputError(f"{patches.shape[1]} patches do not make a field of {columns}x{rows} cells")
    p, q = patches.shape[-2] // 3, patches.shape[-1] // 3
    cells = patches[..., p : 2 * p, q : 2 * q].unflatten(1, grid)  # (B, rows, columns, ..., p, q)
    return cells.movedim((1, 2), (-4, -2)).flatten(-4, -3).flatten(-2, -1)


def grid_of(cells: int) -> tuple[int, int]:
    """Rows and columns of a square field of PSFs.

    Raises:
        InputError: no square number.
    """
    side = round(cells**0.5)
    if cells < 1 or side * side != cells:
        raise InputError(f"{cells} PSFs make no square field; give them as rows x columns x h x w x colours")
    return side, side


def add_noise(light: Tensor, generator: torch.Generator, gain: float = GAIN, read: float = READ) -> Tensor:
    """Photon and read noise of the sensor: clamp(Poisson(y / gain) gain + N(0, read^2), 0, 1).

    Args:
        light: in [0, 1], any shape.
        generator: of the same device.
        gain: light of one photon; 0 for none of this noise.
        read: standard deviation.

    Raises:
        UsageError: a negative gain or deviation.
        InputError: light that is negative or not a number.
    """
    if gain < 0 or read < 0:
        raise UsageError(f"noise has a gain and a deviation of at least 0, not {gain} and {read}")
    if gain:
        if light.device.type == "cpu" and not bool((light >= 0).all()):
            raise InputError(f"light is not negative, and a number; this goes down to {float(light.min()):.3g}")
        light = torch.poisson(light / gain, generator=generator) * gain
    noise = torch.randn(light.shape, generator=generator, device=light.device, dtype=light.dtype)
    return (light + noise * read).clamp(0, 1)


def lens_psfs(
    cells: int = 3,
    size: int = 31,
    *,
    defocus: tuple[float, ...] = (3.0, 1.0, -3.0),
    coma: float = 2.1,
    astigmatism: float = 2.5,
    pupil: int = 64,
    radius: int = 16,
) -> Tensor:
    """PSFs of a simple lens over a square field: a stand-in for a metalens whose PSFs were measured.

    The phase at the pupil's point (u, v), u along the direction of the field, rho^2 = u^2 + v^2 <= 1, in radians:
    W = a (rho^2 - 1/2) + coma f (3 rho^2 - 2) u + astigmatism f^2 (u^2 - v^2), with f = 1 at the corner cells.
    PSF = |FFT(exp(iW))|^2, its middle cut out, sum 1.

    Args:
        cells: on each side of the field.
        size: of a PSF, at most ``pupil``.
        defocus: a, one a colour: a metalens focuses each wavelength elsewhere.
        coma, astigmatism: radians at the corner.
        pupil: samples on each side of the pupil plane.
        radius: samples of the pupil's radius.

    Returns:
        (cells * cells, size, size, colours) float32.

    Raises:
        UsageError: sizes that cannot be.
    """
    if cells < 1 or not 1 <= size <= pupil or not 1 <= radius <= pupil // 2 or not defocus:
        raise UsageError(f"no lens has {cells} cells, PSFs of {size} and a pupil of radius {radius} within {pupil}")
    axis = (torch.arange(pupil, dtype=torch.float64) - pupil // 2) / radius
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    field = torch.linspace(-1, 1, cells, dtype=torch.float64) if cells > 1 else torch.zeros(1, dtype=torch.float64)
    fy, fx = (f[..., None, None, None] for f in torch.meshgrid(field, field, indexing="ij"))  # (cells, cells, 1, 1, 1)
    distance = torch.hypot(fy, fx)
    cosine, sine = (torch.where(distance > 0, f / distance.clamp_min(1e-9), s) for f, s in ((fx, 1.0), (fy, 0.0)))
    f = distance / 2**0.5
    u, v = x * cosine + y * sine, y * cosine - x * sine  # (cells, cells, 1, pupil, pupil)
    square = x * x + y * y
    a = torch.tensor(defocus, dtype=torch.float64)[:, None, None]
    phase = a * (square - 0.5) + coma * f * (3 * square - 2) * u + astigmatism * f * f * (u * u - v * v)
    wave = torch.polar((square <= 1).to(phase).expand_as(phase).contiguous(), phase)
    psf = torch.fft.fftshift(torch.fft.fft2(wave).abs().square(), (-2, -1))
    first = pupil // 2 - size // 2
    psf = psf[..., first : first + size, first : first + size]
    psf = psf / psf.sum((-2, -1), keepdim=True)
    return psf.flatten(0, 1).movedim(1, -1).float().contiguous()
