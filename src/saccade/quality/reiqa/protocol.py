"""How well predicted scores follow given ones: SRCC, PLCC after a logistic, splits that keep contents apart.

The field's protocol: 80/20 splits by reference content, ten times, medians. A split that lets versions of one content
into both parts raises SRCC by up to 0.1.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from saccade.errors import InputError
from saccade.quality.reiqa.ridge import Ridge, check_samples, fit_ridge

__all__ = ["Agreement", "check_split", "content_splits", "cross_validate", "logistic_fit", "plcc", "ranks", "srcc"]

Fit = Callable[[np.ndarray, np.ndarray, Sequence[Hashable]], Ridge]


@dataclass(frozen=True)
class Agreement:
    """Medians over the splits.

    Attributes:
        srcc, plcc: in [-1, 1]; PLCC after a four-parameter logistic.
        splits: how many.
        contents: how many different ones.
    """

    srcc: float
    plcc: float
    splits: int
    contents: int


def ranks(values: np.ndarray) -> np.ndarray:
    """1 for the smallest; equal values share the mean of their ranks."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    shared: np.ndarray = (last - (counts - 1) / 2)[which]
    return shared


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(), y - y.mean()
    norm = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / norm if norm else 0.0


def _pair(predicted: np.ndarray, given: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(predicted, np.float64).ravel(), np.asarray(given, np.float64).ravel()
    if x.shape != y.shape or len(x) < 2 or not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise InputError("a correlation takes two equally long rows of at least two finite numbers")
    return x, y


def srcc(predicted: np.ndarray, given: np.ndarray) -> float:
    """Spearman's rank correlation; 0 where one side is constant.

    Raises:
        InputError: not two equally long rows of finite numbers.
    """
    x, y = _pair(predicted, given)
    return _pearson(ranks(x), ranks(y))


def logistic_fit(predicted: np.ndarray, given: np.ndarray, steps: int = 60) -> np.ndarray:
    """``predicted`` through the four-parameter logistic that fits ``given`` best (least squares, Levenberg-Marquardt).

    f(x) = b2 + (b1 - b2) / (1 + exp(-(x - b3) / |b4|)), the mapping of the Video Quality Experts Group.
    """
    x, y = _pair(predicted, given)
    spread = x.std() or 1.0
    rising = _pearson(x, y) >= 0
    b = (
        np.array([y.max(), y.min(), x.mean(), spread / 2])
        if rising
        else np.array([y.min(), y.max(), x.mean(), spread / 2])
    )

    def curve(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        z = (x - p[2]) / abs(p[3])
        s = 0.5 * (1 + np.tanh(z / 2))
        slope = (p[0] - p[1]) * s * (1 - s)
        return p[1] + (p[0] - p[1]) * s, np.stack([s, 1 - s, -slope / abs(p[3]), -slope * z / p[3]], 1)

    made, jacobian = curve(b)
    damping, error = 1e-3, float(((y - made) ** 2).sum())
    for _ in range(steps):
        normal, right = jacobian.T @ jacobian, jacobian.T @ (y - made)
        step = np.linalg.lstsq(normal + damping * np.diag(normal.diagonal() + 1e-12), right, rcond=None)[0]
        tried = b + step
        if abs(tried[3]) < 1e-3 * spread:
            damping *= 10
            continue
        new, new_jacobian = curve(tried)
        new_error = float(((y - new) ** 2).sum())
        if new_error < error:
            b, made, jacobian, error, damping = tried, new, new_jacobian, new_error, damping / 3
        else:
            damping *= 4
    return made


def plcc(predicted: np.ndarray, given: np.ndarray) -> float:
    """Pearson's correlation after `logistic_fit`; without it where that is higher.

    Raises:
        InputError: not two equally long rows of finite numbers.
    """
    x, y = _pair(predicted, given)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return max(_pearson(logistic_fit(x, y), y), _pearson(x, y))


def check_split(train: Sequence[Hashable], test: Sequence[Hashable]) -> None:
    """Refuse a split that has a content on both sides, or too few to tell anything.

    Raises:
        InputError: such a split.
    """
    shared = set(train) & set(test)
    if shared:
        raise InputError(
            f"content {min(map(str, shared))!r} is both in the training and in the test part ({len(shared)} such): "
            "scores on it would be remembered, not predicted"
        )
    for name, part in (("training", train), ("test", test)):
        if len(set(part)) < 2:
            raise InputError(f"the {name} part of a split needs at least two contents, this one has {len(set(part))}")


def content_splits(
    contents: Sequence[Hashable], count: int = 10, share: float = 0.2, seed: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Random splits by content: (training, test) sample numbers.

    Args:
        contents: of each sample.
        count: how many splits.
        share: of the contents that are for testing; at least two.

    Raises:
        InputError: fewer than four contents.
    """
    names = sorted(set(contents), key=str)
    if len(names) < 4:
        raise InputError(
            f"splits by content need at least two contents on either side, so four in all; here are {len(names)}"
        )
    chance = np.random.default_rng(seed)
    held = min(max(2, round(share * len(names))), len(names) - 2)
    for _ in range(count):
        chosen = {names[int(i)] for i in chance.permutation(len(names))[:held]}
        inside = np.array([c in chosen for c in contents])
        train, test = np.flatnonzero(~inside), np.flatnonzero(inside)
        check_split([contents[int(i)] for i in train], [contents[int(i)] for i in test])
        yield train, test


def cross_validate(
    features: np.ndarray,
    scores: np.ndarray,
    contents: Sequence[Hashable],
    count: int = 10,
    seed: int = 0,
    fit: Fit = fit_ridge,
) -> Agreement:
    """Median SRCC and PLCC of regressors over splits by content.

    Args:
        features: (n, d).
        scores: (n,).
        contents: what each sample shows.
        count: splits.
        seed: of the splits.
        fit: makes a regressor of features, scores and contents; its penalty is chosen within the training part.

    Raises:
        InputError: unusable samples, fewer than four contents.
    """
    features, scores = np.asarray(features, np.float64), np.asarray(scores, np.float64)
    check_samples(features, scores)
    found: list[tuple[float, float]] = []
    for train, test in content_splits(contents, count, seed=seed):
        made = fit(features[train], scores[train], [contents[int(i)] for i in train])(features[test])
        found.append((srcc(made, scores[test]), plcc(made, scores[test])))
    a, b = zip(*found, strict=True)
    return Agreement(statistics.median(a), statistics.median(b), len(found), len(set(contents)))
