"""The index of systems: complete, well formed, and its standing read from the tree."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from saccade import systems as index
from saccade.cli.systems import systems as verb
from saccade.errors import UsageError
from saccade.systems import Standing, all_systems, derive, implementations, standing, system, table

KEYS = ["slug", "name", "title", "package", "dial", "implementation", "parity", "claim", "speed", "docs"]
ROOT = Path(__file__).resolve().parents[1]
in_checkout = pytest.mark.skipif(
    index.find_checkout() is None, reason="the package runs installed, not from a checkout"
)


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def run(*arguments: str) -> list[dict[str, object]]:
    app = typer.Typer()
    app.command()(verb)
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    rows: list[dict[str, object]] = json.loads(result.stdout)
    return rows


def test_there_are_81_systems_each_with_well_formed_facts() -> None:
    found = all_systems()
    assert len(found) == 81
    assert [s.slug for s in found] == sorted({s.slug for s in found})
    for s in found:
        assert re.fullmatch(r"[a-z][a-z0-9_]*", s.slug)
        assert re.fullmatch(r"\d{4}\.\d{5}", s.arxiv), s.slug
        assert re.fullmatch(r"saccade\.[a-z]+", s.package), s.slug
        # a paper appears in the year of its preprint or up to two years later, bar a workshop just before it
        assert -1 <= s.year - (2000 + int(s.arxiv[:2])) <= 2, s.slug
        for text in (s.name, s.title, s.task, s.job, *([s.dial] if s.dial is not None else [])):
            assert re.fullmatch(r"\S|\S.*\S", text), s.slug
        assert not s.job.endswith("."), s.slug


def test_papers_and_names_are_not_given_twice() -> None:
    found = all_systems()
    for attribute in ("name", "title", "arxiv", "job"):
        assert len({getattr(s, attribute) for s in found}) == len(found), attribute


def test_packages_hold_as_many_systems_as_the_design_gives_them() -> None:
    counts: dict[str, int] = {}
    for s in all_systems():
        counts[s.package.removeprefix("saccade.")] = counts.get(s.package.removeprefix("saccade."), 0) + 1
    assert counts == {
        "adaptation": 9, "backbones": 17, "codecs": 4, "compression": 6, "curation": 2, "detection": 3, "fields": 4,
        "generation": 6, "multimodal": 5, "ops": 2, "quality": 3, "restoration": 11, "retrieval": 2,
        "segmentation": 2, "serving": 1, "training": 4,
    }  # fmt: skip


def test_known_systems_are_described_rightly() -> None:
    sesr = system("sesr")
    assert (sesr.name, sesr.year, sesr.arxiv) == ("SESR", 2022, "2103.09404")
    assert (sesr.task, sesr.package) == ("super-resolution", "saccade.restoration")
    assert system("espcn").dial is None
    assert "heavy" in (system("pcsr").dial or "")


def test_a_wrong_slug_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"no system named 'sser'; the nearest are .*sesr"):
        system("sser")
    with pytest.raises(UsageError, match="rd_prune"):
        system("RD-Prune")
    with pytest.raises(UsageError, match="none is near"):
        standing("qqqqqqqq")


def test_systems_filter_by_pattern_and_task() -> None:
    assert [s.slug for s in all_systems("*sr", task="super-resolution")] == ["pbasr", "pcsr", "sesr"]
    assert all_systems("nothing*") == []
    with pytest.raises(UsageError, match="super-resolution"):
        all_systems(task="superresolution")


def test_an_empty_tree_has_nothing_standing(tmp_path: Path) -> None:
    assert set(derive(tmp_path).values()) == {Standing()}


@pytest.mark.parametrize(
    ("part", "files"),
    [
        (
            "implementation",
            {"src/saccade/restoration/sesr.py": '@register(\n    "m5",\n    system="sesr", task="")\ndef f(): ...\n'},
        ),
        ("implementation", {"src/saccade/ops/scale.py": 'SYSTEM = "sesr"\n'}),
        ("parity", {"tests/parity/adapters/sesr.py": ""}),
        ("claim", {"src/saccade/reproduce/sesr.py": "", "docs/results/sesr.json": '{"system": "sesr", "met": true}'}),
        ("speed", {"benchmarks/results/upscale.json": '{"rows": [{"system": "espcn"}, {"system": "sesr"}]}'}),
        ("docs", {"docs/systems/sesr.md": "# SESR\n"}),
        ("docs", {"docs/guide/upscale.md": "# Upscale\n\n## The default: SESR {#sesr}\n"}),
    ],
)
def test_each_part_stands_once_its_thing_exists(tmp_path: Path, part: str, files: dict[str, str]) -> None:
    for name, text in files.items():
        put(tmp_path / name, text)
    assert derive(tmp_path)["sesr"] == Standing(**{part: True})
    assert derive(tmp_path)["pcsr"] == Standing()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("src/saccade/registry.py", '"""Write\n@register("sesr_m5", system="sesr")\nabove it."""\n'),
        ("src/saccade/notes.py", '# SYSTEM = "sesr"\nif False:\n    SYSTEM = "sesr"\n'),
        ("src/saccade/reproduce/sesr.py", 'CLAIM = Claim(system="sesr")\n'),
        ("docs/results/sesr.json", '{"system": "sesr"}'),
        ("docs/guide/upscale.md", "SESR {#sesr} is the default; see [it](#sesr).\n"),
        ("benchmarks/results/upscale.json", '[{"system": "sesr"'),
    ],
)
def test_what_only_talks_of_a_system_does_not_count(tmp_path: Path, name: str, text: str) -> None:
    put(tmp_path / name, text)
    assert derive(tmp_path)["sesr"] == Standing()


def test_a_result_of_another_system_is_no_claim(tmp_path: Path) -> None:
    put(tmp_path / "src/saccade/reproduce/sesr.py", "")
    put(tmp_path / "docs/results/sesr.json", '{"system": "espcn", "met": true}')
    assert not derive(tmp_path)["sesr"].claim


def test_the_snapshot_reads_back_as_written(tmp_path: Path) -> None:
    put(tmp_path / "docs/systems/van.md", "# VAN\n")
    index.write_snapshot(tmp_path, tmp_path / "standing.json")
    assert index.read_snapshot(tmp_path / "standing.json") == derive(tmp_path)
    assert len((tmp_path / "standing.json").read_text(encoding="utf-8").splitlines()) == 83
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["standing.json"]


@in_checkout
def test_the_shipped_snapshot_equals_the_tree() -> None:
    assert index.read_snapshot(index.SNAPSHOT) == derive(ROOT), "run: python -m saccade.systems"


@in_checkout
def test_every_mark_names_a_known_system_in_its_own_package() -> None:
    package = ROOT / "src" / "saccade"
    for slug, files in implementations(package).items():
        assert slug in {s.slug for s in all_systems()}, f"{files[0]} names an unknown system"
        homes = {path.relative_to(package).parts[0].removesuffix(".py") for path in files}
        assert system(slug).package.removeprefix("saccade.") in homes, slug


def test_an_installed_package_reads_the_snapshot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    put(tmp_path / "tree/tests/parity/adapters/sesr.py", "")
    index.write_snapshot(tmp_path / "tree", tmp_path / "standing.json")
    monkeypatch.setattr(index, "HERE", tmp_path / "site-packages" / "saccade")
    monkeypatch.setattr(index, "SNAPSHOT", tmp_path / "standing.json")
    assert index.find_checkout() is None
    assert standing("sesr") == Standing(parity=True)
    assert standing("espcn") == Standing()


def test_the_table_has_exactly_the_ten_keys() -> None:
    rows = table()
    assert len(rows) == 81
    for row in rows:
        assert list(row) == KEYS
        assert all(type(row[f.name]) is bool for f in fields(Standing))
    sesr = next(row for row in rows if row["slug"] == "sesr")
    assert asdict(standing("sesr")).items() <= sesr.items()


def test_the_verb_prints_the_table_as_json() -> None:
    assert run() == table()
    assert [row["slug"] for row in run("e*", "--task", "super-resolution")] == ["espcn"]


def test_the_verb_prints_plain_lines_when_piped() -> None:
    app = typer.Typer()
    app.command()(verb)
    result = CliRunner().invoke(app, ["pcsr"])
    slug, name, package, _, dial = result.stdout.rstrip("\n").split("\t")
    assert (slug, name, package) == ("pcsr", "PCSR", "saccade.restoration")
    assert dial == system("pcsr").dial


def test_listing_imports_neither_torch_nor_numpy() -> None:
    code = "import sys, saccade.systems as s; s.table(); print({'torch', 'numpy', 'rich'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
