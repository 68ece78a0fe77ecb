"""How good weights are, by the usual measure of their task: one function for every model that ships.

    super-resolution    PSNR and SSIM of luma after MATLAB bicubic reduction (`saccade.quality`)
    restoration         PSNR in dB of RGB, before and after, for each kind of damage that the model removes
    autoencoder         PSNR and MS-SSIM of what comes back
    image rescaling     PSNR of luma after shrinking by several factors and enlarging again
    image quality       rank correlation of the scores with the level of known damage

What is put on pictures depends on the picture's place in the folder alone: the same figures every time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saccade import registry
from saccade.data.crops import held_out
from saccade.data.degrade import jpeg, to_bytes, white_noise
from saccade.data.pairs import photographs
from saccade.errors import UsageError

__all__ = ["evaluate"]

Degrade = Callable[[Tensor, np.random.Generator], Tensor]
SIGMAS = (15, 25, 50)
QUALITIES = (10, 20, 40)
KINDS = ("rain", "heavy_rain", "snow", "drops")
FACTORS = ((1.5, 1.5), (2.0, 2.0), (2.7, 2.7), (4.0, 4.0), (1.6, 2.9))


def evaluate(model: Any, folder: str | Path) -> dict[str, float]:
    """Figures of a model on a folder of pictures, by its task.

    Raises:
        UsageError: a task that has no such measure.
        InputError: no or unreadable pictures.
    """
    entry = registry.entry(str(model.saccade_name))
    if entry.task == "super-resolution":
        return super_resolution(model, Path(folder))
    files = photographs(folder)
    if entry.task == "restoration" and "removes" in entry.facts and "needs" not in entry.facts:
        return restoration(model, files, entry.facts["removes"])
    if entry.task == "autoencoder":
        return autoencoder(model, files)
    if entry.task == "image rescaling":
        return rescaling(model, files)
    if entry.task == "image quality" and model.scores:
        from saccade.quality.reiqa.synthetic import score_agreement

        return score_agreement(model, files)
    raise UsageError(f"{entry.name} is for {entry.task}: saccade evaluate has no measure for that")


def super_resolution(model: Any, folder: Path) -> dict[str, float]:
    """Mean PSNR and SSIM on luma over a folder of pictures, and those of bicubic enlargement."""
    from saccade.quality import benchmark_super_resolution, luma_enlarger

    enlarge = luma_enlarger(model) if getattr(model, "colour", "rgb") == "luma" else model
    return dict(benchmark_super_resolution(enlarge, folder, int(model.scale)))


def _noise(sigma: float, clean: Tensor, chance: np.random.Generator) -> Tensor:
    noisy = white_noise(clean, np.full(len(clean), sigma / 255), chance)
    return to_bytes(noisy).float().div(255)


def _jpeg(quality: int, clean: Tensor, chance: np.random.Generator) -> Tensor:
    return jpeg(clean, quality)


def _cases(removes: Sequence[str]) -> dict[str, tuple[Degrade, int | None]]:
    """Kind of damage: what puts it on, and the side of the centre crop that is measured (None: whole pictures)."""
    made: dict[str, tuple[Degrade, int | None]] = {}
    if "noise" in removes:
        made |= {f"noise_{sigma}": (partial(_noise, sigma), None) for sigma in SIGMAS}
    if "jpeg" in removes:
        made |= {f"jpeg_{quality}": (partial(_jpeg, quality), None) for quality in QUALITIES}
    if "weather" in removes:
        from saccade.data import weather

        made |= {kind: (getattr(weather, kind), 256) for kind in KINDS}
    return made


@torch.inference_mode()
def restoration(model: Any, files: Sequence[Path], removes: Sequence[str]) -> dict[str, float]:
    """``<damage>_before`` and ``<damage>_psnr``: mean PSNR of RGB in dB over pictures, 8-bit before and after.

    Raises:
        UsageError: nothing is known that the model removes.
    """
    cases = _cases(removes)
    if not cases:
        raise UsageError(f"{model.saccade_name} removes {', '.join(removes)}: there is no measure for that")
    model.eval()
    found: dict[str, float] = {}
    for name, (degrade, side) in cases.items():
        pairs = held_out(files, degrade, side=side)
        found[f"{name}_before"] = _mean_psnr([(given.clamp(0, 1), wanted) for given, wanted in pairs])
        found[f"{name}_psnr"] = _mean_psnr([(_rounded(model(given)), wanted) for given, wanted in pairs])
    return found


def _rounded(x: Tensor) -> Tensor:
    return to_bytes(x).float().div(255)


def _mean_psnr(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    each = [float(-10 * torch.log10((a - b).square().mean().clamp_min(1e-10))) for a, b in pairs]
    return float(np.mean(each))


@torch.inference_mode()
def autoencoder(model: Any, files: Sequence[Path]) -> dict[str, float]:
    """``psnr`` in dB of RGB and ``ms_ssim`` of whole pictures after encoding and decoding."""
    from saccade.quality import ms_ssim

    model.eval()
    pairs = [(_rounded(model(wanted)), wanted) for _, wanted in held_out(files, side=None)]
    return {"psnr": _mean_psnr(pairs), "ms_ssim": float(np.mean([float(ms_ssim(a, b)) for a, b in pairs]))}


@torch.inference_mode()
def rescaling(model: Any, files: Sequence[Path]) -> dict[str, float]:
    """PSNR of luma in dB after shrinking, rounding to 8 bit and enlarging, 4 px shaved, and how far the small is off.

    ``x<factor>_psnr``, ``x<factor>_bicubic`` (bicubic down and up) and ``x<factor>_small`` (small picture against
    bicubic); factors of rows and columns.
    """
    from saccade.ops.resize import resize
    from saccade.quality import psnr

    model.eval()
    pictures = [wanted for _, wanted in held_out(files, side=None)]
    found: dict[str, float] = {}
    for rows, columns in FACTORS:
        name = f"x{rows:g}" if rows == columns else f"x{rows:g}x{columns:g}"
        sums: list[tuple[float, float, float]] = []
        for picture in pictures:
            height, width = picture.shape[-2:]
            size = (round(height / rows), round(width / columns))
            plain = _rounded(resize(picture, size=size))
            small = _rounded(model.shrink(picture, size))
            back = _rounded(model.enlarge(small, (height, width)))
            bicubic = _rounded(resize(plain, size=(height, width)))
            compared = ((back, picture, 4), (bicubic, picture, 4), (small, plain, 0))
            one, two, three = (float(psnr(a, b, border=shaved, luma=True)) for a, b, shaved in compared)
            sums.append((one, two, three))
        for what, value in zip(("psnr", "bicubic", "small"), np.mean(sums, 0), strict=True):
            found[f"{name}_{what}"] = float(value)
    return found
