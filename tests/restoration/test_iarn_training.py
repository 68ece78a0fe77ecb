from pathlib import Path

import pytest
import torch

from saccade.checkpoint import load
from saccade.data.generated import write_pictures
from saccade.data.pairs import read_resized
from saccade.errors import InputError, UsageError
from saccade.ops.resize import resize
from saccade.registry import create
from saccade.restoration.iarn import IARN
from saccade.restoration.iarn.training import FactorCrops, Options, linear_start, rescaling_psnr, train

TINY = {"opening": [4, 1], "hider": [4, 1], "teller": [4, 1]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("pictures")
    write_pictures(where, 6, 128, 0)
    return where


@pytest.fixture(scope="module")
def crops(folder: Path) -> FactorCrops:
    return FactorCrops(sorted(folder.iterdir()), 16, (1.2, 4.0))


def test_a_step_sees_the_same_crops_again_and_other_steps_others(crops: FactorCrops) -> None:
    large, small = crops.batch(3, 0, 5)
    again = crops.batch(3, 0, 5)
    assert torch.equal(large, again[0])
    assert torch.equal(small, again[1])
    torch.testing.assert_close(small, resize(large, size=tuple(small.shape[-2:])))
    shapes = {tuple(crops.batch(1, 0, step)[0].shape) for step in range(20)}
    assert len(shapes) > 10, "each step has a factor of its own"


def test_factors_stay_in_their_range_and_some_are_uneven(crops: FactorCrops) -> None:
    uneven = 0
    for step in range(60):
        large, small = crops.batch(1, 1, step)
        rows, columns = (large.shape[d] / small.shape[d] for d in (-2, -1))
        assert 1.1 < rows < 4.1
        assert 1.1 < columns < 4.1
        uneven += abs(rows / columns - 1) > 0.05
    assert 8 <= uneven <= 35


def test_the_linear_start_is_better_than_bicubic_before_any_step(folder: Path, crops: FactorCrops) -> None:
    pictures = [read_resized(path, 1.0) for path in sorted(folder.iterdir())[:2]]
    zero, solved = (create("iarn", weights=None, **TINY) for _ in range(2))
    assert isinstance(solved, IARN)
    linear_start(solved, crops, batches=40, batch=4, seed=0)
    before, after = (rescaling_psnr(model, pictures, (2.0,)) for model in (zero, solved))
    assert after > before + 1.0, (before, after)
    x = pictures[0][None].float() / 255
    with torch.no_grad():
        undone = solved.merge(*solved.split(x, (64, 64)))
    assert float((undone - x).abs().max()) < 1e-5, "still undone exactly"


def test_a_run_is_resumed_and_its_weights_are_used(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def options(**changed: object) -> Options:
        given = {
            "model": "iarn", "data": str(folder), "out": str(tmp_path / "run"), "steps": 4, "batch": 2, "patch": 12,
            "start_crops": 2, "warmup": 1, "clip": 0.5, "validate_every": 4, "save_every": 2, "threads": 1,
            "accelerator": "cpu", "devices": "1", "model_options": TINY,
        }  # fmt: skip
        return Options(**{**given, **changed})  # type: ignore[arg-type]

    said: list[str] = []
    weights = train(options(), say=said.append)
    made = load(weights)
    assert isinstance(made, IARN)
    assert "psnr_y_db" in said[-1]
    monkeypatch.delattr("saccade.restoration.iarn.training.linear_start")  # solved once, not when the run goes on
    assert torch.equal(load(train(options(), say=said.append)).P.last.weight, made.P.last.weight)
    assert any("continuing" in line for line in said)
    more = train(options(out=str(tmp_path / "more"), start=str(weights), steps=1, validate_every=1), say=said.append)
    assert any("tensors from weights.safetensors" in line for line in said)
    assert isinstance(load(more), IARN)


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"model": "sesr_m5"}, "arbitrary factors"),
        ({"model": "irn_x2"}, "arbitrary factors"),
        ({"factors": (1.0, 4.0)}, "above 1"),
        ({"factors": (3.0, 2.0)}, "least first"),
        ({"patch": 4}, "at least 8"),
    ],
)
def test_runs_that_cannot_be_meant_are_refused(changed: dict, what: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=what):
        Options(**{"model": "iarn", "data": "x", "out": str(tmp_path), **changed}).check()


def test_pictures_smaller_than_a_crop_are_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="smaller than a crop"):
        FactorCrops(sorted(folder.iterdir()), 64, (1.2, 4.0))
