"""The harness of claims: what a run writes, prints and refuses; that every claim's inequality can fail."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import saccade.reproduce as harness
from saccade.cli import main
from saccade.data.generated import write_pictures
from saccade.errors import InputError, UsageError
from saccade.reproduce import Claim, Data, claims, load_claim, plain, reproduce

RESULTS = Path(__file__).parents[2] / "docs" / "results"
DATA = Path(os.environ.get("SACCADE_DATA", Path(__file__).parents[3] / "shared" / "data"))

KEYS = [
    "system",
    "claim",
    "source",
    "baseline",
    "figures",
    "met",
    "seconds",
    "machine",
    "versions",
    "seed",
    "other_seeds",
    "met_with_seed",
]


def dummy(figures: dict[str, Any], met: Any = True) -> SimpleNamespace:
    def plot(f: dict[str, Any], path: Path) -> None:
        Image.new("RGB", (4, 4)).save(path)

    return SimpleNamespace(
        CLAIM=Claim("espcn", "It is so.", "table 1", "the other"),
        run=lambda data, seed: {"seed_seen": seed, **figures},
        met=lambda f: met,
        plot=plot,
    )


@pytest.fixture
def claim(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    made = dummy({"psnr_db": np.float32(31.5), "count": np.int64(3), "broken": math.inf, "by": [1.0, 2.0]})
    monkeypatch.setattr(harness, "load_claim", lambda slug: made)
    return made


def test_a_result_holds_what_the_gallery_needs_and_no_more(claim: SimpleNamespace, tmp_path: Path) -> None:
    claim.met = lambda f: np.bool_(True)
    result = reproduce("espcn", seed=5, out=tmp_path / "new" / "folder")
    told = json.loads((tmp_path / "new" / "folder" / "espcn.json").read_text())
    assert list(told) == KEYS
    assert told == result.to_dict()
    assert told["met"] is True
    assert told["seed"] == told["figures"]["seed_seen"] == 5
    assert told["figures"] == {
        "data": "none needed",
        "seed_seen": 5,
        "psnr_db": 31.5,
        "count": 3,
        "broken": None,
        "by": [1.0, 2.0],
    }
    assert set(told["versions"]) == {"python", "torch", "saccade"}
    assert (tmp_path / "new" / "folder" / "espcn.png").is_file()
    assert len(list((tmp_path / "new" / "folder").iterdir())) == 2, "nothing temporary is left"


@pytest.mark.parametrize(
    ("own", "takes", "told"),
    [
        ({}, False, "none needed"),
        ({"data": "MNIST"}, False, "MNIST"),
        ({}, True, "generated pictures"),
        ({"data": "generated shapes"}, True, "generated shapes, generated pictures"),
    ],
)
def test_a_result_tells_the_data_that_the_claim_names_and_what_it_took(
    claim: SimpleNamespace, tmp_path: Path, own: dict[str, str], takes: bool, told: str
) -> None:
    def run(data: Data, seed: int) -> dict[str, Any]:
        if takes:
            data.training()
        return {"psnr_db": 30.0, **own}

    claim.run = run
    assert reproduce("espcn", out=tmp_path, plot=False).figures["data"] == told
    assert json.loads((tmp_path / "espcn.json").read_text())["figures"]["data"] == told


def test_a_claim_is_met_where_every_seed_meets_it(claim: SimpleNamespace, tmp_path: Path) -> None:
    claim.met = lambda f: f["seed_seen"] != 6
    claim.run = lambda data, seed: {"seed_seen": seed, "by_kind": {"blur": 0.5, "why": "word"}, "curve": [1.0] * 64}
    result = reproduce("espcn", seed=5, seeds=3, out=tmp_path, plot=False)
    assert [other["seed"] for other in result.other_seeds] == [6, 7]
    assert [other["met"] for other in result.other_seeds] == [False, True]
    assert (result.met, result.met_with_seed) == (False, True)
    assert result.figures["seed_seen"] == 5
    assert result.other_seeds[0]["figures"] == {"seed_seen": 6, "by_kind": {"blur": 0.5}}
    assert json.loads((tmp_path / "espcn.json").read_text()) == result.to_dict()
    assert result.seconds == pytest.approx(sum(other["seconds"] for other in result.other_seeds), abs=0.5)
    claim.met = lambda f: True
    assert reproduce("espcn", seed=5, seeds=3, out=tmp_path, plot=False).met


def test_a_claim_needs_a_seed(claim: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least one seed, got 0"):
        reproduce("espcn", seeds=0, out=tmp_path)


def test_a_result_does_not_name_the_machine(claim: SimpleNamespace, tmp_path: Path) -> None:
    import getpass
    import platform

    text = json.dumps(reproduce("espcn", out=tmp_path, plot=False).to_dict())
    assert platform.node() not in text
    assert str(tmp_path) not in text
    assert getpass.getuser() not in json.loads(text)["machine"].split()
    assert " core" in json.loads(text)["machine"]


def test_a_run_that_fails_leaves_the_earlier_result(claim: SimpleNamespace, tmp_path: Path) -> None:
    reproduce("espcn", out=tmp_path)
    before = (tmp_path / "espcn.json").read_bytes()

    def fail(data: Data, seed: int) -> dict[str, Any]:
        raise InputError("no pictures")

    claim.run = fail
    with pytest.raises(InputError):
        reproduce("espcn", out=tmp_path)
    assert (tmp_path / "espcn.json").read_bytes() == before


def test_a_plot_that_fails_leaves_nothing_half_drawn(claim: SimpleNamespace, tmp_path: Path) -> None:
    def fail(figures: dict[str, Any], path: Path) -> None:
        path.write_bytes(b"half")
        raise ValueError("no such axis")

    claim.plot = fail
    with pytest.raises(ValueError, match="no such axis"):
        reproduce("espcn", out=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["espcn.json"]


def test_a_folder_that_cannot_be_written_is_refused_before_the_run(claim: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    claim.run = lambda data, seed: pytest.fail("ran")
    with pytest.raises(InputError, match="cannot write results"):
        reproduce("espcn", out=tmp_path / "file")


def test_a_folder_of_data_that_is_not_there_is_refused(claim: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder of pictures"):
        reproduce("espcn", tmp_path / "nowhere", out=tmp_path)


@pytest.mark.parametrize(
    ("value", "want"), [(np.zeros(2), [0.0, 0.0]), ((1, "a"), [1, "a"]), ({1: math.nan}, {"1": None})]
)
def test_figures_become_plain(value: Any, want: Any) -> None:
    assert plain(value) == want


def test_a_figure_that_is_no_number_is_refused() -> None:
    with pytest.raises(TypeError, match="not object"):
        plain({"a": object()})


# -- names


def test_the_four_claims_of_the_first_systems_are_found_without_importing_them() -> None:
    code = "import sys; from saccade.reproduce import claims; print(*claims()); assert 'torch' not in sys.modules"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"espcn", "fast_scaling", "pcsr", "sesr"} <= set(out)


@pytest.mark.parametrize("slug", claims())
def test_every_claim_has_the_parts_of_one(slug: str) -> None:
    module: ModuleType = load_claim(slug)
    assert module.CLAIM.system == slug
    assert all((module.CLAIM.says, module.CLAIM.source, module.CLAIM.baseline))
    assert callable(module.run)
    assert callable(module.met)


@pytest.mark.parametrize(("slug", "says"), [("espn", "nearest are .*espcn"), ("var", "no claim that can be re-run")])
def test_a_wrong_name_gets_the_nearest(slug: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        load_claim(slug)


# -- the inequalities


def espcn_figures() -> dict[str, Any]:
    return {
        "psnr_y_db_espcn": {"set5": 31.0},
        "psnr_y_db_high_resolution": {"set5": 31.0},
        "gain_over_bicubic_db": {"set5": 0.8, "b100": 0.5},
        "macs_ratio": 8.08,
        "time_ratio": 18.0,
    }


def sesr_figures() -> dict[str, Any]:
    quality = {"sesr_m3": 36.0, "sesr_m5": 36.2, "fsrcnn": 35.0, "fsrcnn_skip": 35.5}
    return {
        "largest_difference_of_forms": 1e-7,
        "step_ratio": 8.0,
        **{f"psnr_y_db_{name}": {"set5": value} for name, value in quality.items()},
    }


def pcsr_figures() -> dict[str, Any]:
    found = {"psnr_y_db_pixels": 36.0, "psnr_y_db_heavy": 36.05, "psnr_y_db_patches": 35.9}
    return {**{k: {"set5": v} for k, v in found.items()}, "macs_fraction": 0.5}


def iarn_figures() -> dict[str, Any]:
    return {
        "gain_over_bicubic_db": {"1.5": 1.0, "2": 0.7, "2.7": 0.5, "4": 0.4, "1.6 x 2.9": 0.5},
        "psnr_rgb_db_small_against_bicubic": {"1.5": 38.0, "2": 37.0, "2.7": 36.0, "4": 36.0, "1.6 x 2.9": 37.0},
        "worth_of_own_small_picture_db": 0.4,
        "largest_difference_undone": 1e-6,
        "psnr_y_db_by_cycle": [38.0, 37.0, 36.5, 36.2, 36.0],
    }


@pytest.mark.parametrize(
    ("slug", "good", "worse"),
    [
        ("iarn", iarn_figures(), [{"worth_of_own_small_picture_db": 0.3}, {"largest_difference_undone": 1e-4}]),
        ("iarn", iarn_figures(), [{"psnr_y_db_by_cycle": [38.0, 35.4]}]),
        ("iarn", iarn_figures(), [{"psnr_rgb_db_small_against_bicubic": {"2": 35.9}}]),
        (
            "iarn",
            iarn_figures(),
            [{"gain_over_bicubic_db": {**iarn_figures()["gain_over_bicubic_db"], "4": 0.3}}],
        ),
        ("espcn", espcn_figures(), [{"psnr_y_db_espcn": {"set5": 30.9}}, {"macs_ratio": 7.9}, {"time_ratio": 5.9}]),
        ("espcn", espcn_figures(), [{"gain_over_bicubic_db": {"set5": 0.6}}, {"gain_over_bicubic_db": {"b100": 0.3}}]),
        ("sesr", sesr_figures(), [{"largest_difference_of_forms": 1e-5}, {"step_ratio": 4.9}]),
        ("sesr", sesr_figures(), [{"psnr_y_db_sesr_m3": {"set5": 35.4}}, {"psnr_y_db_fsrcnn": {"set5": 36.1}}]),
        ("pcsr", pcsr_figures(), [{"macs_fraction": 0.52}, {"psnr_y_db_pixels": {"set5": 35.85}}]),
        ("pcsr", pcsr_figures(), [{"psnr_y_db_patches": {"set5": 36.0}}]),
    ],
)
def test_the_inequality_of_a_claim_can_fail(slug: str, good: dict[str, Any], worse: list[dict[str, Any]]) -> None:
    module = load_claim(slug)
    assert module.met(good) is True
    for change in worse:
        assert module.met({**good, **change}) is False, change


def test_fsrcnn_has_the_published_size() -> None:
    from saccade.cost import count_parameters
    from saccade.reproduce.sesr import FSRCNN, costs

    assert count_parameters(FSRCNN(2), kernels_only=True) == 12_464
    figures = costs({"fsrcnn": lambda: FSRCNN(2)})
    assert round(figures["gmacs_720p_as_published_fsrcnn"], 2) == 6.01
    assert round(figures["gmacs_720p_executed_fsrcnn"], 2) == 2.87


def test_patches_are_taken_whole_and_best_first() -> None:
    import torch

    from saccade.reproduce.pcsr import PATCH, SCALE, largest, largest_patches

    side = PATCH * SCALE
    score = torch.zeros(1, 1, side + 10, 2 * side)
    score[..., :side, side:] = 2
    score[..., side:, :side] = 1
    mask = largest_patches(score, side * side)
    assert mask[..., :side, side:].all()
    assert int(mask.sum()) == side * side
    mask = largest_patches(score, side * side + 10 * side)
    assert mask[..., side:, :side].all()
    assert int(largest(score, 17).sum()) == 17


def test_pcsr_is_trained_where_no_weights_ship(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from saccade.reproduce import pcsr

    write_pictures(tmp_path, 5, 80, seed=0)
    monkeypatch.setattr(pcsr, "default_weights", lambda name, scale: None)
    monkeypatch.setattr(pcsr, "STEPS", (2, 2))
    with Data(tmp_path) as data:
        figures = pcsr.run(data, seed=0)
    assert figures["weights"] == "pcsr_small, 2+2 steps"
    assert figures["macs_fraction"] <= 0.52
    assert set(figures["psnr_y_db_pixels"]) == {"own"}


# -- data


def test_without_a_folder_pictures_are_generated_and_removed_again() -> None:
    with Data() as data:
        tests = data.tests()
        assert data.used[0] == "generated pictures"
        assert all(p.is_file() for files in tests.values() for p in files)
        made = tests["generated"][0]
        assert data.tests()["generated"][0] == made
    assert not made.exists()


def test_the_fields_sets_are_found_by_their_names(tmp_path: Path) -> None:
    for name in ("train_free", "set5", "b100"):
        (tmp_path / name).mkdir()
        write_pictures(tmp_path / name, 1, 16, seed=0)
    with Data(tmp_path) as data:
        assert [p.parent.name for p in data.training()] == ["train_free"]
        assert list(data.tests()) == ["set5", "b100"]
        assert list(data.tests("b100")) == ["b100"]
        assert list(data.tests("kodak")) == ["set5", "b100"], "what is asked for is not there"


def test_pictures_of_ones_own_are_split(tmp_path: Path) -> None:
    files = write_pictures(tmp_path, 8, 16, seed=0)
    with Data(tmp_path) as data:
        tests = data.tests()["own"]
        assert tests == [files[0], files[4]]
        assert not set(tests) & set(data.training())


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with Data(tmp_path) as data, pytest.raises(InputError, match="no pictures"):
        data.training()


# -- the command


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["reproduce", *arguments])
    return int(ended.value.code or 0)


def test_the_command_prints_other_seeds_beside_the_first(
    claim: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    claim.met = lambda f: f["seed_seen"] != 6
    assert run("espcn", "--out", str(tmp_path), "--seed", "5", "--seeds", "3") == 1
    shown = capsys.readouterr().out
    assert "5  (6, 7)" in shown
    assert "NOT MET  (seed 5 met; in brackets: seeds 6 not met, 7 met)" in shown


def test_the_command_prints_claim_figures_and_verdict(
    claim: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("espcn", "--out", str(tmp_path)) == 0
    shown = capsys.readouterr().out
    for word in ("espcn: It is so.", "table 1", "the other", "psnr_db", "31.5", "met", "espcn.json"):
        assert word in shown
    claim.met = lambda f: False
    assert run("espcn", "--out", str(tmp_path)) == 1
    assert "NOT MET" in capsys.readouterr().out


def test_the_command_prints_json_alone(
    claim: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("espcn", "sesr", "espcn", "--json", "--seed", "3", "--out", str(tmp_path)) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told) == 2
    assert all(list(t) == KEYS and t["seed"] == 3 for t in told)


def test_the_command_refuses_misuse_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 2
    assert run("espn") == 2
    assert run("espcn", "--data", str(tmp_path / "nowhere"), "--out", str(tmp_path)) == 1
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 3
    assert all(line.startswith("saccade: ") for line in errors)


# -- the claims themselves: minutes each

#: run again in full; the others take 5 to 20 minutes each, run here in a few steps, and have their results committed
RERUN = ("espcn", "fast_scaling", "pcsr", "sesr")


@pytest.mark.parametrize("slug", [slug for slug in claims() if (RESULTS / f"{slug}.json").is_file()])
def test_a_committed_result_says_what_its_figures_say(slug: str) -> None:
    told = json.loads((RESULTS / f"{slug}.json").read_text(encoding="utf-8"))
    assert told["system"] == slug
    own = told["met"] if told["met_with_seed"] is None else told["met_with_seed"]
    assert bool(load_claim(slug).met(told["figures"])) == own
    assert told["met"] == (own and all(other["met"] for other in told["other_seeds"]))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not (DATA / "train_free").is_dir(), reason="no photographs: set SACCADE_DATA")
@pytest.mark.parametrize(
    "slug", [pytest.param(slug, marks=pytest.mark.timing if slug == "fast_scaling" else ()) for slug in RERUN]
)
def test_the_claim_is_met_on_real_pictures(slug: str, tmp_path: Path) -> None:
    result = reproduce(slug, data=DATA, out=tmp_path)
    assert result.met, result.figures
    assert (tmp_path / f"{slug}.png").is_file()
