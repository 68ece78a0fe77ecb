"""Deep optimal transport in pixels: exact and optimal on Gaussians, natural spectra on pictures, from 16 of each kind.

The restorer needs no long training: Wiener shrinkage of overlapping 8 x 8 DCT blocks after a hard threshold (the
transform-domain half of BM3D), then the filters of least squared error, in closed form, over its output and its input.
As every restorer of least squared error it smooths what it is not sure of.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.progress import track
from saccade.quality import quantise8
from saccade.reproduce import Claim, Data, Figures
from saccade.reproduce.examples import packed, unpacked
from saccade.restoration.dot import DeepOptimalTransport
from saccade.restoration.dot.gaussian import transport_operators, w2

CLAIM = Claim(
    system="dot",
    says="The map is exact (output covariance within 2 %) and optimal (cost within 1 % of W2^2, another map's higher); "
    "on denoised pictures, with 16 of each kind, the top octave of the spectrum comes from over 40 % too low to within "
    "10 % of natural pictures, W2 of patches falls by over 90 %, PSNR by 0.5 to 3 dB, and PSNR over alpha is highest "
    "at alpha in [0.8, 1.2]; more than 16 pictures change W2 on held-out pictures by less than 5 %.",
    source="sections 4 and 5, figures 2 and 6; Freirich et al. 2021, eqs. 17 and 19",
    baseline="the restorer's own output; the triangular map between the same covariances",
)

SIGMA = 25 / 255
TAPS = 7
FITTED = 12
CROP = 256
#: taps of the window that averages overlapping patches: all five (the default of the method) average away a part of the
#: variance that the map has put in; both are measured
FOLD, WHOLE_FOLD = 3, 5
COUNTS = (8, 16, 64)
SAMPLES = 200_000
ALPHAS = tuple(round(-1 + 0.2 * i, 1) for i in range(16))


class Shrinkage(nn.Module):
    """Denoiser: overlapping 8 x 8 DCT blocks, hard threshold, empirical Wiener shrinkage with that as the pilot.

    Shape: (B, 3, H, W) -> the same.
    """

    def __init__(self, sigma: float = SIGMA) -> None:
        super().__init__()
        self.sigma = sigma
        n = torch.arange(8, dtype=torch.float64)
        line = torch.cos(math.pi * (n + 0.5) * n[:, None] / 8) / 2
        line[0] /= math.sqrt(2)
        self.atoms = torch.einsum("ab,cd->acbd", line, line).reshape(64, 1, 8, 8).float()

    def forward(self, pictures: Tensor) -> Tensor:
        size = pictures.shape[2:]
        noisy = self._taken(pictures)
        keep = (noisy.abs() > 2.7 * self.sigma).float()
        keep[:, 0] = 1
        pilot = self._taken(self._together(noisy * keep, size).view(pictures.shape)).square_()
        gain = pilot / (pilot + self.sigma**2)
        gain[:, 0] = 1
        return self._together(noisy * gain, size).view(pictures.shape)

    def _taken(self, pictures: Tensor) -> Tensor:
        """Blocks at every second place: (B, 3, H, W) -> (3B, 64, h, w)."""
        planes = F.pad(pictures, (8, 8, 8, 8), mode="reflect").flatten(0, 1)[:, None]
        return F.conv2d(planes, self.atoms, stride=2)

    def _together(self, coefficients: Tensor, size: torch.Size) -> Tensor:
        """The blocks' mean; every pixel lies in sixteen."""
        made = F.conv_transpose2d(coefficients, self.atoms, stride=2) / 16
        return made[:, :, 8 : 8 + size[0], 8 : 8 + size[1]]


class LeastSquares(nn.Module):
    """A restorer and its input, mixed by the 7 x 7 filters of least squared error, which `fit` finds in closed form.

    Shape: (B, 3, H, W) -> the same.
    """

    def __init__(self, restorer: nn.Module) -> None:
        super().__init__()
        self.restorer = restorer
        self.filters = torch.zeros(3, 6, TAPS, TAPS)

    def _given(self, pictures: Tensor) -> Tensor:
        both = torch.cat((self.restorer(pictures), pictures), 1)
        return F.pad(both, (TAPS // 2,) * 4, mode="reflect")

    def fit(self, noisy: list[Tensor], clean: list[Tensor]) -> LeastSquares:
        """Solve the normal equations over all pixels of some pictures."""
        square = right = torch.zeros((), dtype=torch.float64)
        for given, wanted in zip(noisy, clean, strict=True):
            x = F.unfold(self._given(given), TAPS)[0, :, ::2].double()  # (n, pixels), every second one
            square = square + x @ x.mT
            right = right + wanted.flatten(2)[0, :, ::2].double() @ x.mT
        ridge = 1e-6 * square.trace() / len(square) * torch.eye(len(square), dtype=square.dtype)
        self.filters = torch.linalg.solve(square + ridge, right.mT).mT.reshape(self.filters.shape).float()
        return self

    def forward(self, pictures: Tensor) -> Tensor:
        return F.conv2d(self._given(pictures), self.filters)


def restorer_of(clean: list[Tensor], seed: int) -> nn.Module:
    """The denoiser, its last filters taken from a few training pictures."""
    chance = np.random.default_rng(seed)
    with torch.inference_mode():
        return LeastSquares(Shrinkage()).fit([noised(x, chance) for x in clean], clean).eval()


def noised(clean: Tensor, chance: np.random.Generator) -> Tensor:
    """White Gaussian noise of sigma 25 of 255, not clipped."""
    return clean + SIGMA * torch.from_numpy(chance.standard_normal(clean.shape, np.float32))


def run(data: Data, seed: int) -> Figures:
    """Minutes on two cores."""
    return gaussians(seed) | pictures(data, seed)


# -- Gaussians


def gaussians(seed: int, size: int = 12) -> Figures:
    """The map between two random Gaussians on 200,000 samples, float64."""
    chance = torch.Generator().manual_seed(seed)

    def covariance() -> Tensor:
        root = torch.randn(size, 2 * size, generator=chance, dtype=torch.float64)
        return root @ root.mT / (2 * size)

    source, target = covariance(), covariance()
    shift = torch.randn(size, generator=chance, dtype=torch.float64)
    x = torch.randn(SAMPLES, size, generator=chance, dtype=torch.float64) @ torch.linalg.cholesky(source).mT
    maps = {
        "transport": transport_operators(source, target, 1e-7)[0],
        "triangular": torch.linalg.cholesky(target) @ torch.linalg.cholesky(source).inverse(),
    }
    figures: Figures = {}
    for name, operator in maps.items():
        y = x @ operator.mT + shift
        figures[f"covariance_error_{name}"] = float((torch.cov(y.mT) - target).norm() / target.norm())
        figures[f"squared_displacement_{name}"] = float((y - x).square().sum(1).mean())
    operator = maps["transport"]
    figures["w2_squared"] = float(w2(torch.zeros_like(shift), shift, source, target, 1e-12))
    figures["asymmetry"] = float((operator - operator.mT).abs().max())
    figures["smallest_eigenvalue"] = float(torch.linalg.eigvalsh((operator + operator.mT) / 2)[0])
    same = transport_operators(source, source, 1e-12)[0]
    figures["largest_difference_from_identity"] = float((same - torch.eye(size, dtype=same.dtype)).abs().max())
    return figures


# -- pictures


def crop(path: Path) -> Tensor:
    """The middle of a picture, (1, 3, 256, 256) at most."""
    from saccade.data.pairs import read_resized

    picture = read_resized(path).float() / 255
    h, w = picture.shape[1:]
    top, left = max(0, h - CROP) // 2, max(0, w - CROP) // 2
    part = picture[None, :, top : top + CROP, left : left + CROP]
    return part[..., : part.shape[2] // 2 * 2, : part.shape[3] // 2 * 2]


def denoised(restorer: nn.Module, clean: list[Tensor], seed: int, what: str) -> list[Tensor]:
    """Noise on, and off again as well as it goes, rounded to 8 bit as a file would hold it."""
    chance = np.random.default_rng(seed)
    with torch.inference_mode():
        return [quantise8(restorer(noised(x, chance))) for x in track(clean, what)]


def pictures(data: Data, seed: int) -> Figures:
    """Statistics of 8, 16 and 64 training pictures; everything else on test pictures."""
    files = data.training()
    order = np.random.default_rng(seed).permutation(np.array(files))
    natural = [crop(path) for path in order[: max(COUNTS)]]
    tests = [crop(path) for group in data.tests("kodak").values() for path in group]
    restorer = restorer_of(natural[-FITTED:], seed + 2)
    restored = denoised(restorer, natural, seed, "denoising training pictures")
    given = denoised(restorer, tests, seed + 1, "denoising test pictures")
    figures: Figures = {"training_pictures": len(files), "test_pictures": len(tests), "sigma": SIGMA * 255}
    figures["w2_before"] = distance(given, tests)
    figures["w2_after_by_pictures"] = {}
    for count in COUNTS:
        sharp = transported(statistics(restored[:count], natural[:count]), given)
        figures["w2_after_by_pictures"][f"{count}"] = distance(sharp, tests)
        if count == COUNTS[1]:
            figures |= measured(given, sharp, tests)
    return figures | others(restored[: COUNTS[1]], natural[: COUNTS[1]], given, tests)


def others(restored: list[Tensor], natural: list[Tensor], given: list[Tensor], tests: list[Tensor]) -> Figures:
    """Whole patches averaged; the map of the test pictures' own statistics; the published code's map."""
    models = {
        "whole_patches": statistics(restored, natural, WHOLE_FOLD),
        "own_statistics": statistics(given, tests),
        "official": statistics(restored, natural, WHOLE_FOLD, "official"),
    }
    figures: Figures = {}
    for name, model in models.items():
        sharp = transported(model, given)
        figures[f"w2_after_{name}"] = distance(sharp, tests)
        figures[f"top_octave_of_transported_{name}"] = top_octave(sharp) / top_octave(tests)
        figures[f"psnr_db_drop_{name}"] = mean_psnr(given, tests) - mean_psnr(sharp, tests)
    return figures


def transported(model: DeepOptimalTransport, given: list[Tensor]) -> list[Tensor]:
    """Restored pictures with the patches of natural ones, in [0, 1]."""
    return [model.transport(x).clamp(0, 1) for x in given]


def statistics(
    restored: list[Tensor], natural: list[Tensor], fold: int = FOLD, compat: str = "right"
) -> DeepOptimalTransport:
    """The map from some restored pictures to some natural ones, patches of 5 x 5 pixels."""
    model = DeepOptimalTransport(5, fold_size=fold, compat=compat)
    for x in restored:
        model.update_source(x)
    for x in natural:
        model.update_target(x)
    model.compute()
    return model


def distance(made: list[Tensor], natural: list[Tensor]) -> float:
    """Squared W2 of the patches of two groups of pictures."""
    return statistics(made, natural).distance()


def measured(given: list[Tensor], sharp: list[Tensor], tests: list[Tensor]) -> Figures:
    """PSNR over alpha, and the spectrum's top octave before and after, beside that of the natural pictures."""
    curve = {
        f"{a:g}": mean_psnr([torch.lerp(s, x, a).clamp(0, 1) for s, x in zip(sharp, given, strict=True)], tests)
        for a in ALPHAS
    }
    groups = {"natural": tests, "restored": given, "transported": sharp}
    octaves = {name: top_octave(xs) for name, xs in groups.items()}
    middle = (x[0][0, :, 64:192, 64:192] for x in (given, sharp, tests))
    return {
        "psnr_db_by_alpha": curve,
        "best_alpha": float(max(curve, key=lambda a: curve[a])),
        "psnr_db_drop": mean_psnr(given, tests) - curve["0"],
        "top_octave_of_restored": octaves["restored"] / octaves["natural"],
        "top_octave_of_transported": octaves["transported"] / octaves["natural"],
        "spectra": {name: spectrum(xs).tolist() for name, xs in groups.items()},
        "example": packed(torch.cat([(x * 255).round().byte() for x in middle], 2).permute(1, 2, 0).numpy()),
        "psnr_db_restored": mean_psnr(given, tests),
    }


def mean_psnr(made: list[Tensor], wanted: list[Tensor]) -> float:
    """Mean over pictures, dB."""
    return float(
        np.mean([float(-10 * torch.log10((a - b).square().mean())) for a, b in zip(made, wanted, strict=True)])
    )


def spectrum(pictures: list[Tensor]) -> Tensor:
    """Radially averaged power of luma, Hann-windowed: (64,) rings from 0 to 1/2 cycle a pixel, mean over pictures."""
    return torch.stack([_spectrum(x) for x in pictures]).mean(0)


def _spectrum(picture: Tensor) -> Tensor:
    grey = picture[0].double().mean(0)
    grey = grey - grey.mean()
    window = torch.hann_window(grey.shape[0], dtype=grey.dtype)[:, None] * torch.hann_window(
        grey.shape[1], dtype=grey.dtype
    )
    power = torch.fft.fft2(grey * window).abs().square() / window.square().sum()
    ring = _rings(*grey.shape)
    inside = ring < 64
    total = torch.zeros(64, dtype=grey.dtype).index_add_(0, ring[inside], power[inside])
    return total / torch.bincount(ring[inside], minlength=64)


@functools.cache
def _rings(height: int, width: int) -> Tensor:
    radius = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)[None])
    return (radius * 128).long()


def top_octave(pictures: list[Tensor]) -> float:
    """Mean power between 1/4 and 1/2 cycle a pixel."""
    return float(spectrum(pictures)[32:].mean())


def met(f: Figures) -> bool:
    """Every threshold of the claim."""
    after = list(f["w2_after_by_pictures"].values())
    return bool(
        f["covariance_error_transport"] < 0.02
        and abs(f["squared_displacement_transport"] / f["w2_squared"] - 1) < 0.01
        and f["squared_displacement_triangular"] > f["squared_displacement_transport"]
        and f["asymmetry"] < 1e-8
        and f["smallest_eigenvalue"] > 0
        and f["largest_difference_from_identity"] < 1e-6
        and f["top_octave_of_restored"] < 0.6
        and abs(f["top_octave_of_transported"] - 1) < 0.1
        and after[1] < 0.1 * f["w2_before"]
        and 0.5 <= f["psnr_db_drop"] <= 3
        and 0.8 <= f["best_alpha"] <= 1.2
        and abs(after[2] / after[1] - 1) < 0.05
    )


def plot(figures: Figures, path: Path) -> None:
    """Spectra, PSNR over alpha, and a part of a picture."""
    import matplotlib.pyplot as plt

    picture, (left, middle, right) = plt.subplots(
        1, 3, figsize=(13, 3.4), layout="constrained", width_ratios=(1, 1, 1.6)
    )
    frequencies = [(i + 0.5) / 128 for i in range(64)]
    for name, values in figures["spectra"].items():
        left.loglog(frequencies[1:], values[1:], label=name)
    left.set_xlabel("cycles a pixel")
    left.set_ylabel("power")
    left.legend()
    alphas = [float(a) for a in figures["psnr_db_by_alpha"]]
    middle.plot(alphas, list(figures["psnr_db_by_alpha"].values()), ".-")
    middle.set_xlabel("alpha (0 transported, 1 the restorer's own)")
    middle.set_ylabel("PSNR (dB)")
    right.imshow(unpacked(figures["example"]))
    right.set_title("restored, transported, original")
    right.axis("off")
    picture.savefig(path, dpi=120)
    plt.close(picture)
