"""``saccade scale`` on backbones that are built and measured."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

import saccade
from saccade.cost import cost
from saccade.errors import UsageError


def run(*arguments: str) -> tuple[str, Exception | None]:
    from saccade.cli import verbs

    result = CliRunner().invoke(verbs, ["scale", *arguments])
    return result.stdout, result.exception if isinstance(result.exception, Exception) else None


def test_the_call_builds_the_network_that_was_told() -> None:
    out, error = run("van_b0", "--macs", "2G", "--json")
    assert error is None
    told = json.loads(out)
    assert told["macs"] == told["achieved"] == pytest.approx(2e9, rel=0.05)
    with torch.device("meta"):
        model = eval(told["call"], {"saccade": saccade})
        found = cost(model, torch.empty(1, 3, told["size"], told["size"]))
    assert (found.macs, found.parameters, found.activations) == (told["macs"], told["params"], told["activations"])
    assert told["base"]["size"] == 224
    assert told["base"]["options"] == {}
    assert set(told["options"]) <= {"widths", "depths"}
    assert told["seconds"] is None


def test_the_table_shows_before_and_after_and_the_call() -> None:
    out, error = run("shvit_s1", "--by", "3", "--strategy", "width")
    assert error is None
    lines = out.splitlines()
    assert lines[0] == "shvit_s1 scaled by 3 (width)"
    assert [line.split()[0] for line in lines[3:5]] == ["before", "after"]
    assert lines[6].startswith('saccade.create("shvit_s1", weights=None, widths=(')
    assert "from the target; activations grew as MACs^" in lines[8]


def test_descriptions_tell_their_call_too() -> None:
    told = json.loads(run("regnety_400mf", "--macs", "1G", "--json")[0])
    with torch.device("meta"):
        model = eval(told["call"], {"saccade": saccade})
        size = told["train_size"]
        found = cost(model, torch.empty(1, 3, size, size))
    assert found.parameters == told["params"]
    assert found.macs == pytest.approx(told["macs"], rel=1e-4)  # the paper's count has the biases too


def test_latency_is_measured_here() -> None:
    told = json.loads(run("shvit_s1", "--latency", "25", "--threads", "1", "--json")[0])
    assert told["seconds"] == told["achieved"] > 0
    assert told["target"] == 0.025


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("elasticvit", "--macs", "1G"), "not a network that can be scaled: a supernet"),
        (("van_b0", "--macs", "1G", "--params", "3M"), "got --macs and --params"),
        (("van_b0", "--macs", "1G", "--strategy", "zap"), "no scaling strategy 'zap'"),
        (("van_b0", "--macs", "1k", "--strategy", "depth"), "at the nearest"),
        (("van_b0", "--macs", "1e30"), "--macs lies between 1 and 1e+13, not at 1e+30"),
        (("van_b0", "--by", "1e30"), "--by lies between 0.0001 and 10000"),
        (("van_b0", "--by", "nan"), "--by lies between"),
        (("van_b0", "--macs", "1G", "--size", "1000000000"), "--size lies between 1 and 16384"),
        (("regnety_400mf", "--latency", "1e30"), "--latency lies between 0.001 and 60000"),
    ],
)
def test_misuse_is_refused_in_one_line(arguments: tuple[str, ...], says: str) -> None:
    _, error = run(*arguments)
    assert isinstance(error, UsageError)
    assert says in str(error)
    assert "\n" not in str(error)
