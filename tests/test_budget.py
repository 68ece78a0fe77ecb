"""The dial: its protocol, and the sweep over it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from saccade.budget import Budgeted, Pareto, Point, check_budget, has_budget, pareto
from saccade.errors import InputError, UnavailableError, UsageError


class Depth(nn.Module):
    """Four layers of 3x3 weights, the first ``budget`` of them run; each brings the output nearer to ones."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3, 3, bias=False) for _ in range(4))
        for weight in self.layers.parameters():
            nn.init.constant_(weight, 1 / 3)
        self._budget = 1.0

    @property
    def budget(self) -> float:
        return self._budget

    @budget.setter
    def budget(self, value: float) -> None:
        self._budget = check_budget(value)

    def budgets(self) -> list[float]:
        return [0.25, 0.5, 0.75, 1.0]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[: max(1, round(4 * self.budget))]:
            x = (layer(x) + 1) / 2
        return x


def closeness(output: Tensor, target: Tensor) -> Tensor:
    return -(output - target).abs().mean()


def pairs(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    seed = torch.Generator().manual_seed(0)
    return [(torch.rand(5, 3, generator=seed), torch.ones(5, 3)) for _ in range(count)]


def point(budget: float, quality: float, macs: float, seconds: float = 1.0) -> Point:
    return Point(budget, quality, macs, seconds)


@given(st.floats(0, 1, exclude_min=True))
def test_a_share_is_a_budget(value: float) -> None:
    assert check_budget(value) == value


def test_numbers_of_other_kinds_are_budgets() -> None:
    assert check_budget(1) == 1.0
    assert isinstance(check_budget(1), float)
    assert check_budget(torch.tensor(0.5)) == 0.5


@pytest.mark.parametrize(
    "value", [0, -0.1, 1.0000001, float("nan"), float("inf"), "0.5", "half", None, True, [0.5], torch.rand(2), 1j]
)
def test_anything_else_is_refused(value: object) -> None:
    with pytest.raises(UsageError, match=r"a budget is a number in \(0, 1\]"):
        check_budget(value)


def test_a_model_has_the_dial_when_it_has_both_halves() -> None:
    assert has_budget(Depth())
    assert isinstance(Depth(), Budgeted)
    assert not has_budget(nn.Linear(1, 1))
    assert not has_budget(None)

    class Half:
        budget = 1.0

    assert not has_budget(Half())


def test_a_sweep_gives_quality_and_executed_macs_for_every_setting() -> None:
    swept = pareto(Depth(), pairs(), closeness)
    assert [p.budget for p in swept.points] == [0.25, 0.5, 0.75, 1.0]
    assert [p.macs for p in swept.points] == [5 * 9 * layers for layers in (1, 2, 3, 4)]
    assert all(p.seconds > 0 for p in swept.points)
    qualities = [p.quality for p in swept.points]
    assert qualities == sorted(set(qualities))
    assert swept.front() == swept.points
    assert swept.samples == 3


def test_quality_is_the_mean_over_the_samples() -> None:
    model, data = Depth(), pairs(4)
    by_hand = [float(closeness(model(x), y).detach()) for x, y in data]
    assert pareto(model, data, closeness, [1.0]).points[0].quality == pytest.approx(sum(by_hand) / 4, rel=1e-6)


def test_the_model_comes_back_at_its_own_budget_and_mode() -> None:
    model = Depth().train()
    model.layers[1].eval()
    model.budget = 0.5
    pareto(model, pairs(), closeness)
    assert model.budget == 0.5
    assert model.training
    assert not model.layers[1].training


def test_the_budget_comes_back_after_an_error_too() -> None:
    model = Depth().train()
    model.budget = 0.75

    def broken(output: Tensor, target: Tensor) -> float:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        pareto(model, pairs(), broken)
    assert model.budget == 0.75
    assert model.training


def test_settings_are_sorted_checked_and_tried_once() -> None:
    model = Depth()
    assert [p.budget for p in pareto(model, pairs(), closeness, [1, 0.5, 0.5]).points] == [0.5, 1.0]
    with pytest.raises(UsageError, match=r"not 1\.5"):
        pareto(model, pairs(), closeness, [0.5, 1.5])
    with pytest.raises(UsageError, match="no budgets"):
        pareto(model, pairs(), closeness, [])


def test_a_model_without_the_dial_cannot_be_swept() -> None:
    with pytest.raises(UsageError, match="Linear has no budget dial"):
        pareto(nn.Linear(3, 3), pairs(), closeness)


def test_data_may_come_from_an_iterator_but_not_be_missing() -> None:
    def stream() -> Iterator[tuple[Tensor, Tensor]]:
        yield from pairs(2)

    assert pareto(Depth(), stream(), closeness).points[3].macs == 4 * 45
    with pytest.raises(InputError, match="no data"):
        pareto(Depth(), [], closeness)
    with pytest.raises(InputError, match="no data"):
        pareto(Depth(), iter(()), closeness)


def test_several_arguments_come_as_a_tuple() -> None:
    class Two(Depth):
        def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
            assert y is not None
            return super().forward(x) + y

    x, target = pairs(1)[0]
    plain = pareto(Depth(), [(x, target)], closeness, [1.0]).points[0]
    moved = pareto(Two(), [((x, torch.full((5, 3), 10.0)), target)], closeness, [1.0]).points[0]
    assert moved.macs == plain.macs == 180
    assert moved.quality == pytest.approx(-10 - plain.quality, abs=1e-5)


def test_a_metric_that_is_no_number_is_named() -> None:
    with pytest.raises(InputError, match=r"not a number at budget 0\.25"):
        pareto(Depth(), pairs(), lambda output, target: float("nan"))


def test_the_front_leaves_out_what_another_point_beats() -> None:
    a, b, c, d = point(0.1, 20, 1), point(0.2, 30, 2), point(0.3, 29, 3), point(1.0, 31, 4)
    assert Pareto((a, b, c, d), 1).front() == (a, b, d)
    assert Pareto((a, b, c, d), 1, higher_is_better=False).front() == (a,)


def test_the_front_can_be_taken_by_time() -> None:
    quick, slow = point(0.5, 30, 9, seconds=1), point(0.6, 29, 1, seconds=2)
    assert Pareto((quick, slow), 1).front() == (slow, quick)
    assert Pareto((quick, slow), 1).front("seconds") == (quick,)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12), st.booleans())
def test_every_point_is_on_the_front_or_beaten_by_one_that_is(values: list[tuple[int, int]], higher: bool) -> None:
    points = tuple(point((i + 1) / 20, q, m) for i, (q, m) in enumerate(values))
    front = Pareto(points, 1, higher).front()
    sign = 1 if higher else -1

    def beats(a: Point, b: Point) -> bool:
        return a.macs <= b.macs and sign * a.quality >= sign * b.quality

    assert all(p in front or any(beats(f, p) for f in front) for p in points)
    assert not any(beats(f, g) for f in front for g in front if f is not g)


def test_results_go_to_json() -> None:
    swept = pareto(Depth(), pairs(), closeness)
    read = json.loads(json.dumps(swept.to_dict()))
    assert read["front"] == [0.25, 0.5, 0.75, 1.0]
    assert read["samples"] == 3
    assert set(read["points"][0]) == {"budget", "quality", "macs", "seconds"}


def test_the_plot_is_drawn_whole_and_never_over_another(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    swept = Pareto((point(0.5, 30, 1e9), point(0.7, 29, 2e9), point(1.0, 31, 3e9)), 1)
    path = swept.plot(tmp_path / "dial.png", quality="PSNR-Y (dB)", title="pcsr")
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UsageError, match="exists"):
        swept.plot(path)
    drawn = swept.plot(tmp_path / "dial.svg", by="seconds", quality="PSNR-Y (dB)").read_text(encoding="utf-8")
    assert "<svg" in drawn
    swept.plot(path, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dial.png", "dial.svg"]


def test_an_unknown_format_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(UsageError, match="its suffix is to be one of"):
        Pareto((point(1.0, 30, 1),), 1).plot(tmp_path / "dial.xyz")
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_the_message_tells_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UnavailableError, match=r"pip install 'saccade\[plot\]'"):
        Pareto((point(1.0, 30, 1),), 1).plot(tmp_path / "dial.png")


def test_the_ledger_and_the_dial_import_without_torch() -> None:
    code = "import sys, saccade.budget, saccade.cost; print({'torch', 'matplotlib', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
