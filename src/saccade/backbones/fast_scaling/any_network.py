"""Any registered network that is described by widths and depths, scaled by its options and measured by the ledger.

    name, strategy, scale s -- factors of depth, width, resolution -- options -- built on the meta device -- cost

What a network's options are called, what follows the width or the depth with them and what widths must divide by is
told by a line of `GROWTHS`; all else is the same for every network. Those whose options are tables, or choices out of a
space, translate these themselves (`saccade.nn.dimensions`). Building on the meta device computes nothing, so a network
of gigabytes is measured in a moment. Networks that look at values (routed ones) get a picture of zeros.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from saccade import registry
from saccade.backbones.fast_scaling.architecture import BASES
from saccade.backbones.fast_scaling.scaling import Factors, scaling_factors
from saccade.backbones.fast_scaling.solver import search
from saccade.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from saccade.cost import Cost
    from saccade.nn.dimensions import Dimensions

__all__ = ["GROWTHS", "Base", "Growth", "Result", "Scaled", "scale_to"]

R = TypeVar("R")
Nudges = tuple[tuple[str, int], ...]  # options and places in them
TOLERANCE = 0.05  # a target is met within this part of it, or refused
_NEAR = 0.02  # near enough to stop
_EVALUATIONS = 24
_BOUNDS = (2.0**-10, 2.0**12)  # scales that are tried
_FAR = (2.0**-40, 2.0**40)  # where numbers end at their last choice, while others still grow
_LOOKED = (RuntimeError, UsageError)  # what a network without values raises when it needs them
_QUANTITIES = {"macs": "macs", "acts": "activations", "params": "parameters"}


@dataclass(frozen=True)
class Growth:
    """How a network's options grow with width, depth and resolution.

    Attributes:
        widths, depths: options with the channels and the blocks, one for all or one a stage; ``""``: it has none.
        multiple: of every width.
        divides: options whose numbers, one for all or one a stage, must divide the widths too, such as heads.
        values: options that are a share of the widths, each of which must divide by ``divides``' numbers too.
        chained: every width is a multiple of the one before.
        along: further options in channels that grow with the width, and what they are multiples of.
        patterns: options that give every block of every stage a number; they are repeated or cut off.
        blocks: attribute of the network that tells the blocks, where the option may be a name for them.
        sides: options with the side or the sides of the pictures, for networks that are built for one size.
        grid: sides of pictures are multiples of it, pixels; or the network's attribute that tells it.
        dimensions: the network tells widths, depths and sides itself, and what options they make.
    """

    widths: str = "widths"
    depths: str = "depths"
    multiple: int = 8
    divides: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    chained: bool = False
    along: tuple[tuple[str, int], ...] = ()
    patterns: tuple[str, ...] = ()
    blocks: str = ""
    sides: str = ""
    grid: int | str = 4
    dimensions: bool = False


#: by the name of the general network
GROWTHS: dict[str, Growth] = {
    "biformer": Growth(divides=("head_dim",)),
    "dsm": Growth(divides=("groups",), sides="img_size"),
    "efficientvit": Growth(divides=("heads",), sides="img_size", grid=16),
    "elasticvit_subnet": Growth(sides="sides", grid=1, dimensions=True),
    "fit_classifier": Growth(divides=("heads",), sides="img_size", grid="subimage"),
    "foveated": Growth(sides="img_size", grid=8),
    "hyperzzw": Growth(depths="", multiple=12, chained=True, sides="img_size"),
    "piip": Growth(divides=("heads", "deform_heads"), values=("ratio",), sides="sides", grid=16),
    "resnetrs": Growth(widths="channels", depths="depth", along=(("stem_width", 8),), blocks="layers", grid=32),
    "shiftaddvit": Growth(divides=("heads",)),
    "shvit": Growth(along=(("partial", 1),)),
    "tvconv_mobilenetv2": Growth(multiple=2, sides="img_size", grid=16, dimensions=True),
    "tvconv_shufflenetv2": Growth(multiple=4, sides="img_size", grid=16),
    "ulsam_mobilenetv1": Growth(divides=("groups",), grid=32, dimensions=True),
    "ulsam_mobilenetv2": Growth(divides=("groups",), grid=32, dimensions=True),
    "unireplknet": Growth(patterns=("kernels",)),
    "van": Growth(),
    "wavemix": Growth(widths="width", depths="depth", along=(("ff_width", 8),), grid="multiple"),
}


#: why others are not scaled, by the name of the general network
UNSCALED = {
    "elasticvit": "a supernet holds networks of all its costs at once: `saccade search` finds the one for yours",
    "anynet": "it has no widths and depths of its own to begin with",
}


def _on_meta(name: str, options: Mapping[str, Any], then: Callable[[nn.Module, str], R], allowed: bool = True) -> R:
    """What a function makes of a fresh network and its device: meta, or the processor where values are looked at."""
    import torch

    def there(device: str) -> R:
        with torch.device(device), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return then(registry.create(name, weights=None, **options), device)

    if not allowed:
        return there("cpu")
    try:
        return there("meta")
    except _LOOKED as error:
        if isinstance(error, UsageError) and "by shapes alone" not in str(error):
            raise
        return there("cpu")


@dataclass(frozen=True)
class Scaled:
    """A network by its name, the options that differ from what the name stands for, and the side of its pictures."""

    name: str
    options: tuple[tuple[str, Any], ...]
    size: int

    @property
    def call(self) -> str:
        """The Python expression that builds it."""
        told = "".join(f", {key}={value!r}" for key, value in self.options)
        return f'saccade.create("{self.name}", weights=None{told})'

    def cost(self, *, threads: int | None = None, timed: bool = False) -> Cost:
        """Parameters, MACs and activations for one picture; with ``timed`` also the time it takes here."""
        import torch

        from saccade.cost import cost

        def counted(model: nn.Module, device: str) -> Cost:
            x = torch.zeros(1, getattr(model, "in_chans", 3), self.size, self.size, device=device)
            return cost(model, x, threads=threads, timed=timed)

        return _on_meta(self.name, dict(self.options), counted, not timed)


@dataclass(frozen=True)
class Base:
    """What is scaled.

    Attributes:
        name: registered.
        growth: how its options grow.
        options: all that its constructor takes, as this name has them.
        size: side of its pictures, pixels.
        grid: sides are multiples of it.
        dimensions: as the network tells them, where it does; their numbers are among the options too.
    """

    name: str
    growth: Growth
    options: Mapping[str, Any]
    size: int
    grid: int
    dimensions: Dimensions | None = None

    @classmethod
    def of(cls, name: str, size: int | None = None) -> Base:
        """The network of a name.

        Args:
            size: of its pictures; None for what it is registered for.

        Raises:
            UsageError: no such network, one without widths and depths, a size below 1.
        """
        found = registry.entry(name)
        growth = GROWTHS.get(found.function)
        if growth is None or found.task != "classification":
            raise _refusal(found)
        if size is not None and size < 1:
            raise UsageError(f"the side of the pictures is at least 1 pixel, not {size}")
        options, grid, dimensions = _on_meta(name, {}, lambda model, _: _told(model, growth))
        sides = dimensions.numbers.get("sides", ()) if dimensions else ()
        own = max(sides, default=int(found.facts.get("size", 224)))
        return cls(name, growth, options, size or own, grid, dimensions)

    @property
    def bounds(self) -> tuple[float, float]:
        """Scales that are tried."""
        return _FAR if self.dimensions and self.dimensions.choices else _BOUNDS

    def numbers(self, option: str) -> tuple[int, ...]:
        """An option's numbers, one a stage; nothing for ``""``."""
        value = self.options[option] if option else ()
        return tuple(value) if isinstance(value, Sequence) else (value,)

    def scaled(self, factors: Factors, nudged: Nudges = (), side: int | None = None) -> Scaled:
        """With its options multiplied and rounded.

        Args:
            nudged: widths and depths that are rounded the other way.
            side: of the pictures, where there is a choice of them (`sides_near`); None for the nearest.

        Raises:
            UsageError: the strategy scales depth, and this network has none; pictures without pixels.
        """
        own = self.growth
        if factors.depth != 1 and not own.depths:
            raise UsageError(f"{self.name} has no depth to scale; choose the strategy width or resolution")
        depths = [
            self._nearest(own.depths, i, depth * factors.depth, 1, nudged)
            for i, depth in enumerate(self.numbers(own.depths))
        ]
        changed: dict[str, Sequence[Any] | None] = {
            own.widths: self._widths(factors.width, nudged),
            own.depths: depths,
            **{option: _times(self._given(option), factors.width, unit) for option, unit in own.along},
            **{option: _patterns(self._given(option), depths) for option in own.patterns},
        }
        size = self._size(self.size, factors.resolution)
        if own.sides:
            sides = self._sides(factors.resolution) if side is None else [side] * len(self.numbers(own.sides))
            changed[own.sides] = sides
            size = max(sides) if self._choices(own.sides) else size
        if self.dimensions:
            changed = self._translated(changed)
        options = ((key, self._like(key, value)) for key, value in changed.items() if key and value is not None)
        return Scaled(self.name, tuple((key, value) for key, value in options if value != self.options[key]), size)

    def _translated(self, changed: Mapping[str, Sequence[Any] | None]) -> dict[str, Any]:
        """Numbers that the network tells itself, as the options that they make; others as they are."""
        assert self.dimensions is not None
        told = self.dimensions.numbers
        numbers = {key: changed.get(key) or told[key] for key in told}
        rest = {key: value for key, value in changed.items() if key not in told}
        if all(tuple(numbers[key]) == tuple(told[key]) for key in told):
            return rest
        return {**rest, **self.dimensions.options({key: tuple(value) for key, value in numbers.items()})}

    def _choices(self, option: str) -> Sequence[Sequence[int]]:
        """What each of an option's numbers may be, where they are not free."""
        return self.dimensions.choices.get(option, ()) if self.dimensions else ()

    def _nearest(self, option: str, place: int, exact: float, unit: int, nudged: Nudges, least: int = 0) -> int:
        """The nearest multiple of a unit, or the nearest choice from ``least`` on; where nudged, the next one."""
        other, choices = (option, place) in nudged, self._choices(option)
        if not choices:
            return _rounded(exact, unit, other)
        allowed = [choice for choice in choices[place] if choice >= least]
        near = min(allowed, key=lambda choice: abs(choice - exact))
        beyond = [choice for choice in allowed if (choice < near if near >= exact else choice > near)]
        return (beyond[-1] if near >= exact else beyond[0]) if other and beyond else near

    def _given(self, option: str) -> Sequence[Any] | None:
        """An option's values, or None where it is left to the network."""
        value = self.options[option]
        return value if value is None or isinstance(value, Sequence) else [value]

    def _like(self, option: str, value: Sequence[Any]) -> Any:
        """One number where the option is one, else a tuple."""
        if not isinstance(value, list):
            return value
        return tuple(value) if isinstance(self.options[option], Sequence) else value[0]

    def _units(self, count: int) -> list[int]:
        """What each of ``count`` widths must divide by."""
        units = [self.growth.multiple] * count
        for option in self.growth.divides:
            numbers = self.numbers(option)
            units = [math.lcm(u, n) for u, n in zip(units, numbers * (count // len(numbers)), strict=True)]
        for option in self.growth.values:
            units = [round(unit / self.options[option]) for unit in units]
        return units

    def _widths(self, factor: float, nudged: Nudges) -> list[int]:
        widths = self.numbers(self.growth.widths)
        if factor == 1:
            return list(widths)
        made: list[int] = []
        for i, (width, unit) in enumerate(zip(widths, self._units(len(widths)), strict=True)):
            step = math.lcm(unit, made[-1]) if self.growth.chained and made else unit
            least = made[-1] if made else 0
            made.append(self._nearest(self.growth.widths, i, width * factor, step, nudged, least))
        return made

    def nudges(self, factors: Factors) -> Iterator[Nudges]:
        """One or two of the widths and depths that these factors change, for `scaled` to round the other way."""
        changed = [(self.growth.widths, factors.width), (self.growth.depths, factors.depth)]
        places = [(option, i) for option, f in changed if f != 1 for i in range(len(self.numbers(option)))]
        for count in (1, 2):
            yield from itertools.combinations(places, count)

    def sides_near(self, factors: Factors) -> list[int]:
        """Where pictures' sides are a choice: those next to the one that `scaled` takes, the nearer first."""
        choices = self._choices(self.growth.sides)
        if not choices or factors.resolution == 1:
            return []
        exact = self.size * factors.resolution
        return sorted(choices[0], key=lambda side: abs(side - exact))[1:3]

    def _size(self, side: int, factor: float) -> int:
        found = side if factor == 1 else round(side * factor / self.grid) * self.grid
        if found < 1:
            raise UsageError(f"scaled by {factor:g}, pictures of {side} px would have no pixel left")
        return found

    def _sides(self, factor: float) -> list[int]:
        """Sides that the network is built for: those of the options, in proportion to the size that was asked for."""
        sides = self.numbers(self.growth.sides)
        made = [self._size(round(self.size * side / max(sides)), factor) for side in sides]
        return [self._nearest(self.growth.sides, i, side, 1, ()) for i, side in enumerate(made)]


def _refusal(found: registry.ModelEntry) -> UsageError:
    """Why a network is not scaled, and which are."""
    why = UNSCALED.get(found.function, "it is not described by widths and depths")
    if found.task != "classification":
        why = f"it is for {found.task}, and classifiers are scaled"
    kin = [g for g in sorted(GROWTHS) if found.system and registry.entry(g).system == found.system]
    return UsageError(
        f"{found.name} is not a network that can be scaled: {why}. "
        + f"Of its system {', '.join(kin)} can. " * bool(kin)
        + f"These can, and their variants: {', '.join(sorted({*GROWTHS, *BASES}))}"
    )


def _told(model: nn.Module, growth: Growth) -> tuple[dict[str, Any], int, Dimensions | None]:
    """All options that a network was made with, defaults among them, what its pictures' sides are multiples of, and
    what it tells of its dimensions.
    """
    makers = [vars(kind)["__init__"] for kind in reversed(type(model).__mro__) if "__init__" in vars(kind)]
    parameters = [p for maker in makers[1:] for p in inspect.signature(maker).parameters.values()]
    options = {p.name: p.default for p in parameters if p.default is not p.empty}
    options |= getattr(model, "built_with", {})
    options |= {key: getattr(model, key) for key in growth.patterns}  # where the network chose them itself
    if growth.blocks:
        options[growth.depths] = getattr(model, growth.blocks)
    grid = getattr(model, growth.grid) if isinstance(growth.grid, str) else growth.grid
    if not growth.dimensions:
        return options, grid, None
    teller: Any = model
    dimensions: Dimensions = teller.dimensions()
    return {**options, **dimensions.numbers}, grid, dimensions


def _rounded(exact: float, unit: int, other: bool) -> int:
    """The nearest positive multiple of a unit, half to even; with ``other`` the next one beyond the exact number."""
    near = max(1, round(exact / unit))
    if other:
        near = max(1, near - 1 if near * unit >= exact else near + 1)
    return near * unit


def _times(values: Sequence[int] | None, factor: float, unit: int) -> list[int] | None:
    """Scaled and rounded; 0 stays, it stands for none."""
    if values is None or factor == 1:
        return None
    return [value and _rounded(value * factor, unit, False) for value in values]


def _patterns(pattern: Sequence[Any] | None, depths: Iterable[int]) -> list[tuple[Any, ...]] | None:
    """Each stage's numbers, repeated or cut off to its depth."""
    if pattern is None:
        return None
    return [tuple(row[i % len(row)] for i in range(depth)) for row, depth in zip(pattern, depths, strict=True)]


@dataclass(frozen=True)
class Result:
    """What was found.

    Attributes:
        base, network: before and after.
        scale: the factor on MACs that was shared among the dimensions.
        target, achieved: of the quantity that was asked for.
        before, after: costs of both.
    """

    base: Scaled
    network: Scaled
    scale: float
    target: float
    achieved: float
    before: Cost
    after: Cost

    @property
    def deviation(self) -> float:
        """Relative to the target: 0.02 is 2 % above it."""
        return self.achieved / self.target - 1

    @property
    def exponent(self) -> float:
        """Activations grew as MACs to this power; not a number where MACs stayed."""
        grown = math.log(self.after.macs / self.before.macs)
        return math.log(self.after.activations / self.before.activations) / grown if grown else math.nan


def scale_to(
    base: Base,
    *,
    strategy: str = "fast",
    by: float | None = None,
    target: float | None = None,
    quantity: str = "macs",
    threads: int | None = None,
    measure: Callable[[Scaled], float] | None = None,
) -> Result:
    """Scale a network by a factor, or to a target by bisection.

    Args:
        strategy: as `scaling_factors`.
        by: factor on MACs; what comes out is what rounding makes of it.
        target: in units of ``quantity``; met within 5 % (`TOLERANCE`).
        quantity: ``"macs"``, ``"acts"``, ``"params"`` or ``"seconds"``: of one picture, measured here; the nearest of
            ten that are measured, however far.
        threads: of the processor, for seconds.
        measure: anything else that grows with a network, instead of a quantity; taken as seconds are.

    Raises:
        UsageError: neither or both of ``by`` and ``target``, an unknown quantity, a target that this strategy cannot
            reach within 5 %.
    """
    if (by is None) == (target is None):
        raise UsageError("give a factor or a target, one of them")
    if quantity not in (*_QUANTITIES, "seconds"):
        raise UsageError(f"no quantity {quantity!r} to solve for; there are {', '.join(_QUANTITIES)} and seconds")
    counted = functools.cache(Scaled.cost)
    start = base.scaled(Factors(1, 1, 1, 1))
    before = counted(start)
    if by is not None:
        net = base.scaled(scaling_factors(strategy, by, base.size))
        after = counted(net)
        return Result(start, net, by, before.macs * by, after.macs, before, after)
    assert target is not None
    if measure is not None or quantity == "seconds":
        net, s, achieved = search(
            lambda s: base.scaled(scaling_factors(strategy, s, base.size)),
            measure or (lambda net: net.cost(threads=threads, timed=True).latency_s or 0.0),
            target,
            tolerance=0.03,
            evaluations=10,
            bounds=base.bounds,
        )
    else:
        net, s, achieved = _solve(base, strategy, target, lambda net: getattr(counted(net), _QUANTITIES[quantity]))
    return Result(start, net, s, target, achieved, before, counted(net))


def _solve(base: Base, strategy: str, target: float, count: Callable[[Scaled], float]) -> tuple[Scaled, float, float]:
    """The network within 5 % of a count, its scale and its count.

    Raises:
        UsageError: there is none.
    """

    def searched(side: int | None) -> tuple[Scaled, float, float]:
        return search(
            lambda s: base.scaled(scaling_factors(strategy, s, base.size), side=side),
            count,
            target,
            tolerance=_NEAR,
            evaluations=_EVALUATIONS,
            bounds=base.bounds,
        )

    def miss(found: tuple[Scaled, float, float]) -> float:
        return abs(found[2] / target - 1)

    side, best = None, searched(None)
    sides = iter(base.sides_near(scaling_factors(strategy, best[1], base.size)))
    while miss(best) > TOLERANCE and (other_side := next(sides, None)):  # between two sides costs jump
        if miss(found := searched(other_side)) < miss(best):
            side, best = other_side, found
    net, s, achieved = best
    factors = scaling_factors(strategy, s, base.size)
    others = base.nudges(factors)  # dimensions round all at once, and may miss: then some the other way
    while abs(achieved / target - 1) > TOLERANCE and (nudged := next(others, None)):
        other = base.scaled(factors, nudged, side)
        if abs(count(other) / target - 1) < abs(achieved / target - 1):
            net, achieved = other, count(other)
    if abs(achieved / target - 1) > TOLERANCE:
        raise UsageError(
            f"strategy {strategy!r} brings {base.name} to {achieved:,.0f} at the nearest, "
            f"{achieved / target - 1:+.0%} from {target:,.0f}; choose another base or strategy"
        )
    return net, s, achieved
