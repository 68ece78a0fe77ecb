"""A discriminator that learns beside a network: its word in the network's loss, then a step of its own.

    made, real -- discriminator, fixed -------------- adversarial + perceptual --> the network's gradient
    made (no gradient), real -- discriminator ------- judged real, judged made --> its own gradient and step

Goodfellow et al., arXiv:1406.2661, in the form of ESRGAN's successors (Wang et al., arXiv:2107.10833).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from saccade.nn.discriminator import UNetDiscriminator
from saccade.quality.adversarial import adversarial_loss

__all__ = ["Opponent"]


class Opponent:
    """A U-Net discriminator with its optimiser.

    Args:
        fabric: of the run.
        width: of the discriminator.
        rate: constant learning rate (Adam, betas 0.9 and 0.99).
        seed: of its first weights.
        weight: of its word in the network's loss.
        perceptual: a second judge, which does not learn: (made, wanted) -> loss.
        kept: what `state` gave, to go on from.
    """

    def __init__(
        self,
        fabric: Any,
        *,
        width: int = 64,
        rate: float = 1e-4,
        seed: int = 0,
        weight: float = 0.05,
        perceptual: nn.Module | None = None,
        kept: Any = None,
    ) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._raw = UNetDiscriminator(width)
        optimiser = torch.optim.Adam(self._raw.parameters(), lr=rate, betas=(0.9, 0.99))
        if kept:
            self._raw.load_state_dict(kept["discriminator"])
            optimiser.load_state_dict(kept["optimiser"])
        self.fabric, self.weight = fabric, weight
        self.discriminator, self.optimiser = fabric.setup(self._raw, optimiser)
        self.perceptual = None if perceptual is None else fabric.to_device(perceptual)
        self._seen: tuple[Tensor, Tensor] | None = None

    def state(self) -> dict[str, Any]:
        """Everything needed to go on."""
        return {"discriminator": self._raw.state_dict(), "optimiser": self.optimiser.state_dict()}

    def losses(self, made: Tensor, wanted: Tensor, real: Tensor) -> dict[str, Tensor]:
        """What the network is to lower; `learn` then takes the same pictures.

        Args:
            made: (B, 3, h, w), with gradient.
            wanted: what the perceptual loss compares with.
            real: what the discriminator takes for real.
        """
        self._seen = made.detach(), real
        told = {}
        if self.perceptual is not None:
            told["perceptual"] = self.perceptual(made, wanted)
        self._raw.requires_grad_(False)  # its own gradient belongs to `learn`
        told["adversarial"] = adversarial_loss(self.discriminator(made), True, generator=True, weight=self.weight)
        return told

    def learn(self) -> dict[str, float]:
        """One step on what the network made; the losses of both halves.

        The halves go backwards one after the other: the spectral norms move at each look.
        """
        assert self._seen is not None, "losses come first"
        self._raw.requires_grad_(True)
        told = {}
        for name, pictures, real in (("judged_real", self._seen[1], True), ("judged_made", self._seen[0], False)):
            loss = adversarial_loss(self.discriminator(pictures), real)
            self.fabric.backward(loss)
            told[name] = float(loss.detach())
        self.optimiser.step()
        self.optimiser.zero_grad()
        self._seen = None
        return told
