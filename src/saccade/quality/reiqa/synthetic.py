"""Ratings without raters: pictures spoilt by known amounts, and a model's regressors fitted to them.

    photograph -- piece of it -- untouched, or one distortion at level 0..4 -- rated 100, 80, 60, 40, 20, 0

The makers of KADID chose the five levels of every kind so that they look evenly spaced from hardly visible to very
annoying, and alike between kinds; so levels can stand in for ratings. Kinds whose levels cross the identity (shifts of
brightness, contrast, saturation) are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from saccade.data.distortions import DISTORTIONS, LEVELS, distort
from saccade.progress import track
from saccade.quality.reiqa.encoder import Encoder
from saccade.quality.reiqa.moco import Recipe, pretrain
from saccade.quality.reiqa.network import ReIQA
from saccade.quality.reiqa.ridge import fit_ridge
from saccade.quality.reiqa.scoring import Scorer, read_pixels
from saccade.registry import create

__all__ = ["KINDS", "Rated", "fit_regressors", "rated_pieces", "spoilt", "train_small"]

#: kinds of the test: blur, compression, noise, lost resolution, coarse pixels
KINDS = ("gaussian_blur", "jpeg", "white_noise", "resize_bicubic", "pixelate")
#: kinds that regressors are fitted on
RISING = tuple(kind for kind, what in DISTORTIONS.items() if what.rising)


@dataclass(frozen=True)
class Rated:
    """A picture in memory with what is known of it.

    Attributes:
        pixels: (H, W, 3) uint8.
        level: 0 untouched, else 1 + the level of the distortion.
        kind: of the distortion, or ``""``.
        content: number of the photograph.
    """

    pixels: np.ndarray
    level: int
    kind: str
    content: int

    @property
    def rating(self) -> float:
        """100 for untouched, down to 0."""
        return 100 - 20 * self.level


def spoilt(files: Sequence[Path], kinds: Sequence[str] = KINDS, seed: int = 0) -> Iterator[Rated]:
    """Every photograph untouched and at every level of every kind."""
    for content, file in enumerate(files):
        pixels = read_pixels(file)[0]
        yield Rated(pixels, 0, "", content)
        for kind in kinds:
            for level in range(LEVELS):
                chance = np.random.default_rng((seed, content, level))
                yield Rated(distort(pixels, kind, level, chance), level + 1, kind, content)


def rated_pieces(files: Sequence[Path], each: int = 24, seed: int = 0) -> Iterator[Rated]:
    """Pieces of 256 to 448 pixels: of every photograph three untouched and ``each`` spoilt ones."""
    for content, file in enumerate(files):
        pixels = read_pixels(file)[0]
        for i in range(each + 3):
            chance = np.random.default_rng((seed, content, i))
            side = min(int(chance.integers(256, 449)), *pixels.shape[:2])
            top, left = (int(chance.integers(n - side + 1)) for n in pixels.shape[:2])
            piece = pixels[top : top + side, left : left + side]
            if i < 3:
                yield Rated(piece, 0, "", content)
                continue
            kind, level = RISING[int(chance.integers(len(RISING)))], int(chance.integers(LEVELS))
            yield Rated(distort(np.ascontiguousarray(piece), kind, level, chance), level + 1, kind, content)


def features_of(model: ReIQA, rated: Sequence[Rated], threads: int = 0) -> dict[str, np.ndarray]:
    """(n, D) features of every layout of the model, each encoder run once."""
    setting = model.setting
    scorer = Scorer(model.use(model.settings()[-1]), threads=threads)
    whole = np.stack([scorer.features_of_bytes(r.pixels) for r in track(rated, "features")])
    quality = model.quality.encoder.features
    columns = {"quality_half": slice(quality, 2 * quality), "quality_full": slice(0, quality)}
    columns |= {"quality": slice(0, 2 * quality), "quality_content": slice(None)}
    found = {name: whole[:, columns[name]] for name in model.settings()}
    model.use(setting)
    return found


@torch.no_grad()
def fit_regressors(model: ReIQA, files: Sequence[Path], seed: int = 0, threads: int = 0) -> dict[str, float]:
    """Fit the model's regressor of every layout to `rated_pieces`, in place.

    Returns:
        Root mean square of the left-out errors by layout, in points of 100.
    """
    rated = list(rated_pieces(files, seed=seed))
    scores, contents = np.array([r.rating for r in rated]), [r.content for r in rated]
    errors = {}
    for name, features in features_of(model, rated, threads).items():
        ridge = fit_ridge(features, scores, contents)
        getattr(model, f"coefficients_{name}").copy_(torch.from_numpy(ridge.coefficients))
        getattr(model, f"intercept_{name}").fill_(ridge.intercept)
        errors[name] = ridge.left_out_error
    return errors


def halve_precision(model: ReIQA) -> ReIQA:
    """Round the encoders' numbers to what float16 holds (the file stores them so); returns the model."""
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point() and name.startswith(("quality.", "content.")):
                value.copy_(value.half().float())
    return model


def train_small(
    files: Sequence[Path],
    recipe: Recipe,
    content_steps: int,
    *,
    say: Callable[[str, int, float, float, Encoder], None] | None = None,
    threads: int = 0,
) -> tuple[ReIQA, dict[str, float]]:
    """``reiqa_small`` from nothing: both encoders pre-trained, its regressors fitted.

    Args:
        files: photographs; all of them are trained on.
        recipe: of the quality encoder; the content encoder has the same without distortions.
        content_steps: of the content encoder.
        say: called with (branch, step, loss, share of queries nearest to their own key, encoder).

    Returns:
        The model, rounded to float16's numbers, and its left-out errors by layout.

    Raises:
        InputError: unusable pictures.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = create("reiqa_small", weights=None)
    assert isinstance(model, ReIQA)
    for name, own in (
        ("quality", recipe),
        ("content", replace(recipe, distortions=False, normalise=True, steps=content_steps)),
    ):
        encoder = getattr(model, name).encoder

        def told(step: int, loss: float, right: float, name: str = name, encoder: Encoder = encoder) -> None:
            if say is not None:
                say(name, step, loss, right, encoder)

        pretrain(encoder, files, own, told)
    halve_precision(model.eval())
    return model, fit_regressors(model, files, recipe.seed, threads)
