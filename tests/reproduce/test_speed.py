"""Pictures a second: of whole batches, on the threads that are told; charts pick figures by their names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from saccade.reproduce import charts, speed


def test_pictures_a_second_are_those_of_whole_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()

    def medians(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
        assert (list(calls), rounds, torch.get_num_threads()) == (["quick", "slow"], 3, before + 1)
        return {"quick": 0.01, "slow": 0.5}

    monkeypatch.setattr(speed, "medians", medians)
    calls = dict.fromkeys(("quick", "slow"), lambda: None)
    found = speed.pictures_a_second(calls, 4, threads=before + 1, rounds=3)
    assert found == {"pictures_per_s_quick": 400, "pictures_per_s_slow": 8, "threads": before + 1}


def test_networks_see_pictures_of_their_own_side_without_gradients() -> None:
    seen: dict[int, tuple[bool, bool, int]] = {}
    before = torch.get_num_threads()

    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            assert x.shape[:2] == (2, 3)
            last = x.is_contiguous(memory_format=torch.channels_last)
            seen[x.shape[-1]] = (last, torch.is_inference_mode_enabled(), torch.get_num_threads())
            out: Tensor = self.conv(x)
            return out

    networks = {"small": (Looks(), 8), "large": (Looks(), 16)}
    found = speed.network_speeds(networks, 2, threads=before + 1, rounds=1)
    assert set(found) == {"pictures_per_s_small", "pictures_per_s_large", "threads"}
    assert seen == dict.fromkeys((8, 16), (True, True, before + 1))


def test_a_peer_gives_what_it_gave_before_it_was_folded() -> None:
    timm = pytest.importorskip("timm")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        folded = speed.folded_peer("repvgg_a0")
        torch.manual_seed(0)
        plain = timm.create_model("repvgg_a0").eval()
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(folded(x), plain(x), rtol=1e-3, atol=1e-4)
    count = [sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) for model in (folded, plain)]
    assert count[0] == 0 < count[1]


def test_bars_are_the_figures_whose_names_begin_alike(tmp_path: Path) -> None:
    plt = pytest.importorskip("matplotlib.pyplot")
    figures = {"accuracy_one_head": 90.0, "steps": 3, "accuracy_plain": 80.0, "ms_plain": 2.0}
    picture, axis = plt.subplots()
    charts.bars(axis, figures, "accuracy_", "accuracy, %")
    assert [label.get_text() for label in axis.get_yticklabels()] == ["one head", "plain"]
    assert [bar.get_width() for bar in axis.patches] == [90.0, 80.0]
    assert axis.get_xlabel() == "accuracy, %"
    plt.close(picture)
    for units in ({"accuracy_": "%", "ms_": "ms"}, {"ms_": "ms"}):
        charts.panels(figures, tmp_path / "a.png", units, (4, 2))
        assert (tmp_path / "a.png").stat().st_size > 1_000
