"""The claim of Histoformer: its control, its inequality, and a run of a few steps on generated pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from saccade.cost import count_parameters
from saccade.data.generated import write_pictures
from saccade.registry import create
from saccade.reproduce import Data, histoformer


def figures(**changed: Any) -> dict[str, Any]:
    found = {
        "gain_db_histogram_500_steps": [3.8],
        "gain_db_histogram_200_steps": [2.9, 2.8, 2.7],
        "gain_db_control_500_steps": [4.0],
        "gain_db_control_200_steps": [3.0, 3.0, 3.0],
        "fast_minus_plain_db": [0.01, -0.02],
        "fast_to_plain_agreement_db": [41.0, 49.0],
    }
    return found | changed


def test_the_control_has_the_parameters_of_histogram_attention_and_sorts_nothing() -> None:
    control = histoformer.control().double()
    assert count_parameters(control) == count_parameters(create("histoformer_tiny", weights=None))
    x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        before = control(x)
        nudged = control(x + 1e-12)
    assert float((before - nudged).abs().max()) < 1e-9, "without sorting it is continuous"


def test_the_control_multiplies_gates_keys_and_values() -> None:
    module = histoformer.GatedConvolution(4, 1)
    x = torch.rand(1, 4, 5, 5, generator=torch.Generator().manual_seed(1))
    q1, k1, q2, k2, v = module.qkv_dwconv(module.qkv(x)).chunk(5, 1)
    torch.testing.assert_close(module(x), module.project_out((q1.sigmoid() * k1 + q2.sigmoid() * k2) * v))


def test_the_claim_can_fail_in_each_of_its_parts_and_never_by_the_control() -> None:
    assert histoformer.met(figures())
    assert histoformer.met(figures(gain_db_control_500_steps=[9.0]))
    assert not histoformer.met(figures(gain_db_histogram_500_steps=[2.9]))
    assert not histoformer.met(figures(gain_db_histogram_200_steps=[2.9, 1.9, 2.9]))
    assert not histoformer.met(figures(fast_minus_plain_db=[0.06]))
    assert not histoformer.met(figures(fast_to_plain_agreement_db=[37.0, 49.0]))


def test_shipped_weights_are_measured_by_kind_of_weather(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(histoformer, "default_weights", lambda name: None)
    assert histoformer._shipped([]) == {}
    monkeypatch.setattr(histoformer, "default_weights", lambda name: tmp_path)
    monkeypatch.setattr(histoformer, "create", lambda name: torch.nn.Identity())
    files = write_pictures(tmp_path, 1, 48, 0)
    found = histoformer._shipped(files)
    assert set(found) == {
        f"shipped_{m}_{k}" for m in ("psnr_db", "ssim") for k in ("rain", "heavy_rain", "snow", "drops")
    }
    for before, after in found.values():
        assert before == after, "nothing was restored"
        assert 0 < before < 60


@pytest.mark.slow
def test_a_run_of_a_few_steps_on_generated_pictures_has_every_figure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in (("STEPS", 3), ("SHORT", 2), ("SEEDS", 2), ("PICTURES", 2), ("PATCH", 32)):
        monkeypatch.setattr(histoformer, name, value)
    with Data() as data:
        found = histoformer.run(data, 0)
    assert len(found["gain_db_histogram_2_steps"]) == len(found["gain_db_control_2_steps"]) == 2
    assert len(found["histogram_over_control_db_3_steps"]) == 1
    assert found["pictures"] == len(found["fast_minus_plain_db"]) == len(found["tiles_minus_whole_db"]) == 2
    assert max(map(abs, found["fast_minus_plain_db"])) < 1
    histoformer.plot(found, tmp_path / "made.png")
    assert (tmp_path / "made.png").stat().st_size > 1000
