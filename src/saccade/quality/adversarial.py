"""Adversarial losses with a mask, for pictures of which a part is blurred on purpose.

Of PBaSR (Qin et al., arXiv:2407.14880): the discriminator judges every pixel, and only those in the mask count.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.errors import InputError, UsageError

__all__ = ["adversarial_loss", "masked_mean"]

KINDS = ("vanilla", "lsgan", "hinge")


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the mask: sum(values * mask) / sum(mask); the plain mean without a mask, or where it is empty.

    Args:
        values: any shape.
        mask: weights in [0, 1] that broadcast to it.

    Raises:
        InputError: a mask of another size, or with values outside [0, 1].
    """
    if mask is None:
        return values.mean()
    try:
        mask = mask.expand_as(values)
    except RuntimeError as error:
        raise InputError(f"a mask {tuple(mask.shape)} does not go with values {tuple(values.shape)}") from error
    low, high = torch.aminmax(mask.detach())
    if not (low >= 0 and high <= 1):
        raise InputError(f"a mask lies in [0, 1], this one in [{float(low):.3g}, {float(high):.3g}]")
    total = mask.sum()
    return torch.where(
        total > 0, (values * mask).sum() / total.clamp_min(torch.finfo(values.dtype).tiny), values.mean()
    )


def adversarial_loss(
    logits: Tensor,
    real: bool,
    *,
    kind: str = "vanilla",
    mask: Tensor | None = None,
    generator: bool = False,
    weight: float = 1.0,
) -> Tensor:
    """Loss of a discriminator or a generator, per pixel, averaged over a mask.

    Args:
        logits: (B, 1, h, w), what the discriminator says.
        real: the target: whether these should be judged real.
        kind: ``vanilla`` (binary cross-entropy), ``lsgan`` (squared distance to 1 or 0), or ``hinge``.
        mask: (B, 1, h, w) in [0, 1]; where it is empty the plain mean is taken. (The official hinge loss divides by
            zero there.)
        generator: for the generator, whose hinge loss is -logit whatever the target.
        weight: of the generator's loss; a discriminator's is not weighted.

    Raises:
        UsageError: another kind.
        InputError: a mask that does not go with the logits.
    """
    if kind == "vanilla":
        values = F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(real)), reduction="none")
    elif kind == "lsgan":
        values = (logits - float(real)).square()
    elif kind == "hinge":
        values = -logits if generator else F.relu(1 - logits if real else 1 + logits)
    else:
        raise UsageError(f"an adversarial loss is {', '.join(KINDS)}, not {kind!r}")
    loss = masked_mean(values, mask)
    return loss * weight if generator else loss
