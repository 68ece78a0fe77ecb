"""Elastic net from features to scores: a linear score that leaves most features out.

    1/(2n) |y - Z c|^2 + penalty * (share |c|_1 + (1 - share)/2 |c|^2),   Z centred, unit variance

Zou and Hastie, "Regularization and variable selection via the elastic net", 2005; the form is scikit-learn's. Solved on
the features that are not zero, by accelerated proximal steps (Beck and Teboulle, FISTA, 2009) that start anew when they
overshoot (O'Donoghue and Candes, 2015); then features are let in whose slope exceeds the penalty, until none does.

The penalty is chosen by leaving out a fifth of the contents at a time.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from saccade.errors import InputError
from saccade.quality.reiqa.ridge import Ridge, check_samples, places_of, scaled

__all__ = ["FOLDS", "STRENGTHS", "ElasticNet", "elastic_weights", "fit_elastic_net", "strongest_penalty"]

#: parts that contents are left out in
FOLDS = 5
#: penalties to choose from, as shares of the least one that leaves every feature out
STRENGTHS = tuple(float(s) for s in np.logspace(-0.25, -3.5, 14))
#: slope beyond the penalty, over the largest slope of all, that counts as none
TOLERANCE = 1e-6
#: proximal steps at the most
_STEPS = 20_000


@dataclass(frozen=True)
class ElasticNet(Ridge):
    """A fit of `fit_elastic_net`; ``alpha`` is the penalty as scikit-learn counts it.

    Attributes:
        l1_share: of the penalty that goes to the sum of the coefficients' sizes.
        used: features whose coefficient is not zero.
    """

    l1_share: float
    used: int


def strongest_penalty(z: np.ndarray, y: np.ndarray, share: float) -> float:
    """The least penalty that leaves every feature out."""
    return float(np.abs(z.T @ y).max() / len(y) / share)


def elastic_weights(
    z: np.ndarray,
    y: np.ndarray,
    penalty: float,
    share: float,
    start: np.ndarray | None = None,
    steepest: float | None = None,
) -> np.ndarray:
    """The minimum of the loss above.

    Args:
        z: (n, d) centred.
        y: (n,) centred.
        penalty, share: see above.
        start: (d,) a guess.
        steepest: largest squared singular value of ``z`` over n, where it is known.

    Returns:
        (d,).
    """
    n = len(y)
    l1, l2 = penalty * share, penalty * (1 - share)
    towards = z.T @ y / n
    enough = TOLERANCE * max(float(np.abs(towards).max()), l1)
    curvature = l2 + (float(np.linalg.norm(z, 2)) ** 2 / n if steepest is None else steepest)
    c = np.zeros(z.shape[1]) if start is None else start.copy()
    for _ in range(_STEPS):
        slope = towards - z.T @ (z @ c) / n - l2 * c
        wanting = (c == 0) & (np.abs(slope) > l1 + 3 * enough)
        own = c != 0
        own[np.argsort(np.where(wanting, -np.abs(slope), 1))[: min(int(wanting.sum()), n)]] = True  # steepest first
        residual = np.abs(slope - l1 * np.sign(c))[c != 0]
        if not wanting.any() and (not len(residual) or residual.max() <= 3 * enough):
            break
        c[own] = _among(z[:, own], towards[own], l1, l2, curvature, enough, c[own])
    return c


def _among(
    z: np.ndarray, towards: np.ndarray, l1: float, l2: float, curvature: float, enough: float, start: np.ndarray
) -> np.ndarray:
    """The minimum over some features alone, (n, m)."""
    n, m = z.shape
    gram = z.T @ z / n if m <= 2 * n else None  # else two products with z are fewer multiplications
    c = ahead = start
    speed = 1.0
    for _ in range(_STEPS):
        fitted = gram @ ahead if gram is not None else z.T @ (z @ ahead) / n
        slope = towards - fitted - l2 * ahead
        moved = ahead + slope / curvature
        new = np.sign(moved) * np.maximum(np.abs(moved) - l1 / curvature, 0)
        if np.linalg.norm(new - ahead) * curvature <= enough:  # slopes at new are then off by twice that at the most
            return new
        if (ahead - new) @ (new - c) > 0:  # it overshot
            speed = 1.0
        faster = (1 + np.sqrt(1 + 4 * speed * speed)) / 2
        c, ahead, speed = new, new + (speed - 1) / faster * (new - c), faster
    return c


def fit_elastic_net(
    features: np.ndarray,
    scores: np.ndarray,
    contents: Sequence[Hashable] | None = None,
    share: float = 0.5,
    strengths: Sequence[float] = STRENGTHS,
) -> ElasticNet:
    """Fit with the penalty whose errors on contents left out are smallest.

    Args:
        features: (n, d).
        scores: (n,).
        contents: what each sample shows; those of a content are left out together. None: every sample its own.
        share: of the penalty that goes to the sum of sizes, in (0, 1]; 1 is the lasso.
        strengths: penalties to choose from, as shares of the least that leaves every feature out.

    Raises:
        InputError: see `ridge.check_samples`; fewer than two contents; a share outside (0, 1]; no positive strength.
    """
    x, y = np.asarray(features, np.float64), np.asarray(scores, np.float64)
    check_samples(x, y)
    if not 0 < share <= 1:
        raise InputError(f"the share of an elastic net lies in (0, 1], not {share}; for 0 fit a ridge")
    if not len(strengths) or min(strengths) <= 0:
        raise InputError(f"strengths are positive numbers to choose from, not {tuple(strengths)}")
    places = places_of(contents, len(y))
    z, centre, scale = scaled(x)
    strongest = strongest_penalty(z, y - y.mean(), share)
    penalties = [strongest * s for s in sorted(strengths, reverse=True)]
    wrong = np.zeros(len(penalties))
    for part in range(min(FOLDS, len(places))):
        out = np.concatenate(places[part::FOLDS])
        own = np.setdiff1d(np.arange(len(y)), out)
        mean, middle = y[own].mean(), z[own].mean(0)
        for i, c in enumerate(_path(z[own] - middle, y[own] - mean, penalties, share)):
            wrong[i] += float((((z[out] - middle) @ c + mean - y[out]) ** 2).sum())
    best = int(np.argmin(wrong))
    *_, c = _path(z, y - y.mean(), penalties[: best + 1], share)
    coefficients = c / scale
    error, used = float(np.sqrt(wrong[best] / len(y))), int((coefficients != 0).sum())
    intercept = float(y.mean() - centre @ coefficients)
    return ElasticNet(coefficients, intercept, penalties[best], error, share, used)


def _path(z: np.ndarray, y: np.ndarray, penalties: Sequence[float], share: float) -> Iterator[np.ndarray]:
    """Weights for each penalty, strongest first, each found from the one before."""
    c, steepest = None, float(np.linalg.norm(z, 2)) ** 2 / len(y)
    for penalty in penalties:
        c = elastic_weights(z, y, penalty, share, c, steepest)
        yield c
