"""Pre-training on two processes: one queue, one network, and the keys that one process makes of the whole batch.

torchrun starts this very file on the processor; each process writes what it ended with.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from saccade.errors import UsageError
from saccade.quality.reiqa.encoder import Encoder
from saccade.quality.reiqa.moco import Contrast, Recipe, _keys, pretrain
from saccade.training.devices import launched
from saccade.training.processes import ALONE, Processes

COPIES, PICTURES = 3, 2
PAIRS = PICTURES * 2 * (1 + COPIES)  # of a step, over all processes


@dataclass(frozen=True)
class OnProcessor:
    """As many processes as torchrun says."""

    accelerator: str = "cpu"
    devices: str = "auto"
    nodes: int = 1
    precision: str = "32-true"


def photographs(count: int = 3, side: int = 150) -> list[np.ndarray]:
    chance = np.random.default_rng(0)
    small = chance.integers(0, 256, (count, 12, 12, 3)).astype(np.uint8)
    return [np.kron(s, np.ones((side // 12 + 1, side // 12 + 1, 1), np.uint8))[:side, :side] for s in small]


def recipe(**changed: Any) -> Recipe:
    told: dict[str, Any] = {"pictures": PICTURES, "copies": COPIES, "side": 16, "queue": 64, "head": (16, 8), "pool": 8}
    return Recipe(**{"steps": 4, "fresh": 0.2, **told, **changed})


def encoder() -> Encoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Encoder("basic", (1,), (8,), 8)


def first_step(own: Recipe, processes: Processes) -> dict[str, Any]:
    """What the first step leaves behind."""
    contrast = Contrast(encoder(), photographs(), own, processes)
    next(contrast.losses())
    return {
        "queue": contrast.queue.keys,
        "network": {n: p.detach().clone() for n, p in contrast.network.named_parameters()},
        "keys": {n: p.detach().clone() for n, p in contrast.keys.named_parameters()},
    }


def dealt(processes: Processes) -> dict[str, Any]:
    """Twelve numbered rows dealt out by a permutation; keys of a network that hands on what it is given."""
    share = 12 // processes.count
    rows = torch.arange(12.0)[processes.rank * share :][:share, None] * torch.ones(2)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    pictures = rows[:, :, None, None].expand(-1, -1, 2, 2)
    keys = _keys(nn.Flatten(), pictures, 2, torch.Generator().manual_seed(4), processes)
    return {"order": order, "rows": processes.dealt(rows, order), "keys": keys}


def resumed(own: Recipe, processes: Processes, file: Path) -> Encoder:
    """Trained in two parts: one step, then from the checkpoint on."""
    contrast = Contrast(encoder(), photographs(), own, processes)
    next(contrast.losses())
    if processes.leads:
        contrast.keep(file)
    processes.wait()
    return pretrain(encoder(), photographs(), own, processes=processes, checkpoint=file)


def work(out: Path, processes: Processes) -> dict[str, Any]:
    """All that the tests look at."""
    long = recipe(optimiser="lars", rate=0.5)
    return {
        "pool": first_step(recipe(), processes),
        "fresh": first_step(recipe(pool=0), processes),
        "queue_alone": first_step(recipe(within=False, shuffles=1), processes),
        "dealt": dealt(processes),
        "whole": pretrain(encoder(), photographs(), long, processes=processes).state_dict(),
        "resumed": resumed(long, processes, out / "half.ckpt").state_dict(),
    }


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes ended with, and what one ended with that did the same by itself."""
    pytest.importorskip("lightning_fabric")
    out = tmp_path_factory.mktemp("two")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    made = subprocess.run(
        [*launch, __file__, str(out)], timeout=280, env=environment, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr[-3000:]
    both = [torch.load(out / f"process{rank}.pt", weights_only=True) for rank in range(2)]
    return [*both, work(tmp_path_factory.mktemp("one"), ALONE)]


@pytest.mark.slow
@pytest.mark.parametrize("what", ["pool", "fresh", "queue_alone"])
def test_a_step_leaves_the_same_queue_and_parameters_everywhere(ended: list[dict[str, Any]], what: str) -> None:
    first, second = ended[0][what], ended[1][what]
    assert first["queue"].shape == (PAIRS, 8), "the keys of both"
    assert torch.equal(first["queue"], second["queue"])
    half = PAIRS // 2
    assert not torch.equal(first["queue"][:half], first["queue"][half:])
    start = dict(nn.Sequential(encoder()).named_parameters())
    for part in ("network", "keys"):
        for name, value in first[part].items():
            assert torch.equal(value, second[part][name]), (part, name)
    if what != "queue_alone":  # there the queue is empty at first: nothing to tell apart, nothing to learn
        assert any(not torch.equal(value, first["network"][name]) for name, value in start.items())


@pytest.mark.slow
@pytest.mark.parametrize("what", ["pool", "fresh"])
def test_two_processes_enqueue_what_one_does_with_the_whole_batch(ended: list[dict[str, Any]], what: str) -> None:
    """Each process is one of the two parts that one process takes its batch norms over, so even these are the same."""
    torch.testing.assert_close(ended[0][what]["queue"], ended[2][what]["queue"])


@pytest.mark.slow
def test_rows_are_dealt_out_by_the_order_and_keys_come_back_in_theirs(ended: list[dict[str, Any]]) -> None:
    order = ended[2]["dealt"]["order"]
    told = torch.cat([ended[rank]["dealt"]["rows"] for rank in range(2)])
    assert torch.equal(told[:, 0], order.float())
    assert torch.equal(told, ended[2]["dealt"]["rows"])
    for rank in range(3):
        assert torch.equal(ended[rank]["dealt"]["keys"][:, 0], torch.arange(12.0))


@pytest.mark.slow
def test_a_training_that_goes_on_from_its_checkpoint_ends_as_if_it_never_stopped(ended: list[dict[str, Any]]) -> None:
    for own in ended:
        for name, value in own["whole"].items():
            assert torch.equal(value, own["resumed"][name]), name
            assert torch.equal(value, ended[0]["whole"][name]) or own is ended[2], name


def test_a_step_that_cannot_be_shared_out_is_refused() -> None:
    with pytest.raises(UsageError, match="2 pictures in a step cannot be shared out evenly among 3 processes"):
        recipe().check(3)


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, here = Path(sys.argv[1]), Processes(launched(OnProcessor()))
    torch.save(work(folder, here), folder / f"process{here.rank}.pt")
