"""Kar: every entry moves by the sum of signs of its gradient and of slow and fast averages of it.

Used to train HyperZ.Z.W (Zhang, arXiv:2401.17948). For betas (b_1, ..., b_n):

    p <- p - lr (sign(g) + sign(m_1) + ... + sign(m_n)),   then   m_i <- b_i m_i + (1 - b_i) g

The averages are used before they are brought up to date and are not corrected for their start at zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from saccade.errors import UsageError

__all__ = ["Kar"]


class Kar(torch.optim.Optimizer):
    """Sign descent with averages: Kar3 for two betas, Kar2 for ``betas=(0.95,)``.

    Args:
        parameters: of the network, or groups.
        lr: of an entry's step, which is 0 to ``1 + len(betas)`` times it.
        betas: of the averages, in [0, 1).

    Raises:
        UsageError: a rate that is not positive, no beta, or one out of range.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float = 1.215e-3,
        betas: tuple[float, ...] = (0.5, 0.95),
    ) -> None:
        if lr <= 0 or not betas or not all(0 <= b < 1 for b in betas):
            raise UsageError(f"Kar takes a positive rate and betas in [0, 1), not {lr} and {betas}")
        super().__init__(parameters, {"lr": lr, "betas": tuple(betas)})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                averages = self.state[p].setdefault("averages", [torch.zeros_like(p) for _ in group["betas"]])
                p.add_(sum((m.sign() for m in averages), p.grad.sign()), alpha=-group["lr"])
                for m, beta in zip(averages, group["betas"], strict=True):
                    m.lerp_(p.grad, 1 - beta)
        return loss
