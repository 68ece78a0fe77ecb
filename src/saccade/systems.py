"""The index of the 81 systems, and what stands of each - derived from what exists, never typed.

What a system *is* (name, paper, task, dial) is data: ``systems.toml``. What *stands* of it is read from the tree each
time, by looking for the thing itself:

    implementation   a maker marked ``@register(..., system="<slug>")``, or ``SYSTEM = "<slug>"`` in a module
    parity           tests/parity/adapters/<slug>.py, which runs the published vectors
    claim            src/saccade/reproduce/<slug>.py and the result it wrote, docs/results/<slug>.json
    speed            a row with ``"system": "<slug>"`` in benchmarks/results/*.json
    docs             docs/systems/<slug>.md, or a heading with the anchor ``{#<slug>}`` in another page

An installed package has no tests, benchmarks or pages beside it, so it reads the state of the source tree that it was
made from out of ``standing.json``; a test holds that file equal to the tree, and ``python -m saccade.systems`` in a
checkout writes it anew. Nothing here imports torch, nor any module that it reports on.
"""

from __future__ import annotations

import ast
import difflib
import fnmatch
import functools
import json
import os
import re
import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from saccade.errors import UsageError

__all__ = [
    "Standing",
    "System",
    "all_systems",
    "derive",
    "find_checkout",
    "implementations",
    "standing",
    "system",
    "table",
]

HERE = Path(__file__).resolve().parent
INDEX = HERE / "systems.toml"
SNAPSHOT = HERE / "standing.json"
_MARK = re.compile(r"^(@register\(|SYSTEM\b)", re.MULTILINE)
_ANCHOR = re.compile(r"^#{1,6}\s.*\{[^}\n]*#([\w-]+)[^}\n]*\}\s*$", re.MULTILINE)


@dataclass(frozen=True)
class System:
    """One published method: facts about it, not about our code.

    Attributes:
        slug: its name in files and on the command line, e.g. ``rd_prune``.
        name: its name in print, e.g. ``RD-Prune``.
        title: the title of the paper.
        year: of publication, or of the preprint where there is none.
        arxiv: arXiv identifier without a version.
        task: the field's term, e.g. ``super-resolution``.
        package: where it lives, e.g. ``saccade.restoration``.
        dial: what its budget turns, in words; None where nothing can be turned.
        job: what it does, in one line.
    """

    slug: str
    name: str
    title: str
    year: int
    arxiv: str
    task: str
    package: str
    job: str
    dial: str | None = None


@dataclass(frozen=True)
class Standing:
    """Which parts of a finished system exist; see the module's docstring for what counts as each."""

    implementation: bool = False
    parity: bool = False
    claim: bool = False
    speed: bool = False
    docs: bool = False


@functools.cache
def _index() -> dict[str, System]:
    with INDEX.open("rb") as file:
        return {slug: System(slug=slug, **facts) for slug, facts in tomllib.load(file).items()}


def all_systems(pattern: str = "*", *, task: str | None = None) -> list[System]:
    """The systems in the order of their slugs.

    Args:
        pattern: shell pattern on the slug, such as ``*vit*``.
        task: keep only this task, e.g. ``super-resolution``.

    Raises:
        UsageError: no system has this task; the message names the nearest ones.
    """
    index = _index()
    tasks = sorted({s.task for s in index.values()})
    if task is not None and task not in tasks:
        near = difflib.get_close_matches(task, tasks, n=3, cutoff=0.4)
        raise UsageError(
            f"no system has the task {task!r}; the {'nearest' if near else 'tasks'} are {', '.join(near or tasks)}"
        )
    return [index[s] for s in sorted(index) if fnmatch.fnmatchcase(s, pattern) and task in (None, index[s].task)]


def system(slug: str) -> System:
    """The system with this slug.

    Raises:
        UsageError: no such system; the message names the nearest ones.
    """
    index = _index()
    if slug in index:
        return index[slug]
    wanted = re.sub(r"[^a-z0-9]+", "_", slug.lower())
    near = difflib.get_close_matches(wanted, index, n=3, cutoff=0.5) or [s for s in index if wanted and wanted in s][:3]
    hint = f"the nearest are {', '.join(near)}" if near else "none is near"
    raise UsageError(f"no system named {slug!r}; {hint} (saccade systems shows all)")


def find_checkout() -> Path | None:
    """The root of the source tree that this package runs from, or None when it runs installed."""
    root = HERE.parent.parent
    return root if (root / "src" / "saccade") == HERE and (root / "pyproject.toml").is_file() else None


def standing(slug: str) -> Standing:
    """What stands of a system, now.

    Raises:
        UsageError: no such system.
    """
    return _standings().get(system(slug).slug, Standing())


def table(pattern: str = "*", *, task: str | None = None) -> list[dict[str, Any]]:
    """The systems and what stands of them, one dict each, ready for JSON.

    Keys: slug, name, title, package, dial (words or None), then implementation, parity, claim, speed, docs (bool).

    Raises:
        UsageError: no system has this task.
    """
    state = _standings()
    return [
        {"slug": s.slug, "name": s.name, "title": s.title, "package": s.package, "dial": s.dial}
        | asdict(state.get(s.slug, Standing()))
        for s in all_systems(pattern, task=task)
    ]


def derive(root: Path) -> dict[str, Standing]:
    """What stands of every system in the source tree at ``root``."""
    implemented = set(implementations(root / "src" / "saccade"))
    benchmarked = {slug for path in (root / "benchmarks" / "results").glob("*.json") for slug in _named_systems(path)}
    pages = sorted((root / "docs").rglob("*.md"))
    explained = {anchor for page in pages for anchor in _ANCHOR.findall(page.read_text(encoding="utf-8"))}

    def one(slug: str) -> Standing:
        return Standing(
            implementation=slug in implemented,
            parity=(root / "tests" / "parity" / "adapters" / f"{slug}.py").is_file(),
            claim=(root / "src" / "saccade" / "reproduce" / f"{slug}.py").is_file()
            and slug in _named_systems(root / "docs" / "results" / f"{slug}.json"),
            speed=slug in benchmarked,
            docs=slug in explained or (root / "docs" / "systems" / f"{slug}.md").is_file(),
        )

    return {slug: one(slug) for slug in sorted(_index())}


def implementations(package: Path) -> dict[str, list[Path]]:
    """Slugs that the modules under ``package`` say they implement, each with the files that say so.

    Only the source text is read: top-level decorators ``@register(..., system="...")`` and constants ``SYSTEM``.
    """
    found: dict[str, list[Path]] = {}
    for path in sorted(package.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if not _MARK.search(text):
            continue
        for slug in filter(None, _marked(ast.parse(text, filename=str(path)))):  # "": a network of our own
            files = found.setdefault(slug, [])
            if path not in files:
                files.append(path)
    return found


def _marked(module: ast.Module) -> Iterator[str]:
    """The slugs in top-level ``@register(..., system=...)`` and ``SYSTEM = ...``, in the order of the text."""
    values: list[ast.expr] = []
    for statement in module.body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            marks = [
                d for d in statement.decorator_list if isinstance(d, ast.Call) and ast.unparse(d.func) == "register"
            ]
            values += [k.value for mark in marks for k in mark.keywords if k.arg == "system"]
        elif isinstance(statement, ast.Assign) and "SYSTEM" in map(ast.unparse, statement.targets):
            values.append(statement.value)
    return (v.value for v in values if isinstance(v, ast.Constant) and isinstance(v.value, str))


def _named_systems(path: Path) -> set[str]:
    """Every value of a key ``system`` in a JSON file, at any depth; empty where there is no readable file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return set()
    named: set[str] = set()
    rest = [content]
    while rest:
        value = rest.pop()
        if isinstance(value, dict):
            if isinstance(value.get("system"), str):
                named.add(value["system"])
            rest.extend(value.values())
        elif isinstance(value, list):
            rest.extend(value)
    return named


def _standings() -> dict[str, Standing]:
    root = find_checkout()
    return derive(root) if root else read_snapshot(SNAPSHOT)


def read_snapshot(path: Path) -> dict[str, Standing]:
    """The standings that ``write_snapshot`` wrote."""
    return {slug: Standing(**parts) for slug, parts in json.loads(path.read_text(encoding="utf-8")).items()}


def write_snapshot(root: Path, path: Path = SNAPSHOT) -> None:
    """Write what stands in the source tree at ``root`` for the installed package: one line a system, easy to merge."""
    rows = [f"  {json.dumps(slug)}: {json.dumps(asdict(state))}" for slug, state in derive(root).items()]
    temporary = path.with_name(path.name + ".part")
    temporary.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")
    os.replace(temporary, path)


def _main() -> None:
    root = find_checkout()
    if root is None:
        raise SystemExit("saccade: standing.json is made from a source tree, and this package runs installed")
    write_snapshot(root)
    counts = {f.name: sum(getattr(s, f.name) for s in derive(root).values()) for f in fields(Standing)}
    print(f"{SNAPSHOT}: " + ", ".join(f"{part} {count}" for part, count in counts.items()))


if __name__ == "__main__":
    _main()
