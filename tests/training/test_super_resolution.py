"""The trainer: it learns, it resumes as if it never stopped, and it says what is wrong before it begins."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import saccade
from saccade.cli import main
from saccade.data.pairs import CropPairs, degrade, luma, photographs
from saccade.errors import CheckpointError, InputError, UsageError
from saccade.training.super_resolution import Options, train, validation_psnr
from saccade.training.trainer import Average, learning_rate, places

pytest.importorskip("lightning_fabric")
SMALL = {"model": "sesr_m3", "batch": 2, "patch": 8, "warmup": 4, "threads": 1, "accelerator": "cpu", "devices": "1"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small pictures of stripes and slopes."""
    folder = tmp_path_factory.mktemp("pictures")
    y, x = np.mgrid[:60, :52]
    for i in range(3):
        stripes = 127 + 90 * np.sin((x * (i + 1) + y * 2) / 6)[:, :, None] * [1, 0.8, 0.5]
        Image.fromarray((stripes + 20 * (x[:, :, None] > 26)).clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def start(data: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Train in a folder of this test; returns what ``run.json`` tells."""

    def call(out: str = "run", **options: Any) -> dict[str, Any]:
        told = Options(**{**SMALL, "data": str(data), "out": str(tmp_path / out), **options})
        made = train(told, say=lambda line: None)
        assert made == tmp_path / out / "weights.safetensors"
        return json.loads((tmp_path / out / "run.json").read_text())

    return call


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return saccade.load(folder / "weights.safetensors").state_dict()


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# -- it learns


def test_the_loss_falls_and_the_result_is_the_collapsed_average(start: Any, tmp_path: Path, data: Path) -> None:
    told = start(steps=60, validate_every=20, ema=0.9)
    course = told["course"]
    assert [c["step"] for c in course] == [20, 40, 60]
    assert course[-1]["loss"] < 0.7 * course[0]["loss"]
    assert course[-1]["psnr_y_db"] > course[0]["psnr_y_db"]
    model = saccade.load(tmp_path / "run" / "weights.safetensors")
    assert (model.saccade_name, model.saccade_options) == ("sesr_m3", {"scale": 2})
    assert model.expansion is None
    held = CropPairs(photographs(data)[:1], 2, 3, luma=True)
    assert validation_psnr(model, held) == pytest.approx(course[-1]["psnr_y_db"], abs=1e-3)
    assert {p.name for p in (tmp_path / "run").iterdir() if "tfevents" not in p.name} == {
        "last.ckpt",
        "run.json",
        "weights.safetensors",
    }


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_lower_precision_trains_too(start: Any, tmp_path: Path, precision: str) -> None:
    course = start(steps=30, validate_every=15, precision=precision)["course"]
    assert course[-1]["loss"] < course[0]["loss"]
    assert all(v.isfinite().all() for v in weights(tmp_path / "run").values())


def test_the_seed_decides_and_the_global_state_of_torch_does_not(start: Any, tmp_path: Path) -> None:
    torch.manual_seed(1)
    start("a", steps=4, seed=3)
    torch.manual_seed(2)
    start("b", steps=4, seed=3)
    start("c", steps=4, seed=4)
    assert equal(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not equal(weights(tmp_path / "a"), weights(tmp_path / "c"))


def test_another_scale_can_start_from_trained_weights(start: Any, tmp_path: Path, data: Path) -> None:
    start("two", steps=6)
    path = tmp_path / "two" / "weights.safetensors"
    said: list[str] = []
    options = {**SMALL, "data": str(data), "out": str(tmp_path / "four"), "scale": 4, "start": str(path), "patch": 6}
    train(Options(**{**options, "steps": 1, "rate": 1e-9, "ema": 0.0}), say=said.append)
    assert said[0].endswith("tensors from weights.safetensors")
    two, four = weights(tmp_path / "two"), weights(tmp_path / "four")
    torch.testing.assert_close(four["first.kernel"], two["first.kernel"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(four["blocks.2.kernel"], two["blocks.2.kernel"], atol=1e-5, rtol=1e-4)
    assert four["last.kernel"].shape[0] == 16
    with pytest.raises(CheckpointError, match=r"shares only \d+ of \d+ tensors"):
        start("other", steps=1, model="pcsr_small", start=str(path))


def test_a_network_that_trains_in_phases_trains(start: Any) -> None:
    assert start(model="pcsr_small", steps=2, phase=0, validate_every=2)["course"][0]["loss"] > 0


# -- it resumes


def test_a_run_that_was_stopped_ends_as_if_it_never_was(start: Any, tmp_path: Path) -> None:
    start("whole", steps=24, save_every=8, validate_every=12)
    save, calls = torch.save, iter([True, False, True, False])

    def stop(state: Any, path: Path) -> None:
        if not next(calls):
            Path(path).write_bytes(b"half a checkpoint")
            raise KeyboardInterrupt
        save(state, path)

    with pytest.MonkeyPatch.context() as patch:  # stopped twice, each time while the second checkpoint is written
        patch.setattr(torch, "save", stop)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                start("parts", steps=24, save_every=8, validate_every=12)
    told = start("parts", steps=24, save_every=8, validate_every=12)
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert [c["step"] for c in told["course"]] == [12, 24]
    again = start("parts", steps=24, save_every=8, validate_every=12)  # nothing is left to do
    assert again["course"] == told["course"]


def command(data: Path, out: Path, *more: str) -> list[str]:
    options = f"--model sesr_m3 --batch 2 --patch 8 --warmup 4 --threads 1 --accelerator cpu --data {data} --out {out}"
    return ["train", "sr", *options.split(), *more]


def test_kill_9_at_any_moment_loses_nothing_but_time(data: Path, tmp_path: Path) -> None:
    more = ("--steps", "150", "--save-every", "3", "--validate-every", "50")
    last = tmp_path / "killed" / "last.ckpt"
    process = subprocess.Popen(
        [sys.executable, "-m", "saccade.cli", *command(data, tmp_path / "killed", *more)],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    while process.poll() is None and not last.exists():
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.05)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(random.uniform(0, 0.4))
    process.kill()
    assert process.wait() == -signal.SIGKILL
    for out in ("killed", "whole"):
        with pytest.raises(SystemExit) as ended:
            main(command(data, tmp_path / out, *more, "--devices", "1"))
        assert ended.value.code == 0
    assert equal(weights(tmp_path / "killed"), weights(tmp_path / "whole"))
    killed, whole = (json.loads((tmp_path / n / "run.json").read_text())["course"] for n in ("killed", "whole"))
    assert [(c["step"], c["psnr_y_db"]) for c in killed] == [(c["step"], c["psnr_y_db"]) for c in whole]


def test_a_run_folder_takes_no_other_options(start: Any) -> None:
    start(steps=2)
    with pytest.raises(
        UsageError, match=r"--rate was 0\.001, now 0\.01; --batch|--batch was 2, now 3; --rate was 0\.001"
    ):
        start(steps=2, batch=3, rate=0.01)
    start(steps=2, validate_every=1, save_every=1)  # these may change


@pytest.mark.parametrize("damage", [b"", b"words", None])
def test_a_damaged_checkpoint_is_said_and_not_overwritten(start: Any, tmp_path: Path, damage: bytes | None) -> None:
    start(steps=1)
    last = tmp_path / "run" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:5000] if damage is None else damage)
    before = last.read_bytes()
    with pytest.raises(CheckpointError, match=r"last\.ckpt is damaged; remove it to start anew"):
        start(steps=1)
    assert last.read_bytes() == before
    torch.save({"options": {}, "step": 1}, last)
    with pytest.raises(CheckpointError, match="is damaged"):
        start(steps=1)


# -- what is refused


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"steps": 0}, "--steps must be at least 1"),
        ({"seed": -1}, "--seed lies between 0 and"),
        ({"seed": 2**63}, "--seed lies between 0 and"),
        ({"batch": 0}, "--batch"),
        ({"patch": -1}, "--patch"),
        ({"save_every": 0}, "--save-every"),
        ({"rate": 0.0}, "--rate"),
        ({"rate": float("nan")}, "--rate"),
        ({"ema": 1.0}, "--ema"),
        ({"hold": 1.5}, "--hold"),
        ({"warmup": -1}, "--warmup"),
        ({"loss": "l3"}, "--loss is l1 or l2"),
        ({"model": "sesr_m33"}, "nearest are sesr_m3"),
        ({"model": "regnetx_200mf"}, "is for classification, not for super-resolution"),
        ({"scale": 5}, "sesr_m3 has no x5"),
        ({"precision": "12"}, "no training on these devices: Precision '12' is invalid"),
        ({"accelerator": "abacus"}, "no training on these devices: .*abacus"),
        ({"devices": "many"}, "no training on these devices"),
        ({"nodes": 0}, "no training on these devices"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(start: Any, tmp_path: Path, options: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        start(**{"steps": 1, **options})
    assert not (tmp_path / "run").exists()


def test_folders_without_usable_pictures_are_said(start: Any, tmp_path: Path, data: Path) -> None:
    with pytest.raises(InputError, match="no folder of pictures at"):
        start(steps=1, data=str(tmp_path / "none"))
    (tmp_path / "few").mkdir()
    (tmp_path / "few" / "notes.txt").write_text("no picture")
    with pytest.raises(InputError, match="holds no pictures"):
        start(steps=1, data=str(tmp_path / "few"))
    with pytest.raises(InputError, match="smaller than a crop of 80 x 80 px"):
        start(steps=1, patch=40)
    whole = (data / "0.png").read_bytes()
    for content in (b"", b"words", whole[: len(whole) // 2], whole[:30]):
        (tmp_path / "few" / "bad.png").write_bytes(content)
        with pytest.raises(InputError, match=r"cannot read .*bad\.png"):
            start(steps=1, data=str(tmp_path / "few"))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot create"):
        start("file/run", steps=1)


def test_a_loss_that_explodes_stops_the_run(start: Any) -> None:
    with pytest.raises(InputError, match=r"the loss became (nan|inf) at step \d+; lower --rate"):
        start(steps=60, rate=1e6, warmup=0)


def test_the_command_prints_the_course_as_json(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(command(data, tmp_path / "run", "--steps", "2", "--devices", "1", "--json"))
    said = capsys.readouterr()
    assert ended.value.code == 0
    assert [c["step"] for c in json.loads(said.out)["course"]] == [2]
    with pytest.raises(SystemExit) as ended:
        main(command(tmp_path / "none", tmp_path / "run2", "--steps", "2", "--devices", "1"))
    said = capsys.readouterr()
    assert ended.value.code == 1
    assert said.err.splitlines()[-1].startswith("saccade: no folder of pictures at")


@pytest.mark.slow
def test_two_processes_train_as_one(data: Path, tmp_path: Path) -> None:
    """torchrun on the CPU: both ranks see other crops, average their gradients, and one of them writes."""
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "saccade.cli",
    ]
    more = ("--steps", "20", "--save-every", "10", "--validate-every", "10")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    said = []
    for _ in range(2):  # the second call finds the run finished
        done = subprocess.run(
            [*launch, *command(data, tmp_path / "run", *more)],
            check=True,
            timeout=280,
            env=environment,
            capture_output=True,
            text=True,
        )
        said.append(done.stdout + done.stderr)
    assert said[0].count("2 processes learn as one") == 1
    course = json.loads((tmp_path / "run" / "run.json").read_text())["course"]
    assert [c["step"] for c in course] == [10, 20]
    assert course[1]["loss"] < course[0]["loss"]


# -- the pieces


def test_torchrun_tells_devices_and_machines_unless_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = Options(model="sesr_m3", data=".", out=".")
    assert places(alone) == ("auto", 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert places(alone) == (4, 2)
    assert places(dataclasses.replace(alone, devices="1", nodes=3)) == (1, 3)


def test_the_rate_warms_up_holds_and_falls_to_zero() -> None:
    rates = [learning_rate(step, 100, 1e-3, 10, 0.5) for step in range(101)]
    assert rates[0] == pytest.approx(1e-4)
    assert rates[9:50] == [1e-3] * 41
    assert all(a >= b for a, b in pairwise(rates[49:]))
    assert rates[75] == pytest.approx(5e-4)
    assert rates[100] == pytest.approx(0)
    assert learning_rate(0, 10, 1.0, 0, 0.0) == 1.0
    assert learning_rate(3, 10, 1.0, 50, 1.0) == pytest.approx(4 / 50)


def test_the_average_follows_slowly_and_starts_fast() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    average = Average(model, 0.99)
    nn.init.ones_(model.weight)
    seen = []
    for step in range(2000):
        average.update(model, step)
        seen.append(float(average.values["weight"]))
    expected = 0.0
    for step in range(2000):
        decay = min(0.99, (1 + step) / (10 + step))
        expected += (1 - decay) * (1 - expected)
    assert seen[0] == pytest.approx(0.9)
    assert seen[-1] == pytest.approx(expected, abs=1e-5)
    none = Average(model, 0.0)
    nn.init.constant_(model.weight, 5.0)
    none.update(model, 10**6)
    assert float(none.values["weight"]) == 5.0


def test_crops_are_aligned_and_depend_on_seed_step_and_rank_alone(data: Path) -> None:
    pairs = CropPairs(photographs(data), 2, 8, luma=False)
    low, high = pairs.batch(6, seed=1, step=5)
    assert (low.shape, high.shape) == ((6, 3, 8, 8), (6, 3, 16, 16))
    assert low.dtype == torch.float32
    for small, large in zip(low, high, strict=True):  # inside a crop the low picture is the high one, reduced
        again = degrade((large * 255).round().to(torch.uint8), 2)
        assert ((again[:, 2:-2, 2:-2] / 255 - small[:, 2:-2, 2:-2]).abs() < 1.5 / 255).all()
    for other in ({"seed": 2, "step": 5}, {"seed": 1, "step": 6}, {"seed": 1, "step": 5, "rank": 1}):
        assert not torch.equal(pairs.batch(6, **other)[0], low)
    assert torch.equal(pairs.batch(6, seed=1, step=5)[0], low)
    grey = CropPairs(photographs(data), 2, 8, luma=True).batch(6, seed=1, step=5)[0]
    torch.testing.assert_close(grey, luma(low))


def test_psnr_is_that_of_the_protocol(data: Path) -> None:
    class Nearest(nn.Module):
        colour = "luma"

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    pairs = CropPairs(photographs(data), 2, 3, luma=True)
    expected = []
    for low, high in pairs.pairs:
        y = [np.rint(luma(p[None].double() / 255)[0, 0].numpy() * 255) for p in (low, high)]
        error = (y[0].repeat(2, 0).repeat(2, 1) - y[1])[2:-2, 2:-2]
        expected.append(10 * np.log10(255**2 / np.mean(error**2)))
    assert validation_psnr(Nearest(), pairs) == pytest.approx(np.mean(expected), abs=1e-3)
