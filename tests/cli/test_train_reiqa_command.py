"""``saccade train reiqa``: which recipe is trained by, and what is refused before anything is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from saccade.checkpoint import load, read_header
from saccade.cli import main
from saccade.cli.train_reiqa import chosen_recipe, told
from saccade.data.generated import write_pictures
from saccade.errors import UsageError
from saccade.quality.reiqa.recipe import Recipe


def recipe_of(name: str = "small", photographs: int = 6300, epochs: int = 40, **given: Any) -> Recipe:
    return chosen_recipe(name, photographs, epochs, given, 3)


def run(*words: object, code: int = 0) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    assert stopped.value.code == code


def test_what_is_said_wins_over_the_recipe_and_the_rest_follows_it() -> None:
    assert recipe_of() == Recipe(steps=1400, seed=3), "the recipe that the shipped weights were trained by"
    paper = recipe_of("paper")
    assert paper == Recipe.published(6300, seed=3)
    assert recipe_of("paper", pictures=64, steps=100).rate == pytest.approx(0.6 * 64 * 2 / 64)
    assert recipe_of("paper", steps=80).warmup == 10
    lars = recipe_of(optimiser="lars")
    assert (lars.rate, lars.decay, lars.queue) == (pytest.approx(0.6 * 4 * 2 / 64), 1e-4, 0)
    assert recipe_of(optimiser="lars", rate=0.2).rate == 0.2
    adamw = recipe_of("paper", optimiser="adamw")
    assert (adamw.rate, adamw.decay, adamw.pictures) == (1e-3, 1e-2, 630)
    assert chosen_recipe("small", 5, 1, {}, 0, "bf16-mixed").bfloat16


def test_the_header_names_options_that_give_the_same_recipe() -> None:
    words = told("small", "reiqa_small", recipe_of(), 600)
    assert words == "--steps 1400 --content-steps 600 --rate 0.004 --pictures 4 --copies 12"
    words = told("paper", "reiqa", recipe_of("paper", optimiser="adamw"), 7)
    assert words == (
        "--model reiqa --recipe paper --steps 400 --content-steps 7 --rate 0.001 --pictures 630 --copies 11 "
        "--optimiser adamw"
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "large"}, "--recipe is small or paper, not 'large'"),
        ({"optimiser": "sgd"}, "optimiser is muon, adamw, lars"),
        ({"steps": 0}, "steps of a pre-training must be at least 1"),
        ({"rate": -1.0}, "rate of a pre-training"),
        ({"name": "paper", "epochs": 0}, "photographs and epochs"),
    ],
)
def test_values_that_cannot_be_meant_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        recipe_of(**given)
    with pytest.raises(UsageError, match="--precision"):
        chosen_recipe("small", 5, 1, {}, 0, "16-true")


@pytest.mark.slow
def test_the_papers_recipe_trains_and_goes_on_where_it_stood(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    write_pictures(photographs, 2, 330, 0)
    words = ["--recipe", "paper", "--pictures", 1, "--copies", 1, "--steps", 2, "--content-steps", 1, "--workers", 0]
    words += ["--model", "reiqa_small", "--threads", 1, "--accelerator", "cpu", "--checkpoints", tmp_path / "run"]
    out = tmp_path / "a.safetensors"
    run("train", "reiqa", "--data", photographs, "-o", out, *words)
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"quality.ckpt", "content.ckpt"}
    assert "--recipe paper --steps 2" in read_header(out)[0]["trained_by"]
    run("train", "reiqa", "--data", photographs, "-o", tmp_path / "b.safetensors", *words)
    first, second = load(out).state_dict(), load(tmp_path / "b.safetensors").state_dict()
    assert all((first[name] == second[name]).all() for name in first)
    run("train", "reiqa", "--data", photographs, "-o", tmp_path / "c.safetensors", *words, "--seed", 1, code=2)
    assert "another recipe (seed was 0, now 1)" in capsys.readouterr().err
    run("train", "reiqa", "--data", photographs, "-o", tmp_path / "c.safetensors", "--model", "van_b0", code=2)
    assert "--model is reiqa_small or reiqa" in capsys.readouterr().err
