"""One name per thing: `register` a model, `create` it by name, list what there is - without importing torch.

The index is read from the source text: every ``@register(...)`` and ``@recognise(...)`` decorator in the rooms of the
house has literal arguments, so a scan of the files knows names, tasks and scales in milliseconds. A module is
imported only when one of its models is created or one of its recognisers is asked.
"""

from __future__ import annotations

import ast
import difflib
import fnmatch
import functools
import importlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from saccade.errors import CheckpointError, UsageError, first_line

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "ModelEntry",
    "Recogniser",
    "create",
    "default_weights",
    "entry",
    "list_models",
    "recognise",
    "register",
    "shaped",
    "variants",
]

ROOT = Path(__file__).parent
WEIGHTS = ROOT / "weights"
ROOMS = (
    "backbones",
    "restoration",
    "quality",
    "codecs",
    "compression",
    "adaptation",
    "fields",
    "retrieval",
    "curation",
    "detection",
    "segmentation",
    "generation",
    "multimodal",
)
F = TypeVar("F", bound=Callable[..., Any])
_DECORATOR = re.compile(r"^@(register|recognise)\(", re.MULTILINE)
_FUNCTION = re.compile(r"^def (\w+)\(", re.MULTILINE)


@dataclass(frozen=True)
class ModelEntry:
    """What is known of a registered model before its module is imported.

    Attributes:
        name: the public name.
        system, task: as given to `register`.
        module, function: where its maker stands.
        facts: the other literals given to `register`.
        variant: whether the name is one of the maker's variants, and goes to it as its first argument.
        about: a line about it, e.g. how large it is; "" where there is none.
    """

    name: str
    system: str
    task: str
    module: str
    function: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    variant: bool = False
    about: str = ""

    @property
    def scales(self) -> tuple[int, ...]:
        """The integer enlargements that a super-resolution model offers; empty for other tasks."""
        return tuple(self.facts.get("scales", ()))


@dataclass(frozen=True)
class Recogniser:
    """A function that reads a published checkpoint; asked when one of its key patterns occurs in the file."""

    system: str
    keys: tuple[str, ...]
    module: str
    function: str

    def matches(self, names: set[str]) -> bool:
        """Whether every key pattern (``fnmatch``) occurs among the names of a state dict."""
        return all(fnmatch.filter(names, pattern) for pattern in self.keys)


def register(
    name: str, *, system: str, task: str, variants: Mapping[str, str | Mapping[str, Any]] | None = None, **facts: Any
) -> Callable[[F], F]:
    """Mark a function ``(**options) -> nn.Module`` as the maker of the model ``name``, and of its named variants.

    All arguments must be literals: they are read from the source text, not by running it.

    Args:
        name: the public name, e.g. ``sesr_m5``; unique in the library.
        system: the slug of the system that it belongs to; "" for a network of our own, which is none of them.
        task: the field's term, e.g. ``super-resolution``.
        variants: further names that the same function makes, small ones first; it is called with the name before the
            options, ``(variant, **options)``. Each name stands with a line about it, or with facts of its own and that
            line under ``about``. Where there are variants, ``name`` itself is the general network (and none of timm's).
        facts: further literals, e.g. ``scales=(2, 3, 4)``; ``size``, the side of a backbone's pictures, ``fixed_size``
            where it takes no other, ``side_option``, the option that builds it for another, ``crop_pct``, the share of
            a test picture's shorter side that its published weights are judged on (0.9).
    """

    def mark(function: F) -> F:
        return function

    return mark


def recognise(system: str, *, keys: tuple[str, ...]) -> Callable[[F], F]:
    """Mark a function ``(state) -> Recipe | None`` that reads a published key layout of ``system``.

    Keyword-only arguments of it are what a user may tell `saccade.load` because no weight does.

    Args:
        system: the slug.
        keys: ``fnmatch`` patterns that must all occur before the function is asked (literals).
    """

    def mark(function: F) -> F:
        return function

    return mark


def _closing(text: str, start: int) -> int:
    """Index just behind the bracket that closes the one before ``start``; decorators hold no brackets in strings."""
    depth = 1
    for i in range(start, len(text)):
        depth += (text[i] in "([{") - (text[i] in ")]}")
        if depth == 0:
            return i + 1
    raise SyntaxError("unbalanced decorator")


def _entries(name: str, module: str, function: str, facts: dict[str, Any]) -> Iterator[ModelEntry]:
    """The models of one decorator: its variants, then the name itself."""
    system, task, variants = facts.pop("system"), facts.pop("task"), facts.pop("variants", {})
    for variant, told in variants.items():
        own = {**facts, **({"about": told} if isinstance(told, str) else told)}
        yield ModelEntry(variant, system, task, module, function, about=own.pop("about"), facts=own, variant=True)
    yield ModelEntry(name, system, task, module, function, facts | {"timm": False} if variants else facts)


@functools.cache
def _scan() -> tuple[dict[str, ModelEntry], list[Recogniser]]:
    models: dict[str, ModelEntry] = {}
    recognisers: list[Recogniser] = []
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            if not _DECORATOR.search(text):
                continue
            module = ".".join(("saccade", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
            for found in _DECORATOR.finditer(text):
                end = _closing(text, found.end())
                call = ast.parse(text[found.start() + 1 : end], mode="eval").body
                assert isinstance(call, ast.Call)
                first = ast.literal_eval(call.args[0])
                options = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
                function = _FUNCTION.search(text, end)
                if function is None:
                    raise SyntaxError(f"{path.name}: a decorator without a function")
                if found.group(1) == "register":
                    for made in _entries(first, module, function.group(1), options):
                        if made.name in models:
                            raise SyntaxError(f"model {made.name!r} is registered twice")
                        models[made.name] = made
                else:
                    recognisers.append(Recogniser(first, tuple(options["keys"]), module, function.group(1)))
    return models, recognisers


def recognisers() -> list[Recogniser]:
    """All readers of published checkpoints, in the order of the source tree."""
    return list(_scan()[1])


def list_models(pattern: str = "*", *, task: str | None = None, system: str | None = None) -> list[str]:
    """Names of registered models, sorted.

    Args:
        pattern: shell pattern such as ``sesr_*``.
        task: keep only this task, e.g. ``super-resolution``.
        system: keep only this system's models.
    """
    return sorted(
        name
        for name, e in _scan()[0].items()
        if fnmatch.fnmatch(name, pattern) and task in (None, e.task) and system in (None, e.system)
    )


def variants(system: str) -> list[str]:
    """Names of a system's models in the order of its source, which is from small to large."""
    return [name for name, e in _scan()[0].items() if e.system == system]


def entry(name: str) -> ModelEntry:
    """The entry of a registered model.

    Raises:
        UsageError: no such model; the message names the nearest ones.
    """
    models = _scan()[0]
    if name in models:
        return models[name]
    near = difflib.get_close_matches(name[:100].lower(), models, n=3, cutoff=0.5)
    if not near:
        near = [m for m in models if models[m].system == name][:3]
    if not near:
        raise UsageError(f"no model named {name[:100]!r}, nor one near it (saccade list shows all)")
    stem = near[0].split("_")[0]
    raise UsageError(
        f"no model named {name[:100]!r}; the nearest are {', '.join(near)} (saccade list '{stem}*' shows all)"
    )


def load_function(module: str, function: str) -> Callable[..., Any]:
    """Import ``module`` and return its ``function``."""
    made: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return made


def default_weights(name: str, **options: Any) -> Path | None:
    """The file of weights that ships for a model and its options, or None. Does not import torch."""
    scale = options.get("scale")
    path = WEIGHTS / (f"{name}.safetensors" if scale is None else f"{name}_x{scale}.safetensors")
    return path if path.is_file() else None


def check_scale(found: ModelEntry, scale: int) -> None:
    """Refuse an enlargement that a model does not offer, naming models that do.

    Raises:
        UsageError: ``scale`` is not among the model's scales.
    """
    if found.scales and scale not in found.scales:
        others = [n for n, e in _scan()[0].items() if scale in e.scales]
        tail = f"; models for x{scale}: {', '.join(sorted(others))}" if others else ""
        offered = ", ".join(f"x{s}" for s in found.scales)
        raise UsageError(f"{found.name} has no x{scale}, it enlarges by {offered}{tail}")


def _first_scale(found: ModelEntry, weights: object) -> int:
    """The enlargement of a model where none was asked for: that of its published weights, if it is to have them."""
    if weights == "official":
        from saccade.published import published_scale

        return published_scale(found.name) or found.scales[0]
    return found.scales[0]


def create(name: str, weights: str | Path | None = "default", **options: Any) -> nn.Module:
    """Make a model by its name, in evaluation mode.

    Args:
        name: a registered name (`list_models`).
        weights: ``"default"`` for the weights that ship with the library, None for fresh ones, ``"official"`` for the
            published ones (fetched and converted the first time, then cached), or a file.
        options: what the model's own function takes, e.g. ``scale=2``.

    Raises:
        UsageError: unknown name (the nearest are suggested), option or scale; no weights ship for it.
        CheckpointError: the file does not fit the model.
    """
    found = entry(name)
    function = load_function(found.module, found.function)
    if found.scales:
        options.setdefault("scale", _first_scale(found, weights))
        check_scale(found, options["scale"])
    try:
        model: nn.Module = function(name, **options) if found.variant else function(**options)
    except TypeError as error:
        if "unexpected keyword" not in str(error):
            raise
        raise UsageError(f"{name} has no option {str(error).rsplit(' ', 1)[-1]}") from error
    vars(model).update(saccade_name=name, saccade_options=dict(options))
    if weights == "official":
        from saccade.published import load_official

        load_official(model, name, options, say=lambda line: print(line, file=sys.stderr))
    elif weights is not None:
        path = default_weights(name, **options) if weights == "default" else Path(weights)
        if path is None:
            which = name + (f" x{options['scale']}" if "scale" in options else "")
            raise UsageError(
                f"no weights ship for {which}; give a file of weights (in Python, weights=None makes a fresh network)"
            )
        from saccade.checkpoint import load_into

        load_into(model, path)
    return model.eval()


def shaped(name: str, **options: Any) -> nn.Module:
    """A model whose parameters have shapes and no values, to be counted: gigabytes of them take no memory.

    Where its making looks at values it is made as `create` makes it.

    Raises:
        UsageError: as `create`.
    """
    import torch

    try:
        with torch.device("meta"):
            return create(name, weights=None, **options)
    except RuntimeError:  # NotImplementedError of the meta device among them
        return create(name, weights=None, **options)


def rebuild(name: str, options: Mapping[str, Any], source: str) -> nn.Module:
    """Make the model that a file of weights names.

    Raises:
        CheckpointError: the file names a model that this version does not know.
    """
    try:
        return create(name, weights=None, **options)
    except UsageError as error:
        raise CheckpointError(f"{source} was written for a model this version does not have: {error}") from error
    except (ArithmeticError, LookupError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{source} asks for {name} with options that cannot be ({first_line(error)})") from error
