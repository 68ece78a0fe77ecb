"""Elastic net: the minimum is one by its conditions, features are left out, contents are left out together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.errors import InputError
from saccade.quality.reiqa.elastic import STRENGTHS, elastic_weights, fit_elastic_net, strongest_penalty
from saccade.quality.reiqa.protocol import cross_validate
from saccade.quality.reiqa.ridge import fit_ridge


def data(n: int = 60, d: int = 20, seed: int = 0, noise: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the first three features alone; neighbouring features are alike."""
    chance = np.random.default_rng(seed)
    x = np.cumsum(chance.normal(0, 1, (n, d)), 1) * chance.uniform(0.1, 5, d) + 2
    return x, x[:, :3] @ np.array([2.0, -1.0, 1.0]) + noise * chance.standard_normal(n) + 3


def loss(z: np.ndarray, y: np.ndarray, c: np.ndarray, penalty: float, share: float) -> float:
    return float(((y - z @ c) ** 2).mean() / 2 + penalty * (share * np.abs(c).sum() + (1 - share) / 2 * (c @ c)))


@given(
    n=st.integers(4, 50),
    d=st.integers(1, 60),
    seed=st.integers(0, 1000),
    strength=st.floats(1e-3, 1.1),
    share=st.floats(0.05, 1),
)
@settings(max_examples=60, deadline=None)
def test_the_slope_of_the_minimum_is_what_the_penalty_allows(
    n: int, d: int, seed: int, strength: float, share: float
) -> None:
    x, y = data(n, max(d, 3), seed)
    z, y = (x - x.mean(0)) / x.std(0), y - y.mean()
    penalty = strength * strongest_penalty(z, y, share)
    c = elastic_weights(z, y, penalty, share)
    slope = z.T @ (y - z @ c) / n - penalty * (1 - share) * c
    allowed, slack = penalty * share, 1e-5 * np.abs(z.T @ y).max() / n
    assert (np.abs(slope[c == 0]) <= allowed + slack).all()
    np.testing.assert_allclose(slope[c != 0], allowed * np.sign(c[c != 0]), atol=slack)
    if strength >= 1:
        assert not c.any()


def test_on_independent_features_weights_are_shrunken_one_by_one() -> None:
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(40, 6)))[0] * 40**0.5
    y = basis @ np.array([3.0, -2.0, 0.4, 0.0, 1.0, -0.1])
    c = elastic_weights(basis, y, 1.0, 0.5)
    np.testing.assert_allclose(c, np.array([2.5, -1.5, 0, 0, 0.5, 0]) / 1.5, atol=1e-5)


def test_no_neighbour_of_the_minimum_is_lower() -> None:
    x, y = data()
    z, y = (x - x.mean(0)) / x.std(0), y - y.mean()
    c, chance = elastic_weights(z, y, 0.2, 0.7), np.random.default_rng(1)
    own = loss(z, y, c, 0.2, 0.7)
    for size in (1e-3, 1e-1, 1.0):
        for _ in range(50):
            assert loss(z, y, c + size * chance.standard_normal(len(c)), 0.2, 0.7) > own


def test_the_penalty_with_the_smallest_errors_on_contents_left_out_is_taken() -> None:
    x, y = data(40, 30, noise=4.0)
    contents = [i // 4 for i in range(40)]
    found = fit_elastic_net(x, y, contents)
    errors = [fit_elastic_net(x, y, contents, strengths=[s]).left_out_error for s in STRENGTHS]
    assert found.left_out_error == pytest.approx(min(errors), rel=1e-3)
    z = (x - x.mean(0)) / x.std(0)
    wrong = []
    for part in range(5):
        out = np.array([c % 5 == part for c in contents])
        middle, mean = z[~out].mean(0), y[~out].mean()
        c = elastic_weights(z[~out] - middle, y[~out] - mean, found.alpha, 0.5)
        wrong.extend((z[out] - middle) @ c + mean - y[out])
    assert found.left_out_error == pytest.approx(np.sqrt(np.mean(np.square(wrong))), rel=1e-3)


def test_a_lasso_leaves_out_what_says_nothing_and_scores_as_well_as_a_ridge() -> None:
    chance = np.random.default_rng(0)
    x = chance.normal(1, 2, (120, 80)) * chance.uniform(0.1, 5, 80)
    y = x[:, :3] @ np.array([4.0, -3.0, 5.0]) + chance.standard_normal(120)
    contents = [i // 3 for i in range(120)]
    lasso = fit_elastic_net(x, y, contents, share=1.0)
    assert lasso.used < 40
    assert lasso.used == np.count_nonzero(lasso.coefficients)
    assert (lasso.coefficients[:3] != 0).all()
    assert lasso.left_out_error < fit_ridge(x, y, contents).left_out_error
    np.testing.assert_allclose(lasso(x), x @ lasso.coefficients + lasso.intercept)
    agreement = cross_validate(x, y, contents, fit=lambda a, b, c: fit_elastic_net(a, b, c, share=1.0))
    assert agreement.srcc > cross_validate(x, y, contents).srcc - 0.01


def test_features_that_never_change_count_for_nothing() -> None:
    x, y = data()
    wide = np.concatenate([x, np.full((len(x), 2), 3.5)], 1)
    found = fit_elastic_net(wide, y)
    assert not found.coefficients[-2:].any()
    np.testing.assert_allclose(found(wide), fit_elastic_net(x, y)(x), rtol=1e-4)


def test_what_cannot_be_fitted_is_refused() -> None:
    x, y = data()
    for share in (0.0, 1.5, float("nan")):
        with pytest.raises(InputError, match="lies in"):
            fit_elastic_net(x, y, share=share)
    with pytest.raises(InputError, match="strengths are positive"):
        fit_elastic_net(x, y, strengths=[])
    with pytest.raises(InputError, match="at least two are needed"):
        fit_elastic_net(x, y, ["a"] * len(y))
    with pytest.raises(InputError, match="all scores are equal"):
        fit_elastic_net(x, np.ones_like(y))
