"""What the bench compares ACFormer with is the same function, written as published."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from saccade.bench.restoration.metalens_former import Plain, contests
from saccade.registry import create


@pytest.mark.parametrize("size", [(32, 64), (45, 40)])
def test_the_published_steps_and_ours_are_one_function(size: tuple[int, int]) -> None:
    model = create(
        "acformer", weights=None, filters=3, dim=8, blocks=(1, 2, 1, 1), refinement=2, embed=8, head_dim=4, window=4
    )
    chance = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            fan = p[0].numel() if p.dim() > 1 else 1
            p.copy_(torch.randn(p.shape, generator=chance) / fan**0.5)
        stack = torch.rand(2, 3, 3, *size, generator=chance)
        ours, plain = model.double()(stack.double()), Plain(model)(stack.double())
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-8 * float(plain.abs().max()))


def test_contests_do_the_same_job() -> None:
    for contest in islice(contests((64, 32), 1), 2):  # the third is the published size, which takes long even here
        assert contest.ours.threads == contest.official.threads == 1
        torch.testing.assert_close(contest.ours.run(), contest.official.run(), rtol=0, atol=1e-4)
        for peer in contest.peers:
            peer.run()
