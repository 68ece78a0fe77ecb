"""Samplers: small MLPs that are asked once per output pixel (section 3.1; LIIF without unfolding and ensemble).

The input of a query is ``[feature, rel_y, rel_x, cell_y, cell_x]``: the nearest input pixel's feature, the offset to
that pixel's centre and the size of an output pixel, both in input pixels times two. The first layer is linear, so it
splits exactly into a part that depends on the input pixel alone and a part that depends on the position alone:

    W [f, q] + b = W_f f + (W_q q + b)

For a whole scale s the position takes s^2 values (phases); the first part is computed once per input pixel instead of
once per output pixel. Hidden layers are held channels-first, (channels, pixels): the wide side is contiguous, which is
what makes products with such narrow matrices fast.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import UsageError

__all__ = ["Sampler", "axis_positions", "phase_positions"]


def axis_positions(inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
    """Nearest input pixel and offset of every output pixel along one axis.

    Args:
        inputs: n, length of the axis in input pixels.
        outputs: N, length in output pixels.

    Returns:
        (N,) int64 index of the input pixel whose cell holds the centre of the output pixel, and (N,) float64 offset
        to its centre in units of half an input pixel, in [-1, 1].
    """
    centre = (torch.arange(outputs, dtype=torch.float64) + 0.5) * (inputs / outputs)  # in input pixels, from the edge
    nearest = centre.floor().clamp_(0, inputs - 1)
    return nearest.long(), 2 * (centre - nearest - 0.5)


def phase_positions(scale: int) -> Tensor:
    """(4, scale^2): rel_y, rel_x, cell_y, cell_x of the output pixels of one input pixel, row by row."""
    offset = (2 * torch.arange(scale, dtype=torch.float64) + 1) / scale - 1
    rel = torch.cartesian_prod(offset, offset).view(-1, 2).T  # (2, s^2)
    return torch.cat([rel, torch.full_like(rel, 2 / scale)]).float()


class Sampler(nn.Module):
    """Linear + ReLU for each hidden width, then Linear: the heavy and light upsamplers and the classifier.

    Args:
        features: channels D of the encoder.
        hidden: widths of the hidden layers; () is a single Linear.
        outputs: 3 for colours, 2 for the classes light and heavy.

    Raises:
        UsageError: a width below 1.
    """

    def __init__(self, features: int, hidden: Sequence[int], outputs: int) -> None:
        super().__init__()
        widths = [features + 4, *hidden, outputs]
        if min(widths) < 1:
            raise UsageError(f"a sampler cannot have hidden widths {list(hidden)}: all must be at least 1")
        self.features, self.outputs = features, outputs
        self.widths = widths
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in itertools.pairwise(widths))

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one query, the official way of counting (whole first layer)."""
        return self.first_macs + 4 * self.widths[1] + self.tail_macs

    @property
    def first_macs(self) -> int:
        """Multiply-accumulates of the feature part of the first layer: once per input pixel."""
        return self.features * self.widths[1]

    @property
    def tail_macs(self) -> int:
        """Multiply-accumulates of what follows the first layer: once per output pixel."""
        return sum(i * o for i, o in itertools.pairwise(self.widths[1:]))

    def forward(self, queries: Tensor) -> Tensor:
        """The slow truth: (..., D + 4) query inputs -> (..., outputs)."""
        *hidden, last = self.layers
        for layer in hidden:
            queries = F.relu(layer(queries))
        result: Tensor = last(queries)
        return result

    def split(self) -> tuple[Tensor, Tensor, Tensor]:
        """The first layer in its two parts: W_f (o, D), W_q (o, 4) and the bias (o,)."""
        first: nn.Linear = self.layers[0]  # type: ignore[assignment]
        return first.weight[:, : self.features], first.weight[:, self.features :], first.bias

    @property
    def tail_layers(self) -> list[nn.Linear]:
        """The layers behind the first."""
        return list(self.layers[1:])  # type: ignore[arg-type]

    def difference(self) -> Sampler:
        """A sampler with one output: the second of this one's minus its first, as for the margin of two classes."""
        made = copy.deepcopy(self)
        last: nn.Linear = made.layers[-1]  # type: ignore[assignment]
        made.widths, made.outputs = [*self.widths[:-1], 1], 1
        with torch.no_grad():
            last.weight = nn.Parameter(last.weight[1:2] - last.weight[:1])
            last.bias = nn.Parameter(last.bias[1:2] - last.bias[:1])
        return made

    def tail(self, x: Tensor) -> Tensor:
        """What follows the first layer: its sums (o, P), channels first and overwritten, -> (outputs, P)."""
        for layer in self.tail_layers:
            x = torch.addmm(layer.bias[:, None], layer.weight, F.relu_(x))
        return x

    def dense(self, features: Tensor, scale: int) -> Tensor:
        """All output pixels of a whole scale.

        Args:
            features: (D, P), the features of P input pixels.

        Returns:
            (outputs, scale^2, P), by phase.
        """
        by_feature, by_position, bias = self.split()
        positions = phase_positions(scale).to(features)
        phases = torch.addmm(bias[:, None], by_position, positions)  # (o, s^2)
        first = (by_feature @ features)[:, None] + phases[:, :, None]  # (o, s^2, P)
        return self.tail(first.flatten(1)).unflatten(1, (scale * scale, -1))
