"""Pre-training: overlaps within bounds, halves swapped, logits right, keys shuffled without trace, loss goes down."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from saccade.errors import CheckpointError, InputError, UsageError
from saccade.quality.reiqa.crops import FreshCrops, halved_stack
from saccade.quality.reiqa.encoder import Encoder, Head
from saccade.quality.reiqa.moco import (
    Crops,
    Queue,
    Recipe,
    _follow,
    _keys,
    contrast_logits,
    half_swap,
    overlapping_crops,
    pretrain,
    shifts,
)


def photographs(count: int = 3, side: int = 150) -> list[np.ndarray]:
    chance = np.random.default_rng(0)
    small = chance.integers(0, 256, (count, 12, 12, 3)).astype(np.uint8)
    return [np.kron(s, np.ones((side // 12 + 1, side // 12 + 1, 1), np.uint8))[:side, :side] for s in small]


@given(side=st.integers(16, 224), seed=st.integers(0, 10**6))
@settings(max_examples=200, deadline=None)
def test_pairs_share_a_tenth_to_three_tenths_of_their_area(side: int, seed: int) -> None:
    down, right = shifts(side, np.random.default_rng(seed))
    shared = max(0, side - down) * max(0, side - right) / side**2
    assert 0 <= right < side
    assert 0.7 * side <= down < 0.9 * side
    slack = 2 / side  # places are whole pixels
    assert 0.1 - slack <= shared <= 0.3 + slack


def test_both_crops_lie_where_the_shift_says() -> None:
    y, x = np.mgrid[:200, :200].astype(np.uint8)
    stack = np.stack([np.stack([y, x, x + i], -1) for i in range(3)])
    first, second = overlapping_crops(stack, 64, np.random.default_rng(1))
    assert first.shape == second.shape == (3, 64, 64, 3)
    moved = second[:, 0, 0, :2].astype(int) - first[:, 0, 0, :2]
    assert (moved == moved[0]).all(), "one place for all copies"
    assert 44 <= moved[0, 0] < 58


def test_pictures_too_small_for_a_pair_are_refused() -> None:
    with pytest.raises(InputError, match="two crops of 64 pixels need"):
        overlapping_crops(np.zeros((2, 90, 90, 3), np.uint8), 64, np.random.default_rng(0))
    with pytest.raises(InputError, match="at least 256"):
        Crops([np.zeros((255, 300, 3), np.uint8)], Recipe())
    with pytest.raises(UsageError, match="at least 8"):
        shifts(4, np.random.default_rng(0))


def test_half_of_the_copies_change_sides() -> None:
    a, b = np.arange(6)[:, None] * np.ones(2), -np.arange(6)[:, None] * np.ones(2)
    first, second = half_swap(a, b)
    np.testing.assert_array_equal(first[:3], b[:3])
    np.testing.assert_array_equal(first[3:], a[3:])
    np.testing.assert_array_equal(first + second, a + b)
    later, _ = half_swap(a, b, later=True)
    np.testing.assert_array_equal(later[:3], a[:3])
    np.testing.assert_array_equal(later[3:], b[3:])
    assert a[1, 0] == 1, "the input stays"


def test_logits_are_similarities_over_the_temperature() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, queue = (F.normalize(torch.randn(n, 4, generator=generator), dim=1) for n in (5, 5, 7))
    logits = contrast_logits(q, k, queue, 0.5)
    assert logits.shape == (5, 8)
    torch.testing.assert_close(logits[:, 0], (q * k).sum(1) / 0.5)
    torch.testing.assert_close(logits[2, 1:], queue @ q[2] / 0.5)
    within = contrast_logits(q, k, queue, 0.5, within=True)
    others = [i for i in range(5) if i != 2]
    torch.testing.assert_close(
        within[2], torch.cat([q[2:3] @ k[2:3].T, q[2:3] @ k[others].T, q[2:3] @ queue.T], 1)[0] * 2
    )


def test_keys_of_other_processes_are_negatives_and_ones_own_key_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    q, keys = (F.normalize(torch.randn(n, 4, generator=generator), dim=1) for n in (3, 9))
    none = torch.zeros(0, 4)
    logits = contrast_logits(q, keys[3:6], none, 1.0, within=True, step_keys=keys, first=3)
    assert logits.shape == (3, 9)
    torch.testing.assert_close(
        logits[1], torch.cat([q[1:2] @ keys[4:5].T, q[1:2] @ keys[:4].T, q[1:2] @ keys[5:].T], 1)[0]
    )
    whole = contrast_logits(keys, keys, none, 1.0, within=True)
    torch.testing.assert_close(
        whole[3:6], contrast_logits(keys[3:6], keys[3:6], none, 1.0, within=True, step_keys=keys, first=3)
    )


def test_the_queue_is_a_ring_that_starts_empty() -> None:
    queue = Queue(5, 1)
    assert len(queue.keys) == 0
    queue.put(torch.tensor([[1.0], [2.0], [3.0]]))
    assert queue.keys.flatten().tolist() == [1, 2, 3]
    held = queue.keys
    queue.put(torch.tensor([[4.0], [5.0], [6.0]]))
    assert queue.keys.flatten().tolist() == [6, 2, 3, 4, 5]
    assert held.flatten().tolist() == [1, 2, 3]
    queue.put(torch.arange(10.0)[:, None])
    assert sorted(queue.keys.flatten().tolist()) == [5, 6, 7, 8, 9]
    with pytest.raises(UsageError):
        Queue(-1, 3)
    none = Queue(0, 3)
    none.put(torch.ones(2, 3))
    assert none.keys.shape == (0, 3)


def test_keys_are_normalised_in_parts_and_come_back_in_order() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    x = torch.rand(10, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    keys = _keys(network, x, 3, torch.Generator().manual_seed(1))
    torch.testing.assert_close(keys, network(x))
    assert not keys.requires_grad
    norm = nn.Sequential(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).train()
    whole, parts = norm(x), _keys(norm, x, 2, torch.Generator().manual_seed(1))
    assert not torch.allclose(whole, parts), "each part has statistics of its own"


def test_the_key_network_follows_by_the_momentum() -> None:
    key, query = nn.Linear(2, 2), nn.Linear(2, 2)
    wanted = [0.9 * a + 0.1 * b for a, b in zip(key.parameters(), query.parameters(), strict=True)]
    _follow(key, query, 0.9)
    for own, want in zip(key.parameters(), wanted, strict=True):
        torch.testing.assert_close(own.detach(), want.detach())


def small_recipe(**changed: object) -> Recipe:
    told = {"steps": 40, "pictures": 2, "copies": 3, "side": 16, "queue": 64, "head": (16, 8), "pool": 8, "fresh": 0.2}
    return Recipe(**{**told, **changed})  # type: ignore[arg-type]


def test_batches_depend_on_the_seed_alone() -> None:
    first, again, other = (Crops(photographs(), small_recipe(seed=s)).batch() for s in (0, 0, 1))
    torch.testing.assert_close(first, again)
    assert not torch.equal(first[0], other[0])
    assert first[0].shape == (2 * 2 * 4, 3, 16, 16)
    assert 0 <= float(first[0].min()) <= float(first[0].max()) <= 1


@pytest.mark.parametrize("distortions", [True, False])
def test_pretraining_lowers_the_loss_and_is_repeatable(distortions: bool) -> None:
    course: list[tuple[int, float, float]] = []
    made = []
    for _ in range(2):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            encoder = Encoder("basic", (1,), (8,), 8)
        recipe = small_recipe(distortions=distortions, steps=51)
        pretrain(encoder, photographs(), recipe, lambda *told: course.append(told))
        assert not encoder.training
        made.append(encoder.state_dict())
    for name in made[0]:
        torch.testing.assert_close(made[0][name], made[1][name])
    assert [step for step, _, _ in course[:2]] == [0, 50]
    assert all(np.isfinite(loss) for _, loss, _ in course)


# -- the paper's recipe


def test_the_published_recipe_is_the_papers() -> None:
    recipe = Recipe.published(770_000)
    assert recipe.rate == pytest.approx(12, abs=0.2)
    assert (recipe.optimiser, recipe.pictures, recipe.copies, recipe.side) == ("lars", 630, 11, 160)
    assert (recipe.queue, recipe.temperature, recipe.momentum) == (65_536, 0.2, 0.999)
    assert (recipe.within, recipe.pool, recipe.head) == (False, 0, (2048, 128))
    epoch = 770_000 / 630
    assert recipe.steps == pytest.approx(40 * epoch, abs=1)
    assert recipe.warmup == pytest.approx(5 * epoch, abs=1)
    recipe.check(18)
    encoder = Encoder("bottleneck", (3, 4, 6, 3), (64, 128, 256, 512))
    head = Head(encoder.features, *recipe.head).state_dict()
    assert {name: tuple(v.shape) for name, v in head.items()} == {
        "0.weight": (2048, 2048),
        "0.bias": (2048,),
        "2.weight": (128, 2048),
        "2.bias": (128,),
    }


def test_the_rate_warms_up_from_where_it_is_told_and_falls_to_zero() -> None:
    recipe = Recipe.published(6300, epochs=20)
    assert (recipe.steps, recipe.warmup) == (200, 50)
    assert recipe.rate_at(0) == pytest.approx(0.01 + (recipe.rate - 0.01) / 50)
    assert recipe.rate_at(49) == recipe.rate_at(50) == recipe.rate
    assert recipe.rate_at(125) == pytest.approx(recipe.rate / 2)
    assert recipe.rate_at(200) == pytest.approx(0)
    shorter = recipe.lasting(40)
    assert (shorter.steps, shorter.warmup) == (40, 10)
    small = Recipe(steps=100, rate=1.0)
    assert [small.rate_at(s) for s in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"optimiser": "sgd"}, "optimiser is muon, adamw, lars, not 'sgd'"),
        ({"halving": "bilinear"}, "pillow or corners"),
        ({"steps": 0}, "steps of a pre-training must be at least 1"),
        ({"rate": float("nan")}, "rate of a pre-training must be a positive number"),
        ({"warmup": -1}, "a warm-up takes"),
        ({"pool": 1}, "a pool of 1 stacks is too small for steps of 2"),
    ],
)
def test_recipes_that_cannot_be_are_refused(changed: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        pretrain(Encoder("basic", (1,), (8,), 8), photographs(), small_recipe(**changed))
    with pytest.raises(UsageError, match="photographs and epochs"):
        Recipe.published(0)


def test_the_published_half_size_lies_corner_on_corner_without_antialias() -> None:
    stack = np.stack(photographs(2, 64))
    made = halved_stack(stack, 32, "corners")
    assert made.shape == (2, 32, 32, 3)
    assert made.dtype == np.uint8
    for corner in (0, -1):
        np.testing.assert_array_equal(made[:, corner, corner], stack[:, corner, corner])
    x = torch.from_numpy(stack).permute(0, 3, 1, 2).float()
    wanted = F.interpolate(x, (32, 32), mode="bicubic", align_corners=True).round().clamp(0, 255)
    np.testing.assert_array_equal(made, wanted.permute(0, 2, 3, 1).numpy())
    assert (made != halved_stack(stack, 32, "pillow")).any()


def fresh_recipe(**changed: object) -> Recipe:
    return small_recipe(**{"pool": 0, "steps": 6, **changed})


@pytest.mark.parametrize("distortions", [True, False])
def test_fresh_steps_are_shared_out_and_can_be_entered_anywhere(distortions: bool) -> None:
    recipe = fresh_recipe(distortions=distortions)
    whole = list(FreshCrops(photographs(), recipe).batches(0, 1))
    assert len(whole) == 6
    halves = [list(FreshCrops(photographs(), recipe).batches(rank, 2)) for rank in range(2)]
    for step in range(6):
        for side in range(2):
            joined = torch.cat([halves[rank][step][side] for rank in range(2)])
            assert torch.equal(joined, whole[step][side])
    late = FreshCrops(photographs(), recipe)
    late.restore({"drawn": 4})
    assert torch.equal(next(late.batches(0, 1))[0], whole[4][0])


def test_each_photograph_is_taken_once_in_a_pass() -> None:
    plain = [np.full((64, 64, 3), 20 * i + 10, np.uint8) for i in range(6)]
    crops = FreshCrops(plain, fresh_recipe(copies=0, steps=9))
    seen = [int(crops.pairs(n)[0].flat[0]) for n in range(18)]
    passes = [seen[i : i + 6] for i in (0, 6, 12)]
    for one in passes:
        assert sorted(one) == [10, 30, 50, 70, 90, 110]
    assert not passes[0] == passes[1] == passes[2], "the order is drawn anew"


def workers_draw_the_same() -> None:
    recipe = fresh_recipe(steps=2)
    alone, helped = (list(FreshCrops(photographs(), recipe, workers).batches(0, 1)) for workers in (0, 1))
    for one, other in zip(alone, helped, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


def test_workers_draw_what_the_training_itself_would() -> None:
    """In a process of its own: torch's loader leaves a handler of SIGCHLD behind, on which one with OpenVINO dies."""
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_small_photographs_are_reduced_less_and_smaller_ones_refused() -> None:
    recipe = fresh_recipe(pictures=1)
    side, _ = next(FreshCrops(photographs(1, 33), recipe).batches(0, 1))
    assert side.shape == (2 * 4, 3, 16, 16)
    with pytest.raises(InputError, match="at least 32 pixels a side; one is 31 x 31"):
        next(FreshCrops(photographs(1, 31), recipe).batches(0, 1))


@pytest.mark.parametrize("optimiser", ["muon", "adamw", "lars"])
@pytest.mark.parametrize("pool", [8, 0])
def test_a_killed_training_goes_on_as_if_it_never_stopped(optimiser: str, pool: int, tmp_path: Path) -> None:
    recipe = small_recipe(optimiser=optimiser, pool=pool, steps=56, rate=1e-3, copies=1, pictures=1, fresh=0.4)
    whole, cut = (Encoder("basic", (1,), (4,), 4) for _ in range(2))
    cut.load_state_dict(whole.state_dict())
    again = copy.deepcopy(cut)
    file = tmp_path / "quality.ckpt"

    def kill(step: int, *_: float) -> None:
        if step == 50:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(cut, photographs(), recipe, kill, checkpoint=file, save_every=25)
    assert torch.load(file, weights_only=True)["step"] == 50
    pretrain(again, photographs(), recipe, checkpoint=file)
    pretrain(whole, photographs(), recipe)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    finished = pretrain(copy.deepcopy(cut), photographs(), recipe, checkpoint=file)
    assert torch.equal(finished.conv1.weight, whole.conv1.weight), "nothing is left to do"


def test_checkpoints_of_other_trainings_are_refused(tmp_path: Path) -> None:
    file, recipe = tmp_path / "quality.ckpt", small_recipe(steps=1)
    pretrain(Encoder("basic", (1,), (4,), 4), photographs(), recipe, checkpoint=file)
    with pytest.raises(UsageError, match=r"another recipe \(rate was 0.004, now 0.1\)"):
        pretrain(Encoder("basic", (1,), (4,), 4), photographs(), small_recipe(steps=1, rate=0.1), checkpoint=file)
    with pytest.raises(CheckpointError, match="no checkpoint of this encoder"):
        pretrain(Encoder("basic", (1,), (8,), 4), photographs(), recipe, checkpoint=file)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="damaged"):
        pretrain(Encoder("basic", (1,), (4,), 4), photographs(), recipe, checkpoint=file)


def test_a_rate_that_is_too_high_is_told() -> None:
    with pytest.raises(InputError, match=r"the loss became nan at step \d+; take a lower rate"):
        pretrain(Encoder("basic", (1,), (8,), 8), photographs(), small_recipe(optimiser="adamw", rate=1e30))


if __name__ == "__main__":
    workers_draw_the_same()
