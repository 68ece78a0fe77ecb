"""The Pearson loss: numpy's correlation, indifferent to brightness and contrast, safe on flat pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saccade.errors import InputError
from saccade.quality.pearson import pearson_loss


def pictures(seed: int) -> torch.Tensor:
    return torch.rand(3, 3, 5, 7, generator=torch.Generator().manual_seed(seed))


def test_the_loss_is_that_of_numpys_correlation() -> None:
    a, b = pictures(0), pictures(1)
    r = [np.corrcoef(x.flatten().numpy(), y.flatten().numpy())[0, 1] for x, y in zip(a, b, strict=True)]
    assert float(pearson_loss(a, b)) == pytest.approx(np.mean([(1 - v) / 2 for v in r]), abs=1e-6)


def test_brightness_and_contrast_cost_nothing_and_a_negative_everything() -> None:
    a = pictures(0)
    assert float(pearson_loss(0.5 * a + 0.2, a)) == pytest.approx(0, abs=1e-5)
    assert float(pearson_loss(1 - a, a)) == pytest.approx(1, abs=1e-5)


def test_flat_pictures_have_a_finite_loss_and_gradient() -> None:
    flat = torch.full((2, 3, 4, 4), 0.5)
    other = pictures(2)[:2, :, :4, :4].requires_grad_()
    loss = pearson_loss(other, flat)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.5)
    assert other.grad is not None
    assert other.grad.isfinite().all()


def test_two_flat_pictures_have_a_zero_gradient() -> None:
    black = torch.zeros(1, 3, 4, 4, requires_grad=True)
    pearson_loss(black, torch.zeros(1, 3, 4, 4)).backward()
    assert black.grad is not None
    assert not black.grad.any()


def test_samples_that_are_not_finite_are_left_out() -> None:
    a, b = pictures(0), pictures(1)
    spoilt = a.clone()
    spoilt[1, 0, 0, 0] = float("inf")
    expected = (pearson_loss(a[:1], b[:1]) + pearson_loss(a[2:], b[2:])) / 2
    assert float(pearson_loss(spoilt, b)) == pytest.approx(float(expected), abs=1e-6)
    assert float(pearson_loss(spoilt[1:2], b[1:2])) == 0


def test_the_gradient_is_exact() -> None:
    a, b = (pictures(s)[:2, :, :2, :2].double() for s in (0, 1))
    assert torch.autograd.gradcheck(pearson_loss, (a.requires_grad_(), b.requires_grad_()))


def test_pictures_of_two_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="differ"):
        pearson_loss(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 5))
