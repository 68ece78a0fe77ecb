"""Claims are code: each system's claim, its baseline, the measured figures, met or not met.

    saccade reproduce sesr                          on generated pictures and the bundled photograph
    saccade reproduce espcn sesr --data DIR         on pictures of your own, or on the field's sets
    saccade reproduce reiqa --seeds 3               with three seeds: met where all three meet it

A claim is a module ``saccade/reproduce/<slug>.py`` with

    CLAIM = Claim(system, says, source, baseline)
    def run(data: Data, seed: int) -> Figures       named numbers; minutes on two cores
    def met(figures: Figures) -> bool               the inequality that the claim is
    def plot(figures: Figures, path: Path) -> None  optional

Figures may say under ``data``, in words, what was measured on; what `Data` gave is added to that.

`reproduce` runs one and writes ``<slug>.json`` and ``<slug>.png``; the gallery page is made from these.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import json
import math
import os
import platform
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import saccade
from saccade import systems
from saccade.errors import InputError, UsageError

__all__ = ["Claim", "Data", "Figures", "Result", "claims", "default_folder", "reproduce"]

#: named numbers (units in the name), lists of them, and words
Figures = dict[str, Any]

HERE = Path(__file__).resolve().parent
TRAIN = "train_free"
TESTS = ("set5", "set14", "b100", "kodak")
_GENERATED = {"count": 24, "size": 288, "seed": 0}
_HELD_OUT = {"count": 4, "size": 288, "seed": 1}


@dataclass(frozen=True)
class Claim:
    """What a paper says of a system, in a form that can be measured.

    Attributes:
        system: the slug.
        says: the claim, one sentence, with the thresholds that are checked.
        source: section, table or figure of the paper.
        baseline: what it is compared with.
    """

    system: str
    says: str
    source: str
    baseline: str


class Data:
    """Pictures for a claim: those of a folder, or generated ones and the bundled photograph.

    A folder is used as follows. ``train_free/`` inside it is for training; ``set5/``, ``set14/``, ``b100/`` and
    ``kodak/`` are test sets of these names. With test sets alone, training is on generated pictures. A folder with none
    of them is taken as pictures of your own: every fourth, sorted by name, is for testing, the others for training.

    Args:
        folder: of pictures, or None.

    Raises:
        InputError: no such folder.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = None if folder is None else Path(folder)
        if self.folder is not None and not self.folder.is_dir():
            raise InputError(f"no folder of pictures at {self.folder}")
        self._made: tempfile.TemporaryDirectory[str] | None = None
        self.used: list[str] = []

    def _has(self, name: str) -> bool:
        return self.folder is not None and (self.folder / name).is_dir()

    @property
    def _own(self) -> bool:
        return self.folder is not None and not any(map(self._has, (TRAIN, *TESTS)))

    def _photographs(self, folder: Path) -> list[Path]:
        from saccade.data.pairs import photographs

        return photographs(folder)

    def _generated(self, name: str, count: int, size: int, seed: int) -> list[Path]:
        from saccade.data.generated import write_pictures

        if self._made is None:
            self._made = tempfile.TemporaryDirectory(prefix="saccade-")
        folder = Path(self._made.name) / name
        if not folder.exists():
            folder.mkdir()
            write_pictures(folder, count, size, seed)
        return self._photographs(folder)

    def _use(self, what: str) -> None:
        if what not in self.used:
            self.used.append(what)

    def training(self) -> list[Path]:
        """Files of pictures to train on.

        Raises:
            InputError: the folder holds no pictures.
        """
        if self.folder is not None and self._has(TRAIN):
            self._use(TRAIN)
            return self._photographs(self.folder / TRAIN)
        if self.folder is not None and self._own:
            pictures = self._photographs(self.folder)
            self._use("pictures of the user's own")
            return [p for i, p in enumerate(pictures) if i % 4] or pictures
        self._use("generated pictures")
        return self._generated("train", **_GENERATED)

    def tests(self, *wanted: str) -> dict[str, list[Path]]:
        """Test sets by name, none of them trained on.

        Args:
            wanted: only these of the field's sets, where they are there.

        Raises:
            InputError: the folder holds no pictures.
        """
        found = {name: self._photographs(Path(self.folder or ".") / name) for name in TESTS if self._has(name)}
        found = {name: files for name, files in found.items() if name in (wanted or TESTS)} or found
        if not found and self.folder is not None and self._own:
            found = {"own": self._photographs(self.folder)[::4]}
        if not found:
            found = {"generated": self._generated("test", **_HELD_OUT)}
            if photograph := self.photograph():
                found["photograph"] = [photograph]
        for name in found:
            self._use({"generated": "generated pictures", "photograph": "the bundled photograph"}.get(name, name))
        return found

    @staticmethod
    def photograph() -> Path | None:
        """The bundled photograph, if it is there."""
        return next(iter(sorted((HERE.parent / "demo").glob("*.jpg"))), None)

    def close(self) -> None:
        """Remove the generated pictures."""
        if self._made is not None:
            self._made.cleanup()
            self._made = None

    def __enter__(self) -> Data:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class Result:
    """What was measured, where and how; `to_dict` is what the JSON file holds.

    Attributes:
        met: with every seed.
        seconds: of all runs.
        seed: that ``figures`` were measured with.
        other_seeds: of further runs: seed, met, seconds, and those of the figures that are numbers.
        met_with_seed: whether ``seed`` alone met it, where there were others.
    """

    system: str
    claim: str
    source: str
    baseline: str
    figures: Figures
    met: bool
    seconds: float
    machine: str
    versions: dict[str, str]
    seed: int
    other_seeds: list[dict[str, Any]] = field(default_factory=list)
    met_with_seed: bool | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def claims() -> list[str]:
    """Slugs of the systems whose claim can be re-run; nothing is imported to find them."""
    mark = re.compile(r"^CLAIM = Claim\(", re.MULTILINE)
    return sorted(path.stem for path in HERE.glob("*.py") if mark.search(path.read_text(encoding="utf-8")))


def load_claim(slug: str) -> ModuleType:
    """The module of a system's claim.

    Raises:
        UsageError: no such system, or none of its claims can be re-run yet.
    """
    known = claims()
    if slug not in known:
        systems.system(slug)  # a slug that is no system's gets the nearest ones suggested
        near = difflib.get_close_matches(slug, known, n=3) or known
        raise UsageError(f"{slug} has no claim that can be re-run yet; these have: {', '.join(near)}")
    return importlib.import_module(f"saccade.reproduce.{slug}")


def default_folder() -> Path:
    """Where results go: ``docs/results`` of the source tree, or ``saccade-results`` here for an installed package."""
    checkout = systems.find_checkout()
    return Path("saccade-results") if checkout is None else checkout / "docs" / "results"


def reproduce(
    slug: str,
    data: str | Path | Data | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    *,
    seeds: int = 1,
    plot: bool = True,
) -> Result:
    """Re-run a system's claim and write what came out.

    Args:
        slug: of the system.
        data: folder of pictures (see `Data`); None for generated ones and the bundled photograph.
        seed: of everything that is drawn at random.
        out: folder for ``<slug>.json`` and ``<slug>.png``, made if need be; `default_folder` if None. An earlier result
            there is replaced.
        seeds: how many runs, with ``seed``, ``seed + 1`` and so on; the first one's figures are drawn.
        plot: whether to draw; without matplotlib nothing is drawn.

    Raises:
        UsageError: no such system, no claim of it, or fewer than one seed.
        InputError: unusable pictures, or a folder that cannot be written.
    """
    from saccade.checkpoint import write_bytes

    if seeds < 1:
        raise UsageError(f"a claim is run with at least one seed, got {seeds}")
    module = load_claim(slug)
    folder = default_folder() if out is None else Path(out)
    _prepare(folder)
    given = data if isinstance(data, Data) else Data(data)
    try:
        result = joined([_once(module, given, seed + i) for i in range(seeds)])
    finally:
        if given is not data:
            given.close()
    write_bytes(folder / f"{slug}.json", (json.dumps(result.to_dict(), indent=1, allow_nan=False) + "\n").encode())
    if plot and hasattr(module, "plot") and importlib.util.find_spec("matplotlib"):
        _draw(module, result.figures, folder / f"{slug}.png")
    return result


def _once(module: ModuleType, data: Data, seed: int) -> Result:
    """One run of a claim."""
    claim: Claim = module.CLAIM
    began = time.monotonic()
    figures = plain({"data": "", **module.run(data, seed)})
    told = (figures["data"], *data.used)  # what the claim names itself, and what it took of the pictures
    figures["data"] = ", ".join(filter(None, told)) or "none needed"
    seconds = round(time.monotonic() - began, 1)
    met = bool(module.met(figures))
    return Result(
        claim.system, claim.says, claim.source, claim.baseline, figures, met, seconds, machine(), versions(), seed
    )


def joined(runs: Sequence[Result]) -> Result:
    """Runs of one claim with different seeds as one result: the first, with what the others found beside it."""
    others = [{"seed": r.seed, "met": r.met, "seconds": r.seconds, "figures": _numbers(r.figures)} for r in runs[1:]]
    seconds = round(sum(r.seconds for r in runs), 1)
    met = all(r.met for r in runs)
    return replace(runs[0], met=met, seconds=seconds, other_seeds=others, met_with_seed=runs[0].met if others else None)


def _numbers(figures: Figures) -> Figures:
    """Numbers, and dicts of them: what is compared between seeds; no pictures, no curves."""
    found = {k: _numbers(v) if isinstance(v, dict) else v for k, v in figures.items()}
    return {k: v for k, v in found.items() if isinstance(v, bool | int | float) or (isinstance(v, dict) and v)}


def _prepare(folder: Path) -> None:
    """Make the folder of the results now: a run takes minutes.

    Raises:
        InputError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"cannot write results to {folder}: {error.strerror}") from error


def _draw(module: ModuleType, figures: Figures, target: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    temporary = target.with_name(f".{os.getpid()}.{target.name}")
    try:
        module.plot(figures, temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def plain(value: Any) -> Any:
    """Figures as plain data: numpy and torch scalars as numbers, numbers that are not finite as None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, str | bool | int) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Sequence):
        return [plain(v) for v in value]
    raise TypeError(f"a figure is a number, a word or a list of them, not {type(value).__name__}")


def machine() -> str:
    """Processor and number of cores that this process may use; nothing that names the machine."""
    from saccade.runtime.engines import cores

    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    name = found[1].strip() if found else platform.processor() or platform.machine()
    count = cores()
    return f"{name}, {count} core{'s' * (count != 1)}"


def versions() -> dict[str, str]:
    """Of Python, torch and this library."""
    import torch

    return {"python": platform.python_version(), "torch": torch.__version__, "saccade": saccade.__version__}
