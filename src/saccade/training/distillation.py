"""Learning from the probabilities of others: the mean of several teachers, the adaptive alpha-divergence.

Wang et al., "AlphaNet: Improved Training of Supernets with Alpha-Divergence", ICML 2021, arXiv:2102.07954: a student
that is punished for too low and for too high probabilities alike keeps to its teacher where plain KL lets it go astray.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.errors import UsageError

__all__ = ["adaptive_alpha_divergence", "alpha_divergence", "mean_probabilities"]


def alpha_divergence(logits: Tensor, probabilities: Tensor, alpha: float, clip: float = 5.0) -> tuple[Tensor, Tensor]:
    """The alpha-divergence of a student q from its teacher p for each sample, and what to minimise in its place.

    With r = p / q, sums over the classes and no gradient but through ``log q_s``:

        alpha = 1    D = sum q r log r                              surrogate  -sum q r log q_s
        else         D = sum q (w - 1) / c                          surrogate  -sum q (w / alpha + 1 / c) log q_s

    where c = alpha (alpha - 1) and w = min(r^alpha, clip): the power is clipped, not the ratio. At alpha = 1 nothing is
    clipped. A class that the teacher rules out (p = 0) counts its limit; the published code gives NaN there.

    Args:
        logits: (B, classes), of the student.
        probabilities: (B, classes), of the teacher.
        alpha: any number but 0.
        clip: the largest w.

    Returns:
        D and the surrogate, (B,) each. Only the surrogate has a gradient.

    Raises:
        UsageError: ``alpha`` is 0, or ``clip`` is not positive.
    """
    if alpha == 0 or clip <= 0:
        raise UsageError(f"alpha is a number other than 0 and clip is positive, not {alpha} and {clip}")
    student = F.log_softmax(logits, 1)
    log_q, p = student.detach(), probabilities.detach()
    if alpha == 1:
        return (torch.xlogy(p, p) - p * log_q).sum(1), -(p * student).sum(1)
    weight = (alpha * (p.log() - log_q)).exp().clamp(max=clip)
    product = alpha * (alpha - 1)
    q = log_q.exp()
    return (q * (weight - 1)).sum(1) / product, -(q * (weight / alpha + 1 / product) * student).sum(1)


def adaptive_alpha_divergence(
    logits: Tensor, probabilities: Tensor, *, alphas: tuple[float, float] = (-1.0, 1.0), clip: float = 5.0
) -> Tensor:
    """The larger of two alpha-divergences sample by sample, as a loss: the mean of their surrogates.

    Args:
        logits: (B, classes), of the student.
        probabilities: (B, classes), of the teacher.
        alphas: one that punishes what the student overrates, one that punishes what it underrates.
        clip: as `alpha_divergence`.

    Raises:
        UsageError: as `alpha_divergence`.
    """
    (low, low_loss), (high, high_loss) = (alpha_divergence(logits, probabilities, alpha, clip) for alpha in alphas)
    return torch.where(low > high, low_loss, high_loss).mean()


@torch.no_grad()
def mean_probabilities(teachers: Sequence[Callable[[Tensor], Tensor]], x: Tensor, temperature: float = 1.0) -> Tensor:
    """The average of several teachers' probabilities, (B, classes).

    Args:
        teachers: at least one, each from a batch to logits.
        x: the batch.
        temperature: divides the logits; below 1 the probabilities are sharper.

    Raises:
        UsageError: no teacher, or a temperature that is not positive.
    """
    if not teachers or temperature <= 0:
        raise UsageError(
            f"an average needs a teacher and a positive temperature, not {len(teachers)} and {temperature}"
        )
    return torch.stack([(teacher(x) / temperature).softmax(1) for teacher in teachers]).mean(0)
