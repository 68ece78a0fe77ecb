"""Losses of distillation: the published vectors, the definitions, limits that the published code does not survive."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from saccade.errors import UsageError
from saccade.training.distillation import (
    adaptive_alpha_divergence,
    alpha_divergence,
    mean_probabilities,
)


def student_and_teacher(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    chance = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(5, 7, generator=chance, dtype=torch.float64)
    return logits, (2 * torch.randn(5, 7, generator=chance, dtype=torch.float64)).softmax(1)


@pytest.mark.parametrize("alpha", [-1.0, 0.5, 2.0])
def test_unclipped_divergence_is_its_definition_and_zero_for_equals(alpha: float) -> None:
    logits, p = student_and_teacher()
    q = logits.softmax(1)
    found, _ = alpha_divergence(logits, p, alpha, clip=1e12)
    wanted = ((p**alpha * q ** (1 - alpha)).sum(1) - 1) / (alpha * (alpha - 1))
    torch.testing.assert_close(found, wanted)
    assert (found > 0).all()
    torch.testing.assert_close(alpha_divergence(logits, q, alpha)[0], torch.zeros(5, dtype=torch.float64))


def test_alpha_one_is_kullback_leibler_and_its_gradient() -> None:
    logits, p = student_and_teacher(1)
    logits.requires_grad_()
    found, surrogate = alpha_divergence(logits, p, 1.0)
    torch.testing.assert_close(found, F.kl_div(logits.log_softmax(1), p, reduction="none").sum(1))
    (gradient,) = torch.autograd.grad(surrogate.sum(), logits)
    torch.testing.assert_close(gradient, logits.softmax(1) - p)


def test_the_surrogate_has_the_gradient_of_the_unclipped_divergence() -> None:
    logits, p = student_and_teacher(2)
    logits.requires_grad_()
    (taken,) = torch.autograd.grad(alpha_divergence(logits, p, -1.0, clip=1e12)[1].sum(), logits)
    q = logits.softmax(1)
    (wanted,) = torch.autograd.grad((((q**2 / p).sum(1) - 1) / 2).sum(), logits)
    torch.testing.assert_close(taken, wanted)


def test_each_sample_takes_the_larger_divergence() -> None:
    logits, p = student_and_teacher(3)
    pairs = [alpha_divergence(logits, p, alpha) for alpha in (-1.0, 1.0)]
    larger = [pairs[0][1][i] if pairs[0][0][i] > pairs[1][0][i] else pairs[1][1][i] for i in range(5)]
    torch.testing.assert_close(adaptive_alpha_divergence(logits, p), torch.stack(larger).mean())


@pytest.mark.parametrize("alpha", [-1.0, 1.0])
def test_classes_that_teacher_or_student_rule_out_give_numbers(alpha: float) -> None:
    logits = torch.tensor([[200.0, 0.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    p = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    found, surrogate = alpha_divergence(logits, p, alpha)
    (gradient,) = torch.autograd.grad(surrogate.sum(), logits)
    assert all(t.isfinite().all() for t in (found, surrogate, gradient))


def test_teachers_are_averaged_after_their_softmax_at_a_temperature() -> None:
    x = torch.tensor([[1.0, 0.0]])
    found = mean_probabilities([lambda x: x, lambda x: -x], x, 0.2)
    assert found[0].tolist() == pytest.approx([0.5, 0.5])
    sharp = mean_probabilities([lambda x: x], x, 0.2)
    assert float(sharp[0, 0]) == pytest.approx(1 / (1 + math.exp(-5)))
    assert float(F.cross_entropy(x, sharp)) == pytest.approx(-float((sharp * x.log_softmax(1)).sum()))


def test_values_that_mean_nothing_are_refused() -> None:
    logits, p = student_and_teacher()
    with pytest.raises(UsageError, match="alpha is a number other than 0"):
        alpha_divergence(logits, p, 0.0)
    with pytest.raises(UsageError, match="clip is positive"):
        alpha_divergence(logits, p, 1.0, clip=0.0)
    with pytest.raises(UsageError, match="needs a teacher and a positive temperature"):
        mean_probabilities([], logits)
