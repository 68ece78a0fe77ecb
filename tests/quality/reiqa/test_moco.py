"""Pre-training: overlaps within bounds, halves swapped, logits right, keys shuffled without trace, loss goes down."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from saccade.errors import InputError, UsageError
from saccade.quality.reiqa.encoder import Encoder
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
