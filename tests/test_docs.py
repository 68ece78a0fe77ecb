"""The documentation's generated pages: right with nothing measured yet, and with results of any shape."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("mkdocs", reason="the extra docs is not installed")
ROOT = Path(__file__).resolve().parents[1]

RESULT = {
    "system": "sesr",
    "claim": "Collapsed equals expanded.",
    "source": "section 3.2",
    "baseline": "the expanded form",
    "figures": {"difference": 7.1e-8, "psnr": {"x2": 36.5, "x4": [30.1, 30.2]}, "steps": 12000, "exact": True},
    "met": True,
    "seconds": 83.4,
    "machine": {"cores": 2},
    "versions": {"torch": "2.15.0"},
    "seed": 0,
}


@pytest.fixture
def hooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """docs/hooks.py, looking for results in empty folders."""
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("RESULTS", "SPEED"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(module, name, tmp_path / name)
    return module


def put(folder: Path, name: str, content: Any) -> None:
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def test_pages_say_so_when_nothing_was_measured(hooks: ModuleType) -> None:
    assert "No result has been recorded yet" in hooks.gallery_page()
    assert "Nothing has been recorded yet" in hooks.benchmarks_page()
    assert hooks.claim_section("sesr") == "*No recorded claims of SESR yet.* `saccade reproduce sesr` makes one."
    assert hooks.speed_table("sesr") == "*No speed rows of SESR yet.*"


def test_the_gallery_shows_claim_result_figures_and_pictures(hooks: ModuleType) -> None:
    put(hooks.RESULTS, "sesr.json", RESULT)
    put(hooks.RESULTS, "pcsr.json", {**RESULT, "system": "pcsr", "met": False})
    (hooks.RESULTS / "sesr.png").write_bytes(b"")
    page = hooks.gallery_page()
    assert "| [SESR](#sesr) | Collapsed equals expanded. | met | 83 s |" in page
    assert "| [PCSR](#pcsr) | Collapsed equals expanded. | not met | 83 s |" in page
    for part in ("| difference | 7.1e-08 |", "| psnr, x2 | 36.5 |", "| psnr, x4 | 30.1, 30.2 |", "| steps | 12,000 |"):
        assert part in page
    assert "| exact | yes |" in page
    assert "![SESR: sesr](results/sesr.png)" in page
    assert "`saccade reproduce sesr`, 83 s, seed 0, cores 2, torch 2.15.0. [Result as JSON](results/sesr.json)" in page


@pytest.mark.parametrize("met", ["yes", 1, None, "true"])
def test_only_true_is_met(hooks: ModuleType, met: object) -> None:
    put(hooks.RESULTS, "sesr.json", {**RESULT, "met": met})
    assert "**not met**" in hooks.claim_section("sesr")


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", "null", "3", '{"rows": 3}', '{"rows": [1]}', '[{"figures": [[1], 2]}]']
)
def test_odd_files_do_not_stop_the_build(hooks: ModuleType, content: str) -> None:
    put(hooks.RESULTS, "sesr.json", content)
    put(hooks.SPEED, "upscale.json", content)
    for made in (hooks.gallery_page(), hooks.benchmarks_page(), hooks.claim_section("sesr"), hooks.speed_table("sesr")):
        assert isinstance(made, str)
        assert made


def test_speed_rows_become_a_table_with_their_commands(hooks: ModuleType) -> None:
    row = {"system": "sesr", "what": "1080p", "ours_ms": 221.94, "peer": "OpenCV | cubic", "peer_ms": 12, "ratio": None}
    put(hooks.SPEED, "upscale.json", {"rows": [{**row, "command": "saccade bench upscale"}], "machine": "4 cores"})
    assert hooks.speed_table("sesr").splitlines()[0] == "| what | ours, ms | alternative | alternative, ms |"
    page = hooks.benchmarks_page()
    assert "| 1080p | 221.9 | OpenCV \\| cubic | 12 |" in page
    assert "`saccade bench upscale` printed this." in page
    assert "4 cores." in page
    assert "No speed rows" in hooks.speed_table("pcsr")


def test_results_at_several_numbers_of_threads_stand_side_by_side(hooks: ModuleType) -> None:
    row = {"system": "van", "what": "van_b0", "size": "224x224", "peer": "plainly", "ours_ms": 13.4, "peer_ms": 49.6}
    alone = {**row, "size": "512x512", "ours_ms": 49.1, "ratio": 4.53, "threads": 2}
    two = {"rows": [{**row, "ratio": 3.7, "threads": 2}, alone], "notes": ["two notes", 3], "machine": "4 cores"}
    four = {"rows": [{**row, "ours_ms": 8.5, "ratio": 2.9, "threads": 4}], "machine": "4 cores", "notes": ["of four"]}
    put(hooks.SPEED, "backbones.json", two)
    assert "| van_b0 | 224x224 | 13.4 | plainly | 49.6 | 3.7 | 2 |" in hooks.speed_table("van")
    put(hooks.SPEED, "backbones_4threads.json", four)
    shown = hooks.speed_table("van").splitlines()
    assert shown[0].endswith(
        "| ratio, 2 threads | ours, ms, 4 threads | alternative, ms, 4 threads | ratio, 4 threads |"
    )
    assert shown[2] == "| van_b0 | 224x224 | plainly | 13.4 | 49.6 | 3.7 | 8.5 | 49.6 | 2.9 |"
    assert shown[3] == "| van_b0 | 512x512 | plainly | 49.1 | 49.6 | 4.53 |  |  |  |"
    page = hooks.benchmarks_page()
    assert page.count("## Backbones") == 1
    assert "4 cores.\n\n- two notes\n" in page
    assert "4 threads. 4 cores.\n\n- of four\n" in page


def test_the_table_of_systems_has_all_81_and_links_to_their_pages(hooks: ModuleType) -> None:
    page = hooks.systems_page()
    assert sum(line.startswith("| ") and "arXiv" in line for line in page.splitlines()) == 81
    assert "[SESR](sesr.md)" in page


def test_models_are_counted_not_typed(hooks: ModuleType) -> None:
    rows = hooks.models_table("sesr").splitlines()
    assert any(r.startswith("| `sesr_m5` | x2 | 1x360x640 | 13,600 | 3.115 G |") for r in rows)


def test_every_public_module_has_a_place_in_the_reference(hooks: ModuleType) -> None:
    pages = hooks.reference_pages()
    assert "::: saccade.checkpoint" in pages["reference/core.md"]
    assert "::: saccade.restoration.upscale" in pages["reference/restoration.md"]
    assert not any("saccade.cli" in text for text in pages.values())
