"""Ridge regression from features to scores, by one SVD, with exact leave-one-out errors for every penalty.

    X (n, d), y (n) -- centre, scale -- U S V^T -- for each alpha: fit, hat matrix, leave-one-out -- the best alpha

With H = 1/n + U diag(s^2 / (s^2 + alpha)) U^T the residual of samples g when fitted without them is
(I - H_gg)^-1 (y - H y)_g, exactly (the centre is fitted anew; the scales are those of all samples). Leaving out all
samples of a content at a time keeps a penalty from being chosen for what it remembers of the contents.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from saccade.errors import InputError

__all__ = ["ALPHAS", "Ridge", "fit_ridge", "left_out_residuals"]

ALPHAS = tuple(float(a) for a in np.logspace(-3, 5, 33))


@dataclass(frozen=True)
class Ridge:
    """``features @ coefficients + intercept``.

    Attributes:
        coefficients: (d,) float64, for the features as they are.
        intercept: the score of features that are all zero.
        alpha: the penalty that was chosen, on features of unit variance.
        left_out_error: root mean square of the residuals of samples that the fit had not seen.
    """

    coefficients: np.ndarray
    intercept: float
    alpha: float
    left_out_error: float

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """(..., d) -> (...)."""
        made: np.ndarray = features @ self.coefficients + self.intercept
        return made


def check_samples(features: np.ndarray, scores: np.ndarray) -> None:
    """Refuse what cannot be fitted.

    Raises:
        InputError: shapes that do not go together, fewer than three samples, values that are not finite, one score.
    """
    if features.ndim != 2 or scores.shape != features.shape[:1]:
        raise InputError(f"{features.shape} features and {scores.shape} scores do not go together")
    if len(scores) < 3:
        raise InputError(f"a regressor needs at least three rated pictures, not {len(scores)}")
    if not np.isfinite(scores).all():
        raise InputError(f"score {int(np.argmin(np.isfinite(scores)))} is not a finite number")
    if not np.isfinite(features).all():
        raise InputError(f"the features of sample {int(np.argmin(np.isfinite(features).all(1)))} are not finite")
    if np.ptp(scores) == 0:
        raise InputError("all scores are equal: there is nothing to learn")


def places_of(contents: Sequence[Hashable] | None, n: int) -> list[np.ndarray]:
    """Sample numbers of each content.

    Raises:
        InputError: contents of another number than samples, or fewer than two.
    """
    if contents is None:
        return [np.array([i]) for i in range(n)]
    if len(contents) != n:
        raise InputError(f"{len(contents)} contents for {n} samples")
    found: dict[Hashable, list[int]] = {}
    for i, content in enumerate(contents):
        found.setdefault(content, []).append(i)
    if len(found) < 2:
        raise InputError("all samples show one content; at least two are needed to choose a penalty")
    return [np.array(places) for places in found.values()]


def scaled(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(n, d) features at mean 0 and deviation 1, their means, and their deviations.

    A feature that never changes is 0 there and has an infinite deviation: it counts for nothing.
    """
    centre, scale = x.mean(0), x.std(0)
    scale = np.where(scale > 1e-12 * np.abs(x).max(), scale, np.inf)
    return (x - centre) / scale, centre, scale


def left_out_residuals(
    basis: np.ndarray, shrink: np.ndarray, residuals: np.ndarray, places: Sequence[np.ndarray]
) -> np.ndarray:
    """Residuals of each content by the fit without it.

    Args:
        basis: (n, r), U.
        shrink: (r,), s^2 / (s^2 + alpha).
        residuals: (n,), of the fit with all samples.
        places: sample numbers of each content.
    """
    n = len(residuals)
    out = np.empty(n)
    for g in places:
        hat = (basis[g] * shrink) @ basis[g].T + 1 / n
        out[g] = np.linalg.lstsq(np.eye(len(g)) - hat, residuals[g], rcond=None)[0]
    return out


def fit_ridge(
    features: np.ndarray,
    scores: np.ndarray,
    contents: Sequence[Hashable] | None = None,
    alphas: Sequence[float] = ALPHAS,
) -> Ridge:
    """Fit with the penalty whose left-out errors are smallest.

    Args:
        features: (n, d).
        scores: (n,).
        contents: what each sample shows; all of a content are left out together. None: every sample its own.
        alphas: penalties to choose from, on features of unit variance.

    Raises:
        InputError: see `check_samples`; fewer than two contents.
    """
    x, y = np.asarray(features, np.float64), np.asarray(scores, np.float64)
    check_samples(x, y)
    places = places_of(contents, len(y))
    z, centre, scale = scaled(x)
    basis, values, axes = np.linalg.svd(z, full_matrices=False)
    keep = values > values.max() * 1e-10
    basis, values, axes = basis[:, keep], values[keep], axes[keep]
    projected = basis.T @ (y - y.mean())
    best: tuple[float, float] | None = None
    for alpha in alphas:
        shrink = values**2 / (values**2 + alpha)
        residuals = y - y.mean() - basis @ (shrink * projected)
        error = float(np.sqrt(np.mean(left_out_residuals(basis, shrink, residuals, places) ** 2)))
        if best is None or error < best[0]:
            best = error, alpha
    assert best is not None
    error, alpha = best
    coefficients = axes.T @ (values / (values**2 + alpha) * projected) / scale
    return Ridge(coefficients, float(y.mean() - centre @ coefficients), float(alpha), error)
