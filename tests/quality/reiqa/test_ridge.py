"""Ridge by SVD: the left-out errors are those of real refits; the protocol's correlations are scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.errors import InputError
from saccade.quality.reiqa.protocol import (
    check_split,
    content_splits,
    cross_validate,
    logistic_fit,
    plcc,
    ranks,
    srcc,
)
from saccade.quality.reiqa.ridge import ALPHAS, fit_ridge


def data(n: int = 24, d: int = 7, seed: int = 0, noise: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    chance = np.random.default_rng(seed)
    x = chance.normal(1, 2, (n, d)) * chance.uniform(0.1, 5, d)
    return x, x @ chance.normal(0, 1, d) + noise * chance.standard_normal(n) + 3


def refit(x: np.ndarray, y: np.ndarray, alpha: float, scale: np.ndarray) -> tuple[np.ndarray, float]:
    """Ridge by the normal equations, with these scales."""
    centre = x.mean(0)
    z = (x - centre) / scale
    w = np.linalg.solve(z.T @ z + alpha * np.eye(x.shape[1]), z.T @ (y - y.mean())) / scale
    return w, float(y.mean() - centre @ w)


@pytest.mark.parametrize("alpha", [1e-3, 1.0, 300.0])
@pytest.mark.parametrize(("n", "d"), [(24, 7), (10, 30)])
def test_coefficients_are_those_of_the_normal_equations(alpha: float, n: int, d: int) -> None:
    x, y = data(n, d)
    found = fit_ridge(x, y, alphas=[alpha])
    w, b = refit(x, y, alpha, x.std(0))
    np.testing.assert_allclose(found.coefficients, w, rtol=1e-6, atol=1e-8)
    assert found.intercept == pytest.approx(b, rel=1e-6)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("alpha", [1e-2, 10.0])
def test_left_out_errors_are_those_of_real_refits(grouped: bool, alpha: float) -> None:
    x, y = data(20, 28)
    contents = [i // 4 for i in range(20)] if grouped else list(range(20))
    found = fit_ridge(x, y, contents, [alpha])
    errors = []
    for content in set(contents):
        out = np.array([c == content for c in contents])
        w, b = refit(x[~out], y[~out], alpha, x.std(0))
        errors.extend((x[out] @ w + b - y[out]) ** 2)
    assert found.left_out_error == pytest.approx(np.sqrt(np.mean(errors)), rel=1e-6)


def test_the_penalty_with_the_smallest_left_out_error_is_taken() -> None:
    x, y = data(30, 40, noise=5.0)
    found = fit_ridge(x, y)
    errors = {alpha: fit_ridge(x, y, alphas=[alpha]).left_out_error for alpha in ALPHAS}
    assert found.alpha == min(errors, key=errors.__getitem__)


def test_features_that_never_change_count_for_nothing() -> None:
    x, y = data()
    wide = np.concatenate([x, np.full((len(x), 2), 3.5)], 1)
    found = fit_ridge(wide, y)
    np.testing.assert_allclose(found.coefficients[-2:], 0)
    np.testing.assert_allclose(found(wide), fit_ridge(x, y)(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x, np.where(np.arange(len(y)) == 3, np.nan, y)), "score 3 is not a finite"),
        (lambda x, y: (np.where(np.arange(len(x))[:, None] == 5, np.inf, x), y), "features of sample 5"),
        (lambda x, y: (x, np.ones_like(y)), "all scores are equal"),
        (lambda x, y: (x[:2], y[:2]), "at least three"),
        (lambda x, y: (x, y[:-1]), "do not go together"),
    ],
)
def test_what_cannot_be_fitted_is_refused(change, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=message):
        fit_ridge(*change(*data()))


def test_one_content_is_refused() -> None:
    with pytest.raises(InputError, match="at least two are needed"):
        fit_ridge(*data(), contents=["a"] * 24)


# -- the protocol


stats = pytest.importorskip("scipy.stats")


@given(st.lists(st.integers(-5, 5), min_size=2, max_size=40))
@settings(max_examples=60, deadline=None)
def test_ranks_and_srcc_are_scipys(values: list[int]) -> None:
    x = np.array(values, float)
    np.testing.assert_allclose(ranks(x), stats.rankdata(x))
    y = np.random.default_rng(0).normal(size=len(x))
    if np.ptp(x):
        assert srcc(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    else:
        assert srcc(x, y) == 0


@pytest.mark.parametrize("falling", [False, True])
def test_the_logistic_straightens_a_logistic(falling: bool) -> None:
    x = np.linspace(-3, 3, 50)
    y = 20 + 60 / (1 + np.exp((x if falling else -x) / 0.4))
    np.testing.assert_allclose(logistic_fit(x, y), y, atol=0.05)
    assert plcc(x, y) == pytest.approx(1, abs=1e-5)


def test_the_logistic_is_no_worse_than_a_line() -> None:
    chance = np.random.default_rng(0)
    for _ in range(10):
        x = chance.normal(size=30)
        y = x + chance.normal(size=30)
        assert plcc(x, y) >= np.corrcoef(x, y)[0, 1] - 1e-12
    assert plcc(np.ones(5), np.arange(5)) == 0
    with pytest.raises(InputError):
        srcc(np.array([1.0, np.nan]), np.array([1.0, 2.0]))


@given(contents=st.integers(4, 30), versions=st.integers(1, 5), seed=st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_no_content_is_on_both_sides(contents: int, versions: int, seed: int) -> None:
    names = [f"c{i}" for i in range(contents) for _ in range(versions)]
    for train, test in content_splits(names, 5, seed=seed):
        assert not {names[i] for i in train} & {names[i] for i in test}
        assert len(train) + len(test) == len(names)
        assert len({names[i] for i in test}) == min(max(2, round(0.2 * contents)), contents - 2)


def test_leakage_and_too_few_contents_are_refused() -> None:
    with pytest.raises(InputError, match=r"content 'b' is both in the training and in the test part"):
        check_split(["a", "b"], ["b", "c"])
    with pytest.raises(InputError, match="at least two contents"):
        check_split(["a", "b"], ["c"])
    with pytest.raises(InputError, match="four in all; here are 3"):
        list(content_splits(["a", "b", "c"]))


def test_cross_validation_tells_a_signal_from_noise() -> None:
    x, y = data(60, 7)
    contents = [i // 3 for i in range(60)]
    assert cross_validate(x, y, contents).srcc > 0.9
    noise = cross_validate(x, np.random.default_rng(0).normal(size=60), contents)
    assert abs(noise.srcc) < 0.5
    assert (noise.splits, noise.contents) == (10, 20)
