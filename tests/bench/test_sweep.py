"""The sweep: exponents, what is measured, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from saccade.bench import sweep
from saccade.errors import UsageError


def test_the_exponent_is_that_of_a_power_law_in_pixels() -> None:
    assert sweep.exponent([10, 20, 40], [1.0, 4.0, 16.0]) == pytest.approx(1)
    assert sweep.exponent([10, 20, 40], [1.0, 16.0, 256.0]) == pytest.approx(2)
    assert sweep.exponent([10, 20], [0.0, 3.0]) is None


def test_one_variant_of_each_system_is_swept_by_default() -> None:
    names = sweep.default_models()
    assert "shvit_s1" in names
    assert "shvit" not in names
    assert "efficientvit_m0" in names  # built for each size
    assert {"elasticvit_t1", "piip_tsb_368", "foveated_texture_resnet18"} <= set(names)  # so are these


def test_a_network_is_measured_and_drawn(tmp_path: Path) -> None:
    found = sweep.run(["shvit_s1"], (64, 128), threads=1)
    (course,) = found.courses
    assert course.sides == (64, 128)
    assert 0 < course.seconds[0] < 5
    assert course.parameters == 6_308_660
    assert json.loads(json.dumps(found.to_dict()))["courses"][0]["model"] == "shvit_s1"
    sweep.plot(found, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("name", "side"),
    [("efficientvit_m0", 192), ("elasticvit_t1", 96), ("foveated_texture_resnet18", 96), ("piip_nano", 48)],
)
def test_networks_for_one_size_are_built_for_each(name: str, side: int) -> None:
    (course,) = sweep.run([name], (side,), threads=1).courses
    assert course.sides == (side,)
    assert course.seconds[0] > 0


def test_what_fails_is_told_in_the_note() -> None:
    (course,) = sweep.run(["shvit_s1"], (8,), threads=1).courses
    assert course.sides == ()
    assert "at least 16 px" in course.note


def test_other_models_are_refused() -> None:
    with pytest.raises(UsageError, match="super-resolution"):
        sweep.run(["sesr_m5"])
