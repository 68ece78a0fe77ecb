"""Mixture of experts: which expert a token goes to, the way there and back, and losses that keep experts busy.

    tokens (N, D) -- gate --> Routing -- dispatch --> (E, capacity, D) -- experts --> combine --> (N, D')

The way is a copy by index, O(N k D); as a product with one-hot masks (`one_hot_dispatch`, `one_hot_combine`, the truth
of the tests) it is O(N E capacity D). Where every token goes to one expert and none is dropped, `run_experts`
needs no buffer. Hwang et al., "Tutel", arXiv:2206.03382; Shazeer et al., arXiv:1701.06538; for gates of two experts of
unlike speed, You et al., "ShiftAddViT", arXiv:2306.06446, section 4.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import InputError, UsageError

__all__ = [
    "NaiveGate",
    "NoisyGate",
    "NoisyGateV2",
    "Routing",
    "balance_loss",
    "capacity_of",
    "combine",
    "cv_squared",
    "dispatch",
    "make_gate",
    "one_hot_combine",
    "one_hot_dispatch",
    "probability_in_top",
    "route",
    "run_experts",
]


# ---------------------------------------------------------------------------------------------------------------------
# Top-k routing with a capacity
# ---------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Routing:
    """Where each token goes.

    Attributes:
        expert: (N, k) int64, best first.
        value: (N, k), what the expert's output is multiplied by.
        place: (N, k) int64, row of the flat buffer (E * capacity rows), or E * capacity for one without a place.
        experts, capacity: E, and the places that each has.
    """

    expert: Tensor
    value: Tensor
    place: Tensor
    experts: int
    capacity: int

    @property
    def kept(self) -> Tensor:
        """(N, k) bool: False where the expert was full; such a choice contributes nothing."""
        return self.place < self.experts * self.capacity


def capacity_of(tokens: int, experts: int, k: int, factor: float, needed: int, alignment: int = 1) -> int:
    """Places an expert: k int(factor ceil(N / E)); 0 for as many as are needed; below 0 no more than that many.

    Args:
        needed: the largest number of tokens that chose one expert.
        alignment: the result is rounded up to a multiple of it.
    """
    share = -(-tokens // experts)
    places = needed if factor == 0 else k * int(abs(factor) * share)
    if factor < 0:
        places = min(places, needed)
    return -(-max(places, 1) // alignment) * alignment


def route(
    scores: Tensor,
    k: int = 1,
    *,
    capacity_factor: float = 1.0,
    normalise: bool = False,
    prioritised: bool = False,
    alignment: int = 1,
) -> Routing:
    """Each token to its k best experts, first choices before all second ones, until the experts are full.

    Args:
        scores: (N, E), usually a soft-max.
        k: experts a token, at most E.
        capacity_factor: see `capacity_of`.
        normalise: divide the k values by their sum.
        prioritised: tokens with the highest score are placed first, instead of those that come first.
        alignment: see `capacity_of`.

    Raises:
        InputError: scores that are no matrix, or not a number.
        UsageError: k out of range.
    """
    if scores.ndim != 2 or not scores.is_floating_point():
        raise InputError(f"scores are float (N, E), not {scores.dtype} {tuple(scores.shape)}")
    tokens, experts = scores.shape
    if not 1 <= k <= experts:
        raise UsageError(f"{experts} experts are chosen 1 to {experts} at a time, not {k}")
    if not bool(scores.isfinite().all()):
        raise InputError("scores of experts are not all finite")
    value, expert = scores.topk(k, 1)
    if normalise and k > 1:
        value = value / value.sum(1, keepdim=True).clamp(min=torch.finfo(value.dtype).eps)
    queue = scores.detach().amax(1).argsort(descending=True, stable=True) if prioritised else None
    before = torch.zeros(experts, dtype=torch.long, device=scores.device)
    locations = []
    for chosen in expert.unbind(1):
        line = chosen if queue is None else chosen[queue]
        mask = F.one_hot(line, experts)
        place = (mask.cumsum(0) - 1 + before).gather(1, line[:, None])[:, 0]
        locations.append(place if queue is None else torch.empty_like(place).index_copy(0, queue, place))
        before = before + mask.sum(0)
    location = torch.stack(locations, 1)
    capacity = capacity_of(tokens, experts, k, capacity_factor, int(before.max()), alignment)
    place = torch.where(location < capacity, expert * capacity + location, experts * capacity)
    return Routing(expert, value, place, experts, capacity)


def dispatch(x: Tensor, routing: Routing) -> Tensor:
    """Tokens (N, D) copied to the places of their experts: (E, capacity, D), zero where nobody came."""
    rows = routing.experts * routing.capacity
    spread = x.repeat_interleave(routing.place.shape[1], 0) if routing.place.shape[1] > 1 else x
    buffer = x.new_zeros(rows + 1, x.shape[1])  # the last row takes those that found no place
    return buffer.index_copy(0, routing.place.flatten(), spread)[:rows].unflatten(0, (routing.experts, -1))


def combine(made: Tensor, routing: Routing) -> Tensor:
    """What the experts made, (E, capacity, D), back to its tokens: (N, D), the sum of k rows times their values."""
    flat = made.flatten(0, 1)
    rows = flat.index_select(0, routing.place.clamp(max=len(flat) - 1).flatten()).unflatten(0, routing.place.shape)
    value = routing.value * routing.kept
    return torch.einsum("nkd,nk->nd", rows, value.to(rows.dtype))


def _masks(routing: Routing, dtype: torch.dtype) -> Tensor:
    """(N, k, E * capacity), 1 where a choice has its place."""
    rows = routing.experts * routing.capacity
    made = torch.zeros(*routing.place.shape, rows + 1, dtype=dtype, device=routing.place.device)
    return made.scatter_(-1, routing.place[..., None], 1)[..., :rows]


def one_hot_dispatch(x: Tensor, routing: Routing) -> Tensor:
    """`dispatch` as a product with masks."""
    return torch.einsum("nkp,nd->pd", _masks(routing, x.dtype), x).unflatten(0, (routing.experts, -1))


def one_hot_combine(made: Tensor, routing: Routing) -> Tensor:
    """`combine` as a product with masks."""
    return torch.einsum("nkp,nk,pd->nd", _masks(routing, made.dtype), routing.value, made.flatten(0, 1))


# ---------------------------------------------------------------------------------------------------------------------
# One expert a token, none dropped
# ---------------------------------------------------------------------------------------------------------------------
def run_experts(x: Tensor, experts: Sequence[nn.Module], chosen: Tensor, value: Tensor | None = None) -> Tensor:
    """y_n = value_n * expert(x_n), the expert that token n chose; each expert runs once, on its tokens.

    Tokens are sorted by expert, and results copied back.

    In a graph (compilation, export) shapes cannot follow the data: there every expert sees every token, and the chosen
    output is taken.

    Args:
        x: (N, D).
        experts: map (n, D) to (n, D'); they may get no token at all.
        chosen: (N,) int64.
        value: (N,) or None for 1.
    """
    if torch.compiler.is_compiling():
        made = experts[0](x)
        for i, expert in enumerate(experts[1:], 1):
            made = torch.where((chosen == i)[:, None], expert(x), made)
    else:
        order = chosen.argsort(stable=True)
        counts = _counts(chosen, len(experts))
        parts = x.index_select(0, order).split(counts)
        rows = torch.cat([expert(part) for expert, part in zip(experts, parts, strict=True)])
        made = torch.empty_like(rows).index_copy(0, order, rows)
    return made if value is None else made * value[:, None]


def _counts(chosen: Tensor, experts: int) -> list[int]:
    """Tokens of each expert; equal shares where only shapes are known."""
    if chosen.is_meta:
        return [len(part) for part in chosen.tensor_split(experts)]
    found: list[int] = torch.bincount(chosen, minlength=experts).tolist()
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Losses that keep experts busy
# ---------------------------------------------------------------------------------------------------------------------
def cv_squared(x: Tensor) -> Tensor:
    """Squared coefficient of variation: unbiased variance over (mean^2 + 1e-10); 0 for a single number."""
    return x.var() / (x.mean() ** 2 + 1e-10) if x.numel() > 1 else x.sum() * 0


def probability_in_top(clean: Tensor, noisy: Tensor, std: Tensor | float, k: int = 1) -> Tensor:
    """Phi((clean - threshold) / std): chance (N, E) of an expert to be among the k best if the noise were drawn anew.

    The threshold is the (k+1)-th noisy value for experts that are among the k best now, else the k-th. All on one
    scale, that of the logits.
    """
    best = noisy.topk(min(k + 1, noisy.shape[1]), 1).values
    inside, outside = best[:, -1:], best[:, k - 1 : k]
    threshold = torch.where(noisy > inside, inside, outside)
    return torch.special.ndtr((clean - threshold) / std)


class Gate(nn.Module):
    """What all gates have: the latencies of the experts, and the balance loss of the last batch.

    Args:
        experts: E.
        latencies: seconds of each, up to a factor; the balance loss sends tokens in inverse proportion. None: equal.
    """

    def __init__(self, experts: int, latencies: Sequence[float] | None = None) -> None:
        super().__init__()
        given = [1.0] * experts if latencies is None else [float(t) for t in latencies]
        if experts < 2 or len(given) != experts or min(given) <= 0:
            raise UsageError(f"{experts} experts (at least 2) have a positive latency each, not {given}")
        self.experts = experts
        self.alpha = tuple(t / sum(given) for t in given)
        self.loss: Tensor | None = None

    def train(self, mode: bool = True) -> Gate:
        """As ever; the loss of the last batch is let go."""
        self.loss = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        """Copies leave the loss behind: it hangs on the graph of this gate's last batch."""
        return {**self.__dict__, "loss": None}

    def weighted(self, importance: Tensor, load: Tensor, *, plain_load: bool = False) -> Tensor:
        """CV^2(alpha importance) + CV^2(alpha load), sums over the tokens (E,) (equation 6)."""
        alpha = importance.new_tensor(self.alpha)
        return cv_squared(alpha * importance) + cv_squared(load if plain_load else alpha * load)

    def logits(self, x: Tensor) -> Tensor:
        """Clean logits (N, E)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits that decide, and values, both (N, E); the value of the winner is what its output is multiplied by."""
        raise NotImplementedError


class NaiveGate(Gate):
    """The highest logit wins, its value is 1: no gradient reaches this gate, whatever the loss."""

    def __init__(self, width: int, experts: int = 2, latencies: Sequence[float] | None = None) -> None:
        super().__init__(experts, latencies)
        self.gate = nn.Linear(width, experts)

    def logits(self, x: Tensor) -> Tensor:
        """Clean logits (N, E)."""
        made: Tensor = self.gate(x)
        return made

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.logits(x)
        return logits, torch.ones_like(logits)


class _Noisy(Gate):
    def __init__(self, width: int, experts: int = 2, latencies: Sequence[float] | None = None) -> None:
        super().__init__(experts, latencies)
        self.w_gate = nn.Parameter(torch.empty(width, experts))
        nn.init.uniform_(self.w_gate, -(width**-0.5), width**-0.5)

    def logits(self, x: Tensor) -> Tensor:
        """Clean logits (N, E)."""
        return x @ self.w_gate


class NoisyGate(_Noisy):
    """Logits with learnt noise, whose winner's value is 1: it learns from the balance loss alone (Shazeer et al.).

    Args:
        compat: ``"official"`` draws the noise in evaluation mode too, so that results differ from call to call.
    """

    def __init__(
        self, width: int, experts: int = 2, latencies: Sequence[float] | None = None, compat: str = ""
    ) -> None:
        super().__init__(width, experts, latencies)
        self.w_noise = nn.Parameter(torch.zeros(width, experts))
        self.compat = compat

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        clean = self.logits(x)
        if not self.training and self.compat != "official":
            return clean, torch.ones_like(clean)
        std = F.softplus(x @ self.w_noise) + 0.01
        noisy = clean + torch.randn_like(clean) * std
        if self.training:
            importance = F.one_hot(noisy.argmax(1), self.experts).to(clean.dtype).sum(0)
            self.loss = self.weighted(importance, probability_in_top(clean, noisy, std).sum(0))
        return noisy, torch.ones_like(noisy)


class NoisyGateV2(_Noisy):
    """Logits with noise of deviation 1/E in training; outputs are scaled by the soft-max: the task teaches it too."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        clean = self.logits(x)
        noisy = clean
        if self.training:
            std = 1 / self.experts
            noisy = clean + torch.randn_like(clean) * std
            load = probability_in_top(clean, noisy, std).sum(0)
            self.loss = self.weighted(clean.softmax(1).sum(0), load)
        return noisy, noisy.softmax(1)

    def loss_at_rest(self, x: Tensor) -> Tensor:
        """The balance loss in evaluation mode: the load is the plain count of tokens an expert, without latencies."""
        clean = self.logits(x)
        count = torch.bincount(clean.argmax(1), minlength=self.experts).to(clean.dtype)
        return self.weighted(clean.softmax(1).sum(0), count, plain_load=True)


GATES: dict[str, type[NaiveGate] | type[NoisyGate] | type[NoisyGateV2]] = {
    "noisy_v2": NoisyGateV2,
    "noisy": NoisyGate,
    "naive": NaiveGate,
}


def make_gate(name: str, width: int, experts: int = 2, latencies: Sequence[float] | None = None) -> Gate:
    """A gate by its name.

    Raises:
        UsageError: no such gate, or impossible latencies.
    """
    if name not in GATES:
        raise UsageError(f"no gate named {name!r}; there are {', '.join(GATES)}")
    return GATES[name](width, experts, latencies)


def balance_loss(model: nn.Module) -> Tensor:
    """The mean of the balance losses that a network's gates found in the last batch; to be added to the task's loss.

    Raises:
        UsageError: there is none: no such gate, or the last batch was not one of training. (A `NaiveGate` has none; it
            would stay as it was drawn.)
    """
    losses = [m.loss for m in model.modules() if isinstance(m, Gate) and m.loss is not None]
    if not losses:
        raise UsageError("no gate has a balance loss: run a batch in training mode, through gates with noise")
    total = torch.stack(losses).mean()
    if not math.isfinite(float(total.detach())):
        raise InputError("the balance loss is not finite: the tokens or the gates are not")
    return total
