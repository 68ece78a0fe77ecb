"""A linear score from features that keeps known orders: of two versions of a picture the better one is to score higher.

    1/2 sum (score - rating)^2  +  1/2 alpha |c|^2  +  PULL sum log(1 + exp(-(score of better - of worse) / MARGIN))

The first two terms are a ridge. By itself it gives up slight damage: what a blur of half a pixel does to the features
is small beside what tells one content from the next, so that errors there cost it little. The third term (logistic loss
on pairs, as in RankNet, Burges et al., ICML 2005) asks for each such step by itself, and contents cancel out in it. The
whole is convex; Newton's method with step halving finds its minimum in some ten steps.

The penalty is chosen on contents that the fit did not see, by SRCC and the share of pairs in order together.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from saccade.errors import InputError
from saccade.quality.reiqa.protocol import srcc
from saccade.quality.reiqa.ridge import Ridge, check_samples

__all__ = ["PENALTIES", "Ordered", "fit_ordered", "order_weights"]

#: weight of a pair, points^2, and the difference in points from which a pair counts as settled. On training photographs
#: left out of the fit, mean scores of twelve drawn at random fell with every level of five kinds of damage in 27 of 100
#: draws without pairs, and in 94, 100 and 99 with pulls of 256, 1024 and 4096, at SRCC 0.79, 0.78, 0.76 and 0.74. The
#: largest carries over best: fitted to softened pieces alone and asked about others, the step from the third to the
#: fourth level of coarse pixels, the slightest there, is -0.2, 0.0 and 0.1 deviations
PULL, MARGIN = 4096.0, 2.0
#: penalties to choose from, on features of unit variance
PENALTIES = (30.0, 100.0, 300.0, 1000.0, 3000.0)
#: parts that contents are left out in
FOLDS = 5
#: of Newton's method at the most
_ITERATIONS = 60


@dataclass(frozen=True)
class Ordered(Ridge):
    """A fit of `fit_ordered`; figures are of contents that it had not seen.

    Attributes:
        srcc: of scores with ratings.
        in_order: share of pairs whose better picture scored higher.
    """

    srcc: float
    in_order: float


def order_weights(
    z: np.ndarray, ratings: np.ndarray, steps: np.ndarray, alpha: float, start: np.ndarray | None = None
) -> np.ndarray:
    """The minimum of the loss above.

    Args:
        z: (n, d) centred features.
        ratings: (n,) centred.
        steps: (m, d) features of the better picture of each pair less those of the worse.
        alpha: penalty.
        start: (d,) a guess.

    Returns:
        (d,).
    """
    gram, right = z.T @ z + alpha * np.eye(z.shape[1]), z.T @ ratings
    c = np.linalg.solve(gram, right) if start is None else start

    def loss(at: np.ndarray) -> float:
        pairs = np.logaddexp(0, -(steps @ at) / MARGIN).sum()
        return float(at @ gram @ at / 2 - right @ at + PULL * pairs)

    now = loss(c)
    for _ in range(_ITERATIONS):
        missing = 0.5 - 0.5 * np.tanh(steps @ c / (2 * MARGIN))  # 1 for a pair out of order, 0 for a settled one
        gradient = gram @ c - right - PULL / MARGIN * (steps.T @ missing)
        hessian = gram + PULL / MARGIN**2 * (steps.T @ (steps * (missing * (1 - missing))[:, None]))
        direction, length, before = np.linalg.solve(hessian, gradient), 1.0, now
        enough = 1e-4 * (gradient @ direction)  # Armijo: a part of the decrease that the gradient promises
        while (now := loss(c - length * direction)) > before - length * enough and length > 1e-9:
            length /= 2
        c = c - length * direction
        if before - now <= 1e-9 * abs(before):
            break
    return c


def fit_ordered(
    features: np.ndarray,
    ratings: np.ndarray,
    contents: Sequence[Hashable],
    pairs: np.ndarray,
    penalties: Sequence[float] = PENALTIES,
) -> Ordered:
    """Fit a linear score to ratings and to pairs, with the penalty that does best on contents left out.

    Scores are brought to the scale of the ratings at the end, by least squares on the contents left out: the pairs
    stretch them.

    Args:
        features: (n, d).
        ratings: (n,); higher is better.
        contents: what each sample shows; those of a content are left out together.
        pairs: (m, 2) sample numbers, better and worse, each pair of one content.
        penalties: to choose from.

    Raises:
        InputError: as `ridge.check_samples`; contents of another number, or fewer than two; pairs that are none; no
            penalty that is positive.
    """
    x, y, shown = np.asarray(features, np.float64), np.asarray(ratings, np.float64), _numbered(contents)
    check_samples(x, y)
    _check_pairs(pairs, shown, len(y))
    if not len(penalties) or min(penalties) <= 0:
        raise InputError(f"penalties are positive numbers to choose from, not {tuple(penalties)}")
    scale = x.std(0)
    x = x / np.where(scale > 1e-12 * np.abs(x).max(), scale, np.inf)
    made = _left_out(x, y, shown % FOLDS, pairs, penalties)
    ordered = [float((s[pairs[:, 0]] > s[pairs[:, 1]]).mean()) for s in made]
    followed = [srcc(s, y) for s in made]
    best = int(np.argmax(np.add(ordered, followed)))
    slope, _ = np.polyfit(made[best], y, 1)
    slope = slope if slope > 0 else 1.0
    c = slope * _fit(x, y, pairs, np.ones(len(y), bool), penalties[best])
    error = float(np.sqrt(np.mean((slope * (made[best] - made[best].mean()) + y.mean() - y) ** 2)))
    weights = c / np.where(scale > 0, scale, 1)
    intercept = float(y.mean() - x.mean(0) @ c)
    return Ordered(weights, intercept, float(penalties[best]), error, followed[best], ordered[best])


def _check_pairs(pairs: np.ndarray, shown: np.ndarray, count: int) -> None:
    """Refuse pairs that do not go with ``count`` samples of the contents ``shown``."""
    if len(shown) != count:
        raise InputError(f"{len(shown)} contents are told for {count} samples")
    whole = np.issubdtype(pairs.dtype, np.integer) and pairs.ndim == 2 and pairs.shape[1] == 2 and len(pairs) > 0
    if not whole or pairs.min() < 0 or pairs.max() >= count:
        raise InputError(f"pairs are (m, 2) numbers of {count} samples, not {pairs.dtype} {pairs.shape}")
    if (shown[pairs[:, 0]] != shown[pairs[:, 1]]).any():
        raise InputError("both samples of a pair are to show one content")


def _numbered(contents: Sequence[Hashable]) -> np.ndarray:
    """(n,) the number of what each sample shows, from 0."""
    numbers = {content: i for i, content in enumerate(dict.fromkeys(contents))}
    if len(numbers) < 2:
        raise InputError("a fit to orders takes at least two contents: its penalty is chosen on some left out")
    return np.array([numbers[content] for content in contents])


def _fit(
    x: np.ndarray, y: np.ndarray, pairs: np.ndarray, own: np.ndarray, alpha: float, start: np.ndarray | None = None
) -> np.ndarray:
    """Weights from the samples of ``own`` and the pairs among them."""
    among = pairs[own[pairs[:, 0]]]
    z = x[own] - x[own].mean(0)
    return order_weights(z, y[own] - y[own].mean(), x[among[:, 0]] - x[among[:, 1]], alpha, start)


def _left_out(
    x: np.ndarray, y: np.ndarray, parts: np.ndarray, pairs: np.ndarray, penalties: Sequence[float]
) -> list[np.ndarray]:
    """For each penalty: (n,) scores of every sample by the fit without its part."""
    made = [np.empty(len(y)) for _ in penalties]
    for part in np.unique(parts):
        own, c = parts != part, None
        for scores, alpha in zip(made, penalties, strict=True):
            c = _fit(x, y, pairs, own, alpha, c)
            scores[~own] = (x[~own] - x[own].mean(0)) @ c + y[own].mean()
    return made
