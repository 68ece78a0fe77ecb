"""Files of weights: read safely, recognised by their keys, written as safetensors.

``.safetensors`` is native. ``.pth``/``.pt``/``.tar``/``.ckpt`` are read with ``torch.load(weights_only=True)``, which
builds tensors and plain containers only and never runs code from the file. `load` needs nothing but the file: our own
files name their model in the header, published ones are recognised by their key names.
"""

from __future__ import annotations

import inspect
import json
import math
import mmap
import os
import re
import struct
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from saccade import registry
from saccade.errors import CheckpointError, InputError, UsageError, first_line

if TYPE_CHECKING:
    from torch import Tensor, nn

    StateDict = dict[str, Tensor]

__all__ = [
    "Recipe",
    "StateDict",
    "load",
    "load_into",
    "named_model",
    "read_header",
    "read_recipe",
    "read_state",
    "save",
]

_NESTS = ("params_ema", "params", "state_dict", "model_state", "model", "sd")
_PREFIXES = ("module.", "model.", "_orig_mod.")
_HEADER_LIMIT = 100 << 20  # bytes of a safetensors header, as in the format's own reader
_ITEM_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
_ITEM_BYTES |= {"I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}
_SLACK = 4  # what a file may unfold to, as a multiple of its size: tensors may share storage, zip archives be packed
#: what torch's safe reader allows although it makes much memory of a few bytes: bytearray(n), encode(encode(..), "hex")
_SWELLING = re.compile(rb"c(_codecs\nencode|(?:builtins|__builtin__)\nbytearray)\n")


def __getattr__(name: str) -> Any:
    if name == "StateDict":  # an alias that must not import torch with this module
        from torch import Tensor

        return dict[str, Tensor]
    raise AttributeError(name)


@dataclass(frozen=True)
class Recipe:
    """How to rebuild the model of a published checkpoint: registered name, options, and the state in our key names."""

    model: str
    options: dict[str, Any] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)


def _file(path: str | Path) -> Path:
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"no file of weights at {path}")
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, not a file of weights")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty (0 bytes)")
    return path


def read_header(path: str | Path) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    """The metadata and the tensor table (dtype, shape, data offsets) of a safetensors file, without torch.

    Raises:
        CheckpointError: no such file, not safetensors, or truncated.
    """
    path = _file(path)
    size = path.stat().st_size
    try:
        with path.open("rb") as f:
            (length,) = struct.unpack("<Q", f.read(8))
            if length > min(size - 8, _HEADER_LIMIT):
                raise ValueError("header longer than the file")
            table = json.loads(f.read(length))
        metadata = {str(k): str(v) for k, v in table.pop("__metadata__", {}).items()}
        end = max((_end(t) for t in table.values()), default=0)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a safetensors file ({first_line(error)})") from error
    if 8 + length + end > size:
        raise CheckpointError(f"{path} is truncated: {size:,} bytes of {8 + length + end:,}")
    return metadata, table


def _end(entry: dict[str, Any]) -> int:
    """Where the bytes of a tensor end. Raises ValueError where dtype, shape and offsets contradict each other."""
    begin, end = entry["data_offsets"]
    if not all(type(n) is int and 0 <= n < 1 << 63 for n in (begin, end, *entry["shape"])) or len(entry["shape"]) > 64:
        raise ValueError("a shape or an offset is no count")
    if end - begin != math.prod(entry["shape"]) * _ITEM_BYTES.get(entry["dtype"], 0) and entry["dtype"] in _ITEM_BYTES:
        raise ValueError("a shape contradicts its offsets")
    return end


def _refuse_swelling(path: Path) -> None:
    """Refuse a ``.pth`` that would take far more memory than its size: packed storages, byte strings made by code.

    Raises:
        CheckpointError: such a file, a damaged archive, or neither an archive nor a pickle.
    """
    size = path.stat().st_size
    with path.open("rb") as f:
        head = f.read(4)
        if not head.startswith((b"PK\x03\x04", b"\x80")):
            raise CheckpointError(f"{path} is no PyTorch file, nor safetensors")
        if head == b"PK\x03\x04":
            try:
                with zipfile.ZipFile(f) as archive:
                    whole = sum(member.file_size for member in archive.infolist())
                    if whole > _SLACK * size:
                        raise CheckpointError(
                            f"{path} would unfold from {size:,} to {whole:,} bytes; it was not loaded"
                        )
                    pickles = [archive.read(m) for m in archive.infolist() if m.filename.endswith(".pkl")]
            except (zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, ValueError, RuntimeError) as error:
                raise CheckpointError(f"{path} is damaged or truncated ({first_line(error)})") from error
            found = any(_SWELLING.search(data) for data in pickles)
        else:
            with mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
                found = _SWELLING.search(data) is not None
    if found:
        raise CheckpointError(
            f"{path} holds byte strings that are made by code; it was not loaded. Save its tensors alone"
        )


def _read_pickle(path: Path) -> Any:
    import torch

    _refuse_swelling(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of sparse tensors, old storages and pickles' protocols
            return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError as error:
        raise CheckpointError(f"{path} asks for more memory than there is; it is damaged or hostile") from error
    except Exception as error:
        text = str(error)
        if "weights_only" in text or "Unsupported" in text or "global" in text.lower():
            raise CheckpointError(
                f"{path} holds pickled objects that could run code; it was not loaded. Save its tensors alone "
                "(torch.save(model.state_dict(), ...)) or as safetensors"
            ) from error
        raise CheckpointError(f"{path} is damaged, truncated or no PyTorch file ({first_line(error)})") from error


def _tensors(tree: Any) -> StateDict | None:
    """The innermost mapping of names to tensors inside the usual wrappings, or None."""
    from torch import Tensor

    for _ in range(8):
        if not isinstance(tree, Mapping):
            return None
        tensors = {str(k): v for k, v in tree.items() if isinstance(v, Tensor)}
        nest = next((tree[n] for n in _NESTS if isinstance(tree.get(n), Mapping)), None)
        if nest is None:
            return tensors or None
        tree = nest
    return None


def _check_values(state: StateDict, path: Path) -> None:
    """Refuse tensors that have no dense values, or (by strides of zero) claim far more than the file holds.

    Raises:
        CheckpointError: such tensors.
    """
    import torch

    for name, v in state.items():
        if v.layout != torch.strided or v.device.type != "cpu" or v.is_quantized:
            raise CheckpointError(
                f"{path} holds {name[:80]}, a tensor without dense values (sparse, quantised or meta)"
            )
    whole, size = sum(v.numel() * v.element_size() for v in state.values()), path.stat().st_size
    if whole > _SLACK * size:
        raise CheckpointError(f"{path} declares {whole:,} bytes of tensors in a file of {size:,}; it was not loaded")


def _strip(state: StateDict) -> StateDict:
    """Remove the prefixes that wrappers put before every key."""
    while True:
        for prefix in _PREFIXES:
            if state and all(k.startswith(prefix) for k in state):
                state = {k[len(prefix) :]: v for k, v in state.items()}
                break
        else:
            return state


def read_state(path: str | Path) -> tuple[StateDict, dict[str, str]]:
    """Tensors by name and metadata of any supported file; wrappings and prefixes removed.

    Raises:
        CheckpointError: missing, truncated, hostile or empty file.
    """
    path = _file(path)
    with path.open("rb") as f:
        start = f.read(16)
    if path.suffix == ".safetensors" or (start[8:9] == b"{" and path.suffix not in {".pth", ".pt", ".tar", ".ckpt"}):
        metadata, _ = read_header(path)
        from safetensors.torch import load_file

        try:
            found = load_file(path)
            return (found if "saccade" in metadata else _strip(found)), metadata  # our own have no wrappings
        except Exception as error:
            raise CheckpointError(f"{path} is a damaged safetensors file ({first_line(error)})") from error
    tree = _read_pickle(path)
    state = _tensors(tree)
    if not state:
        raise CheckpointError(f"{path} holds no named tensors, so no weights")
    _check_values(state, path)
    return _strip(state), {}


def _few(names: list[str], limit: int = 3) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def fit(model: nn.Module, state: StateDict, source: str) -> None:
    """Copy ``state`` into ``model``; all names and shapes must agree.

    A model with a method ``refuse_state(state)`` is asked first: it may know why weights of another form do not fit.

    Raises:
        CheckpointError: names what is missing, what is not expected, and the first differing shape.
    """
    refuse = getattr(model, "refuse_state", None)
    if callable(refuse):
        refuse(state)
    own = model.state_dict()
    state = {k: v for k, v in state.items() if k in own or not k.endswith("num_batches_tracked")}
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    extra = [k for k in state if k not in own]
    shapes = [k for k in own if k in state and own[k].shape != state[k].shape]
    problems = []
    if missing:
        problems.append(f"missing {_few(missing)}")
    if extra:
        problems.append(f"not expected {_few(extra)}")
    if shapes:
        k = shapes[0]
        more = f" (and {len(shapes) - 1} more)" if len(shapes) > 1 else ""
        problems.append(f"{k} has shape {tuple(state[k].shape)} instead of {tuple(own[k].shape)}{more}")
    kinds = [k for k in own if k in state and own[k].is_floating_point() and not state[k].is_floating_point()]
    if kinds and not problems:
        problems.append(f"{kinds[0]} is {str(state[kinds[0]].dtype).removeprefix('torch.')}, not floating-point")
    if problems:
        name = getattr(model, "saccade_name", type(model).__name__)
        raise CheckpointError(f"{source} does not fit {name}: {'; '.join(problems)}")
    if any(v.is_meta for v in own.values()):
        return
    try:
        model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise CheckpointError(
            f"{source} cannot be copied into the network ({str(error).splitlines()[-1].strip()})"
        ) from error


def named_model(text: str, source: str) -> tuple[str, dict[str, Any]]:
    """Name and options of a model from the ``saccade`` entry of a file's header.

    Raises:
        CheckpointError: the entry is damaged.
    """
    try:
        told = json.loads(text)
        name, options = told["model"], told["options"]
        if not (isinstance(name, str) and re.fullmatch(r"[\w.-]{1,100}", name) and isinstance(options, dict)):
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{source} has a damaged header: its model is not readable") from error
    return name, options


def _own(metadata: Mapping[str, str], source: str) -> tuple[str, dict[str, Any]] | None:
    return named_model(metadata["saccade"], source) if "saccade" in metadata else None


def _recipe(state: StateDict, source: str, told: Mapping[str, Any] = MappingProxyType({})) -> Recipe:
    """What a published file holds, by the first reader that knows its keys; ``told`` as in `load`."""
    names = set(state)
    for reader in registry.recognisers():
        if reader.matches(names):
            read = registry.load_function(reader.module, reader.function)
            takes = [name for name, p in inspect.signature(read).parameters.items() if p.kind is p.KEYWORD_ONLY]
            try:
                recipe: Recipe | None = read(state, **{name: told[name] for name in takes if name in told})
            except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
                if told and isinstance(error, UsageError):  # of what was told, not of the tensors
                    raise
                why = first_line(error)
                raise CheckpointError(
                    f"{source} has the names of {reader.system}, but its tensors do not go together ({why})"
                ) from error
            if recipe is not None:
                _refuse_told([name for name in told if name not in takes], source, takes)
                return recipe
    known = ", ".join(sorted({r.system for r in registry.recognisers()}))
    raise CheckpointError(
        f"{source} is of no architecture known here; its keys look like {_few(sorted(names))}. Known: {known}"
    )


def _refuse_told(extra: list[str], source: str, takes: Sequence[str] = ()) -> None:
    """Refuse options that a file tells itself, or that its network does not have.

    Raises:
        UsageError: there are such.
    """
    if extra:
        rest = f"only {', '.join(takes)} can be told" if takes else "nothing can be told"
        raise UsageError(f"{source} tells its options itself, {rest}; leave {', '.join(extra)} out")


def _sketch(recipe: Recipe, source: str) -> None:
    """Compare with a network without values first: options in a header could ask for one of any size.

    Raises:
        CheckpointError: names or shapes differ.
    """
    import torch

    try:
        with torch.device("meta"):
            model = registry.create(recipe.model, weights=None, **recipe.options)
    except Exception:  # wrong options, which `registry.rebuild` explains, or a network that needs values to be made
        return
    fit(model, recipe.state, source)


def read_recipe(path: str | Path, **told: Any) -> Recipe:
    """Which model a file holds, with which options, and its tensors under our names; no network is made.

    Args:
        path: as `load`.
        told: as `load`.

    Raises:
        CheckpointError: unsafe, damaged or unknown file.
        UsageError: as `load`.
    """
    source = Path(path).name
    state, metadata = read_state(path)
    own = _own(metadata, source)
    if own:
        _refuse_told(list(told), source)
    recipe = Recipe(own[0], own[1], state) if own else _recipe(state, source, told)
    if own and re.search(r"\d{4}|e\+?\d", json.dumps(own[1])):  # large numbers among the options
        _sketch(recipe, source)
    return recipe


def load(path: str | Path, **told: Any) -> nn.Module:
    """Load a file of weights; the architecture and its configuration come from the file.

    Args:
        path: our own safetensors, or a published checkpoint of an implemented system (``.pth``, ``.safetensors``).
        told: what leaves no trace in a published file, by name: ``sides=(448, 896, 1120)`` and ``window=14`` of PIIP's
            detectors. The keyword arguments of a system's readers are those that it takes; most take none.

    Returns:
        The model in evaluation mode, on the CPU.

    Raises:
        CheckpointError: unsafe, damaged, unknown or half-matching file.
        UsageError: something was told that the file tells itself, or that cannot be.
    """
    source, recipe = Path(path).name, read_recipe(path, **told)
    model = registry.rebuild(recipe.model, recipe.options, source)
    fit(model, recipe.state, source)
    return model.eval()


def load_into(model: nn.Module, path: str | Path) -> None:
    """Load a file into an existing model of the same architecture and options.

    A model made with ``num_classes=0`` or ``features_only=True`` takes files with a classifier all the same.

    Raises:
        CheckpointError: the file is for another model or other options, or does not fit.
    """
    source = Path(path).name
    state, metadata = read_state(path)
    name, options = getattr(model, "saccade_name", None), getattr(model, "saccade_options", {})
    own = _own(metadata, source)
    if own is None and set(state) != set(model.state_dict()):
        recipe = _recipe(state, source)
        own, state = (recipe.model, recipe.options), recipe.state
    if own is not None and name is not None:
        wanted, got = options.get("scale"), own[1].get("scale")
        if wanted is not None and got is not None and wanted != got:
            raise CheckpointError(f"{source} holds {own[0]} for x{got}, you asked for x{wanted}")
        if own[0] != name:
            raise CheckpointError(f"{source} holds {own[0]}, not {name}")
        if (options.get("features_only") or options.get("num_classes") == 0) and not own[1].get("features_only"):
            model, state = _without_head(model, state, bool(options.get("features_only")))
    fit(model, state, source)


def _without_head(model: nn.Module, state: StateDict, features_only: bool) -> tuple[nn.Module, StateDict]:
    """The network to fill, and of a classifier's weights those that it has, where its head was dropped on purpose."""
    network: Any = model.get_submodule("model") if features_only else model
    own, heads = network.state_dict(), classifier_names(network)
    return network, {k: v for k, v in state.items() if k in own or not (features_only or k.startswith(heads))}


def classifier_names(network: Any) -> tuple[str, ...]:
    """What the names of a backbone's classifiers' parameters start with."""
    classifier = network.get_classifier()
    return tuple({f"{n}." for n, m in network.named_modules() if m is classifier and n} | {"head.", "head_dist."})


def save(model: nn.Module, path: str | Path, **metadata: str) -> None:
    """Write a model's weights as safetensors, with the name and options that `load` rebuilds it from.

    The file appears whole or not at all. ``metadata`` adds strings to the header (training data, figures, ...).

    Raises:
        InputError: the model was not made by `saccade.create`, or the folder cannot be written.
        UsageError: a network that `saccade.fuse` rewrote into layers that no option makes.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    name = getattr(model, "saccade_name", None)
    if name is None:
        raise InputError(f"{type(model).__name__} was not made by saccade.create; save its state_dict() instead")
    if getattr(model, "saccade_fused", False):
        raise UsageError(
            f"this {name} is fused, and no file could rebuild it: save it before saccade.fuse, and fuse what is loaded"
        )
    told = json.dumps({"model": name, "options": model.saccade_options}, sort_keys=True)
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}

    def fill(temporary: str) -> None:
        try:  # from the tensors to the disc: in one piece, a file would be in memory twice besides
            save_file(state, temporary, metadata={"saccade": told, **metadata})
        except SafetensorError as error:
            raise InputError(f"cannot write {path}: {first_line(error)}") from error

    _replace(Path(path), fill)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: into a temporary file beside it, synced, then renamed.

    Raises:
        InputError: the folder does not exist or cannot be written.
    """
    _replace(path, lambda temporary: _fill(temporary, data))


def _fill(path: str, data: bytes) -> None:
    with open(path, "wb") as f:
        f.write(data)


def _replace(path: Path, fill: Callable[[str], None]) -> None:
    """Let ``fill`` write a temporary file beside ``path``, sync it, and give it its name."""
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
    try:
        os.close(handle)
        fill(temporary)
        with open(temporary, "rb") as f:
            os.fsync(f.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise InputError(f"cannot write {path}: {error.strerror}") from error
        raise
