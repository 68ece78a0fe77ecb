"""Generated weather: decided by the seed alone, over part of the picture, brighter where it should be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.data import weather as weathers
from saccade.data.generated import dead_leaves
from saccade.data.weather import KINDS, drops, fog, heavy_rain, line, rain, snow, weather
from saccade.errors import InputError, UsageError


def clean(batch: int = 2, height: int = 64, width: int = 80) -> torch.Tensor:
    made = [torch.from_numpy(dead_leaves(height, width, seed)) for seed in range(batch)]
    return torch.stack(made).permute(0, 3, 1, 2).float() / 255


def chance(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("over", [*KINDS.values(), fog, weather])
def test_weather_is_decided_by_the_seed_and_stays_in_range(over: object) -> None:
    x = clean()
    kept = x.clone()
    first, again, other = (over(x, chance(s)) for s in (1, 1, 2))  # type: ignore[operator]
    assert first.equal(again)
    assert not first.equal(other)
    assert x.equal(kept), "what is given stays as it was"
    assert first.shape == x.shape
    assert 0 <= float(first.min()) <= float(first.max()) <= 1
    assert 0.01 < float((first - x).abs().mean()) < 0.5


@pytest.mark.parametrize("over", [rain, snow])
def test_rain_adds_light_and_snow_pulls_towards_its_own(over: object) -> None:
    dark = torch.full((4, 3, 64, 64), 0.1)
    y = over(dark, chance())  # type: ignore[operator]
    assert (y >= 0.1 - 1e-6).all()
    assert 0.02 < float((y > 0.15).float().mean()) < 0.9, "some of the picture, not all"


def test_snow_is_no_brighter_than_a_flake() -> None:
    y = snow(torch.ones(2, 3, 64, 64), chance())
    assert float(y.min()) == pytest.approx(weathers.FLAKE, abs=1e-5)


def test_streaks_stand_within_the_tilt() -> None:
    for tilt in (-0.6, 0.0, 0.6):
        kernel = line(15, tilt)
        y, x = np.nonzero(kernel.numpy())
        fitted = np.polyfit(y, x, 1, w=kernel.numpy()[y, x])[0]
        assert fitted == pytest.approx(np.tan(tilt), abs=0.05)
        assert float(kernel.sum()) == pytest.approx(15, rel=0.15)


def test_fog_takes_contrast_and_heavy_rain_is_rain_in_fog() -> None:
    x = clean()
    assert (fog(x, chance()).std((1, 2, 3)) < x.std((1, 2, 3))).all()
    generator = chance(3)
    assert heavy_rain(x[:1], chance(3)).equal(rain(fog(x[:1], generator), generator))


def test_drops_leave_the_rest_of_the_picture_as_it_was() -> None:
    x = clean()
    y = drops(x, chance())
    untouched = (y == x).all(1).float().mean((1, 2))
    assert ((untouched > 0.3) & (untouched < 1)).all()


@given(
    height=st.integers(1, 40), width=st.integers(1, 40), kind=st.sampled_from([*KINDS, "fog"]), seed=st.integers(0, 9)
)
@settings(max_examples=40, deadline=None)
def test_any_size_can_have_weather(height: int, width: int, kind: str, seed: int) -> None:
    over = KINDS.get(kind, fog)
    y = over(torch.full((1, 3, height, width), 0.5), chance(seed))
    assert y.shape == (1, 3, height, width)
    assert y.isfinite().all()


def test_kinds_can_be_chosen_and_come_in_turn() -> None:
    x = clean(1).expand(6, -1, -1, -1)
    only = weather(x, chance(), ["snow"])
    generator = chance()
    generator.integers(1, size=6)
    assert only.equal(torch.cat([snow(p[None], generator) for p in x]))


@pytest.mark.parametrize("kinds", [["hail"], []])
def test_unknown_weather_is_refused(kinds: list[str]) -> None:
    with pytest.raises(UsageError, match="there is rain, heavy rain, snow, drops"):
        weather(clean(1), chance(), kinds)


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(3, 8, 8),
        torch.zeros(1, 1, 8, 8),
        torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
        torch.zeros(0, 3, 8, 8),
    ],
)
def test_what_is_no_batch_of_pictures_is_refused(x: torch.Tensor) -> None:
    for over in (*KINDS.values(), fog, weather):
        with pytest.raises(InputError, match="float pictures"):
            over(x, chance())


def test_the_cards_rain_and_snow_degrade_as_much_as_measured() -> None:
    x = torch.from_numpy(dead_leaves(256, 256, 0)).permute(2, 0, 1)[None].float() / 255
    found = [
        float(-10 * torch.log10((over(x, chance(s)) - x).square().mean())) for over in (rain, snow) for s in range(6)
    ]
    assert 17 < np.mean(found) < 23  # 19.68 on photographs
