"""Files, folders and globs of a command line as a list of files."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Set
from pathlib import Path

from saccade.errors import InputError
from saccade.io.formats import PICTURE_SUFFIXES

__all__ = ["VIDEO_SUFFIXES", "find_files", "find_pictures", "is_video"]

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv", ".flv"})


def is_video(path: str | os.PathLike[str]) -> bool:
    """Whether the name's suffix is that of a video file."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES


def find_pictures(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], *, videos: bool = False
) -> list[Path]:
    """The pictures (and with ``videos`` the clips) among files, folders and globs; see `find_files`."""
    if videos:
        return find_files(paths, PICTURE_SUFFIXES | VIDEO_SUFFIXES, "pictures or videos")
    return find_files(paths, PICTURE_SUFFIXES, "pictures")


def find_files(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], suffixes: Set[str], what: str
) -> list[Path]:
    """Files, folders and globs (``*``, ``?``, ``[..]``, ``**``) as a list of files, each once.

    Files named outright are taken as they are; folders and globs give the files with one of the suffixes, hidden ones
    left out, in natural order (img2 before img10).

    Args:
        paths: one or many.
        suffixes: in small letters, with their dot.
        what: such files are called in errors.

    Raises:
        InputError: nothing of that name, or no such file in that folder.
    """
    found: dict[Path, None] = {}
    for given in [paths] if isinstance(paths, str | os.PathLike) else paths:
        path = Path(given)
        if path.is_file():
            found[path] = None
            continue
        if path.is_dir():
            inside, where = list(path.iterdir()), f"the folder {path}"
        elif glob.has_magic(str(path)):
            inside, where = [Path(name) for name in glob.glob(str(path), recursive=True)], f"what matches {path}"
        else:
            raise InputError(f"cannot read {path}: no such file or folder")
        inside = [p for p in inside if p.suffix.lower() in suffixes and not p.name.startswith(".") and p.is_file()]
        if not inside:
            raise InputError(f"no {what} in {where}")
        found.update(dict.fromkeys(sorted(inside, key=_natural)))
    return list(found)


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """Sorting key: runs of digits as numbers."""
    parts = re.split(r"(\d+)", str(path).lower())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]
