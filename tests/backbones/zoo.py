"""One small network of every backbone, for what must hold of all of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from saccade.registry import create, list_models


@dataclass(frozen=True)
class Small:
    """How to make a small network of a system.

    Attributes:
        name: a registered name.
        options: what makes it small.
        side: of the square pictures that it is tried on.
        other: (height, width) of another picture; None where it is built for one size, which its docstring says.
        exports: False where its docstring says why it has no ONNX graph.
        maps: how many `features_only` gives.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    side: int = 64
    other: tuple[int, int] | None = (96, 128)
    exports: bool = True
    maps: int = 4

    def make(self, seed: int = 0, **more: Any) -> nn.Module:
        """The network with every parameter and every statistic drawn anew: fresh ones hide mistakes."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = create(self.name, weights=None, **{**self.options, **more})
            return randomised(model)

    def picture(self, batch: int = 2, seed: int = 1, size: tuple[int, int] | None = None) -> torch.Tensor:
        height, width = size or (self.side, self.side)
        return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def randomised(model: nn.Module) -> nn.Module:
    """Gains around 1, offsets around 0, positive variances, layer scales and gates that are not nothing."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None:
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.7, 1.4)
    for parameter in model.parameters():
        if parameter.dim() < 2:
            parameter.uniform_(0.6, 1.2) if parameter.mean() >= 0 and parameter.numel() else parameter.normal_(0, 0.1)
    return model


#: a line a system; the tests of all backbones run over these
SMALL = {
    "shvit": Small("shvit", {"widths": (32, 48, 64), "depths": (1, 2, 1), "partial": (8, 14, 20)}, maps=3),
}


def names(system: str | None = None) -> list[str]:
    """Names that are in timm's registry."""
    from saccade.registry import entry

    found = list_models(task="classification", system=system)
    return [n for n in found if entry(n).facts.get("timm", True) and entry(n).system in SMALL]
