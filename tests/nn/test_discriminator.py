"""The U-Net discriminator: published size, shapes, and what its spectral norms hold."""

from __future__ import annotations

import pytest
import torch

from saccade.cost import count_parameters
from saccade.nn.discriminator import UNetDiscriminator


def test_parameters_are_the_published_ones() -> None:
    with torch.device("meta"):
        assert count_parameters(UNetDiscriminator()) == 4_376_897


@pytest.mark.parametrize("size", [(8, 8), (33, 18), (64, 48)])
def test_every_pixel_is_judged(size: tuple[int, int]) -> None:
    assert UNetDiscriminator(4)(torch.rand(2, 3, *size)).shape == (2, 1, *size)


def test_normed_kernels_have_a_largest_singular_value_of_one() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        judge = UNetDiscriminator(4)
    with torch.no_grad():
        for _ in range(100):  # each look is one step of the power iteration
            judge(torch.rand(1, 3, 8, 8))
    judge.eval()
    for layer in (*judge.down, *judge.up, *judge.tail):
        assert float(torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)) == pytest.approx(1, abs=0.01)
