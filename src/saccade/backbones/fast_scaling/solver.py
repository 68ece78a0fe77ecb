"""The scale that meets a target: MACs, parameters, activations, or anything that can be measured. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from saccade.backbones.fast_scaling.architecture import Architecture
from saccade.backbones.fast_scaling.counting import complexity
from saccade.backbones.fast_scaling.scaling import scale, scaling_factors
from saccade.errors import UsageError

__all__ = ["Solution", "search", "solve", "solve_measured"]

Quantity = Literal["macs", "params", "acts"]
N = TypeVar("N")


@dataclass(frozen=True)
class Solution:
    """What a solver found: the network, the scale that makes it, and how far it is from the target."""

    architecture: Architecture
    scale: float
    target: float
    achieved: float

    @property
    def deviation(self) -> float:
        """Relative to the target: 0.02 is 2 % above it."""
        return self.achieved / self.target - 1


_BOUNDS = (2.0**-12, 2.0**16)  # scales that a solver tries
_GRID = 241  # candidates around the crossing
_TRIM_ABOVE = 0.02  # a deviation worth a few pixels more or less


def _check_target(target: float, what: str) -> None:
    if not 0 < target < math.inf:
        raise UsageError(f"the target of {what} must be positive and finite, not {target}")


def solve(base: Architecture, target: float, *, quantity: Quantity = "macs", strategy: str = "fast") -> Solution:
    """The scaled network that comes nearest to a target, counted at its own training size.

    The stem does not scale, and every dimension is rounded, so s = target / base misses; and the true cost is a
    staircase in s that is not even monotone. So the crossing is bisected, then its surroundings are searched. Where
    the nearest is still more than 2 % away and the strategy scales pictures, these give or take up to 8 pixels.

    Args:
        target: in units of ``quantity``, e.g. 4e9 MACs.
        quantity: ``"macs"``, ``"params"`` or ``"acts"``.
        strategy: as in `scaling_factors`.

    Raises:
        UsageError: the target is not positive, or this strategy cannot reach it.
    """
    _check_target(target, quantity)
    if quantity not in ("macs", "params", "acts"):
        raise UsageError(f"no quantity {quantity!r} to solve for; there are macs, params and acts")

    def cost(s: float) -> int:
        return int(getattr(complexity(scale(base, strategy, s)), quantity))

    low = high = 1.0
    try:
        while cost(low) > target and low > _BOUNDS[0]:
            low /= 2
    except UsageError:  # the picture rounds to nothing: the smallest network lies just above
        low *= 2
    while cost(high) < target and high < _BOUNDS[1]:
        high *= 2
    if not cost(low) <= target <= cost(high):
        found = sorted((cost(low), cost(high)))
        raise UsageError(
            f"strategy {strategy!r} takes this network from {found[0]:,} to {found[1]:,} {quantity}, "
            f"not to {target:,.0f}; choose another base or strategy"
        )
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if cost(middle) <= target else (low, middle)
    around = [low, high, *(low * 1.5 ** (2 * i / (_GRID - 1) - 1) for i in range(_GRID))]
    best = _nearest(base, strategy, around, (0,), target, quantity)
    if abs(best.deviation) > _TRIM_ABOVE and scaling_factors(strategy, 2.0).resolution > 1:
        trimmed = _nearest(base, strategy, around, (0, -4, 4, -8, 8), target, quantity)
        if abs(trimmed.deviation) < abs(best.deviation):
            return trimmed
    return best


def _nearest(
    base: Architecture, strategy: str, scales: Sequence[float], trims: Sequence[int], target: float, quantity: Quantity
) -> Solution:
    """The candidate nearest to the target; a trim is added to the scaled picture sizes, in pixels."""
    best: Solution | None = None
    for s in scales:
        try:
            net = scale(base, strategy, s)
        except UsageError:  # the picture rounds to nothing
            continue
        for trim in trims:
            if net.train_size + trim < 4 or net.test_size + trim < 4:
                continue
            candidate = replace(net, train_size=net.train_size + trim, test_size=net.test_size + trim)
            found = Solution(candidate, s, target, getattr(complexity(candidate), quantity))
            if best is None or abs(math.log(found.achieved / target)) < abs(math.log(best.achieved / target)) - 1e-12:
                best = found
    assert best is not None  # the scales of the bracket were evaluated before
    return best


def solve_measured(
    base: Architecture,
    target: float,
    measure: Callable[[Architecture], float],
    *,
    strategy: str = "fast",
    tolerance: float = 0.03,
    evaluations: int = 10,
) -> Solution:
    """The scaled network whose *measured* cost comes nearest to a target, e.g. seconds on this machine.

    Each step scales by the power law through the last bracket, so few measurements suffice; each network is measured
    once, and the nearest of those measured is returned.

    Args:
        target: in the units of ``measure``.
        measure: positive, growing with the network; it may be noisy.
        tolerance: stop within this relative distance.
        evaluations: measure at most so many networks.

    Raises:
        UsageError: the target is not positive, or ``measure`` returned no positive number.
    """
    net, s, value = search(
        lambda s: scale(base, strategy, s), measure, target, tolerance=tolerance, evaluations=evaluations
    )
    return Solution(net, s, target, value)


def search(
    scaled: Callable[[float], N],
    measure: Callable[[N], float],
    target: float,
    *,
    tolerance: float,
    evaluations: int,
    bounds: tuple[float, float] = _BOUNDS,
) -> tuple[N, float, float]:
    """The network whose measured cost comes nearest to a target among at most so many that are measured.

    Args:
        scaled: the network of a scale; what is the same network must be equal.
        measure, target, tolerance, evaluations: as `solve_measured`.
        bounds: of the scales that are tried.

    Returns:
        The network, its scale, what was measured.

    Raises:
        UsageError: as `solve_measured`.
    """
    _check_target(target, "the measurement")
    tried: dict[N, tuple[float, float]] = {}  # network: (scale, measured)
    below: tuple[float, float] | None = None
    above: tuple[float, float] | None = None
    s = 1.0
    for _ in range(4 * evaluations):
        s = min(max(s, bounds[0]), bounds[1])
        net = scaled(s)
        if net not in tried:
            if len(tried) == evaluations:
                break
            value = measure(net)
            if not 0 < value < math.inf:
                raise UsageError(f"the measurement of a network must be a positive number, not {value}")
            tried[net] = s, value
        value = tried[net][1]
        if abs(value / target - 1) <= tolerance:
            break
        if value < target and (below is None or s > below[0]):
            below = s, value
        elif value >= target and (above is None or s < above[0]):
            above = s, value
        if below and above:
            if above[0] / below[0] < 1.002:
                break
            share = math.log(target / below[1]) / math.log(above[1] / below[1])
            s = below[0] * (above[0] / below[0]) ** min(max(share, 0.1), 0.9)
        else:
            s *= (target / value) ** 1.2  # time grows a little slower than MACs
            if s in (below or above or ()):
                break
    nearest = min(tried, key=lambda net: abs(math.log(tried[net][1] / target)))
    return nearest, *tried[nearest]
