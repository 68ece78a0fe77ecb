"""ElasticViT's latency predictor and the searches below a limit: what is counted, fitted, refused and measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from saccade.backbones.elasticvit.architecture import Architecture, AttentionStage
from saccade.backbones.elasticvit.catalogue import PUBLISHED, SMALL
from saccade.backbones.elasticvit.counting import as_rows, cost_macs, true_macs
from saccade.backbones.elasticvit.evolution import Settings
from saccade.backbones.elasticvit.latency import (
    FEATURES,
    USUAL,
    Platform,
    Predictor,
    features,
    fit,
    measure,
    predictor_rows,
)
from saccade.backbones.elasticvit.network import ElasticViT, SubNetwork
from saccade.backbones.elasticvit.sampling import Rows, uniform_rows
from saccade.backbones.elasticvit.search import (
    ROUNDS,
    Accuracy,
    below_latency,
    below_macs,
    most_macs,
    wide_and_shallow,
)
from saccade.backbones.elasticvit.space import Space, largest, smallest
from saccade.errors import InputError, UsageError
from saccade.registry import create

QUICK = Settings(population=16, generations=2, parents=8, mutations=6, crossovers=6)
PLATFORM = Platform(classes=10)


def rates(seed: int = 0) -> np.ndarray[Any, np.dtype[np.float64]]:
    """A machine: twice as slow as usual, rates up to three times more or less than that beside each other."""
    return 2 * USUAL * 3 ** np.random.default_rng(seed).uniform(-1, 1, len(FEATURES))


def machine(noise: float = 0.0) -> Callable[[Architecture, Space, Platform], float]:
    chance, true = np.random.default_rng(1), rates()

    def took(found: Architecture, space: Space, platform: Platform) -> float:
        exact = float(features(as_rows(found), space, platform.classes)[0] @ true)
        return exact * float(1 + noise * chance.uniform(-1, 1))

    return took


# -- what a row does


@pytest.mark.parametrize("space", [PUBLISHED, SMALL])
def test_products_of_the_features_are_the_macs_that_run(space: Space) -> None:
    """All operations but squeeze-and-excitation's and those of the convolution on the values, which have no feature."""
    products = [i for i, name in enumerate(FEATURES) if name.endswith("products")]
    rows = uniform_rows(space, 1, np.random.default_rng(0))
    counted = 1e6 * features(rows, space)[:, products].sum(1)
    ran = [true_macs(space.architecture(row), space) for row in rows.tolist()]
    left_out = [_left_out(space.architecture(row), space) for row in rows.tolist()]
    assert counted + np.array(left_out) == pytest.approx(np.array(ran), rel=1e-9)


def _left_out(found: Architecture, space: Space) -> int:
    side, width, total = -(-found.resolution // 2), found.stem.width, 0
    for stage, choices in zip(found.stages, space.stages, strict=True):
        side = -(-side // 2) if choices.stride == 2 else side
        for i in range(stage.depth):
            before = width if i == 0 else stage.width
            if isinstance(stage, AttentionStage):
                gates = [6 * before] if i == 0 else []
                total += side**2 * 9 * stage.width * stage.v_scale
            else:
                gates = [before * stage.ratio] if choices.se else []
            total += sum(2 * inner * (inner // 4) for inner in gates)
        width = stage.width
    return total


def test_counts_of_the_features_are_layers_and_parameters() -> None:
    row = as_rows(largest(SMALL))
    found = dict(zip(FEATURES, features(row, SMALL)[0], strict=True))
    assert found["a network"] == 1
    assert found["convolution blocks"] == 2 + 2 + 2 + 1 + 1
    assert found["attention layers"] == 4
    kernels = [
        p.numel()
        for name, p in SubNetwork(largest(SMALL), SMALL).named_parameters()
        if p.dim() > 1
        and not any(part in name for part in (".se.", "depthwise", "value_conv", "shortcut", "bias_table"))
    ]
    assert round(1e6 * found["weights"]) == sum(kernels) - 27 * 24  # all but the first ones


# -- the fit


def test_a_machine_with_rates_of_its_own_is_predicted() -> None:
    found = fit(SMALL, PLATFORM, count=60, measured=machine())
    assert found.errors.mape < 5
    assert found.errors.networks == 15
    assert found.errors.spearman > 0.98
    rows = uniform_rows(SMALL, 50, np.random.default_rng(9))
    assert found(rows) == pytest.approx(features(rows, SMALL, 10) @ rates(), rel=0.15)


def test_a_single_time_that_other_work_spoilt_changes_little() -> None:
    def spoilt(found: Architecture, space: Space, platform: Platform) -> float:
        return machine()(found, space, platform) * (3.0 if found == odd else 1.0)

    rows = predictor_rows(SMALL, 40)
    odd = SMALL.architecture(rows[5].tolist())
    clean, other = (fit(SMALL, PLATFORM, count=40, measured=took) for took in (machine(), spoilt))
    assert other(rows) == pytest.approx(clean(rows), rel=0.06)


def test_what_a_search_measured_is_learnt() -> None:
    found = fit(SMALL, PLATFORM, count=40, measured=machine())
    row = np.array([uniform_rows(SMALL, 1, np.random.default_rng(4))[0]])
    before = float(found(row)[0])
    taught = found.learnt(row[0].tolist(), 1.5 * before)
    assert float(taught(row)[0]) > 1.1 * before
    assert taught.ends == found.ends
    assert Predictor.from_json(taught.to_json()) == taught


def test_errors_are_of_networks_that_the_fit_has_not_seen() -> None:
    noisy = fit(SMALL, PLATFORM, count=40, measured=machine(noise=0.2))
    assert 5 < noisy.errors.mape < 25
    assert noisy.errors.worst > noisy.errors.mape
    assert all(rate >= 0 for rate in noisy.rates)


def test_predictors_are_kept_as_text() -> None:
    found = fit(SMALL, PLATFORM, count=12, measured=machine())
    assert Predictor.from_json(found.to_json()) == found
    for text in ("", "{}", found.to_json().replace('"rates": [', '"rates": [1.0, ')):
        with pytest.raises(UsageError, match="latency predictor"):
            Predictor.from_json(text)


def test_networks_to_measure_differ_and_hold_both_ends() -> None:
    rows = predictor_rows(PUBLISHED, 40)
    assert len({tuple(row) for row in rows.tolist()}) == 40
    assert rows[0].tolist() == list(smallest(PUBLISHED).row)
    assert rows[1].tolist() == list(largest(PUBLISHED).row)
    with pytest.raises(UsageError, match="at least 8"):
        fit(SMALL, PLATFORM, count=7)


def test_a_network_is_measured_as_it_would_be_run() -> None:
    platform = Platform(threads=1, backend="torch", classes=10, seconds=0.0)
    assert 0 < measure(smallest(SMALL), SMALL, platform) < 1_000


# -- searches


def test_the_network_found_keeps_to_its_macs_and_limits_outside_name_the_range() -> None:
    found = below_macs(SMALL, 9.0, most_macs(SMALL), QUICK).best
    assert 8.1 <= found.cost <= 9.0
    assert found.fitness == found.cost
    for limit in (1.0, 50.0):
        with pytest.raises(UsageError, match=r"this space has 2\.2 to 20\.6 M"):
            below_macs(SMALL, limit, most_macs(SMALL), QUICK)


def test_wide_and_shallow_networks_are_preferred() -> None:
    fitness = wide_and_shallow(PUBLISHED)
    middle = PUBLISHED.architecture([c.values[len(c.values) // 2] for c in PUBLISHED.columns])
    deep = replace(middle, stages=(*middle.stages[:-1], replace(middle.stages[-1], depth=6)))
    wide = replace(middle, stages=(*middle.stages[:-1], replace(middle.stages[-1], width=320)))
    assert fitness(wide) > fitness(middle) > fitness(deep)


def test_a_network_slower_than_the_limit_is_searched_again_below_a_lower_one() -> None:
    took = machine()
    predictor = fit(SMALL, PLATFORM, count=40, measured=took)
    limit = float(np.mean(predictor.ends))

    def slower(found: Architecture) -> float:
        return 1.3 * took(found, SMALL, PLATFORM)

    found = below_latency(limit, predictor, most_macs(SMALL), QUICK, measured=slower)
    assert found.rounds > 1
    assert found.measured <= limit
    assert found.predicted < limit / 1.2
    honest = below_latency(limit, predictor, most_macs(SMALL), QUICK, measured=lambda a: 0.99 * limit)
    assert honest.rounds == 1
    assert 0.9 * limit <= honest.predicted <= limit
    never = below_latency(limit, predictor, most_macs(SMALL), QUICK, measured=lambda a: 1.02 * limit)
    assert never.rounds == ROUNDS
    assert never.measured > limit


def test_where_nothing_is_predicted_below_the_limit_the_smallest_network_is_found() -> None:
    """It was measured to keep to the limit, whatever the predictor says of it."""
    predictor = fit(SMALL, PLATFORM, count=12, measured=machine())
    dear = replace(predictor, rates=tuple(3 * rate for rate in predictor.rates))
    limit = 1.01 * dear.ends[0]
    found = below_latency(limit, dear, most_macs(SMALL), QUICK, measured=lambda a: machine()(a, SMALL, PLATFORM))
    assert found.outcome.best.architecture == smallest(SMALL)
    assert found.rounds == 1
    assert found.measured <= limit < found.predicted


def test_times_outside_what_was_measured_name_the_ends() -> None:
    predictor = fit(SMALL, PLATFORM, count=12, measured=machine())
    for limit in (0.5 * predictor.ends[0], 2 * predictor.ends[1]):
        with pytest.raises(UsageError, match=r"the smallest takes .* ms, the largest .* ms"):
            below_latency(limit, predictor, most_macs(SMALL), QUICK)


# -- accuracy


def supernet() -> ElasticViT:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create("elasticvit", weights=None, space="elasticvit-small", num_classes=3)
    assert isinstance(model, ElasticViT)
    return model


def pictures(count: int, seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    chance = torch.Generator().manual_seed(seed)
    return [(torch.randn(count, 3, 64, 64, generator=chance), torch.randint(3, (count,), generator=chance))]


def test_accuracy_is_that_of_the_network_alone_with_statistics_of_its_own() -> None:
    from saccade.backbones.elasticvit.deploy import extract, recalibrate
    from saccade.training.classification import top1

    model, calibration, held = supernet(), pictures(24, 1), pictures(40, 2)
    fitness = Accuracy(model, calibration, held)
    middle = SMALL.architecture(uniform_rows(SMALL, 1, np.random.default_rng(3))[0].tolist())
    found, at_least = fitness(middle), fitness(smallest(SMALL))
    model.architecture = middle
    alone = extract(model)
    recalibrate(alone, calibration)
    assert top1(alone, held) == found
    assert fitness(smallest(SMALL)) == at_least


def test_accuracy_without_pictures_for_the_norms_is_refused() -> None:
    for calibration, held in (([], pictures(2, 0)), (pictures(2, 0), [])):
        with pytest.raises(InputError, match="training pictures for the norms"):
            Accuracy(supernet(), calibration, held)


def test_cost_by_rows_is_cost_by_architectures() -> None:
    rows: Rows = uniform_rows(SMALL, 5, np.random.default_rng(2))
    assert [most_macs(SMALL)(SMALL.architecture(row)) for row in rows.tolist()] == cost_macs(rows, SMALL).tolist()
