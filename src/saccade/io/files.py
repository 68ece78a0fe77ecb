"""What pictures and video share about files: why one cannot be read, and how a new one appears whole or not at all."""

from __future__ import annotations

import os
import weakref
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from saccade.errors import InputError

__all__ = ["UnderWay", "check_target", "first_bytes", "reason", "temporary_beside"]


def first_bytes(path: Path, count: int) -> bytes:
    """The first bytes of a file that must exist and hold something. Raises InputError otherwise, one line each."""
    try:
        with path.open("rb") as file:
            head = file.read(count)
    except FileNotFoundError:
        raise InputError(f"cannot read {path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"cannot read {path}: it is a directory; name a file in it") from None
    except (OSError, ValueError) as error:  # a name with a null byte is a ValueError
        raise InputError(f"cannot read {path}: {reason(error)}") from None
    if not head:
        raise InputError(f"cannot read {path}: the file is empty (0 bytes)")
    return head


def check_target(path: Path, overwrite: bool) -> None:
    """Before long work: refuse a target that cannot be written in the end.

    Raises:
        InputError: a directory, no folder to go into, or a file that must not be overwritten.
    """
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a directory; name a file in it")
    if path.exists() and not overwrite:
        raise InputError(f"cannot write {path}: it exists; choose another name or overwrite it (--overwrite)")


def temporary_beside(path: Path) -> Path:
    """A new empty file in the target's folder, so that the last step is a rename on one disc.

    Raises InputError when no file can be made there: the earliest moment to find that out.
    """
    stem = os.fsdecode(os.fsencode(path.stem)[:80])  # discs count bytes; half a letter at the end does no harm
    temporary = path.with_name(f".{stem}.{os.urandom(4).hex()}.part{path.suffix}")
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except FileNotFoundError:
        raise InputError(f"cannot write {path}: there is no folder {path.parent}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write {path}: {reason(error)}") from None
    return temporary


def reason(error: Exception) -> str:
    """What the system said, in one line: 'permission denied'."""
    return " ".join((getattr(error, "strerror", None) or str(error)).lower().split())


class UnderWay(ABC):
    """A file that is being written under another name. A context manager: an exception inside leaves nothing behind.

    Attributes:
        path: what it will be called.
    """

    path: Path
    #: stops what is at work and removes the unfinished file; also when the writer is forgotten, and at exit
    _discard: weakref.finalize[Any, Any]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    @abstractmethod
    def close(self) -> None:
        """Finish the file and give it its name. Does nothing when already closed or aborted."""

    def abort(self) -> None:
        """Stop and leave nothing behind. Does nothing when already closed or aborted."""
        self._discard()
