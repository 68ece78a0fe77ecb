"""The statistics of `saccade bench`: who runs when, and what is made of the times."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade.bench.harness import Contender, Result, Timing, compare, machine, measure, save, versions
from saccade.errors import InputError, UsageError
from saccade.systems import _named_systems


class Clock:
    """Time that passes only when a contender says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def contender(name: str, clock: Clock, seconds: list[float], log: list[str]) -> Contender:
    """Takes ``seconds`` in turn, over and over."""
    calls = iter(range(10**6))

    def run() -> None:
        log.append(name)
        clock.now += seconds[next(calls) % len(seconds)]

    return Contender(name, run, threads=2)


def test_contenders_take_turns_after_their_warm_up() -> None:
    clock, log = Clock(), list[str]()
    contenders = [contender(name, clock, [1.0], log) for name in "ABC"]
    timings = measure(contenders, 3, warmup=2, rest=0, clock=clock)
    assert "".join(log) == "ABC" * 5
    assert list(timings) == ["A", "B", "C"]
    assert all(len(t.seconds) == 3 for t in timings.values())


def test_warm_up_is_not_counted() -> None:
    clock = Clock()
    timings = measure([contender("A", clock, [9.0, 1.0, 2.0, 3.0], [])], 3, warmup=1, rest=0, clock=clock)
    assert timings["A"].seconds == (1.0, 2.0, 3.0)


def test_medians_resist_one_slow_round() -> None:
    clock = Clock()
    timings = measure([contender("A", clock, [2.0, 100.0, 1.0], [])], 3, warmup=0, rest=0, clock=clock)
    assert timings["A"].median == 2.0
    assert timings["A"].best == 1.0


@given(ours=st.lists(st.floats(1e-3, 10), min_size=1, max_size=9), peer=st.lists(st.floats(1e-3, 10), min_size=1))
def test_a_ratio_is_the_peers_median_over_ours(ours: list[float], peer: list[float]) -> None:
    timings = {"us": Timing("us", 4, tuple(ours)), "them": Timing("them", 1, tuple(peer))}
    (row,) = compare(timings, "us", system="sesr", what="work", size="1x1", command="saccade bench")
    assert row.ratio == pytest.approx(timings["them"].median / timings["us"].median, rel=1e-3, abs=1e-3)
    assert (row.ours, row.peer, row.threads, row.peer_threads) == ("us", "them", 4, 1)
    assert row.ours_best_ms <= row.ours_ms
    assert row.peer_best_ms <= row.peer_ms


def test_rows_can_be_of_chosen_peers() -> None:
    timings = {name: Timing(name, 1, (seconds,)) for name, seconds in (("a", 1.0), ("b", 2.0), ("c", 3.0))}
    rows = compare(timings, "b", ["c"], system="sesr", what="w", size="s", command="c")
    assert [(r.ours, r.peer, r.ratio) for r in rows] == [("b", "c", 1.5)]


def test_what_surrounds_a_contender_is_not_timed() -> None:
    clock, inside = Clock(), list[bool]()

    @contextmanager
    def slow_to_enter() -> Iterator[None]:
        clock.now += 50
        inside.append(True)
        yield
        inside.pop()
        clock.now += 50

    def run() -> None:
        assert inside
        clock.now += 1

    timings = measure([Contender("A", run, 1, slow_to_enter)], 2, rest=0, clock=clock)
    assert timings["A"].seconds == (1.0, 1.0)
    assert not inside


def test_progress_counts_every_call() -> None:
    clock, steps = Clock(), list[float]()
    contenders = [contender(name, clock, [1.0], []) for name in "AB"]
    measure(contenders, 3, warmup=1, rest=0, clock=clock, advance=steps.append)
    assert sum(steps) == 2 * (3 + 1)


def test_a_real_clock_sees_that_more_work_takes_longer() -> None:
    little, much = (Contender(str(n), lambda n=n: sum(range(n)), 1) for n in (100, 3_000_000))
    timings = measure([little, much], 3, rest=0)
    assert timings["100"].best < timings["3000000"].best


@pytest.mark.parametrize(
    ("names", "rounds", "warmup"), [((), 1, 0), (("A", "A"), 1, 0), (("A",), 0, 0), (("A",), 1, -1)]
)
def test_nonsense_is_refused(names: tuple[str, ...], rounds: int, warmup: int) -> None:
    with pytest.raises(UsageError):
        measure([Contender(name, lambda: None, 1) for name in names], rounds, warmup=warmup)


def test_the_machine_is_described_without_its_name() -> None:
    told = machine()
    assert re.search(r"\d+ cores", told)
    assert socket.gethostname() not in told.split()
    assert versions()["python"].count(".") == 2


def example() -> Result:
    timings = {"us": Timing("us", 4, (0.25,)), "them": Timing("them", 4, (0.5,))}
    rows = compare(timings, "us", system="sesr", what="work", size="8x8", command="saccade bench upscale")
    return Result("upscale", "saccade bench upscale", 1, tuple(rows))


def test_a_saved_result_is_a_speed_row_of_its_system(tmp_path: Path) -> None:
    save(example(), tmp_path / "upscale.json")
    kept = json.loads((tmp_path / "upscale.json").read_text())
    assert kept["rows"][0]["ratio"] == 2.0
    assert kept["rows"][0]["ours_ms"] == 250.0
    assert kept["machine"] == machine()
    assert _named_systems(tmp_path / "upscale.json") == {"sesr"}


def test_a_result_replaces_a_file_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "upscale.json"
    path.write_text("kept")
    with pytest.raises(InputError, match="overwrite"):
        save(example(), path)
    assert path.read_text() == "kept"
    save(example(), path, overwrite=True)
    assert json.loads(path.read_text())["name"] == "upscale"
    assert [p.name for p in tmp_path.iterdir()] == ["upscale.json"]


def test_a_result_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write"):
        save(example(), tmp_path / "no folder" / "upscale.json")
    assert not list(tmp_path.iterdir())
