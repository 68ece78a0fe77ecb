"""Published checkpoints, fetched from where their authors put them: ``saccade.create(name, weights="official")``.

Addresses, sizes, digests and licences are data (``published.toml``). A file is fetched once: a download that was cut
off goes on where it stopped, its size and digest are checked, it is read without running code (`saccade.checkpoint`),
written anew as safetensors into the cache, and the fetched one is removed. ``saccade weights`` lists and clears.
"""

from __future__ import annotations

import functools
import hashlib
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from saccade.cache import cache_folder
from saccade.errors import CheckpointError, InputError, UnavailableError, UsageError, first_line
from saccade.progress import bar

__all__ = ["Published", "cached", "load_official", "official", "published", "published_scale", "remove"]

INDEX = Path(__file__).with_name("published.toml")
TIMEOUT = 30.0  # seconds without a byte
LARGEST = 8 << 30  # bytes; no published file of ours comes near
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Published:
    """One published file.

    Attributes:
        name: of the registered model that it belongs to.
        url: where its authors put it.
        licence, page: under which terms, and where they stand.
        bytes, sha256: where they are known.
        scale: the enlargement that it was trained for, where the model offers several.
    """

    name: str
    url: str
    licence: str
    page: str
    bytes: int | None = None
    sha256: str | None = None
    scale: int | None = None

    @property
    def file(self) -> Path:
        """The converted file in the cache; it may not be there yet."""
        key = hashlib.sha256(self.url.encode()).hexdigest()[:12]
        return cache_folder() / "weights" / f"{self.name}-{key}.safetensors"

    @property
    def part(self) -> Path:
        """What is being fetched; a file put there by hand is taken as it is."""
        return self.file.with_suffix(".part")

    @property
    def by_hand(self) -> str:
        """What to do without a network."""
        return f"fetch {self.url} by hand and put it at {self.part}"


@functools.cache
def published() -> dict[str, Published]:
    """All published files by the name of their model."""
    found = {}
    for system in tomllib.loads(INDEX.read_text(encoding="utf-8")).values():
        for name, told in system["files"].items():
            found[name] = Published(name, licence=system["licence"], page=system["page"], **told)
    return found


def cached() -> dict[str, int]:
    """Bytes of every file of weights in the cache, by its name; unfinished downloads too."""
    folder = cache_folder() / "weights"
    if not folder.is_dir():
        return {}
    return {p.name: p.stat().st_size for p in sorted(folder.iterdir()) if p.suffix in (".safetensors", ".part")}


def remove(names: list[str] | None = None) -> int:
    """Remove files of weights from the cache: those of these models, or all; returns the bytes that became free.

    Raises:
        UsageError: nothing is cached for one of the names.
        InputError: a file cannot be removed.
    """
    freed, folder = 0, cache_folder() / "weights"
    files = cached()
    for name in names or ():
        if not any(file.rpartition("-")[0] == name for file in files):
            raise UsageError(f"no weights of {name!r} are cached; saccade weights lists them")
    for file, size in files.items():
        if not names or file.rpartition("-")[0] in names:
            try:
                (folder / file).unlink()
            except OSError as error:
                raise InputError(f"cannot remove {folder / file}: {error.strerror}") from error
            freed += size
    return freed


def official(name: str, say: Callable[[str], Any] | None = None) -> Path:
    """The published weights of a registered model as safetensors; fetched and converted the first time.

    Args:
        say: told the licence before the first download.

    Raises:
        UsageError: no published file is known for the model.
        UnavailableError: the address cannot be reached; says what to fetch by hand and where to put it.
        CheckpointError: the file has another size or digest, or holds another model.
        InputError: the cache cannot be written.
    """
    known = published()
    if name not in known:
        raise UsageError(f"no published weights of {name} are known; there are those of {', '.join(sorted(known))}")
    found = known[name]
    if found.file.is_file():
        return found.file
    try:
        found.file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot create {found.file.parent}: {error.strerror}; set SACCADE_CACHE to a writable folder"
        ) from error
    if not _whole(found):
        if say:
            say(f"fetching {found.url}\nlicence: {found.licence} ({found.page})")
        _fetch(found)
    _check(found)
    _convert(found)
    found.part.unlink(missing_ok=True)
    return found.file


def published_scale(name: str) -> int | None:
    """The enlargement that the published weights of a model are for; None where there is no choice."""
    known = published().get(name)
    return known.scale if known else None


def load_official(model: Any, name: str, options: Mapping[str, Any], say: Callable[[str], Any] | None = None) -> None:
    """Put the published weights into a network made by `saccade.create`.

    The enlargement must be the published one (`Published.scale`; see `published_scale`).

    A classifier of another size than the published one (``num_classes`` among the options) stays as it is, freshly
    made; so does none, or one that ``features_only`` dropped.

    Raises:
        UsageError, UnavailableError, CheckpointError, InputError: as `official`; or the rest does not fit.
    """
    from saccade.checkpoint import classifier_names, fit, read_state

    wanted = published_scale(name)
    if wanted is not None and options.get("scale") != wanted:
        raise UsageError(f"the published weights of {name} are for x{wanted}, not for x{options.get('scale')}")
    path = official(name, say)
    state, _ = read_state(path)
    features_only = bool(options.get("features_only"))
    network = model.model if features_only else model
    own = network.state_dict()
    if features_only:
        state = {key: value for key, value in state.items() if key in own}
    elif "num_classes" in options:
        heads = classifier_names(network)
        fresh = {key: value for key, value in own.items() if key.startswith(heads)}
        if any(key not in state or state[key].shape != value.shape for key, value in fresh.items()) or not fresh:
            state = {key: value for key, value in state.items() if not key.startswith(heads)} | fresh
    fit(network, state, f"the published {name}")


def _whole(found: Published) -> bool:
    """Whether a file put there by hand, or by a download that ended, needs no more bytes."""
    if not found.part.is_file() or _note(found).is_file():
        return False
    return found.bytes is None or found.part.stat().st_size == found.bytes


def _note(found: Published) -> Path:
    """A file beside an unfinished download that tells it from one put there by hand; holds the server's tag."""
    return found.part.with_suffix(".unfinished")


def _fetch(found: Published) -> None:
    """Download, from where an earlier download stopped."""
    note, start = _note(found), 0
    if note.is_file() and found.part.is_file():
        start = found.part.stat().st_size
    request = urllib.request.Request(found.url, headers={"User-Agent": "saccade"})
    if start:
        request.add_header("Range", f"bytes={start}-")
        if tag := note.read_text(encoding="utf-8"):
            request.add_header("If-Range", tag)  # another file by now: the server sends all of it
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            start = start if answer.status == 206 else 0
            length = answer.headers.get("Content-Length")
            total = start + int(length) if length and length.isdigit() else found.bytes
            _check_promise(found, total)
            note.write_text(answer.headers.get("ETag") or "", encoding="utf-8")
            with found.part.open("ab" if start else "wb") as file, bar(f"fetching {found.name}", total) as advance:
                advance(start)
                got = start + _copy(answer, file, advance)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # nothing is left to send, or what is here is longer than the file
            found.part.unlink()
            note.unlink()
            _fetch(found)
            return
        raise UnavailableError(f"cannot fetch {found.url} (HTTP {error.code}); {found.by_hand}") from error
    except (OSError, ValueError) as error:
        raise UnavailableError(
            f"cannot fetch {found.url} ({first_line(error)}); run it again to go on, or {found.by_hand}"
        ) from error
    if total is not None and got < total:
        raise UnavailableError(
            f"{found.url} was cut off after {got:,} of {total:,} bytes; run it again to go on, or {found.by_hand}"
        )
    note.unlink()


def _check_promise(found: Published, total: int | None) -> None:
    if total is not None and (total > LARGEST or (found.bytes is not None and total != found.bytes)):
        wanted = f"{found.bytes:,}" if found.bytes is not None else f"at most {LARGEST:,}"
        raise CheckpointError(f"{found.url} has {total:,} bytes instead of {wanted}: it is another file")


def _copy(source: Any, target: IO[bytes], advance: Callable[[float], Any]) -> int:
    got = 0
    while block := source.read(_CHUNK):
        target.write(block)
        got += len(block)
        advance(len(block))
        if got > LARGEST:
            raise ValueError("it does not end")
    return got


def _check(found: Published) -> None:
    size = found.part.stat().st_size
    with found.part.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    wrong = []
    if found.bytes is not None and size != found.bytes:
        wrong.append(f"{size:,} bytes instead of {found.bytes:,}")
    if found.sha256 is not None and digest != found.sha256:
        wrong.append(f"the SHA-256 {digest} instead of {found.sha256}")
    if wrong:
        found.part.unlink()
        raise CheckpointError(f"what {found.url} sent has {' and '.join(wrong)}; it was thrown away")


def _convert(found: Published) -> None:
    """Write it as ours; what is no such network is thrown away."""
    from saccade.checkpoint import load, save

    weights = found.part.with_suffix(".pth")  # the reader goes by the ending
    if found.url.endswith(".safetensors"):
        weights = found.part.with_suffix(".fetched.safetensors")
    found.part.rename(weights)
    try:
        model: Any = load(weights)
        if model.saccade_name != found.name:
            raise CheckpointError(f"what {found.url} sent holds {model.saccade_name}, not {found.name}")
        save(model, found.file, source=found.url, licence=found.licence)
    finally:
        weights.unlink(missing_ok=True)
