"""Ratings without raters: pictures spoilt by known amounts, and a model's regressors fitted to them.

    photograph -- piece of it -- untouched, or one distortion at level 0..4 -- rated 100, 80, 60, 40, 20, 0
                                 each level against the next of the same piece: which is better

The makers of KADID chose the five levels of every kind so that they look evenly spaced from hardly visible to very
annoying, and alike between kinds; so levels can stand in for ratings. Regressors are fitted to what spoils texture;
changes of colour and brightness and displaced patches, which pooled local contrast hardly sees, are left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from saccade.checkpoint import write_bytes
from saccade.data.distortions import LEVELS, distort
from saccade.errors import InputError
from saccade.progress import track
from saccade.quality.reiqa.encoder import Encoder
from saccade.quality.reiqa.moco import pretrain
from saccade.quality.reiqa.network import ReIQA
from saccade.quality.reiqa.ordering import Ordered, fit_ordered
from saccade.quality.reiqa.protocol import srcc
from saccade.quality.reiqa.recipe import Recipe
from saccade.quality.reiqa.scoring import Scorer, read_pixels
from saccade.registry import create
from saccade.training.processes import ALONE, Processes

__all__ = [
    "KINDS",
    "SIDE",
    "Rated",
    "fit_regressors",
    "pieces",
    "rated_pieces",
    "save_small",
    "score_agreement",
    "score_pieces",
    "spoilt",
    "train_encoders",
]

#: kinds of the test: blur, compression, noise, lost resolution, coarse pixels
KINDS = ("gaussian_blur", "jpeg", "white_noise", "resize_bicubic", "pixelate")
#: side of the pieces that figures are taken on, pixels
SIDE = 384
ENCODERS = ("quality.", "content.")
#: kinds that regressors are fitted on; every family counts alike, however many kinds it has
FAMILIES = (
    ("gaussian_blur", "lens_blur", "motion_blur", "denoise"),
    ("jpeg",),
    ("white_noise", "ycbcr_noise", "impulse_noise", "speckle_noise"),
    ("resize_bicubic", "resize_bilinear", "resize_nearest", "resize_lanczos"),
    ("pixelate",),
    ("sharpen", "jitter"),
)


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


def softened(pixels: np.ndarray, side: int, grain: float, chance: np.random.Generator) -> np.ndarray:
    """A photograph less sharp than a reduced one: grain, half of it grey, half coloured, then enlarged (bicubic).

    So do files out of cameras and scanners look at the scale of pixels: colours are interpolated there, and grain is as
    coarse as the optics.

    Args:
        pixels: (h, w, 3) uint8, square.
        side: of the result, at least h.
        grain: deviation in levels of 255.
    """
    grey, coloured = (chance.standard_normal((*pixels.shape[:2], n)) for n in (1, 3))
    noise = grain * math.sqrt(0.5) * (grey + coloured)
    grainy = np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)
    return np.array(Image.fromarray(grainy).resize((side, side), Image.Resampling.BICUBIC))


def rated_pieces(files: Sequence[Path], each: int = 3, seed: int = 0) -> Iterator[Rated]:
    """``each`` pieces of every photograph, 256 to 384 pixels: untouched, then a kind of every family, level by level.

    So a spoilt piece follows the same piece one level better, but for the first level, which is one below untouched.
    All but the first piece of a photograph are `softened` beforehand, by a factor of up to 2 with grain of up to 6:
    in a set of reduced, clean photographs a regressor learns that any lack of sharpness is damage, and takes blur for a
    gain where it covers grain.
    """
    for content, file in enumerate(files):
        pixels = read_pixels(file)[0]
        for i in range(each):
            chance = np.random.default_rng((seed, content, i))
            side = min(int(chance.integers(256, 385)), *pixels.shape[:2])
            taken = side if i == 0 else round(side / chance.uniform(1, 2))
            top, left = (int(chance.integers(n - taken + 1)) for n in pixels.shape[:2])
            piece = np.ascontiguousarray(pixels[top : top + taken, left : left + taken])
            if i > 0:
                piece = softened(piece, side, chance.uniform(0, 6), chance)
            yield Rated(piece, 0, "", content)
            for family in FAMILIES:
                kind = family[int(chance.integers(len(family)))]
                for level in range(LEVELS):
                    yield Rated(distort(piece, kind, level, chance), level + 1, kind, content)


def neighbours(levels: Sequence[int]) -> np.ndarray:
    """(m, 2) places of pieces in `rated_pieces` that are one level apart, the better one first."""
    found, untouched = [], 0
    for i, level in enumerate(levels):
        if level == 0:
            untouched = i
        else:
            found.append((untouched if level == 1 else i - 1, i))
    return np.array(found).reshape(-1, 2)


def columns(model: ReIQA) -> dict[str, slice]:
    """Where the features of each layout stand in a row of the widest."""
    quality = model.quality.encoder.features
    where = {"quality_half": slice(quality, 2 * quality), "quality_full": slice(0, quality)}
    where |= {"quality": slice(0, 2 * quality), "quality_content": slice(None)}
    return {name: where[name] for name in model.settings()}


@torch.no_grad()
def fit_regressors(model: ReIQA, files: Sequence[Path], seed: int = 0, threads: int = 0) -> dict[str, Ordered]:
    """Fit the model's regressor of every layout to `rated_pieces`, in place, each encoder run once.

    Returns:
        The fits by layout.

    Raises:
        InputError: fewer than two photographs, unreadable ones.
    """
    setting = model.setting
    scorer = Scorer(model.use(model.settings()[-1]), threads=threads)
    rows, ratings, levels, contents = [], [], [], []
    for r in track(rated_pieces(files, seed=seed), "features"):  # one at a time: all of them are gigabytes
        rows.append(scorer.features_of_bytes(r.pixels))
        ratings.append(r.rating)
        levels.append(r.level)
        contents.append(r.content)
    model.use(setting)
    whole, pairs, fits = np.stack(rows), neighbours(levels), {}
    for name, where in columns(model).items():
        fits[name] = fit = fit_ordered(whole[:, where], np.array(ratings), contents, pairs)
        getattr(model, f"coefficients_{name}").copy_(torch.from_numpy(fit.coefficients))
        getattr(model, f"intercept_{name}").fill_(fit.intercept)
    return fits


def halve_precision(model: ReIQA) -> ReIQA:
    """Round the encoders' numbers to what float16 holds (the file stores them so); returns the model."""
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point() and name.startswith(ENCODERS):
                value.copy_(value.half().float())
    return model


def train_encoders(
    name: str,
    files: Sequence[Path],
    recipe: Recipe,
    content_steps: int,
    *,
    say: Callable[[str, int, float, float, Encoder], None] | None = None,
    processes: Processes = ALONE,
    workers: int = 0,
    run: Path | None = None,
    save_every: int = 500,
) -> ReIQA:
    """A model whose encoders are pre-trained from nothing; it holds no regressor that is fitted.

    Args:
        name: registered.
        files: photographs; all of them are trained on.
        recipe: of the quality encoder; the content encoder has the same without distortions.
        content_steps: of the content encoder.
        say: called with (branch, step, loss, share of queries nearest to their own key, encoder).
        processes, workers: as `moco.pretrain` takes them.
        run: folder for the checkpoints ``quality.ckpt`` and ``content.ckpt``; what is there is gone on with.
        save_every: steps between checkpoints.

    Returns:
        The model, rounded to float16's numbers.

    Raises:
        InputError: unusable pictures; the folder cannot be made.
        UsageError: a recipe that cannot be, or not that of the checkpoints.
        CheckpointError: damaged checkpoints.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = create(name, weights=None)
    assert isinstance(model, ReIQA)
    clean = replace(recipe.lasting(content_steps), distortions=False, normalise=True)
    for branch, own in (("quality", recipe), ("content", clean)):
        encoder = getattr(model, branch).encoder

        def told(step: int, loss: float, right: float, branch: str = branch, encoder: Encoder = encoder) -> None:
            if say is not None:
                say(branch, step, loss, right, encoder)

        pretrain(
            encoder,
            files,
            own,
            told,
            processes=processes,
            workers=workers,
            checkpoint=None if run is None else made_folder(run) / f"{branch}.ckpt",
            save_every=save_every,
        )
    return halve_precision(model.eval())


def made_folder(path: Path) -> Path:
    """The folder, made if it is not there.

    Raises:
        InputError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot create {path}: {error.strerror}") from error
    return path


def save_small(model: ReIQA, path: Path, **metadata: str) -> None:
    """Write a model of `train_encoders`: its encoders in float16, which holds their numbers exactly.

    Args:
        metadata: strings for the header.

    Raises:
        InputError: the folder cannot be written.
    """
    from safetensors.torch import save as to_bytes

    state = {
        name: (value.half() if value.is_floating_point() and name.startswith(ENCODERS) else value).contiguous()
        for name, value in model.state_dict().items()
    }
    told = json.dumps({"model": model.saccade_name, "options": model.saccade_options}, sort_keys=True)
    write_bytes(path, to_bytes(state, metadata={"saccade": told, **metadata}))


# -- figures


def pieces(files: Sequence[Path], seed: int = 0, place: float = 0.5, side: int = SIDE) -> list[Rated]:
    """Spoilt photographs, of each the same piece of at most ``side`` pixels a side, cut after it was spoilt.

    Args:
        place: of the piece, 0 top left to 1 bottom right.
    """
    made = []
    for r in spoilt(files, seed=seed):
        top, left = (int(max(0, n - side) * place) for n in r.pixels.shape[:2])
        made.append(replace(r, pixels=np.ascontiguousarray(r.pixels[top : top + side, left : left + side])))
    return made


def score_pieces(model: ReIQA, rated: Sequence[Rated]) -> np.ndarray:
    """(n,) scores by the model's own regressor."""
    scorer = Scorer(model)
    return np.array([scorer.score(r.pixels) for r in rated])


def score_agreement(model: ReIQA, files: Sequence[Path]) -> dict[str, float]:
    """SRCC of a model's own scores with the level of damage: of all `pieces`, and of each kind with the untouched ones.

    Raises:
        InputError: unreadable pictures.
    """
    rated = pieces(files)
    scores, levels = score_pieces(model, rated), np.array([r.level for r in rated])
    found = {"srcc": srcc(-scores, levels)}
    for kind in KINDS:
        own = np.array([r.kind in (kind, "") for r in rated])
        found[f"srcc_{kind}"] = srcc(-scores[own], levels[own])
    return found
