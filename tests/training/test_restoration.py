from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from saccade.data.crops import Crops, degradation, held_out, unchanged
from saccade.errors import InputError, UsageError
from saccade.training.muon import Muon, orthogonalised
from saccade.training.restoration import Options, psnr_rgb, train
from saccade.training.trainer import learning_rate

pytest.importorskip("lightning_fabric")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    chance = np.random.default_rng(0)
    for i in range(3):
        coarse = chance.integers(0, 256, (6, 7, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((56, 48), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def start(data: Path, tmp_path: Path) -> Any:
    def started(**options: Any) -> Path:
        chosen = {"model": "cleaner", "data": str(data), "out": str(tmp_path / "run"), "steps": 4, "batch": 2}
        chosen |= {"patch": 24, "warmup": 1, "validate_every": 2, "save_every": 2, "threads": 1} | options
        return train(Options(**chosen), say=lambda line: None)

    return started


def test_a_cleaner_trains_and_the_run_is_written(start: Any) -> None:
    made = start()
    told = json.loads((made.parent / "run.json").read_text())
    assert [c["step"] for c in told["course"]] == [2, 4]
    assert told["options"]["degrade"] == "noise-jpeg"
    assert all(np.isfinite(c["psnr_db"]) for c in told["course"])


@pytest.mark.parametrize("optimiser", ["adam", "adamw", "muon"])
def test_a_run_that_was_stopped_ends_as_if_it_never_was(start: Any, tmp_path: Path, optimiser: str) -> None:
    from safetensors.torch import load_file

    whole = load_file(start(out=str(tmp_path / "whole"), optimiser=optimiser, clip=0.5))
    (tmp_path / "parts").mkdir()
    _stop_after(start, tmp_path / "parts", optimiser)
    parts = load_file(start(out=str(tmp_path / "parts"), optimiser=optimiser, clip=0.5))
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=0, atol=0)


def _stop_after(start: Any, folder: Path, optimiser: str) -> None:
    from saccade.training import trainer

    keep = trainer.Run.keep

    def kept_and_stopped(self: Any, state: dict[str, Any]) -> None:
        keep(self, state)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.Run, "keep", kept_and_stopped)
        with pytest.raises(KeyboardInterrupt):
            start(out=str(folder), optimiser=optimiser, clip=0.5)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"model": "sesr_m5"}, "not for restoration"),
        ({"degrade": "dirt"}, "--degrade is one of"),
        ({"optimiser": "lion"}, "--optimiser is"),
        ({"clip": -1.0}, "--clip must not be negative"),
        ({"weight_decay": float("nan")}, "--weight-decay must not be negative"),
        ({"patch": 0}, "--patch must be at least 1"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(start: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        start(**options)


def test_pictures_smaller_than_a_crop_are_said(start: Any) -> None:
    with pytest.raises(InputError, match="smaller than a crop"):
        start(patch=64)


def test_crops_depend_on_seed_step_and_rank_alone(data: Path) -> None:
    crops = Crops(sorted(data.glob("*.png")), 16, degradation("noise-jpeg"), shrink=(1.0, 0.5))
    same = [crops.batch(3, seed=1, step=2, rank=0) for _ in range(2)]
    other = crops.batch(3, seed=1, step=2, rank=1)
    assert all(torch.equal(a, b) for a, b in zip(*same, strict=True))
    assert not torch.equal(same[0][1], other[1])
    assert same[0][0].shape == same[0][1].shape == (3, 3, 16, 16)


def test_what_is_held_out_is_degraded_the_same_every_time(data: Path) -> None:
    files = sorted(data.glob("*.png"))
    first, second = (held_out(files, degradation("noise-jpeg"), side=20) for _ in range(2))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, second, strict=True))
    assert first[0][1].shape == (1, 3, 20, 20)


def test_psnr_asks_a_network_for_its_restored_picture(data: Path) -> None:
    class Pair(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x, x

        def restored(self, x: torch.Tensor) -> torch.Tensor:
            return x + 10 / 255

    pairs = [(torch.full((1, 3, 4, 4), 0.2), torch.full((1, 3, 4, 4), 0.2))]
    assert psnr_rgb(Pair(), pairs) == pytest.approx(20 * np.log10(255 / 10), abs=1e-3)
    assert unchanged(pairs[0][0], np.random.default_rng(0)) is pairs[0][0]


def test_an_orthogonalised_matrix_has_singular_values_near_one() -> None:
    for shape in ((4, 9), (9, 4), (16, 16)):
        matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
        values = torch.linalg.svdvals(orthogonalised(matrix))
        assert values.max() < 1.3
        assert values[: min(shape) - 1].min() > 0.5


def test_muon_fits_a_linear_map_with_bias() -> None:
    chance = torch.Generator().manual_seed(0)
    x = torch.randn(64, 6, generator=chance)
    wanted = x @ torch.randn(6, 4, generator=chance) + 3
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = nn.Linear(6, 4)
    optimiser = Muon(layer.parameters(), lr=0.3)
    for step in range(400):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, 400, 0.3, 5, 0.0)
        loss = (layer(x) - wanted).square().mean()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    assert float(loss.detach()) < 1e-3
