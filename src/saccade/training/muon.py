"""Muon: momentum whose matrix is made orthogonal before each step.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; Bernstein and Newhouse, "Old
Optimizer, New Norm", arXiv:2409.20325. Convolution kernels are matrices (out, in * kh * kw) here. What is no matrix
(biases, norms) goes by Adam. PyTorch's own Muon takes plain matrices only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Muon", "orthogonalised"]

COEFFICIENTS = (3.4445, -4.775, 2.0315)  # quintic Newton-Schulz step, steep at zero


def orthogonalised(matrix: Tensor, steps: int = 5) -> Tensor:
    """Roughly the nearest matrix with singular values 1 (between 0.7 and 1.2), by Newton-Schulz iterations.

    Shape: (rows, columns), or a batch of such -> the same.
    """
    a, b, c = COEFFICIENTS
    wide = matrix.shape[-2] <= matrix.shape[-1]
    x = matrix if wide else matrix.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x if wide else x.mT


class Muon(torch.optim.Optimizer):
    """Muon for matrices and kernels, Adam for the rest.

    Args:
        parameters: of the network.
        lr: for matrices, of an update whose entries have a root mean square of 0.2 (so rates of AdamW fit).
        momentum: of the averaged gradient (Nesterov).
        weight_decay: decoupled, on matrices.
        betas, eps: of Adam for the rest, whose rate is the same.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
    ) -> None:
        given = list(parameters)
        matrices = [p for p in given if _is_matrix(p)]
        rest = [p for p in given if not _is_matrix(p)]
        groups = [{"params": matrices, "matrices": True}, {"params": rest, "matrices": False}]
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "betas": betas, "eps": eps}
        super().__init__([g for g in groups if g["params"]], defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            update = self._matrix if group["matrices"] else self._adam
            for p in group["params"]:
                if p.grad is not None:
                    update(p, p.grad, group)
        return loss

    def _matrix(self, p: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        average = state.setdefault("average", torch.zeros_like(p))
        average.lerp_(gradient, 1 - group["momentum"])
        ahead = gradient.lerp(average, group["momentum"]).flatten(1)
        made = orthogonalised(ahead).view_as(p)
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.add_(made, alpha=-group["lr"] * 0.2 * max(ahead.shape) ** 0.5)

    def _adam(self, p: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        if not state:
            state["step"], state["first"], state["second"] = torch.zeros(()), torch.zeros_like(p), torch.zeros_like(p)
        state["step"] += 1
        low, high = group["betas"]
        state["first"].lerp_(gradient, 1 - low)
        state["second"].mul_(high).addcmul_(gradient, gradient, value=1 - high)
        count = float(state["step"])
        spread = (state["second"] / (1 - high**count)).sqrt_().add_(group["eps"])
        p.addcdiv_(state["first"], spread, value=-group["lr"] / (1 - low**count))


def _is_matrix(p: Tensor) -> bool:
    return p.dim() >= 2 and min(p.shape[0], p[0].numel()) > 1
