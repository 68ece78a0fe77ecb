"""Milliseconds of a sub-network on this machine, predicted from its choices.

    rows -- what their layers do: operations, elements, weights (`features`) -- times non-negative rates -- milliseconds

The rates are fitted to networks that were measured as a user would run them (`saccade.accelerate`, one picture at the
network's own resolution), so that errors count by their share of the time. What layers do goes together, and a search
drives a predictor to where it errs: so rates are held near what processors usually take, scaled to this one, single
times that are far off count less, and what a search found is measured and learnt (`Predictor.learnt`). A quarter of the
networks measured is held out to say how far predictions are off.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from saccade.backbones.elasticvit.architecture import Architecture
from saccade.backbones.elasticvit.catalogue import as_space
from saccade.backbones.elasticvit.counting import Rows, as_rows
from saccade.backbones.elasticvit.network import SubNetwork
from saccade.backbones.elasticvit.sampling import Costs, scattered_rows, uniform_rows
from saccade.backbones.elasticvit.space import Space, largest, smallest
from saccade.cost import cost
from saccade.errors import UsageError
from saccade.progress import track
from saccade.quality.reiqa.protocol import srcc
from saccade.runtime.accelerate import accelerate

__all__ = ["Errors", "Platform", "Predictor", "features", "fit", "measure", "predictor_rows"]

FEATURES = (
    "a network", "convolution blocks", "attention layers", "pixels", "dense products", "depth-wise products",
    "elements between convolutions", "token products", "attention products", "attention weights", "token elements",
    "weights",
)  # fmt: skip
#: usual ratios between the rates of the features; a machine's own scale and the measurements decide the rest
USUAL = np.array([0.1, 0.02, 0.05, 0.05, 0.02, 0.06, 0.3, 0.02, 0.03, 0.5, 0.3, 0.1])
TRUST = 0.02  # in these ratios: the squared error of a time over the squared error of a rate, both relative
FAR = 0.1  # relative error from which on a single time counts less


@dataclass(frozen=True)
class Platform:
    """What a time depends on beside the network.

    Args:
        threads: of the processor.
        backend: of `saccade.accelerate`: auto, openvino or torch.
        device: torch's name; OpenVINO runs on the processor.
        classes: outputs of the classifier.
        seconds: for how long each network is timed, once its graph stands.
    """

    threads: int = 1
    backend: str = "auto"
    device: str = "cpu"
    classes: int = 1000
    seconds: float = 0.6


def measure(found: Architecture, space: Space, platform: Platform) -> float:
    """Milliseconds of one picture at the network's own resolution, fresh weights, made fast by `saccade.accelerate`.

    Args:
        found: which network.
        space: that it lies in.
        platform: threads, backend and device.
    """
    model = SubNetwork(found.to_dict(), space.to_dict(), num_classes=platform.classes).eval().to(platform.device)
    return milliseconds(model, found.resolution, platform)


def milliseconds(model: torch.nn.Module, side: int, platform: Platform) -> float:
    """Milliseconds of one picture of ``side`` pixels through any network in evaluation mode, as `measure`.

    The least of several medians of five runs: what the network takes while nothing else wants the processor. Other
    work only ever adds, and would be taken for the network's own.
    """
    x = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)).to(platform.device)
    fast = accelerate(model, x.shape, backend=platform.backend, threads=platform.threads)
    medians = list[float]()
    began = time.monotonic()
    while len(medians) < 3 or time.monotonic() - began < platform.seconds:
        took = cost(fast, x, repeats=5, threads=platform.threads).latency_s
        assert took is not None  # a real input is timed
        medians.append(took)
    return 1e3 * min(medians)


def predictor_rows(space: Space, count: int, seed: int = 0) -> Rows:
    """Different networks to fit a predictor to: the two ends of the space, uniform ones, and some from all over it.

    Args:
        space: what there is to choose.
        count: at least 2.
        seed: of all chance.
    """
    chance = np.random.default_rng(seed)
    drawn = np.stack([uniform_rows(space, 4 * count, chance), scattered_rows(space, 4 * count, chance)], axis=1)
    ends = as_rows([smallest(space), largest(space)])
    different = dict.fromkeys(map(tuple, [*ends.tolist(), *drawn.reshape(-1, ends.shape[1]).tolist()]))
    return np.array(list(different)[:count], dtype=np.int64)


# ---------------------------------------------------------------------------------------------------------------------
# What a row does
# ---------------------------------------------------------------------------------------------------------------------
Each = NDArray[np.int64] | int  # a number for every row, or one for all


def features(rows: Rows, space: Space, classes: int = 1000) -> Costs:
    """What the layers of each row do, (n, `FEATURES`): counts, in millions but for the first four.

    Args:
        rows: (n, columns).
        space: of the rows.
        classes: outputs of the classifier.
    """
    side = (rows[:, 0] + 1) // 2
    width, depth, kernel = rows[:, 2], rows[:, 1], rows[:, 3]
    sums: dict[str, NDArray[Any]] = {name: np.zeros(len(rows)) for name in FEATURES}
    sums["a network"] += 1
    sums["pixels"] += rows[:, 0] ** 2 / 1e4
    sums["dense products"] += side**2 * 27 * width
    _blocks(sums, depth, width, width, width, kernel, side, side, expands=False)
    for i, stage in enumerate(space.stages):
        depth, wide, ratio, extra = rows[:, 4 + 4 * i : 8 + 4 * i].T
        out = (side + 1) // 2 if stage.stride == 2 else side
        if stage.kind == "conv":
            first, rest = width * ratio, wide * ratio
            _blocks(sums, 1, width, first, wide, extra, side, out)
            _blocks(sums, depth - 1, wide, rest, wide, extra, out, out)
        else:
            inner = 6 * width
            _blocks(sums, 1, width, inner, wide, 3, side, out)
            _attention(sums, depth, wide, ratio, extra, out**2, space.head_dim)
        width, side = wide, out
    head = space.head_ratio * width
    sums["token products"] += side**2 * width * head + head * space.head_width + space.head_width * classes
    sums["weights"] += width * head + head * space.head_width + space.head_width * classes
    found = np.stack([sums[name] for name in FEATURES], axis=1).astype(np.float64)
    found[:, 4:] /= 1e6
    return found


def _blocks(
    sums: dict[str, NDArray[Any]],
    count: Each,
    inputs: Each,
    inner: Each,
    width: Each,
    kernel: Each,
    side: Each,
    out: Each,
    *,
    expands: bool = True,
) -> None:
    """Add ``count`` inverted bottlenecks with depthwise kernels of ``kernel``, from sides ``side`` to ``out``."""
    shortcut = np.where(inputs != width, out**2 * inputs * width, 0)
    sums["convolution blocks"] += count
    sums["dense products"] += count * (side**2 * inputs * inner * expands + out**2 * inner * width + shortcut)
    sums["depth-wise products"] += count * out**2 * inner * kernel**2
    sums["elements between convolutions"] += count * (side**2 * inner + 2 * out**2 * inner)
    sums["weights"] += count * inner * (inputs * expands + width)


def _attention(
    sums: dict[str, NDArray[Any]], depth: Each, width: Each, ratio: Each, v_scale: Each, tokens: Each, head_dim: int
) -> None:
    """Add ``depth`` pairs of attention and feed-forward."""
    heads, values = width // head_dim, width * v_scale
    weights = width * (2 * width + values) + values * width + 2 * ratio * width**2
    sums["attention layers"] += depth
    sums["token products"] += depth * tokens * weights
    sums["attention products"] += depth * tokens**2 * (width + values)
    sums["attention weights"] += depth * tokens**2 * heads
    sums["token elements"] += depth * tokens * ((6 + 2 * ratio) * width + 3 * values)
    sums["weights"] += depth * weights


# ---------------------------------------------------------------------------------------------------------------------
# The predictor
# ---------------------------------------------------------------------------------------------------------------------
Samples = tuple[tuple[tuple[int, ...], float], ...]  # rows and their milliseconds


@dataclass(frozen=True)
class Errors:
    """How far predictions were off on networks that the fit had not seen.

    Attributes:
        networks: how many.
        mape: mean of the absolute errors, in percent of the measured time.
        worst: the largest of them, in percent.
        spearman: rank correlation of predicted and measured times.
    """

    networks: int
    mape: float
    worst: float
    spearman: float


@dataclass(frozen=True)
class Predictor:
    """Milliseconds of rows; made by `fit`.

    Attributes:
        space: of the networks.
        platform: what was measured.
        rates: milliseconds for one of each of `FEATURES`.
        errors: on the networks held out.
        samples: rows and milliseconds of the networks measured; the space's smallest and largest come first.
        searched: the same of networks that searches found.
    """

    space: Space
    platform: Platform
    rates: tuple[float, ...]
    errors: Errors
    samples: Samples
    searched: Samples = ()

    @property
    def ends(self) -> tuple[float, float]:
        """Measured milliseconds of the space's smallest and largest network."""
        return self.samples[0][1], self.samples[1][1]

    def __call__(self, rows: Rows) -> Costs:
        """Predicted milliseconds of rows (n, columns)."""
        predicted: Costs = features(rows, self.space, self.platform.classes) @ np.array(self.rates)
        return predicted

    def learnt(self, row: Sequence[int], took: float) -> Predictor:
        """The same with the time of a network that a search found, near which the next one will look.

        It counts as much as five, however far off it is.
        """
        searched = (*self.searched, (tuple(row), took))
        samples = [*self.samples, *searched * 5]
        rows = np.array([sample for sample, _ in samples], dtype=np.int64)
        times = np.array([time_of for _, time_of in samples])
        rates = _rates(features(rows, self.space, self.platform.classes), times, len(self.samples))
        return replace(self, rates=tuple(rates.tolist()), searched=searched)

    def to_json(self) -> str:
        """All of it as text."""
        return json.dumps({**asdict(self), "space": self.space.to_dict()})

    @classmethod
    def from_json(cls, text: str) -> Predictor:
        """What `to_json` gave.

        Raises:
            UsageError: anything else.
        """
        try:
            told: Mapping[str, Any] = json.loads(text)
            rates = tuple(map(float, told["rates"]))
            samples, searched = (
                tuple((tuple(map(int, row)), float(took)) for row, took in told[name])
                for name in ("samples", "searched")
            )
            if len(rates) != len(FEATURES) or len(samples) < 2:
                raise ValueError(f"{len(rates)} rates instead of {len(FEATURES)}, {len(samples)} samples")
            platform, errors = Platform(**told["platform"]), Errors(**told["errors"])
            return cls(as_space(told["space"]), platform, rates, errors, samples, searched)
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"this describes no latency predictor: {error}") from error


def fit(
    space: Space,
    platform: Platform,
    *,
    count: int = 32,
    seed: int = 0,
    measured: Callable[[Architecture, Space, Platform], float] = measure,
) -> Predictor:
    """Measure networks and fit a predictor to them.

    Every fourth network but the space's two ends is held out, the errors on those are reported, then all are fitted.

    Args:
        space: what there is to choose.
        platform: threads, backend and device.
        count: networks to measure, at least 8; each takes seconds, most of them to build its graph.
        seed: which ones.
        measured: gives the milliseconds of a network.

    Raises:
        UsageError: fewer than 8 networks.
    """
    if count < 8:
        raise UsageError(f"a latency predictor is fitted to at least 8 networks, not {count}")
    rows = predictor_rows(space, count, seed)
    times = np.array(
        [measured(space.architecture(row), space, platform) for row in track(rows.tolist(), "measuring networks")]
    )
    described = features(rows, space, platform.classes)
    held = np.arange(len(rows)) % 4 == 2
    guessed = described[held] @ _rates(described[~held], times[~held])
    off = 100 * np.abs(guessed / times[held] - 1)
    errors = Errors(int(held.sum()), float(off.mean()), float(off.max()), srcc(guessed, times[held]))
    rates = tuple(_rates(described, times).tolist())
    samples = tuple((tuple(row), took) for row, took in zip(rows.tolist(), times.tolist(), strict=True))
    return Predictor(space, platform, rates, errors, samples)


def _rates(described: Costs, times: Costs, doubted: int | None = None) -> Costs:
    """Non-negative rates of the least relative errors, near the usual ones.

    The first times, ``doubted`` of them or all, count less where they are far off.
    """
    relative = described / times[:, None] * USUAL  # what each feature would be of the time, at its usual rate
    scale = 1 / float(np.median(relative.sum(axis=1)))
    columns = scale * relative
    weights = np.ones(len(times))
    found = np.ones(len(USUAL))
    for _ in range(8):
        gram = (columns * weights[:, None]).T @ columns + TRUST * np.eye(len(USUAL))
        found = _non_negative(gram, (columns * weights[:, None]).sum(axis=0) + TRUST, found)
        off = np.abs(columns @ found - 1)[:doubted]
        weights[:doubted] = np.minimum(1, FAR / np.maximum(off, 1e-12))
    rates: Costs = scale * USUAL * found
    return rates


def _non_negative(gram: Costs, right: Costs, start: Costs) -> Costs:
    """The non-negative minimum of x' gram x / 2 - right x: coordinates in turn until none moves."""
    found = start.copy()
    for _ in range(5_000):
        before = found.copy()
        for j in range(len(found)):
            found[j] = max(0.0, found[j] + (right[j] - gram[j] @ found) / gram[j, j])
        if np.abs(found - before).max() < 1e-9:
            break
    return found
