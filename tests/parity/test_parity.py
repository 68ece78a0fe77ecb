"""Every file of published vectors is run from its metadata alone, by the adapter of its system.

``SACCADE_GOLDEN`` names the folder (default: ``../shared/golden`` beside the checkout). ``foo_bar.safetensors`` is run
by the adapter with the longest name that it begins with: ``foo_bar.py``, else ``foo.py``.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import pytest

from saccade.systems import all_systems, standing

HERE = Path(__file__).resolve().parent
GOLDEN = Path(os.environ.get("SACCADE_GOLDEN") or HERE.parents[2] / "shared" / "golden")
ADAPTERS = {path.stem: path for path in sorted((HERE / "adapters").glob("*.py")) if path.stem != "__init__"}
PACKAGE = "parity_adapters"  # no folder on the path is called so
FILES = sorted(GOLDEN.glob("*.safetensors"))


def owner(stem: str, names: Iterable[str]) -> str | None:
    """The longest of ``names`` that a file's stem is, or begins with before an underscore."""
    fitting = [name for name in names if stem == name or stem.startswith(f"{name}_")]
    return max(fitting, key=len, default=None)


def read(path: Path) -> tuple[dict, dict[str, str]]:
    """Tensors and metadata of a safetensors file."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118


def system_of(stem: str, metadata: dict[str, str]) -> str | None:
    """The system that a file is about: what its metadata says, else what its name begins with; None if neither is."""
    slugs = {s.slug for s in all_systems()}
    said = (metadata.get("system", "").split() or [""])[0].strip(",;:()")
    return said if said in slugs else owner(stem, slugs)


def adapter_for(stem: str, metadata: dict[str, str]) -> str | None:
    """The adapter that runs a file: by its name, else by the system that its metadata names."""
    system = system_of(stem, metadata)
    return owner(stem, ADAPTERS) or (system if system in ADAPTERS else None)


def load_adapter(name: str) -> ModuleType:
    """An adapter as a module of the package that its folder is: adapters import from there what they share."""
    if PACKAGE not in sys.modules:
        folder = HERE / "adapters"
        spec = importlib.util.spec_from_file_location(
            PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None
        assert spec.loader is not None
        sys.modules[PACKAGE] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[PACKAGE])
    return importlib.import_module(f"{PACKAGE}.{name}")


@pytest.mark.skipif(not FILES, reason=f"no vectors at {GOLDEN}; SACCADE_GOLDEN names their folder")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_published_vectors_are_met(path: Path) -> None:
    from saccade.checkpoint import read_header

    metadata, _ = read_header(path)
    name = adapter_for(path.stem, metadata)
    if name is None:
        system = system_of(path.stem, metadata)
        if system is not None and standing(system).implementation:
            pytest.fail(f"{system} claims to be implemented, but tests/parity/adapters/{system}.py does not exist")
        pytest.skip(f"{system or path.stem} is not implemented yet")
    load_adapter(name).check(*read(path))


@pytest.mark.parametrize(
    ("stem", "said", "adapter"),
    [
        ("sesr", "sesr", "sesr"),
        ("sesr_more", "sesr", "sesr"),
        ("espcn_protocol", "espcn (measuring protocol)", "espcn_protocol"),
        ("espcn_protocols", "espcn", "espcn"),
        ("vectors", "pcsr, second set", "pcsr"),
        ("vectors", "", None),
        ("sesrx", "", None),
    ],
)
def test_a_file_finds_its_adapter(stem: str, said: str, adapter: str | None) -> None:
    assert adapter_for(stem, {"system": said}) == adapter


def test_every_adapter_has_the_check_that_the_runner_calls() -> None:
    for name in ADAPTERS:
        assert callable(load_adapter(name).check), name


def test_every_adapter_belongs_to_a_system() -> None:
    slugs = {s.slug for s in all_systems()}
    assert all(owner(name, slugs) for name in ADAPTERS)
