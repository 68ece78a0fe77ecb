"""The project around the code: the documents promise what exists; the command line starts fast, fails in one line."""

from __future__ import annotations

import importlib.util
import os
import re
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import saccade
from saccade.cli import VERBS, main
from saccade.cli import verbs as app

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
HELP = "from saccade.cli import main\nmain(['--help'])"
HEAVY = ("torch", "torchvision", "timm", "numpy", "openvino", "onnxruntime", "onnx", "pyvips", "PIL", "matplotlib")


def python(code: str, *, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, env={**os.environ, **environment}
    )


def saccade_says(*arguments: str, cwd: Path | None = None, before: str = "") -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own; ``before`` is run first in it."""
    return python(f"{before}\nfrom saccade.cli import main\nmain({list(arguments)!r})", cwd=cwd)


def cpu_seconds(code: str) -> float:
    """User and system time of a child, which other work on the machine lengthens little; the median of five."""
    runs = []
    for _ in range(5):
        before = os.times()
        assert python(code).returncode == 0
        after = os.times()
        runs.append(after.children_user - before.children_user + after.children_system - before.children_system)
    return statistics.median(runs)


# --- documents -------------------------------------------------------------------------------------------------------


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every ``saccade VERB ...`` in console blocks and in backticks."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    shown = re.findall(r"^\$ saccade ([^\n#]*)", text, re.MULTILINE)
    for line in [*shown, *re.findall(r"`saccade ([^`]*)`", text)]:
        yield line.split()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_make_target_that_a_page_names_exists(page: Path) -> None:
    named = re.findall(r"(?:^\$ |`)make ([a-z][a-z-]*)", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(named) <= targets()


def test_the_readme_shows_how_to_start() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert {"demo", "test"} <= set(re.findall(r"^\$ make ([a-z-]+)", text, re.MULTILINE)) & targets()
    line = re.search(r"^\$ pip (install .*)$", text, re.MULTILINE)
    assert line is not None
    assert line[1] in (ROOT / "Makefile").read_text(encoding="utf-8"), "make demo installs by the README's own line"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_command_that_a_page_shows_has_these_verbs_and_options(page: Path) -> None:
    for words in commands(page):
        given = {w for w in words if w.startswith("-")}
        verbs = [w for w in words if re.fullmatch(r"[a-z]+", w)]
        if words[0].isupper() or not verbs:  # saccade VERB --help; saccade --help
            continue
        assert verbs[0] in VERBS, f"saccade {' '.join(words)}"
        assert importlib.util.find_spec(module_of(verbs[0])), f"saccade {verbs[0]} is shown and does not exist"
        command = command_of(verbs[0])
        if hasattr(command, "commands") and len(verbs) > 1:
            command = command.commands[verbs[1]]
        options = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
        assert given <= options | {"--help", "--debug", "--version"}, f"saccade {' '.join(words)}"


def test_the_version_is_the_same_everywhere() -> None:
    version = PROJECT["project"]["version"]
    assert saccade.__version__ == version
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def names(requirements: list[str]) -> set[str]:
    found = (re.match(r"[A-Za-z0-9._-]+", r) for r in requirements)
    return {re.sub(r"[-_.]+", "-", m[0]).lower() for m in found if m}


def test_constraints_pin_every_direct_dependency_to_one_version() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][A-Za-z0-9.]*", line) for line in pinned)
    assert len(names(pinned)) == len(pinned)
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = names(PROJECT["project"]["dependencies"]).union(*(names(needs) for needs in extras.values()))
    assert wanted - {"saccade"} <= names(pinned)


def test_the_install_line_brings_openvino() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    assert "openvino" in names(extras["onnx"])
    assert "'.[onnx,video]'" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_no_hook_before_commits_comes_from_elsewhere() -> None:
    text = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    assert re.findall(r"repo: (\S+)", text) == ["local"]


def test_the_demo_photograph_ships_with_its_licence_and_half_a_megapixel() -> None:
    from PIL import Image

    folder = ROOT / "src" / "saccade" / "demo"
    assert "CC0-1.0" in (folder / "NOTICE.md").read_text(encoding="utf-8")
    with Image.open(folder / "osprey.jpg") as photo:
        assert 0.4e6 < photo.width * photo.height < 0.6e6


# --- starting --------------------------------------------------------------------------------------------------------


def test_importing_the_package_is_fast() -> None:
    assert cpu_seconds("import saccade") < 0.3


def test_the_help_page_is_fast() -> None:
    assert cpu_seconds(HELP) < 0.5


@pytest.mark.parametrize("code", ["import saccade", "import saccade.cli", HELP])
def test_starting_imports_nothing_heavy(code: str) -> None:
    tell = f"import atexit, sys\natexit.register(lambda: print(sorted(set({HEAVY!r}) & sys.modules.keys())))\n"
    made = python(tell + code)
    assert made.returncode == 0, made.stderr
    assert made.stdout.splitlines()[-1] == "[]"


NO_TORCH = "import sys\nsys.modules['torch'] = None"


@pytest.mark.parametrize("verb", ["list", "systems"])
def test_listing_needs_no_torch(verb: str) -> None:
    made = saccade_says(verb, "--json", before=NO_TORCH)
    assert made.returncode == 0, made.stderr
    assert made.stdout.lstrip().startswith("[")


# --- verbs -----------------------------------------------------------------------------------------------------------


def module_of(verb: str) -> str:
    return f"saccade.cli.{'list_models' if verb == 'list' else verb}"


def command_of(verb: str) -> Any:
    group: Any = typer.main.get_command(app)
    return group.get_command(None, verb)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_can_be_imported_and_explains_itself(verb: str) -> None:
    command = command_of(verb)
    assert command.name == verb
    assert command.help
    assert command.help.strip()


@pytest.mark.parametrize("verb", VERBS)
def test_a_wrong_option_of_any_verb_is_one_line_and_exit_code_2(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert_one_line(capsys, [verb, "--no-such-option"], 2, "--no-such-option")


# --- errors ----------------------------------------------------------------------------------------------------------


def assert_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, about: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    said = capsys.readouterr()
    lines = said.err.strip().splitlines()
    assert ended.value.code == code, said.err
    assert len(lines) == 1, said.err
    assert lines[0].startswith("saccade: ")
    assert about in lines[0]
    assert said.out == ""


ERRORS = {
    "an unknown verb": (["upscal"], 2, "upscale"),
    "an unknown model, nearest named": (["cost", "sesr_m55", "--size", "8x8"], 2, "sesr_m5"),
    "a size that is none": (["cost", "sesr_m5", "--size", "big"], 2, "3x1080x1920"),
    "a budget for a model without a dial": (["cost", "sesr_m5", "--size", "8x8", "--budget", "0.5"], 2, "dial"),
    "a task that no system has": (["systems", "--task", "cookery"], 2, "cookery"),
    "a missing picture": (["upscale", "none.jpg"], 1, "none.jpg"),
    "text named as a picture": (["upscale", "text.jpg"], 1, "text.jpg"),
    "an empty picture": (["upscale", "empty.png"], 1, "empty.png"),
    "a folder without pictures": (["upscale", "folder"], 1, "folder"),
    "a picture that exists already": (["upscale", "dot.png", "-o", "taken.png"], 1, "taken.png"),
    "a scale that no model has": (["upscale", "dot.png", "--scale", "7"], 2, "7"),
    "a budget out of range": (["upscale", "dot.png", "--budget", "1.5"], 2, "1.5"),
    "an unknown model to enlarge with": (["upscale", "dot.png", "--model", "sesr_m55"], 2, "sesr_m5"),
    "an unknown backend": (["upscale", "dot.png", "--backend", "abacus"], 2, "abacus"),
    "an amount of memory that is none": (["upscale", "dot.png", "--max-memory", "much"], 2, "much"),
    "weights that are none": (["upscale", "dot.png", "--model", "text.jpg"], 1, "text.jpg"),
    "a missing file of weights": (["export", "none.safetensors", "-o", "o.onnx"], 1, "none.safetensors"),
    "an export that is no ONNX file": (["export", "sesr_m5", "-o", "o.txt"], 2, ".onnx"),
    "an export that exists already": (["export", "sesr_m5", "-o", "taken.onnx"], 1, "taken.onnx"),
    "training without pictures": (["train", "sr", "--model", "sesr_m5", "--data", "folder", "-o", "run"], 1, "folder"),
    "a demo whose folder is a file": (["demo", "-o", "text.jpg"], 1, "text.jpg"),
}


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder with what the errors are about."""
    from PIL import Image

    (tmp_path / "folder").mkdir()
    (tmp_path / "text.jpg").write_text("this is no picture, it is text\n")
    (tmp_path / "empty.png").touch()
    Image.new("RGB", (4, 3)).save(tmp_path / "dot.png")
    for name in ("taken.png", "taken.onnx"):
        (tmp_path / name).write_bytes(b"mine")
    return tmp_path


@pytest.mark.parametrize("case", ERRORS)
def test_errors_are_one_line_and_write_nothing(
    case: str, desk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(desk)
    arguments, code, about = ERRORS[case]
    before = {p: p.read_bytes() for p in desk.rglob("*") if p.is_file()}
    assert_one_line(capsys, arguments, code, about)
    assert {p: p.read_bytes() for p in desk.rglob("*") if p.is_file()} == before


def test_debug_shows_the_traceback(desk: Path) -> None:
    made = saccade_says("--debug", "upscale", "none.jpg", cwd=desk)
    assert made.returncode == 1
    assert "Traceback" in made.stderr
    assert "InputError" in made.stderr


def test_the_version_is_printed() -> None:
    assert saccade_says("--version").stdout.strip() == f"saccade {saccade.__version__}"
