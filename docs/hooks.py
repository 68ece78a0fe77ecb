"""What the documentation shows of the code itself, made at build time so that no page can say otherwise.

Pages: the table of systems, the gallery of claims (``docs/results/*.json``), the benchmarks
(``benchmarks/results/*.json``), the shipped weights and the API reference. In hand-written pages a line
``<!-- saccade: models sesr -->`` is replaced by a table: ``models``, ``weights``, ``claim`` or ``speed`` of a system,
or ``backbones all``.
Whatever has not been measured yet is said to be so.
"""

from __future__ import annotations

import ast
import functools
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from saccade import registry, systems
from saccade.errors import SaccadeError

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "saccade"
RESULTS = ROOT / "docs" / "results"
SPEED = ROOT / "benchmarks" / "results"
PARTS = {"implementation": "code", "parity": "parity", "claim": "claim", "speed": "speed", "docs": "page"}
PICTURES = (".svg", ".png", ".webp", ".jpg")
log = logging.getLogger("mkdocs.hooks.saccade")
_MARK = re.compile(r"^<!-- saccade: (\w+) (\w+) -->$", re.MULTILINE)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Give the pages of the API reference their place in the navigation."""
    pages = [{Path(place).stem: place} for place in reference_pages() if place != "reference/index.md"]
    config.nav = [*(config.nav or []), {"API": [{"Overview": "reference/index.md"}, *pages]}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    pages = {
        "systems/index.md": systems_page(),
        "gallery.md": gallery_page(),
        "benchmarks.md": benchmarks_page(),
        "guide/weights.md": weights_page(),
        **reference_pages(),
    }
    for place, text in pages.items():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace the marks of a hand-written page by tables."""
    tables: dict[str, Callable[[str], str]] = {
        "models": models_table,
        "weights": weights_table,
        "claim": claim_section,
        "speed": speed_table,
        "backbones": backbones_table,
    }
    up = "../" * page.file.src_uri.count("/")

    def replaced(found: re.Match[str]) -> str:
        kind, slug = found.groups()
        if kind not in tables:
            log.warning("%s: no table named %r", page.file.src_uri, kind)
            return ""
        return tables[kind](slug).replace("](results/", f"]({up}results/")

    return _MARK.sub(replaced, markdown)


# --- systems ---------------------------------------------------------------------------------------------------------


def systems_page() -> str:
    """All 81 systems, by task, with what stands of each."""
    standing = systems.derive(ROOT)
    counts = {part: sum(getattr(s, part) for s in standing.values()) for part in PARTS}
    lines = [
        "# All systems",
        "",
        f"The {len(standing)} methods that saccade is to hold, and what stands of each. The marks are derived from the",
        "source tree at build time; `saccade systems` prints the same table. "
        + ", ".join(f"{PARTS[part]}: {count}" for part, count in counts.items())
        + ".",
        "",
    ]
    by_task: dict[str, list[systems.System]] = {}
    for system in systems.all_systems():
        by_task.setdefault(system.task, []).append(system)
    for task in sorted(by_task):
        head = ("system", "what it does", "paper", "dial", *PARTS.values())
        rows = []
        for s in by_task[task]:
            state = standing[s.slug]
            has_page = (ROOT / "docs" / "systems" / f"{s.slug}.md").is_file()
            name = f"[{s.name}]({s.slug}.md)" if has_page else s.name
            marks = ("yes" if getattr(state, part) else "" for part in PARTS)
            rows.append((name, s.job, f"arXiv {s.arxiv}", s.dial or "", *marks))
        lines += [f"## {task[0].upper()}{task[1:]}", "", table(head, rows), ""]
    return "\n".join(lines)


def models_table(slug: str) -> str:
    """The registered models of a system with parameters and MACs, counted now on shapes alone."""
    rows, names = [], registry.list_models(system=slug)
    for name in names:
        for scale in registry.entry(name).scales or (None,):
            told = _count(name, scale)
            if told is not None:
                shape, parameters, macs = told
                rows.append(
                    (f"`{name}`", f"x{scale}" if scale else "", shape, f"{parameters:,}", f"{macs / 1e9:.3f} G")
                )
    if not rows:
        return missing("models", slug)
    if all(not row[1] for row in rows):
        note = "One picture; `saccade cost NAME --size HxW --meta` prints these."
    else:
        note = (
            "MACs to make 1280 x 720 pixels, at every enlargement (rows and columns rounded up); "
            "`saccade cost NAME --scale S --size HxW --meta` prints these."
        )
    return table(("model", "enlarges", "input", "parameters", "MACs"), rows) + f"\n\n{note}"


@functools.cache
def _count(name: str, scale: int | None) -> tuple[str, int, int] | None:
    """Input as CxHxW, parameters and MACs; None where the model needs options that have no default."""
    import torch

    from saccade.cost import cost

    try:
        model: Any = registry.shaped(name, **({"scale": scale} if scale else {}))
    except (TypeError, ValueError):
        return None
    if scale:
        channels, height, width = model.in_channels, -(-720 // scale), -(-1280 // scale)
    else:
        channels = int(getattr(model, "in_channels", 3))
        side = registry.entry(name).facts.get("size", 224)
        height = int(getattr(getattr(model, "architecture", None), "train_size", side))
        width = height
    try:
        counted = cost(model, torch.empty(1, channels, height, width, device="meta"))
    except SaccadeError:  # it has to see values, or statistics that are not there yet, or is built for another size
        return None
    return f"{channels}x{height}x{width}", counted.parameters, counted.macs


# --- weights ---------------------------------------------------------------------------------------------------------


@functools.cache
def _weights() -> dict[str, dict[str, Any]]:
    listed = read(registry.WEIGHTS / "weights.json")
    return listed if isinstance(listed, dict) else {}


def weights_page() -> str:
    """The model card that ships with the weights."""
    card = registry.WEIGHTS / "MODEL_CARD.md"
    if card.is_file():
        return card.read_text(encoding="utf-8")
    files = "\n".join(f"- `{p.name}`" for p in sorted(registry.WEIGHTS.glob("*.safetensors")))
    return f"# Weights that ship with saccade\n\nNo model card has been written yet. The files:\n\n{files or 'none'}\n"


def weights_table(slug: str) -> str:
    """The shipped weights of a system with their measured quality."""
    names = set(registry.list_models(system=slug))
    found = {file: facts for file, facts in sorted(_weights().items()) if facts.get("model") in names}
    if not found:
        return missing("shipped weights with figures", slug)
    if any("scale" in facts for facts in found.values()):
        rows = []
        for file, facts in found.items():
            measured = facts.get("figures", {})
            psnr = (number(measured.get(s, {}).get("psnr_y"), 2) for s in ("set5", "set14", "b100"))
            rows.append((f"`{file}`", f"x{facts.get('scale', '')}", *psnr, _minutes(facts)))
        shown = table(("file", "enlarges", "Set5, dB", "Set14, dB", "B100, dB", "training"), rows)
        what = "PSNR on luma, protocol of the field; `saccade evaluate MODEL --data FOLDER` prints it for any weights."
    else:
        rows = [
            (f"`{file}`", folder, name.replace("_", " "), number(value, 4 if value < 2 else 2), _minutes(facts))
            for file, facts in found.items()
            for folder, figures in facts.get("figures", {}).items()
            for name, value in figures.items()
        ]
        shown = table(("file", "pictures", "figure", "value", "training"), rows)
        what = "PSNR in dB; `saccade evaluate MODEL --data FOLDER` prints these figures."
    return f"{shown}\n\n{what} How they were trained: [Shipped weights](../guide/weights.md)."


def _minutes(facts: dict[str, Any]) -> str:
    return f"{facts.get('training_seconds', 0) / 60:.0f} min"


# --- claims ----------------------------------------------------------------------------------------------------------


def gallery_page() -> str:
    """Every claim that was re-run, with its figures."""
    found = sorted(RESULTS.glob("*.json"))
    lines = [
        "# Gallery of claims",
        "",
        "Each system comes with the claim of its paper as a program: small real data, a baseline, figures, and whether",
        "the claim was met. `saccade reproduce SYSTEM` runs one, `saccade reproduce --all` all of them; `--seeds 3`",
        "runs it with three seeds, and it is met where all three meet it. A run writes its result as JSON, and this",
        "page is made from those files.",
        "",
    ]
    results = [(path, result) for path in found for result in _results(path)]
    if not results:
        return "\n".join([*lines, "No result has been recorded yet.", ""])
    rows = []
    for path, result in results:
        slug = str(result.get("system", path.stem))
        met = "met" if result.get("met") is True else "not met"
        rows.append((f"[{_name(slug)}](#{slug})", str(result.get("claim", "")), met, seconds(result.get("seconds"))))
    lines += [table(("system", "claim", "result", "took"), rows), ""]
    for path, result in results:
        slug = str(result.get("system", path.stem))
        # an id in HTML: a Markdown anchor would count as the page of the system
        lines += [f'<h2 id="{slug}">{_name(slug)}</h2>', "", _claim(path, result), ""]
    return "\n".join(lines)


def claim_section(slug: str) -> str:
    """The recorded claim of one system."""
    path = RESULTS / f"{slug}.json"
    parts = [_claim(path, result) for result in _results(path)]
    return "\n\n".join(parts) or missing("recorded claims", slug, f"saccade reproduce {slug}")


def _results(path: Path) -> list[dict[str, Any]]:
    content = read(path)
    listed = content if isinstance(content, list) else [content]
    return [r for r in listed if isinstance(r, dict) and r]


def _claim(path: Path, result: dict[str, Any]) -> str:
    slug = str(result.get("system", path.stem))
    met = "**met**" if result.get("met") is True else "**not met**"
    lines = [f"> {result.get('claim', '')}", ""]
    if result.get("source"):
        lines.append(f"Source: {result['source']}. ")
    if result.get("baseline"):
        lines.append(f"Baseline: {result['baseline']}. ")
    others = result.get("other_seeds") or []
    runs = [(result.get("seed"), result.get("met_with_seed")), *((o["seed"], o["met"]) for o in others)]
    again = ", ".join(f"seed {seed} {'met' if well else 'not met'}" for seed, well in runs)
    lines += [
        f"Result: {met}{f' ({again})' if others else ''}.",
        "",
        figures_table(result.get("figures", {}), others),
        "",
    ]
    for picture in sorted(p for p in RESULTS.glob(f"{slug}*") if p.suffix in PICTURES):
        lines += [f"![{_name(slug)}: {picture.stem.replace('_', ' ')}](results/{picture.name})", ""]
    facts = [f"`saccade reproduce {slug}`"]
    facts += [seconds(result["seconds"])] if "seconds" in result else []
    facts += [f"seed {result['seed']}"] if "seed" in result else []
    facts += [words(result[key]) for key in ("machine", "versions") if result.get(key)]
    lines.append(f"{', '.join(facts)}. [Result as JSON](results/{path.name})")
    return "\n".join(lines)


def figures_table(figures: Any, others: list[dict[str, Any]] | None = None) -> str:
    """Figures of any nesting as rows of name and value, and what runs with other seeds found, where there are any."""
    again = [(f"seed {other['seed']}", dict(flat(other["figures"]))) for other in others or []]
    rows = [
        (name, number(value), *(number(found[name]) if name in found else "" for _, found in again))
        for name, value in flat(figures)
    ]
    head = ("figure", "value", *(seed for seed, _ in again))
    return table(head, rows) if rows else "No figures were recorded."


def flat(value: Any, name: str = "") -> Iterable[tuple[str, Any]]:
    """Leaves of nested dicts and lists with their path as name; a {value, unit} pair is one leaf."""
    if isinstance(value, dict):
        if "value" in value and not isinstance(value["value"], dict | list):
            unit = f" {value['unit']}" if value.get("unit") else ""
            yield str(value.get("name", name)), f"{number(value['value'])}{unit}"
            return
        for key, inner in value.items():
            yield from flat(inner, f"{name}, {key}" if name else str(key))
    elif isinstance(value, list) and any(isinstance(inner, dict | list) for inner in value):
        for i, inner in enumerate(value, 1):
            yield from flat(inner, f"{name} {i}".strip())
    elif isinstance(value, list):
        yield name, ", ".join(number(inner) for inner in value)
    else:
        yield name, value


# --- speed -----------------------------------------------------------------------------------------------------------


def benchmarks_page() -> str:
    """Speed beside the alternatives."""
    lines = [
        "# Benchmarks",
        "",
        "Every row was measured in one run on one machine: ours and the alternative in turns (A B A B), after warm-up,",
        "as medians, at the stated number of threads. The ratio is the alternative's time over ours: 2 means that ours",
        "takes half the time. `saccade bench upscale` measures again on yours.",
        "",
    ]
    suites = _suites()
    if not any(_rows(path) for files in suites.values() for path in files):
        return "\n".join([*lines, "Nothing has been recorded yet.", ""])
    for name, files in suites.items():
        rows = [row for path in files for row in _rows(path)]
        if rows:
            lines += [f"## {name.replace('_', ' ').capitalize()}", "", speed_rows(rows), ""]
            for path in files:
                lines += [*_facts(path), ""]
    return "\n".join(lines)


_THREADS = re.compile(r"(.+)_(\d+)threads")


def _suites() -> dict[str, list[Path]]:
    """Files of results by what was run: ``backbones.json``, and ``backbones_4threads.json`` of the same on more."""
    found: dict[str, list[Path]] = {}
    for path in sorted(SPEED.glob("*.json")):
        more = _THREADS.fullmatch(path.stem)
        found.setdefault(more[1] if more else path.stem, []).append(path)
    return found


def _facts(path: Path) -> list[str]:
    """Under what conditions a file of results was made, and what it says beside its rows."""
    content = read(path)
    if not isinstance(content, dict):
        return []
    facts = [words(content[key]) for key in ("machine", "versions", "seconds", "date") if content.get(key)]
    notes = content.get("notes")
    more = _THREADS.fullmatch(path.stem)
    told = [f"{more[2]} threads", *facts] if more else facts
    listed = [f"- {note}" for note in notes if isinstance(note, str)] if isinstance(notes, list) else []
    return [". ".join(told) + "." if facts else "", *([""] if listed else []), *listed]


def speed_table(slug: str) -> str:
    """The recorded speed rows of one system."""
    found = [path for files in _suites().values() for path in files]
    rows = [row for path in found for row in _rows(path) if row.get("system") == slug]
    return speed_rows(rows) if rows else missing("speed rows", slug)


def _rows(path: Path) -> list[dict[str, Any]]:
    content = read(path)
    rows = content.get("rows", []) if isinstance(content, dict) else content
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def speed_rows(rows: Sequence[dict[str, Any]]) -> str:
    """Rows with any of the usual keys as a table; keys that no row has make no column, the commands stand below.

    Where a job was measured at several numbers of threads, it is one line, and each number has its columns.
    """
    titles = {
        "what": "what",
        "size": "size",
        "ours_ms": "ours, ms",
        "peer": "alternative",
        "peer_ms": "alternative, ms",
        "ratio": "ratio",
        "threads": "threads",
    }
    used = {key: title for key, title in titles.items() if any(row.get(key) is not None for row in rows)}
    jobs: dict[tuple[Any, ...], dict[Any, dict[str, Any]]] = {}
    seen: Counter[tuple[Any, ...]] = Counter()  # rows that differ in what is not shown stay rows of their own
    for row in rows:
        job = tuple(str(row.get(key)) for key in ("system", "what", "size", "peer"))
        threads = row.get("threads")
        jobs.setdefault((*job, seen[(*job, threads)]), {})[threads] = row
        seen[(*job, threads)] += 1
    if any(len(at) > 1 for at in jobs.values()):
        made = _side_by_side(used, list(jobs.values()))
    else:
        made = table(tuple(used.values()), [tuple(number(row.get(key)) for key in used) for row in rows])
    commands = sorted({str(row["command"]) for row in rows if row.get("command")})
    return made + ("\n\n" + ", ".join(f"`{c}`" for c in commands) + " printed this." if commands else "")


def _side_by_side(titles: dict[str, str], jobs: Sequence[dict[Any, dict[str, Any]]]) -> str:
    """A line a job; times and ratios have a column for each number of threads."""
    told = [key for key in ("what", "size", "peer") if key in titles]
    measured = [key for key in ("ours_ms", "peer_ms", "ratio") if key in titles]
    counts = sorted({count for at in jobs for count in at if isinstance(count, int)})
    head = [titles[key] for key in told] + [f"{titles[key]}, {n} threads" for n in counts for key in measured]
    cells = []
    for at in jobs:
        some = next(iter(at.values()))
        cells.append(
            [number(some.get(k)) for k in told] + [number(at.get(n, {}).get(k)) for n in counts for k in measured]
        )
    return table(head, cells)


def backbones_table(_: str) -> str:
    """One row a backbone: its cost on shapes, its time and memory in the recorded sweep, its claim."""
    sweep = read(SPEED / "sweep.json") or {}
    courses = {course["system"]: course for course in sweep.get("courses", [])}
    slugs = dict.fromkeys(registry.entry(n).system for n in registry.list_models(task="classification"))
    rows = []
    for slug in sorted(s for s in slugs if s):
        course = courses.get(slug, {})
        named = [n for n in registry.variants(slug) if _count(n, None)]
        name = course.get("model") or (named or registry.variants(slug))[0]
        _, parameters, macs = _count(name, None) or ("", 0, 0)
        results = _results(RESULTS / f"{slug}.json")
        claim = "" if not results else "met" if results[0].get("met") is True else "not met"
        link = f"[{_name(slug)}](../systems/{slug}.md)" if (ROOT / f"docs/systems/{slug}.md").is_file() else _name(slug)
        rows.append((link, f"`{name}`", f"{parameters / 1e6:.2f} M", f"{macs / 1e9:.2f} G", *_points(course), claim))
    head = ("system", "model", "parameters", "MACs", "224 px", "896 px", "memory, 896 px", "exponents", "claim")
    shown = table(head, rows)
    facts = [f"`{sweep['command']}`", words(sweep["machine"])] if sweep else ["`saccade bench sweep` measures the rest"]
    return f"{shown}\n\nMACs at 224 px or the model's own size. {', '.join(facts)}."


def _points(course: dict[str, Any]) -> tuple[str, str, str, str]:
    """Time at two sizes, memory at the larger, exponents in pixels; nothing where nothing was measured."""
    at = {side: i for i, side in enumerate(course.get("sides", ()))}
    times = [f"{course['seconds'][at[side]] * 1e3:.1f} ms" if side in at else "" for side in (224, 896)]
    memory = f"{course['bytes'][at[896]] / 2**20:.0f} MiB" if 896 in at else ""
    grows = [f"{course[k]:.2f}" for k in ("time_exponent", "memory_exponent") if course.get(k) is not None]
    return times[0], times[1], memory, ", ".join(grows)


# --- reference -------------------------------------------------------------------------------------------------------


def reference_pages() -> dict[str, str]:
    """One page a room of the house, one section a module that says what it offers (``__all__``)."""
    rooms: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if not parts or parts[0] in ("cli", "reproduce") or any(p.startswith("_") for p in parts) or not _offers(path):
            continue
        room = "core" if len(parts) == 1 and path.stem != "__init__" else parts[0]
        rooms.setdefault(room, []).append(".".join(("saccade", *parts)))
    order = ["core", *sorted(r for r in rooms if r != "core")]
    listed = "\n".join(f"- [{r}]({r}.md): " + ", ".join(f"`{m}`" for m in rooms[r]) for r in order if r in rooms)
    pages = {"reference/index.md": f"# API\n\n{_FACE}\n\n{listed}\n"}
    for room, modules in rooms.items():
        sections = "\n\n".join(f"::: {module}" for module in modules)
        pages[f"reference/{room}.md"] = f"# {room}\n\n{sections}\n"
    return pages


_FACE = """Made from the docstrings. What most programs need stands at the top of the package:

| name | what it does |
|---|---|
| `saccade.fuse(model)`, `saccade.accelerate(model, shape)` | the same function with fewer layers; ready for inference |
| `saccade.upscale(image, scale)` | enlarge a picture: file, PIL image, array or tensor |
| `saccade.create(name, **options)` | a model by its name |
| `saccade.load(path)`, `saccade.save(model, path)` | a model from its file of weights, and back |
| `saccade.list_models(pattern)` | names of models |
| `saccade.cost(model, *inputs)` | parameters, MACs, activations, peak bytes, latency |
| `saccade.pareto(model, data, metric)` | quality against cost along a model's budget dial |
| `saccade.all_systems()` | the 81 systems |
| `saccade.errors` | everything that is raised on purpose |"""


def _offers(path: Path) -> bool:
    """Whether a module has a non-empty ``__all__``."""
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and "__all__" in map(ast.unparse, statement.targets):
            return isinstance(statement.value, ast.List | ast.Tuple) and bool(statement.value.elts)
    return False


# --- words -----------------------------------------------------------------------------------------------------------


def read(path: Path) -> Any:
    """The content of a JSON file; None where there is none that can be read, with a warning if one is damaged."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        log.warning("%s is not JSON: %s", path, error)
        return None


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    cells = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in row) + " |" for row in cells)


def missing(what: str, slug: str, command: str = "") -> str:
    """What stands in place of a table that cannot be made yet."""
    hint = f" `{command}` makes one." if command else ""
    return f"*No {what} of {_name(slug)} yet.*{hint}"


def number(value: Any, digits: int | None = None) -> str:
    """A value as a reader wants it: four digits, thousands apart, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if digits is not None:
            return f"{value:.{digits}f}"
        return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    return str(value)


def seconds(value: Any) -> str:
    """``83.1`` -> ``83 s``."""
    return f"{value:,.0f} s" if isinstance(value, int | float) else ""


def words(value: Any) -> str:
    """A string, or a dict as "name value" pairs."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {number(inner)}" for name, inner in value.items())
    return number(value)


def _name(slug: str) -> str:
    return next((s.name for s in systems.all_systems(slug)), slug)
