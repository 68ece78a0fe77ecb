"""Fits to orders: the minimum is one, slight steps come out in order, figures are of contents left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from saccade.errors import InputError
from saccade.quality.reiqa.network import ReIQA
from saccade.quality.reiqa.ordering import MARGIN, PULL, fit_ordered, order_weights
from saccade.quality.reiqa.ridge import fit_ridge
from saccade.quality.reiqa.synthetic import FAMILIES, columns, fit_regressors, neighbours, rated_pieces, softened
from saccade.registry import create


def slight_steps(contents: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[int], np.ndarray]:
    """Levels 0 to 5 of each content; the first is told by a feature alone that depends on the content far more.

    Returns features, ratings, contents, pairs.
    """
    chance = np.random.default_rng(seed)
    rows, ratings, whose = [], [], []
    for content in range(contents):
        own = 0.3 * chance.normal()
        for level in range(6):
            heavy = max(0, level - 1) + 0.15 * chance.normal()
            slight = 0.2 * (level > 0) + own + 0.02 * chance.normal()
            rows.append([heavy, slight, *chance.normal(0, 1, 3)])
            ratings.append(100 - 20.0 * level)
            whose.append(content)
    return np.array(rows), np.array(ratings), whose, neighbours([i % 6 for i in range(6 * contents)])


def loss(c: np.ndarray, z: np.ndarray, y: np.ndarray, steps: np.ndarray, alpha: float) -> float:
    ridge = 0.5 * ((z @ c - y) ** 2).sum() + 0.5 * alpha * c @ c
    return float(ridge + PULL * np.log1p(np.exp(-(steps @ c) / MARGIN)).sum())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), alpha=st.sampled_from([0.1, 10.0, 1000.0]), far=st.sampled_from([0.0, 30.0]))
def test_newton_ends_in_the_minimum_from_anywhere(seed: int, alpha: float, far: float) -> None:
    chance = np.random.default_rng(seed)
    z, y, steps = chance.normal(0, 1, (30, 6)), chance.normal(0, 20, 30), chance.normal(0.3, 1, (40, 6))
    z, y = z - z.mean(0), y - y.mean()
    found = order_weights(z, y, steps, alpha, far * chance.normal(0, 1, 6) if far else None)
    least = loss(found, z, y, steps, alpha)
    for size in (1e-3, 1e-1, 1.0):
        for _ in range(10):
            assert loss(found + size * chance.normal(0, 1, 6), z, y, steps, alpha) >= least * (1 - 1e-7)


def test_without_pairs_to_settle_it_is_the_ridge() -> None:
    x, y, _, _ = slight_steps()
    z = (x - x.mean(0)) / x.std(0)
    found = order_weights(z, y - y.mean(), np.zeros((1, x.shape[1])), 10.0)
    np.testing.assert_allclose(found, fit_ridge(x, y, alphas=[10.0]).coefficients * x.std(0), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("seed", range(3))
def test_slight_steps_come_out_in_order_where_a_ridge_gives_them_up(seed: int) -> None:
    x, y, whose, pairs = slight_steps(seed=seed)
    new, _, _, same = slight_steps(seed=100 + seed)
    first = same[::5]  # untouched against level 1

    def ordered(scores: np.ndarray) -> float:
        return float((scores[first[:, 0]] > scores[first[:, 1]]).mean())

    ours, ridge = fit_ordered(x, y, whose, pairs, [1.0]), fit_ridge(x, y, whose)
    assert ordered(ours(new)) > 0.9 > 0.65 > ordered(ridge(new))
    assert ours.srcc > 0.9


def test_figures_are_of_contents_that_the_fit_had_not_seen() -> None:
    chance = np.random.default_rng(0)
    x, levels = chance.normal(0, 1, (300, 200)), [i % 6 for i in range(300)]
    y = np.array([100 - 20.0 * level for level in levels])
    found = fit_ordered(x, y, [i // 6 for i in range(300)], neighbours(levels), [1e-3])
    assert abs(found.srcc) < 0.2
    assert 0.35 < found.in_order < 0.65
    assert found.left_out_error > 25


def test_scores_have_the_scale_of_the_ratings_and_idle_features_count_for_nothing() -> None:
    x, y, whose, pairs = slight_steps()
    x = np.concatenate([x * 1e-3, np.full((len(x), 1), 7.0)], 1)
    found = fit_ordered(x, y, whose, pairs)
    assert found.coefficients[-1] == 0
    assert found(x).mean() == pytest.approx(y.mean())
    assert np.polyfit(found(x), y, 1)[0] == pytest.approx(1, abs=0.1)
    assert found.alpha in (30.0, 100.0, 300.0, 1000.0, 3000.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"contents": [0] * 12}, "at least two contents"),
        ({"pairs": np.array([[0, 12]])}, "12 samples"),
        ({"pairs": np.zeros((0, 2), int)}, "12 samples"),
        ({"pairs": np.array([[0, 6]])}, "one content"),
        ({"pairs": np.array([[0.0, 1.0]])}, "float64"),
        ({"contents": [0] * 6 + [1] * 5}, "11 contents are told for 12 samples"),
        ({"penalties": []}, "positive numbers"),
        ({"penalties": [1.0, 0.0]}, "positive numbers"),
        ({"ratings": np.full(12, 3.0)}, "all scores are equal"),
    ],
)
def test_what_cannot_be_fitted_is_refused(change: dict[str, Any], said: str) -> None:
    x, y, whose, pairs = slight_steps(2)
    given: dict[str, Any] = {"features": x, "ratings": y, "contents": whose, "pairs": pairs} | change
    with pytest.raises(InputError, match=said):
        fit_ordered(**given)


def test_pairs_of_two_contents_are_refused_also_where_both_are_left_out_together() -> None:
    x, y, whose, _ = slight_steps(6)
    with pytest.raises(InputError, match="one content"):
        fit_ordered(x, y, whose, np.array([[0, 30]]))  # contents 0 and 5, of five parts


@pytest.fixture
def photographs(tmp_path: Path) -> list[Path]:
    chance = np.random.default_rng(0)
    for i in range(3):
        rough = Image.fromarray(chance.integers(0, 256, (40, 50, 3), dtype=np.uint8))
        rough.resize((320, 280)).save(tmp_path / f"{i}.png")
    return sorted(tmp_path.glob("*.png"))


def test_pieces_come_level_by_level_and_neighbours_share_their_place(photographs: list[Path]) -> None:
    rated = list(rated_pieces(photographs, each=2))
    assert len(rated) == 3 * 2 * (1 + 5 * len(FAMILIES))
    pairs = neighbours([r.level for r in rated])
    assert len(pairs) == len(rated) - 6
    for better, worse in pairs:
        a, b = rated[better], rated[worse]
        assert b.level == a.level + 1
        assert a.content == b.content
        assert a.pixels.shape == b.pixels.shape
        assert a.kind in ("", b.kind)
    again = list(rated_pieces(photographs, each=2))
    assert all((a.pixels == b.pixels).all() for a, b in zip(rated, again, strict=True))


def test_softened_pieces_are_less_sharp_and_grainy_to_the_measure_that_is_asked() -> None:
    chance = np.random.default_rng(0)
    rough = chance.integers(60, 200, (120, 120, 3), dtype=np.uint8)
    soft = softened(rough, 180, 0.0, chance)
    assert soft.shape == (180, 180, 3)
    assert soft.dtype == np.uint8

    def steepness(x: np.ndarray) -> float:
        return float(np.abs(np.diff(x.astype(float), axis=1)).mean())

    assert steepness(soft) < 0.8 * steepness(rough)
    flat = np.full((200, 200, 3), 128, np.uint8)
    grain = softened(flat, 200, 5.0, chance).astype(float) - 128
    assert grain.std() == pytest.approx(5, rel=0.05)
    assert np.corrcoef(grain[..., 0].ravel(), grain[..., 1].ravel())[0, 1] == pytest.approx(0.5, abs=0.03)


@pytest.mark.slow
def test_every_layout_gets_its_regressor(photographs: list[Path]) -> None:
    model = create("reiqa_small", weights=None, width=0.0625, layers=[1, 1]).eval()
    assert isinstance(model, ReIQA)
    model.use("quality")
    fits = fit_regressors(model, photographs[:2], threads=1)
    assert list(fits) == model.settings() == list(columns(model))
    assert model.setting == "quality"
    for name, fit in fits.items():
        kept = model.state_dict()[f"coefficients_{name}"].numpy()
        np.testing.assert_allclose(kept, fit.coefficients, rtol=1e-5)
        assert len(fit.coefficients) == model.dimensions(name)
